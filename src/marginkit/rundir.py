"""The run directory: what is in it, when it may be gone on with, and what it says of how it was made.

config.yaml     the resolved configuration, enough to repeat the run
manifest.json   code, data, rows kept and dropped, seeds, versions
log.jsonl       one line a log
start/          the fresh model, if one was made
checkpoints/    of transformers.Trainer
model/          the trained model: transformers (or PEFT) loads it as it is
tables/         responses.parquet, pairs.parquet, mistakes.jsonl (texts of held-out pairs)
report.html     the page about it, report.md beside it
snapshots.jsonl gap against target, one line an evaluation
metrics.json    the evaluation; a run that has it is finished
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from marginkit.config import RunConfig, resolve, to_yaml
from marginkit.data.encoded import EncodingReport
from marginkit.errors import BadInput
from marginkit.preparing import Splits
from marginkit.registry import PARTS, function_digest, resolve_options

_PACKAGES = ("marginkit", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "pyarrow")


def open_run(config: RunConfig) -> Path:
    """Make the run directory, or enter the one where the same run was interrupted.

    Raises:
        BadInput: the directory holds another run, a finished one, or something else.
    """
    out = run_folder(config)
    held = out / "config.yaml"
    if held.is_file():
        difference = _first_difference(resolve(held), config)
        if difference:
            raise BadInput(f"out={out}: holds another run ({difference}); choose another folder")
        whole = [out] if config.train.control is None else [out, out / "control"]
        if all((part / "metrics.json").is_file() for part in whole):
            raise BadInput(f"out={out}: this run is finished; choose another folder, or remove it to run it again")
    elif out.exists() and any(out.iterdir()):
        raise BadInput(f"out={out}: not empty, and not a run; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"out={out}: cannot be made ({error.strerror}); name another folder") from None
    if not held.is_file():
        write_whole(held, to_yaml(config.with_(out=str(out))))
    return out


def check_data(out: Path, splits: Splits) -> None:
    """Refuse to go on with a run whose data has changed since it was interrupted.

    Raises:
        BadInput: which split is not what the run's manifest says.
    """
    manifest = out / "manifest.json"
    if not manifest.is_file():
        return
    before = json.loads(manifest.read_text(encoding="utf-8"))["data"]["splits"]
    now = {name: part.fingerprint() for name, part in splits.parts().items()}
    for name in sorted({*before, *now}):
        if before.get(name, {}).get("fingerprint") != now.get(name):
            raise BadInput(
                f"out={out}: holds another run (the data of split {name} has changed); choose another folder"
            )


def run_folder(config: RunConfig) -> Path:
    """The run's directory: `out`, else the first free `runs/RECIPE-N`."""
    if config.out is not None:
        return Path(config.out)
    number = 1
    while (folder := Path("runs") / f"{config.recipe}-{number}").exists():
        number += 1
    return folder


def _first_difference(before: RunConfig, now: RunConfig) -> str:
    def flat(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {key: leaf for name, sub in value.items() for key, leaf in flat(sub, f"{prefix}.{name}").items()}

    old, new = flat(before.model_dump(exclude={"out"}), ""), flat(now.model_dump(exclude={"out"}), "")
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            return f"{key[1:]} was {old.get(key)!r}, now {new.get(key)!r}"
    return ""


def last_checkpoint(out: Path) -> str | None:
    """The newest complete checkpoint; one that was cut short while it was written is passed over."""
    found = sorted((out / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    # transformers writes trainer_state.json last
    return next((str(path) for path in reversed(found) if (path / "trainer_state.json").is_file()), None)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_manifest(
    out: Path, config: RunConfig, splits: Splits, reports: dict[str, EncodingReport], extra: dict[str, Any]
) -> None:
    """Write down what the run was made with."""
    spec = config.spec
    parts = {part: resolve_options(spec, part, getattr(config, part)) for part in PARTS}
    content = {
        "recipe": {"name": spec.name, "version": spec.version, "paper": spec.paper.model_dump()},
        "parts": {
            part: {"function": function, "options": options, "digest": function_digest(function)}
            for part, (function, options) in parts.items()
            if function
        },
        "data": {
            "files": [found.to_json() for found in splits.findings],
            "splits": {
                name: {
                    "groups": len(part),
                    "pairs": sum(len(group.pairs) for group in part),
                    "fingerprint": part.fingerprint(),
                    "left_out": part.dropped,
                }
                for name, part in splits.parts().items()
            },
            "encoding": {name: report.to_json() for name, report in reports.items()},
        },
        "seed": config.seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "commit": _commit(),
        "command": sys.argv,
    }
    write_whole(out / "manifest.json", json.dumps(content | extra, indent=2, default=str))


def _commit() -> str | None:
    """The commit of a source checkout of marginkit; None where it is installed as a package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
