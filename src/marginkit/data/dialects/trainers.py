"""The column sets that other trainers read: TRL, OpenRLHF, NeMo, ms-swift, LLaMA-Factory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marginkit.data.checks import RowRefused, shown
from marginkit.data.dialects.record import Dialect, coded, entries_hold, held, listed, numeral
from marginkit.data.layouts import ALIASES, COLUMNS
from marginkit.data.rows import Row, Rules

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SHARED = ("id", "split", "subset", "source", "system", "tools", "weight")
_EVIDENCE = tuple(name for name in (*COLUMNS["pair"], *ALIASES) if name not in ("prompt", "chosen", "rejected"))


def _shared(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in _SHARED if row.get(name) is not None}


def _pair(row: Row, prompt: object, chosen: object, rejected: object) -> Row:
    """A pair with all that the pair layout would read beside its texts."""
    beside: dict[str, Any] = {}
    for name in reversed(_EVIDENCE):  # the known names win over the others
        if row.get(name) is not None:
            beside[ALIASES.get(name, name)] = row[name]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | beside


def _unpaired(row: Row, rules: Rules) -> Row:
    good = coded(
        row.get("label"), "label", {True: 1.0, False: 0.0, "True": 1.0, "False": 0.0, "true": 1.0, "false": 0.0}
    )
    said = row.get("completion")
    response = {"turns": said, "score": good}
    return {"prompt": row.get("prompt"), "responses": [response]} | _shared(row)


def _ranked(row: Row, rules: Rules) -> Row:
    """NeMo-RL: a context and its completions by rank, 0 the best."""
    responses = []
    for at, one in enumerate(listed(row.get("completions"), "completions")):
        if not isinstance(one, Mapping):
            raise RowRefused("malformed response", f"completions[{at}] is {shown(one)}", "give {rank, completion}")
        rank = numeral(one.get("rank"), f"completions[{at}].rank")
        reward = numeral(one.get("reward"), f"completions[{at}].reward")
        grade = reward if reward is not None or rank is None else 0.0 - rank
        responses.append({"turns": one.get("completion"), "score": grade})
    return {"prompt": row.get("context"), "responses": responses} | _shared(row)


def _aligner(row: Row, rules: Rules) -> Row:
    return _pair(row, row.get("prompt"), row.get("chosen_response"), row.get("rejected_response"))


def _swift(row: Row, rules: Rules) -> Row:
    chosen, rejected = listed(row.get("messages"), "messages"), row.get("rejected_messages")
    if rejected is not None:
        return _pair(row, None, chosen, listed(rejected, "rejected_messages"))
    said = row.get("rejected_response")
    if not isinstance(said, str):
        raise RowRefused("missing text", f"rejected_response is {shown(said)}", "give a string, or rejected_messages")
    return _pair(row, None, chosen, [*chosen[:-1], {"role": "assistant", "content": said}])


def _alpaca(row: Row, rules: Rules) -> Row:
    """LLaMA-Factory's alpaca form with ranking: instruction, input and history, then two outputs."""
    head, more = row.get("instruction"), row.get("input")
    asked = f"{head}\n{more}" if isinstance(head, str) and isinstance(more, str) and more.strip() else head
    if not row.get("history"):
        return _pair(row, asked, row.get("chosen"), row.get("rejected"))
    turns: list[dict[str, Any]] = []
    for at, exchange in enumerate(listed(row["history"], "history")):
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise RowRefused("malformed row", f"history[{at}] is {shown(exchange)}", "give [user, assistant]")
        turns += [{"role": "user", "content": exchange[0]}, {"role": "assistant", "content": exchange[1]}]
    return _pair(row, [*turns, {"role": "user", "content": asked}], row.get("chosen"), row.get("rejected"))


def _spoken(value: object, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RowRefused("malformed turn", f"{key} is {shown(value)}, not a turn", "a turn is {from, value}")
    speaker = value.get("from", value.get("role"))
    return {"role": coded(speaker, f"{key}.from", _SPEAKERS), "content": value.get("value", value.get("content"))}


def _sharegpt(row: Row, rules: Rules) -> Row:
    """LLaMA-Factory's sharegpt (or messages) form with ranking."""
    name = "conversations" if row.get("conversations") is not None else "messages"
    turns = [_spoken(turn, f"{name}[{at}]") for at, turn in enumerate(listed(row.get(name), name))]
    return _pair(row, turns, *([_spoken(row.get(side), side)] for side in ("chosen", "rejected")))


def _one_turn(rows: Sequence[Row]) -> bool:
    return any(isinstance(row.get(side), Mapping) for row in rows for side in ("chosen", "rejected"))


DIALECTS = (
    Dialect(
        "trl-unpaired",
        "multi-response",
        ("prompt", "completion", "label"),
        ("trl-lib/kto-mix-14k",),
        _SHARED,
        translate=_unpaired,
        key=lambda row: held(row, "prompt"),
        notes=(
            "grade = 1 where label is true, 0 where it is false; consecutive rows of one prompt make a group, and only "
            "groups with both labels make pairs",
        ),
    ),
    Dialect(
        "nemo-rl",
        "multi-response",
        ("context", "completions"),
        reads=_SHARED,
        translate=_ranked,
        marks=lambda columns, rows: entries_hold(rows, "completions", "rank", "completion"),
        notes=("grade = reward where it is given, else -rank (0 is best)",),
    ),
    Dialect(
        "nemo-aligner",
        "pair",
        ("prompt", "chosen_response", "rejected_response"),
        reads=_EVIDENCE,
        translate=_aligner,
        notes=("grade = chosen_reward and rejected_reward",),
    ),
    Dialect(
        "ms-swift",
        "pair",
        ("messages", "rejected_response"),
        reads=("rejected_messages", *_EVIDENCE),
        translate=_swift,
    ),
    Dialect(
        "ms-swift-messages",
        "pair",
        ("messages", "rejected_messages"),
        reads=_EVIDENCE,
        translate=_swift,
    ),
    Dialect(
        "llama-factory",
        "pair",
        ("instruction", "chosen", "rejected"),
        reads=("input", "history", *_EVIDENCE),
        translate=_alpaca,
        marks=lambda columns, rows: "prompt" not in columns,
    ),
    Dialect(
        "llama-factory-sharegpt",
        "pair",
        ("conversations", "chosen", "rejected"),
        reads=_EVIDENCE,
        translate=_sharegpt,
        marks=lambda columns, rows: _one_turn(rows),
    ),
    Dialect(
        "llama-factory-messages",
        "pair",
        ("messages", "chosen", "rejected"),
        reads=_EVIDENCE,
        translate=_sharegpt,
        marks=lambda columns, rows: _one_turn(rows),
    ),
)
