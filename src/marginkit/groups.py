"""Groups in bulk: an immutable sequence in a memory-mapped Arrow file, and the native form on disk."""

from __future__ import annotations

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

from marginkit.records import Comparison, Content, Group, Pair, Rating, Response, Turn, group_to_json

_ROWS_PER_BATCH = 512

_TURN = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string()), ("name", pa.string())])
_CONTENT = pa.struct([("text", pa.string()), ("turns", pa.list_(_TURN))])
_RESPONSE = pa.struct(
    [
        ("content", _CONTENT),
        ("grade", pa.float64()),
        (
            "ratings",
            pa.list_(pa.struct([("rater", pa.string()), ("value", pa.float64()), ("aspect", pa.string())])),
        ),
        ("aspects", pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))),
        ("utility", pa.float64()),
        ("model", pa.string()),
    ]
)
_COMPARISON = pa.struct(
    [
        ("i", pa.int32()),
        ("j", pa.int32()),
        ("wins_i", pa.float64()),
        ("wins_j", pa.float64()),
        ("ties", pa.float64()),
        ("rater", pa.string()),
        ("order", pa.string()),
    ]
)
_PAIR = pa.struct(
    [
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("strength", pa.float64()),
        ("votes", pa.list_(pa.float64())),
        ("prob", pa.float64()),
        ("target_gap", pa.float64()),
        ("weight", pa.float64()),
        ("tie", pa.bool_()),
    ]
)
GROUP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", _CONTENT),
        ("responses", pa.list_(_RESPONSE)),
        ("tools", pa.string()),
        ("comparisons", pa.list_(_COMPARISON)),
        ("pairs", pa.list_(_PAIR)),
        ("source", pa.string()),
        ("subset", pa.string()),
        ("split", pa.string()),
        ("cluster", pa.string()),
    ]
)


def _content_to_arrow(content: Content) -> dict[str, Any]:
    if isinstance(content, str):
        return {"text": content, "turns": None}
    turns = [
        {
            "role": turn.role,
            "content": turn.content,
            "tool_calls": None if turn.tool_calls is None else json.dumps([dict(call) for call in turn.tool_calls]),
            "name": turn.name,
        }
        for turn in content
    ]
    return {"text": None, "turns": turns}


def _content_from_arrow(row: Mapping[str, Any]) -> Content:
    if row["text"] is not None:
        text: str = row["text"]
        return text
    return tuple(
        Turn(
            turn["role"],
            turn["content"],
            None if turn["tool_calls"] is None else tuple(json.loads(turn["tool_calls"])),
            turn["name"],
        )
        for turn in row["turns"]
    )


def _group_to_arrow(group: Group) -> dict[str, Any]:
    return {
        "id": group.id,
        "prompt": _content_to_arrow(group.prompt),
        "responses": [
            {
                "content": _content_to_arrow(response.turns),
                "grade": response.grade,
                "ratings": [{"rater": r.rater, "value": r.value, "aspect": r.aspect} for r in response.ratings],
                "aspects": [{"name": name, "value": value} for name, value in response.aspects.items()],
                "utility": response.utility,
                "model": response.model,
            }
            for response in group.responses
        ],
        "tools": None if group.tools is None else json.dumps([dict(tool) for tool in group.tools]),
        "comparisons": [{name: getattr(c, name) for name in Comparison.__slots__} for c in group.comparisons],
        "pairs": [{name: getattr(p, name) for name in Pair.__slots__} for p in group.pairs],
        "source": group.source,
        "subset": group.subset,
        "split": group.split,
        "cluster": group.cluster,
    }


def _group_from_arrow(row: Mapping[str, Any]) -> Group:
    return Group(
        id=row["id"],
        prompt=_content_from_arrow(row["prompt"]),
        responses=tuple(
            Response(
                turns=_content_from_arrow(response["content"]),
                grade=response["grade"],
                ratings=tuple(Rating(r["rater"], r["value"], r["aspect"]) for r in response["ratings"]),
                aspects={aspect["name"]: aspect["value"] for aspect in response["aspects"]},
                utility=response["utility"],
                model=response["model"],
            )
            for response in row["responses"]
        ),
        tools=None if row["tools"] is None else tuple(json.loads(row["tools"])),
        comparisons=tuple(Comparison(**comparison) for comparison in row["comparisons"]),
        pairs=tuple(
            Pair(**{**pair, "votes": None if pair["votes"] is None else tuple(pair["votes"])}) for pair in row["pairs"]
        ),
        source=row["source"],
        subset=row["subset"],
        split=row["split"],
        cluster=row["cluster"],
    )


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
    """Write rows to an Arrow file batch by batch and map it back: memory stays at one batch."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batched(rows, _ROWS_PER_BATCH):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def scratch_file(owner: object, suffix: str) -> Path:
    """A temporary file that lives as long as `owner`."""
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
        table = stream_to_arrow(map(_group_to_arrow, groups), GROUP_SCHEMA, scratch_file(scratch, ".arrow"))
        return cls(table, dropped, scratch)

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
            return Groups(self._table.take(pa.array(rows, pa.int64())), self.dropped, self._keep)
        position = range(len(self))[index]
        return _group_from_arrow(self._table.slice(position, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Group]:
        for batch in self._table.to_batches(max_chunksize=_ROWS_PER_BATCH):
            yield from map(_group_from_arrow, batch.to_pylist())

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
        return Groups(self._table.filter(pa.array(mask, pa.bool_())), dropped, self._keep)

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


def write_groups(groups: Iterable[Group], path: str | Path) -> Path:
    """Write the native form, one JSON object a line; every command reads it back without loss.

    Args:
        groups: any iterable of `Group`.
        path: a `.jsonl` file; it appears whole or not at all.

    Returns:
        The path.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    with partial.open("w", encoding="utf-8") as sink:
        for group in groups:
            sink.write(json.dumps(group_to_json(group), ensure_ascii=False, allow_nan=False) + "\n")
    partial.replace(target)
    return target
