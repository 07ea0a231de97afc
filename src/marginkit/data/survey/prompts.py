"""Prompts that meet again: near-duplicates across rows, across splits, in known benchmarks and in other files."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.data.splits import FEW_PROMPTS
from marginkit.data.survey.known import Benchmark, known_prompts, prompt_digests
from marginkit.data.survey.nearness import NearIndex, Rows, connected, digest64, normalised, overlap, pieces
from marginkit.data.survey.remarks import Level, Remark, Report, WorstRow, marks_of, share
from marginkit.data.survey.seen import Seen
from marginkit.groups import Groups
from marginkit.records import content_text

NEAR_PROMPTS = 0.8  # overlap of windows
VERIFIED = 30_000  # candidates that are compared text by text
_MANY = 0.01
_FEW_ROWS = 5
_ITSELF = 0.9


class Prompts:
    """The prompts of one file by hash and signature: 8 + 48 bytes a row, whatever their length.

    Args:
        groups: where the texts are read again, to verify what the signatures suggest.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._keys = array("Q")
        self.near = NearIndex()

    def add(self, prompt: str, key: int) -> None:
        """Take the normalised prompt of the next row."""
        self._keys.append(key)
        self.near.add(prompt)

    @classmethod
    def of(cls, groups: Groups) -> Prompts:
        """All prompts of some groups."""
        made = cls(groups)
        for group in groups:
            words = normalised(content_text(group.prompt))
            made.add(words, digest64(words))
        return made

    @property
    def keys(self) -> npt.NDArray[np.uint64]:
        """One hash a row."""
        return np.array(self._keys, np.uint64)

    def near_pairs(self, seed: int = 0) -> tuple[Rows, float]:
        """Pairs of rows whose prompts are near-duplicates, not equal; and the share of the candidates looked at."""
        _, first = np.unique(self.keys, return_index=True)
        return _verified(self, self, self.near.candidates(np.sort(first)), seed)

    def near_in(self, other: Prompts, seed: int = 0) -> tuple[Rows, float]:
        """Pairs (row here, row of `other`) of near-duplicates, equal ones included."""
        return _verified(self, other, self.near.candidates_with(other.near), seed)


def _verified(mine: Prompts, other: Prompts, candidates: Rows, seed: int) -> tuple[Rows, float]:
    looked_at = 1.0
    if len(candidates) > VERIFIED:
        looked_at = VERIFIED / len(candidates)
        candidates = candidates[np.sort(np.random.default_rng(seed).choice(len(candidates), VERIFIED, replace=False))]
    kept = []
    for piece in pieces(candidates, 2_000):
        left, right = _texts(mine.groups, piece[:, 0]), _texts(other.groups, piece[:, 1])
        kept += [pair for pair in piece if overlap(left[int(pair[0])], right[int(pair[1])]) >= NEAR_PROMPTS]
    return np.array(kept, np.int64).reshape(-1, 2), looked_at


def _texts(groups: Groups, rows: npt.NDArray[np.int64]) -> dict[int, str]:
    return {int(row): normalised(content_text(groups[int(row)].prompt)) for row in np.unique(rows)}


class Meetings:
    """Where prompts meet again.

    near-duplicates: overlap of at least .8 (see `nearness`). A prompt leaks where the same, or a near-duplicate, is in
    another split; rows of the split `train` (else of the largest) are what has to go; with fewer than 50 prompts the
    cluster stands for the prompt. Known benchmarks: the same words, or the same last user turn.

    Args:
        groups: the groups to be seen.
        against: name of another file -> its prompts.
    """

    def __init__(self, groups: Groups, against: Mapping[str, Prompts] | None = None) -> None:
        self.prompts = Prompts(groups)
        self.against = dict(against or {})
        self._codes: dict[str | None, int] = {}
        self._split = array("i")
        self._clusters = array("Q")
        self.benchmarks, self.holders = known_prompts()
        self.known: Counter[int] = Counter()
        self.known_rows: dict[int, set[int]] = {}
        self._known_marks = array("q")

    def see(self, seen: Seen) -> None:
        """Take one group."""
        self.prompts.add(seen.prompt, seen.prompt_key)
        code = self._codes.setdefault(seen.group.split, len(self._codes))
        self._split.append(code)
        self._clusters.append(seen.cluster)
        found = {index for digest in prompt_digests(seen.group.prompt) for index in self.holders.get(digest, ())}
        for index in found:
            self.known[index] += 1
            self.known_rows.setdefault(index, set()).add(seen.prompt_key)
        if found:
            self._known_marks.append(seen.row)

    def report(self) -> Report:
        """Figures, remarks, rows, and what `--clean` may remove."""
        count = len(self._split)
        keys, splits = self.prompts.keys, np.array(self._split, np.int64)
        _, first, same = np.unique(keys, return_index=True, return_inverse=True)
        near, looked_at = self.prompts.near_pairs()
        root = connected(count, near)[first[same]] if count else np.empty(0, np.int64)
        later = np.flatnonzero((root != first[same]) & (first[same] == np.arange(count)))
        if len(first) < FEW_PROMPTS:  # prompts say little here: clusters are what belongs together
            _, alike = np.unique(np.array(self._clusters, np.uint64), return_inverse=True)
            exact, nearly, leaving = self._leaks(alike, alike, splits)
        else:
            exact, nearly, leaving = self._leaks(first[same], root, splits)
        others = {name: self._in(name, other) for name, other in self.against.items()}
        distinct = len(first)
        facts: dict[str, Any] = {
            "prompts": distinct,
            "prompts_near_duplicate": len(later),
            "prompts_in_several_splits": exact,
            "prompts_nearly_in_several_splits": nearly,
            "known_benchmarks": self._known_facts() or None,
            "against": {name: found for name, (found, _) in others.items()} or None,
            "near_candidates_compared": looked_at,
        }
        marks = {
            "near_prompts": marks_of(np.flatnonzero(np.isin(root, root[later]) & (root != first[same])), count),
            "leaks": marks_of(leaving, count),
            "known": marks_of(np.array(self._known_marks, np.int64), count),
            "against": np.logical_or.reduce([np.zeros(count, np.bool_), *(rows for _, rows in others.values())]),
        }
        remarks = [
            _about_near(len(later), distinct, looked_at),
            *self._about_leaks(exact, nearly, distinct),
            *self._about_known(distinct),
            *(_about_other(name, found, distinct) for name, (found, _) in others.items()),
        ]
        return Report(facts, remarks, self._worst(leaving, near), marks)

    def _leaks(self, same: Rows, root: Rows, splits: Rows) -> tuple[int, int, Rows]:
        """Prompts in several splits, further ones that nearly are, and the rows of the training split among them."""
        if len(self._codes) < 2:
            return 0, 0, np.empty(0, np.int64)
        exact, near = _in_several(same, splits), _in_several(root, splits)
        both = np.isin(root, near)
        training = self._codes.get("train", int(np.bincount(splits).argmax()))
        nearly = len(np.unique(same[both])) - len(np.unique(same[np.isin(same, exact)]))
        return len(exact), nearly, np.flatnonzero(both & (splits == training))

    def _about_leaks(self, exact: int, nearly: int, distinct: int) -> list[Remark]:
        if len(self._codes) < 2:
            return []
        fix = (
            "scores on the other splits count what was trained on; --clean OUT --drop leaks leaves them out of training"
        )
        if not exact and not nearly:
            return [Remark("leakage", "ok", f"no prompt is in two of the {len(self._codes)} splits")]
        remarks = []
        if exact:
            level: Level = "problem" if exact > _MANY * distinct else "warning"
            remarks.append(Remark("leakage", level, f"{share(exact, distinct)} prompts are in several splits", fix))
        if nearly:
            level = "warning" if nearly > _MANY * distinct else "note"
            says = f"{share(nearly, distinct)} more prompts have a near-duplicate in another split"
            remarks.append(Remark("leakage", level, says, "" if exact else fix))
        return remarks

    def _known_facts(self) -> dict[str, Any]:
        return {
            self.benchmarks[index].name: {
                "rows": self.known[index],
                "prompts": len(self.known_rows[index]),
                "coverage": self.benchmarks[index].coverage(),
            }
            for index in sorted(self.known, key=lambda index: -self.known[index])
        }

    def _about_known(self, distinct: int) -> list[Remark]:
        if not self.known:
            return [Remark("benchmarks", "ok", f"no prompt of {len(self.benchmarks)} known benchmarks")]
        whole = [index for index in self.known if len(self.known_rows[index]) >= _ITSELF * distinct]
        if whole:
            names = " and ".join(self.benchmarks[index].name for index in whole)
            says = f"nearly every prompt is one of {names}"
            remarks = [Remark("benchmarks", "note", says, f"fine to judge with; a model trained on it knows {names}")]
        else:
            remarks = []
        for index in sorted(set(self.known) - set(whole), key=lambda index: -self.known[index]):
            remarks.append(self._about_one(self.benchmarks[index], len(self.known_rows[index]), distinct, bool(whole)))
        return remarks

    def _about_one(self, benchmark: Benchmark, prompts: int, distinct: int, judging: bool) -> Remark:
        says = f"{share(prompts, distinct)} prompts are {benchmark.name} prompts ({benchmark.coverage()})"
        fix = "do not judge a model trained on them there; --clean OUT --drop known leaves them out"
        few = judging or (prompts < _FEW_ROWS and prompts <= _MANY * distinct)
        return Remark("benchmarks", "note" if few else "warning", says, "" if judging else fix)

    def _in(self, name: str, other: Prompts) -> tuple[dict[str, int], npt.NDArray[np.bool_]]:
        """How many distinct prompts, and which rows, are the same or nearly the same in another file."""
        equal = np.isin(self.prompts.keys, other.keys)
        near, _ = self.prompts.near_in(other)
        rows = equal | marks_of(near[:, 0], len(equal))
        keys = self.prompts.keys
        exact = len(np.unique(keys[equal]))
        return {"prompts": exact, "near": len(np.unique(keys[rows])) - exact}, rows

    def _worst(self, leaving: Rows, near: Rows) -> list[WorstRow]:
        leaks = [(int(row), self.prompts.groups[int(row)].id) for row in leaving[:5]]
        found = [WorstRow(1.0, row, name, "its prompt, or nearly, is in another split") for row, name in leaks]
        for left, right in near[:5]:
            reason = f"its prompt is nearly that of {self.prompts.groups[int(left)].id}"
            found.append(WorstRow(0.0, int(right), self.prompts.groups[int(right)].id, reason))
        return found


def _in_several(clusters: Rows, splits: Rows) -> Rows:
    """The clusters found in two splits or more."""
    both = np.unique(np.stack([clusters, splits], axis=1), axis=0)
    names, counts = np.unique(both[:, 0], return_counts=True)
    return names[counts > 1]


def _about_near(later: int, distinct: int, looked_at: float) -> Remark:
    guess = "" if looked_at == 1 else f" (of {looked_at:.0%} of the candidates, drawn at random; there are more)"
    if not later:
        return Remark("near prompts", "ok", f"no two prompts are nearly the same{guess}")
    says = f"{share(later, distinct)} prompts are near-duplicates of an earlier one{guess}"
    fix = "they count as one in an interval; --clean OUT --drop near_prompts keeps the first of each"
    return Remark("near prompts", "note" if later > _MANY * distinct else "ok", says, fix)


def _about_other(name: str, found: dict[str, int], distinct: int) -> Remark:
    total = found["prompts"] + found["near"]
    if not total:
        return Remark("against", "ok", f"no prompt is in {name}")
    says = f"{share(found['prompts'], distinct)} prompts are in {name}, {found['near']:,} more nearly"
    return Remark("against", "warning", says, "--clean OUT --drop against leaves them out")
