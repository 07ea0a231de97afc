"""The plain loop of benchmarks/evaluate_speed.py gives our intervals: it is a reference, not only a stopwatch."""

import importlib.util
from pathlib import Path

import pytest

from marginkit.evaluation.pair_columns import PairColumns

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "evaluate_speed.py"


def test_the_plain_loop_has_our_intervals() -> None:
    """Without ties both draw the same prompts, so the ends agree to rounding; the ECE's are the debiased one's."""
    spec = importlib.util.spec_from_file_location("marginkit_evaluate_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    pairs = PairColumns.read(script.made_up(900))
    pairs = pairs.take(~pairs.tie)
    plain, ours = script.plain(pairs, 150), script.ours(pairs, 150)
    for name in ("accuracy", "nll", "brier"):
        assert ours[name] == pytest.approx(plain[name], abs=1e-12), name
