"""benchmarks/selection.py: the arithmetic of its page, and in the slow suite one small run of it."""

import importlib
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def page(monkeypatch):
    """The module that writes the page."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("selection_page")


def test_an_interval_is_students(page):
    values = [0.1, 0.2, 0.4]
    half = 4.302653 * statistics.stdev(values) / math.sqrt(3)  # t with 2 degrees of freedom
    mean = statistics.fmean(values)
    assert page.interval(values) == f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
    assert page.interval([0.10, 0.11, 0.12]).endswith(r"\*")
    assert not page.interval([-0.1, 0.1, 0.0]).endswith(r"\*")


def test_differences_are_paired_by_seed(page):
    draws = [{"a": {"nll": [0.5, 1.0]}, "b": {"nll": [0.4, 3.0]}}, {"a": {"nll": [0.9, 1.0]}, "b": {"nll": [0.7, 2.0]}}]
    assert page.difference(draws, "a", "b", "nll", 0) == page.interval([0.1, 0.2])
    assert page.difference(draws, "a", "b", "nll", 1) == page.interval([-2.0, -1.0])
    assert page.difference(draws, "c", "b", "nll", 0) == "refused, or under 5% left, in 2 of 2"


def test_the_correlation_is_spearmans(page):
    sets = [{"DCRM": value, "nll": -(value**3)} for value in (0.1, 5.0, 2.0, 3.0)]
    assert page.correlation(sets, "DCRM", "nll") == pytest.approx(-1)


def test_the_page_is_that_of_the_script(page):
    written = (ROOT / "docs" / "selection_measured.md").read_text(encoding="utf-8")
    assert all(line in written for line in page.PREFACE)


@pytest.mark.slow
def test_a_small_run(tmp_path):
    words = ["--qualities", "mixed", "--seeds", "2", "--prompts", "60", "--work", "work", "--out", "page.md"]
    command = [sys.executable, str(ROOT / "benchmarks" / "selection.py"), *words]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=900)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| DM-MUL |" in text
    assert "| mean DCRM |" in text
    assert "pairing: best of N^2" in text
