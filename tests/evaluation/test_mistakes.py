"""The pairs a model is most sure of and wrong about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pair_tables
from marginkit.evaluation.mistakes import confident_mistakes
from marginkit.groups import Groups
from marginkit.mistaken_texts import write_mistakes
from marginkit.records import Group, Pair, Response
from marginkit.tables import Scores


def test_the_most_confident_come_first_and_ties_have_no_wrong_side() -> None:
    """Hard labels by gap; a tie, a label of 1/2 and a pair that is right are none; equal rewards are wrong."""
    table = pair_tables.pairs(
        [-1.0, 2.0, -3.0, -9.0, -5.0, 0.0],
        tie=[False, False, False, True, False, False],
        label_prob=[None, None, None, None, 0.5, None],
    )
    found, count = confident_mistakes(table)
    assert [one.group for one in found] == ["g2", "g0", "g5"]
    assert count == 3
    assert found[0].nll == pytest.approx(np.log1p(np.exp(3.0)))


def test_a_soft_label_counts_by_what_is_lost_beyond_it() -> None:
    """At a label of .6 a gap of -1 loses less than the same gap at a hard label; at .2 the model is right to say no."""
    table = pair_tables.pairs([-1.0, -1.0, -1.0, 1.0], label_prob=[0.6, None, 0.2, 0.2])
    found, count = confident_mistakes(table)
    assert [one.group for one in found] == ["g1", "g3", "g0"]
    assert count == 3


def test_a_prompt_does_not_fill_the_list() -> None:
    """At most two pairs a group and 200 in all, but every mistake is counted."""
    n = 600
    table = pair_tables.pairs(
        -np.linspace(1, 2, n), group=[f"g{i // 3}" for i in range(n)], pair=[i % 3 for i in range(n)]
    )
    found, count = confident_mistakes(table)
    assert (len(found), count) == (200, n)
    groups = [one.group for one in found]
    assert max(groups.count(name) for name in set(groups)) == 2


def test_texts_are_kept_short_and_the_first_line_counts(tmp_path: Path) -> None:
    """2,000 characters a text, the rest counted; a prompt in turns says who speaks."""
    long = "x" * 5001
    group = Group("a", "Prompt?", (Response(long, grade=1.0), Response("good", grade=4.0)), pairs=(Pair(1, 0),))
    scores = Scores(
        pair_tables.responses(group=["a", "a"], reward=[1.0, 0.0]),
        pair_tables.pairs([-1.0], group=["a"], chosen=[1], rejected=[0]),
    )
    assert write_mistakes(Groups.from_iterable([group]), scores, tmp_path) is not None
    head, row = (json.loads(line) for line in (tmp_path / "mistakes.jsonl").read_text().splitlines())
    assert head == {"mistakes": 1, "shown": 1, "pairs": 1}
    assert (row["prompt"], row["chosen"], len(row["rejected"]), row["clipped"]) == ("Prompt?", "good", 2000, 3001)
    assert (row["grade_chosen"], row["grade_rejected"]) == (4.0, 1.0)
    assert write_mistakes(Groups.from_iterable([group]), Scores(scores.responses, scores.pairs[:0]), tmp_path) is None
