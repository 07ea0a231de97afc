"""The text records: what a file of graded feedback says, before any model has seen it.

`Group` is one prompt with its responses and the evidence about them; `Groups` is an immutable sequence of them in a
memory-mapped Arrow file. Absent is None, never 0. Nothing here knows a model, a tokenizer or torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROLES = ("system", "user", "assistant", "tool")
NATIVE_FORMAT = "marginkit/1"
_ROWS_PER_BATCH = 512


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a chat.

    Args:
        role: system, user, assistant or tool.
        content: the text of the turn.
        tool_calls: the calls an assistant turn makes, as the chat template expects them.
        name: the name of the tool or speaker.
    """

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] | None = None
    name: str | None = None


Content = str | tuple[Turn, ...]
"""A prompt or a response: plain text, or chat turns."""


def content_text(content: Content) -> str:
    r"""The words of a prompt or response, without chat markup.

    Example:
        >>> content_text((Turn("user", "Name a fruit."), Turn("assistant", "Apple.")))
        'Name a fruit.\nApple.'
    """
    if isinstance(content, str):
        return content
    return "\n".join(turn.content for turn in content)


@dataclass(frozen=True, slots=True)
class Rating:
    """What one rater said of one response, on the dataset's own scale."""

    rater: str | None
    value: float
    aspect: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What the assistant said, and what was said about it.

    Args:
        turns: the response, as text or as the turns that follow the prompt.
        grade: dataset units; the mean of `ratings` where only those are given.
        ratings: the single ratings behind the grade.
        aspects: grades by aspect (helpfulness, ...), dataset units.
        utility: logits; filled only where the evidence is natively a logit or a probability.
        model: who wrote it.
    """

    turns: Content
    grade: float | None = None
    ratings: tuple[Rating, ...] = ()
    aspects: Mapping[str, float] = field(default_factory=dict)
    utility: float | None = None
    model: str | None = None

    @property
    def text(self) -> str:
        """The words of the response."""
        return content_text(self.turns)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Votes between responses `i` and `j` of one group (counts), by one rater or all of them."""

    i: int
    j: int
    wins_i: float
    wins_j: float
    ties: float = 0.0
    rater: str | None = None
    order: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses of one group, the better one first, with the evidence that says so.

    Args:
        chosen: index of the better response.
        rejected: index of the worse one.
        strength: dataset units, >= 0 toward chosen.
        votes: counts (for chosen, for rejected, ties).
        prob: P(the label is right), where the evidence is a probability.
        target_gap: logits, where the evidence is one.
        weight: importance, >= 0.
        tie: the evidence is equal; the order means nothing.
    """

    chosen: int
    rejected: int
    strength: float | None = None
    votes: tuple[float, float, float] | None = None
    prob: float | None = None
    target_gap: float | None = None
    weight: float = 1.0
    tie: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt with its responses and the evidence about them.

    Args:
        id: unique in its file.
        prompt: text or chat turns.
        responses: K >= 1 of them.
        tools: the tools offered with the prompt, as the chat template expects them.
        comparisons: votes between responses.
        pairs: pairs given by the data, or made by `make_pairs`.
        source: the file or dataset it came from.
        subset: a slice the data names (a category, a benchmark subset).
        split: train, dev, test ... where the data or a split rule says.
        cluster: the unit of splitting and of the bootstrap.
    """

    id: str
    prompt: Content
    responses: tuple[Response, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    comparisons: tuple[Comparison, ...] = ()
    pairs: tuple[Pair, ...] = ()
    source: str | None = None
    subset: str | None = None
    split: str | None = None
    cluster: str | None = None


# -- # JSON: the native form, one object a line, lossless


def _drop_absent(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None and value != [] and value != {}}


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    calls = None if turn.tool_calls is None else [dict(call) for call in turn.tool_calls]
    fields: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if calls is not None:
        fields["tool_calls"] = calls
    if turn.name is not None:
        fields["name"] = turn.name
    return fields


def _turn_from_json(row: Mapping[str, Any]) -> Turn:
    calls = row.get("tool_calls")
    return Turn(row["role"], row["content"], None if calls is None else tuple(calls), row.get("name"))


def _content_to_json(content: Content) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_turn_to_json(turn) for turn in content]


def _content_from_json(value: Any) -> Content:
    return value if isinstance(value, str) else tuple(_turn_from_json(turn) for turn in value)


def _response_to_json(response: Response) -> dict[str, Any]:
    return {"turns": _content_to_json(response.turns)} | _drop_absent(
        {
            "grade": response.grade,
            "ratings": [
                _drop_absent({"rater": rating.rater, "value": rating.value, "aspect": rating.aspect})
                for rating in response.ratings
            ],
            "aspects": dict(response.aspects),
            "utility": response.utility,
            "model": response.model,
        }
    )


def _response_from_json(row: Mapping[str, Any]) -> Response:
    return Response(
        turns=_content_from_json(row["turns"]),
        grade=row.get("grade"),
        ratings=tuple(
            Rating(rating.get("rater"), rating["value"], rating.get("aspect")) for rating in row.get("ratings") or ()
        ),
        aspects=dict(row.get("aspects") or {}),
        utility=row.get("utility"),
        model=row.get("model"),
    )


def group_to_json(group: Group) -> dict[str, Any]:
    """The native form of a group: a plain dict that `group_from_json` reads back to an equal group."""
    fields: dict[str, Any] = {
        "format": NATIVE_FORMAT,
        "id": group.id,
        "prompt": _content_to_json(group.prompt),
        "responses": [_response_to_json(response) for response in group.responses],
    }
    return fields | _drop_absent(
        {
            "tools": None if group.tools is None else [dict(tool) for tool in group.tools],
            "comparisons": [
                _drop_absent({name: getattr(comparison, name) for name in Comparison.__slots__})
                for comparison in group.comparisons
            ],
            "pairs": [
                _drop_absent(
                    {name: getattr(pair, name) for name in Pair.__slots__}
                    | {"votes": None if pair.votes is None else list(pair.votes)}
                )
                for pair in group.pairs
            ],
            "source": group.source,
            "subset": group.subset,
            "split": group.split,
            "cluster": group.cluster,
        }
    )


def group_from_json(row: Mapping[str, Any]) -> Group:
    """Read the native form.

    Raises:
        KeyError, TypeError: a field is missing, unknown or of the wrong kind; the reader turns it into a finding.
    """
    tools = row.get("tools")
    return Group(
        id=row["id"],
        prompt=_content_from_json(row["prompt"]),
        responses=tuple(_response_from_json(response) for response in row["responses"]),
        tools=None if tools is None else tuple(tools),
        comparisons=tuple(Comparison(**comparison) for comparison in row.get("comparisons") or ()),
        pairs=tuple(
            Pair(**{**pair, "votes": None if pair.get("votes") is None else tuple(pair["votes"])})
            for pair in row.get("pairs") or ()
        ),
        source=row.get("source"),
        subset=row.get("subset"),
        split=row.get("split"),
        cluster=row.get("cluster"),
    )


# -- # Arrow: how groups are kept

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


# -- # What follows training: two tables and the numbers drawn from them. They need no model and no torch.

_WHERE = [("split", pa.string()), ("subset", pa.string()), ("source", pa.string()), ("cluster", pa.string())]

RESPONSES_SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("response", pa.int32()),
        *_WHERE,
        ("model", pa.string()),
        ("length", pa.int32()),  # response tokens
        ("chars", pa.int32()),
        ("logp", pa.float64()),  # nats, summed over response tokens
        ("ref_logp", pa.float64()),
        ("head", pa.float64()),
        ("reward", pa.float64()),  # logits: what the model says of the response
        ("grade", pa.float64()),
        ("utility", pa.float64()),
    ]
)
PAIRS_SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("pair", pa.int32()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        *_WHERE,
        ("reward_chosen", pa.float64()),
        ("reward_rejected", pa.float64()),
        ("gap", pa.float64()),  # logits: how far apart the model puts them
        ("prob", pa.float64()),  # sigmoid(gap): the model's P(chosen is better)
        ("label_prob", pa.float64()),  # observed P(chosen is better): vote share or given probability; null if none
        ("target_gap", pa.float64()),  # logits: how far apart the recipe's target puts them; null if none
        ("tie", pa.bool_()),
        ("weight", pa.float64()),
        ("length_chosen", pa.int32()),
        ("length_rejected", pa.int32()),
        ("chars_chosen", pa.int32()),
        ("chars_rejected", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of graded data: one row a response, one row a pair.

    Args:
        responses: a table in `RESPONSES_SCHEMA`.
        pairs: a table in `PAIRS_SCHEMA`.
    """

    responses: pa.Table
    pairs: pa.Table

    def save(self, folder: str | Path) -> Path:
        """Write `responses.parquet` and `pairs.parquet` into `folder`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.responses, target / "responses.parquet")
        pq.write_table(self.pairs, target / "pairs.parquet")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Scores:
        """Read what `save` wrote."""
        source = Path(folder)
        return cls(pq.read_table(source / "responses.parquet"), pq.read_table(source / "pairs.parquet"))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its uncertainty: a 95% bootstrap interval over clusters.

    Args:
        value: the estimate.
        low: lower end of the interval (NaN where it could not be drawn).
        high: upper end.
        n: how many pairs (or rows) it rests on.
        clusters: how many independent units; 0 if the interval is over pairs because there are too few clusters.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def to_json(self) -> dict[str, float | int | None]:
        """Plain numbers; NaN becomes None."""

        def plain(number: float) -> float | None:
            return None if math.isnan(number) else number

        return {
            "value": plain(self.value),
            "low": plain(self.low),
            "high": plain(self.high),
            "n": self.n,
            "clusters": self.clusters,
        }

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"
