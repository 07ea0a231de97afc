"""What a file is read as: a mapping that the user gives, a dialect that its columns show, or else a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marginkit.data import dialects
from marginkit.data.columns import Columns, did_you_mean
from marginkit.data.dialects.mapping import read_mapping
from marginkit.data.dialects.record import Dialect
from marginkit.data.layouts import COLUMNS
from marginkit.data.rows import Row
from marginkit.errors import BadInput

Mapped = str | Path | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """How the rows of a file are read.

    Args:
        name: of the dialect, or else of the layout.
        layout: the layout that the rows have, or are translated into.
        dialect: what translates them; None where the layout reads them as they are.
        why: the columns by which it was recognised.
        notes: how the evidence is taken.
    """

    name: str
    layout: str
    dialect: Dialect | None
    why: str
    notes: tuple[str, ...] = ()


def find_way(file: str, rows: Sequence[Row], columns: Columns, hub: str | None, mapping: Mapped | None) -> Way:
    """Find out from the first rows how a file is read.

    Args:
        file: its name in messages.
        rows: its first rows.
        columns: the renames that the user gives; they come first.
        hub: the name of the hub dataset, if it is one.
        mapping: a YAML file, its content, or the name of a dialect: the user says how to read the file.

    Returns:
        The way.

    Raises:
        BadInput: no layout and no dialect fits; the message names the nearest and what they lack.

    Example:
        >>> row = {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Carrot."}
        >>> find_way("a.jsonl", [row], Columns(), None, None).why
        'pair: has prompt, chosen, rejected'
    """
    renamed = [columns.renamed(row) for row in rows if all(isinstance(key, str) for key in row)]
    held = {key for row in renamed for key in row}
    native = any(str(row.get("format")).startswith("marginkit/") for row in renamed)
    if mapping is not None:
        dialect = _given(file, mapping, renamed, held)
        said = mapping if isinstance(mapping, str | Path) else "the mapping given"
        why = dialects.because(dialect) if dialect.needs else f"mapping: as {said} says"
        columns.take(file, dialect, held)
        return Way(dialect.name, dialect.layout, _translating(dialect), why, dialect.notes)
    found = None if native else dialects.recognise(held, renamed, hub)
    if found is not None and _translating(found):
        columns.take(file, found, held)
        return Way(found.name, found.layout, found, dialects.because(found, hub), found.notes)
    layout = columns.detect(file, rows)
    if found is not None and found.layout == layout:
        return Way(found.name, layout, None, dialects.because(found, hub), found.notes)
    known = [name for name in COLUMNS[layout] if name in columns.names(held)]
    return Way(layout, layout, None, f"{layout}: has {', '.join(known)}")


def _translating(dialect: Dialect) -> Dialect | None:
    return dialect if dialect.translate or dialect.unfold or dialect.repeats else None


def _given(file: str, mapping: Mapped, rows: Sequence[Row], held: set[str]) -> Dialect:
    named = dialects.dialect_named(mapping) if isinstance(mapping, str) else None
    if named is not None:
        lacking = [name for name in named.needs if name not in held]
        if lacking:
            raise BadInput(
                f"{file}: {named.name} needs the columns {', '.join(lacking)}; there are {', '.join(sorted(held))}"
            )
        return named
    if isinstance(mapping, str) and not Path(mapping).suffix and not Path(mapping).exists():
        hint = did_you_mean(mapping, [dialect.name for dialect in dialects.DIALECTS])
        raise BadInput(f"mapping={mapping}: no YAML file and no dialect of that name{hint}")
    return read_mapping(mapping, rows)
