"""Groups in Arrow columns: whatever the records hold comes back, from any part of a table."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marginkit.errors import RunFailed
from marginkit.group_columns import GROUP_SCHEMA, from_batch, pairs_column, to_batch
from marginkit.groups import Groups, write_groups
from marginkit.records import Comparison, Group, Pair, Rating, Response, Turn

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
NAME = st.none() | TEXT
NUMBER = st.floats(allow_nan=False, width=64)
COUNT = st.integers(0, 3)
JSON = st.dictionaries(TEXT, st.integers(-5, 5) | TEXT | st.lists(TEXT, max_size=2), max_size=2)
TURN = st.builds(
    Turn, st.sampled_from(["user", "assistant"]), TEXT, st.none() | st.lists(JSON, max_size=2).map(tuple), NAME
)
CONTENT = TEXT | st.lists(TURN, max_size=3).map(tuple)
RESPONSE = st.builds(
    Response,
    CONTENT,
    st.none() | NUMBER,
    st.lists(st.builds(Rating, NAME, NUMBER, NAME), max_size=2).map(tuple),
    st.dictionaries(TEXT, NUMBER, max_size=2),
    st.none() | NUMBER,
    NAME,
)
PAIR = st.builds(
    Pair,
    COUNT,
    COUNT,
    st.none() | NUMBER,
    st.none() | st.tuples(NUMBER, NUMBER, NUMBER),
    st.none() | NUMBER,
    st.none() | NUMBER,
    NUMBER,
    st.booleans(),
)
GROUP = st.builds(
    Group,
    TEXT,
    CONTENT,
    st.lists(RESPONSE, max_size=3).map(tuple),
    st.none() | st.lists(JSON, max_size=2).map(tuple),
    st.lists(
        st.builds(Comparison, COUNT, COUNT, NUMBER, NUMBER, NUMBER, NAME, NAME),
        max_size=2,
    ).map(tuple),
    st.lists(PAIR, max_size=3).map(tuple),
    NAME,
    NAME,
    NAME,
    NAME,
)


@settings(deadline=None, max_examples=150)
@given(st.lists(GROUP, max_size=6), st.integers(0, 6), st.integers(0, 6))
def test_groups_come_back_as_they_went_in(groups: list[Group], start: int, length: int) -> None:
    """Through a batch, and through any slice of it: offsets into the lists inside are where mistakes would hide."""
    batch = to_batch(groups)
    assert list(from_batch(batch)) == groups
    assert list(from_batch(batch.slice(start, length))) == groups[start : start + length]


@settings(deadline=None, max_examples=100)
@given(st.lists(GROUP, max_size=5))
def test_the_columns_say_what_row_by_row_would(groups: list[Group]) -> None:
    """The same batch as pyarrow builds from plain rows, value by value."""
    batch = to_batch(groups)
    assert pa.RecordBatch.from_pylist(batch.to_pylist(), schema=GROUP_SCHEMA).equals(batch)
    for group, row in zip(groups, batch.to_pylist(), strict=True):
        assert row["id"] == group.id
        assert [response["grade"] for response in row["responses"]] == [r.grade for r in group.responses]
        assert [pair["votes"] for pair in row["pairs"]] == [p.votes and list(p.votes) for p in group.pairs]
        assert (row["prompt"]["text"], row["prompt"]["turns"] is None) == (
            (group.prompt, True) if isinstance(group.prompt, str) else (None, False)
        )


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(GROUP, st.none() | st.lists(PAIR, max_size=3)), max_size=6))
def test_other_pairs_leave_the_rest_as_it_was(rows: list[tuple[Group, list[Pair] | None]]) -> None:
    """`with_pairs` is `map` and `filter`, without touching a text."""
    groups = Groups.from_iterable([group for group, _ in rows], {"before": 1})
    made = groups.with_pairs([pairs for _, pairs in rows])
    assert list(made) == [replace(group, pairs=tuple(pairs)) for group, pairs in rows if pairs is not None]
    assert made.dropped == {"before": 1}
    assert list(groups) == [group for group, _ in rows]


def test_a_large_table_is_read_in_parts(tmp_path: Path) -> None:
    """Rows beyond the first batch, from a file, a filter, a slice and Parquet."""
    made = [Group(str(n), f"{n}?", (Response("x" * (n % 7), grade=float(n)),)) for n in range(1300)]
    groups = Groups.from_iterable(made)
    assert list(groups) == made
    assert groups[1299] == made[1299]
    assert groups[-2] == made[-2]
    assert list(groups[500:1100]) == made[500:1100]
    assert list(groups[::-300]) == made[::-300]
    odd = groups.filter(lambda group: int(group.id) % 2 == 1, "even")
    assert list(odd) == made[1::2]
    assert odd.dropped == {"even": 650}
    assert list(odd[100:200]) == made[1::2][100:200]
    assert list(Groups.from_parquet(odd.to_parquet(tmp_path / "odd.parquet"))) == made[1::2]


def test_the_pairs_of_no_group() -> None:
    """Nothing in, nothing out, of the right type."""
    assert pairs_column([]).type == GROUP_SCHEMA.field("pairs").type
    assert list(from_batch(to_batch([]))) == []


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was there before stays; the half of the new one goes."""
    target = write_groups([Group("a", "?", (Response("x"),))], tmp_path / "kept.jsonl")
    before = target.read_bytes()

    def endless() -> Iterator[Group]:
        yield Group("b", "?", (Response("y"),))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunFailed, match=r"kept\.jsonl: No space left on device; make room, or name another file"):
        write_groups(endless(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl"]
    assert target.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="elsewhere an open file cannot be removed")
def test_a_process_that_is_cut_off_leaves_no_scratch_file(tmp_path: Path) -> None:
    """Groups are mapped from a file that no folder lists any more: nothing is left to clean up after a kill."""
    code = (
        "import os\nfrom marginkit.groups import Groups\nfrom marginkit.records import Group, Response\n"
        "groups = Groups.from_iterable([Group(str(n), '?', (Response('x'),)) for n in range(600)])\n"
        "odd = groups.filter(lambda group: int(group.id) % 2 == 1, 'even')\n"
        "assert odd[299].id == '599' and groups[0].id == '0'\nos._exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == 7
    assert list(tmp_path.iterdir()) == []
