"""What a page is made from: the files of a run directory, or of a folder of score tables, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from omegaconf import OmegaConf

from marginkit.errors import BadInput
from marginkit.evaluation.compare import Comparison, compare
from marginkit.evaluation.history import History, read_history
from marginkit.evaluation.metrics import Evaluation, evaluate
from marginkit.evaluation.pair_columns import PairColumns, read_tables


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies on disk; of a folder of tables only what the tables say.

    Args:
        name: what it is called on the page.
        path: the folder.
        config: the resolved configuration; empty for tables.
        manifest: how it was made; empty for tables and for a run that never began.
        tables: the folder of its tables; None if nothing was judged.
        pairs: the pairs table; None without one, or an empty one.
        evaluation: of the tables.
        history: what it logged.
        mistakes: the pairs it is most wrong about, with their texts, and how many it is wrong about in all.
        benchmarks: `result.json` of every benchmark that it was judged on.
        control: its hard-label twin.
        finished: whether the run has come to its end.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    tables: Path | None
    pairs: pa.Table | None
    evaluation: Evaluation | None
    history: History
    mistakes: tuple[Sequence[Mapping[str, Any]], int] | None = None
    benchmarks: Sequence[Mapping[str, Any]] = ()
    control: RunRecord | None = None
    finished: bool = True

    @property
    def recipe(self) -> str:
        """The recipe's name; empty for tables."""
        return str(self.config.get("recipe", ""))

    @property
    def splits(self) -> Mapping[str, Any]:
        """Groups, pairs and fingerprint of each split of its data; none for tables."""
        found: Mapping[str, Any] = self.manifest.get("data", {}).get("splits", {})
        return found

    @cached_property
    def columns(self) -> PairColumns:
        """The pairs as arrays."""
        assert self.pairs is not None
        return PairColumns.read(self.pairs)

    def held_against(self, other: RunRecord) -> Comparison | str:
        """Paired differences, this - other, on the same pairs; or why there are none."""
        for record in (other, self):
            if record.pairs is None:
                return f"{record.name} has no judged pairs"
        try:
            return compare(self.pairs, other.pairs)
        except BadInput as error:
            return str(error)

    @cached_property
    def against_twin(self) -> Comparison | str | None:
        """The same to its hard-label twin; None where it has none."""
        return None if self.control is None else self.held_against(self.control)


def read_record(path: str | Path, name: str | None = None) -> RunRecord:
    """Read a run directory, or a folder of tables that `marginkit score` wrote.

    Args:
        path: the folder.
        name: what to call it; default its own name.

    Raises:
        BadInput: it is neither.
    """
    folder = Path(path)
    called = name or folder.resolve().name
    if (folder / "config.yaml").is_file():
        return _run(folder, called)
    if (folder / "pairs.parquet").is_file() or folder.is_file():
        pairs, evaluation = _judged(folder)
        return RunRecord(called, folder, {}, {}, folder, pairs, evaluation, History("step", {}), _mistakes(folder))
    raise BadInput(f"{folder}: neither a run (no config.yaml) nor a folder of tables (no pairs.parquet)")


def _run(folder: Path, name: str) -> RunRecord:
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:  # OmegaConf lets the errors of its YAML reader through
        raise BadInput(f"{folder / 'config.yaml'}: not readable as YAML ({error})".splitlines()[0]) from None
    if not isinstance(config, dict) or not config.get("recipe"):
        raise BadInput(f"{folder / 'config.yaml'}: names no recipe; it is not the configuration of a run")
    tables = folder / "tables"
    there = (tables / "pairs.parquet").is_file()
    pairs, evaluation = _judged(tables) if there else (None, None)
    control = folder / "control"
    return RunRecord(
        name,
        folder,
        {str(key): value for key, value in config.items()},
        _json(folder / "manifest.json") or {},
        tables if there else None,
        pairs,
        evaluation,
        read_history(folder),
        _mistakes(tables),
        _benchmarks(folder),
        _run(control, f"{name}, control") if (control / "config.yaml").is_file() else None,
        (folder / "metrics.json").is_file(),
    )


def _judged(tables: Path) -> tuple[pa.Table | None, Evaluation | None]:
    responses, pairs = read_tables(tables)
    if not len(pairs) and (responses is None or not len(responses)):
        return None, None
    return pairs if len(pairs) else None, evaluate(tables)


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: not readable as JSON ({error})".splitlines()[0]) from None


_TEXTS = {"group", "gap", "prob", "prompt", "chosen", "rejected"}


def _mistakes(tables: Path) -> tuple[list[dict[str, Any]], int] | None:
    path = tables / "mistakes.jsonl"
    if not path.is_file():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        total = int(rows[0]["mistakes"]) if rows else 0
        whole = all(isinstance(row, dict) and row.keys() >= _TEXTS for row in rows[1:])
    except (ValueError, TypeError, LookupError) as error:
        raise BadInput(f"{path}: not readable as lines of JSON ({error}); remove the file".splitlines()[0]) from None
    if not whole:
        raise BadInput(f"{path}: a row lacks one of {', '.join(sorted(_TEXTS))}; remove the file")
    return (rows[1:], total) if rows else None


def _benchmarks(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("benchmarks/*/result.json")):
        one = _json(path)
        told = one.get("evaluation") if isinstance(one, dict) else None
        if not isinstance(told, dict) or not all(isinstance(told.get(name), dict) for name in ("accuracy", "counts")):
            raise BadInput(f"{path}: is no result of marginkit evaluate; remove it, or judge the model again")
        found.append({"name": path.parent.name} | one)
    return found


def named(paths: Sequence[str | Path]) -> list[str]:
    """Names for several folders that tell them apart: their last parts, as many as it takes.

    Example:
        >>> named(["a/runs/dpo", "b/runs/dpo", "a/runs/bt"])
        ['a/runs/dpo', 'b/runs/dpo', 'bt']
    """
    parts = [Path(path).parts for path in paths]
    made = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        made.append("/".join(own[-length:]))
    return made
