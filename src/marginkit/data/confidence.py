"""Confidence in the labels: pairs that are likely right first, and what to do with the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from marginkit.data.candidates import Array, Candidates, Scored
from marginkit.errors import BadInput
from marginkit.records import Pair

ACTIONS = ("keep", "drop", "soften")


def label_prob(candidates: Candidates) -> tuple[Array, str]:
    """[P] P(the label is right): sigmoid of the reward gap where the rewards are logits, else what the data says.

    Raises:
        BadInput: neither is there.
    """
    if candidates.signals.external and candidates.signals.unit == "logits":
        return _sigmoid(candidates.explicit), "sigmoid of the reward gap"
    if candidates.signals.external:
        raise BadInput("how=confidence needs rewards in logits; a grade is in units of its own")
    if np.isfinite(candidates.prob).any():
        return candidates.prob, "votes or probabilities in the data"
    if candidates.explicit_by == "target gap":
        return _sigmoid(candidates.explicit), "sigmoid of the target gap in the data"
    raise BadInput(
        "how=confidence needs P(the label is right): votes, probabilities or utilities in the data (marginkit grade "
        "fills them in), a reward model with --reward RUN, or --crossfit EMBEDDER"
    )


def by_confidence(candidates: Candidates, *, min_prob: float = 0.6, action: str = "drop") -> Scored:
    """Select by the confidence in the label.

    Args:
        candidates: the pairs.
        min_prob: pairs with less confidence are doubtful.
        action: what happens to doubtful pairs: keep (they are counted), drop, or soften: `prob` becomes the confidence.

    Raises:
        BadInput: min_prob out of (0, 1), an unknown action, or nothing that speaks of confidence.
    """
    if not 0 < min_prob < 1:
        raise BadInput(f"confidence: min_prob={min_prob}: must be between 0 and 1")
    if action not in ACTIONS:
        raise BadInput(f"confidence: action={action}: must be one of {', '.join(ACTIONS)}")
    prob, by = label_prob(candidates)
    with np.errstate(invalid="ignore"):
        doubtful = prob < min_prob
    changed: dict[int, Pair] = {}
    if action == "soften":
        for at in np.flatnonzero(doubtful).tolist():
            changed[at] = replace(candidates.pairs[at], prob=float(prob[at]), votes=None, target_gap=None)
    dropped = doubtful if action == "drop" else np.zeros(len(candidates), dtype=np.bool_)
    facts = {
        "confidence": by,
        "doubtful": int(doubtful.sum()),
        "softened": len(changed),
        "mean_confidence": float(np.nanmean(prob)) if np.isfinite(prob).any() else None,
    }
    return Scored(np.where(dropped, np.nan, prob), {"pairs below min_prob": dropped}, facts, changed=changed)


def _sigmoid(gap: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(gap / 2)))
