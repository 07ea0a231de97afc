"""Whatever is done to rows and files: findings or one line of refusal, never a traceback, a hang or a silent drop.

A case is a number: it draws a known layout, changes rows and bytes, writes a file of some kind and reads it.
"""

import csv
import io
import json
import os
import random
import tempfile
import time
from pathlib import Path

import pytest

from marginkit.data import checks, files
from marginkit.data.sources import read_groups
from marginkit.errors import BadInput
from marginkit.groups import write_groups

ROWS = Path(__file__).parent / "schema_rows"
LAYOUTS = [
    [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(ROWS.glob("*.jsonl"))
] + [
    list(csv.DictReader(io.StringIO((ROWS / "arena_human_preference_55k.csv").read_text()))),
    [{"prompt": "p", "chosen": "x", "rejected": "y", "margin": 1.5, "votes": [3, 1, 0], "score_chosen": 4}],
    [{"prompt": "p", "responses": [{"text": "x", "score": 1, "ratings": [1, 2]}], "comparisons": []}],
    [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "[]"}],
    [{"format": "marginkit/1", "id": str(n), "prompt": f"p{n}", "responses": [{"turns": "x", "aspects": {"a": 1}}]}
     for n in range(2)],
]  # fmt: skip
MAPPED = [
    (
        [{"q": {"t": "p"}, "as": [{"body": "x", "rank": 1, "flow": 2}, {"body": "y", "rank": "2"}]}],
        {"prompt": "q.t", "responses": {"from": "as", "text": "body", "score": "-rank", "aspects": {"flow": "flow"}}},
    ),
    (
        [{"q": "p", "l": "x", "r": ["y"], "w": "L", "s": -2.5}],
        {"prompt": "q", "response_a": "l", "response_b": "r.0", "winner": {"from": "w", "a": "L", "b": ["R", 2]},
         "preference": "-s"},
    ),
    ([{"q": "p", "as": ["x", "y"], "rs": [1, 2]}], {"prompt": "q", "responses": {"text": "as", "score": "rs"}}),
    ([{"q": "p", "a": "x", "r": 1}], {"prompt": "q", "responses": {"text": "a", "score": "r"}, "gather": "q"}),
]  # fmt: skip
QUICK, ALL = 1_500, 10_000
LIMITS = {"text": 2_000, "line": 20_000}
SECONDS = 10


def deep(draw):
    value = draw.choice([1, "x", {}])
    for _ in range(draw.choice([5, 60, 400])):
        value = [value] if draw.random() < 0.7 else {"a": value}
    return value


JUNK = [
    lambda draw: None,
    lambda draw: draw.choice([True, False]),
    lambda draw: draw.choice([0, -1, 1, 2, 5, 10, 10**30, -(10**400)]),
    lambda draw: draw.choice([0.0, -0.0, 0.5, float("nan"), float("inf"), 1e308, -1e-320]),
    lambda draw: draw.choice(["", " ", "\n", "\0", "a\0b", "\ud800", "x\udfff", "N/A", "1_0", "nan", "５", "[1", "{}"]),
    lambda draw: "long " * draw.choice([10, 500, 5_000]),
    lambda draw: draw.choice([[], [None], [[]], {}, {"": None}, {"role": "user"}, {"\ud800": 1}, {"a\0": "\0"}]),
    lambda draw: [
        {"role": draw.choice(["user", "assistant", "gpt", None, 3]), "content": draw.choice(["x", None, []])}
    ],
    deep,
    lambda draw: draw.choice(["\n\nHuman: a\n\nAssistant: b", "\n\nHuman:", "a\n<extra_id_1>Assistant\n", "é" * 50]),
]


def places(value, path=()):
    """Every place in a row, the row's own keys twice as often as what is inside."""
    found = []
    if isinstance(value, dict | list) and len(path) < 6:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found += [(*path, key)] * (2 if not path else 1) + places(value[key], (*path, key))
    return found


def within(row, path):
    for key in path:
        row = row[key]
    return row


def change(row, draw):
    """One change of a row, in place."""
    found = places(row)
    if not found:
        return
    path = draw.choice(found)
    holder, key = within(row, path[:-1]), path[-1]
    kind = draw.randrange(9)
    if kind <= 3:
        holder[key] = draw.choice(JUNK)(draw)
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        holder[draw.choice([f"{key}s", f"x_{key}", str(key).upper(), "", "prompt", "responses", "\ud800"])] = (
            holder.pop(key)
        )
    elif kind == 6:
        holder[key] = [holder[key]] if draw.random() < 0.5 else {"a": holder[key]}
    elif kind == 7:
        other = draw.choice(found)
        try:
            value = json.loads(json.dumps(within(row, other)))
        except (KeyError, IndexError, TypeError, ValueError, RecursionError):
            return
        holder[key] = value
    else:
        holder[key] = repr(holder[key])[:3_000]


def changed_rows(draw, layout):
    rows = [json.loads(json.dumps(draw.choice(layout))) for _ in range(draw.randint(1, 5))]
    for number, row in enumerate(rows):
        if draw.random() < 0.5:  # else equal rows are refused as repetitions
            for key in ("prompt", "history", "instruction", "id", "question_id"):
                if isinstance(row.get(key), str):
                    row[key] += f" {number}"
        for _ in range(draw.choice([0, 1, 1, 2, 6])):
            change(row, draw)
    return rows


def changed_bytes(content, draw):
    """What happens to files on their way: cut, joined, flipped, in another encoding."""
    kind = draw.randrange(14)
    at = draw.randrange(len(content) + 1)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + b"\0" * draw.randint(1, 5) + content[at:]
    if kind == 2:
        return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
    if kind == 3:
        return content.replace(b"\n", b"", 1)
    if kind == 4:
        return content.replace(b"\n", b"\r\n\r\n")
    if kind == 5:
        return b"\xef\xbb\xbf" + content
    if kind == 6:
        return content.decode(errors="replace").encode(draw.choice(["utf-16", "utf-16-le", "utf-32", "utf-7"]))
    if kind == 7:
        return (
            content
            + b"\n"
            + draw.choice([b"[" * 60_000, b'{"a":' * 3_000, b"9" * 5_000, b"\xff\xfe", b"\n\n", b"null"])
        )
    if kind == 8:
        return content + b'\n{"prompt": "' + b"x" * (3 * LIMITS["line"]) + b'"}\n' + content
    if kind == 9:
        return content[: at // 2] + content[at:]
    return content


def as_table(rows):
    sink = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(sink)
    writer.writerow(header)
    for row in rows:
        cells = [row.get(key) for key in header]
        writer.writerow([json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in cells])
    return sink.getvalue().encode(errors="surrogatepass")


def write_case(folder, rows, draw):
    """A file of the rows, and how many rows it holds where that is plain."""
    kind = draw.choice(["jsonl", "jsonl", "jsonl", "json", "csv"])
    path = folder / f"case.{kind}"
    if kind == "csv":
        path.write_bytes(changed_bytes(as_table(rows), draw))
        return path, None
    if kind == "json":
        path.write_bytes(changed_bytes(json.dumps(rows).encode(), draw))
        return path, None
    content = changed_bytes(b"\n".join(json.dumps(row).encode() for row in rows), draw)
    path.write_bytes(content)
    return path, sum(1 for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())


def run_case(number, folder):
    """Read one case; what must hold of it is asserted. Returns whether it was read, or refused as a whole."""
    draw = random.Random(number)
    layout, mapping = draw.choice(MAPPED) if draw.random() < 0.1 else (draw.choice(LAYOUTS), None)
    rows = changed_rows(draw, layout)
    options = {
        "mapping": mapping,
        "contradiction": draw.choice(["drop", "keep", "trust_label", "trust_grade"]),
        "ties": draw.choice(["half", "label", "drop"]),
        "contradiction_limit": 1.0,
    }
    source, expected = (rows, len(rows)) if draw.random() < 0.3 else write_case(folder, rows, draw)
    try:
        groups, findings = read_groups(source, **options)
    except BadInput as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert refused
        assert "\n" not in refused
        return False
    assert findings.read == findings.kept + sum(findings.dropped.values())
    assert expected is None or findings.read == expected
    assert bool(len(groups)) == bool(findings.kept)
    assert len(set(groups.column("id"))) == len(groups)
    json.dumps(findings.to_json(), allow_nan=False).encode()
    assert all("\n" not in str(finding) for finding in findings.items)
    if len(groups):
        longest = max(map(len, write_groups(groups, folder / "native.jsonl").read_bytes().split(b"\n")))
        if number % 10 == 0 and longest <= LIMITS["line"]:
            again, told = read_groups(folder / "native.jsonl")
            assert (list(again), told.dropped) == (list(groups), {})
    return True


def run_cases(numbers, folder, monkeypatch):
    monkeypatch.setattr(checks, "TEXT_LIMIT", LIMITS["text"])
    monkeypatch.setattr(files, "LINE_LIMIT", LIMITS["line"])
    read = 0
    for number in numbers:
        began = time.monotonic()
        try:
            read += run_case(number, folder)
        except Exception as error:
            error.add_note(f"case {number}")
            raise
        assert time.monotonic() - began < SECONDS, f"case {number}"
    return read


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in memory where there is one: thousands of small files, and as many scratch files."""
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_cases(folder, monkeypatch):
    read = run_cases(range(QUICK), folder, monkeypatch)
    assert QUICK / 4 < read < QUICK  # most are read with findings, some are refused as a whole


@pytest.mark.slow
def test_all_cases(folder, monkeypatch):
    run_cases(range(QUICK, ALL), folder, monkeypatch)


# ---------------------------------------------------------------------------------------------------------------------
# Named ones


GOOD = {"prompt": "p", "chosen": "x", "rejected": "y"}


def refusal(path):
    with pytest.raises(BadInput) as refused:
        read_groups(path)
    return str(refused.value)


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "UTF-16"), ("utf-32", "UTF-16"), ("utf-32-be", "UTF-32")])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_wide_encoding_is_named(tmp_path, encoding, name, kind):
    mark = b"\0\0\xfe\xff" if encoding == "utf-32-be" else b""
    path = tmp_path / f"a.{kind}"
    path.write_bytes(mark + json.dumps(GOOD).encode(encoding))
    assert refusal(path) == f"a.{kind}: its byte order mark says {name}; save the file as UTF-8"


def test_an_over_long_text_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "TEXT_LIMIT", 10)
    rows = [GOOD | {"chosen": "x" * 10}, GOOD | {"chosen": "x" * 11}, GOOD | {"prompt": [{"role": "user", "content": [
        {"type": "text", "text": "123456"}, {"type": "text", "text": "789012"}]}]}]  # fmt: skip
    _, findings = read_groups(rows)
    assert [str(finding) for finding in findings.items] == [
        "row 2: chosen has 11 characters, above the limit of 10; shorten it or remove the row",
        "row 3: prompt[0].content has 12 characters, above the limit of 10; shorten it or remove the row",
    ]
    native = {"format": "marginkit/1", "id": "a", "prompt": "x" * 11, "responses": [{"turns": "y"}]}
    assert read_groups([native | {"prompt": "p"}, native])[1].dropped == {"over-long text": 1}


def test_an_over_long_line_is_skipped_without_being_held(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "LINE_LIMIT", 100)
    exact = json.dumps(GOOD | {"id": "x" * (100 - len(json.dumps(GOOD | {"id": ""})))})
    assert len(exact) == 100
    last = exact.replace('"chosen": "x"', '"chosen": "z"')
    lines = ["\ufeff" + "w" * 98, json.dumps(GOOD | {"prompt": "first"}), "x" * 3_000_000, exact, "y" * 101, last]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    groups, findings = read_groups(tmp_path / "a.jsonl")
    assert [(group.prompt, group.responses[0].text) for group in groups] == [("first", "x"), ("p", "x"), ("p", "z")]
    assert [str(finding) for finding in findings.items if finding.reason == "over-long line"] == [
        f"a.jsonl:{n}: the line has more than 100 bytes; write one row a line; is it a .json file?" for n in (1, 3, 5)
    ]
    assert findings.warned == {"duplicate id": 1}


def test_characters_that_are_none():
    rows = [GOOD, GOOD | {"chosen": "a\0"}, GOOD | {"rejected": "\udc80"}, GOOD | {"prompt": "\ud800"},
            GOOD | {"subset": "\ud800"}, GOOD | {"chosen": "b", "tools": [{"\ud800": 1}]}]  # fmt: skip
    _, findings = read_groups(rows)
    assert findings.dropped == {"NUL character": 1, "not Unicode": 4}
    assert str(findings.items[0]) == (
        "row 2: chosen holds a NUL character; remove it; is the file in another encoding?"
    )


def test_a_json_file_that_is_too_large_to_hold(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "JSON_LIMIT", 10)
    (tmp_path / "a.json").write_text(json.dumps([GOOD]))
    assert refusal(tmp_path / "a.json") == (
        "a.json: a .json file is read whole, and this one has more than 10 bytes; write one row a line, as .jsonl"
    )
