"""Intervals hold the truth as often as they say, and the null test rejects what it should: benchmarks/coverage.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """The script, without leaving its name in `sys.modules`: it is a package's too."""
    spec = importlib.util.spec_from_file_location("marginkit_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_worlds_are_what_they_say(coverage: ModuleType) -> None:
    """Labels of a model at temperature T agree with sigmoid(gap / T); pairs of a prompt are alike."""
    for temperature in (1.0, 1.5):
        gap, cluster = coverage.world(np.random.default_rng(0), 200_000, temperature)
        size = np.abs(gap)
        for low in (0.5, 1.5, 2.5):
            inside = (size > low) & (size < low + 0.1)
            expected = 1 / (1 + np.exp(-(low + 0.05) / temperature))
            assert (gap[inside] > 0).mean() == pytest.approx(expected, abs=0.02)
        assert len(np.unique(cluster)) == pytest.approx(100_000, rel=0.01)


def test_intervals_and_verdicts_hold_on_a_few_worlds(coverage: ModuleType) -> None:
    """120 worlds: within four standard errors of what the thousand must show."""
    found = coverage.figures(120, 1000, 150)
    for name in ("accuracy", "nll", "brier"):
        assert found[name][0] >= 0.87
    assert found["rejected, calibrated"][0] <= 0.15
    assert found["rejected, temperature 1.5"][0] >= 0.85


@pytest.mark.slow
def test_intervals_and_verdicts_hold(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand worlds of a thousand pairs: coverage 93 to 97%, rejections at most 7% and at least 90%."""
    monkeypatch.setattr(sys, "argv", ["coverage.py"])
    with pytest.raises(SystemExit) as left:
        coverage.main()
    assert not left.value.code
