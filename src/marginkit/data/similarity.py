"""Distance of two responses in meaning: a margin without a sign, for data that has labels and no grades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from marginkit.data.graded import Grades, paired_for_grading
from marginkit.data.grades import just_noticeable_difference
from marginkit.errors import BadInput
from marginkit.groups import Groups

Array = npt.NDArray[np.float64]


class Embeds(Protocol):
    """Anything that turns texts into vectors."""

    def embed(self, texts: Sequence[str]) -> Any:
        """[text, d] float."""
        ...


def cosine_distance(left: npt.ArrayLike, right: npt.ArrayLike) -> Array:
    """1 - cos(left, right) of rows, in [0, 2]; 0 for the same direction, 1 where a vector is zero.

    Example:
        >>> cosine_distance([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        array([0., 1., 2.])
    """
    a, b = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    inner = np.sum(a * b, axis=-1)
    return np.asarray(np.clip(1 - np.divide(inner, size, out=np.zeros_like(size), where=size > 0), 0, 2))


def unsigned_quantile(distances: Array) -> Array:
    """The share q of smaller distances (equal ones half) as a gap: logit((1 + q) / 2), from 0 upward.

    Example:
        >>> unsigned_quantile(np.array([0.1, 0.2, 0.2, 0.9])).round(3)
        array([0.251, 1.099, 1.099, 2.708])
    """
    values, place, counts = np.unique(distances, return_inverse=True, return_counts=True)
    share = ((np.cumsum(counts) - counts / 2) / max(len(distances), 1))[place.reshape(-1)]
    return np.asarray(np.log1p(share) - np.log1p(-share)) if len(values) else distances


def grade_by_similarity(
    groups: Groups, *, embedder: Embeds, gamma: float | None = None, map: Literal["linear", "quantile"] = "linear"
) -> Grades:
    """Target gap = gamma * (1 - cos(E(chosen), E(rejected))): the further apart in meaning, the surer the label.

    Unsigned: the direction is the label's, so every gap is >= 0 and agrees with it. It is no measure of quality, since
    a difference in style is a difference too. Source: MMPO names sentence similarity as a margin; this formula is our
    reconstruction. Texts longer than the embedder reads are embedded in pieces and averaged, by the embedder.

    Args:
        groups: groups with pairs (given or compared).
        embedder: turns texts into vectors.
        gamma: logits per unit of distance; with map=quantile per logit of the distance's rank, 1 if not given.
        map: the distance itself, or its rank.

    Raises:
        BadInput: there is no pair to take the direction from, or no gamma (the message names one to start from).
    """
    if map not in ("linear", "quantile"):
        raise BadInput(f"map={map!r}: the maps of a distance are linear and quantile")
    if not any(group.pairs or group.comparisons for group in groups):
        raise BadInput("how=similarity takes the direction from a label, and the data has no pair: label pairs first")
    paired = paired_for_grading(groups)
    sides: tuple[list[str], list[str]] = ([], [])
    ties = []
    for group in paired:
        for pair in group.pairs:
            ties.append(pair.tie)
            for side, at in zip(sides, (pair.chosen, pair.rejected), strict=True):
                side.append(group.responses[at].text)
    vectors = np.asarray(embedder.embed([*sides[0], *sides[1]]), dtype=float)
    distance = cosine_distance(vectors[: len(ties)], vectors[len(ties) :])
    mapped = unsigned_quantile(distance) if map == "quantile" else distance
    if gamma is None and map == "quantile":
        gamma = 1.0
    if gamma is None:
        middle = float(np.median(mapped[mapped > 0])) if (mapped > 0).any() else math.nan
        hint = "" if math.isnan(middle) else f"; gamma={math.log(3) / middle:.3g} puts the median distance at 75%"
        raise BadInput(f"how=similarity needs gamma, logits per unit of 1 - cos{hint}")
    step = just_noticeable_difference(gamma)
    gaps = np.where(ties, 0.0, gamma * mapped)
    facts = {
        "gamma": gamma,
        "just noticeable difference": step,
        "unit": "of 1 - cos" if map == "linear" else "logits of the distance's rank",
        "signed": False,
        "median distance": float(np.median(distance)),
    }
    return Grades(paired, "target_gap", gaps, {}, facts)
