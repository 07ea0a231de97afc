"""What a row may not be: the rules on single values and texts, and the ledger of what they refused.

A rule raises `RowRefused`; the reader turns it into a `Finding` with its place. One row read is one row kept or one row
dropped under a reason, so that read = kept + dropped always.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from marginkit.records import ROLES, Content, Turn

Severity = Literal["drop", "warn"]
FINDINGS_PER_REASON = 20
TEXT_LIMIT = 10_000_000  # characters of one text
_NO_RULE_BROKEN = ("tie", "no answers", "deleted message")  # ties that are asked to be dropped, leaves of trees


@dataclass(frozen=True, slots=True)
class Finding:
    """One row that broke a rule.

    Args:
        place: file:line, or the row's number.
        reason: the rule's short name; findings are counted by it.
        rule: what is wrong, with the key and the value.
        fix: the way out.
        severity: drop (the row is left out) or warn (it is kept).

    Example:
        >>> print(Finding("a.jsonl:3", "non-finite evidence", "margin is nan", "remove it"))
        a.jsonl:3: margin is nan; remove it
    """

    place: str
    reason: str
    rule: str
    fix: str
    severity: Severity = "drop"

    def __str__(self) -> str:
        return f"{self.place}: {self.rule}; {self.fix}"


@dataclass(slots=True)
class Findings:
    """The ledger of one reading: read == kept + sum(dropped.values()).

    The counts are exact; of each reason only the first 20 findings are kept.

    Args:
        file: what was read.
        dialect: the dialect, or else the layout, that its rows were read as.
        read: input rows seen.
        kept: rows that went into a group; where several make one, there are fewer groups.
        dropped: rows left out, by reason.
        warned: rows kept with a remark, by reason.
        items: the first findings of every reason.
        notes: how columns and evidence were taken.
        recognised: the dialect or layout, and the columns by which it was recognised.

    Example:
        >>> ledger = Findings("a.jsonl", "pair", read=1)
        >>> ledger.add(Finding("a.jsonl:1", "empty response", "chosen is empty", "remove the row"))
        >>> ledger.table()
        [('read', 1), ('kept', 0), ('dropped: empty response', 1)]
    """

    file: str
    dialect: str = ""
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)
    items: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recognised: str = ""

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if it is among the first of its reason."""
        counts = self.dropped if finding.severity == "drop" else self.warned
        counts[finding.reason] = counts.get(finding.reason, 0) + 1
        if counts[finding.reason] <= FINDINGS_PER_REASON:
            self.items.append(finding)

    def note(self, text: str) -> None:
        """Add a note once."""
        if text not in self.notes:
            self.notes.append(text)

    def first(self, reason: str) -> Finding | None:
        """The first finding under a reason."""
        return next((finding for finding in self.items if finding.reason == reason), None)

    @property
    def broken(self) -> dict[str, int]:
        """Rows that broke a rule, by reason: of those left out, all but ties dropped by choice and leaves of trees."""
        return {reason: count for reason, count in self.dropped.items() if reason not in _NO_RULE_BROKEN}

    def table(self) -> list[tuple[str, int]]:
        """Rows of the kept/dropped table: what, and how many."""
        return [
            ("read", self.read),
            ("kept", self.kept),
            *((f"dropped: {reason}", count) for reason, count in self.dropped.items()),
            *((f"warned: {reason}", count) for reason, count in self.warned.items()),
        ]

    def to_json(self) -> dict[str, Any]:
        """A plain dict of everything."""
        names = ("place", "reason", "rule", "fix", "severity")
        return {
            "file": self.file,
            "dialect": self.dialect,
            "recognised": self.recognised,
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "warned": dict(self.warned),
            "findings": [{name: getattr(finding, name) for name in names} for finding in self.items],
            "notes": list(self.notes),
        }


class RowRefused(Exception):
    """A row breaks a rule; the reader adds the place and counts it."""

    def __init__(self, reason: str, rule: str, fix: str) -> None:
        super().__init__(f"{rule}; {fix}")
        self.reason, self.rule, self.fix = reason, rule, fix


def shown(value: object) -> str:
    """A value on one short line.

    Example:
        >>> shown("x" * 100)
        '"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'
    """
    try:
        try:
            text = json.dumps(value[:200] if isinstance(value, str) else value, ensure_ascii=False)
        except (TypeError, ValueError):
            text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        text = f"a {type(value).__name__} that cannot be shown"
    text = " ".join(text.split()).encode(errors="replace").decode()
    return text if len(text) <= 40 else text[:39] + "…"


# ---------------------------------------------------------------------------------------------------------------------
# Evidence


def number(value: object, key: str) -> float | None:
    """A finite number, or None where there is none.

    Raises:
        RowRefused: a bool, a string (numeric or not) or anything else that is no number, and NaN or infinity.

    Example:
        >>> number(4, "margin"), number(None, "margin")
        (4.0, None)
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        fix = "convert it to a number, or use null where there is none"
        raise RowRefused("wrongly typed evidence", f"{key} is {shown(value)}, not a number", fix)
    try:
        plain = float(value)
    except OverflowError:  # an integer too large for a float
        plain = math.inf
    if not math.isfinite(plain):
        raise RowRefused("non-finite evidence", f"{key} is {plain}", "correct it, or use null where there is none")
    return plain


def probability(value: object, key: str) -> float | None:
    """A number in [0, 1], or None."""
    plain = number(value, key)
    if plain is not None and not 0 <= plain <= 1:
        rule = f"{key} is {shown(value)}, outside [0, 1]"
        raise RowRefused("probability outside [0, 1]", rule, f"give P(chosen is better); is {key} in percent?")
    return plain


def weight(value: object, key: str = "weight") -> float:
    """A number >= 0; 1 where there is none."""
    plain = number(value, key)
    if plain is not None and plain < 0:
        raise RowRefused("negative weight", f"{key} is {shown(value)}", "give a weight >= 0 (0 leaves the pair out)")
    return 1.0 if plain is None else plain


def flag(value: object, key: str) -> bool:
    """True, false, 0 or 1; False where there is none."""
    if value is None or isinstance(value, bool) or (isinstance(value, Real) and value in (0, 1)):
        return bool(value)
    raise RowRefused("wrongly typed evidence", f"{key} is {shown(value)}, not true or false", "use true, false or null")


def votes(value: object, key: str = "votes") -> tuple[float, float, float] | None:
    """Counts (for, against, ties) from a list of two or three, or None.

    Example:
        >>> votes([4, 1])
        (4.0, 1.0, 0.0)
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) not in (2, 3):
        fix = "give [for, against] or [for, against, ties]"
        raise RowRefused("wrongly typed evidence", f"{key} is {shown(value)}, not two or three counts", fix)
    counts = [number(count, key) for count in value]
    if any(count is None for count in counts):
        raise RowRefused("wrongly typed evidence", f"{key} is {shown(value)}, with a null count", "use 0 for no votes")
    wins, losses, *rest = [count for count in counts if count is not None]
    ties = rest[0] if rest else 0.0
    if min(wins, losses, ties) < 0:
        raise RowRefused("negative votes", f"{key} is {shown(value)}", "counts are >= 0; correct them")
    if wins + losses + ties == 0:
        raise RowRefused("all-zero votes", f"{key} is {shown(value)}: nobody voted", "use null where nobody voted")
    return wins, losses, ties


def index(value: object, key: str, count: int) -> int:
    """The index of one of `count` responses."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        rule = f"{key} is {shown(value)}, but the group has {count} responses"
        raise RowRefused("index out of range", rule, f"indices run from 0 to {count - 1}")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Texts


def text(value: object, key: str) -> str:
    """A string, or the text of content parts; images and other parts are refused by name."""
    if isinstance(value, str):
        return _readable(value, key)
    if value is None:
        raise RowRefused("missing text", f"{key} is null or missing", "fill it in or remove the row")
    if not isinstance(value, list | tuple):
        raise RowRefused("not text", f"{key} is {shown(value)}, not text", "give a string or chat turns")
    words = []
    for part in value:
        if not isinstance(part, Mapping):
            raise RowRefused("not text", f"{key} is a list with {shown(part)} in it", "give one string or chat turns")
        kind = "image" if part.get("image") is not None else part.get("type")
        if kind != "text":
            rule = f"{key} holds a part of type {shown(kind)}, but marginkit reads text only"
            raise RowRefused("non-text content", rule, "remove the row, or its images")
        words.append(text(part.get("text"), f"{key}.text"))
    return _readable("".join(words), key)


def _readable(said: str, key: str) -> str:
    if len(said) > TEXT_LIMIT:
        rule = f"{key} has {len(said):,} characters, above the limit of {TEXT_LIMIT:,}"
        raise RowRefused("over-long text", rule, "shorten it or remove the row")
    if "\0" in said:
        raise RowRefused("NUL character", f"{key} holds a NUL character", "remove it; is the file in another encoding?")
    return said


def turns(value: Sequence[object], key: str) -> tuple[Turn, ...]:
    """Chat turns with known roles."""
    return tuple(_turn(turn, f"{key}[{number}]") for number, turn in enumerate(value))


def _turn(value: object, key: str) -> Turn:
    if not isinstance(value, Mapping):
        raise RowRefused("malformed turn", f"{key} is {shown(value)}, not a turn", "a turn is {role, content}")
    role, calls, name = value.get("role"), value.get("tool_calls"), value.get("name")
    if role not in ROLES:
        raise RowRefused("unknown role", f"{key}.role is {shown(role)}", f"the roles are {', '.join(ROLES)}")
    if calls is not None and not (isinstance(calls, list | tuple) and all(isinstance(c, Mapping) for c in calls)):
        raise RowRefused("malformed turn", f"{key}.tool_calls is {shown(calls)}", "give a list of objects, or null")
    if name is not None and not isinstance(name, str):
        raise RowRefused("malformed turn", f"{key}.name is {shown(name)}", "give a string, or null")
    content = value.get("content")
    if content is None and calls:  # a turn that only calls tools has no words
        content = ""
    return Turn(role, text(content, f"{key}.content"), tuple(calls) if calls else None, name)


def content(value: object, key: str) -> Content:
    """Text or chat turns.

    Example:
        >>> content([{"role": "user", "content": "Hi"}], "prompt")
        (Turn(role='user', content='Hi', tool_calls=None, name=None),)
    """
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) and "role" in value[0]:
        return turns(value, key)
    return text(value, key)


def prompt(value: object, key: str = "prompt") -> Content:
    """A prompt that is not empty."""
    plain = content(value, key)
    if not (plain if isinstance(plain, tuple) else plain.strip()):
        raise RowRefused("empty prompt", f"{key} is empty", "fill it in or remove the row")
    return plain


def answer(said: Content, key: str) -> Content:
    """Check a response: it has words, and as turns it begins and ends with the assistant.

    Raises:
        RowRefused: the rule it breaks.
    """
    if isinstance(said, str):
        if not said.strip():
            raise RowRefused("empty response", f"{key} is empty", "remove the row")
        return said
    if not said or said[-1].role != "assistant":
        rule = f"{key} does not end with an assistant turn"
        raise RowRefused("no assistant turn at the end", rule, "add the assistant's answer or remove the row")
    if said[0].role != "assistant" or any(turn.role in ("system", "user") for turn in said):
        rule = f"{key} holds a user or system turn"
        raise RowRefused(
            "malformed response", rule, "a response is what the assistant (and its tools) said to the prompt"
        )
    if not any(turn.content.strip() or turn.tool_calls for turn in said):
        raise RowRefused("empty response", f"{key} is empty", "remove the row")
    return said
