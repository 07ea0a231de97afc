"""benchmarks/methods.py: the quick run on the built-in world has every row, and equal terms for all methods."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

import marginkit as mk
from marginkit.config import RunConfig
from marginkit.evaluation.calibrators import fit_temperature
from marginkit.records import Estimate

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("methods", ROOT / "benchmarks" / "methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quick(methods: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One quick run: its report and its folder."""
    work = tmp_path_factory.mktemp("methods")
    gc.freeze()  # each training collects garbage: that of the whole test session takes longer than the training
    text = methods.main(["--quick", "--work", str(work), "--out", str(work / "report.md")])
    gc.unfreeze()
    return text, work


def cells(text: str, header: str) -> dict[str, list[str]]:
    """Rows of all tables that begin with this header, by their first cell."""
    rows: dict[str, list[str]] = {}
    inside = False
    for line in text.splitlines():
        inside = (inside or line.startswith(header)) and line.startswith("|")
        if inside and not line.startswith((header, "| ---")):
            first, *rest = [cell.strip() for cell in line.strip("|").split("|")]
            rows[first] = rest
    return rows


def test_the_table_is_whole_and_finite(methods: ModuleType, quick: tuple[str, Path]) -> None:
    """A row a method, the length baseline, the start; no NaN anywhere; the file is what was returned."""
    text, work = quick
    rows = cells(text, "| method | accuracy ")
    wanted = {*methods.POLICIES, *methods.REWARD_MODELS, "the longer one", methods.START}
    assert set(rows) == wanted
    assert "nan" not in text
    for name in (*methods.POLICIES, *methods.REWARD_MODELS):
        assert all(rows[name][:7]), name
        numbers = [float(word.strip("+[](),*")) for cell in rows[name][:7] for word in cell.split()]
        assert np.isfinite(numbers).all()
        control = name in methods.CONTROLS.values()
        assert all((cell == "control") == control for cell in rows[name][7:10])
    assert (work / "report.md").read_text(encoding="utf-8") == text


def test_settings_are_equal(methods: ModuleType, quick: tuple[str, Path]) -> None:
    """Start, data, seed, steps and all of `train` but the learning rate are the same; recipes bring their own."""
    text, work = quick
    shared: dict[str, set[str]] = {"policy": set(), "reward_model": set()}
    steps, readers = set(), set()
    for name in (*methods.POLICIES, *methods.REWARD_MODELS):
        folder = work / "world" / f"{name}-0-0"
        config = RunConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
        same = config.model_dump(mode="json", include={"seed", "data", "encoding", "train", "model"})
        del same["train"]["learning_rate"]
        if same["model"].pop("reward_model"):
            readers.add(name)
        shared[config.kind].add(json.dumps(same, sort_keys=True))
        steps.add(json.loads((folder / "job.json").read_text(encoding="utf-8"))["steps"])
    assert {kind: len(found) for kind, found in shared.items()} == {"policy": 1, "reward_model": 1}, shared
    assert len(steps) == 1
    assert readers == {"madpo"}
    assert len({row[0] for row in cells(text, "| method | candidates ").values()}) == 1


def test_the_grids_are_of_one_size(methods: ModuleType, tmp_path: Path) -> None:
    """As many candidates for every method of a table, all different, in the full run too."""
    section = methods.world_section(tmp_path, methods.arguments([]))
    for names in (methods.POLICIES, methods.REWARD_MODELS):
        grids = [methods.candidates(name, section.scales) for name in names]
        assert len({len(grid) for grid in grids}) == 1
        for grid in grids:
            assert len({json.dumps(c, sort_keys=True) for c in grid}) == len(grid)


def test_unequal_budgets_are_refused(methods: ModuleType) -> None:
    """A method with another number of steps or candidates stops the report."""
    ours = {"grid": [{}, {}], "steps": [3, 3]}
    methods.check_equal({"world": {"dpo": ours, "mmpo": ours}})
    for theirs in ({"grid": [{}, {}], "steps": [3, 4]}, {"grid": [{}], "steps": [3]}):
        with pytest.raises(RuntimeError, match="budgets"):
            methods.check_equal({"world": {"dpo": ours, "mmpo": theirs}})


def test_labels_are_turned_round(methods: ModuleType, tmp_path: Path) -> None:
    """Flips change the order of that share of the pairs and nothing of the test split."""
    world = mk.make_pairs(methods.make_world("mixed", prompts=60, demonstrations=1, dev=5, test=5).graded, "all")
    turned = methods.flipped(world, 0.2, 0)
    before = [(p, g.split) for g in world for p in g.pairs]
    after = [p for g in turned for p in g.pairs]
    swapped = [
        (a.chosen, a.rejected) == (b.rejected, b.chosen)
        for (b, split), a in zip(before, after, strict=True)
        if split != "test"
    ]
    assert abs(np.mean(swapped) - 0.2) < 0.06
    assert all(a == b for (b, split), a in zip(before, after, strict=True) if split == "test")
    assert all(r.grade is None for g in turned if g.split != "test" for r in g.responses)


def test_numbers(methods: ModuleType) -> None:
    """Pearson's correlation is numpy's, a temperature does not depend on the unit, marks follow the interval."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    assert methods.pearson(x, y)(np.ones((1, 50)))[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
    label = np.append((rng.random(49) < 1 / (1 + np.exp(-x[:49]))).astype(float), np.nan)
    expected = fit_temperature(x[:49], label[:49])[0]
    for unit in (1.0, 1e-4, 1e4):
        assert methods.temperature_of(unit * x, label) == pytest.approx(unit * expected)
    better = Estimate(-0.1, -0.2, -0.05, 9, 9)
    assert methods.marked(better, more=False).endswith("**better**")
    assert methods.marked(better, more=True).endswith("*worse*")
    assert methods.marked(Estimate(-0.1, -0.2, 0.0, 9, 9), more=True).endswith("]")
