"""The dialects: known datasets, each a small translation into a layout, and how a file is recognised as one of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from marginkit.data.dialects import (
    arena,
    benchmarks,
    compared,
    helpsteer,
    judged,
    safety,
    trainers,
    trees,
    ultrafeedback,
)
from marginkit.data.dialects.record import Dialect
from marginkit.data.rows import Row

_FAMILIES = (ultrafeedback, helpsteer, compared, arena, safety, judged, trees, benchmarks, trainers)
DIALECTS: tuple[Dialect, ...] = tuple(dialect for family in _FAMILIES for dialect in family.DIALECTS)


def dialect_named(name: str) -> Dialect | None:
    """The dialect of that short name, or None.

    Example:
        >>> dialect_named("shp").layout
        'pair'
    """
    return next((dialect for dialect in DIALECTS if dialect.name == name), None)


def recognise(columns: set[str], rows: Sequence[Row], hub: str | None = None) -> Dialect | None:
    """The dialect of a file, or None: its columns are all there, and its marks; of several, the one that needs most.

    Args:
        columns: the columns of the first rows.
        rows: the first rows.
        hub: the hub dataset they come from, whose own dialects go first.

    Returns:
        The dialect.

    Example:
        >>> row = {"prompt": "p", "response": "r", "helpfulness": 4, "correctness": 4, "coherence": 4}
        >>> recognise({*row, "complexity", "verbosity"}, [row]).name
        'helpsteer'
    """
    fitting = [
        dialect
        for dialect in DIALECTS
        if not dialect.by_name
        and columns.issuperset(dialect.needs)
        and (dialect.marks is None or dialect.marks(columns, rows))
    ]
    own = [dialect for dialect in fitting if hub is not None and hub.lower() in map(str.lower, dialect.hubs)]
    return max(own or fitting, key=lambda dialect: len(dialect.needs), default=None)


def because(dialect: Dialect, hub: str | None = None) -> str:
    """Why a file is read as a dialect, in words.

    Example:
        >>> because(dialect_named("webgpt"))
        'webgpt: has question, answer_0, answer_1, score_0, score_1, as openai/webgpt_comparisons'
    """
    named = next((name for name in dialect.hubs if hub is not None and name.lower() == hub.lower()), None)
    like = f", as {named or dialect.hubs[0]}" if dialect.hubs else ""
    return f"{dialect.name}: has {', '.join(dialect.needs)}{like}"


def nearest(columns: set[str], most: int = 3) -> str:
    """The dialects that lack least, and what they lack, as the end of a message; empty where none is near.

    Example:
        >>> nearest({"history", "human_ref_A", "human_ref_B", "score_A", "score_B"})
        'the nearest dialects: shp (lacks labels)'
    """
    found = []
    for dialect in DIALECTS:
        lacking = [name for name in dialect.needs if name not in columns]
        telling = [name for name in dialect.needs if name in columns and name not in _COMMON]
        if lacking and len(telling) > 0 and len(lacking) <= len(dialect.needs) / 2 and not dialect.by_name:
            close = [difflib.get_close_matches(name, columns, n=1, cutoff=0.8) for name in lacking]
            said = [f"{name} (is it {near[0]}?)" if near else name for name, near in zip(lacking, close, strict=True)]
            found.append((len(lacking) / len(dialect.needs), f"{dialect.name} (lacks {', '.join(said)})"))
    found.sort(key=lambda one: one[0])
    return f"the nearest dialects: {', '.join(said for _, said in found[:most])}" if found else ""


_COMMON = ("prompt", "chosen", "rejected", "instruction", "messages", "source", "subset", "turn", "text", "score")
