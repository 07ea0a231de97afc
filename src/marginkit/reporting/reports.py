"""`mk.report`: pages of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from marginkit.errors import BadInput
from marginkit.evaluation.diagnosis import Diagnosis, diagnose
from marginkit.reporting.blocks import Page
from marginkit.reporting.comparison_page import comparison_page
from marginkit.reporting.run_page import run_page
from marginkit.reporting.runs import RunRecord, named, read_record
from marginkit.reporting.writing import check_page_path, write_page


class _HasPath(Protocol):
    @property
    def path(self) -> Path: ...


def report(runs: Sequence[_HasPath | str | Path] | _HasPath | str | Path, out: str | Path | None = None) -> Path:
    """Write the page of one run, or of several held against the first.

    Args:
        runs: runs, run directories, or folders of tables that `score` wrote; 1 to 20.
        out: the HTML file; its Markdown goes beside it. Default: `report.html` in the run, or in the working folder for
            several.

    Returns:
        The path of the HTML file: one file that needs no network and nothing beside it.

    Raises:
        BadInput: not a run, or a file that is no page of ours lies where the page should go.

    Example: `mk.report([run], out="report.html")`
    """
    many = [runs] if isinstance(runs, (str, Path)) or hasattr(runs, "path") else list(runs)
    paths = [Path(run) if isinstance(run, (str, Path)) else run.path for run in many]
    if not paths:
        raise BadInput("no run is named: give at least one")
    target = check_page_path(out or default_page(paths))
    return write_page(page_of(paths), target)


def default_page(paths: Sequence[Path]) -> Path:
    """Where a page goes that was given no name: into the run, or the working folder for several."""
    return paths[0] / "report.html" if len(paths) == 1 and paths[0].is_dir() else Path("report.html")


def page_of(paths: Sequence[Path]) -> Page:
    """The page of one run directory, or of several.

    Raises:
        BadInput: one of them is not a run, or one is named twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise BadInput("a run is named twice: a run cannot be compared with itself")
    records = [read_record(path, name) for path, name in zip(paths, named(paths), strict=True)]
    if len(records) > 1:
        return comparison_page(records)
    return run_page(records[0], diagnoses_of(records[0]))


def diagnoses_of(record: RunRecord) -> list[Diagnosis]:
    """What the training of a run shows, the gravest first; nothing for a folder of tables."""
    if not record.config:
        return []
    reward = record.manifest.get("parts", {}).get("reward", {}).get("function", "").rpartition(":")[2]
    differences = None if isinstance(record.against_twin, str) else record.against_twin
    return diagnose(
        record.history,
        record.evaluation,
        recipe=record.recipe,
        reward=reward,
        differences=differences,
        keeps_best=bool(record.config.get("train", {}).get("load_best_model_at_end")),
    )
