"""Models on files: what is read, scored, kept, taken again, and how RewardBench comes out of it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from marginkit.benchmarking import (
    Benchmark,
    difference,
    judge_benchmark,
    read_benchmark,
    read_benchmarks,
    result_folder,
)
from marginkit.errors import BadInput, RunFailed
from marginkit.evaluation.rewardbench import SECTIONS, section_scores
from marginkit.evaluation.rewardbench2 import answers_of, best_of, ties_score
from marginkit.records import content_text
from marginkit.reporting.runs import read_record
from marginkit.run import train
from marginkit.run_scores import Scorer, open_scorer
from marginkit.tables import Scores


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as a .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain_rows(count: int = 24) -> list[dict[str, Any]]:
    """Pairs with hard labels alone."""
    chance = random.Random(1)
    return [
        {
            "prompt": f"{n} {tiny.phrase(chance, 1, 6)}",
            "chosen": f"a {tiny.phrase(chance, 1, 9)}",
            "rejected": f"b {tiny.phrase(chance, 1, 9)}",
        }
        for n in range(count)
    ]


def v1_rows() -> list[dict[str, Any]]:
    """A RewardBench of two rows a subset; the texts of the last row come twice."""
    names = [name for own in SECTIONS.values() for name in own for _ in range(2)]
    rows = [
        row | {"subset": name, "id": n, "chosen_model": "a", "rejected_model": "b"}
        for n, (name, row) in enumerate(zip(names, plain_rows(len(names)), strict=True))
    ]
    return [*rows, rows[-1] | {"id": len(rows)}]


def v2_rows() -> list[dict[str, Any]]:
    """A RewardBench 2 of three rows a subset, and Ties of two numbers."""
    chance, rows = random.Random(2), []
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        for _ in range(3):
            texts = [f"{k} {tiny.phrase(chance, 1, 8)}" for k in range(4)]
            rows.append({"id": str(len(rows)), "subset": subset, "chosen": texts[:1], "rejected": texts[1:]})
    for n in range(2):
        for kind, correct in (("ref", 1), ("tied", 3)):
            texts = [f"{k} {tiny.phrase(chance, 1, 8)}" for k in range(correct + 3)]
            rows.append({"id": f"{kind}:{n}", "subset": "Ties", "chosen": texts[:correct], "rejected": texts[correct:]})
    return [row | {"prompt": f"{n} {row['id']}", "num_correct": len(row["chosen"])} for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A reward model and two policies, saved."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "rm": tiny.save(folder / "rm", "llama_rm"),
        "policy": tiny.save(folder / "policy", "llama"),
        "reference": tiny.save(folder / "reference", "llama", seed=1),
    }


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the store of reference scores is made here


def test_a_file_without_grades_is_judged_with_hard_labels(tmp_path: Path, models: dict[str, str]) -> None:
    """Accuracy is the share of larger rewards, the file is named after itself, everything is kept."""
    read = read_benchmark(write(tmp_path / "mine.jsonl", plain_rows()))
    assert (read.name, read.kind, read.read, read.left_out) == ("mine", "pairs", 24, {})
    judged = judge_benchmark(open_scorer(models["rm"]), read, tmp_path / "out")
    table = Scores.load(tmp_path / "out").pairs
    right = [gap > 0 for gap in table["gap"].to_pylist()]
    assert judged.evaluation["accuracy"].value == sum(right) / 24
    assert judged.evaluation["accuracy"].n == 24
    said = json.loads((tmp_path / "out" / "result.json").read_text())
    assert said["evaluation"]["accuracy"]["value"] == judged.evaluation["accuracy"].value
    assert {"nll", "ece", "ece_floor", "length_baseline"} <= set(said["evaluation"])
    assert said["kind"] == "pairs"
    assert "sections" not in said
    assert said["rows"] == {"read": 24, "scored": 24, "left_out": {}}
    assert (said["scoring"]["precision"], said["scoring"]["dtype"], said["scoring"]["quantization"]) == (
        *("fp32", "float32"),
        None,
    )


def test_scores_are_taken_again_only_if_nothing_has_changed(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model and data: not scored again. Other data, another model, another rule, a cut file: scored again."""
    asked: list[str] = []
    plain = Scorer.score

    def counted(self: Scorer, *args: Any, **options: Any) -> Scores:
        asked.append(str(self.folder))
        return plain(self, *args, **options)

    monkeypatch.setattr(Scorer, "score", counted)
    rows, out = plain_rows(6), tmp_path / "out"
    read = read_benchmark(write(tmp_path / "mine.jsonl", rows))

    def judge(path: str, own: Benchmark = read, **options: Any) -> bool:
        before = len(asked)
        judged = judge_benchmark(open_scorer(path, **options), own, out, resamples=10)
        assert judged.reused == (len(asked) == before)
        return judged.reused

    assert [judge(models["policy"], rule="sum"), judge(models["policy"], rule="sum")] == [False, True]
    assert not judge(models["policy"], rule="avg")
    assert [judge(models["rm"]), judge(models["rm"])] == [False, True]
    changed = read_benchmark(write(tmp_path / "mine.jsonl", [*rows[:-1], rows[-1] | {"chosen": "hill"}]))
    assert [judge(models["rm"], changed), judge(models["rm"], changed)] == [False, True]
    (out / "pairs.parquet").write_bytes(b"cut")
    assert not judge(models["rm"], changed)
    assert len(asked) == 5


def test_a_file_that_it_was_trained_on_is_told(
    tmp_path: Path, models: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """And a result that cannot be written is a failed run with its place."""
    path = write(tmp_path / "plain.jsonl", plain_rows(6))
    scorer = open_scorer(models["rm"])
    read = read_benchmark(path)
    assert judge_benchmark(scorer, read, tmp_path / "before").result["trained_on"] is False
    scorer = replace(
        scorer, config=scorer.config.with_(data=scorer.config.data.model_copy(update={"train": (str(path),)}))
    )
    with caplog.at_level("INFO", "marginkit"):
        assert judge_benchmark(scorer, read, tmp_path / "after").result["trained_on"] is True
    assert "was trained on this file" in caplog.text
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFailed, match=r"taken/kept: cannot be written .*; name another folder with --out"):
        judge_benchmark(scorer, read, tmp_path / "taken" / "kept")


def test_rows_that_are_too_long_are_counted_and_shown(tmp_path: Path, models: dict[str, str]) -> None:
    """What the model cannot take is named in the result; with cut prompts it is judged; the shared pairs compare."""
    rows = [*plain_rows(8), {"prompt": "river " * 300, "chosen": "a hill", "rejected": "a bird"}]
    read = read_benchmark(write(tmp_path / "long.jsonl", rows))
    short = judge_benchmark(open_scorer(models["rm"]), read, tmp_path / "short")
    assert short.result["rows"] == {"read": 9, "scored": 8, "left_out": {"too long for the model": 1}}
    cut = judge_benchmark(open_scorer(models["rm"], on_overflow="cut_prompt_left"), read, tmp_path / "cut")
    assert cut.result["rows"] == {"read": 9, "scored": 9, "left_out": {}}
    assert cut.result["scoring"]["on_overflow"] == "cut_prompt_left"
    found = difference(cut, short)
    assert found["accuracy"].n == 8
    assert found["nll"].value == pytest.approx(0, abs=1e-9)


def test_rewardbench_1_from_a_local_file(tmp_path: Path, models: dict[str, str]) -> None:
    """Every row counts, repeated texts too; sections are those of the accuracies; length stands beside each."""
    rows = v1_rows()
    read = read_benchmark(write(tmp_path / "rb.jsonl", rows))
    assert (read.kind, len(read.groups), read.left_out) == ("rewardbench-v1", len(rows), {})
    judged = judge_benchmark(open_scorer(models["rm"]), read, tmp_path / "out")
    table = Scores.load(tmp_path / "out").pairs.to_pylist()
    accuracy, length = {}, {}
    for name in {row["subset"] for row in rows}:
        own = [row for row in table if row["subset"] == name]
        accuracy[name] = sum(row["reward_chosen"] > row["reward_rejected"] for row in own) / len(own)
        length[name] = sum(row["chars_chosen"] > row["chars_rejected"] for row in own) / len(own)
    assert {name: own.value for name, own in judged.subsets.items()} == accuracy
    said = judged.result["sections"]
    for section, value in section_scores(accuracy).items():
        assert said[section]["value"] == pytest.approx(value, abs=1e-12)
    for section, value in section_scores(length).items():
        assert said[f"{section}, longer is better"]["value"] == pytest.approx(value, abs=1e-12)
    assert said["mean of the sections"]["n"] == len(rows)


def test_its_form_is_known_without_the_names_of_models(tmp_path: Path) -> None:
    """prompt, chosen, rejected, subset, id are enough, if the subsets are its own."""
    keys = ("prompt", "chosen", "rejected", "subset", "id")
    bare = [{key: row[key] for key in keys} for row in v1_rows()[:8]]
    assert read_benchmark(write(tmp_path / "a.jsonl", bare)).kind == "rewardbench-v1"
    other = [row | {"subset": "mine"} for row in bare]
    assert read_benchmark(write(tmp_path / "b.jsonl", other)).kind == "pairs"


def test_rewardbench_2_by_implicit_reward(tmp_path: Path, models: dict[str, str]) -> None:
    """A policy with a reference: best of four, Ties by number, the mean of six; pairs are judged as well."""
    read = read_benchmark(write(tmp_path / "rb2.jsonl", v2_rows()))
    assert (read.kind, len(read.groups)) == ("rewardbench-v2", 19)
    scorer = open_scorer(models["policy"], recipe="dpo", reference=models["reference"])
    judged = judge_benchmark(scorer, read, tmp_path / "out", resamples=50)
    answers = answers_of(Scores.load(tmp_path / "out").responses)
    math = [best_of(one) for one in answers if one.subset == "Math"]
    assert judged.sections["Math"].value == sum(math) / 3
    ties = [one for one in answers if one.subset == "Ties"]
    assert {sum(one.correct) for one in ties} == {1, 3}
    assert judged.sections["Ties"].value == pytest.approx(ties_score(ties).score, abs=1e-12)
    assert judged.sections["mean of the subsets"].n == 19
    assert judged.result["scoring"]["reward"]["function"] == "implicit"
    assert judged.result["scoring"]["reference"] == models["reference"]
    assert judged.evaluation.counts["pairs"] == 15 * 3 + 2 * (1 * 3 + 3 * 3)  # correct against wrong, nothing else
    assert judged.result["rows"] == {"read": 19, "scored": 19, "left_out": {}}


def test_rules_without_a_reference(tmp_path: Path, models: dict[str, str]) -> None:
    """Sum is the log-probability, avg its mean a token; both are for policies and ask no reference."""
    read = read_benchmark(write(tmp_path / "mine.jsonl", plain_rows(5)))
    found = {}
    for rule in ("sum", "avg"):
        judge_benchmark(open_scorer(models["policy"], rule=rule), read, tmp_path / rule, resamples=10)  # type: ignore[arg-type]
        found[rule] = Scores.load(tmp_path / rule).responses.to_pylist()
    assert [row["reward"] for row in found["sum"]] == [row["logp"] for row in found["sum"]]
    assert [row["reward"] for row in found["avg"]] == pytest.approx([r["logp"] / r["length"] for r in found["sum"]])
    with pytest.raises(BadInput, match="rule sum is for policies"):
        open_scorer(models["rm"], rule="sum")
    with pytest.raises(BadInput, match="leave one of the two out"):
        open_scorer(models["policy"], rule="sum", reference=models["reference"])


def test_the_words_of_the_leaderboard(models: dict[str, str]) -> None:
    """What kind of model it is, in its words."""
    assert open_scorer(models["rm"]).model_type == "Seq. Classifier"
    assert open_scorer(models["policy"], rule="avg").model_type == "DPO Ref. Free"
    assert open_scorer(models["policy"], recipe="dpo", reference=models["reference"]).model_type == "DPO"


def test_a_run_keeps_its_results_where_its_page_finds_them(tmp_path: Path) -> None:
    """A head on embeddings: asked as any model, its lengths in characters; the record of the run has the result."""
    run = train("bt", ["model.kind=embedding", f"out={tmp_path / 'run'}"], train=tiny.world(train=12, dev=3, test=3))
    scorer, read = open_scorer(run.path), read_benchmark(write(tmp_path / "rb.jsonl", v1_rows()))
    judged = judge_benchmark(scorer, read, result_folder(str(run.path), read.name, None), resamples=20)
    assert judged.folder == run.path / "benchmarks" / "rb"
    assert judged.evaluation.verdict["length_unit"] == "chars"
    (found,) = read_record(run.path).benchmarks
    assert found["name"] == "rb"
    assert found["sections"]["Chat"]["value"] == judged.sections["Chat"].value
    assert scorer.model_type == "Custom Classifier"
    assert judge_benchmark(open_scorer(run.path), read, judged.folder, resamples=20).reused


def test_graded_responses_make_pairs_that_do_not_depend_on_the_model(tmp_path: Path) -> None:
    """All pairs that grades decide; equal grades are ties."""
    rows = [{"prompt": "q", "responses": [{"text": str(k), "score": score} for k, score in enumerate((3, 1, 1))]}]
    (group,) = read_benchmark(write(tmp_path / "graded.jsonl", rows)).groups
    assert [(pair.chosen, pair.rejected, pair.tie) for pair in group.pairs] == [
        (0, 1, False),
        (0, 2, False),
        (1, 2, True),
    ]
    assert content_text(group.prompt) == "q"


def test_what_cannot_be_a_benchmark_is_refused(tmp_path: Path) -> None:
    """No pair, no file, two files of one name, a model without a place for results."""
    alone = write(tmp_path / "alone.jsonl", [{"prompt": "q", "responses": [{"text": "a", "score": 1}]}])
    with pytest.raises(BadInput, match=r"alone\.jsonl: holds no pair"):
        read_benchmark(alone)
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": float("nan"), "score_rejected": 1}
    broken = write(tmp_path / "broken.jsonl", [row])
    with pytest.raises(BadInput, match=r"1 of 1 rows refused, first .*broken\.jsonl:1: score_chosen is nan"):
        read_benchmark(broken)
    with pytest.raises(BadInput, match="no such file"):
        read_benchmark(tmp_path / "none.jsonl")
    (tmp_path / "other").mkdir()
    twice = [write(folder / "same.jsonl", plain_rows(2)) for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(BadInput, match="both would be kept as same"):
        read_benchmarks(twice)
    assert [one.name for one in read_benchmarks([twice[0], twice[0]], suffix="-avg")] == ["same-avg"]
    with pytest.raises(BadInput, match="name a folder with --out"):
        result_folder("owner/model", "same", None)
