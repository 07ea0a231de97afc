"""What is there: groups, responses, pairs, splits, clusters, kinds of evidence, ties, and evidence against itself."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import Any

import numpy as np

from marginkit.data.grades import Evidence
from marginkit.data.survey.remarks import Level, Remark, Report, Worst, share
from marginkit.data.survey.seen import Seen

KINDS = ("prob", "target_gap", "grade_gap")
_MANY_TIES, _MOSTLY_TIES = 0.1, 0.5
_DISAGREE = 0.01


class Contents:
    """Sizes, kinds of evidence, ties, and pairs whose kinds of evidence contradict each other or the label.

    A pair contradicts itself where one kind says that chosen is better and another (or its order, in the data) that it
    is worse: the share is the grade-label disagreement rate of the rows that were kept.
    """

    def __init__(self) -> None:
        self.groups = self.responses = self.pairs = self.ties = self.bare = self.judged = self.against = 0
        self.sizes: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.splits: Counter[str | None] = Counter()
        self.clusters = array("Q")
        self.worst = Worst()

    def see(self, seen: Seen) -> None:
        """Take one group."""
        self.groups += 1
        self.responses += len(seen.texts)
        self.sizes[len(seen.texts)] += 1
        self.splits[seen.group.split] += 1
        self.clusters.append(seen.cluster)
        self.pairs += len(seen.pairs)
        for evidence in seen.evidence:
            self.ties += evidence.tie
            known = [kind for kind in KINDS if getattr(evidence, kind) is not None]
            self.kinds.update(known)
            self.bare += not known and not evidence.tie
        for pair, evidence in seen.judged:
            signs = _signs(evidence)
            self.judged += bool(signs)
            if min(signs, default=0.0) < 0:
                self.against += 1
                chosen, rejected = (seen.group.responses[at] for at in (pair.chosen, pair.rejected))
                gap = "" if evidence.grade_gap is None else f", grades {chosen.grade} and {rejected.grade}"
                self.worst.offer(-min(signs), seen.row, seen.group.id, f"evidence against its label{gap}")

    def report(self) -> Report:
        """Figures and remarks."""
        splits = {str(name): self.splits[name] for name in sorted(self.splits, key=str)}
        facts: dict[str, Any] = {
            "groups": self.groups,
            "responses": self.responses,
            "responses_per_group": {str(size): self.sizes[size] for size in sorted(self.sizes)},
            "pairs": self.pairs,
            "ties": self.ties,
            "evidence": {kind: count for kind, count in (*self.kinds.items(), ("none", self.bare)) if count} or None,
            "splits": None if set(self.splits) == {None} else splits,
            "clusters": len(np.unique(np.array(self.clusters, np.uint64))),
            "label_disagreement": self.against / self.judged if self.judged else None,
        }
        remarks = [*self._about_evidence(), *self._about_ties(), *self._about_disagreement()]
        return Report(facts, remarks, self.worst.rows())

    def _about_evidence(self) -> list[Remark]:
        if not self.pairs:
            fix = "fine for sft; preference training needs two graded responses, or chosen and rejected"
            return [Remark("evidence", "note", "no pair of responses, so nothing to prefer", fix)]
        if self.bare == self.pairs:
            fix = "hard-label methods work as they are; for soft targets grade it first: marginkit grade"
            return [Remark("evidence", "note", "no grades: the pairs say which is better, not by how much", fix)]
        if self.bare:
            says = f"{share(self.bare, self.pairs)} pairs have no grade beside their order"
            return [Remark("evidence", "note", says, "they are trained as hard labels, or grade them first")]
        return [Remark("evidence", "ok", f"all {self.pairs:,} pairs carry evidence")]

    def _about_ties(self) -> list[Remark]:
        part = self.ties / self.pairs if self.pairs else 0.0
        level: Level = "warning" if part > _MOSTLY_TIES else "note" if part > _MANY_TIES else "ok"
        says = f"{share(self.ties, self.pairs)} pairs are ties" if self.ties else "no ties"
        fix = "" if level == "ok" else "they train as probability one half; --ties drop leaves them out"
        return [Remark("ties", level, says, fix)]

    def _about_disagreement(self) -> list[Remark]:
        if not self.against:
            return [Remark("labels", "ok", "no pair contradicts its own evidence")] if self.judged else []
        says = f"{share(self.against, self.judged)} pairs carry evidence against their own label"
        level: Level = "warning" if self.against > _DISAGREE * self.judged else "note"
        fix = "order, votes, probabilities and grades disagree: which is meant? the worst rows show it"
        return [Remark("labels", level, says, fix)]


def _signs(evidence: Evidence) -> list[float]:
    """What each kind of evidence says of the pair, > 0 toward chosen, in comparable size."""
    signs = []
    if evidence.prob is not None:
        signs.append(2 * evidence.prob - 1)
    if evidence.target_gap is not None:
        signs.append(math.tanh(evidence.target_gap / 2))
    if evidence.grade_gap is not None:
        signs.append(evidence.grade_gap)
    return signs
