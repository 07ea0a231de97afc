"""A page as Markdown, for a terminal or a repository: the same blocks, figures as their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from marginkit.records import Estimate
from marginkit.reporting.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Facts,
    Figure,
    Fold,
    Level,
    Lines,
    Page,
    PairText,
    PairTexts,
    Prose,
    Table,
    Verdict,
)
from marginkit.reporting.figures import table_of
from marginkit.reporting.numbers import interval, number, point
from marginkit.reporting.texts import brief, clip, visible

_WORDS: dict[Level, str] = {"good": "Good.", "note": "Note.", "warning": "**Look.**", "bad": "**Bad.**"}
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_LENGTH = 40
_PAIRS, _TEXT = 10, 400


def render_markdown(page: Page) -> str:
    """The page as Markdown.

    Args:
        page: what is in it; every text is plain and is escaped here.

    Returns:
        Text whose tables are aligned, so that it reads as well in a terminal. Of the pairs the first ten.

    Example:
        >>> print(render_markdown(Page("A run", "Of bt.", [Verdict("good", "Better than length.")], [])).rstrip())
        # A run
        <BLANKLINE>
        Of bt.
        <BLANKLINE>
        - Good. Better than length.
    """
    lines = [f"# {escaped(page.title)}", "", escaped(page.lead), ""]
    lines += [_verdict(one) for one in page.verdicts] or ["There is nothing to judge."]
    for section in page.sections:
        lines += ["", f"## {escaped(section.title)}", ""]
        lines += _joined(section.blocks)
    if page.footer:
        lines += ["", "---", "", escaped(page.footer)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def escaped(text: str) -> str:
    r"""A text on one line in which nothing is markup and nothing is hidden, wherever on a line it stands.

    Example:
        >>> escaped("# a|b <i> *c*")
        '\\# a\\|b &lt;i&gt; \\*c\\*'
    """
    plain = _inline(text)
    return re.sub(r"^(?=#+(\s|$)|[-+=\[:])|^(\d+)(?=[.)](\s|$))", r"\2\\", plain)


def _inline(text: str) -> str:
    """The same for what stands inside a line: a bracket alone is none of a link."""
    plain = " ".join(visible(text).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*|~]|\](?=[(\[:]))", r"\\\1", plain)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", plain)


def _joined(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        yield from _block(block)
        yield ""


def _block(block: Block) -> Iterator[str]:
    match block:
        case Verdict():
            yield _verdict(block)
        case Prose():
            yield escaped(block.text)
        case Facts():
            yield from (f"- {escaped(name)}: {escaped(value)}" for name, value in block.rows)
        case Table():
            yield from _table(block)
        case Code():
            if block.caption:
                yield f"{escaped(block.caption)}:"
                yield ""
            yield from (f"    {visible(line)}" for line in block.text.split("\n"))
        case Chart():
            yield f"*{escaped(block.caption)}*"
            yield ""
            yield from _figure(block.figure, block.alt)
        case PairTexts():
            yield from _pairs(block)
        case Fold():
            yield f"**{escaped(block.title)}**"
            yield ""
            yield from _joined(block.blocks)


def _verdict(verdict: Verdict) -> str:
    advice = f" Try: {escaped(verdict.advice)}" if verdict.advice else ""
    return f"- {_WORDS[verdict.level]} {escaped(verdict.says)}{advice}"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        return f"{point(cell)} {interval(cell)}".strip()
    return _inline(cell)


def _table(table: Table) -> Iterator[str]:
    cells = [[_inline(name) for name in table.columns], *([_cell(cell) for cell in row] for row in table.rows)]
    widths = [max(3, *(len(row[at]) for row in cells)) for at in range(len(table.columns))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if at in table.numeric else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    if table.caption:
        yield f"{escaped(table.caption)}:"
        yield ""
    yield line(cells[0])
    rule = (f"{'-' * (width - 1)}:" if at in table.numeric else "-" * width for at, width in enumerate(widths))
    yield f"| {' | '.join(rule)} |"
    yield from map(line, cells[1:])


def _figure(figure: Figure, words: str) -> Iterator[str]:
    if isinstance(figure, Lines):
        for one in figure.series:
            values = [y for _, y in one.points if y == y]
            if values:
                name = f"{escaped(one.name)}: " if one.name else ""
                yield f"- {name}`{_spark(values)}` {number(values[0])} -> {number(values[-1])}"
        return
    numbers = table_of(figure)
    if numbers is None:
        yield escaped(words)
    else:
        yield from _table(numbers)


def _spark(values: Sequence[float]) -> str:
    """A curve in one line of characters.

    Example:
        >>> _spark([0.0, 1.0, 2.0, 7.0])
        '▁▂▃█'
    """
    step = max(1, -(-len(values) // _SPARK_LENGTH))
    means = [sum(part) / len(part) for part in (values[at : at + step] for at in range(0, len(values), step))]
    low, high = min(means), max(means)
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[round((value - low) / (high - low) * top) if high > low else 0] for value in means)


def _pairs(pairs: PairTexts) -> Iterator[str]:
    rows = pairs.rows[:_PAIRS]
    if not rows:
        yield "There are none."
        return
    if pairs.total > len(rows):
        yield f"The first {len(rows)} of {pairs.total:,}:"
        yield ""
    for pair in rows:
        yield from _pair(pair)


def _pair(pair: PairText) -> Iterator[str]:
    facts = ", ".join(f"{name} {value}" for name, value in pair.facts)
    yield f"- **{escaped(brief(pair.where))}** {escaped(facts)}"
    for name, text in (("prompt", pair.prompt), ("labelled better", pair.chosen), ("labelled worse", pair.rejected)):
        beginning, rest = clip(text, _TEXT)
        yield f"  - {name}: {escaped(beginning)}{f' ({rest:,} more characters)' if rest else ''}"
