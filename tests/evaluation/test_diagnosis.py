"""Signs in the curves of a run: each is said where it is there, with its number, and not where it is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from marginkit.evaluation.diagnosis import Diagnosis, diagnose, ends
from marginkit.evaluation.history import History, read_history
from marginkit.records import Estimate


def line(*values: float, every: float = 10.0) -> list[tuple[float, float]]:
    """A curve through these values."""
    return [(every * at, value) for at, value in enumerate(values)]


def found(topic: str, evaluation: dict[str, Estimate] | None = None, **told: object) -> Diagnosis | None:
    """What is said on a topic of a run with these series; `_` stands for `/`."""
    known = {"recipe", "reward", "differences", "keeps_best"}
    series = {name.replace("__", "/"): value for name, value in told.items() if name not in known}
    rest = {name: value for name, value in told.items() if name in known}
    said = diagnose(History("step", series), evaluation, **rest)  # type: ignore[arg-type]
    return next((one for one in said if one.topic == topic), None)


def around(value: float, half: float, n: int = 400) -> Estimate:
    """An estimate with a symmetric interval."""
    return Estimate(value, value - half, value + half, n, n)


DPO = {"recipe": "dpo", "reward": "implicit"}


def test_a_fall_of_chosen_log_probs_with_a_growing_gap_is_expected_under_dpo() -> None:
    """14 nats while the gap grows: said, with the number; 40 nats: a warning that names what holds it."""
    gap = line(0.0, 1.0, 2.0)
    said = found(
        "drift", logps__chosen=line(-100, -105, -114), logps__rejected=line(-90, -99, -120), rewards__margins=gap, **DPO
    )
    assert said is not None
    assert said.level == "note"
    assert "fell by 14 nats (rejected: 30) while the gap grew by 2.00 logits: expected under dpo" in said.says
    far = found("drift", logps__chosen=line(-100, -140), rewards__margins=line(0, 3.0), **DPO)
    assert far is not None
    assert far.level == "warning"
    assert far.advice is not None
    assert "bpo" in far.advice
    averaged = found(
        "drift", logps__chosen=line(-100, -104), rewards__margins=line(0, 3.0), recipe="simpo", reward="per_token"
    )
    assert averaged is not None
    assert "short and likely tokens" in averaged.says


@pytest.mark.parametrize(
    "told",
    [
        {"logps__chosen": line(-100, -100.4), "rewards__margins": line(0, 1.0), **DPO},  # half a nat
        {"logps__chosen": line(-100, -90), "rewards__margins": line(0, 1.0), **DPO},  # it rose
        {"logps__chosen": line(-100, -130), "rewards__margins": line(0, 1.0), "recipe": "bt", "reward": "head"},
        {"rewards__margins": line(0, 1.0), **DPO},
    ],
)
def test_no_fall_no_word(told: dict[str, object]) -> None:
    """Noise of a batch, a rise, a reward model, or no log-probs: nothing is said."""
    assert found("drift", **told) is None


def test_a_fall_without_a_gap_is_bad() -> None:
    """The policy loses likelihood for nothing."""
    said = found("drift", logps__chosen=line(-100, -120), rewards__margins=line(1.0, 0.5), **DPO)
    assert said is not None
    assert said.level == "bad"


def test_a_run_in_which_nothing_moves() -> None:
    """Gap at 0 and a flat loss; a gap that grows is fine."""
    flat = {"rewards__margins": line(*[0.001] * 6), "loss": line(*[0.6931] * 6)}
    said = found("learning", **flat)
    assert said is not None
    assert said.level == "bad"
    assert "nothing was learnt" in said.says
    assert (
        found("learning", rewards__margins=line(0, 0.5, 1, 1, 1, 1), loss=line(0.69, 0.6, 0.5, 0.5, 0.5, 0.5)) is None
    )
    assert found("learning", rewards__margins=line(0, 0.001), loss=line(0.69, 0.69)) is None  # two lines say nothing


def test_the_best_step_was_earlier() -> None:
    """NLL of the dev split best at step 20 of 50, the gap and the ECE still growing; a steady fall is no sign."""
    said = found(
        "overfitting",
        eval_nll=line(0.69, 0.60, 0.55, 0.57, 0.60, 0.64),
        eval_rewards__margins=line(0, 1, 2, 3, 4, 5),
        eval_calibration__ece=line(0.01, 0.02, 0.03, 0.05, 0.08, 0.11),
    )
    assert said is not None
    assert "best at step 20 (0.5500) and 0.0900 worse at the end" in said.says
    assert "the gap grew by 3.00 logits and its ECE rose by 0.080" in said.says
    assert said.numbers["best_at"] == 20
    kept = found("overfitting", eval_nll=line(0.69, 0.60, 0.55, 0.57, 0.60, 0.64), keeps_best=True)
    assert kept is not None
    assert (kept.level, kept.advice) == ("note", None)
    assert kept.says.endswith("the best is what was kept.")
    assert found("overfitting", eval_nll=line(0.69, 0.6, 0.55, 0.54)) is None
    assert found("overfitting", eval_nll=line(0.69, 0.55, 0.553)) is None  # less than LOST
    assert found("overfitting", eval_nll=line(0.69, 0.9)) is None  # two evaluations have no course


def test_gaps_of_training_pairs_spread_wider() -> None:
    """Twice as wide is said, a tenth wider is not."""
    wide = found("overfitting", rewards__margins_std=line(1.0, 4.0), eval_rewards__margins_std=line(1.0, 2.0))
    assert wide is not None
    assert "2.0 times as wide" in wide.says
    assert found("overfitting", rewards__margins_std=line(2.2), eval_rewards__margins_std=line(2.0)) is None


@pytest.mark.parametrize(
    ("slope", "word"),
    [(1.6, "overshoots"), (0.2, "learnt little"), (-0.5, "puts first what should"), (0.9, None), (0.6, None)],
)
def test_gaps_against_their_targets(slope: float, word: str | None) -> None:
    """Clearly above 1 it overshoots, clearly below 1/2 it has learnt little, between nothing is said."""
    said = found("target", {"gap_slope": around(slope, 0.15)})
    assert (said is None) == (word is None)
    assert said is None or word in said.says


def test_pairs_short_of_their_margin() -> None:
    """Only where a margin is asked for."""
    told = {"slack__violation_rate": line(0.9, 0.7, 0.65)}
    said = found("slack", target__margin=line(1.0, 1.0), **told)
    assert said is not None
    assert "65%" in said.says
    assert found("slack", **told) is None
    assert found("slack", target__margin=line(1.0), slack__violation_rate=line(0.9, 0.2)) is None


def test_where_the_gradient_comes_from() -> None:
    """Four fifths from the third of pairs with the smallest gaps is said; in proportion it is not."""
    said = found(
        "gradient",
        gradient__small_gaps=line(0.8, 0.8),
        pairs__small_gaps=line(0.33, 0.33),
        gradient__large_gaps=line(0.1),
        pairs__large_gaps=line(0.33),
    )
    assert said is not None
    assert "80% of the gradient comes from the 33% of pairs with the smallest gaps" in said.says
    assert (
        found(
            "gradient",
            gradient__small_gaps=line(0.4),
            pairs__small_gaps=line(0.33),
            gradient__large_gaps=line(0.3),
            pairs__large_gaps=line(0.33),
        )
        is None
    )


@pytest.mark.parametrize(
    ("temperature", "word"),
    [
        (around(0.6, 0.1), "gamma is too small"),
        (around(1.8, 0.2), "gamma is too large"),
        (around(1.0, 0.3), "size of confidence is not"),
    ],
)
def test_behind_the_twin(temperature: Estimate, word: str) -> None:
    """Worse in NLL beyond the interval: which way gamma is wrong is read off the temperature."""
    worse = {"nll": around(0.01, 0.004)}
    said = found("twin", {"temperature": temperature}, differences=worse)
    assert said is not None
    assert said.level == "warning"
    assert word in said.says
    assert ".010 NLL" in said.says


def test_a_twin_that_cannot_be_told_apart_is_not_spoken_of() -> None:
    """An interval that holds 0 is no sign; one below it is good."""
    assert found("twin", {}, differences={"nll": around(0.01, 0.02)}) is None
    better = found("twin", {}, differences={"nll": around(-0.02, 0.01)})
    assert better is not None
    assert better.level == "good"


def test_no_better_than_a_coin() -> None:
    """Where the interval holds 1/2."""
    said = found("chance", {"accuracy": around(0.52, 0.05)})
    assert said is not None
    assert found("chance", {"accuracy": around(0.6, 0.05)}) is None


def test_the_gravest_comes_first_and_a_healthy_run_is_left_in_peace() -> None:
    """Order of levels; no sign in a run that learns, reaches its targets and does not overfit."""
    series = {"logps/chosen": line(-100, -130), "rewards/margins": line(1.0, 0.5), "eval_nll": line(0.6, 0.5, 0.7, 0.9)}
    levels = [one.level for one in diagnose(History("step", series), recipe="dpo", reward="implicit")]
    assert levels == ["bad", "warning"]
    healthy = {
        "logps/chosen": line(-100, -100.2, -100.3),
        "rewards/margins": line(0, 1, 2),
        "eval_nll": line(0.69, 0.6, 0.5),
        "loss": line(0.69, 0.6, 0.5, 0.5, 0.5),
    }
    good = {"accuracy": around(0.8, 0.03), "gap_slope": around(0.9, 0.1)}
    assert diagnose(History("step", healthy), good, **DPO) == []
    assert diagnose(History("step", {})) == []


def test_long_curves_are_read_by_their_ends() -> None:
    """A log line is a handful of batches: the first five and the last five count."""
    noisy = [(float(at), (0.0 if at < 20 else 10.0) + (-1) ** at) for at in range(40)]
    first, last = ends(noisy) or (math.nan, math.nan)
    assert first == pytest.approx(0.2)
    assert last == pytest.approx(9.8)


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """A truncated last line is counted, null values are left out, a step logged twice counts as the last time."""
    rows = [{"step": 1, "loss": 0.7}, {"step": 1, "loss": 0.6}, {"step": 2, "loss": None, "eval_nll": 0.5}]
    text = "\n".join(map(json.dumps, rows)) + "\n[1]\n" + '{"step": 3, "lo'
    (tmp_path / "log.jsonl").write_text(text)
    (tmp_path / "snapshots.jsonl").write_text(
        json.dumps({"step": 2, "measure": "grade_gap", "target": [1.0, 2.0], "gap": [0.1, 0.4], "count": [5, 6]}) + "\n"
    )
    history = read_history(tmp_path)
    assert dict(history.series) == {"loss": [(1.0, 0.6)], "eval_nll": [(2.0, 0.5)]}
    assert history.broken == 2
    assert history.unit == "step"
    assert history.snapshots[0].gap == [0.1, 0.4]
    assert read_history(tmp_path / "nowhere").series == {}


def test_lines_that_are_no_snapshot_are_counted(tmp_path: Path) -> None:
    """Another form, a number that is none, lists of different lengths; a step that is not finite is no step."""
    whole = {"step": 4, "measure": "target_gap", "target": [0.1, 2.0], "gap": [0.0, 1.0], "count": [5, 5]}
    other = [{"step": 1}, whole | {"gap": [1.0]}, whole | {"target": "x"}, whole | {"gap": [float("nan"), 1.0]}, whole]
    (tmp_path / "snapshots.jsonl").write_text("".join(json.dumps(line) + "\n" for line in other))
    (tmp_path / "log.jsonl").write_text('{"step": NaN, "loss": 1}\n{"step": 4, "loss": 0.5}\n')
    found = read_history(tmp_path)
    assert ([one.step for one in found.snapshots], found.broken) == ([4.0], 4)
    assert found.series == {"loss": [(4.0, 0.5)]}
