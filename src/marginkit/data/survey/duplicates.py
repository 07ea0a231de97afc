"""What is there twice: rows, the two responses of a pair, pairs labelled both ways, one answer to many prompts."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.data.survey.nearness import digest64
from marginkit.data.survey.remarks import Level, Remark, Report, Worst, WorstRow, marks_of, share
from marginkit.data.survey.seen import Seen
from marginkit.data.survey.sketches import Frequent

NEAR_RESPONSES = 0.95  # of the characters, by edit distance
_LONGEST = 20_000  # characters compared
_FEW, _MANY = 0.01, 0.05
_REMEMBERED, _PROMPTS_REMEMBERED = 10_000, 64
_CONSTANT_PROMPTS, _CONSTANT_WINS = 20, 0.75


@dataclass(slots=True)
class Repeated:
    """One response text and what became of it: under which prompts, wins and losses (a tie is half of each)."""

    row: int
    id: str
    text: str
    wins: float = 0.0
    losses: float = 0.0
    prompts: set[int] = field(default_factory=set)


class Duplicates:
    """Repetitions, after case, punctuation and white space are set aside.

    rows: the same prompt and the same responses as an earlier row (the reader has already refused what is equal to the
    letter). both ways: of such rows with two responses, those that prefer the other one. near-identical responses: at
    least 95% of the characters of a pair agree (1 - edits / longer length), the first 20,000 compared. constant
    answers: a text under at least 20 prompts that wins three times in four.
    """

    def __init__(self) -> None:
        self.rows, self.ways = array("Q"), array("b")
        self.pairs = self.near = 0
        self.near_rows = array("q")
        self.often: Frequent[int] = Frequent(_REMEMBERED)
        self.repeated: dict[int, Repeated] = {}
        self.worst = Worst()
        self.groups = 0

    def see(self, seen: Seen) -> None:
        """Take one group."""
        self.groups += 1
        self.rows.append(digest64(f"{seen.prompt_key} {sorted(seen.keys)}"))
        self.ways.append(_way(seen))
        self._near(seen)
        self._constant(seen)

    def _near(self, seen: Seen) -> None:
        from rapidfuzz.distance import Levenshtein

        found = 0
        for pair, evidence in zip(seen.pairs, seen.evidence, strict=True):
            self.pairs += 1
            left, right = seen.words[pair.chosen][:_LONGEST], seen.words[pair.rejected][:_LONGEST]
            alike = Levenshtein.normalized_similarity(left, right, score_cutoff=NEAR_RESPONSES)
            if alike < NEAR_RESPONSES:
                continue
            found += 1
            gap = abs(evidence.grade_gap or 0.0)
            what = "are equal but for case and punctuation" if alike == 1 else f"agree in {alike:.1%} of the characters"
            words = f", yet {gap:.3g} grades apart" if gap else ""
            self.worst.offer(gap, seen.row, seen.group.id, f"its two responses {what}{words}")
        self.near += found
        if found and found == len(seen.pairs):
            self.near_rows.append(seen.row)

    def _constant(self, seen: Seen) -> None:
        for number, key in enumerate(seen.keys):
            for gone in self.often.add(key):
                self.repeated.pop(gone, None)
            if key in self.often.counts and key not in self.repeated:
                self.repeated[key] = Repeated(seen.row, seen.group.id, " ".join(seen.texts[number][:200].split())[:60])
        for pair, _ in seen.judged:
            for number, won in ((pair.chosen, 1.0), (pair.rejected, 0.0)):
                known = self.repeated.get(seen.keys[number])
                if known is not None:
                    known.wins += won
                    known.losses += 1 - won
        for key in seen.keys:
            known = self.repeated.get(key)
            if known is not None and len(known.prompts) < _PROMPTS_REMEMBERED:
                known.prompts.add(seen.prompt_key)

    def report(self) -> Report:
        """Figures, remarks, rows, and what `--clean` may remove."""
        again, both_ways, first_both = self._again()
        constant = self._constant_answers()
        facts: dict[str, Any] = {
            "rows_again": len(again),
            "rows_labelled_both_ways": both_ways,
            "near_identical_pairs": self.near,
            "constant_answers": constant,
            "counts_are": "exact"
            if self.often.exact
            else f"exact but for constant answers (the {_REMEMBERED:,} most frequent texts)",
        }
        remarks = [*self._about_rows(len(again), both_ways, first_both), self._about_near(), _about_constant(constant)]
        marks = {
            "duplicates": marks_of(again, self.groups),
            "near_responses": marks_of(np.array(self.near_rows, np.int64), self.groups),
        }
        worst = self.worst.rows() + [
            WorstRow(found["prompts"], found["row"], found["id"], f"one answer to {at_least(found['prompts'])} prompts")
            for found in constant
        ]
        return Report(facts, remarks, worst, marks)

    def _again(self) -> tuple[npt.NDArray[np.int64], int, int]:
        """Rows that repeat an earlier one; how many of them prefer the other response; the first such row, or -1."""
        keys, ways = np.array(self.rows, np.uint64), np.array(self.ways, np.int8)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        again = np.flatnonzero(first[inverse] != np.arange(len(keys)))
        other = again[ways[again] * ways[first[inverse[again]]] < 0]
        return again, len(other), int(other[0]) if len(other) else -1

    def _constant_answers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for key, known in self.repeated.items():
            judged = known.wins + known.losses
            if len(known.prompts) >= _CONSTANT_PROMPTS and judged >= _CONSTANT_PROMPTS:
                rate = known.wins / judged
                if rate >= _CONSTANT_WINS:
                    count = {"responses": self.often.counts[key], "prompts": len(known.prompts), "win_rate": rate}
                    found.append({"row": known.row, "id": known.id, "text": known.text} | count)
        return sorted(found, key=lambda one: -one["prompts"])[:10]

    def _about_rows(self, again: int, both_ways: int, first: int) -> list[Remark]:
        level: Level = "warning" if again > _FEW * self.groups else "note" if again else "ok"
        says = f"{share(again, self.groups)} rows repeat an earlier one but for case, punctuation and white space"
        if not again:
            says = "no row is there twice"
        fix = "--clean OUT leaves them out" if again else ""
        remarks = [Remark("duplicates", level, says, fix)]
        if both_ways:
            says = (
                f"{share(both_ways, self.groups)} rows prefer the other of the same two responses (first: row {first})"
            )
            fix = "merge them as votes, or --clean OUT keeps the first of each"
            remarks.append(Remark("duplicates", "warning", says, fix))
        return remarks

    def _about_near(self) -> Remark:
        if not self.near:
            return Remark("near-identical", "ok", "the responses of every pair differ")
        level: Level = (
            "warning" if self.near > _MANY * self.pairs else "note" if self.near > _FEW * self.pairs else "ok"
        )
        says = f"{share(self.near, self.pairs)} pairs hold two nearly identical responses"
        fix = "little to learn from and easily mislabelled; --clean OUT --drop near_responses leaves such rows out"
        return Remark("near-identical", level, says, fix if level != "ok" else "")


def at_least(prompts: int) -> str:
    """A number of prompts, of which so many were remembered.

    Example:
        >>> at_least(20), at_least(64)
        ('20', '64 or more')
    """
    return f"{prompts} or more" if prompts >= _PROMPTS_REMEMBERED else str(prompts)


def _way(seen: Seen) -> int:
    """Which of two responses is preferred, by their hashes: 1, -1, or 0 where that cannot be said."""
    if len(seen.keys) != 2 or len(seen.pairs) != 1 or seen.pairs[0].tie:
        return 0
    return 1 if seen.keys[seen.pairs[0].chosen] < seen.keys[seen.pairs[0].rejected] else -1


def _about_constant(found: list[dict[str, Any]]) -> Remark:
    if not found:
        return Remark("constant", "ok", "no answer wins everywhere")
    one = found[0]
    says = f'one answer to {at_least(one["prompts"])} prompts wins {one["win_rate"]:.0%}: "{one["text"]}"'
    return Remark("constant", "warning", says, "a grader that can be fooled, or a poisoned source; remove it")
