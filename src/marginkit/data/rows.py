"""What the readers of all layouts share: the rules of a reading, and the columns every row may have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from marginkit.data import checks
from marginkit.data.checks import RowRefused, shown
from marginkit.data.splits import text_digest
from marginkit.records import Content, Group, Response, Turn, content_text

Row = Mapping[str, Any]
Contradiction = Literal["drop", "keep", "trust_label", "trust_grade"]
Ties = Literal["half", "label", "drop"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The policies a reading goes by, and where remarks on kept rows go."""

    ties: Ties
    contradiction: Contradiction
    warn: Callable[[str, str, str], None]
    rename_response: Callable[[Row], Row]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a row takes where it says nothing itself."""

    id: str
    source: str | None
    split: str | None


def label(value: object) -> str | None:
    """An id or a name: strings as they are, other values as JSON, nothing as None."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        raise RowRefused("not JSON", f"a name is {shown(value)}", "name things by strings") from None


def _tools(value: object) -> tuple[Mapping[str, Any], ...] | None:
    if isinstance(value, str) and value.strip():  # Arrow cannot hold tools of different shapes: they come as JSON text
        try:
            value = json.loads(value)
        except ValueError:
            raise RowRefused("unreadable tools", f"tools is {shown(value)}", "give a JSON list of objects") from None
    if not value:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowRefused("unreadable tools", f"tools is {shown(value)}", "give a list of objects, or null")
    return tuple(value)


def finish(row: Row, origin: Origin, prompt: Content, responses: tuple[Response, ...], **rest: Any) -> Group:
    """Add the columns all layouts share; a group is all text or all chat turns, never a mixture."""
    system = checks.text(row["system"], "system") if row.get("system") else ""
    chat = bool(system) or isinstance(prompt, tuple) or any(isinstance(r.turns, tuple) for r in responses)
    if chat:
        turns = prompt if isinstance(prompt, tuple) else (Turn("user", prompt),)
        if system and turns[0].role != "system":
            turns = (Turn("system", system), *turns)
        elif system and turns[0].content != system:
            rule = f"system is {shown(system)}, but the prompt has another system turn"
            raise RowRefused("two system turns", rule, "keep one of them")
        prompt = turns
        responses = tuple(
            r if isinstance(r.turns, tuple) else replace(r, turns=(Turn("assistant", r.turns),)) for r in responses
        )
    return Group(
        id=label(row.get("id")) or origin.id,
        prompt=prompt,
        responses=responses,
        tools=_tools(row.get("tools")),
        source=label(row.get("source")) or origin.source,
        subset=label(row.get("subset")),
        split=label(row.get("split")) or origin.split,
        cluster=label(row.get("cluster")) or text_digest(prompt),
        **rest,
    )


def same(left: Response, right: Response) -> bool:
    """Whether two responses say the same."""
    if isinstance(left.turns, str) or isinstance(right.turns, str):
        return content_text(left.turns).strip() == content_text(right.turns).strip()
    return left.turns == right.turns
