"""`marginkit benchmark` as its user meets it: scores, files, the whole way from prompts to answers, and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny
from commands import call
from marginkit.tables import RESPONSES_SCHEMA

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CPU = "train.use_cpu=true"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A policy and two reward models, saved."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "policy": tiny.save(folder / "policy", "llama", chat_template=TEMPLATE),
        "proxy": tiny.save(folder / "proxy", "llama_rm", seed=1),
        "gold": tiny.save(folder / "gold", "llama_rm", seed=2),
    }


def _lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _annotation(number: int, preference: float | None) -> dict:
    return {
        "instruction": f"q{number}", "output_1": "x" * 9, "generator_1": "base", "output_2": "y" * (5 + number),
        "generator_2": "mine", "annotator": "judge", "preference": preference,
    }  # fmt: skip


def test_every_command_has_help_with_an_example_and_needs_no_torch() -> None:
    """Each `--help` answers without the heavy libraries."""
    names = ["prompts", "answers", "mt-bench", "alpaca-eval", "arena-hard", "best-of-n"]
    program = (
        "import contextlib, io, sys\nfrom marginkit.cli import main\n"
        f"for name in {names!r}:\n"
        "    sys.argv = ['marginkit', 'benchmark', name, '--help']\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said):\n"
        "        try:\n            main()\n        except SystemExit:\n            pass\n"
        "    assert f'marginkit benchmark {name}' in said.getvalue(), name\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'transformers', 'sklearn'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mt_bench_single_and_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A table with what was left out, or one JSON object."""
    rows = [
        {"question_id": q, "model": "m", "judge": ["gpt-4", "s"], "score": s, "turn": t}
        for q, t, s in [(81, 1, 8), (81, 2, 6), (82, 1, -1), (82, 2, 4), (82, 2, 5)]
    ]
    path = _lines(tmp_path / "single.jsonl", rows)
    code, out, _ = call(monkeypatch, capsys, "benchmark", "mt-bench", path)
    assert code == 0
    assert "m: 1 judgments without a score are left out" in out
    assert "m: 1 rows repeat a question and turn" in out
    code, out, _ = call(monkeypatch, capsys, "benchmark", "mt-bench", path, "--json")
    assert json.loads(out)["models"][0]["average"]["value"] == pytest.approx((8 + 6 + 5) / 3)
    code, out, _ = call(monkeypatch, capsys, "benchmark", "mt-bench", path, "--json", "--repeats", "all")
    assert json.loads(out)["models"][0]["average"]["value"] == pytest.approx((8 + 6 + 4 + 5) / 4)
    code, _, said = call(monkeypatch, capsys, "benchmark", "mt-bench", path, "--baseline", "x")
    assert (code, "--baseline is of pairs" in said) == (2, True)
    games = [
        {"question_id": q, "model_1": "m", "model_2": "b", "judge": "gpt-4", "g1_winner": a, "g2_winner": b}
        for q, a, b in [(1, "model_1", "model_1"), (2, "model_1", "model_2"), (3, "error", "tie")]
    ]
    path = _lines(tmp_path / "pair.jsonl", games)
    code, out, _ = call(monkeypatch, capsys, "benchmark", "mt-bench", path, "--baseline", "b")
    assert (code, "0.750" in out, "1 games without a verdict" in out) == (0, True, True)


def test_alpaca_eval_says_which_number_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Without AlpacaEval's own files the controlled rate is labelled."""
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([_annotation(k, p) for k, p in enumerate([1.9, 0, 1.25, None, 1.5, 2])]))
    code, out, _ = call(monkeypatch, capsys, "benchmark", "alpaca-eval", str(path))
    assert code == 0
    assert "LC-approx: by length alone" in out
    assert "mine: 1 rows without a preference are left out" in out
    code, out, _ = call(monkeypatch, capsys, "benchmark", "alpaca-eval", str(path), "--json", "--refits", "5")
    [found] = json.loads(out)["models"]
    assert found["win_rate"]["value"] == pytest.approx(63.0)
    assert found["length_controlled"]["label"] == "LC-approx"
    assert found["length_controlled"]["low"] < found["length_controlled"]["high"]
    (tmp_path / "df_gamed.csv").write_text("preference\n")
    code, _, said = call(
        monkeypatch, capsys, "benchmark", "alpaca-eval", str(path), "--gamed", str(tmp_path / "df_gamed.csv")
    )
    assert (code, "sha256" in said, said.count("\n")) == (2, True, 1)


def test_arena_hard_with_and_without_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Both games, a question without a verdict, and style control on request."""
    base, rows, answers = "o3-mini-2025-01-31", [], []
    for k in range(30):
        for model in ("m", base):
            counts = {"header_count": {"h1": 0}, "list_count": {"ordered": 0}, "bold_count": {"**": 0}}
            tokens = 100 + 7 * k if model == "m" else 200
            answers.append({"uid": f"u{k}", "model": model, "metadata": {"token_len": tokens} | counts})
        second = "A>B" if k % 4 else "B>>A"
        games = [{"score": "A>B" if k % 5 else "B>A"}, None if k == 29 else {"score": second}]
        rows.append(
            {"uid": f"u{k}", "category": "hard_prompt", "judge": "j", "model": "m", "baseline": base, "games": games}
        )
    path, styles = _lines(tmp_path / "m.jsonl", rows), _lines(tmp_path / "answers.jsonl", answers)
    code, out, _ = call(monkeypatch, capsys, "benchmark", "arena-hard", path)
    assert (code, "m: 1 questions" in out, "style controlled" in out) == (0, True, False)
    code, out, _ = call(monkeypatch, capsys, "benchmark", "arena-hard", path, "--answers", styles)
    assert (code, "style controlled" in out, "what the judge likes" in out) == (0, True, True)
    code, out, _ = call(monkeypatch, capsys, "benchmark", "arena-hard", path, "--answers", styles, "--json")
    found = json.loads(out)
    assert found["models"][0]["missing"] == 1
    assert set(found["style_control"][0]["coefficients"]) == {"length"}
    code, _, said = call(monkeypatch, capsys, "benchmark", "arena-hard", path, "--feature", "length")
    assert (code, "--answers" in said) == (2, True)


@pytest.mark.parametrize(
    ("words", "content", "says"),
    [
        (["mt-bench"], "", "f.jsonl: is empty"),
        (["mt-bench"], '{"question_id": 1\n', "f.jsonl:1: is no JSON"),
        (["mt-bench"], '{"question_id": 1, "judge": "j", "model": "m", "turn": 1, "score": NaN}\n', "f.jsonl:1: NaN"),
        (["mt-bench"], '{"question_id": 1, "judge": "j", "model": "m", "turn": 1}\n', "f.jsonl:1: has no 'score'"),
        (["alpaca-eval"], '[{"instruction": "a"}]', "f.jsonl:1 (entry 1): has no 'generator_2'"),
        (["arena-hard"], '{"uid": "a", "judge": "j", "model": "m", "games": [{"score": "A<>B"}, {"score": "A>B"}]}\n',
         "f.jsonl:1: the label 'A<>B' is none of"),
        (["prompts", "mt-bench"], '{"question_id": 1}\n', "f.jsonl:1: has no 'turns'"),
        (["prompts", "gsm8k"], "{}\n", "benchmark 'gsm8k': is one of"),
        (["best-of-n"], "{}\n", "f.jsonl: is no Parquet table"),
    ],
)  # fmt: skip
def test_hostile_files_get_one_line(words, content, says, tmp_path: Path, monkeypatch, capsys) -> None:
    """The place, the rule, exit code 2."""
    path = tmp_path / "f.jsonl"
    path.write_text(content)
    code, out, said = call(monkeypatch, capsys, "benchmark", *words, str(path))
    assert (code, out) == (2, "")
    assert says in said
    assert said.startswith("marginkit: ")
    assert said.count("\n") == 1


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A full disk: one line, and the old file stays whole."""
    _lines(tmp_path / "q.jsonl", [{"uid": "u", "category": "hard_prompt", "prompt": "why"}])
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")

    def full(self: Path, content: str, **_: object) -> int:
        self.write_bytes(content.encode()[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    words = ["benchmark", "prompts", "arena-hard", str(tmp_path / "q.jsonl"), "--out", str(out)]
    code, _, err = call(monkeypatch, capsys, *words)
    assert (code, err) == (2, f"marginkit: --out {out}: No space left on device; name another file\n")
    assert out.read_bytes() == b"old\n"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.jsonl", "q.jsonl"]


def test_best_of_n_from_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The fixture of the estimator, with a picture of it and what was left out."""
    rows = [{"group": g, "response": k, "cluster": g, "reward": float(k + 1), "grade": v}
            for g in ("a", "b") for k, v in enumerate([0.1, 0.4, 0.2, 0.3])] + [
            {"group": "c", "response": 0, "cluster": "c", "reward": 1.0, "grade": None}]  # fmt: skip
    (tmp_path / "scores").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, RESPONSES_SCHEMA), tmp_path / "scores" / "responses.parquet")
    code, out, _ = call(monkeypatch, capsys, "benchmark", "best-of-n", str(tmp_path / "scores"))
    assert code == 0
    assert "0.283" in out
    assert "######" in out
    assert "1 prompts are left out: no gold score" in out
    shutil.copytree(tmp_path / "scores", tmp_path / "again")
    words = ["benchmark", "best-of-n", str(tmp_path / "scores"), "--gold", str(tmp_path / "again")]
    code, _, err = call(monkeypatch, capsys, *words)
    assert code == 2
    assert "is the proxy itself" in err
    code, out, _ = call(monkeypatch, capsys, "benchmark", "best-of-n", str(tmp_path / "scores"), "--json")
    assert [round(one["value"], 6) for one in json.loads(out)["gold"]] == [0.25, 0.283333, 0.275, 0.3]
    for words, says in (
        (["--gold", "utility"], "no response has a utility"),
        (["--gold", str(tmp_path / "none")], "no such file or folder"),
        (["--gold", str(tmp_path)], "holds no responses.parquet"),
        (["--samples", "9"], "best of 9: no prompt is left"),
        (["--export", "x.json"], "--export and --data go together"),
    ):
        code, _, said = call(monkeypatch, capsys, "benchmark", "best-of-n", str(tmp_path / "scores"), *words)
        assert (code, says in said) == (2, True), said


def test_the_whole_way_of_mt_bench_and_best_of_n(models, tmp_path: Path, monkeypatch, capsys) -> None:
    """Prompts, two passes of sampling, answers; and sampled, scored twice, judged, exported."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        code, out, said = call(monkeypatch, capsys, *words)
        assert code == 0, said
        return out

    questions = [
        {"question_id": 81 + k, "category": category, "turns": [f"the {word} bird", f"an old {word}"]}
        for k, (category, word) in enumerate([("writing", "red"), ("roleplay", "blue"), ("stem", "slow")])
    ]
    _lines(tmp_path / "question.jsonl", questions)
    assert json.loads(run("benchmark", "prompts", "mt-bench", "question.jsonl", "--out", "one.jsonl", "--json")) == {
        "out": "one.jsonl", "prompts": 3, "splits": {"t0.7": 2, "t0.1": 1}
    }  # fmt: skip
    settings = ["-n", "1", "--max-new-tokens", "6", CPU]
    for turn, prompts in (("1", "one.jsonl"), ("2", "two.jsonl")):
        if turn == "2":
            drawn = ["--answers", "a1-0.7.jsonl", "--answers", "a1-0.1.jsonl"]
            run("benchmark", "prompts", "mt-bench", "question.jsonl", *drawn, "--out", "two.jsonl")
        for heat in ("0.7", "0.1"):
            out = f"a{turn}-{heat}.jsonl"
            run(
                "sample",
                models["policy"],
                prompts,
                "--split",
                f"t{heat}",
                "--temperature",
                heat,
                "--out",
                out,
                *settings,
            )
    answers = ["benchmark", "answers", "mt-bench", "question.jsonl", "a2-0.7.jsonl", "a2-0.1.jsonl"]
    assert "3 answers of mine" in run(*answers, "--model", "mine", "--out", "model_answer/mine.jsonl")
    rows = [json.loads(line) for line in Path("model_answer/mine.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [81, 82, 83]
    first = {json.loads(line)["id"]: json.loads(line) for line in Path("a1-0.7.jsonl").read_text().splitlines()}
    assert rows[0]["choices"][0]["turns"][0] == first["81"]["responses"][0]["turns"][0]["content"]
    assert all(len(row["choices"][0]["turns"]) == 2 and all(row["choices"][0]["turns"]) for row in rows)

    instructions = [{"instruction": f"the {word} hill", "output": "x"} for word in ("red", "blue", "slow", "fast")]
    Path("alpaca.json").write_text(json.dumps(instructions))
    run("benchmark", "prompts", "alpaca-eval", "alpaca.json", "--plain", "--out", "prompts.jsonl")
    run("sample", models["policy"], "prompts.jsonl", "-n", "5", "--max-new-tokens", "6", "--out", "drawn.jsonl", CPU)
    for name in ("proxy", "gold"):
        run("score", models[name], "drawn.jsonl", "--recipe", "bt", "--out", f"{name}_scores")
    words = ["benchmark", "best-of-n", "proxy_scores", "--gold", "gold_scores", "--json"]
    found = json.loads(run(*words, "--data", "drawn.jsonl", "--export", "best.json", "--generator", "mine-bon"))
    assert (found["prompts"], found["export"]) == (4, 4)
    best = json.loads(Path("best.json").read_text())
    assert [row["instruction"] for row in best] == [row["instruction"] for row in instructions]
    table = pq.read_table("proxy_scores/responses.parquet").to_pylist()
    top = max((row for row in table if row["group"] == "0"), key=lambda row: row["reward"])
    drawn = json.loads(Path("drawn.jsonl").read_text().splitlines()[0])
    assert best[0] == {"instruction": "the red hill", "input": "", "generator": "mine-bon",
                       "output": drawn["responses"][top["response"]]["turns"]}  # fmt: skip
    written = [
        "benchmark",
        "answers",
        "arena-hard",
        "arena.jsonl",
        "drawn.jsonl",
        "--model",
        "mine",
        "--out",
        "arena_mine.jsonl",
    ]
    _lines(Path("arena.jsonl"), [{"uid": "u", "category": "hard_prompt", "prompt": "the red hill"}])
    run(*written, "--choose", "first", "--tokenizer", models["policy"])
    [row] = [json.loads(line) for line in Path("arena_mine.jsonl").read_text().splitlines()]
    assert row["metadata"]["token_len"] > 0
