"""`marginkit grade --how judge`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import marginkit as mk
from commands import call
from judge_stub import KEY, Stub, by_truth, error, some_groups, true_gap, verdicts


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of ungraded responses, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return mk.write_groups(some_groups(), tmp_path / "answers.jsonl")


def test_a_file_is_judged_and_trained_from(
    answers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Target gaps in the file, settings, cost and bias in the manifest; the key in neither."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Stub(by_truth(0.5)) as stub:
        words = ["--how", "judge", "--endpoint", stub.url, "--model", "m", "--price-in", "2", "--price-out", "8"]
        code, out, err = call(monkeypatch, capsys, "grade", str(answers), *words, "--out", "judged.jsonl", "--json")
        assert stub.requests == 24
        assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["groups"], result["pairs"]) == (4, 12)
    judged, findings = mk.read_groups("judged.jsonl")
    assert findings.kept == 4
    for group in judged:
        for pair in group.pairs:
            expected = true_gap(group.responses[pair.chosen].text, group.responses[pair.rejected].text)
            assert pair.target_gap == pytest.approx(expected, abs=1e-9)
    manifest = Path("judged.manifest.json").read_text()
    settings, facts = json.loads(manifest)["settings"], json.loads(manifest)["facts"]["fitted"]
    assert settings["options"]["model"] == "m"
    assert settings["options"]["ask"] == "logprobs"
    assert facts["spent"]["cost"] == pytest.approx(24 * (100 * 2 + 10 * 8) / 1e6)
    assert facts["position_bias"]["mean"] == pytest.approx(0.5)
    assert KEY not in manifest + out


def test_a_dry_run_needs_no_out_and_asks_nothing(
    answers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it would take, as a table or as one object."""
    with Stub(by_truth()) as stub:
        words = [str(answers), "--how", "judge", "--endpoint", stub.url, "--model", "m", "--dry-run"]
        code, out, _ = call(monkeypatch, capsys, "grade", *words, "--json")
        assert (code, stub.requests) == (0, 0)
        assert json.loads(out)["estimate"]["requests"] == 24
        code, out, _ = call(monkeypatch, capsys, "grade", *words, "--option", "samples=2", "--option", "orders=coin")
        assert code == 0
        assert "nothing was asked" in out
        assert "requests 24" in out
    assert [path.name for path in answers.parent.iterdir()] == [answers.name]


def test_a_budget_stops_and_the_output_says_how_many_are_left(
    answers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the table; the same command without the budget goes on from there."""
    with Stub(verdicts()) as stub:
        words = [str(answers), "--how", "judge", "--endpoint", stub.url, "--model", "m", "--out", "judged.jsonl"]
        words += ["--option", "ask=verdict", "--option", "concurrency=1"]
        code, out, _ = call(monkeypatch, capsys, "grade", *words, "--budget", "12requests")
        assert (code, stub.requests) == (0, 12)
        assert "not judged: budget" in out
        assert "2 prompts, 0 pairs -> judged.jsonl" in out
        code, out, _ = call(monkeypatch, capsys, "grade", *words)
        assert (code, stub.requests) == (0, 24)
        assert "4 prompts, 0 pairs -> judged.jsonl" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "m", "--out", "x.jsonl"], 2, "how=judge: endpoint is missing"),
        (["--endpoint", "http://h", "--out", "x.jsonl"], 2, "how=judge: model is missing"),
        (["--endpoint", "http://h", "--model", "m"], 2, "--out: name the .jsonl file"),
        (
            ["--endpoint", "http://h", "--model", "m", "--out", "x.jsonl", "--option", "asks=score"],
            2,
            "did you mean ask?",
        ),
        (
            ["--endpoint", "http://h", "--model", "m", "--out", "x.jsonl", "--debias", "length"],
            2,
            "writes its evidence",
        ),
        (
            ["--endpoint", "http://h", "--model", "m", "--out", "x.jsonl", "--ungraded", "drop"],
            2,
            "no debias, disagreement or ungraded",
        ),
        (["--endpoint", "http://h?key=1", "--model", "m", "--out", "x.jsonl"], 2, "endpoint: a URL without"),
        (
            ["--endpoint", "http://h", "--model", "m", "--out", "x.jsonl", "--option", "samples=1.5"],
            2,
            "a whole number",
        ),
        (["--endpoint", "http://h", "--model", "m", "--out", "x.jsonl", "--budget", "5"], 2, "needs price_in"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    words: list[str],
    code: int,
    said: str,
    answers: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is asked."""
    found, out, err = call(monkeypatch, capsys, "grade", str(answers), "--how", "judge", *words)
    assert (found, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_judge_without_access_is_one_line(
    answers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, after one request; no half-written file."""
    with Stub(lambda body, number: error(401, "no key given")) as stub:
        words = ["--how", "judge", "--endpoint", stub.url, "--model", "m", "--out", "judged.jsonl"]
        code, _, err = call(monkeypatch, capsys, "grade", str(answers), *words)
        assert (code, stub.requests) == (1, 1)
    assert "no access (HTTP 401: no key given)" in err
    assert not Path("judged.jsonl").exists()


def test_the_python_verb_is_the_same(answers: Path) -> None:
    """mk.grade(groups, "judge", ...) and mk.judge(...) write the same evidence."""
    with Stub(verdicts()) as stub:
        graded = mk.grade(some_groups(2), "judge", endpoint=stub.url, model="m", ask="verdict", store="one")
        judged, _ = mk.judge(some_groups(2), endpoint=stub.url, model="m", ask="verdict", store="one")
        assert stub.requests == 12
    assert list(graded) == list(judged)
