"""What of training falls on near and on far pairs, and gap against target at an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import marginkit as mk
import tiny
from marginkit.assembly import build_loss
from marginkit.callbacks import note_snapshot
from marginkit.config import resolve
from marginkit.core.tensors import SequenceScores
from marginkit.evaluation.diagnosis import diagnose
from marginkit.evaluation.history import read_history
from marginkit.gap_measure import PARTS, measure_of, snapshot, weigh
from marginkit.metering import Meter
from marginkit.models.packing import labels_of, pair_columns


def loss_of(recipe: str, *overrides: str) -> object:
    """The loss of a recipe."""
    config = resolve(recipe, ["model.path=x", *overrides])
    return build_loss(config.spec, config.options())


ENCODED = tiny.encode(mk.make_pairs(tiny.world(train=20), how="all"))


def test_the_measure_is_the_target_where_there_is_one_else_the_grades() -> None:
    """mmpo: gamma * grade gap, logits; dpo: the grade gap; responses without pairs: none."""
    soft = measure_of(loss_of("mmpo", "target.gamma=0.5"), ENCODED)  # type: ignore[arg-type]
    hard = measure_of(loss_of("dpo"), ENCODED)  # type: ignore[arg-type]
    assert soft is not None
    assert hard is not None
    assert (soft.name, hard.name) == ("target_gap", "grade_gap")
    groups = [ENCODED[at] for at in range(len(ENCODED))]
    labels = labels_of(pair_columns(groups, torch.float64))
    count = sum(len(group.chosen) for group in groups)
    grades = hard.of(loss_of("dpo"), labels, count)  # type: ignore[arg-type]
    gaps = [
        abs(group.grade[c] - group.grade[r])
        for group in groups
        for c, r in zip(group.chosen, group.rejected, strict=True)
    ]
    assert grades.tolist() == pytest.approx(gaps, nan_ok=True)
    assert soft.of(loss_of("mmpo", "target.gamma=0.5"), labels, count).tolist() == pytest.approx(
        [0.5 * gap for gap in gaps]
    )  # type: ignore[arg-type]
    assert measure_of(loss_of("sft"), ENCODED) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["bt", "mmpo_rm"])
def test_shares_are_those_of_the_closed_form(recipe: str) -> None:
    """|dL/dgap| = |sigmoid(gap) - prob|, both rewards get it: shares by part of the measure, summed by hand."""
    loss = loss_of(recipe, *(["target.gamma=0.7"] if recipe == "mmpo_rm" else []))
    groups = [ENCODED[at] for at in range(len(ENCODED))]
    batch = pair_columns(groups, torch.float64)
    torch.manual_seed(0)
    head = torch.randn(sum(len(group.response_ids) for group in groups), dtype=torch.float64, requires_grad=True)
    measure, meter = measure_of(loss, ENCODED), Meter()  # type: ignore[arg-type]
    assert measure is not None
    result = loss.evaluate(SequenceScores(head=head).at(batch["pairs"], labels_of(batch)), training=True)  # type: ignore[attr-defined]
    kept = loss.kept(labels_of(batch), len(batch["pairs"]))  # type: ignore[attr-defined]
    batch["share"] = kept.double()
    apart = measure.of(loss, labels_of(batch), len(kept))  # type: ignore[arg-type]
    batch["apart"] = apart.clone()
    batch["apart"][::5] = torch.nan  # a pair without a measure has no part, and is in no total
    weigh(meter, measure, batch, result, (batch["share"] * result.total).sum())  # type: ignore[arg-type]
    gap = (head[batch["pairs"][:, 0]] - head[batch["pairs"][:, 1]]).detach()
    prob = torch.sigmoid(apart) if recipe == "mmpo_rm" else torch.ones_like(gap)
    known = kept & ~torch.isnan(batch["apart"])
    size = torch.where(known, (torch.sigmoid(gap) - prob).abs(), torch.zeros_like(gap))
    for number, name in enumerate(PARTS):
        low, high = (-np.inf, *measure.bounds, np.inf)[number : number + 2]
        inside = (apart > low) & (apart <= high) & known
        total, count = meter.sums[f"gradient/{name}_gaps"].tolist()
        assert total / count == pytest.approx(float(size[inside].sum() / size.sum()), rel=1e-9)
        total, count = meter.sums[f"pairs/{name}_gaps"].tolist()
        assert total / count == pytest.approx(float(inside.sum() / known.sum()))


def test_the_gradient_of_the_model_is_left_alone() -> None:
    """Looking at the loss's gradient adds nothing to that of the weights."""
    loss = loss_of("bt")
    batch = pair_columns([ENCODED[0]], torch.float64)
    head = torch.randn(len(ENCODED[0].response_ids), dtype=torch.float64, requires_grad=True)
    result = loss.evaluate(SequenceScores(head=head).at(batch["pairs"], labels_of(batch)), training=True)  # type: ignore[attr-defined]
    batch["share"] = torch.ones(len(batch["pairs"]))
    batch["apart"] = torch.ones(len(batch["pairs"]))
    weigh(Meter(), measure_of(loss, ENCODED), batch, result, result.total.sum())  # type: ignore[arg-type]
    assert head.grad is None
    result.total.sum().backward()
    assert head.grad is not None


def test_a_snapshot_is_the_mean_gap_in_buckets() -> None:
    """Two grades make two buckets, many values five equal ones; NaN has no part, one value makes no snapshot."""
    found = snapshot("grade_gap", np.array([1.0, 1.0, 2.0, np.nan]), np.array([0.0, 1.0, 3.0, 9.0]))
    assert found == {"measure": "grade_gap", "target": [1.0, 2.0], "gap": [0.5, 3.0], "count": [2, 1]}
    many = snapshot("target_gap", np.arange(100.0), 2 * np.arange(100.0))
    assert many is not None
    assert many["count"] == [20] * 5
    assert many["gap"] == pytest.approx([2 * value for value in many["target"]])
    assert snapshot("grade_gap", np.ones(5), np.ones(5)) is None
    assert snapshot("grade_gap", np.array([]), np.array([])) is None


def test_a_snapshot_is_a_line_beside_the_log(tmp_path: Path) -> None:
    """Of chosen - rejected; a run without a measure writes none."""
    table = {"chosen": np.array([3.0, 1.0]), "rejected": np.array([1.0, 2.0])}
    note_snapshot(tmp_path / "log.jsonl", 7, "grade_gap", table)
    assert list(tmp_path.iterdir()) == []
    note_snapshot(tmp_path / "log.jsonl", 7, "grade_gap", table | {"apart": np.array([2.0, 1.0])})
    [found] = read_history(tmp_path).snapshots
    assert (found.step, found.target, found.gap) == (7.0, [1.0, 2.0], [-1.0, 2.0])


@pytest.mark.slow
def test_dpo_lets_the_chosen_log_prob_fall_and_the_diagnosis_says_so(tmp_path: Path) -> None:
    """A high rate and many epochs: the gap grows, chosen responses become less likely, and that is what is said."""
    start = tiny.save(tmp_path / "start", "llama")
    options = [
        f"model.path={start}",
        f"out={tmp_path / 'run'}",
        "store.use=false",
        "train.use_cpu=true",
        "reward.beta=0.1",
    ]
    options += [
        "train.prompts_per_step=4",
        "train.num_train_epochs=4",
        "train.learning_rate=0.002",
        "train.logging_steps=1",
    ]
    run = mk.train("dpo", [*options, "train.save_strategy=no"], train=tiny.world(train=24, dev=12, test=12))
    history = read_history(run.path)
    chosen = history.series["eval_logps/chosen"]
    fell = chosen[0][1] - chosen[-1][1]
    assert fell > 1.0
    (drift,) = (one for one in diagnose(history, recipe="dpo", reward="implicit") if one.topic == "drift")
    assert f"fell by {fell:.3g} nats" in drift.says
    assert "expected under dpo" in drift.says
