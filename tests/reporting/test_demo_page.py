"""The page of the demo, from made-up numbers: a verdict is what its intervals say."""

from pathlib import Path
from typing import Any

import pytest

from marginkit.demo_result import DemoOptions, DemoResult, Row
from marginkit.records import Estimate
from marginkit.reporting.blocks import Chart, Forest, Table
from marginkit.reporting.demo_page import demo_page
from marginkit.reporting.html import render_html
from page_reading import Reader, write_run

BELOW, ABOVE, AROUND = ((sign - 0.5, sign + 0.5) for sign in (-1.0, 1.0, 0.0))


def told(nll: tuple[float, float], accuracy: tuple[float, float], out: Path) -> dict[str, Any]:
    """A demo whose policies differ so; its reward models do not."""

    def estimate(ends: tuple[float, float]) -> Estimate:
        return Estimate(sum(ends) / 2, *ends, 90, 30)

    differences = {
        "policy": {"nll": estimate(nll), "accuracy": estimate(accuracy), "sampled": estimate(AROUND)},
        "reward_model": {"nll": estimate(AROUND), "best_of": estimate(AROUND)},
    }
    rows = [Row(name, {"accuracy": estimate(ABOVE)}, 1.0) for name in ("sft", "dpo", "mmpo", "bt", "mmpo_rm")]
    return DemoResult(DemoOptions(), rows, differences, 0.7, out, 9.0).to_json()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five runs, of which the first was not judged."""
    folder = tmp_path_factory.mktemp("demo")
    for name in ("sft", "dpo", "mmpo", "bt", "mmpo_rm"):
        write_run(folder / name)
    for table in (folder / "sft" / "tables").iterdir():
        table.unlink()
    return folder


@pytest.mark.parametrize(
    ("nll", "accuracy", "level"),
    [
        (BELOW, AROUND, "good"),
        (AROUND, ABOVE, "good"),
        (ABOVE, AROUND, "warning"),
        (BELOW, BELOW, "warning"),
        (AROUND, AROUND, "note"),
    ],
)
def test_levels_come_of_the_numbers(
    runs: Path, nll: tuple[float, float], accuracy: tuple[float, float], level: str
) -> None:
    """Lower is better in NLL, higher in accuracy; what holds 0 is neither; one thing worse is a warning."""
    page = demo_page(told(nll, accuracy, runs), runs)
    assert [one.level for one in page.verdicts] == ["note", level, "note"]


def test_the_page_holds_every_number(runs: Path) -> None:
    """Five rows, each difference once in a forest, a reliability diagram a judged model, the command."""
    found = told(BELOW, ABOVE, runs)
    page = demo_page(found, runs)
    blocks = {one.title: list(one.blocks) for one in page.sections}
    (table,) = blocks["Five models"]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["sft", "dpo", "mmpo", "bt", "mmpo_rm"]
    forests = [one.figure for one in blocks["MMPO against hard labels"] if isinstance(one, Chart)]
    assert sum(len(one.rows) for one in forests if isinstance(one, Forest)) == 5
    assert len(blocks["Is their confidence right?"]) == 4
    assert "marginkit demo --quality mixed --size medium --seed 0" in Reader(render_html(page)).words
