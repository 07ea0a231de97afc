"""Pages on disk: never over a foreign file, never half; and the looks they are given: readable, light and dark."""

import itertools
import re
from importlib.resources import files
from pathlib import Path

import pytest

from marginkit.errors import BadInput
from marginkit.reporting.blocks import Page, Verdict
from marginkit.reporting.writing import check_page_path, write_page

PAGE = Page("A title", "A lead.", [Verdict("good", "Fine.")], [])
STYLE = files("marginkit.reporting").joinpath("page.css").read_text(encoding="utf-8")


def test_a_page_is_two_files_and_can_be_written_again(tmp_path: Path) -> None:
    """HTML and Markdown; nothing else is left."""
    target = write_page(PAGE, tmp_path / "a.html")
    write_page(Page("Another", "b", [], []), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.md"]
    assert "<title>Another</title>" in target.read_text()
    assert (tmp_path / "a.md").read_text().startswith("# Another\n")


@pytest.mark.parametrize("name", ["a.html", "a.md"])
def test_a_foreign_file_stays(tmp_path: Path, name: str) -> None:
    """Neither the page's own place nor the one of its Markdown is taken from another file."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadInput, match=f"{name}: is there, and is no page of marginkit"):
        write_page(PAGE, tmp_path / "a.html")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize(
    ("path", "why"),
    [("a.htm", "is an .html file"), ("no/a.html", "there is no folder"), ("d.html", "is there, and is")],
)
def test_where_no_page_can_be(tmp_path: Path, path: str, why: str) -> None:
    """Told before the work begins."""
    (tmp_path / "d.html").mkdir()
    with pytest.raises(BadInput, match=why):
        check_page_path(tmp_path / path)


def test_a_full_disk_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half file, no partial one."""
    target = write_page(PAGE, tmp_path / "a.html")
    before = target.read_text()

    def full(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BadInput, match="No space left"):
        write_page(Page("Another", "b", [], []), target)
    assert target.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.md"]


def palettes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet, light and dark."""
    pairs = re.findall(r"--([\w-]+):\s*light-dark\((#[0-9a-f]{3,6}), (#[0-9a-f]{3,6})\)", STYLE)
    return {
        scheme: {name: colours[which] for name, *colours in pairs} for which, scheme in enumerate(("light", "dark"))
    }


def contrast(one: str, other: str) -> float:
    """(L1 + 0.05) / (L2 + 0.05), L the relative luminance. Source: WCAG 2.2, 1.4.3."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_the_book() -> None:
    """Black on white is 21, grey 767676 just passes."""
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("name", sorted(palettes()))
def test_colours_can_be_told(name: str) -> None:
    """WCAG AA: 4.5 for text on every ground it stands on, 3 for lines and bars; light, dark and on paper."""
    colours = palettes()[name]
    levels = ("good", "note", "warning", "bad")
    grounds = ["paper", "wash", *(f"{level}-wash" for level in levels)]
    texts = [*itertools.product(("ink", "soft"), grounds), ("link", "paper"), ("link", "wash")]
    texts += [*((level, f"{level}-wash") for level in levels), *(("paper", level) for level in levels)]
    poor = {pair: round(found, 2) for pair in texts if (found := contrast(*(colours[one] for one in pair))) < 4.5}
    assert not poor
    lines = [(f"c{which}", "paper") for which in range(6)]
    assert not [pair for pair in lines if contrast(*(colours[one] for one in pair)) < 3]
    shades = [contrast(colours[f"d{shade}"], colours["paper"]) for shade in range(1, 6)]
    assert shades == sorted(shades)
    assert shades[-1] > 4.5


def test_every_colour_has_both_and_paper_is_light() -> None:
    """No colour stands outside the palette; what is printed takes the light one, whatever was chosen on the screen."""
    used = set(re.findall(r"var\(--([\w-]+)\)", STYLE))
    assert used <= palettes()["light"].keys()
    on_paper = STYLE[STYLE.index("@media print") :]
    assert ":root, :root[data-theme] { color-scheme: light;" in on_paper
    assert not re.search(r"#[0-9a-f]{3,6}", re.sub(r"light-dark\([^)]*\)|--(ink|link|wash): #(000|fff)", "", STYLE))


def test_style_and_script_ask_for_nothing() -> None:
    """No address, no import, no way to make code of text, no markup made of text."""
    script = files("marginkit.reporting").joinpath("page.js").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:|//\w", STYLE)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|fetch|https?:", script
    )
