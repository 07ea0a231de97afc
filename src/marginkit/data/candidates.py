"""The pairs that a selection chooses from, as flat columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.data.distances import Tokenize
from marginkit.data.grades import pair_evidence
from marginkit.data.signals import Array as Array
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Pair

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """P pairs of some groups.

    Args:
        groups: where they are from.
        signals: numbers of every response.
        pairs: [P] as they are.
        group: [P] index of the group.
        chosen: [P] index of the chosen response in the columns of `signals`.
        rejected: [P] likewise.
        explicit: [P] explicit margin, signed: reward(chosen) - reward(rejected); NaN where unknown.
        explicit_by: what it is read from: the rewards, or what the data says of its pairs.
        prob: [P] what the data says of P(the label is right); NaN where it says nothing.
        chars: [R] characters of each response.
        tie: [P] the evidence is equal.
        seed: of everything random.
        tokenize: texts to token ids; None compares words.
    """

    groups: Groups
    signals: Signals
    pairs: list[Pair]
    group: Indices
    chosen: Indices
    rejected: Indices
    explicit: Array
    explicit_by: str
    prob: Array
    chars: Array
    tie: Mask
    seed: int = 0
    tokenize: Tokenize | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def gap(self, values: Array) -> Array:
        """[P] how much larger a value of the chosen response is than that of the rejected one."""
        return values[self.chosen] - values[self.rejected]

    def need(self, name: str, method: str) -> Array:
        """A column of the signals.

        Raises:
            BadInput: it is not there; says how to get it.
        """
        found: Array | None = getattr(self.signals, name)
        if found is None:
            raise BadInput(f"how={method} needs {_WAYS[name]}")
        return found


_WAYS: Mapping[str, str] = {
    "logp": "the log-probabilities of a policy: name it with --policy RUN, MODEL or score tables",
    "ref_logp": "the log-probabilities of two policies: --policy the tuned one and --reference the one before",
    "bare_logp": "the log-probabilities without the prompt: --policy RUN or MODEL computes them, tables have none",
    "length": "the lengths in tokens: name the policy with --policy RUN, MODEL or score tables",
}


@dataclass(frozen=True, slots=True)
class Scored:
    """What a method says of the candidates.

    Args:
        score: [P] larger is better; NaN: not to be selected.
        left_out: reason -> [P], pairs that the method refuses, each under one reason.
        second: [P] decides between equal scores.
        changed: pairs that the method turns or softens, by their number.
        facts: what it measured, for the manifest.
    """

    score: Array
    left_out: Mapping[str, Mask]
    facts: Mapping[str, Any]
    second: Array | None = None
    changed: Mapping[int, Pair] | None = None


def candidates_of(groups: Groups, signals: Signals, *, seed: int = 0, tokenize: Tokenize | None = None) -> Candidates:
    """All pairs of the groups.

    The explicit margin is the difference of the rewards in `signals`. Where these are the data's own and it speaks of
    pairs (strengths, gaps, probabilities), it is the kind of evidence that most pairs carry: grade gap or strength,
    target gap, log-odds of the probability (clipped to 1% ... 99%), in this order where equally many do.

    Raises:
        BadInput: the signals are of other groups, or there is no pair.
    """
    signals.check(groups)
    pairs: list[Pair] = []
    group, chosen, rejected, chars = [], [], [], []
    evidence: list[tuple[float, float, float]] = []
    ties: list[bool] = []
    for number, one in enumerate(groups):
        start = int(signals.starts[number])
        chars += [len(response.text) for response in one.responses]
        for pair in one.pairs:
            pairs.append(pair)
            group.append(number)
            chosen.append(start + pair.chosen)
            rejected.append(start + pair.rejected)
            found = pair_evidence(one, pair)
            evidence.append((_nan(found.grade_gap), _nan(found.target_gap), _nan(found.prob)))
            ties.append(found.tie)
    if not pairs:
        raise BadInput("there are no pairs to select from; make them first with marginkit pair --how best_worst")
    columns = np.array(evidence, dtype=np.float64).T
    left, right = np.array(chosen, dtype=np.int64), np.array(rejected, dtype=np.int64)
    if signals.external:
        several = len(signals.rewards) > 1
        explicit = np.full(len(pairs), np.nan) if several else signals.reward[left] - signals.reward[right]
        by = "rewards"
    else:
        explicit, by = _of_the_data(columns, signals, left, right)
    return Candidates(
        groups, signals, pairs, np.array(group, dtype=np.int64), left, right, explicit, by, columns[2],
        np.array(chars, dtype=np.float64), np.array(ties, dtype=np.bool_), seed, tokenize,
    )  # fmt: skip


def _of_the_data(columns: Array, signals: Signals, left: Indices, right: Indices) -> tuple[Array, str]:
    grade_gap, target_gap, prob = columns
    clipped = np.clip(prob, 0.01, 0.99)
    kinds = {
        "grade gap": grade_gap,
        "target gap": target_gap,
        "log-odds of the probability": np.log(clipped / (1 - clipped)),
    }
    if signals.unit == "logits":  # utilities of all responses
        kinds = {"target gap": target_gap} | kinds
    best = max(kinds, key=lambda name: int(np.isfinite(kinds[name]).sum()))
    return kinds[best], best


def _nan(value: float | None) -> float:
    return np.nan if value is None else value
