"""What a judge is asked, under which key, and what a budget admits: without a server."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.errors import BadInput
from marginkit.judges.budget import Budget, Limit, read_limit
from marginkit.judges.questions import Manner
from marginkit.judges.templates import Template
from marginkit.records import Group, Pair, Response

PAIR = Group("a", "Name a fruit.", (Response("Apple."), Response("A carrot.")))


# ------------------------------------------------------------------------------------------------------ the questions


def keys(manner: Manner, group: Group = PAIR) -> list[bytes]:
    """The keys of all questions."""
    return [question.key for question in manner.questions(group)]


def test_a_key_is_what_decides_the_answer() -> None:
    """Model, template, texts, order, settings, sample; where a response stands in its group does not."""
    base = keys(Manner("m"))
    assert len(set(base)) == 2
    assert keys(Manner("m")) == base
    others = [
        Manner("n"),
        Manner("m", template=Template("", "{prompt} {response_a} {response_b}")),
        Manner("m", temperature=0.5),
        Manner("m", max_tokens=2),
        Manner("m", top_logprobs=20),
        Manner("m", seed=1),
        Manner("m", ask="verdict"),
        Manner("m", request={"top_p": 0.5}),
    ]
    for other in others:
        assert not set(keys(other)) & set(base), other
    assert not set(keys(Manner("m"), replace(PAIR, prompt="Name a fruit!"))) & set(base)
    turned = replace(PAIR, responses=PAIR.responses[::-1])
    assert sorted(keys(Manner("m"), turned)) == sorted(base)


def test_samples_have_seeds_and_keys_of_their_own() -> None:
    """Also where the server takes no seed."""
    questions = list(Manner("m", ask="score", samples=3, seed=7).questions(PAIR))
    assert [q.body["seed"] for q in questions] == [7, 8, 9] * 2
    assert all(q.body["temperature"] == 1.0 for q in questions)
    bare = list(Manner("m", ask="score", samples=3, request={"seed": None}).questions(PAIR))
    assert all("seed" not in q.body for q in bare)
    assert len({q.key for q in bare}) == 6


def test_the_request_is_what_the_endpoint_knows() -> None:
    """One token with its log-probabilities, or words without; nothing but JSON."""
    [first, _] = Manner("m").questions(PAIR)
    assert {name: value for name, value in first.body.items() if name != "messages"} == {
        "model": "m",
        "temperature": 1.0,
        "max_tokens": 1,
        "seed": 0,
        "logprobs": True,
        "top_logprobs": 5,
    }
    [words, _] = Manner("m", ask="verdict", request={"max_tokens": None, "max_completion_tokens": 300}).questions(PAIR)
    assert set(words.body) == {"model", "messages", "temperature", "seed", "max_completion_tokens"}
    assert words.tokens[1] == 300
    json.dumps(dict(words.body))


def test_which_pairs_are_judged() -> None:
    """Those given, once each; all where there are none, or on demand; equal texts are not asked about."""
    four = Group("a", "?", tuple(map(Response, ("w", "x", "y", "x "))))
    assert [q.shown for q in Manner("m").questions(four)] == [
        shown for pair in ((0, 1), (0, 2), (0, 3), (1, 2), (2, 3)) for shown in (pair, pair[::-1])
    ]
    given = replace(four, pairs=(Pair(2, 0), Pair(0, 2), Pair(1, 3)))
    assert [q.shown for q in Manner("m").questions(given)] == [(2, 0), (0, 2)]
    assert len(list(Manner("m", pairs="all").questions(given))) == 10
    assert [q.shown for q in Manner("m", ask="score").questions(given)] == [(0,), (1,), (2,), (3,)]


def test_the_coin_is_in_the_texts() -> None:
    """One order a pair, the same whichever response stands first, both orders over many pairs."""
    manner = Manner("m", orders="coin")
    first = []
    for number in range(200):
        group = Group("a", "?", (Response(f"left {number}"), Response(f"right {number}")))
        [question] = manner.questions(group)
        [again] = manner.questions(replace(group, responses=group.responses[::-1]))
        assert question.key == again.key
        first.append(question.shown == (0, 1))
    assert 70 < sum(first) < 130


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ask": "pairs"}, "ask='pairs': a judge knows logprobs, verdict"),
        ({"pairs": "best"}, "given, all"),
        ({"orders": "one"}, "both, coin"),
        ({"samples": 0}, "samples=0"),
        ({"scale": (5, 5)}, "scale=5,5"),
        ({"ask": "expected", "scale": (1, 10)}, "scores have one digit"),
        ({"request": {"n": 3}}, "request.n"),
        ({"model": " "}, "name the judge"),
    ],
)
def test_a_manner_that_makes_no_sense_is_refused(options: dict[str, object], said: str) -> None:
    """One line each."""
    with pytest.raises(BadInput, match=said):
        Manner(**({"model": "m"} | options))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- the budget


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("500requests", Limit(500, "requests")),
        ("1 request", Limit(1, "requests")),
        ("2M tokens", Limit(2e6, "tokens")),
        ("1e5tokens", Limit(1e5, "tokens")),
        ("10k tokens", Limit(1e4, "tokens")),
        ("5.25", Limit(5.25, "money")),
        (3, Limit(3, "money")),
        (None, None),
    ],
)
def test_budgets_are_read(text: str | float | None, limit: Limit | None) -> None:
    """Requests, tokens or money."""
    assert read_limit(text, priced=True) == limit


@pytest.mark.parametrize("text", ["", "five", "-3", "5 dollars", "1..2", "nan", "1e400requests"])
def test_other_budgets_are_refused(text: str) -> None:
    """With the ways to write one."""
    with pytest.raises(BadInput, match="write 500requests"):
        read_limit(text, priced=True)


def test_money_needs_prices() -> None:
    """Else the budget could not be held."""
    with pytest.raises(BadInput, match="needs price_in and price_out"):
        read_limit("5", priced=False)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30), st.floats(0.2, 1.0), st.floats(0.0, 1.0)), max_size=40),
    st.integers(0, 1500),
    st.integers(1, 5),
)
def test_a_budget_is_not_exceeded_where_estimates_are_not(
    asked: list[tuple[int, int, float, float]], limit: int, at_once: int
) -> None:
    """Whatever is in flight at once, if no answer takes more than its estimate."""
    budget = Budget(Limit(limit, "tokens"))
    flying: list[tuple[int, int, float, float]] = []
    for into, out, a, b in asked:
        if len(flying) == at_once:
            i, o, x, y = flying.pop(0)
            budget.book((i, o), math.floor(i * x), math.floor(o * y))
        if budget.admit((into, out)):
            flying.append((into, out, a, b))
    for i, o, x, y in flying:
        budget.book((i, o), math.floor(i * x), math.floor(o * y))
    assert budget.tokens_in + budget.tokens_out <= limit


def test_estimates_learn_from_what_the_server_counts() -> None:
    """Twice the tokens once: every later question counts double before it is sent."""
    budget = Budget(Limit(500, "tokens"))
    assert budget.admit((100, 0))
    budget.book((100, 0), 200, 0)
    assert not budget.admit((151, 0))
    assert budget.admit((150, 0))


def test_money_is_tokens_times_prices() -> None:
    """Per million, each way; what a server does not count is booked at its estimate and said."""
    budget = Budget(Limit(0.001, "money"), price_in=2.0, price_out=10.0)
    assert budget.admit((100, 20))
    budget.book((100, 20), 90, 10)
    assert budget.cost == pytest.approx(90 * 2e-6 + 10 * 10e-6)
    assert not budget.admit((300, 20))
    assert budget.admit((100, 50))
    budget.book((100, 50), None, None)
    assert (budget.tokens_in, budget.tokens_out, budget.uncounted) == (190, 60, 1)


def test_requests_count_every_try() -> None:
    """A retry is a request."""
    budget = Budget(Limit(3, "requests"))
    assert budget.admit((1, 1))
    assert budget.admit_retry()
    assert budget.admit_retry()
    assert not budget.admit_retry()
    assert not budget.admit((1, 1))
    assert (budget.requests, budget.retries) == (3, 2)
