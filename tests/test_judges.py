"""What a judge says becomes evidence: bias of position cancelled, nothing guessed, everything counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from judge_stub import (
    Reply,
    Stub,
    by_truth,
    completion,
    error,
    run,
    same_groups,
    some_groups,
    texts,
    true_gap,
    value,
    verdicts,
)
from marginkit.data.manifests import write_dataset
from marginkit.data.pairing import make_pairs
from marginkit.data.sources import read_groups
from marginkit.groups import Groups
from marginkit.records import Comparison, Group, Pair, Rating, Response


@pytest.mark.parametrize("bias", [0.0, 0.7, -1.3, 3.0])
def test_a_bias_of_position_cancels_exactly(bias: float, tmp_path: Path) -> None:
    """The target gap of every pair is the true one, whatever the judge thinks of the first place; b is reported."""
    groups = some_groups()
    with Stub(by_truth(bias)) as stub:
        judged, report = run(stub, tmp_path, groups)
        assert stub.requests == 4 * 3 * 2
    for group in judged:
        for pair in group.pairs:
            expected = value(group.responses[pair.chosen].text) - value(group.responses[pair.rejected].text)
            assert pair.target_gap == pytest.approx(expected, abs=1e-9)
            assert pair.target_gap >= 0
            assert pair.prob is None
            assert pair.tie == (expected == 0)
    position = report.to_json()["position_bias"]
    assert position["mean"] == pytest.approx(bias, abs=1e-9)
    assert position["sd"] == pytest.approx(0, abs=1e-6)
    assert (position["pairs"], position["order_decides"] > 0) == (12, bias != 0)
    assert len(judged) == 4
    assert judged.dropped == {}


def test_one_order_keeps_the_bias(tmp_path: Path) -> None:
    """The coin halves the cost and cancels nothing: the control of the test above."""
    with Stub(by_truth(0.7)) as stub:
        judged, report = run(stub, tmp_path, some_groups(), orders="coin")
        assert stub.requests == 12
    off = {
        round(pair.target_gap - abs(true_gap(*(group.responses[i].text for i in (pair.chosen, pair.rejected)))), 6)
        for group in judged
        for pair in group.pairs
        if pair.target_gap is not None
    }
    assert off <= {0.7, -0.7} | {round(0.7 - 2 * g, 6) for g in (0, 0.25)}
    assert report.to_json()["position_bias"] is None


def test_a_label_that_is_not_sent_is_clipped_and_counted(tmp_path: Path) -> None:
    """AlpacaEval's probability of exactly 0 or 1, bounded; both absent: no judgement."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        shown = texts(body)
        better = "A" if "good" in shown["ANSWER A"] else "B"
        return completion(better, {"The": -0.1} if "Q2" in shown["PROMPT"] else {better: -0.01})

    groups = Groups.from_iterable(Group(q, q, (Response("bad"), Response("good"))) for q in ("Q1", "Q2"))
    with Stub(answer) as stub:
        judged, report = run(stub, tmp_path, groups)
    [group] = judged
    assert group.pairs == (Pair(1, 0, target_gap=pytest.approx(11.5129, abs=1e-4)),)
    assert judged.dropped == {"not judged: no label among the tokens": 1}
    assert (report.tally.clipped, dict(report.unread)) == (2, {"no label among the tokens": 2})


def test_verdicts_are_votes_in_both_orders(tmp_path: Path) -> None:
    """Votes of the pair, and a comparison an order with rater and order; ties are votes for neither."""
    groups = Groups.from_iterable([Group("g", "?", (Response("x 1"), Response("y 2"), Response("z 2")))])
    with Stub(verdicts()) as stub:
        judged, report = run(stub, tmp_path, groups, ask="verdict")
    [group] = judged
    assert group.pairs == ()
    assert make_pairs(judged)[0].pairs == (
        Pair(1, 0, votes=(2.0, 0.0, 0.0)),
        Pair(2, 0, votes=(2.0, 0.0, 0.0)),
        Pair(1, 2, votes=(0.0, 0.0, 2.0), tie=True),
    )
    assert group.comparisons == (
        Comparison(0, 1, 0.0, 1.0, 0.0, "stub/judge", "0,1"),
        Comparison(0, 1, 0.0, 1.0, 0.0, "stub/judge", "1,0"),
        Comparison(0, 2, 0.0, 1.0, 0.0, "stub/judge", "0,2"),
        Comparison(0, 2, 0.0, 1.0, 0.0, "stub/judge", "2,0"),
        Comparison(1, 2, 0.0, 0.0, 1.0, "stub/judge", "1,2"),
        Comparison(1, 2, 0.0, 0.0, 1.0, "stub/judge", "2,1"),
    )
    assert report.to_json()["position_bias"] == {"pairs": 3, "mean": 0.0, "sd": 0.0, "order_decides": 0.0}


def test_a_judge_that_prefers_a_place_splits_its_votes(tmp_path: Path) -> None:
    """One vote each: a tie, and the report says how often the order decided."""
    with Stub(verdicts(bias_every=1)) as stub:
        judged, report = run(stub, tmp_path, some_groups(), ask="verdict")
    paired = [pair for group in make_pairs(judged) for pair in group.pairs]
    assert len(paired) == report.tally.judged == report.tally.ties == 12
    assert all(pair.tie and pair.votes == (1.0, 1.0, 0.0) for pair in paired)
    assert report.to_json()["position_bias"] == {"pairs": 12, "mean": 1.0, "sd": 0.0, "order_decides": 1.0}


def test_evidence_scores_are_averaged_over_samples_and_orders(tmp_path: Path) -> None:
    """FairEval: strength = difference of mean scores; a constant bonus for the first place cancels."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        shown = texts(body)
        noise = body["seed"] - 1  # -1, 0, 1 over the samples
        a, b = value(shown["ANSWER A"]) + 2 + noise, value(shown["ANSWER B"]) - noise
        return completion(f"Evidence: ...\nScore of A: {a}\nScore of B: {b}")

    groups = Groups.from_iterable(
        [Group("g", "?", (Response("x 3"), Response("y 5")), pairs=(Pair(0, 1, weight=2.0),))]
    )
    with Stub(answer) as stub:
        judged, report = run(stub, tmp_path, groups, ask="evidence", samples=3)
        assert stub.requests == 6
        assert {body["temperature"] for body in stub.bodies} == {1.0}
    [group] = judged
    assert group.pairs == (Pair(1, 0, strength=2.0, weight=2.0),)
    assert report.to_json()["position_bias"]["mean"] == pytest.approx(2.0)
    assert report.to_json()["given_order"] == {"agrees": 0, "turned": 1}


def test_scores_become_ratings_and_their_mean_a_grade(tmp_path: Path) -> None:
    """K samples each; what was there before is replaced, and counted; a given pair turns with the new grades."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        return completion(f"[[{value(texts(body)['ANSWER']) + body['seed']:g}]]")

    old = Response("x 3", grade=4.0, ratings=(Rating("human", 4.0),), utility=0.5)
    votes, pairs = (Comparison(0, 1, 3.0, 1.0),), (Pair(0, 1, strength=3.0),)
    groups = Groups.from_iterable([Group("g", "?", (old, Response("y 5")), comparisons=votes, pairs=pairs)])
    with Stub(answer) as stub:
        judged, report = run(stub, tmp_path, groups, ask="score", samples=2)
    [group] = judged
    assert group.comparisons == ()
    assert group.responses == (
        Response("x 3", 3.5, (Rating("stub/judge", 3.0), Rating("stub/judge", 4.0))),
        Response("y 5", 5.5, (Rating("stub/judge", 5.0), Rating("stub/judge", 6.0))),
    )
    assert group.pairs == (Pair(1, 0),)
    assert (report.tally.judged, report.tally.replaced) == (2, 2)


def test_the_expected_score_is_a_grade(tmp_path: Path) -> None:
    """From the log-probabilities of the score token, with one request a response."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        high = value(texts(body)["ANSWER"])
        return completion("5", {"5": -0.7, str(int(high)): -0.7, "I": -9.0})

    groups = Groups.from_iterable([Group("g", "?", (Response("x 3"), Response("y 8")))])
    with Stub(answer) as stub:
        judged, _ = run(stub, tmp_path, groups, ask="expected")
        assert stub.requests == 2
    assert [r.grade for r in judged[0].responses] == pytest.approx([4.0, 6.5])


def test_equal_texts_are_a_tie_without_a_question(tmp_path: Path) -> None:
    """P = 0.5 in the unit of the way of asking; blanks at the ends are nothing."""
    groups = Groups.from_iterable([Group("g", "?", (Response("same"), Response("same ")))])
    for ask, pairs in (
        ("logprobs", (Pair(0, 1, target_gap=0.0, tie=True),)),
        ("evidence", (Pair(0, 1, strength=0.0, tie=True),)),
        ("verdict", (Pair(0, 1, votes=(0.0, 0.0, 1.0), tie=True),)),
    ):
        with Stub(by_truth()) as stub:
            judged, report = run(stub, tmp_path, groups, ask=ask)
            assert stub.requests == 0
        assert make_pairs(judged)[0].pairs == pairs
        assert (report.tally.identical, report.tally.ties) == (1, 1)


def test_the_judge_speaks_instead_of_others_and_for_each_pair_once(tmp_path: Path) -> None:
    """Votes of others between judged responses go, evidence of given pairs too, a pair given twice is counted."""
    three = (Response("x 1"), Response("y 2"), Response("z 3"))
    pairs = (Pair(0, 1, votes=(3.0, 1.0, 0.0), weight=0.5), Pair(1, 0, prob=0.75))
    votes = (Comparison(0, 1, 1.0, 0.0, rater="human"), Comparison(1, 2, 1.0, 0.0, rater="human"))
    groups = Groups.from_iterable([Group("g", "?", three, comparisons=votes, pairs=pairs)])
    with Stub(by_truth()) as stub:
        judged, report = run(stub, tmp_path, groups, pairs="given")
        assert stub.requests == 2
    [group] = judged
    assert group.pairs == (Pair(1, 0, target_gap=pytest.approx(1.0), weight=0.5),)
    assert group.comparisons == votes[1:]
    found = report.to_json()
    assert (found["replaced"], found["given_order"]) == (2, {"agrees": 0, "turned": 1})
    assert found["not_judged"] == {"pair given twice": 1}


def test_every_group_is_judged_or_counted(tmp_path: Path) -> None:
    """Kept + dropped = read: one response only, an answer that cannot be read, a request that is refused."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        shown = texts(body)
        if "long" in shown["PROMPT"]:
            return error(400, "context length exceeded")
        return completion("I cannot judge that." if "odd" in shown["PROMPT"] else "[[A]]")

    two = (Response("x"), Response("y"))
    groups = Groups.from_iterable(
        [
            Group("1", "fine", two),
            Group("2", "single", two[:1]),
            Group("3", "odd", two),
            Group("4", "long", two),
            Group("5", "fine too", two),
        ]
    )
    groups.dropped["tie"] = 3
    with Stub(answer) as stub:
        judged, report = run(stub, tmp_path, groups, ask="verdict")
    assert [group.id for group in judged] == ["1", "5"]
    assert judged.dropped == {
        "tie": 3,
        "one response only": 1,
        "not judged: no verdict": 1,
        "not judged: HTTP 400": 1,
    }
    found = report.to_json()
    assert found["failed"] == {"HTTP 400": {"count": 2, "such_as": "HTTP 400: context length exceeded"}}
    assert found["unread"] == {"no verdict": 2}
    assert found["not_judged"] == {"no verdict": 1, "HTTP 400": 1}
    assert (found["judged"], found["answered"], found["spent"]["requests"]) == (2, 6, 8)


def test_one_order_alone_is_no_judgement(tmp_path: Path) -> None:
    """Its bias could not be cancelled; in single scoring the other responses keep theirs."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        shown = texts(body)
        bad = shown.get("ANSWER A", shown.get("ANSWER", "")) == "y 2"
        return completion("?") if bad else completion("[[A]] [[A]]" if "ANSWER A" in shown else "[[4]]")

    groups = Groups.from_iterable([Group("g", "?", (Response("x 1"), Response("y 2"), Response("z 3")))])
    with Stub(answer) as stub:
        judged, report = run(stub, tmp_path, groups, ask="verdict")
        assert [(c.i, c.j) for c in judged[0].comparisons] == [(0, 2)] * 2
        assert report.to_json()["not_judged"] == {"no verdict": 2}
        graded, report = run(stub, tmp_path, groups, ask="score")
    assert [r.grade for r in graded[0].responses] == [4.0, None, 4.0]
    assert report.to_json()["not_judged"] == {"no score": 1}


def test_what_a_judge_says_is_read_back_and_trained_on(tmp_path: Path) -> None:
    """The dataset with its manifest goes through the reader and the pairing without loss."""
    with Stub(by_truth(0.4)) as stub:
        judged, report = run(stub, tmp_path, some_groups())
    path = tmp_path / "judged.jsonl"
    manifest = write_dataset(
        judged, path, verb="grade", settings=report.settings, sources=["some"], facts=report.to_json()
    )
    back, findings = read_groups(str(path))
    assert findings.dropped == {}
    assert same_groups(make_pairs(back), judged)
    assert manifest["settings"]["model"] == "stub/judge"
    assert manifest["facts"]["spent"]["tokens_in"] == 24 * 100
