"""A judge's run: answers kept and asked once, failures, budgets, against a server on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judge_stub import Reply, Stub, by_truth, completion, error, run, same_groups, slow, some_groups, texts, verdicts
from marginkit.data.manifests import write_dataset
from marginkit.errors import BadInput, RunFailed
from marginkit.groups import Groups
from marginkit.judges.judging import JudgeReport, judge
from marginkit.records import Group, Response

# -------------------------------------------------------------------------------------------------- asked once, kept


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    """Not even of another endpoint; the evidence is the same."""
    groups = some_groups()
    with Stub(by_truth()) as stub:
        first, _ = run(stub, tmp_path, groups)
    with Stub(by_truth()) as other:
        second, report = run(other, tmp_path, groups)
        assert other.requests == 0
    assert same_groups(first, second)
    assert (report.plan.questions, report.plan.kept, report.plan.to_ask) == (24, 24, 0)


def test_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    """More groups, another sample, other settings."""
    with Stub(by_truth()) as stub:
        run(stub, tmp_path, some_groups(2))
        assert stub.requests == 12
        run(stub, tmp_path, some_groups(3))
        assert stub.requests == 18
        run(stub, tmp_path, some_groups(3), samples=2)
        assert stub.requests == 36
        run(stub, tmp_path, some_groups(3), seed=1)
        assert stub.requests == 36  # the second sample's seed
        run(stub, tmp_path, some_groups(3), temperature=0.3)
        assert stub.requests == 54


def test_the_same_question_twice_is_asked_once(tmp_path: Path) -> None:
    """Equal groups, in one batch and while the first is still in flight."""
    group = Group("a", "?", (Response("x 1"), Response("y 2")))
    groups = Groups.from_iterable([group] * 700)
    with Stub(slow(by_truth(), 0.05)) as stub:
        judged, _ = run(stub, tmp_path, groups)
        assert stub.requests == 2
    assert len(judged) == 700


def test_a_question_that_was_in_flight_when_looked_up_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer comes between the look into the store and its turn."""
    monkeypatch.setattr("marginkit.judges.asking._BATCH", 4)
    first, last, other = (Group(t, t, (Response(f"{t} 1"), Response(f"{t} 2"))) for t in "abc")
    with Stub(slow(by_truth(), 0.1)) as stub:
        judged, _ = run(stub, tmp_path, Groups.from_iterable([first, last, other, last]), concurrency=2)
        assert stub.requests == 6
    assert len(judged) == 4


@pytest.mark.parametrize("ask", ["logprobs", "verdict"])
def test_many_at_once_say_the_same_as_one(ask: str, tmp_path: Path) -> None:
    """In whatever order the answers come; and they do come at once."""
    groups = some_groups(6)
    behaviour = by_truth(0.3) if ask == "logprobs" else verdicts(3)

    def uneven(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.02 if number % 3 else 0.001)
        return behaviour(body, number)

    with Stub(uneven) as stub:
        serial, one = run(stub, tmp_path / "one", groups, ask=ask, concurrency=1)
        assert stub.most_at_once == 1
        parallel, many = run(stub, tmp_path / "many", groups, ask=ask, concurrency=6)
        assert stub.most_at_once > 1
    assert same_groups(serial, parallel)
    assert one.to_json() == many.to_json()


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
from marginkit.judges.judging import judge
from marginkit.data.sources import read_groups
groups, _ = read_groups(sys.argv[2])
judge(groups, endpoint=sys.argv[1], model="stub/judge", pairs="all", store=sys.argv[3], concurrency=2)
print("done")
"""


def killed(stub: Stub, tmp_path: Path, groups: Groups, sent: signal.Signals, after: int) -> subprocess.Popen[str]:
    """A run in another process, signalled after so many requests."""
    path = tmp_path / "groups.jsonl"
    write_dataset(groups, path, verb="check", settings={}, sources=[])
    command = [sys.executable, "-c", CHILD, stub.url, str(path), str(tmp_path / "store")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while stub.requests < after and child.poll() is None:
        time.sleep(0.005)
    os.kill(child.pid, sent)
    child.wait(20)
    return child


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_where_it_was(sent: signal.Signals, tmp_path: Path) -> None:
    """Kill -9 loses at most what was in flight; an interrupt not even that; the result is that of an unbroken run."""
    groups = some_groups(8)
    with Stub(slow(by_truth(0.2), 0.03)) as stub:
        child = killed(stub, tmp_path, groups, sent, after=12)
        before = stub.requests
        assert 12 <= before < 48
        assert "done" not in (child.stdout.read() if child.stdout else "")
        resumed, report = run(stub, tmp_path, groups)
        lost = stub.requests - 48
        assert 0 <= lost <= (2 if sent is signal.SIGKILL else 0)
        assert report.plan.kept == 48 - (stub.requests - before)
        whole, _ = run(stub, tmp_path / "anew", groups)
    assert same_groups(resumed, whole)
    if child.stdout and child.stderr:
        child.stdout.close()
        child.stderr.close()


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_passing_failures_leave_no_trace(tmp_path: Path) -> None:
    """429, 500 and a broken page on the way; the evidence is as if nothing had been."""
    behaviour = by_truth()

    def flaky(body: dict[str, Any], number: int) -> Reply:
        if number % 3 == 1:
            return (error(429, Retry_After="0.01"), error(500), (200, {}, b"<html>"))[number % 9 // 3]
        return behaviour(body, number)

    with Stub(flaky) as stub:
        judged, report = run(stub, tmp_path / "flaky", some_groups())
    with Stub(behaviour) as stub:
        smooth, _ = run(stub, tmp_path / "smooth", some_groups())
    assert same_groups(judged, smooth)
    spent = report.to_json()["spent"]
    assert spent["requests"] == 24 + spent["retries"]
    assert spent["retries"] >= 8


@pytest.mark.parametrize(
    ("reply", "said", "requests"),
    [
        (error(401, "bad key"), "no access", 1),
        (error(404, "no model"), "check the address and the name of the model", 1),
        (error(503, "down"), "the judge answers nothing: HTTP 503: down", 3),
        (error(400, "unknown field seed"), "the judge answers nothing: HTTP 400: unknown field seed", 3),
    ],
)
def test_a_judge_that_cannot_be_used_costs_next_to_nothing(
    reply: Reply, said: str, requests: int, tmp_path: Path
) -> None:
    """The first request goes alone; one line with the way out."""
    with Stub(lambda body, number: reply) as stub:
        with pytest.raises(RunFailed, match=said) as failure:
            run(stub, tmp_path, some_groups(30), retries=2)
        assert stub.requests == requests
    assert "\n" not in str(failure.value)


def test_a_judge_that_breaks_down_is_given_up(tmp_path: Path) -> None:
    """After 20 failures in a row; what came before is kept and used by the next run."""
    behaviour, broken = by_truth(), [True]

    def breaking(body: dict[str, Any], number: int) -> Reply:
        return error(500, "out of memory") if broken[0] and number >= 10 else behaviour(body, number)

    groups = some_groups(20)
    with Stub(breaking) as stub:
        with pytest.raises(RunFailed, match="given up after 20 requests in a row without use: HTTP 500: out of"):
            run(stub, tmp_path, groups, retries=0)
        assert 30 <= stub.requests <= 46  # a late success starts the count anew; 8 are in flight
        broken[0] = False
        judged, report = run(stub, tmp_path, groups)
    assert report.plan.kept == 10
    assert len(judged) == 20


def test_a_judge_whose_answers_cannot_be_read_is_given_up(tmp_path: Path) -> None:
    """It answers, and costs, and says nothing: the message shows what it says."""
    with Stub(lambda body, number: completion("As an AI model, I like both.")) as stub:
        with pytest.raises(RunFailed, match="in a row without use: unread answers such as 'As an AI model"):
            run(stub, tmp_path, some_groups(30), ask="verdict")
        assert 20 <= stub.requests <= 28


def test_now_and_then_an_unread_answer_stops_nothing(tmp_path: Path) -> None:
    """More than twenty, but never in a row: counted, not guessed."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        return completion("Hm." if int(texts(body)["PROMPT"][9:-1]) % 2 else "[[C]]")

    with Stub(answer) as stub:
        judged, report = run(stub, tmp_path, some_groups(9), ask="verdict")
    assert judged.dropped == {"not judged: no verdict": 4}
    assert report.to_json()["unread"] == {"no verdict": 24}


def test_the_end_of_a_run_does_not_wait_for_another_try(tmp_path: Path) -> None:
    """Access is withdrawn while other requests wait as long as the server asked: they are not tried again."""
    behaviour = by_truth()

    def answer(body: dict[str, Any], number: int) -> Reply:
        prompt = texts(body)["PROMPT"]
        if "2" in prompt:
            time.sleep(0.2)
        return {"0": behaviour(body, number), "1": error(429, Retry_After="300"), "2": error(401)}[prompt[9:-1]]

    with Stub(answer) as stub:
        start = time.monotonic()
        with pytest.raises(RunFailed, match="no access"):
            run(stub, tmp_path, some_groups(3), concurrency=10)
        assert time.monotonic() - start < 20


def test_a_server_that_hangs_now_and_then(tmp_path: Path) -> None:
    """The timeout passes, the question is asked again."""
    release = threading.Event()
    behaviour = by_truth()

    def hang(body: dict[str, Any], number: int) -> Reply:
        if number == 5:
            release.wait(10)
        return behaviour(body, number)

    with Stub(hang) as stub:
        judged, report = run(stub, tmp_path, some_groups(), timeout=0.3)
        release.set()
    assert len(judged) == 4
    assert report.budget.retries >= 1


# ----------------------------------------------------------------------------------------------------------- the cost


def test_a_dry_run_asks_nothing_and_makes_nothing(tmp_path: Path) -> None:
    """Requests, tokens and money, by four bytes a token; what is kept is not counted again."""
    groups = some_groups()
    with Stub(by_truth()) as stub:
        same, report = run(stub, tmp_path, groups, dry_run=True, price_in=2.0, price_out=8.0)
        assert stub.requests == 0
        assert not (tmp_path / "store").exists()
        assert same is groups
        estimate = report.to_json()["estimate"]
        assert estimate["requests"] == estimate["tokens_out_at_most"] == 24
        assert estimate["cost_at_most"] == pytest.approx((estimate["tokens_in"] * 2 + 24 * 8) / 1e6)
        run(stub, tmp_path, some_groups(3))
        _, later = run(stub, tmp_path, groups, dry_run=True)
        sent = [len(m["content"]) for body in stub.bodies for m in body["messages"]]
        assert 0.7 * estimate["tokens_in"] < sum(sent) / 4 + 18 * 16 < 0.8 * estimate["tokens_in"]
    assert (later.plan.questions, later.plan.kept, later.plan.to_ask) == (24, 18, 6)
    assert later.to_json()["estimate"]["cost_at_most"] is None  # no prices: not known, not nothing


@pytest.mark.parametrize(
    ("budget", "most"),
    [
        ("7requests", lambda report: report.budget.requests <= 7),
        ("2000tokens", lambda report: report.budget.tokens_in + report.budget.tokens_out <= 2000),
        ("0.004", lambda report: report.budget.cost <= 0.004),
        ("0requests", lambda report: report.budget.requests == 0),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 5])
def test_a_budget_stops_before_it_is_exceeded(
    budget: str, most: Callable[[JudgeReport], bool], concurrency: int, tmp_path: Path
) -> None:
    """What is done is kept, what is not is counted, and a second run goes on from there."""
    groups = some_groups(6)
    with Stub(by_truth()) as stub:
        options: dict[str, Any] = {"price_in": 2.0, "price_out": 8.0, "concurrency": concurrency}
        judged, report = run(stub, tmp_path, groups, budget=budget, **options)
        assert most(report)
        assert stub.requests == report.budget.requests < 36
        assert report.to_json()["stopped"] == "budget"
        assert len(judged) + judged.dropped["not judged: budget"] == 6
        assert report.tally.judged + report.tally.missing["budget"] == 18
        rest, report = run(stub, tmp_path, groups, **options)
        assert stub.requests == 36
    assert len(rest) == 6
    assert report.to_json()["stopped"] is None


def test_a_budget_is_used_up_and_not_left_lying(tmp_path: Path) -> None:
    """A question that does not fit beside those in flight waits for them; then it is sent if it fits."""
    with Stub(by_truth()) as stub:
        _, report = run(stub, tmp_path, some_groups(6), budget="2200tokens", concurrency=5)
    spent = report.budget.tokens_in + report.budget.tokens_out
    one = max(question for question in [report.plan.tokens_in / 36]) + 1
    assert 2200 - 1.2 * one < spent + 110 + one


def test_retries_count_against_a_budget_of_requests(tmp_path: Path) -> None:
    """A try is a request."""
    behaviour = by_truth()

    def flaky(body: dict[str, Any], number: int) -> Reply:
        return error(500) if number % 2 else behaviour(body, number)

    with Stub(flaky) as stub:
        _, report = run(stub, tmp_path, some_groups(6), budget="11requests", concurrency=3)
        assert stub.requests == report.budget.requests == 11


def test_a_server_that_counts_nothing_is_booked_at_the_estimate(tmp_path: Path) -> None:
    """And the report says for how many."""
    with Stub(lambda body, number: completion("[[A]]", usage=None)) as stub:
        _, report = run(stub, tmp_path, some_groups(), ask="verdict")
    spent = report.to_json()["spent"]
    assert spent["answers_without_a_count"] == 24
    assert (spent["tokens_in"], spent["tokens_out"]) == (report.plan.tokens_in, report.plan.tokens_out)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"price_in": 1.0}, "price_in and price_out go together"),
        ({"budget": "5"}, "needs price_in and price_out"),
        ({"concurrency": 0}, "concurrency is at least 1"),
        ({"endpoint": "localhost"}, "give the base URL of a server"),
        ({"template": "nowhere.yaml"}, "no such file"),
        ({"ask": "rank"}, "a judge knows"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Before anything is asked or made."""
    settings = {"endpoint": "http://127.0.0.1:9/v1", "model": "m", "store": tmp_path / "store"} | options
    with pytest.raises(BadInput, match=said):
        judge(some_groups(), **settings)
    assert not (tmp_path / "store").exists()
