"""Pages as a browser shows them: hostile texts do nothing, nothing is asked of a network, everything can be used."""

import base64
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Tab, browser, needs_browser
from commands import call
from marginkit.records import Estimate
from marginkit.reporting.blocks import Page, PairText, PairTexts, Section, Table, Verdict
from marginkit.reporting.reports import page_of
from marginkit.reporting.texts import visible
from marginkit.reporting.writing import write_page
from page_reading import HOSTILE, write_run

pytestmark = [pytest.mark.browser, needs_browser]
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    """One browser for all."""
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose every text is hostile; the last one has a million characters."""
    texts = [*HOSTILE, "long " * 200_000]
    folder = write_run(
        tmp_path_factory.mktemp("hostile") / "run",
        texts=[(text, text, text) for text in texts],
        source=[HOSTILE[at % 8] for at in range(60)],
        group=[f"{HOSTILE[at % 8]} {at}" for at in range(60)],
    )
    rows = (folder / "tables" / "mistakes.jsonl").read_text().splitlines()
    named = [json.loads(row) | {"group": text, "source": text} for row, text in zip(rows[1:], texts, strict=True)]
    lines = [rows[0], *map(json.dumps, named)]
    (folder / "tables" / "mistakes.jsonl").write_text("\n".join(lines) + "\n")
    return write_page(page_of([folder]), folder / "report.html")


def unmarked(text: str) -> str:
    """Without what may differ: blanks, and how names of unseen characters are set apart."""
    return re.sub(r"[\s\[\]]", "", text)


def test_hostile_texts_are_only_read(tab: Tab, hostile: Path) -> None:
    """No error, dialog or request; the texts on the page are the texts; the only script is ours."""
    tab.screen(DESK)
    tab.open(hostile)
    assert tab.complaints() == []
    shown = tab.run("[...document.querySelectorAll('.pair .chosen .text')].map((one) => one.textContent)")
    assert [unmarked(one) for one in shown[:-1]] == [unmarked(visible(text)) for text in HOSTILE]
    assert len(shown[-1]) == 2000
    assert tab.run("document.scripts.length") == 1
    assert tab.run("document.querySelectorAll('img, iframe, object, embed, [onerror], [onload]').length") == 0
    assert tab.run("[...document.links].every((one) => one.getAttribute('href').startsWith('#'))")
    assert hostile.stat().st_size < 400_000


def test_the_page_of_a_hostile_file(
    tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check --html` from names, ids and sources."""
    monkeypatch.chdir(tmp_path)
    name = "<img src=x onerror=alert(0)>.jsonl"
    texts = [text.encode("utf-8", "replace").decode().replace("\x00", "") for text in HOSTILE]
    rows = [
        {"id": text, "prompt": f"{text} {at}", "chosen": f"{text} 1", "rejected": f"{text} 2", "source": text}
        | {"chosen_model": text, "rejected_model": "b", "score_chosen": 900 if at == 3 else 2, "score_rejected": 1}
        for at, text in enumerate(texts)
    ]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call(monkeypatch, capsys, "check", name, "--html", "page.html")
    assert (code, err) == (0, "")
    assert "page: page.html" in out
    tab.open(tmp_path / "page.html")
    assert tab.complaints() == []
    assert name in tab.run("document.querySelector('h1').textContent")
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert tab.run("document.scripts.length") == 1


def test_what_the_policy_is_for(tab: Tab, hostile: Path, tmp_path: Path) -> None:
    """Were a text to become markup after all, its script would not run and its picture not be fetched."""
    injected = '<img src="http://example.com/a.png" onerror="window.ran=1"><script>window.ran = 1</script>'
    broken = tmp_path / "broken.html"
    broken.write_text(hostile.read_text(encoding="utf-8").replace("<main>", f"<main>{injected}"), encoding="utf-8")
    tab.open(broken)
    assert tab.run("document.querySelectorAll('main > img').length") == 1
    assert tab.run("window.ran === undefined")
    refused = [one["entry"]["text"] for one in tab.seen("Log.entryAdded")]
    assert any("Content Security Policy" in text for text in refused)
    assert not tab.seen("Network.responseReceivedExtraInfo")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, PHONE, 768, DESK])
def test_nothing_is_wider_than_the_screen(tab: Tab, hostile: Path, width: int, dark: bool) -> None:
    """Tables scroll within themselves, the page does not."""
    tab.screen(width, dark=dark)
    tab.open(hostile)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark


def test_it_prints(tab: Tab, hostile: Path) -> None:
    """All of it, more than one sheet."""
    tab.screen(DESK)
    tab.open(hostile)
    pdf = base64.b64decode(tab.ask("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1
    tab.screen(800, media="print")
    assert tab.run("document.documentElement.scrollWidth <= 800")
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"


@pytest.fixture(scope="module")
def useful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table to sort and pairs to search."""
    rows = [(name, Estimate(value, value - 1, value + 1, 9, 9)) for name, value in (("b", 2.0), ("c", 10.0), ("a", -1))]
    pairs = [PairText(f"group {at}", f"Apples and {at} pears", "Yes.", "No.") for at in range(20)]
    blocks = [Table(("name", "number"), rows, "A table", (1,)), PairTexts(pairs, 90)]
    page = Page("Title", "Lead.", [Verdict("good", "Fine.")], [Section("Part", blocks)])
    return write_page(page, tmp_path_factory.mktemp("useful") / "page.html")


def test_search_finds_and_says_how_many(tab: Tab, useful: Path) -> None:
    """All words, in any case; what is found is announced; an empty search shows all again."""
    tab.screen(DESK)
    tab.open(useful)
    assert tab.run("document.querySelector('.found').getAttribute('aria-live')") == "polite"
    assert tab.run("document.querySelector('.found').textContent") == "20 of 90 pairs"
    for words, count, told in (
        ("apples 7", 2, "2 of 20 shown pairs match"),
        ("<b>", 0, "0 of 20 shown pairs match"),
        ("", 20, "20 of 90 pairs"),
    ):
        found = tab.run(
            f"""(async () => {{
              const input = document.querySelector('input[type=search]');
              input.value = {json.dumps(words)};
              input.dispatchEvent(new Event('input', {{bubbles: true}}));
              await new Promise((done) => setTimeout(done, 200));
              const seen = [...document.querySelectorAll('.pair')].filter((one) => one.checkVisibility());
              return [seen.length, document.querySelector('.found').textContent];
            }})()"""
        )
        assert found == [count, told]
    assert tab.complaints() == []


def test_tables_sort_by_what_numbers_are_worth(tab: Tab, useful: Path) -> None:
    """Up, then down; by names and by numbers; told to those who do not see it."""
    tab.screen(DESK)
    tab.open(useful)
    order = "[...document.querySelectorAll('tbody th')].map((one) => one.textContent).join('')"
    press = "document.querySelectorAll('thead button')[{}].click()"
    orders = []
    for column in (1, 1, 0, 0):
        tab.run(press.format(column))
        orders.append(tab.run(order))
    assert orders == ["abc", "cba", "abc", "cba"]
    assert tab.run("document.querySelector('thead th').getAttribute('aria-sort')") == "descending"
    assert tab.run("document.querySelectorAll('[aria-sort]').length") == 1


def test_the_switch_turns_the_lights_off(tab: Tab, useful: Path) -> None:
    """By its button, which the keyboard reaches."""
    tab.screen(DESK)
    tab.open(useful)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = tab.run(ground)
    tab.run("document.getElementById('theme').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert tab.run(ground) != before
    tab.run("localStorage.clear()")


def test_it_reads_without_its_script(tab: Tab, useful: Path) -> None:
    """All texts are there; what would do nothing is not."""
    tab.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(useful)
        assert tab.run("document.querySelectorAll('.pair').length") == 20
        assert not tab.run("document.querySelector('.search').checkVisibility()")
        assert not tab.run("document.getElementById('theme').checkVisibility()")
        assert tab.run("document.querySelectorAll('thead button').length") == 0
        assert "20 of 90 pairs are shown." in tab.run("document.body.innerText")
    finally:
        tab.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_what_a_screen_reader_is_told(tab: Tab, hostile: Path) -> None:
    """Every picture, button, table and region has a name; headings leave no level out."""
    tab.screen(DESK)
    tab.open(hostile)
    nodes = tab.ask("Accessibility.getFullAXTree")["nodes"]
    known = [one for one in nodes if not one["ignored"]]
    for role in ("image", "button", "table", "region", "navigation", "searchbox"):
        own = [one for one in known if one["role"]["value"] == role]
        assert own, role
        assert all(one["name"]["value"] for one in own), role
    levels = tab.run("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
