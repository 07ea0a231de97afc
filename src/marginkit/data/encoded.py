"""Encoded groups: what a group is once it is tokens. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from marginkit.data.grades import pair_evidence
from marginkit.groups import scratch_file, stream_to_arrow
from marginkit.records import Group

PAIR_NUMBERS = ("prob", "target_gap", "strength", "weight")
_FLOATS = pa.list_(pa.float64())
_INTS = pa.list_(pa.int32())
ENCODED_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # index into the groups it came from
        ("id", pa.string()),
        ("prompt_ids", _INTS),
        ("response_ids", pa.list_(_INTS)),
        ("grade", _FLOATS),
        ("utility", _FLOATS),
        ("chosen", _INTS),
        ("rejected", _INTS),
        ("prob", _FLOATS),
        ("target_gap", _FLOATS),
        ("strength", _FLOATS),
        ("weight", _FLOATS),
        ("tie", pa.list_(pa.bool_())),
    ]
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The lengths of a group, in tokens: what decides what it costs."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest response."""
        return self.prompt + max(self.responses)

    @property
    def packed(self) -> int:
        """Tokens of the prompt and all responses, each once."""
        return self.prompt + sum(self.responses)

    @property
    def padded(self) -> int:
        """Tokens of one row a response, each with the prompt and padded to the longest."""
        return len(self.responses) * self.longest

    def part(self, members: Sequence[int]) -> Shape:
        """The same prompt with some of the responses."""
        return Shape(self.prompt, tuple(self.responses[number] for number in members))


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One group in tokens. NaN stands for absent in the number columns.

    Args:
        row: index into the groups it came from.
        id: the group's id.
        prompt_ids: tokens of the prompt, once.
        response_ids: tokens of each response, its end token included.
        grade: [K] dataset units.
        utility: [K] logits.
        chosen: [P] index of the better response.
        rejected: [P] index of the worse one.
        prob: [P] observed P(the label is right).
        target_gap: [P] logits.
        strength: [P] dataset units.
        weight: [P].
        tie: [P].
        ref_logp: [K] nats under the reference, once joined in.
        rm_head: [K] logits of another reward model, once joined in.
    """

    row: int
    id: str
    prompt_ids: list[int]
    response_ids: list[list[int]]
    grade: list[float]
    utility: list[float]
    chosen: list[int]
    rejected: list[int]
    prob: list[float]
    target_gap: list[float]
    strength: list[float]
    weight: list[float]
    tie: list[bool]
    ref_logp: list[float] | None = None
    rm_head: list[float] | None = None

    @property
    def shape(self) -> Shape:
        """Its lengths."""
        return Shape(len(self.prompt_ids), tuple(map(len, self.response_ids)))

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest response."""
        return self.shape.longest

    def part(self, members: Sequence[int]) -> EncodedGroup:
        """Some of the responses, to be scored: without grades and pairs, which concern all of them."""
        absent = [float("nan")] * len(members)
        bare: dict[str, Any] = {name: [] for name in ("chosen", "rejected", "tie", *PAIR_NUMBERS)}
        return replace(
            self,
            response_ids=[self.response_ids[number] for number in members],
            grade=absent,
            utility=absent,
            ref_logp=None,
            rm_head=None,
            **bare,
        )


class EncodedGroups(Sequence[EncodedGroup]):
    """Encoded groups in a memory-mapped Arrow table, with the scores of other models joined in as columns."""

    def __init__(self, table: pa.Table, keep: object = None) -> None:
        self._table = table
        self._keep = keep

    @classmethod
    def from_iterable(cls, groups: Iterable[EncodedGroup]) -> EncodedGroups:
        """Stream encoded groups into a scratch file and map it."""
        scratch = type("Scratch", (), {})()
        rows = ({name: getattr(group, name) for name in ENCODED_SCHEMA.names} for group in groups)
        return cls(stream_to_arrow(rows, ENCODED_SCHEMA, scratch_file(scratch, ".arrow")), scratch)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return EncodedGroups(self._table.slice(*_bounds(index, len(self))), self._keep)
        return EncodedGroup(**self._table.slice(range(len(self))[index], 1).to_pylist()[0])

    def __iter__(self) -> Iterator[EncodedGroup]:
        for batch in self._table.to_batches(max_chunksize=512):
            for row in batch.to_pylist():
                yield EncodedGroup(**row)

    def with_ref_logp(self, values: Sequence[Sequence[float]]) -> EncodedGroups:
        """The same groups with reference log-probabilities, one list a group."""
        return self._with_scores("ref_logp", values)

    def with_rm_head(self, values: Sequence[Sequence[float]]) -> EncodedGroups:
        """The same groups with the scores of another reward model, one list a group."""
        return self._with_scores("rm_head", values)

    def _with_scores(self, name: str, values: Sequence[Sequence[float]]) -> EncodedGroups:
        table = self._table.drop_columns([name]) if name in self._table.column_names else self._table
        return EncodedGroups(table.append_column(name, pa.array(values, _FLOATS)), self._keep)

    def rows(self) -> list[int]:
        """Of every group, its index into the groups it came from."""
        rows: list[int] = self._table["row"].to_pylist()
        return rows

    def shapes(self) -> list[Shape]:
        """The lengths of every group: what a batch plan needs."""
        shapes: list[Shape] = []
        for batch in self._table.select(["prompt_ids", "response_ids"]).to_batches(max_chunksize=512):
            prompts = pc.list_value_length(batch["prompt_ids"]).to_pylist()
            responses = batch["response_ids"]
            lengths = iter(pc.list_value_length(responses.flatten()).to_pylist())
            for prompt, count in zip(prompts, pc.list_value_length(responses).to_pylist(), strict=True):
                shapes.append(Shape(prompt, tuple(next(lengths) for _ in range(count))))
        return shapes


def _bounds(index: slice, size: int) -> tuple[int, int]:
    rows = range(size)[index]
    if rows.step != 1:
        raise IndexError("encoded groups are sliced in steps of one")
    return rows.start, len(rows)


@dataclass(slots=True)
class EncodingReport:
    """What encoding did: counts, so that nothing is cut or left out unseen."""

    max_length: int = 0
    groups: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    cut_prompts: int = 0
    eos_added: int = 0
    boundary_merged: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    longest: int = 0
    p95: int = 0

    def in_words(self) -> str:
        """One line for the log."""
        words = [f"{self.kept} of {self.groups} groups", f"{self.prompt_tokens + self.response_tokens} tokens"]
        words.append(f"longest {self.longest} of at most {self.max_length}")
        words += [f"{count} dropped ({reason})" for reason, count in self.dropped.items()]
        words += [f"{self.cut_prompts} prompts cut on the left"] if self.cut_prompts else []
        words += [f"{self.boundary_merged} prompts shortened to the common prefix"] if self.boundary_merged else []
        return ", ".join(words)

    def to_json(self) -> dict[str, Any]:
        """Plain counts."""
        return {name: getattr(self, name) for name in self.__slots__}


def encode_labels(row: int, group: Group) -> EncodedGroup:
    """What the data says of a group, before it is tokens: as many empty responses as it has."""
    evidence = [pair_evidence(group, pair) for pair in group.pairs]
    return EncodedGroup(
        row=row,
        id=group.id,
        prompt_ids=[],
        response_ids=[[] for _ in group.responses],
        grade=[_nan(response.grade) for response in group.responses],
        utility=[_nan(response.utility) for response in group.responses],
        chosen=[pair.chosen for pair in group.pairs],
        rejected=[pair.rejected for pair in group.pairs],
        prob=[_nan(found.prob) for found in evidence],
        target_gap=[_nan(pair.target_gap) for pair in group.pairs],
        strength=[_nan(pair.strength) for pair in group.pairs],
        weight=[pair.weight for pair in group.pairs],
        tie=[found.tie for found in evidence],
    )


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
