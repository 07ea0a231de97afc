"""The numbers behind a figure as a table: for those who do not see it, for a terminal, for a check."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from marginkit.reporting.blocks import Bars, Cell, Density, Figure, Forest, Histogram, Lines, Reliability, Table
from marginkit.reporting.numbers import number

MOST_ROWS = 60


def table_of(figure: Figure) -> Table | None:
    """What a figure draws, in numbers; None where that is more than a reader would take in.

    Args:
        figure: of a page.

    Example:
        >>> table_of(Bars(["a", "b"], [1.0, 2.5], y_label="grade")).rows
        [('a', '1'), ('b', '2.5')]
    """
    rows: list[tuple[Cell, ...]]
    match figure:
        case Reliability():
            rows = [
                (number(one.confidence), number(one.outcome), f"[{one.low:.3f}, {one.high:.3f}]", number(one.count))
                for one in figure.bins
            ]
            return _table(("confidence", "right", "95%", "pairs"), rows, 0)
        case Forest():
            return _table(("", figure.unit or "value"), list(figure.rows), 1)
        case Bars():
            ends = [("",)] * len(figure.labels)
            if figure.low is not None and figure.high is not None:
                ends = [
                    (f"[{number(low)}, {number(high)}]",) for low, high in zip(figure.low, figure.high, strict=True)
                ]
            rows = [
                (name, number(value), *(end if end[0] else ()))
                for name, value, end in zip(figure.labels, figure.values, ends, strict=True)
            ]
            return _table(("", figure.y_label or "value", "95%")[: len(rows[0])] if rows else ("",), rows, 1)
        case Histogram():
            bins = zip(pairwise(figure.edges), figure.counts, strict=True) if figure.counts else ()
            rows = [(number(left), number(right), number(count)) for (left, right), count in bins]
            return _table(("from", "to", figure.y_label), rows, 0)
        case Lines():
            if len({tuple(x for x, _ in one.points) for one in figure.series}) != 1:
                return None
            rows = [
                (number(x), *(number(one.points[at][1]) for one in figure.series))
                for at, (x, _) in enumerate(figure.series[0].points)
            ]
            return _table((figure.x_label, *(one.name or figure.y_label for one in figure.series)), rows, 0)
        case Density():
            return None


def _table(heads: tuple[str, ...], rows: Sequence[Sequence[Cell]], first_number: int) -> Table | None:
    if not rows or len(rows) > MOST_ROWS:
        return None
    return Table(heads, rows, numeric=tuple(range(first_number, len(heads))))
