"""marginkit evaluate SCORES: slices and calibrators beside the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pair_tables
from commands import call
from marginkit.evaluation.calibrators import calibrate
from marginkit.evaluation.gaps import by_gap
from marginkit.evaluation.slices import slice_table
from marginkit.tables import Scores


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path]:
    """Scores of two splits of a model that is twice as sure as it should be."""
    rng = np.random.default_rng(0)
    places = []
    for name, first in (("dev", 0), ("test", 1000)):
        gap = rng.normal(0, 2, 300)
        right = rng.uniform(size=300) < 1 / (1 + np.exp(-gap / 2))
        gap = np.where(right, gap, -gap)
        names = [f"g{first + at}" for at in range(300)]
        table = pair_tables.pairs(
            gap,
            group=names,
            cluster=names,
            source=["a" if at % 2 else "b" for at in range(300)],
            grade_gap=[float(1 + at % 3) for at in range(300)],
        )
        places.append(Scores(pair_tables.responses(reward=gap), table).save(tmp_path / name))
    return places[0], places[1]


def test_calibrators_are_fitted_on_the_one_and_judged_on_the_other(
    halves: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The temperature is about 2; the figures are those of `calibrate`; shared prompts are refused."""
    dev, test = halves
    code, out, _ = call(monkeypatch, capsys, "evaluate", str(test), "--calibrate-on", str(dev), "--json")
    assert code == 0
    told = json.loads(out)["calibrated"]
    assert list(told) == ["temperature", "platt", "isotonic"]
    assert 1.4 < 1 / told["temperature"]["slope"] < 2.8
    assert told["isotonic"] == calibrate(dev, test, "isotonic").to_json()
    code, out, _ = call(monkeypatch, capsys, "evaluate", str(test), "--calibrate-on", str(dev))
    assert "calibrated on 300 pairs" in out
    code, _, err = call(monkeypatch, capsys, "evaluate", str(test), "--calibrate-on", str(test))
    assert code == 2
    assert "300 clusters are fitted on and judged" in err


@pytest.mark.parametrize("option", ["--against", "--calibrate-on"])
def test_what_is_missing_is_said_before_anything_is_printed(
    option: str, halves: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No table of numbers above an error."""
    code, out, err = call(monkeypatch, capsys, "evaluate", str(halves[1]), option, "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("marginkit: nowhere: no such run")


def test_slices_are_those_of_the_tables(
    halves: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By source and grade gap, along the grade gap; tables without grades have no such study."""
    _, test = halves
    told = json.loads(call(monkeypatch, capsys, "evaluate", str(test), "--slices", "--json")[1])
    assert told["slices"] == [one.to_json() for one in slice_table(test)]
    assert told["gaps"] == by_gap(test).to_json()
    out = call(monkeypatch, capsys, "evaluate", str(test), "--slices")[1]
    assert "by source" in out
    assert "along the grade gap (dataset units)" in out
    Scores(pair_tables.responses(reward=[1.0, 0.0]), pair_tables.pairs([1.0, -1.0])).save(test)
    assert json.loads(call(monkeypatch, capsys, "evaluate", str(test), "--slices", "--json")[1])["gaps"] is None


def test_slices_of_models_on_files_are_asked_of_their_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says where."""
    code, _, err = call(monkeypatch, capsys, "evaluate", "--model", "m", "--data", "f.jsonl", "--slices")
    assert code == 2
    assert "name the folder under benchmarks/" in err
