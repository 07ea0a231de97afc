"""The page of a data check: the verdict first, the ledger adds up, every remark with its way out."""

import json
from pathlib import Path

import pytest

from commands import call
from marginkit.reporting.blocks import Bars, Chart, Facts, Fold, Histogram, PairTexts, Section, Table
from marginkit.reporting.html import render_html
from marginkit.reporting.survey_page import survey_page
from page_reading import HOSTILE, Reader


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file whose every name and text is hostile."""
    monkeypatch.chdir(tmp_path)
    name = "<img src=x onerror=alert(0)>.jsonl"
    texts = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    rows = [
        {
            "id": f"{text} {at}",
            "prompt": [{"role": "user", "content": f"{text} {at}"}],
            "chosen": f"{text} yes",
            "rejected": f"{text} no" if at % 3 else "",
            "score_chosen": 5 if at % 4 else 900,
            "score_rejected": at % 3,
            "source": text[:30],
            "chosen_model": text,
            "rejected_model": "<b>other</b>",
        }
        for at, text in enumerate(texts * 3)
    ]
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def sections(page_sections: object) -> dict[str, Section]:
    return {one.title: one for one in page_sections}  # type: ignore[attr-defined]


def test_the_page_says_what_the_command_says(
    hostile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verdict, counts and rows of `--json`; nothing of the data is an element."""
    code, out, err = call(monkeypatch, capsys, "check", hostile, "--json", "--html", "page.html", "--limit", "40")
    assert (code, err) == (0, "")
    found = json.loads(out)
    page = survey_page(found, "marginkit check a")
    assert page.verdicts[0].says.lower().startswith(found["verdict"]["says"].lower())
    named = sections(page.sections)
    ledger = next(one for one in named["What was read"].blocks if isinstance(one, Table))
    counts = {str(row[0]): int(str(row[1]).replace(",", "")) for row in ledger.rows}
    assert counts["read"] == found["read"] == 40
    assert counts["read"] == counts["kept"] + sum(n for name, n in counts.items() if name.startswith("dropped"))
    assert counts["read"] > counts["kept"]
    grave = [one for one in found["remarks"] if one["level"] in ("problem", "warning")]
    assert len(page.verdicts) == 1 + len(grave)
    assert all(one["fix"] in verdict.says for one, verdict in zip(grave, page.verdicts[1:], strict=True))
    written = Path("page.html").read_text(encoding="utf-8")
    read = Reader(written)
    assert len(read.all("script")) == 1
    assert not read.all("img")
    assert "<img src=x onerror=alert(0)>.jsonl" in read.words
    assert "'<img src=x onerror=alert(0)>.jsonl' --limit 40 --json" in read.words
    assert Path("page.md").is_file()


def test_bad_places_are_told_before_anything_is_read(
    hostile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the file is not there."""
    code, _, err = call(monkeypatch, capsys, "check", "missing.jsonl", "--html", "page.txt")
    assert code == 2
    assert "a page is an .html file" in err


def test_figures_of_few_and_of_many_grades(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to ten different grades are bars, more a histogram; shares add up to one."""
    monkeypatch.chdir(tmp_path)
    for name, grades in (("few", [1, 2, 5]), ("many", [at / 7 for at in range(60)])):
        rows = [
            {"prompt": f"p{at} of {name}", "chosen": "a b", "rejected": "c", "score_chosen": g + 1, "score_rejected": g}
            for at, g in enumerate(grades)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = {}
    for name in ("few", "many"):
        _, out, _ = call(monkeypatch, capsys, "check", f"{name}.jsonl", "--json")
        page = survey_page(json.loads(out))
        blocks = sections(page.sections)["Grades"].blocks
        figures[name] = [one.figure for one in blocks if isinstance(one, Chart)]
        assert any(isinstance(one, Facts) for one in blocks)
        assert not any(isinstance(one, PairTexts) for one in blocks)
        render_html(page)
    few, many = figures["few"][0], figures["many"][0]
    assert isinstance(few, Bars)
    assert (list(few.labels), sum(few.values)) == (["1", "2", "3", "5", "6"], pytest.approx(1))
    assert isinstance(many, Histogram)
    assert (len(many.edges), sum(many.counts)) == (11, pytest.approx(1))


def test_a_file_without_grades_or_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sections that would be empty are not there; every figure is."""
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    _, out, _ = call(monkeypatch, capsys, "check", "a.jsonl", "--json")
    page = survey_page(json.loads(out))
    names = list(sections(page.sections))
    assert not {"Grades", "Agreement of raters", "Who wrote what", "How to repeat it"} & set(names)
    fold = sections(page.sections)["All figures"].blocks[0]
    assert isinstance(fold, Fold)
    table = fold.blocks[0]
    assert isinstance(table, Table)
    assert {"groups", "pairs", "longer_wins"} <= {row[0] for row in table.rows}
