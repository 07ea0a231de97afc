"""benchmarks/evidence.py: a tiny run writes its page and goes on where it stopped; its numbers are right."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from marginkit.embedders import open_embedder
from marginkit.embedding_features import examples_of
from marginkit.evaluation.metrics import evaluate

ROOT = Path(__file__).parent.parent
NAME = "feedbackqa_human_graded"


def write_graded(path):
    """110 prompts with three responses; good words make good grades, not quite."""
    rng = np.random.default_rng(0)
    words = ["good", "fine", *(f"word{n}" for n in range(20))]
    splits = ["train"] * 70 + ["dev"] * 15 + ["test"] * 25
    with path.open("w", encoding="utf-8") as sink:
        for number, split in enumerate(splits):
            responses = []
            for _ in range(3):
                text = rng.choice(words, 12).tolist()
                grade = text.count("good") + text.count("fine") + int(rng.integers(0, 2))
                responses.append({"text": " ".join(text), "score": float(grade)})
            row = {"id": f"q{number}", "prompt": f"Question {number}?", "responses": responses, "split": split}
            sink.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The modules, the folder of a finished quick run, and its one file."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        script, cells, figures, study = map(
            importlib.import_module, ("evidence", "evidence_cells", "evidence_figures", "margins_study")
        )
        folder = tmp_path_factory.mktemp("evidence")
        write_graded(folder / f"{NAME}.jsonl")
        words = [str(folder), "--store", str(folder / "store"), "--page", str(folder / "page.md"), "--quick"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "RESAMPLES", 50)
            patch.setattr(sys, "argv", ["evidence.py", *words, "--embedders", "hash", "--seeds", "2"])
            script.main()
            kept = sorted((folder / "store").rglob(f"{NAME}-?.npz"))
            file = figures.File(NAME, [cells.Cell.load(path) for path in kept])
            yield script, cells, figures, study, folder, file
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def slow_bt(own, held, epochs):
    """Test gaps of a linear Bradley-Terry head, trained by a plain loop."""
    mean = own.values.mean(0)
    parts = [part.var(0, unbiased=False).sum().expand(part.shape[1]) for part in own.values.split(list(own.blocks), 1)]
    scale = torch.cat(parts).sqrt()
    scale[scale == 0] = math.inf
    clear = ~own.columns["tie"]
    z, pairs = (own.values - mean) / scale, own.columns["pairs"][clear]
    weight = torch.zeros(z.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.02, weight_decay=0.0)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - epoch / epochs)
        optimizer.zero_grad()
        reward = z @ weight
        torch.nn.functional.softplus(reward[pairs[:, 1]] - reward[pairs[:, 0]]).mean().backward()
        optimizer.step()
    reward = ((held.values - mean) / scale) @ weight.detach()
    both = reward[held.columns["pairs"]]
    return (both[:, 0] - both[:, 1]).numpy()


def test_a_cell_is_what_a_plain_loop_trains(run):
    _, cells, _, study, folder, file = run
    train, _, test = cells.split(study.oriented_file(folder / f"{NAME}.jsonl"), 1, 0.2)
    assert len(train) == 56  # a fifth of 70 left out
    embedder = open_embedder("hash")
    own, held = examples_of(train, embedder), examples_of(study.without_grades(test), embedder)
    wanted = slow_bt(own, held, cells.QUICK.epochs)
    np.testing.assert_allclose(file.cells[1].gaps[f"{cells.END}/bt"], wanted, atol=2e-3)


def test_levels_are_those_of_evaluate(run):
    _, cells, _, _, _, file = run
    names = ("accuracy", "nll", "brier", "ece_debiased")
    seeds = []
    for gap, cell in zip(file.gaps(cells.END, "mmpo_rm", False), file.cells, strict=True):
        zero, nothing = np.zeros_like(gap), pa.array([None] * len(gap), pa.float64())
        group = [str(code) for code in cell.cluster]
        columns = {"group": group, "cluster": group, "reward_chosen": gap, "reward_rejected": zero, "gap": gap}
        more = {"tie": zero > 0, "label_prob": nothing, "target_gap": nothing}
        found = evaluate(pa.table(columns | more), resamples=20)
        seeds.append([found[name].value for name in names])
    wanted = np.mean(seeds, 0)
    got = [file.level(cells.END, "mmpo_rm", metric).value for metric in ("accuracy", "nll", "brier", "ece")]
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_an_interval_is_that_of_a_slow_bootstrap(run):
    _, cells, figures, _, _, file = run
    found = file.difference(cells.END, "bt_margin", "nll")
    one, other = file.gaps(cells.END, "bt_margin", False), file.gaps(cells.END, "bt", False)
    drawn = []
    for resample in range(figures.RESAMPLES):
        value = 0.0
        for seed, share in enumerate(file.seeds[resample]):
            total = weight = 0.0
            for pair, times in enumerate(file.weights[resample]):
                own = math.log1p(math.exp(-one[seed][pair])) - math.log1p(math.exp(-other[seed][pair]))
                total, weight = total + times * own, weight + times
            value += share * total / weight
        drawn.append(value)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.low < found.value < found.high
    assert found.clusters == 25
    assert file.seeds.sum(1) == pytest.approx(1.0)


def test_few_prompts_draw_responses_and_a_pair_counts_the_product(run):
    _, cells, figures, _, _, file = run
    responses = np.array([[0, 1], [1, 2], [0, 2]])
    cell = cells.Cell({}, {}, np.zeros(3, int), responses, {})
    few = figures.File("humour_pairs", [cell])
    products = few.weights  # of three counts that add up to 3: w0 w1, w1 w2, w0 w2
    possible = {(1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 2.0)}
    assert set(map(tuple, products.tolist())) <= possible
    assert len(set(map(tuple, products.tolist()))) > 3
    assert few.clusters == 0
    assert file.clusters == 25


def test_the_page_keeps_what_a_person_wrote_and_nothing_is_measured_twice(run, capsys):
    script, _, _, _, folder, _ = run
    page, kept = folder / "page.md", sorted((folder / "store").rglob(f"{NAME}-?.npz"))
    text, times = page.read_text(encoding="utf-8"), [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2
    assert len(list((folder / "store").rglob("*-beyond.npz"))) == 2
    assert "Not measured: ultrafeedback_pairs" in text
    assert "| feedbackqa | mmpo_rm |" in text
    assert (folder / "pictures" / "evidence_gamma.svg").is_file()
    page.write_text(text.replace("Not written yet.", "Read with care."), encoding="utf-8")
    script.main()
    assert "Read with care." in page.read_text(encoding="utf-8")
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert ", seed 0:" not in capsys.readouterr().out


def test_an_outcome_is_read_off_the_interval(run):
    _, _, figures, _, _, _ = run
    found = figures.Estimate(-0.1, -0.2, -0.01, 10, 10)
    assert figures.outcome(found) == "better"
    assert figures.outcome(found, more_is_better=True) == "worse"
    assert figures.outcome(figures.Estimate(0.1, -0.1, 0.2, 10, 10)) == "level"
