"""What a survey says: figures, remarks with a level and a way out, and the rows that are worst."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")
Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing the survey found.

    Args:
        topic: what it is about, one or two words.
        level: ok, note (good to know), warning (look before you train) or problem (do not train on it as it is).
        says: a sentence with its figures.
        fix: the way out; empty where nothing has to be done.

    Example:
        >>> Remark("ties", "note", "12% of the pairs are ties", "--ties drop leaves them out").to_json()["level"]
        'note'
    """

    topic: str
    level: Level
    says: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Plain strings."""
        return {"topic": self.topic, "level": self.level, "says": self.says, "fix": self.fix}


@dataclass(frozen=True, slots=True, order=True)
class WorstRow:
    """A row to look at first.

    Args:
        size: how bad it is; only rows of one reason are compared.
        row: its index among the groups.
        id: its id.
        reason: what is wrong with it, in words.
    """

    size: float
    row: int
    id: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"row": self.row, "id": self.id, "reason": self.reason}


class Worst:
    """The worst rows of one kind; of all that are offered, so many are remembered.

    Example:
        >>> worst = Worst(keep=1)
        >>> worst.offer(2.0, 0, "a", "gap 2"), worst.offer(5.0, 1, "b", "gap 5")
        (None, None)
        >>> [row.id for row in worst.rows()], worst.offered
        (['b'], 2)
    """

    def __init__(self, keep: int = 10) -> None:
        self._keep = keep
        self._heap: list[WorstRow] = []
        self.offered = 0

    def offer(self, size: float, row: int, name: str, reason: str) -> None:
        """Remember the row if it is among the worst."""
        self.offered += 1
        if len(self._heap) < self._keep:
            heapq.heappush(self._heap, WorstRow(size, row, name, reason))
        elif size > self._heap[0].size:
            heapq.heapreplace(self._heap, WorstRow(size, row, name, reason))

    def rows(self) -> list[WorstRow]:
        """The worst first; of equals, the first in the file."""
        return sorted(self._heap, key=lambda worst: (-worst.size, worst.row))


@dataclass(frozen=True, slots=True)
class Report:
    """What one topic found.

    Args:
        facts: its figures, plain values by name.
        remarks: what to make of them.
        worst: rows to look at.
        marks: name of a removal -> which rows it would remove.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[Remark] = ()
    worst: Sequence[WorstRow] = ()
    marks: Mapping[str, Marks] = field(default_factory=dict)


def marks_of(rows: Sequence[int] | npt.NDArray[np.int64], count: int) -> Marks:
    """Row numbers as one flag a row.

    Example:
        >>> marks_of([2], 3).tolist()
        [False, False, True]
    """
    marks = np.zeros(count, np.bool_)
    marks[np.asarray(rows, np.int64)] = True
    return marks


def share(part: float, whole: float) -> str:
    """A count and its share, in words.

    Example:
        >>> share(3, 1200), share(0, 0)
        ('3 of 1,200 (0.2%)', '0 of 0')
    """
    if not whole:
        return f"{part:,.0f} of {whole:,.0f}"
    percent = 100 * part / whole
    return f"{part:,.0f} of {whole:,.0f} ({percent:.{1 if percent < 10 else 0}f}%)"
