"""A run that was cut off goes on to the same weights, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import marginkit.training
import tiny
from marginkit.errors import BadInput
from marginkit.run import Run, train
from marginkit.training import MarginTrainer

GROUPS = tiny.world(train=12, dev=0, test=3)


class PlugPulled(Exception):
    """Somebody stopped the run."""


def overrides(start: str, out: Path, *more: str) -> list[str]:
    """AdamW, a schedule, LoRA with dropout, 3 steps an epoch, 2 epochs."""
    return [
        f"model.path={start}",
        "model.lora.r=4",
        "model.lora.dropout=0.1",
        "train.disable_dropout=false",
        "train.learning_rate=0.01",
        "train.lr_scheduler_type=cosine",
        "train.warmup_steps=2",
        "train.num_train_epochs=2",
        "train.prompts_per_step=4",
        "train.logging_steps=1",
        "train.save_strategy=steps",
        "train.save_steps=1",
        "train.use_cpu=true",
        "data.eval_split=null",
        "store.use=false",
        f"out={out}",
        *more,
    ]


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The next run stops in the middle of the optimizer step that follows `after` whole ones."""

    class Stops(MarginTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if self.state.global_step == after:
                raise PlugPulled
            return loss

    monkeypatch.setattr(marginkit.training, "MarginTrainer", Stops)


RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "mmpo": ("llama", ("target.gamma=0.5", "reward.beta=0.2")),
    "mmpo_rm": ("llama_rm", ("target.gamma=0.5",)),
}


@pytest.fixture(scope="module", params=RECIPES)
def straight(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Run]:
    """A run that nobody stopped."""
    recipe = request.param
    folder = tmp_path_factory.mktemp(recipe)
    start = tiny.save(folder / "start", RECIPES[recipe][0], attention_dropout=0.1)
    return recipe, start, train(recipe, overrides(start, folder / "out", *RECIPES[recipe][1]), train=GROUPS)


@pytest.mark.parametrize(
    ("after", "more"),
    [
        (2, ()),  # in the first epoch
        (3, ()),  # at its end
        (5, ()),  # in the second
        (5, ("train.save_steps=2",)),  # a step behind the last checkpoint
        (1, ("train.save_steps=2",)),  # before the first checkpoint
    ],
)
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(
    straight: tuple[str, str, Run], after: int, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise, with AdamW, a cosine schedule, LoRA dropout and attention dropout."""
    recipe, start, whole = straight
    settings = overrides(start, tmp_path / "out", *RECIPES[recipe][1], *more)
    interrupted(monkeypatch, after)
    with pytest.raises(PlugPulled):
        train(recipe, settings, train=GROUPS)
    monkeypatch.undo()
    again = train(recipe, settings, train=GROUPS)
    assert tiny.weights_digest(again.checkpoint) == tiny.weights_digest(whole.checkpoint)
    before = {line["step"]: line["loss"] for line in tiny.training_lines(whole.path)}
    after_all = {line["step"]: line["loss"] for line in tiny.training_lines(again.path)}
    assert after_all == before
    assert len(before) == 6


def test_the_straight_run_has_something_to_lose(straight: tuple[str, str, Run], tmp_path: Path) -> None:
    """Dropout is on and the order of the data matters: another seed gives other weights, the same seed the same."""
    recipe, start, whole = straight
    settings = [*RECIPES[recipe][1]]
    again = train(recipe, overrides(start, tmp_path / "again", *settings), train=GROUPS)
    other = train(recipe, overrides(start, tmp_path / "other", *settings, "seed=7"), train=GROUPS)
    still = train(recipe, overrides(start, tmp_path / "still", *settings, "train.disable_dropout=true"), train=GROUPS)
    digests = [tiny.weights_digest(run.checkpoint) for run in (whole, again, other, still)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_finished_run_and_another_run_are_left_alone(straight: tuple[str, str, Run]) -> None:
    """The same `out` again is refused: finished, or another run and the first setting that differs."""
    recipe, start, whole = straight
    settings = overrides(start, whole.path, *RECIPES[recipe][1])
    digest = tiny.weights_digest(whole.checkpoint)
    with pytest.raises(BadInput, match="this run is finished; choose another folder"):
        train(recipe, settings, train=GROUPS)
    with pytest.raises(BadInput, match=r"holds another run \(train.learning_rate was 0.01, now 0.02\)"):
        train(recipe, [*settings, "train.learning_rate=0.02"], train=GROUPS)
    assert tiny.weights_digest(whole.checkpoint) == digest


def test_a_checkpoint_that_was_cut_short_is_passed_over(
    straight: tuple[str, str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without trainer_state.json, which comes last, the checkpoint before it is taken."""
    recipe, start, whole = straight
    settings = overrides(start, tmp_path / "out", *RECIPES[recipe][1])
    interrupted(monkeypatch, 4)
    with pytest.raises(PlugPulled):
        train(recipe, settings, train=GROUPS)
    monkeypatch.undo()
    checkpoints = tmp_path / "out" / "checkpoints"
    (checkpoints / "checkpoint-4" / "trainer_state.json").unlink()
    (checkpoints / "checkpoint-4" / "optimizer.pt").write_bytes(b"half of it")
    again = train(recipe, settings, train=GROUPS)
    assert tiny.weights_digest(again.checkpoint) == tiny.weights_digest(whole.checkpoint)


def slow_run(recipe: str, settings: list[str]) -> None:
    """A run that takes its time over every step."""

    class Slow(MarginTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            time.sleep(0.2)
            return super().training_step(*args, **kwargs)

    marginkit.training.MarginTrainer = Slow  # type: ignore[misc]
    train(recipe, settings, train=GROUPS)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.05, 0.11, 0.17, 0.23])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    straight: tuple[str, str, Run], pause: float, tmp_path: Path
) -> None:
    """Kill -9 at five moments of a step, saving included; started again it ends where an unbroken run does."""
    recipe, start, whole = straight
    settings = overrides(start, tmp_path / "out", *RECIPES[recipe][1])
    process = tiny.start(slow_run, recipe, settings)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (tmp_path / "out" / "checkpoints" / "checkpoint-2").is_dir():
        time.sleep(0.005)
    time.sleep(pause)
    assert process.is_alive()
    tiny.kill(process)
    assert not (tmp_path / "out" / "metrics.json").is_file()
    again = train(recipe, settings, train=GROUPS)
    assert tiny.weights_digest(again.checkpoint) == tiny.weights_digest(whole.checkpoint)
