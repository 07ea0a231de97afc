"""A page as one HTML file that needs nothing else: no network, no fonts, no library; readable without its script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files

from markupsafe import Markup

from marginkit.records import Estimate
from marginkit.reporting.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Facts,
    Fold,
    Level,
    Page,
    PairText,
    PairTexts,
    Prose,
    Section,
    Table,
    Verdict,
)
from marginkit.reporting.charts import draw
from marginkit.reporting.elements import join, shown, tag
from marginkit.reporting.figures import table_of
from marginkit.reporting.numbers import interval, point
from marginkit.reporting.texts import brief, clip

_SIGNS: dict[Level, tuple[str, str]] = {
    "good": ("✓", "Good"),
    "note": ("i", "Note"),
    "warning": ("!", "Look"),
    "bad": ("✗", "Bad"),
}
_WIDE = 6
"""Columns from which intervals stand under their values."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{}'"


def render_html(page: Page) -> str:
    """The page as one file.

    Args:
        page: what is in it; every text is plain and is escaped here.

    Returns:
        A document without a single reference to anything outside it. A policy in its head forbids all requests and
        every script but its own.

    Example:
        >>> made = render_html(Page("A & B", "One <script>", [Verdict("good", "Fine.")], []))
        >>> "<h1>A &amp; B</h1>" in made, "One &lt;script&gt;" in made
        (True, True)
    """
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    marks = _Marks()
    sections = [_section(section, marks) for section in page.sections]
    entries = [("verdict", "Verdict"), *((anchor, title) for anchor, title, _ in sections)]
    contents = tag("ol", *(tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title in entries))
    verdicts = tag("ul", *(tag("li", _verdict(one)) for one in page.verdicts), class_="verdicts")
    if not page.verdicts:
        verdicts = tag("p", "There is nothing to judge.", class_="empty")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY.format(digest)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="generator", content="marginkit"),
        tag("title", page.title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the content", class_="skip", href="#verdict"),
        tag(
            "header",
            tag("h1", shown(page.title)),
            tag("p", shown(page.lead), class_="lead"),
            tag("button", "Light or dark", id="theme", type="button", hidden=True),
        ),
        tag("nav", contents, aria_label="Contents"),
        tag(
            "main",
            tag("section", tag("h2", "Verdict"), verdicts, id="verdict"),
            *(made for _, _, made in sections),
        ),
        tag("footer", tag("p", shown(page.footer))) if page.footer else None,
        tag("script", Markup(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


class _Marks:
    """Names that are unique on the page."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter({"verdict": 1, "theme": 1})

    def of(self, words: str) -> str:
        """A name made of some words."""
        name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40] or "part"
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}-{self._seen[name]}"


def _asset(name: str) -> str:
    return files("marginkit.reporting").joinpath(name).read_text(encoding="utf-8")


def _section(section: Section, marks: _Marks) -> tuple[str, str, Markup]:
    anchor = marks.of(section.anchor or section.title)
    inside = tag("h2", shown(section.title), id=f"{anchor}-h"), *_blocks(section.blocks, marks)
    return anchor, section.title, tag("section", *inside, id=anchor, aria_labelledby=f"{anchor}-h")


def _blocks(blocks: Sequence[Block], marks: _Marks) -> Iterator[Markup]:
    """The blocks one after the other; charts that follow one another stand side by side where there is room."""
    row: list[Markup] = []
    for block in blocks:
        if isinstance(block, Chart):
            row.append(_chart(block, marks))
            continue
        if row:
            yield tag("div", *row, class_="charts")
            row = []
        yield _block(block, marks)
    if row:
        yield tag("div", *row, class_="charts")


def _block(block: Block, marks: _Marks) -> Markup:
    match block:
        case Verdict():
            return tag("div", _verdict(block), class_="verdicts")
        case Prose():
            return tag("p", shown(block.text))
        case Facts():
            rows = (join(tag("dt", shown(name)), tag("dd", shown(value))) for name, value in block.rows)
            return tag("dl", *rows)
        case Table():
            return _table(block)
        case Code():
            caption = tag("figcaption", shown(block.caption)) if block.caption else None
            code = tag("pre", tag("code", shown(block.text)), tabindex=0, aria_label=block.caption or "lines to copy")
            return tag("figure", code, caption, class_="code")
        case PairTexts():
            return _pairs(block, marks)
        case Fold():
            return tag("details", tag("summary", shown(block.title)), *_blocks(block.blocks, marks))
        case Chart():
            return _chart(block, marks)


def _verdict(verdict: Verdict) -> Markup:
    sign, word = _SIGNS[verdict.level]
    return tag(
        "div",
        tag("span", sign, class_="sign", aria_hidden="true"),
        tag(
            "div",
            tag("span", word, class_="level"),
            " ",
            shown(verdict.says),
            tag("p", "Try: ", shown(verdict.advice), class_="advice") if verdict.advice else None,
        ),
        class_=f"verdict {verdict.level}",
    )


def _table(table: Table) -> Markup:
    heads = [
        tag("th", shown(name), scope="col", class_="num" if at in table.numeric else None)
        for at, name in enumerate(table.columns)
    ]
    rows = [
        tag("tr", *(_cell(cell, first=at == 0, numeric=at in table.numeric) for at, cell in enumerate(row)))
        for row in table.rows
    ]
    name = table.caption or "Numbers"
    caption = tag("caption", shown(name), class_=None if table.caption else "quiet")
    look = "wide" if len(table.columns) >= _WIDE else None
    inside = tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_=look)
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=name)


def _cell(cell: Cell, *, first: bool, numeric: bool) -> Markup:
    if isinstance(cell, Estimate):
        around = interval(cell)
        value = tag("span", around, class_="ci") if around else None
        order = "" if cell.value != cell.value else f"{cell.value:.6g}"
        return tag("td", point(cell), " " if value else None, value, class_="num", data_v=order)
    if first and not numeric:
        return tag("th", shown(cell), scope="row")
    return tag("td", shown(cell), class_="num" if numeric else None)


def _chart(chart: Chart, marks: _Marks) -> Markup:
    mark = marks.of("figure")
    picture, legend = draw(chart.figure, title=chart.caption, words=chart.alt, mark=mark)
    numbers = table_of(chart.figure)
    behind = tag("details", tag("summary", "The numbers"), _table(numbers), class_="numbers") if numbers else None
    return tag("figure", picture, legend, tag("figcaption", shown(chart.caption)), behind)


OPEN = 20
"""Pairs that are shown at once; the others unfold, and a search opens them."""


def _pairs(pairs: PairTexts, marks: _Marks) -> Markup:
    left = pairs.total - len(pairs.rows)
    told = f"{len(pairs.rows):,} of {pairs.total:,} pairs" if left else f"{len(pairs.rows):,} pairs"
    if not pairs.rows:
        return tag("p", "There are none.", class_="empty")
    name = marks.of("search")
    search = tag(
        "div",
        tag("label", "Search in these texts", for_=name),
        tag("input", type="search", id=name, autocomplete="off"),
        tag("span", told, class_="found", role="status", aria_live="polite", data_all=told),
        class_="search",
        hidden=True,
    )
    count = tag("noscript", tag("p", f"{told} are shown.", class_="quiet-line")) if left else None
    first, rest = list(map(_pair, pairs.rows[:OPEN])), list(map(_pair, pairs.rows[OPEN:]))
    more = tag("details", tag("summary", f"{len(rest):,} more"), *rest, class_="more") if rest else None
    return tag("div", search, count, *first, more, class_="pairs")


def _pair(pair: PairText) -> Markup:
    facts = join(*(join(tag("dt", shown(name)), tag("dd", shown(value))) for name, value in pair.facts))
    texts, left = [], pair.clipped
    for what, text, kind in (
        ("Prompt", pair.prompt, "prompt"),
        ("Labelled better", pair.chosen, "chosen"),
        ("Labelled worse", pair.rejected, "rejected"),
    ):
        beginning, rest = clip(text)
        left += rest
        words = tag("div", shown(beginning) if text else "(empty)", class_="text", dir="auto")
        texts.append(tag("div", tag("h4", what), words, class_=kind))
    return tag(
        "article",
        tag("h3", shown(brief(pair.where))),
        tag("dl", facts) if pair.facts else None,
        *texts,
        tag("p", f"{left:,} more characters are not shown.", class_="quiet-line") if left else None,
        class_="pair",
    )
