"""What a judge's answer says; an answer that does not say it clearly is unread, never guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from marginkit.data.judged import clipped_logit
from marginkit.judges.templates import Ask

_MASS = 0.5  # of the next token, on the labels: under it the judge was about to say something else
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_NUMBER = r"(-?\d+(?:\.\d+)?)(?!\d|\.\d|\s*[-–]\s*\d)"  # "7-8" is no score
_SCORE = re.compile(r"\[\[\s*" + _NUMBER + r"\s*\]\]")
_TWO_SCORES = {
    side: re.compile(r"score of (?:the )?(?:answer )?" + side + r"[\s*_]{0,4}:[\s*_]{0,4}" + _NUMBER, re.IGNORECASE)
    for side in "AB"
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one question.

    Args:
        text: what the judge wrote.
        first: log-probability of the most likely first tokens, by token; None where none were sent.
        finish: why it ended: stop, length ...
        tokens_in: tokens of the question, as the server counted them; None if it did not.
        tokens_out: tokens of the answer.
    """

    text: str
    first: Mapping[str, float] | None = None
    finish: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


class Unread(Exception):
    """The answer does not say what was asked; the message is the reason it is counted under."""


def read(answer: Answer, ask: Ask, scale: tuple[int, int] = (1, 10)) -> float:
    """The number an answer stands for.

    logprobs: logit P(the answer shown first is better), P = e^a / (e^a + e^b) over the labels A and B, clipped
    (`data.judged.CLIP`); a label that is not among the tokens sent has P = 0.
    verdict: 1 for [[A]], -1 for [[B]], 0 for [[C]]. evidence: score of A - score of B. score: the number in [[ ]].
    expected: sum of s P(s) over the score tokens / sum of P(s).

    Args:
        answer: what the judge said.
        ask: the question that it answers.
        scale: lowest and highest score.

    Returns:
        Logits, a vote, or a score on the judge's scale. Pairwise: toward the answer shown first.

    Raises:
        Unread: nothing, or more than one thing, can be read; its message is the reason.

    Example:
        >>> round(read(Answer("A", {"A": -0.25, "B": -1.5}), "logprobs"), 6)
        1.25
        >>> read(Answer("Both name a fruit. [[C]]"), "verdict")
        0.0

    Source: AlpacaEval's weighted preference (log-probabilities of the two labels), MT-bench ([[A]] and [[score]]),
    FairEval (evidence before two scores). Ours: tokens that differ in surrounding blanks are the same label, labels
    must have half of the probability, and two different verdicts in one answer are none.
    """
    if ask in ("logprobs", "expected"):
        if answer.first is None:
            raise Unread("no log-probabilities")
        labels = ["A", "B"] if ask == "logprobs" else [str(s) for s in range(scale[0], scale[1] + 1)]
        masses = _masses(answer.first, labels)
        if not any(masses):
            raise Unread("no label among the tokens")
        if sum(masses) < _MASS:
            raise Unread("little probability on the labels")
        if ask == "expected":
            return sum(int(s) * mass for s, mass in zip(labels, masses, strict=True)) / sum(masses)
        return float(clipped_logit(masses[0] / sum(masses)))
    text = answer.text.rpartition("</think>")[2].partition("<think>")[
        0
    ]  # what a reasoning model thinks aloud is no verdict
    if ask == "verdict":
        found = set(_VERDICT.findall(text))
        return {"A": 1.0, "B": -1.0, "C": 0.0}[_only(found, "verdict", answer)]
    if ask == "score":
        return _in(scale, _only(set(_SCORE.findall(text)), "score", answer))
    scores = {side: _only(set(pattern.findall(text)), "score", answer) for side, pattern in _TWO_SCORES.items()}
    return _in(scale, scores["A"]) - _in(scale, scores["B"])


def _masses(first: Mapping[str, float], labels: list[str]) -> list[float]:
    sums = dict.fromkeys(labels, 0.0)
    for token, logprob in first.items():
        if (label := token.strip()) in sums:
            sums[label] += math.exp(min(logprob, 0.0))
    return list(sums.values())


def _only(found: set[str], what: str, answer: Answer) -> str:
    if len(found) == 1:
        return found.pop()
    if found:
        raise Unread(f"more than one {what}")
    raise Unread("cut short by max_tokens" if answer.finish == "length" else f"no {what}")


def _in(scale: tuple[int, int], text: str) -> float:
    value = float(text)
    if not scale[0] <= value <= scale[1]:
        raise Unread("score off the scale")
    return value
