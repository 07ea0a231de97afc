"""Files that others wrote: every row has a place, and what is no row is refused with it."""

import json

import pytest

from marginkit.errors import BadInput
from marginkit.evaluation.judgment_files import read_rows


def test_lines_and_lists_are_read_with_their_places(tmp_path):
    lines, listed = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text('\ufeff{"x": 1}\n\n  {"x": "two\\u2028"}\n', encoding="utf-8")
    listed.write_text(json.dumps([{"x": 3}, {"x": "a, ] b"}], indent=1) + "\n")
    rows = read_rows([lines, listed])
    assert [row.value["x"] for row in rows] == [1, "two\u2028", 3, "a, ] b"]
    assert [row.where.removeprefix(str(tmp_path)) for row in rows] == [
        "/a.jsonl:1",
        "/a.jsonl:3",
        "/b.json:2 (entry 1)",
        "/b.json:5 (entry 2)",
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"[]", "is empty"),
        (b'{"x": 1}\n{"x": \n', "f:2: is no JSON"),
        (b'{"x": 1} {"x": 2}\n', "f:1: something follows"),
        (b'{"x": NaN}\n', "f:1: NaN is no number"),
        (b'{"x": -Infinity}\n', "f:1: -Infinity is no number"),
        (b"3\n", "f:1: is a number, not a JSON object"),
        (b"null\n", "f:1: is null, not"),
        (b'[{"x": 1},\n {"x": 1}\n', "f:2 \\(entry 2\\): is not followed"),
        (b'[{"x": 1},\n', "f:2: the list does not end"),
        (b'[{"x": 1}] 7', "f:1: the list does not end"),
        (b'[{"x": 1} {"x": 2}]', "f:1 \\(entry 1\\): is not followed by a comma"),
        (b'[{"x": 1},\n{"x": NaN}]', "f:2 \\(entry 2\\): NaN"),
        (b'[{"x": 1},\n[2]]', "f:2 \\(entry 2\\): is a list"),
        (b'{"x": "\xff"}\n', "byte 7 is not UTF-8"),
        (b"[" * 100_000, "f:1"),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(tmp_path, content, says):
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says) as refused:
        read_rows(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="Is a directory"):
        read_rows(tmp_path)


def test_fields_are_checked_with_the_place(tmp_path):
    path = tmp_path / "f"
    path.write_text('{"t": "x", "n": 2, "b": true, "i": 7, "z": null, "e": "\\u001b[2J"}\n')
    [row] = read_rows(path)
    assert (row.text("t"), row.number("n"), row.identifier("i"), row.identifier("t")) == ("x", 2.0, 7, "x")
    assert row.text("e") == "\x1b[2J"  # a text may hold anything, a name what can be shown
    for wrong in (
        lambda: row.text("n"),
        lambda: row.number("t"),
        lambda: row.number("b"),
        lambda: row.number("z"),
        lambda: row.identifier("b"),
        lambda: row.text("absent"),
        lambda: row.name("e"),
        lambda: row.identifier("e"),
    ):
        with pytest.raises(BadInput, match="f:1: ") as refused:
            wrong()
        assert str(refused.value).isprintable()
