"""What happens beside the loop: the order of an epoch, the bar, the log file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from marginkit.gap_measure import snapshot
from marginkit.progress import progress


class _Ordered(Protocol):
    epoch: int


class EpochOrder(TrainerCallback):
    """Tells the sampler the epoch: Trainer does not reach it through an un-prepared loader, nor on resume."""

    def __init__(self, sampler: _Ordered) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the order of the epoch that begins."""
        self.sampler.epoch = int(state.epoch or 0)


class ProgressBar(TrainerCallback):
    """A bar on stderr: optimizer steps, remaining time, the last logged loss."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where training begins or goes on."""
        self.bar = progress(state.max_steps if state.is_world_process_zero else 0, self.what)
        self.bar.to(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more optimizer step."""
        self.bar.to(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the loss."""
        shown = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if name in ("loss", "eval_loss")]
        if shown and hasattr(self, "bar"):
            self.bar.say(", ".join(shown))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.bar.close()


class Clock(TrainerCallback):
    """Stops the speedometer when an optimizer step is over; the trainer starts it."""

    def __init__(self, speed: Any) -> None:
        self.speed = speed

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more optimizer step."""
        self.speed.stop()


def note_snapshot(log_file: Path, step: int, measure: str, table: Mapping[str, Any]) -> None:
    """Append gap against target at one evaluation to `snapshots.jsonl`, beside the log."""
    found = snapshot(measure, table["apart"], table["chosen"] - table["rejected"]) if "apart" in table else None
    if found is not None:
        with log_file.with_name("snapshots.jsonl").open("a", encoding="utf-8") as sink:
            sink.write(json.dumps({"step": step, **found}) + "\n")


class LogFile(TrainerCallback):
    """Appends every log line to `log.jsonl` of the run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take back the lines after the checkpoint that the run goes on from: those steps come again."""
        if state.is_world_process_zero and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as sink:
                plain = {name: None if value != value else value for name, value in logs.items()}  # JSON has no NaN
                sink.write(json.dumps({"step": state.global_step, **plain}) + "\n")
