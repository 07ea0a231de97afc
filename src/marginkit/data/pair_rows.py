"""Rows of two responses, the better one first: what they say, and whether their evidence agrees with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from marginkit.data import checks
from marginkit.data.checks import RowRefused
from marginkit.data.multi_rows import aspects_of, ratings_of
from marginkit.data.rows import Origin, Row, Rules, finish, label, same
from marginkit.data.transcripts import transcript
from marginkit.records import Content, Group, Pair, Response, Turn


def _divide(chosen: tuple[Turn, ...], rejected: tuple[Turn, ...]) -> int:
    """How many leading turns are the prompt: the longest common prefix after which both go on with the assistant."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and not all(shared < len(chat) and chat[shared].role == "assistant" for chat in (chosen, rejected)):
        shared -= 1
    return shared


def _pair_contents(row: Row) -> tuple[Content, Content, Content]:
    """Prompt, chosen and rejected; a prompt inside the chats is taken out of them."""
    given = row.get("prompt")
    sides = [row.get("chosen"), row.get("rejected")]
    if given is None:
        sides = [
            transcript(side) if isinstance(side, str) and side.startswith("\n\nHuman:") else side for side in sides
        ]
    chosen, rejected = (checks.content(side, key) for side, key in zip(sides, ("chosen", "rejected"), strict=True))
    prompt = None if given is None else checks.prompt(given)
    if isinstance(chosen, tuple) and isinstance(rejected, tuple):
        if isinstance(prompt, tuple) and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
            shared = len(prompt)
        elif chosen[0].role == rejected[0].role == "assistant":
            shared = 0
        else:
            shared = _divide(chosen, rejected)
            asked = chosen[:shared]
            if not asked or any(turn.role in ("system", "user") for turn in (*chosen[shared:], *rejected[shared:])):
                for side, key in ((chosen, "chosen"), (rejected, "rejected")):
                    if side[-1].role != "assistant":
                        checks.answer(side, key)
                rule = "chosen and rejected answer different prompts"
                raise RowRefused("different prompts", rule, "make the turns before the answer equal, or remove the row")
            _expect_prompt(prompt, asked)
            prompt = asked
        chosen, rejected = chosen[shared:], rejected[shared:]
    if prompt is None:
        rule = "prompt is missing, and chosen and rejected hold none"
        raise RowRefused("missing prompt", rule, 'name its column: columns={"<column>": "prompt"}')
    return prompt, checks.answer(chosen, "chosen"), checks.answer(rejected, "rejected")


def _expect_prompt(prompt: Content | None, asked: tuple[Turn, ...]) -> None:
    """A prompt column beside chats that hold their prompt must say the same as they do."""
    wanted = () if prompt is None else (prompt,) if isinstance(prompt, str) else [turn.content for turn in prompt]
    said = {turn.content.strip() for turn in asked}
    if not all(words.strip() in said for words in wanted):
        rule = "the prompt column is not among the turns of chosen and rejected"
        raise RowRefused("different prompts", rule, "correct it or remove the row")


def _signals(pair: Pair, chosen: Response, rejected: Response) -> list[tuple[str, float, str]]:
    """Who speaks for chosen: (name, signed evidence, how to say it), the strongest first."""
    found: list[tuple[str, float, str]] = []
    if pair.votes is not None:
        wins, losses, _ = pair.votes
        found.append(("votes", wins - losses, f"votes {wins:g} for, {losses:g} against"))
    if pair.prob is not None:
        found.append(("prob", pair.prob - 0.5, f"p_chosen {pair.prob:g} < 0.5"))
    if pair.target_gap is not None:
        found.append(("target_gap", pair.target_gap, f"target gap {pair.target_gap:g} < 0"))
    if pair.strength is not None:
        found.append(("strength", pair.strength, f"margin {pair.strength:g} < 0"))
    if chosen.grade is not None and rejected.grade is not None:
        said = f"score_chosen {chosen.grade:g} < score_rejected {rejected.grade:g}"
        found.append(("grade", chosen.grade - rejected.grade, said))
    return found


def _turned(pair: Pair) -> Pair:
    """The same evidence seen from the other response."""
    return replace(
        pair,
        votes=None if pair.votes is None else (pair.votes[1], pair.votes[0], pair.votes[2]),
        prob=None if pair.prob is None else 1 - pair.prob,
        target_gap=None if pair.target_gap is None else -pair.target_gap,
        strength=None if pair.strength is None else -pair.strength,
    )


def _settle(pair: Pair, chosen: Response, rejected: Response, rules: Rules) -> tuple[Pair, Response, Response]:
    """Apply the policy on contradictions and the rule on ties."""
    signals = _signals(pair, chosen, rejected)
    against = [said for _, value, said in signals if value < 0]
    if against:
        rule = f"the evidence contradicts the label ({', '.join(against)})"
        fix = 'correct it, or set contradiction to "keep", "trust_label" or "trust_grade"'
        if rules.contradiction == "drop":
            raise RowRefused("contradiction", rule, fix)
        rules.warn("contradiction", rule, f"kept by contradiction={rules.contradiction}")
        if rules.contradiction == "trust_label":
            return Pair(0, 1, prob=1.0, weight=pair.weight), replace(chosen, grade=None), replace(rejected, grade=None)
        if rules.contradiction == "trust_grade":
            if next(value for _, value, _ in signals if value) < 0:
                pair, chosen, rejected = _turned(pair), rejected, chosen
            signals = _signals(pair, chosen, rejected)
            weaker: dict[str, Any] = {name: None for name, value, _ in signals if value < 0}
            if "grade" in weaker:  # still against after the strongest evidence has spoken: set aside
                chosen, rejected = replace(chosen, grade=None), replace(rejected, grade=None)
                del weaker["grade"]
            pair = replace(pair, **weaker)
    if pair.tie or (signals and signals[0][1] == 0):
        if rules.ties == "drop":
            raise RowRefused("tie", "the evidence is equal", 'set ties to "half" or "label" to keep it')
        pair = replace(pair, tie=rules.ties == "half")
    return pair, chosen, rejected


_FIELDS = {
    side: (f"score_{side}", f"ratings_{side}", f"aspects_{side}", f"{side}_model") for side in ("chosen", "rejected")
}


def _response(row: Row, said: Content, side: str) -> Response:
    score, ratings, aspects, model = _FIELDS[side]
    return Response(
        said,
        grade=checks.number(row.get(score), score),
        ratings=ratings_of(row.get(ratings), ratings),
        aspects=aspects_of(row.get(aspects), aspects),
        model=label(row.get(model)),
    )


def pair_row(row: Row, origin: Origin, rules: Rules) -> Group:
    """One group of two responses and their pair, after the policies on contradictions and ties."""
    prompt, better, worse = _pair_contents(row)
    chosen, rejected = _response(row, better, "chosen"), _response(row, worse, "rejected")
    if same(chosen, rejected):
        raise RowRefused("identical responses", "chosen and rejected are the same", "remove the row")
    pair = Pair(
        chosen=0,
        rejected=1,
        strength=checks.number(row.get("margin"), "margin"),
        votes=checks.votes(row.get("votes")),
        prob=checks.probability(row.get("p_chosen"), "p_chosen"),
        target_gap=checks.number(row.get("target_gap"), "target_gap"),
        weight=checks.weight(row.get("weight")),
        tie=checks.flag(row.get("tie"), "tie"),
    )
    pair, chosen, rejected = _settle(pair, chosen, rejected, rules)
    return finish(row, origin, prompt, (chosen, rejected), pairs=(pair,))
