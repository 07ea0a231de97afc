"""Comparisons as utilities: a regularised Bradley-Terry fit, of all prompts at once or of whole models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csc_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from scipy.special import expit

from marginkit.errors import BadInput, RunFailed

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

ELO_PER_LOGIT = 400 / math.log(10)


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Who was compared with whom, and how often each was preferred; a tie is half a win each.

    Args:
        left: [C] an item, 0 to items - 1.
        right: [C] the other one.
        wins_left: [C] counts or probabilities, >= 0.
        wins_right: [C].
        items: how many items there are.
    """

    left: Indices
    right: Indices
    wins_left: Array
    wins_right: Array
    items: int

    def __post_init__(self) -> None:
        if (self.left == self.right).any():
            raise BadInput("an item is compared with itself")
        for wins in (self.wins_left, self.wins_right):
            if not (np.isfinite(wins).all() and (wins >= 0).all()):
                raise BadInput("wins must be finite numbers >= 0")

    @classmethod
    def make(
        cls, left: npt.ArrayLike, right: npt.ArrayLike, wins_left: npt.ArrayLike, wins_right: npt.ArrayLike, items: int
    ) -> Comparisons:
        """From any sequences; repeated comparisons of the same two items are added up.

        Example:
            >>> Comparisons.make([0, 1], [1, 0], [3, 1], [0, 2], items=2).wins_left
            array([5.])
        """
        i, j = np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)
        w, l = np.asarray(wins_left, dtype=float), np.asarray(wins_right, dtype=float)  # noqa: E741
        turned = i > j
        i, j, w, l = np.where(turned, j, i), np.where(turned, i, j), np.where(turned, l, w), np.where(turned, w, l)  # noqa: E741
        keys, place = np.unique(i * items + j, return_inverse=True)
        wins, losses = (np.bincount(place, count, len(keys)).astype(float) for count in (w, l))
        return cls(keys // max(items, 1), keys % max(items, 1), wins, losses, items)

    def components(self) -> Indices:
        """[item] which connected part of the comparisons an item is in; comparisons without a vote do not connect."""
        voted = self.wins_left + self.wins_right > 0
        links = (np.ones(int(voted.sum())), (self.left[voted], self.right[voted]))
        _, parts = connected_components(coo_matrix(links, shape=(self.items, self.items)), directed=False)
        return np.asarray(parts, dtype=np.int64)


def fit_bradley_terry(comparisons: Comparisons, *, l2: float = 0.1, start: Array | None = None) -> Array:
    """Utilities u with P(i beats j) = sigmoid(u_i - u_j), by penalised maximum likelihood.

    Minimises sum_ij [ w_ij softplus(u_j - u_i) + w_ji softplus(u_i - u_j) ] + l2 / 2 * sum u^2: Newton's method on all
    items at once, each connected part with its own step length, so that one hard prompt does not slow the others. The
    penalty is a normal prior of variance 1 / l2; it keeps the fit finite where one item won every time, and centres
    each connected part on 0. Only differences inside a part mean anything.

    Source: the likelihood of the Chatbot Arena fits (logistic regression, ties half a win each); per prompt it is ours.

    Args:
        comparisons: who beat whom, counts or probabilities.
        l2: > 0, per squared logit.
        start: [item] where to start, e.g. another fit.

    Returns:
        [item] utilities, logits; 0 for an item that was never compared.

    Raises:
        BadInput: l2 is not a positive number.
        RunFailed: no minimum in 200 steps, which no data should cause.

    Example:
        >>> fit = fit_bradley_terry(Comparisons.make([0], [1], [30], [10], items=2), l2=1e-9)
        >>> round(float(fit[0] - fit[1]) * ELO_PER_LOGIT, 2)
        190.85
    """
    if not (math.isfinite(l2) and l2 > 0):
        raise BadInput(f"l2={l2}: give a number > 0; without a penalty an item that always won has no finite utility")
    c = comparisons
    parts = c.components()
    of_pair = parts[c.left]
    count = int(parts.max(initial=-1)) + 1
    total = c.wins_left + c.wins_right
    u = np.zeros(c.items) if start is None else np.array(start, dtype=float)

    def objective(at: Array) -> Array:
        """[part] what is minimised."""
        gap = at[c.left] - at[c.right]
        loss = c.wins_left * np.logaddexp(0, -gap) + c.wins_right * np.logaddexp(0, gap)
        return np.bincount(of_pair, loss, count) + l2 / 2 * np.bincount(parts, at * at, count)

    value = objective(u)
    for _ in range(200):
        prob = expit(u[c.left] - u[c.right])
        pull = total * prob - c.wins_left
        gradient = np.bincount(c.left, pull, c.items) - np.bincount(c.right, pull, c.items) + l2 * u
        step: Array = -splu(_hessian(c, total * prob * (1 - prob), l2)).solve(gradient)
        length = np.ones(count)
        fall = np.bincount(parts, gradient * step, count)  # [part] < 0: how fast the objective falls at first
        for _ in range(60):
            new = u + length[parts] * step
            tried = objective(new)
            short = tried > value + 1e-4 * length * fall + 1e-12 * np.abs(value)
            if not short.any():
                break
            length = np.where(short, length / 2, length)
        else:
            length = np.where(short, 0.0, length)
            new = u + length[parts] * step
            tried = objective(new)
        moved = float(np.abs(new - u).max(initial=0.0))
        u, value = new, tried
        if moved < 1e-9 * (1 + float(np.abs(u).max(initial=0.0))):
            return u
    raise RunFailed("the Bradley-Terry fit did not settle in 200 steps; raise l2")


def _hessian(c: Comparisons, curvature: Array, l2: float) -> csc_matrix:
    """The second derivatives: the Laplacian of the comparisons weighed by their curvature, + l2."""
    every = np.arange(c.items)
    diagonal = np.bincount(c.left, curvature, c.items) + np.bincount(c.right, curvature, c.items) + l2
    values = np.concatenate([diagonal, -curvature, -curvature])
    rows, columns = np.concatenate([every, c.left, c.right]), np.concatenate([every, c.right, c.left])
    return csc_matrix(coo_matrix((values, (rows, columns)), shape=(c.items, c.items)))


def bootstrap_bradley_terry(comparisons: Comparisons, *, samples: int = 100, l2: float = 0.1, seed: int = 0) -> Array:
    """Fits to resampled votes: the spread of the utilities.

    The votes are resampled as a multinomial over the distinct outcomes, which equals resampling them one by one.

    Args:
        comparisons: who beat whom, in counts.
        samples: how many fits.
        l2: as in `fit_bradley_terry`.
        seed: of the draws.

    Returns:
        [sample, item] utilities, logits.

    Raises:
        BadInput: there are no votes, or fewer than one sample.

    Example:
        >>> votes = Comparisons.make([0], [1], [30], [10], items=2)
        >>> fits = bootstrap_bradley_terry(votes, samples=50)
        >>> fits.shape, bool(np.std(fits[:, 0] - fits[:, 1]) < 1)
        ((50, 2), True)
    """
    c, total = comparisons, float(comparisons.wins_left.sum() + comparisons.wins_right.sum())
    if samples < 1 or round(total) < 1:
        raise BadInput(f"samples={samples} of {total:g} votes: give at least one of each")
    rng, center = np.random.default_rng(seed), fit_bradley_terry(comparisons, l2=l2)
    outcomes = np.concatenate([c.wins_left, c.wins_right]) / total
    made = np.empty((samples, c.items))
    for at in range(samples):
        drawn = rng.multinomial(round(total), outcomes).astype(float)
        wins, losses = drawn[: len(c.left)], drawn[len(c.left) :]
        made[at] = fit_bradley_terry(Comparisons(c.left, c.right, wins, losses, c.items), l2=l2, start=center)
    return made


def elo(utilities: Array, *, anchor: float = 1000.0) -> Array:
    """Utilities on the Elo scale: anchor + 400 / ln(10) * u.

    Example:
        >>> elo(np.array([math.log(3), 0.0])).round(2).tolist()
        [1190.85, 1000.0]
    """
    return np.asarray(anchor + ELO_PER_LOGIT * np.asarray(utilities, dtype=float))


def describe_components(parts: Indices, names: list[str]) -> dict[str, Any]:
    """How many parts the comparisons fall into, and a name of each of the first five.

    Example:
        >>> describe_components(np.array([0, 0, 1]), ["a", "b", "c"])
        {'parts': 2, 'for example': ['a', 'c']}
    """
    _, first = np.unique(parts, return_index=True)
    return {"parts": len(first), "for example": [names[at] for at in sorted(first)[:5]]}
