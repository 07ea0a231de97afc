"""Conversations in many rows: the message trees of OpenAssistant, and the utterances of PRISM."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from marginkit.data.checks import RowRefused, shown
from marginkit.data.dialects.record import Dialect, Unfolded, held, numeral
from marginkit.data.rows import Row, Rules

_DEEPEST = 1000
_ROLES = {"prompter": "user", "assistant": "assistant"}
_DELETED = ("deleted message", "the message is marked as deleted", "nothing to do")


def _labels(row: Row) -> dict[str, float]:
    """Labels by name: the flat release has three lists, the trees have an object of {value, count}."""
    labels = row.get("labels") or {}
    if not isinstance(labels, Mapping):
        return {}
    names, values = labels.get("name"), labels.get("value")
    if isinstance(names, list | tuple) and isinstance(values, list | tuple):
        pairs = list(zip(names, values, strict=False))
    else:
        pairs = [(name, said.get("value") if isinstance(said, Mapping) else None) for name, said in labels.items()]
    return {str(name): number for name, value in pairs if (number := numeral(value, f"labels.{name}")) is not None}


def _reply(row: Row) -> dict[str, Any]:
    rank = numeral(row.get("rank"), "rank")
    score = None if rank is None else 0.0 - rank
    return {"text": row.get("text"), "score": score, "aspects": _labels(row), "model": row.get("model_name")}


def _path(at: int, rows: Sequence[Row], place: Mapping[str, int]) -> list[dict[str, Any]] | None:
    """The turns from the root down to a message; None where one is missing, deleted or not a message."""
    turns: list[dict[str, Any]] = []
    for _ in range(_DEEPEST):
        row = rows[at]
        role = row.get("role")
        if row.get("deleted") or not isinstance(role, str) or role not in _ROLES:
            return None
        turns.append({"role": _ROLES[role], "content": row.get("text")})
        parent = row.get("parent_id")
        if parent is None:
            return turns[::-1]
        if not isinstance(parent, str) or parent not in place:
            return None
        at = place[parent]
    return None  # a ring


def _messages(rows: Sequence[Row], rules: Rules) -> Unfolded:
    """One group for each message of the user that was answered; its responses are the replies."""
    place = {row["message_id"]: at for at, row in enumerate(rows) if isinstance(row.get("message_id"), str)}
    replies: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        parent = row.get("parent_id")
        if row.get("deleted"):
            yield RowRefused(*_DELETED), [at]
        elif row.get("role") == "assistant" and isinstance(parent, str) and parent in place:
            replies.setdefault(place[parent], []).append(at)
    for asked, answers in replies.items():
        if rows[asked].get("deleted"):  # counted above; its replies answer nothing
            yield (
                RowRefused("broken tree", "the message that it answers is marked as deleted", "nothing to do"),
                answers,
            )
            continue
        turns = _path(asked, rows, place)
        used = [asked, *answers]
        if turns is None:
            rule = "a message above it is missing, deleted or without a role"
            yield RowRefused("broken tree", rule, "keep the rows of a tree together"), used
            continue
        responses = []
        for at in answers:
            try:
                responses.append(_reply(rows[at]))
            except RowRefused as refused:
                yield refused, [at]
                used.remove(at)
        if responses:
            row = {"id": rows[asked]["message_id"], "prompt": turns, "responses": responses}
            yield row | {"subset": rows[asked].get("lang")}, used


def _flattened(tree: Row) -> Iterator[Row]:
    waiting: deque[tuple[object, object]] = deque([(tree.get("prompt"), None)])
    while waiting:
        message, parent = waiting.popleft()
        if not isinstance(message, Mapping):
            raise RowRefused("malformed row", f"a message is {shown(message)}", "a message is {text, role, replies}")
        replies = message.get("replies") or []
        if not isinstance(replies, list | tuple):
            raise RowRefused("malformed row", f"replies is {shown(replies)}", "give a list of messages")
        yield {**message, "parent_id": parent}
        waiting.extend((reply, message.get("message_id")) for reply in replies)


def _tree(rows: Sequence[Row], rules: Rules) -> Unfolded:
    (tree,) = rows
    try:
        flat = list(_flattened(tree))
    except RowRefused as refused:
        yield refused, [0]
        return
    for made, _ in _messages(flat, rules):
        yield made, [0]


def _turn_of(row: Row) -> float | None:
    return numeral(row.get("turn"), "turn")


def _prism(rows: Sequence[Row], rules: Rules) -> Unfolded:
    """One group for each turn of a conversation; what came before it are the answers that the user chose."""
    turns: dict[float, list[int]] = {}
    for at, row in enumerate(rows):
        try:
            turn = _turn_of(row)
            if turn is None:
                raise RowRefused("missing evidence", "turn is null", "number the turns from 0")
            numeral(row.get("score"), "score")
        except RowRefused as refused:
            yield refused, [at]
        else:
            turns.setdefault(turn, []).append(at)
    history: list[dict[str, Any]] | None = []
    for expected, turn in enumerate(sorted(turns)):
        used = turns[turn]
        asked = rows[used[0]].get("user_prompt")
        if history is None or expected != turn:
            rule = f"turn {turn:g} goes on from an answer that is not among the rows"
            yield RowRefused("broken conversation", rule, "keep the rows of a conversation together"), used
            history = None
            continue
        responses = [
            {
                "text": rows[at].get("model_response"),
                "score": numeral(rows[at].get("score"), "score"),
                "model": rows[at].get("model_name"),
            }
            for at in used
        ]
        prompt = [*history, {"role": "user", "content": asked}]
        row = {"id": rows[used[0]].get("interaction_id"), "prompt": prompt, "responses": responses}
        yield row | {"subset": rows[used[0]].get("conversation_type")}, used
        chosen = next((rows[at].get("model_response") for at in used if rows[at].get("if_chosen") is True), None)
        history = None if chosen is None else [*prompt, {"role": "assistant", "content": chosen}]


DIALECTS = (
    Dialect(
        "oasst",
        "multi-response",
        ("message_id", "parent_id", "text", "role", "rank", "message_tree_id"),
        ("OpenAssistant/oasst1", "OpenAssistant/oasst2"),
        ("lang", "labels", "deleted", "model_name"),
        key=lambda row: held(row, "message_tree_id"),
        unfold=_messages,
        notes=(
            "grade = -rank (0 is best); labels (quality, ...) are kept as aspects",
            "each message of the user with its replies is one group; a message without a reply is left out",
        ),
    ),
    Dialect(
        "oasst-trees",
        "multi-response",
        ("message_tree_id", "prompt"),
        reads=("tree_state",),
        unfold=_tree,
        marks=lambda columns, rows: any(isinstance(row.get("prompt"), Mapping) for row in rows),
        notes=("grade = -rank (0 is best); a row is a tree, each answered message of the user in it one group",),
    ),
    Dialect(
        "prism",
        "multi-response",
        ("interaction_id", "conversation_id", "turn", "user_prompt", "model_response", "score"),
        ("HannahKirk/prism-alignment",),
        ("model_name", "if_chosen", "conversation_type"),
        key=lambda row: held(row, "conversation_id"),
        unfold=_prism,
        notes=(
            "grade = score (1 to 100) of one user; a later turn has the chosen answers of the earlier ones before it",
        ),
    ),
)
