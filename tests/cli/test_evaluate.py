"""marginkit evaluate: tables as before, models on files, RewardBench with the leaderboard's files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from commands import call
from marginkit.tables import Scores
from pair_tables import pairs, responses
from test_benchmarking import plain_rows, v1_rows, v2_rows, write

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two saved reward models."""
    folder = tmp_path_factory.mktemp("models")
    return [tiny.save(folder / name, "llama_rm", seed=seed) for seed, name in enumerate(("one", "two"))]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`marginkit evaluate ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: call(monkeypatch, capsys, "evaluate", *words)


def test_tables_are_judged_as_before(run: Call, tmp_path: Path) -> None:
    """One positional argument: a folder of tables; --against gives paired differences."""
    for name, gaps in (("a", [1.0, 1.0, -1.0]), ("b", [1.0, -1.0, -1.0])):
        Scores(responses(reward=[0.0]), pairs(gaps)).save(tmp_path / name)
    code, out, _ = run("a", "--json")
    assert (code, json.loads(out)["accuracy"]["value"]) == (0, 2 / 3)
    code, out, _ = run("a", "--against", "b", "--json")
    assert json.loads(out)["differences"]["accuracy"]["value"] == pytest.approx(1 / 3)


def test_what_cannot_be_kept_or_is_of_no_use_is_refused_before_anything_is_scored(
    run: Call, tmp_path: Path, models: list[str]
) -> None:
    """A file where the folder should be, a folder without rights, options that a run does not need."""
    write(tmp_path / "one.jsonl", plain_rows(4))
    words = ["--model", models[0], "--data", "one.jsonl", "--out"]
    code, out, err = run(*words, "one.jsonl")
    assert (code, out) == (2, "")
    assert "one.jsonl: is a file, so results cannot be kept there; name another folder with --out" in err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("recipe: bt\n")
    code, _, err = run("--model", "run", "--data", "one.jsonl", "--recipe", "dpo")
    assert code == 2
    assert "--recipe dpo: a run says itself how it is read; leave it out" in err


def test_weights_that_are_cut_are_refused_in_one_line(run: Call, tmp_path: Path) -> None:
    """Half a file of weights."""
    model = Path(tiny.save(tmp_path / "cut", "llama_rm"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    write(tmp_path / "one.jsonl", plain_rows(4))
    code, _, err = run("--model", str(model), "--data", "one.jsonl", "--out", "judged")
    assert code == 2
    assert "its weights are cut or damaged" in err.splitlines()[-1]


def test_two_models_on_two_files(run: Call, tmp_path: Path, models: list[str]) -> None:
    """One row a file and model; differences to the first; the second time everything is taken again, and it is said."""
    write(tmp_path / "first.jsonl", plain_rows(8))
    write(tmp_path / "second.jsonl", [*plain_rows(6), plain_rows(1)[0]])
    words = ["--model", models[0], "--model", models[1], "--data", "first.jsonl", "second.jsonl", "--out", "judged"]
    code, out, err = run(*words)
    assert code == 0
    assert "taken from" not in err
    rows = [line.split() for line in out.splitlines() if line.startswith(("first ", "second "))]
    assert len([row for row in rows if "McNemar" not in row]) == 4 + 2
    assert "longer is better" in out
    assert "second, " in out
    assert "1 left out (duplicate row)" in out
    code, out, err = run(*words, "--json")
    assert err.count("the same model and data: taken from") == 4
    said = json.loads(out)
    assert [one["name"] for one in said["results"]] == ["first", "first", "second", "second"]
    assert [one["model"] for one in said["results"]] == models * 2
    assert {one["name"]: (one["model"], one["baseline"]) for one in said["differences"]} == {
        "first": (models[1], models[0]),
        "second": (models[1], models[0]),
    }
    accuracy = [one["evaluation"]["accuracy"]["value"] for one in said["results"][:2]]
    assert said["differences"][0]["accuracy"]["value"] == pytest.approx(accuracy[1] - accuracy[0])
    assert {"only_first", "only_second", "p", "mid_p"} == set(said["differences"][0]["mcnemar"])
    kept = [Path(one["folder"]) / name for one in said["results"] for name in ("result.json", "pairs.parquet")]
    assert all(path.is_file() for path in kept)


def test_rewardbench_with_the_leaderboards_files(run: Call, tmp_path: Path, models: list[str]) -> None:
    """Sections beside their length-only row; two JSON files of each version under the name given."""
    write(tmp_path / "rb.jsonl", v1_rows())
    write(tmp_path / "rb2.jsonl", v2_rows())
    words = ("--model", models[0], "--data", "rb.jsonl", "--data", "rb2.jsonl", "--out", "judged")
    code, out, _ = run(*words, "--official", "results", "--model-name", "me/mine")
    assert code == 0
    for section in ("Chat Hard", "mean of the sections", "Safety (XSTest weights before 2024-09-10)", "Ties"):
        assert section in out
    for name in ("rb", "rb2"):
        for kind in ("eval-set", "eval-set-scores"):
            said = json.loads((tmp_path / "results" / name / kind / "me" / "mine.json").read_text())
            assert said["model_type"] == "Seq. Classifier"
    scores = json.loads((tmp_path / "results" / "rb" / "eval-set-scores" / "me" / "mine.json").read_text())
    assert len(scores["results"]) == len(v1_rows())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "none", "--data", "mine.jsonl", "--out", "o"], "no such run or model"),
        (["--model", "none", "--data", "no.jsonl"], "no.jsonl: no such file"),
        (["--model", "none"], "--data is missing"),
        (["--data", "mine.jsonl"], "--model is missing"),
        ([], "name one run or folder of tables"),
        (["a", "b"], "name one run or folder of tables"),
        (["a", "--rule", "avg"], "--rule avg: belongs to --model"),
        (["a", "--chat-template", "chatml"], "--chat-template chatml: belongs to --model"),
        (["a", "--on-overflow", "drop"], "--on-overflow drop: belongs to --model"),
        (["a", "--model-name", "me/mine"], "--model-name me/mine: belongs to --model"),
        (["a", "--column", "x=chosen"], "--column x=chosen: belongs to --model"),
        (["none"], "no such run, folder of tables"),
        (["--model", "m", "--data", "mine.jsonl", "--against", "b"], "give --model twice"),
        (["--model", "m", "--data", "mine.jsonl", "--official", "o"], "needs its name there"),
        (["--model", "m", "--data", "mine.jsonl", "--model-name", "a/b"], "ask for them with --official"),
        (["--model", "m", "--data", "mine.jsonl", "--official", "o", "--model-name", "a"], "write ORG/NAME"),
        (["--model", "m", "--data", "mine.jsonl", "--official", "mine.jsonl/o", "--model-name", "a/b"], "is a file"),
    ],
)
def test_what_does_not_go_together(run: Call, tmp_path: Path, words: list[str], says: str) -> None:
    """Exit code 2, one line that names the way out, nothing on stdout."""
    write(tmp_path / "mine.jsonl", plain_rows(3))
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_only_rewardbench_has_official_files(run: Call, tmp_path: Path, models: list[str]) -> None:
    """Another file is refused before anything is scored; a model that is no run needs --out."""
    write(tmp_path / "mine.jsonl", plain_rows(3))
    words = ("--model", models[0], "--data", "mine.jsonl")
    code, _, err = run(*words, "--official", "o", "--model-name", "a/b")
    assert code == 2
    assert "is for RewardBench, and mine.jsonl is another file" in err
    code, _, err = run(*words)
    assert code == 2
    assert "name a folder with --out" in err
    assert sorted(os.listdir(tmp_path)) == ["mine.jsonl"]


def test_help_shows_both_ways(run: Call) -> None:
    """Examples of tables and of models."""
    code, out, _ = run("--help")
    assert code == 0
    assert "--against" in out
    assert "reward-bench" in out
