"""The text records: what a file of graded feedback says, before any model has seen it.

`Group` is one prompt with its responses and the evidence about them. Absent is None, never 0. Nothing here knows a
model, a tokenizer or torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
NATIVE_FORMAT = "marginkit/1"


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
    """Votes between responses `i` and `j` of one group (counts), by one rater or all of them.

    `order` names the two in the order in which they were shown: "1,0" for response 1 first.
    """

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


# -- JSON: the native form, one object a line, lossless


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

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Estimate:
        """What `to_json` gave.

        Example:
            >>> Estimate.from_json(Estimate(0.5, math.nan, math.nan, 3, 0).to_json())
            Estimate(value=0.5, low=nan, high=nan, n=3, clusters=0)
        """
        value, low, high = (
            math.nan if content.get(name) is None else float(content[name]) for name in ("value", "low", "high")
        )
        return cls(value, low, high, int(content.get("n") or 0), int(content.get("clusters") or 0))

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"
