"""A page of every kind of block: whole, reachable, the same words in HTML and in Markdown; no text is ever markup."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.records import Estimate
from marginkit.reporting.blocks import (
    Bars,
    Block,
    Chart,
    Code,
    Facts,
    Fold,
    Forest,
    Page,
    PairText,
    PairTexts,
    Prose,
    Section,
    Table,
    Verdict,
)
from marginkit.reporting.html import render_html
from marginkit.reporting.markdown import escaped, render_markdown
from marginkit.reporting.reports import page_of
from marginkit.reporting.texts import LONGEST, brief, visible
from page_reading import HOSTILE, Reader, write_run

MARKUP = st.text(st.sampled_from("|\\`*_[](){}<>&#-+=~!:.'\"1a \t\n\r\x00\u202e\ud800"), max_size=12)
ANY_TEXT = st.text(st.characters(), max_size=60) | MARKUP | st.sampled_from(HOSTILE)  # lone surrogates too


def every_block(text: str, cell: str | Estimate = "1") -> list[Block]:
    """One of each, all of them saying the same."""
    return [
        Verdict("bad", text, text),
        Prose(text),
        Facts([(text, text)]),
        Table((text, "n"), [(text, cell), (text, Estimate(0.5, 0.4, 0.6, 9, 9))], text, (1,)),
        Chart(Bars([text], [1.0], y_label=text, reference=(1.0, text)), text, text),
        Chart(Forest([(text, Estimate(0.5, 0.4, 0.6, 9, 9))], text), text, text),
        Code(text, text),
        PairTexts([PairText(text, text, text, text, [(text, text)], 3)], 5),
        Fold(text, [Prose(text)]),
    ]


def whole(text: str) -> Page:
    """A page with all of them, twice, so that names could meet."""
    return Page(text, text, [Verdict("good", text)], [Section(text, every_block(text))] * 2, text)


def assert_sound(page: str) -> Reader:
    """What holds of every page."""
    read = Reader(page)
    ids = Counter(one["id"] for _, one, _ in read.found if "id" in one)
    assert [name for name, count in ids.items() if count > 1] == []
    for tag, own, around in read.found:
        assert not any(name.startswith("on") for name in own), own
        assert not set(own) & {"src", "action", "srcdoc", "style", "formaction", "xlink:href"}
        assert tag != "a" or (own["href"] or "").removeprefix("#") in ids, own
        for name in ("aria-labelledby", "for"):
            assert all(one in ids for one in (own.get(name) or "").split())
        if tag == "svg" and own.get("aria-hidden") != "true":
            assert own["role"] == "img"
            assert own["aria-labelledby"]
        if tag == "script":
            assert around[-1] == "body"
    assert len(read.all("script")) == len(read.all("style")) == len(read.all("h1")) == len(read.all("main")) == 1
    assert not read.all("iframe") + read.all("img") + read.all("link") + read.all("base") + read.all("object")
    assert len(read.all("caption")) == len(read.all("table"))
    assert "://" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S) or "://" in read.words
    return read


def test_a_page_of_everything_is_sound() -> None:
    """Unique names, labels that lead somewhere, captions, a policy that allows nothing but its own script."""
    read = assert_sound(render_html(whole("An ordinary text.")))
    policy = next(one["content"] for one in read.all("meta") if one.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    assert [one["scope"] for one in read.all("th")].count("col") >= 4


@given(text=ANY_TEXT)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    """Nothing of it becomes an element, and what is read off the page is the text with the unseen named."""
    page = render_html(Page("t", "l", [], [Section("s", [Prose(text), Table(("a", text), [("x", text)], text)])]))
    read = assert_sound(page)
    unmarked = str.maketrans("", "", "[] ")
    assert read.words.translate(unmarked).count(visible(text).translate(unmarked)) >= 4
    page.encode("utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_everywhere(text: str) -> None:
    """In titles, captions, labels of charts, code, pairs: the elements are those of a harmless page."""
    harmless, hostile = (Reader(render_html(whole(one))) for one in ("harmless", text))
    assert_sound(render_html(whole(text)))
    without = [name for name, one, _ in hostile.found if one.get("class") != "cp"]
    assert without == [name for name, _, _ in harmless.found]
    render_markdown(whole(text)).encode("utf-8")


@given(cells=st.lists(ANY_TEXT, min_size=3, max_size=3))
def test_a_markdown_table_stays_a_table(cells: list[str]) -> None:
    """Every row has as many cells as the head, whatever is in them."""
    page = Page("t", "l", [], [Section("s", [Table(cells, [cells, cells], "c")])])
    lines = [line for line in render_markdown(page).split("\n") if line.startswith("| ")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {4}
    assert not re.search(r"(?<!\\)<", render_markdown(page))


@given(text=ANY_TEXT)
def test_markdown_has_no_markup_of_a_text(text: str) -> None:
    """One line, no tags, no links, no emphasis, no heading, no list."""
    made = escaped(text)
    assert "\n" not in made
    assert "<" not in made
    assert not re.search(r"(?<!\\)(?:\\\\)*(\*|`|\]\()", made)
    assert not re.match(r"(#{1,6}|[-+]|\d+[.)])(\s|$)", made)


def test_long_texts_end_and_say_so() -> None:
    """Texts at 2,000 characters, names at 240; what is left out is counted."""
    page = Page("t", "l", [], [Section("s", [PairTexts([PairText("w" * 10**6, "p" * 10**6, "c", "r")], 1)])])
    html = render_html(page)
    assert len(html) < 40_000
    assert html.count("p" * LONGEST) == 1
    assert f"{10**6 - LONGEST:,} more characters are not shown." in html
    assert brief("w" * 10**6) in html
    assert len(render_markdown(page)) < 3_000


def test_two_hundred_pairs_stay_under_three_megabytes() -> None:
    """The longest texts there can be; even where nothing in them can be shown the page stays one that opens."""

    def size(text: str) -> int:
        rows = [PairText(f"group {at}", text, text, text) for at in range(200)]
        return len(render_html(Page("t", "l", [], [Section("s", [PairTexts(rows, 200)])])).encode())

    assert size(("if a < b and b > c: " * LONGEST)[:LONGEST]) < 3_000_000
    assert size("\u202e" * LONGEST) < 10_000_000


def test_the_markdown_holds_what_the_page_holds() -> None:
    """Headings, verdicts, every table; of the charts the numbers."""
    made = render_markdown(whole("A text."))
    assert made.count("\n## A text.\n") == 2
    assert "- **Bad.** A text. Try: A text." in made
    assert "The first 1 of 5:" in made
    assert "|        | A text. |" in made or "| A text. |" in made
    assert "0.500 [0.400, 0.600]" in made


def test_a_run_with_hostile_texts(tmp_path: Path) -> None:
    """From the files of a run: groups, sources and texts."""
    folder = write_run(
        tmp_path / "run",
        texts=[(text, text, text) for text in HOSTILE],
        source=[HOSTILE[at % 8] for at in range(60)],
        group=[f"{HOSTILE[at % 8]} {at}" for at in range(60)],
    )
    page = page_of([folder])
    read = assert_sound(render_html(page))
    for text in HOSTILE[:8]:
        assert text in read.words
    render_markdown(page).encode("utf-8")
