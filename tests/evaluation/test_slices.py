"""Slices: every pair in exactly one of each kind, and each judged as if it were alone."""

import json

import numpy as np
import pytest

from marginkit.errors import BadInput
from marginkit.evaluation.metrics import evaluate
from marginkit.evaluation.slices import MOST_SLICES, slice_table
from pair_tables import pairs


def _table(n=120, **columns):
    rng = np.random.default_rng(0)
    return pairs(
        rng.normal(0.5, 1, n),
        source=[f"s{i % 3}" if i % 10 else None for i in range(n)],
        length_chosen=rng.integers(1, 50, n),
        length_rejected=rng.integers(1, 50, n),
        grade_gap=rng.integers(1, 4, n).astype(float),
        **columns,
    )


def test_slices_of_a_kind_hold_every_pair_once():
    found = slice_table(_table(), resamples=20)
    kinds = [one.by for one in found]
    assert sorted(set(kinds), key=kinds.index) == ["source", "length_ratio", "grade_gap"]  # no subset is known
    for kind in ("source", "length_ratio", "grade_gap"):
        assert sum(one.n for one in found if one.by == kind) == 120
    assert [one.name for one in found if one.by == "source"][-1] == "(none)"
    assert [one.name for one in found if one.by == "grade_gap"] == ["1", "2", "3"]
    json.dumps([one.to_json() for one in found], allow_nan=False)


def test_a_slice_is_judged_as_if_it_were_alone():
    table = _table()
    [one] = [own for own in slice_table(table, ["source"]) if own.name == "s1"]
    rows = [i for i, name in enumerate(table["source"].to_pylist()) if name == "s1"]
    alone = evaluate(table.take(rows))
    for name in ("accuracy", "nll", "ece", "ece_floor", "length_baseline"):
        assert getattr(one, name).to_json() == pytest.approx(alone[name].to_json())
    assert not one.small


def test_length_ratio_is_cut_at_halves_and_doubles():
    chosen, rejected = [4, 5, 8, 10, 12, 13, 20, 0], [10, 10, 10, 10, 10, 10, 10, 0]
    found = slice_table(pairs(np.ones(8), length_chosen=chosen, length_rejected=rejected), ["length_ratio"])
    assert [(one.name, one.n) for one in found] == [
        ("chosen under half as long", 1),
        ("chosen shorter (1/2 to 4/5)", 1),
        ("about as long (4/5 to 5/4)", 4),
        ("chosen longer (5/4 to 2)", 1),
        ("chosen over twice as long", 1),
    ]


def test_small_slices_are_marked_and_many_are_counted():
    n = MOST_SLICES + 30
    names = [f"t{i:03d}" for i in range(n)] + ["big"] * 25
    found = slice_table(pairs(np.ones(len(names)), subset=names), ["subset"], resamples=5)
    assert len(found) == MOST_SLICES
    assert (found[0].name, found[0].n, found[0].small) == ("big", 25, False)
    assert (found[-1].name, found[-1].n) == ("(32 smaller ones)", 32)
    assert found[1].small
    assert sum(one.n for one in found) == len(names)


def test_any_column_will_do_and_none_is_refused():
    found = slice_table(_table(split=["dev"] * 60 + ["test"] * 60), ["split"], resamples=5)
    assert [(one.name, one.n) for one in found] == [("dev", 60), ("test", 60)]
    with pytest.raises(BadInput, match="by topic: no such column; the pairs table has group, "):
        slice_table(_table(), ["topic"])
    with pytest.raises(BadInput, match="no pairs to slice"):
        slice_table(_table().slice(0, 0))


def test_old_tables_have_no_grade_gaps():
    table = _table().drop_columns("grade_gap")
    assert {one.by for one in slice_table(table, resamples=5)} == {"source", "length_ratio"}
    assert evaluate(table)["accuracy"] == evaluate(_table())["accuracy"]


def test_a_slice_of_ties_says_that_there_is_nothing_to_judge():
    [one] = slice_table(pairs([1.0, 2.0], tie=[True, True], source=["a", "a"]), ["source"])
    assert one.n == 2
    assert one.accuracy.n == one.ece.n == one.ece_floor.n == 0
