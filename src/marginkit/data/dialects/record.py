"""What a dialect is: a named translation of the rows of a known dataset into rows of a layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from marginkit.data import checks
from marginkit.data.checks import RowRefused, shown
from marginkit.data.rows import Row, Rules

Layout = Literal["native", "multi-response", "pair", "sft"]
Unfolded = Iterator[tuple[Row | RowRefused, Sequence[int]]]
_Code = TypeVar("_Code")


@dataclass(frozen=True, slots=True)
class Dialect:
    """A known dataset: how its rows are recognised, and what they become.

    Args:
        name: its short name, in findings and for `mapping=NAME`.
        layout: the layout its rows become; all checks of rows are there.
        needs: the columns it is recognised by.
        hubs: hub datasets of this form.
        reads: further columns that it reads where they are there.
        translate: a row -> a row of the layout, with remarks to the rules; None where the layout reads it as it is.
        marks: what else tells it from its relatives, asked of the first rows.
        key: consecutive rows of equal key and prompt become one group.
        unfold: rows of equal key (or one row, without a key) -> rows of the layout, each with the places of the rows
            it was made of; a refusal stands for rows that make none.
        repeats: equal texts may come again: a row is one rater's word, or a benchmark counts every row.
        notes: how its evidence is taken.
        by_name: recognised by no columns, only by `mapping=NAME`.
    """

    name: str
    layout: Layout
    needs: tuple[str, ...]
    hubs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    translate: Callable[[Row, Rules], Row] | None = None
    marks: Callable[[set[str], Sequence[Row]], bool] | None = None
    key: Callable[[Row], Hashable] | None = None
    unfold: Callable[[Sequence[Row], Rules], Unfolded] | None = None
    repeats: bool = False
    notes: tuple[str, ...] = ()
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """One of two responses that a row compares."""

    text: object
    score: float | None = None
    model: object = None
    aspects: Mapping[str, float | None] | None = None
    ratings: Sequence[Mapping[str, Any]] | None = None


def duel(prompt: object, sides: Iterable[Side], better: int | None, **evidence: Any) -> dict[str, Any]:
    """A pair row of two responses and the better one: 0, 1, or None where they are equal.

    Args:
        prompt: text, chat turns, or None where the responses hold it.
        sides: the two responses.
        better: which one won.
        evidence: further columns of the pair layout, told of the better one (of the first, in a tie).

    Returns:
        The row.

    Example:
        >>> duel("Name a fruit.", [Side("Carrot."), Side("Apple.")], 1, margin=2.0)["chosen"]
        'Apple.'
    """
    first, second = sides
    chosen, rejected = (second, first) if better == 1 else (first, second)
    row: dict[str, Any] = {"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text, **evidence}
    if better is None:
        row["tie"] = True
    for side, said in (("chosen", chosen), ("rejected", rejected)):
        if said.score is not None:
            row[f"score_{side}"] = said.score
        if said.model is not None:
            row[f"{side}_model"] = said.model
        if said.aspects is not None:
            row[f"aspects_{side}"] = said.aspects
        if said.ratings is not None:
            row[f"ratings_{side}"] = said.ratings
    return row


def pick(row: object, path: str, absent: Any = None) -> Any:
    """What a dotted path names, else `absent`: a column of that whole name first, numbers count in lists.

    Example:
        >>> pick({"answers": [{"text": "Apple."}]}, "answers.0.text")
        'Apple.'
    """
    if isinstance(row, Mapping):
        if path in row:
            return row[path]
        head, dot, rest = path.partition(".")
        return pick(row.get(head), rest, absent) if dot else absent
    if isinstance(row, list | tuple):
        head, dot, rest = path.partition(".")
        if not head.isascii() or not head.isdigit() or len(head) > 9 or int(head) >= len(row):
            return absent
        return pick(row[int(head)], rest, absent) if dot else row[int(head)]
    return absent


def numeral(value: object, key: str) -> float | None:
    """A number, or a string that is one: some datasets and all tables write numbers as text.

    Example:
        >>> numeral("5", "rating"), numeral(None, "rating")
        (5.0, None)
    """
    if isinstance(value, str) and "_" not in value:  # float() would read 1_0 as 10
        with suppress(ValueError):  # refused below, by its own name
            value = float(value)
    return checks.number(value, key)


def listed(value: object, key: str) -> Sequence[Any]:
    """A list, or the JSON of one in a string.

    Example:
        >>> listed('["a", null]', "response_a")
        ['a', None]
    """
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):  # refused below, by its own name
            value = json.loads(value)
    if not isinstance(value, list | tuple):
        raise RowRefused("malformed row", f"{key} is {shown(value)}, not a list", "give a list, or its JSON")
    return value


def coded(value: object, key: str, codes: Mapping[Any, _Code]) -> _Code:
    """What a code stands for.

    Example:
        >>> coded("A", "winner", {"A": 0, "B": 1})
        0
    """
    if value is not None and not isinstance(value, str | int | float):
        value = shown(value)
    if value not in codes:
        known = ", ".join(shown(code) for code in codes)
        raise RowRefused("unknown code", f"{key} is {shown(value)}", f"the codes are {known}")
    return codes[value]


def held(row: Row, *names: str) -> Hashable:
    """A key of the values under these names, whatever they are: rows that agree in them belong together."""
    try:
        return json.dumps([row.get(name) for name in names], sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        raise RowRefused("malformed row", f"{' or '.join(names)} has no form in JSON", "correct it") from None


def texts_like(rows: Iterable[Row], name: str, start: str) -> bool:
    """Whether all texts under a name begin alike, and there is one."""
    found = [row.get(name) for row in rows if row.get(name) is not None]
    return bool(found) and all(isinstance(text, str) and text.lstrip("\n").startswith(start) for text in found)


def entries_hold(rows: Iterable[Row], name: str, *fields: str) -> bool:
    """Whether some entry of the lists under a name is an object with these fields."""
    lists = [row.get(name) for row in rows]
    entries = [entry for entries in lists if isinstance(entries, list | tuple) for entry in entries]
    return any(isinstance(entry, Mapping) and set(fields) <= set(entry) for entry in entries)
