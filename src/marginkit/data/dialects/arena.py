"""Votes on two models' conversations: Chatbot Arena in four releases, and the human judgments of MT-bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marginkit.data.checks import RowRefused, shown
from marginkit.data.dialects.record import Dialect, Side, coded, duel, held, listed, numeral
from marginkit.data.rows import Row, Rules

BOTH_BAD = "tie: both bad"
_WINNERS: Mapping[str, tuple[int | None, bool]] = {
    "model_a": (0, False),
    "model_b": (1, False),
    "tie": (None, False),
    "tie (bothbad)": (None, True),
    "both_bad": (None, True),
    "bothbad": (None, True),
}
_VOTES: Mapping[int | None, tuple[int, int, int]] = {0: (1, 0, 0), 1: (0, 1, 0), None: (0, 0, 1)}


def _chat(value: object, key: str) -> Sequence[Mapping[str, Any]]:
    turns = listed(value, key)
    for at, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise RowRefused("malformed turn", f"{key}[{at}] is {shown(turn)}, not a turn", "a turn is {role, content}")
    return turns


def _same_history(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> None:
    """Two conversations make a pair where all but the last answer is shared."""
    asked = [[turn.get("content") for turn in chat if turn.get("role") == "user"] for chat in (first, second)]
    if asked[0] == asked[1] and len(asked[0]) > 1 and first[:-1] != second[:-1]:
        rule = f"the user's {len(asked[0])} turns are the same, but the models' earlier answers differ"
        raise RowRefused("different histories", rule, "a pair needs one prompt: remove the row, or keep its first turn")


def _vote(row: Row, first: Any, second: Any, better: int | None, bad: bool, rules: Rules) -> dict[str, Any]:
    _same_history(first, second)
    if bad:
        rules.warn(BOTH_BAD, "the vote is that both responses are bad", "kept as a tie, in subset 'both bad'")
    votes = [0, 0, 1] if better is None else [1, 0, 0]
    sides = [Side(chat, model=row.get(f"model_{letter}")) for chat, letter in ((first, "a"), (second, "b"))]
    made = duel(None, sides, better, votes=votes)
    return made | ({"subset": "both bad" if bad else "tie"} if better is None else {})


def _conversations(row: Row, rules: Rules) -> Row:
    better, bad = coded(row.get("winner"), "winner", _WINNERS)
    first, second = (_chat(row.get(name), name) for name in ("conversation_a", "conversation_b"))
    return _vote(row, first, second, better, bad, rules) | {"id": row.get("question_id") or row.get("id")}


def _one_hot(row: Row) -> int | None:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    marks = [numeral(row.get(name), name) for name in names]
    if sorted(mark or 0.0 for mark in marks) != [0.0, 0.0, 1.0]:
        rule = f"{', '.join(names)} are {shown(marks)}"
        raise RowRefused("unknown code", rule, "exactly one of them is 1")
    return (0, 1, None)[marks.index(1.0)]


def _lists(row: Row, rules: Rules) -> Row:
    """The 55k release: the user's turns and each model's answers as JSON lists in strings."""
    asked = listed(row.get("prompt"), "prompt")
    chats = []
    for name in ("response_a", "response_b"):
        answers = listed(row.get(name), name)
        if len(answers) != len(asked):
            raise RowRefused("malformed row", f"{len(asked)} prompts, but {len(answers)} in {name}", "remove the row")
        if None in answers or None in asked:
            raise RowRefused("missing text", f"a turn of prompt or {name} is null", "remove the row")
        roles = (("user", asked), ("assistant", answers))
        chats.append([{"role": role, "content": said[at]} for at in range(len(asked)) for role, said in roles])
    return _vote(row, chats[0], chats[1], _one_hot(row), False, rules) | {"id": row.get("id")}


def _mt_bench(row: Row, rules: Rules) -> Row:
    """One judge's word on the answers to one turn; the second turn answers two different histories."""
    better, bad = coded(row.get("winner"), "winner", _WINNERS)
    turn = coded(numeral(row.get("turn"), "turn"), "turn", {1.0: 1, 2.0: 2})
    chats = [_chat(row.get(name), name)[: 2 * turn] for name in ("conversation_a", "conversation_b")]
    _same_history(*chats)
    if len(chats[0]) != 2 * turn or len(chats[1]) != 2 * turn or chats[0][:-1] != chats[1][:-1]:
        rule = f"conversation_a and conversation_b do not answer the same {turn} turns"
        raise RowRefused("different prompts", rule, "remove the row")
    wins_i, wins_j, ties = _VOTES[better]
    vote = {"i": 0, "j": 1, "wins_i": wins_i, "wins_j": wins_j, "ties": ties, "rater": row.get("judge")}
    if bad:
        rules.warn(BOTH_BAD, "the vote is that both responses are bad", "kept as a tie")
    models = (row.get("model_a"), row.get("model_b"))
    responses = [{"turns": [chat[-1]], "model": model} for chat, model in zip(chats, models, strict=True)]
    return {"prompt": list(chats[0][:-1]), "responses": responses, "comparisons": [vote]}


_NOTES = (
    "a row is one vote; where both are bad it is a tie, and subset says which kind of tie it is",
    "conversations that differ before the last answer have no common prompt: refused and counted",
)

DIALECTS = (
    Dialect(
        "arena",
        "pair",
        ("model_a", "model_b", "winner", "conversation_a", "conversation_b"),
        (
            "lmsys/chatbot_arena_conversations",
            "lmarena-ai/arena-human-preference-100k",
            "lmarena-ai/arena-human-preference-140k",
        ),
        ("question_id", "id"),
        translate=_conversations,
        repeats=True,
        notes=_NOTES,
    ),
    Dialect(
        "arena-55k",
        "pair",
        ("model_a", "model_b", "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        ("lmarena-ai/arena-human-preference-55k", "lmsys/lmsys-arena-human-preference-55k"),
        ("id",),
        translate=_lists,
        repeats=True,
        notes=("a row is one vote", _NOTES[1]),
    ),
    Dialect(
        "mt-bench",
        "multi-response",
        ("question_id", "model_a", "model_b", "winner", "judge", "conversation_a", "conversation_b", "turn"),
        ("lmsys/mt_bench_human_judgments",),
        translate=_mt_bench,
        marks=lambda columns, rows: not {"anony", "tstamp", "language"} & columns,
        key=lambda row: held(row, "question_id", "turn"),
        repeats=True,
        notes=(
            "consecutive rows of one question and turn make one group, each judge's word a comparison",
            "second turns answer two different histories: refused and counted",
        ),
    ),
)
