"""`marginkit check` as its user meets it: one screen, JSON, strict, and a cleaned copy."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from commands import call
from marginkit.data.sources import read_groups
from marginkit.models.loading import fresh_tokenizer

WORDS = ("stone", "river", "garden", "letter", "window", "market", "candle", "ladder", "engine", "basket")


def sentence(draw: random.Random, words: int = 14) -> str:
    return " ".join(draw.choice(WORDS) + str(draw.randint(10, 99)) for _ in range(words))


def good_rows(count: int = 120) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {
            "prompt": sentence(draw),
            "chosen": sentence(draw, draw.randint(6, 30)),
            "rejected": sentence(draw, draw.randint(6, 30)),
            "score_chosen": draw.randint(3, 5),
            "score_rejected": draw.randint(1, 2),
            "split": "test" if number % 4 == 0 else "train",
        }
        for number in range(count)
    ]


def bad_rows() -> list[dict[str, Any]]:
    """Good rows, and one of everything that the survey should find."""
    draw = random.Random(1)
    rows = good_rows()
    rows += [rows[1] | {"prompt": rows[1]["prompt"].upper(), "chosen": rows[1]["chosen"] + "!"}]  # again, but for case
    rows += [rows[2] | {"chosen": sentence(draw), "split": "test"}]  # a prompt of the training split
    rows += [rows[3] | {"rejected": rows[3]["chosen"] + " x", "prompt": sentence(draw)}]  # nearly identical responses
    rows += [rows[5] | {"score_chosen": 900, "prompt": sentence(draw)}]  # a slip of the scale
    rows += [{"prompt": "a", "chosen": "x", "rejected": " "}]  # refused
    return rows


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good and a bad file."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("good.jsonl", good_rows()), ("bad.jsonl", bad_rows())):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_a_good_file_is_one_short_screen(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict first, nothing to look at, `--strict` is content."""
    code, out, err = call(monkeypatch, capsys, "check", "good.jsonl", "--strict")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "good.jsonl  pair rows, all 120 kept"
    assert lines[1].strip().startswith("pair: has")
    assert any(line == "VERDICT  nothing wrong" for line in lines)
    assert "grades   1 " in out
    assert len(lines) < 20


def test_a_bad_file_fits_on_a_screen_and_names_its_rows(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused rows, a leak, duplicates and an outlier, the gravest first, in fewer than 40 lines."""
    code, out, _ = call(monkeypatch, capsys, "check", "bad.jsonl")
    assert code == 0
    assert len(out.splitlines()) < 40
    levels = [line.split()[0] for line in out.splitlines() if line.startswith(("problem", "warning", "note "))]
    assert levels == sorted(levels, key=["problem", "warning", "note"].index)
    for words in ("bad.jsonl:125", "rows refused", "in several splits", "spreads from the median", "repeat an earlier"):
        assert words in " ".join(out.split())
    _, everything, _ = call(monkeypatch, capsys, "check", "bad.jsonl", "--all")
    assert "rows to look at" in everything
    assert "response_characters" in everything
    assert "█" in everything
    assert len(everything.splitlines()) > len(out.splitlines())


def test_json_is_one_object_with_everything(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The keys of the first version and the survey's, no number that JSON has no form for."""
    code, out, _ = call(monkeypatch, capsys, "check", "bad.jsonl", "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert code == 0
    assert found["read"] == found["kept"] + sum(found["dropped"].values()) == 125
    assert {"file", "dialect", "findings", "notes", "summary", "verdict", "remarks", "worst"} <= set(found)
    assert found["verdict"]["level"] == found["remarks"][0]["level"]
    assert found["summary"]["rows_again"] == 1
    assert found["summary"]["prompts_in_several_splits"] >= 1
    assert {"row", "id", "reason"} == set(found["worst"][0])


def test_strict_says_why(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A refused row first; without one, the gravest remark; exit code 2, after the screen."""
    code, out, err = call(monkeypatch, capsys, "check", "bad.jsonl", "--strict")
    assert code == 2
    assert "VERDICT" in out
    assert "bad.jsonl:125: rejected is empty" in err
    rows = [row for row in bad_rows() if row["rejected"].strip()]
    (here / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, _, err = call(monkeypatch, capsys, "check", "bad.jsonl", "--strict", "--json")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "bad.jsonl: strict: " in err


def test_a_cleaned_copy_counts_what_it_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Duplicates always, the rest by name; groups + dropped = read; the copy is clean of what was removed."""
    code, out, _ = call(monkeypatch, capsys, "check", "bad.jsonl", "--clean", "plain.jsonl")
    assert code == 0
    assert "plain.jsonl: 123 of 124 groups; left out: 1 empty response, 1 duplicates" in out
    code, out, _ = call(
        monkeypatch, capsys, "check", "bad.jsonl", "--clean", "clean.jsonl", "--json",
        "--drop", "leaks,near_responses,outliers",
    )  # fmt: skip
    made = json.loads(out)["clean"]
    manifest = json.loads((here / "clean.manifest.json").read_text(encoding="utf-8"))
    assert code == 0
    assert made == manifest
    asked = {"drop": ["duplicates", "near_responses", "leaks", "outliers"], "ties": "half", "contradiction": "drop"}
    assert {name: value for name, value in manifest["settings"].items() if value} == asked
    assert manifest["groups"] + sum(manifest["dropped"].values()) == 125
    assert manifest["sources"][0]["name"] == "bad.jsonl"
    code, out, _ = call(monkeypatch, capsys, "check", "clean.jsonl", "--json")
    found = json.loads(out)
    assert [remark for remark in found["remarks"] if remark["level"] in ("problem", "warning")] == []
    assert len(read_groups("clean.jsonl")[0]) == manifest["groups"]


def test_where_a_copy_cannot_go_is_said_before_the_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is read for an output that is refused anyway."""
    monkeypatch.setattr("marginkit.data.sources.read_groups", lambda *args, **options: pytest.fail("was read"))
    code, _, err = call(monkeypatch, capsys, "check", "good.jsonl", "--clean", "good.jsonl")
    assert (code, err.count("\n")) == (2, 1)


def test_a_leaf_of_a_tree_is_no_fault(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message that nobody answered is left out and counted, but no reason to warn, nor for --strict."""
    told = {"message_tree_id": "t", "rank": None, "lang": "en", "deleted": False}
    said = [
        ("1", None, "prompter", "Name a fruit."),
        ("2", "1", "assistant", "Apple."),
        ("3", "1", "assistant", "Fig!"),
    ]
    rows = [*said, ("4", "2", "prompter", "Another one?")]
    keys = ("message_id", "parent_id", "role", "text")
    lines = [json.dumps(told | dict(zip(keys, row, strict=True))) for row in rows]
    (here / "tree.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, out, _ = call(monkeypatch, capsys, "check", "tree.jsonl", "--strict", "--json")
    found = json.loads(out)
    assert (code, found["dropped"]) == (0, {"no answers": 1})
    assert [remark for remark in found["remarks"] if remark["level"] in ("problem", "warning")] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drop", "leaks"], "add --clean OUT.jsonl"),
        (["--clean", "x.jsonl", "--drop", "leak"], "did you mean leaks?"),
        (["--clean", "good.jsonl"], "would replace what it is made from"),
        (["--clean", "x.csv"], "name a .jsonl file"),
        (["--max-length", "10"], "name a --tokenizer too"),
        (["--tokenizer", "nowhere.json"], "no file nowhere.json"),
        (["--against", "nothing.jsonl"], "nothing.jsonl: no such file"),
    ],
)
def test_bad_options_are_one_line(
    words: list[str], message: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and the way out; nothing is written."""
    code, _, err = call(monkeypatch, capsys, "check", "good.jsonl", *words)
    assert code == 2
    assert message in err.strip().splitlines()[-1]
    assert sorted(path.name for path in here.iterdir()) == ["bad.jsonl", "good.jsonl"]


def test_tokens_and_another_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tokenizer the limit is checked; with another file its prompts are looked for."""
    fresh_tokenizer([" ".join(WORDS)] * 4, 400).save_pretrained(here / "tokenizer")
    code, out, err = call(
        monkeypatch, capsys, "check", "good.jsonl", "--tokenizer", "tokenizer", "--max-length", "60",
        "--against", "bad.jsonl", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)["summary"]
    assert found["tokens"]["max_length"] == 60
    assert found["tokens"]["groups_over_max_length"] > 0
    assert found["against"]["bad.jsonl"]["prompts"] == 120


def test_text_of_the_data_cannot_drive_the_terminal(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences and markup in ids and texts are shown, not obeyed."""
    rows = [row | {"id": f"[red]\x1b[31m{n}"} for n, row in enumerate(good_rows())]
    rows[0]["rejected"] = rows[0]["chosen"] + "."
    (here / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for words in (["check", "odd.jsonl"], ["check", "odd.jsonl", "--all"]):
        _, out, _ = call(monkeypatch, capsys, *words)
        assert "\x1b" not in out
        assert "[red]" in out
