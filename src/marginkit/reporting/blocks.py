"""What a page is made of: plain values, in reading order, drawn as HTML or as Markdown.

Every text here is plain text. The renderers escape it; nothing here knows of tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from marginkit.records import Estimate

Level = Literal["good", "note", "warning", "bad"]
Cell = str | Estimate


# -- figures


@dataclass(frozen=True, slots=True)
class Series:
    """One line of `Lines`.

    Args:
        name: what the legend says.
        points: (x, y), x ascending; a y of NaN breaks the line.
        dashed: a line that is held against another: a target, a twin, an evaluation.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over one axis.

    Args:
        series: at least one.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        zero: whether y = 0 is in the picture, with a line of its own.
    """

    series: Sequence[Series]
    x_label: str
    y_label: str
    zero: bool = False


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of `Reliability`: where the model is and what came of it.

    Args:
        confidence: mean confidence.
        outcome: mean outcome.
        low: lower end of the outcome's 95% interval.
        high: upper end.
        count: pairs.
    """

    confidence: float
    outcome: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Reliability:
    """Outcome against confidence, on [1/2, 1].

    Args:
        bins: from the least sure to the surest.
    """

    bins: Sequence[Bin]


@dataclass(frozen=True, slots=True)
class Density:
    """How many fall where: a grid of counts.

    Args:
        x_edges: n + 1 edges.
        y_edges: m + 1 edges.
        counts: `[n][m]`.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        diagonal: whether the line y = x is drawn.
    """

    x_edges: Sequence[float]
    y_edges: Sequence[float]
    counts: Sequence[Sequence[int]]
    x_label: str
    y_label: str
    diagonal: bool = True


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar a name, with intervals where there are any.

    Args:
        labels: one a bar.
        values: their heights.
        low: lower ends of 95% intervals.
        high: upper ends.
        y_label: what the height is, with its unit.
        reference: a line to compare with, and its name.
    """

    labels: Sequence[str]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    y_label: str = ""
    reference: tuple[float, str] | None = None


@dataclass(frozen=True, slots=True)
class Forest:
    """Estimates one below the other, with their intervals.

    Args:
        rows: (name, estimate).
        unit: of the axis.
        zero: whether 0 is in the picture, with a line of its own: for differences.
    """

    rows: Sequence[tuple[str, Estimate]]
    unit: str = ""
    zero: bool = True


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values fall into bins.

    Args:
        edges: n + 1 edges.
        counts: n counts or shares.
        x_label: what is counted, with its unit.
        y_label: how it is counted.
    """

    edges: Sequence[float]
    counts: Sequence[float]
    x_label: str
    y_label: str = "count"


Figure = Lines | Reliability | Density | Bars | Forest | Histogram


# -- blocks


@dataclass(frozen=True, slots=True)
class Verdict:
    """What it comes to, in a sentence.

    Args:
        level: good, note, warning or bad.
        says: the sentence.
        advice: what to try.
    """

    level: Level
    says: str
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Args:
        columns: the heads.
        rows: cells, plain texts or estimates.
        caption: what it is of.
        numeric: columns that hold numbers, for alignment and sorting.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with its caption, and what it shows in words for those who do not see it."""

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy."""

    text: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class PairText:
    """One pair with its texts.

    Args:
        where: group, source, file.
        prompt: as plain text.
        chosen: the response that the label says is better.
        rejected: the other one.
        facts: what is known of it: gap, probability, grades.
        clipped: characters of the three texts that are not shown.
    """

    where: str
    prompt: str
    chosen: str
    rejected: str
    facts: Sequence[tuple[str, str]] = ()
    clipped: int = 0


@dataclass(frozen=True, slots=True)
class PairTexts:
    """Pairs to read, searchable.

    Args:
        rows: those shown.
        total: how many there are in all.
    """

    rows: Sequence[PairText]
    total: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that open on demand."""

    title: str
    blocks: Sequence[Block]


Block = Verdict | Prose | Facts | Table | Chart | Code | PairTexts | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under its own heading.

    Args:
        title: the heading.
        blocks: what is in it.
        anchor: its name in links; made of the title if empty.
    """

    title: str
    blocks: Sequence[Block]
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page.

    Args:
        title: of the page.
        lead: one sentence on what it is about.
        verdicts: what it comes to, the most important first.
        sections: the rest.
        footer: how it was made.
    """

    title: str
    lead: str
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]
    footer: str = ""
