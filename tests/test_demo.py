"""The demo end to end in a tiny size, its sentences from made-up numbers, the benchmark's loop against the trainer."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from marginkit import demo, demo_result, kitchen
from marginkit import world as w
from marginkit.arguments import batch_plan, training_arguments
from marginkit.assembly import recipe
from marginkit.config import FreshModel, ModelConfig, resolve
from marginkit.data.encoded import EncodedGroups
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.models.loading import fresh_model, fresh_tokenizer, load_model
from marginkit.records import Estimate
from marginkit.tables import Scores
from marginkit.training import MarginTrainer

ROOT = Path(__file__).parent.parent
TINY = {"prompts": 12, "demonstrations": 48, "test": 24, "samples": 2}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> demo_result.DemoResult:
    """The demo on a dozen prompts."""
    out = tmp_path_factory.mktemp("demo") / "run"
    return demo.run_demo(demo_result.DemoOptions(quality="high", size="small", seed=3, out=out, **TINY))


def test_the_demo_runs_and_its_table_is_whole(result: demo_result.DemoResult) -> None:
    """Five rows; policies are judged by what they say, reward models by what they pick."""
    columns, rows = result.table
    assert [row[0] for row in rows] == ["sft", "dpo", "mmpo", "bt", "mmpo_rm"]
    assert all(len(row) == len(columns) for row in rows)
    cells = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert cells["sft"]["accuracy"] == cells["dpo"]["utility, best of 2"] == cells["bt"]["utility, sampled"] == "-"
    for name in ("dpo", "mmpo", "bt", "mmpo_rm"):
        assert "-" not in [cells[name][c] for c in ("accuracy", "NLL (nats)", "ECE", "ECE floor", "|P - known P|")]
    assert f"gamma {w.true_gamma('high'):.3f}" in result.title
    for row in result.rows:
        column = "best_of" if row.name in ("bt", "mmpo_rm") else "sampled"
        assert kitchen.LOWEST <= row.estimates[column].value <= kitchen.HIGHEST
        assert row.estimates[column].clusters == 24


def test_the_demo_says_it_in_json_and_two_sentences(result: demo_result.DemoResult) -> None:
    """The JSON holds no NaN; the sentences are those of the differences."""
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert [row["name"] for row in told["rows"]] == ["sft", "dpo", "mmpo", "bt", "mmpo_rm"]
    assert told["sentences"] == list(result.sentences)
    assert result.sentences[1] == demo_result.sentence("Policies", "DPO", result.differences["policy"])


def test_the_demo_leaves_a_page(result: demo_result.DemoResult) -> None:
    """In its folder, with both sentences as verdicts, and its Markdown beside it."""
    assert result.page == result.out / "report.html"
    assert result.page.read_text(encoding="utf-8").count('class="verdict ') == 3
    told = " ".join(result.page.with_suffix(".md").read_text(encoding="utf-8").split())
    assert "## Five models" in told
    for sentence in result.sentences:
        assert sentence.split("(")[0] in told


def test_the_numbers_are_those_of_the_tables(result: demo_result.DemoResult) -> None:
    """|P - known P| and its difference, worked out again from the saved tables and the world."""
    world = w.make_world("high", prompts=12, demonstrations=48, dev=2, test=24, seed=3)
    known = {(g.id, p.chosen, p.rejected): p.prob for g in world.graded for p in g.pairs}
    errors = {}
    for name in ("bt", "mmpo_rm"):
        table = Scores.load(result.out / name / "tables").pairs.to_pylist()
        errors[name] = np.mean([abs(r["prob"] - known[r["group"], r["chosen"], r["rejected"]]) for r in table])
        row = next(row for row in result.rows if row.name == name)
        assert row.estimates["prob_error_label"].value == pytest.approx(errors[name])
    found = result.differences["reward_model"]["prob_error_label"]
    assert found.value == pytest.approx(errors["mmpo_rm"] - errors["bt"])


def test_all_start_from_the_same_model(result: demo_result.DemoResult) -> None:
    """DPO and MMPO from the same policy; BT and MMPO on the same data."""
    manifests = {
        name: json.loads((result.out / name / "manifest.json").read_text()) for name in ("dpo", "mmpo", "bt", "mmpo_rm")
    }
    assert len({manifest["start"] for manifest in manifests.values()}) == 1
    assert len({manifest["data"]["splits"]["train"]["fingerprint"] for manifest in manifests.values()}) == 1
    assert "reward" in manifests["mmpo"]["parts"]
    assert manifests["mmpo"]["parts"]["target"]["options"]["gamma"] == w.true_gamma("high")


def test_a_second_demo_takes_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `out` the next free number; a folder that is not empty is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo-1").mkdir(parents=True)
    assert demo._open_folder(None) == Path("runs/demo-2")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").touch()
    with pytest.raises(BadInput, match="not empty"):
        demo._open_folder(tmp_path / "held")


def test_unknown_options_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    """One line, no folder."""
    for wrong, message in (({"size": "huge"}, "small, medium, large"), ({"quality": "best"}, "high, mixed, low")):
        with pytest.raises(BadInput, match=message):
            demo.run_demo(demo_result.DemoOptions(out=tmp_path / "new", **wrong))  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def of(value: float, half: float) -> Estimate:
    """A made-up estimate."""
    return Estimate(value, value - half, value + half, 900, 300)


@pytest.mark.parametrize(
    ("difference", "accuracy", "words"),
    [
        (of(-0.05, 0.01), of(0.03, 0.01), "MMPO is better in NLL (-0.050 [-0.060, -0.040]), accuracy (+0.030"),
        (of(0.05, 0.01), of(-0.03, 0.01), "MMPO is worse in NLL (+0.050 [+0.040, +0.060]), accuracy (-0.030"),
        (of(0.05, 0.06), of(-0.03, 0.04), "MMPO is not distinguishable in NLL (+0.050 [-0.010, +0.110]), accuracy"),
        (of(-0.05, 0.01), of(-0.03, 0.01), "MMPO is better in NLL (-0.050 [-0.060, -0.040]); worse in accuracy"),
        (of(0.05, 0.01), of(0.0, 0.01), "worse in NLL (+0.050 [+0.040, +0.060]); not distinguishable in accuracy"),
    ],
)
def test_the_sentences_follow_the_numbers(difference: Estimate, accuracy: Estimate, words: str) -> None:
    """Better, worse and undecided, and every mixture, are said as they are."""
    told = demo_result.sentence("Policies", "DPO", {"nll": difference, "accuracy": accuracy})
    assert words in told
    assert told.startswith("Policies: against DPO, ")
    assert told.count(". ") == 0


def test_sampling_is_repeatable_and_leaves_the_generator_alone() -> None:
    """Equal seeds give equal answers, whatever was drawn before; the tokenizer is left as it was."""
    prompts = ["Cook a soup with garlic, lemon and rice, no cheese.", "Any pie with tofu, onion and rice, no lemon?"]
    tokenizer = fresh_tokenizer(prompts, 300)
    model = fresh_model(FreshModel(layers=1, hidden=16, heads=2, vocab=300), "sft", tokenizer, seed=0)
    torch.manual_seed(7)
    first = demo.sample_answers(model, tokenizer, prompts, 3, seed=1)
    after = torch.rand(1)
    assert first == demo.sample_answers(model, tokenizer, prompts, 3, seed=1)
    assert first != demo.sample_answers(model, tokenizer, prompts, 3, seed=2)
    assert [len(texts) for texts in first] == [3, 3]
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    assert tokenizer.padding_side == "right"
    # an untrained model says nothing that this world can read
    assert (demo.utilities_of(prompts, first) == kitchen.LOWEST).all()


def test_the_answer_with_the_highest_reward_is_picked() -> None:
    """Its true utility counts, in the order of the prompts; of equal rewards the first."""
    prompts = ["Cook a soup with garlic, lemon and rice, no cheese."] * 12
    groups = demo.answer_groups(prompts, [["Fry garlic.", "Fry cheese."]] * 12)
    rows = [
        {"group": g.id, "response": k, "reward": float(k if n % 2 else -k), "utility": r.utility}
        for n, g in reversed(list(enumerate(groups)))
        for k, r in enumerate(g.responses)
    ]
    table = pa.Table.from_pylist(rows)
    picked = demo.best_picked(Scores(table, table), 12)
    assert picked.tolist() == pytest.approx([0.9, -1.8] * 6)


# -- The benchmark


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    """benchmarks/demo_claims.py."""
    spec = importlib.util.spec_from_file_location("demo_claims", ROOT / "benchmarks" / "demo_claims.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_claims"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["sft", "dpo", "mmpo", "bt", "mmpo_rm"])
def test_the_benchmarks_loop_is_the_trainer(name: str, claims: ModuleType, tmp_path: Path) -> None:
    """The same loss at every optimizer step, and the same weights in the end."""
    torch.set_num_threads(1)
    world = w.make_world("mixed", prompts=20, demonstrations=40, dev=1, test=1, seed=5)
    texts = (text for group in world.demonstrations for text in (str(group.prompt), group.responses[0].text))
    tokenizer = fresh_tokenizer(texts, 1024)
    parts, shown = claims.encode_world(world, tokenizer)
    start = fresh_model(FreshModel(layers=1, hidden=16, heads=2), "sft", tokenizer, seed=0)
    options: dict[str, Any] = {"dpo": {"beta": 0.5}, "mmpo": {"beta": 0.5, "gamma": 0.6}, "mmpo_rm": {"gamma": 0.6}}
    loss = recipe(name, **options.get(name, {}))
    kind = resolve(name).kind
    if kind == "policy":
        parts = parts.with_reference(start, recipe("sft"))
    groups = shown if kind == "sft" else parts.train
    start.save_pretrained(tmp_path / "start")  # type: ignore[operator]
    settings = demo.Settings(5e-3, 2, 8, "linear")

    def model() -> Any:
        torch.manual_seed(0)
        return load_model(ModelConfig(path=str(tmp_path / "start")), kind, tokenizer)

    ours = model()
    run = claims.train_steps(ours, loss, groups, settings, epochs=2, seed=11, pad_id=tokenizer.pad_token_id)
    found = [value for epoch in run for value in epoch]

    config = resolve(name, {"seed": 11, "train": demo.train_options(settings) | {"logging_steps": 1}})
    encoded = EncodedGroups.from_iterable(groups)
    if kind == "policy":
        encoded = encoded.with_ref_logp([group.ref_logp for group in groups])
    plan, _ = batch_plan(config.train, encoded, world_size=1, seed=11)
    arguments = training_arguments(config, tmp_path, precision="fp32", has_eval=False)
    per = "pair" if kind == "sft" else "prompt"
    trainer = MarginTrainer(model(), loss, arguments, plan, encoded, None, tokenizer, per=per)
    trainer.train()
    wanted = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(found) == len(wanted) == 2 * len(plan)
    assert found == pytest.approx(wanted, rel=2e-5)
    for (key, a), (_, b) in zip(ours.named_parameters(), trainer.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), key


def test_the_report_pairs_seeds_and_marks_only_what_is_clear(claims: ModuleType) -> None:
    """Differences by seed; better and worse only where the interval leaves 0 out."""

    def judged(error: float, accuracy: float) -> dict[str, float]:
        return {"prob_error": error, "nll": 0.6, "ece": 0.1, "accuracy": accuracy, "utility": 1.0}

    cells = []
    for seed in range(5):
        shift = 0.1 * seed
        made = (("bt", 0.2, 0.7), ("mmpo_rm@1", 0.15, 0.7), ("dpo", 0.2, 0.7), ("mmpo@1", 0.25, 0.8))
        runs = {
            name: {stop: judged(shift + error + 0.001 * seed * (name != "bt"), acc) for stop in ("early", "long")}
            for name, error, acc in made
        }
        cells.append(
            {"quality": "high", "seed": seed, "size": "small", "runs": runs, "seconds": 60.0, "machine": "a machine"}
        )
    text = claims.report(cells)
    rows = [line for line in text.splitlines() if line.startswith("| high | small")]
    averaged = [line for line in text.splitlines() if line.startswith("| high | all")]
    assert averaged == [row.replace("| small |", "| all |") for row in rows]  # of one size
    assert len(rows) == 8
    assert "-0.048 ± 0.002 **better**" in rows[1]
    assert "+0.000 ± 0.000 |" in rows[1]
    assert "+0.050 ± 0.000 *worse*" in rows[5]
    assert "+0.100 ± 0.000 **better**" in rows[5]
    assert "5 cells, 0.1 process hours, a machine" in text


def test_finished_cells_are_skipped(claims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that was cut short does not count as finished."""
    out = tmp_path / "cells.jsonl"
    done = {"quality": "high", "seed": 0, "size": "small"}
    out.write_text(json.dumps(done) + "\n" + json.dumps(done)[:20] + "\n")
    assert claims.read_cells(out) == [done]
    claims.sweep([("high", 0, "small")], out, 1)
    assert len(out.read_text().splitlines()) == 2


def test_answers_become_groups_with_their_utility() -> None:
    """Also an empty answer."""
    prompt = "Cook a soup with garlic, lemon and rice, no cheese."
    groups = demo.answer_groups([prompt], [["Fry garlic.", ""]])
    assert isinstance(groups, Groups)
    assert [response.utility for response in groups[0].responses] == pytest.approx([0.9, kitchen.LOWEST])
