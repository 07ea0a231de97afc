"""What training says it costs: sums and ratios by hand, and a real run against what its forward passes were given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import marginkit.models.scorer
import marginkit.speed
import marginkit.training
import tiny
from marginkit.cost import Cost
from marginkit.data.encoded import Shape
from marginkit.models.packing import padded_batch
from marginkit.run import train
from marginkit.speed import Speedometer, Tally

GROUPS = tiny.world(train=10, dev=4, test=3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still unless it is changed."""
    now = [100.0]
    monkeypatch.setattr(marginkit.speed.time, "perf_counter", lambda: now[0])
    return now


def step(speed: Speedometer, clock: list[float], seconds: float, **counts: float) -> None:
    """One optimizer step of so many seconds."""
    speed.start(**{"seen": 0.0, "tokens": 0.0, "pair_tokens": 0.0, "operations": 0.0} | counts)
    clock[0] += seconds
    speed.stop()


def test_a_tally_adds_every_sum() -> None:
    """Field by field; the other one stays as it was."""
    sums, other = Tally(1, 2.0, 3.0, 4.0, 5.0, 6.0), Tally(10, 20.0, 30.0, 40.0, 50.0, 60.0)
    sums.add(other)
    assert sums == Tally(11, 22.0, 33.0, 44.0, 55.0, 66.0)
    assert other == Tally(10, 20.0, 30.0, 40.0, 50.0, 60.0)


def test_a_log_line_tells_of_the_steps_since_the_last_one(clock: list[float]) -> None:
    """Tokens of the data by time, operations by time and peak, padded pairs by tokens computed; not what is between."""
    speed = Speedometer(peak=1000.0)
    assert speed.recent() == {}, "nothing was done yet"
    step(speed, clock, 2.0, seen=30, tokens=40, pair_tokens=100, operations=600)
    clock[0] += 50.0  # an evaluation
    step(speed, clock, 3.0, seen=20, tokens=60, pair_tokens=300, operations=400)
    assert speed.recent() == {
        "speed/tokens_per_second": 10.0,
        "speed/goodput": 0.2,
        "speed/times_padded_pairs": 4.0,
    }
    assert speed.recent() == {}
    step(speed, clock, 1.0, seen=8, tokens=8, operations=500)
    assert speed.recent() == {"speed/tokens_per_second": 8.0, "speed/goodput": 0.5}, "no pairs, no ratio"


def test_the_summary_is_of_all_steps(clock: list[float]) -> None:
    """Sums, whole numbers where they are counts, and the ratios over all; log lines between take nothing away."""
    speed = Speedometer(peak=1000.0)
    step(speed, clock, 2.0, seen=30, tokens=40, pair_tokens=100, operations=600)
    speed.recent()
    step(speed, clock, 3.0, seen=20, tokens=60, pair_tokens=300, operations=400)
    told = speed.summary()
    assert told == {
        **{"steps": 2, "seconds": 5.0, "seen": 50, "tokens": 100, "pair_tokens": 400, "operations": 1000.0},
        **{"peak_operations_per_second": 1000.0, "tokens_per_second": 10.0, "goodput": 0.2, "times_padded_pairs": 4.0},
    }
    assert all(type(told[name]) is int for name in ("steps", "seen", "tokens", "pair_tokens"))
    assert json.loads(json.dumps(told)) == told
    assert Speedometer(1.0).summary()["tokens"] == 0, "a run that goes on from its end"


def test_a_step_without_an_end_counts_nothing(clock: list[float]) -> None:
    """What was interrupted is not in the sums, and does not lengthen the next."""
    speed = Speedometer(peak=1.0)
    speed.start(5, 5, 5, 5)
    clock[0] += 10.0
    step(speed, clock, 1.0, seen=2)
    assert (speed.total.steps, speed.total.seen, speed.total.seconds) == (1, 2, 1.0)


# --------------------------------------------------------------------------------------------------------- a real run


class Watched(marginkit.training.MarginTrainer):
    """Keeps what it trains on."""

    groups: list[Any]
    cost_of_a_group: Cost

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        Watched.groups, Watched.cost_of_a_group = list(args[4]), self.cost


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass with a gradient, as the model gets them."""
    monkeypatch.setattr(marginkit.training, "MarginTrainer", Watched)
    tokens: list[int] = []
    score = marginkit.models.scorer.score

    def counted(core: Any, batch: dict[str, Any]) -> Any:
        if torch.is_grad_enabled():
            tokens.append(batch["input_ids"].numel())
        return score(core, batch)

    monkeypatch.setattr(marginkit.models.scorer, "score", counted)
    return tokens


def pairs_laid_out(groups: list[Any]) -> int:
    """Tokens of the pairs that a hard label keeps, each a padded batch of two rows."""
    total = 0
    for group in groups:
        for chosen, rejected, tie in zip(group.chosen, group.rejected, group.tie, strict=True):
            if not tie:
                total += padded_batch([group.part([chosen, rejected])], pad_id=0)["input_ids"].numel()
    return total


@pytest.mark.parametrize(
    ("recipe", "family", "more"),
    [
        ("dpo", "llama", ("train.tokens_per_micro_batch=150",)),
        ("dpo", "llama", ("train.tokens_per_micro_batch=40", "train.layout=rows")),
        ("bt", "llama_rm", ("train.tokens_per_micro_batch=40", "train.gradient_checkpointing=true")),
        ("sft", "llama", ()),
    ],
    ids=["packed", "rows in passes", "packed in passes", "sft"],
)
def test_a_run_tells_what_it_cost(
    recipe: str, family: str, more: tuple[str, ...], computed: list[int], tmp_path: Path
) -> None:
    """manifest.json holds the tokens that were computed, those of padded pairs, the operations of the formula."""
    options = ["train.prompts_per_step=4", "train.num_train_epochs=2", "train.logging_steps=2", "train.use_cpu=true"]
    run = train(
        recipe,
        [
            *(f"model.path={tiny.save(tmp_path / 'start', family)}", f"out={tmp_path / 'out'}", "store.use=false"),
            *("train.learning_rate=0.01", "train.eval_strategy=steps", "train.eval_steps=2", *options, *more),
        ],
        train=GROUPS,
    )
    cost = json.loads((run.path / "manifest.json").read_text())["cost"]
    groups = Watched.groups
    assert len(groups) == 10
    assert cost["steps"] == 6
    assert (len(computed) > 2 * len(groups)) == any(option.endswith("=40") for option in more), "some took several"
    assert cost["tokens"] == sum(computed), "evaluations, scores of the reference and first passes apart"
    assert cost["seen"] == 2 * sum(len(g.prompt_ids) + sum(map(len, g.response_ids)) for g in groups)
    assert cost["pair_tokens"] == 2 * pairs_laid_out(groups)
    shapes = [Shape(len(g.prompt_ids), tuple(map(len, g.response_ids))) for g in groups]
    # summed over ranks in float32
    assert cost["operations"] == pytest.approx(2 * sum(map(Watched.cost_of_a_group.group, shapes)), rel=1e-5)
    assert 0 < cost["goodput"] < 1.5
    assert 0 < cost["seconds"] < run.seconds
    assert cost["tokens_per_second"] == pytest.approx(cost["seen"] / cost["seconds"])
    wanted = {"speed/tokens_per_second", "speed/goodput"}
    if recipe == "sft":
        assert cost["pair_tokens"] == 0
        assert "times_padded_pairs" not in cost
    else:
        wanted |= {"speed/times_padded_pairs"}
        assert cost["times_padded_pairs"] == cost["pair_tokens"] / cost["tokens"]
    lines = tiny.training_lines(run.path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert {name for name in line if name.startswith("speed/")} == wanted
        assert 0 < line["speed/goodput"] < 1.5
