"""Groups in bulk: an immutable sequence in a memory-mapped Arrow file, and the native form on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from marginkit.errors import RunFailed
from marginkit.group_columns import GROUP_SCHEMA as GROUP_SCHEMA
from marginkit.group_columns import from_batch, pairs_column, to_batch
from marginkit.records import Group, Pair, group_to_json

_ROWS_PER_BATCH = 512
_Row = TypeVar("_Row")


def batched(rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    """Consecutive lists of up to `size` rows."""
    batch: list[_Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def stream_to_arrow(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, path: Path) -> pa.Table:
    """Write rows to a scratch file batch by batch and map it back: memory stays at one batch."""
    made = (pa.RecordBatch.from_pylist(batch, schema=schema) for batch in batched(rows, _ROWS_PER_BATCH))
    return _to_file(made, schema, path)


def _to_file(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> pa.Table:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if os.name == "posix":
        path.unlink()  # the mapping keeps the rows, and a process that is killed leaves no file behind
    return table


def scratch_file(owner: object, suffix: str) -> Path:
    """A temporary file, removed at the latest when `owner` is gone."""
    handle, name = tempfile.mkstemp(prefix="marginkit-", suffix=suffix)
    os.close(handle)
    path = Path(name)
    weakref.finalize(owner, path.unlink, missing_ok=True)
    return path


class _Scratch:
    """Keeps a temporary file alive while a table is mapped to it."""


class Groups(Sequence[Group]):
    """An immutable sequence of `Group`, memory-mapped from an Arrow file.

    Args:
        table: rows in `GROUP_SCHEMA`.
        dropped: groups left out on the way here, by reason.

    Example:
        >>> from marginkit.records import Response
        >>> groups = Groups.from_iterable([Group("a", "Name a fruit.", (Response("Apple."), Response("Carrot.")))])
        >>> len(groups), groups[0].responses[1].text
        (1, 'Carrot.')
        >>> groups.filter(lambda group: len(group.responses) > 2, reason="too few responses").dropped
        {'too few responses': 1}
    """

    def __init__(self, table: pa.Table, dropped: Mapping[str, int] | None = None, keep: object = None) -> None:
        self._table = table
        self._keep = keep  # the scratch file behind the table, if any
        self.dropped: dict[str, int] = dict(dropped or {})

    @classmethod
    def from_iterable(cls, groups: Iterable[Group], dropped: Mapping[str, int] | None = None) -> Groups:
        """Stream groups into a scratch file and map it."""
        scratch = _Scratch()
        batches = map(to_batch, batched(groups, _ROWS_PER_BATCH))
        return cls(_to_file(batches, GROUP_SCHEMA, scratch_file(scratch, ".arrow")), dropped, scratch)

    @classmethod
    def from_parquet(cls, path: str | Path) -> Groups:
        """Read groups that `to_parquet` wrote."""
        return cls(pq.read_table(path, schema=GROUP_SCHEMA, memory_map=True))

    def to_parquet(self, path: str | Path) -> Path:
        """Write all rows to one Parquet file."""
        pq.write_table(self._table, path)
        return Path(path)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> Groups: ...
    def __getitem__(self, index: int | slice) -> Group | Groups:
        if isinstance(index, slice):
            rows = range(len(self))[index]
            if rows.step == 1:
                return Groups(self._table.slice(rows.start, len(rows)), self.dropped, self._keep)
            return Groups(self._table.take(pa.array(rows, pa.int64())), self.dropped, self._keep)
        position = range(len(self))[index]
        return next(from_batch(_one_batch(self._table.slice(position, 1))))

    def __iter__(self) -> Iterator[Group]:
        for batch in self._table.to_batches(max_chunksize=_ROWS_PER_BATCH):
            yield from from_batch(batch)

    def __repr__(self) -> str:
        responses = sum(pc.list_value_length(self._table["responses"]).to_pylist())
        pairs = sum(pc.list_value_length(self._table["pairs"]).to_pylist())
        return f"Groups({len(self)} groups, {responses} responses, {pairs} pairs)"

    def map(self, function: Callable[[Group], Group]) -> Groups:
        """Apply `function` to every group."""
        return Groups.from_iterable(map(function, self), self.dropped)

    def filter(self, keep: Callable[[Group], bool], reason: str) -> Groups:
        """Keep the groups for which `keep` is true; the others are counted under `reason`."""
        mask = [keep(group) for group in self]
        dropped = dict(self.dropped)
        if not all(mask):
            dropped[reason] = dropped.get(reason, 0) + mask.count(False)
        return self._only(self._table, mask, dropped)

    def with_pairs(self, pairs: Iterable[Sequence[Pair] | None], dropped: Mapping[str, int] | None = None) -> Groups:
        """The same groups with other pairs; where there is None the group is left out. No text is copied or read.

        Args:
            pairs: for every group in order its pairs, or None.
            dropped: what was left out, by reason, in place of this `dropped`.

        Example:
            >>> from marginkit.records import Response
            >>> groups = Groups.from_iterable([Group(name, "?", (Response("x"), Response("y"))) for name in "ab"])
            >>> [(group.id, len(group.pairs)) for group in groups.with_pairs([None, [Pair(1, 0)]])]
            [('b', 1)]
        """
        keep: list[bool] = []

        def columns() -> Iterator[pa.RecordBatch]:
            for batch in batched(pairs, _ROWS_PER_BATCH):
                keep.extend(own is not None for own in batch)
                yield pa.RecordBatch.from_arrays([pairs_column([own or () for own in batch])], schema=schema)

        scratch, schema = _Scratch(), pa.schema([GROUP_SCHEMA.field("pairs")])
        made = _to_file(columns(), schema, scratch_file(scratch, ".arrow"))
        where = self._table.schema.get_field_index("pairs")
        table = self._table.set_column(where, GROUP_SCHEMA.field("pairs"), made["pairs"])
        return self._only(table, keep, self.dropped if dropped is None else dropped, scratch)

    def _only(self, table: pa.Table, keep: Sequence[bool], dropped: Mapping[str, int], made: object = None) -> Groups:
        """Some rows of a table, copied batch by batch to a file of their own: memory stays at one batch."""
        if all(keep):
            return Groups(table, dropped, (self._keep, made))

        def some() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
                yield batch.filter(pa.array(keep[start : start + len(batch)], pa.bool_()))
                start += len(batch)

        scratch = _Scratch()
        return Groups(_to_file(some(), GROUP_SCHEMA, scratch_file(scratch, ".arrow")), dropped, scratch)

    def column(self, name: str) -> list[Any]:
        """One column of plain values: id, source, subset, split or cluster."""
        values: list[Any] = self._table[name].to_pylist()
        return values

    def fingerprint(self) -> str:
        """Sixteen hex digits of the content: equal groups in equal order have equal fingerprints."""
        digest = hashlib.sha256()
        for group in self:
            digest.update(json.dumps(group_to_json(group), sort_keys=True, ensure_ascii=False).encode())
        return digest.hexdigest()[:16]


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.to_batches()[0]


def write_groups(groups: Iterable[Group], path: str | Path) -> Path:
    """Write the native form, one JSON object a line; every command reads it back without loss.

    Args:
        groups: any iterable of `Group`.
        path: a `.jsonl` file; it appears whole or not at all.

    Returns:
        The path.

    Raises:
        RunFailed: the disk is full or the file cannot be written; nothing is left of it.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as sink:
            for group in groups:
                sink.write(json.dumps(group_to_json(group), ensure_ascii=False, allow_nan=False) + "\n")
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunFailed(f"{target}: {error.strerror or error}; make room, or name another file") from None
    return target
