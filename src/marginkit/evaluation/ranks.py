"""Numbers that depend on order alone, made functions of sums: by how much each row moves them (its influence).

A rank is no sum over rows: every resample would have to be sorted anew. To first order a resample moves the number by
the mean of its rows' influences, which are worked out once. The value on the rows themselves is exact; the replicates
differ from those of sorting each resample by terms of order 1 / clusters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Statistic, of_sums, ratio


def rank_correlation(x: npt.ArrayLike, y: npt.ArrayLike) -> Statistic:
    """Spearman's rank correlation; ties get the middle rank.

    With `a = F(x) - 1/2`, `b = G(y) - 1/2` (F and G the distribution functions seen, half of each step counted):
    `mean(a b) / sqrt(mean(a^2) mean(b^2))`. A row i moves `mean(a b)` by `a_i b_i` and by what its own x and y add to
    the ranks of the others, `mean_j(b_j [x_j > x_i]) + mean_j(a_j [y_j > y_i])`, half of it where they are equal. The
    influences are added up on Fisher's scale, `atanh`, on which the correlation is near to normal.

    Args:
        x: `[row]`.
        y: `[row]`.

    Returns:
        The statistic, in [-1, 1]; NaN where all x or all y are equal.

    Example:
        >>> rank_correlation([1.0, 2.0, 9.0], [0.1, 0.2, 0.3])(np.ones((1, 3))).round(6).tolist()
        [1.0]

    Source: Spearman 1904; influence function as Croux and Dehon, Statistical Methods and Applications 19 (2010).
    """
    first, second = _Ranked(np.asarray(x, np.float64)), _Ranked(np.asarray(y, np.float64))
    if len(first.count) < 2 or len(second.count) < 2:
        return of_sums(lambda total: np.full(total.shape[:-1], np.nan), np.ones_like(first.centred))
    (both, both_moved), (one, one_moved), (other, other_moved) = (
        _moment(a, b) for a, b in ((first, second), (first, first), (second, second))
    )
    found = float(np.clip(both / np.sqrt(one * other), -1.0, 1.0))
    moved = both_moved / np.sqrt(one * other) - found / 2 * (one_moved / one + other_moved / other)
    room = 1 - found * found

    def value(total: Array) -> Array:
        if room < 1e-12:  # the two orders are one, in every resample
            return np.full(total.shape[:-1], found)
        return np.asarray(np.tanh(np.arctanh(found) + ratio(total[..., 0], total[..., 1]) / room))

    return of_sums(value, moved, np.ones_like(moved))


def _moment(a: _Ranked, b: _Ranked) -> tuple[float, Array]:
    """`mean(a b)`, and how far each row moves it."""
    moment = float(np.mean(a.centred * b.centred))
    return moment, a.centred * b.centred + a.above(b.centred) + b.above(a.centred) - 3 * moment


class _Ranked:
    """Values by rank: `F - 1/2` of each, and sums over the rows above."""

    def __init__(self, values: Array) -> None:
        _, self.place, self.count = np.unique(values, return_inverse=True, return_counts=True)
        below = np.cumsum(self.count) - self.count
        self.centred: Array = ((below + self.count / 2) / max(len(values), 1) - 0.5)[self.place]

    def above(self, other: Array) -> Array:
        """`mean_j(other_j [value_j > value_i])`, half counted where equal."""
        at = np.bincount(self.place, weights=other, minlength=len(self.count))
        return np.asarray((at[::-1].cumsum()[::-1] - at / 2)[self.place] / max(len(other), 1))


def area_under_curve(score: npt.ArrayLike, positive: npt.ArrayLike) -> Statistic:
    """Area under the ROC curve: `P(score of a positive row > score of a negative row)`, equal scores count one half.

    Args:
        score: `[row]`.
        positive: `[row]`, booleans; both kinds must be there.

    Returns:
        The statistic, in [0, 1]; 1/2 where the score tells nothing.

    Raises:
        BadInput: only one kind of row.

    Example:
        >>> float(area_under_curve([0.2, 0.9, 0.5], [False, True, True])(np.ones((1, 3)))[0])
        1.0

    Source: Hanley and McNeil 1982; influence of each row as DeLong, DeLong and Clarke-Pearson 1988.
    """
    s, kind = np.asarray(score, np.float64), np.asarray(positive, bool)
    if not kind.any() or kind.all():
        raise BadInput("the area under the curve needs rows of both kinds")

    def beaten(own: Array, others: Array) -> Array:
        ordered = np.sort(others)
        return (np.searchsorted(ordered, own, "left") + np.searchsorted(ordered, own, "right")) / (2 * len(others))

    wins = np.where(kind, beaten(s, s[~kind]), 1 - beaten(s, s[kind]))
    area = float(wins[kind].mean())

    def value(total: Array) -> Array:
        moved = ratio(total[..., 0], total[..., 1]) + ratio(total[..., 2], total[..., 3])
        return np.clip(moved - area, 0.0, 1.0)

    return of_sums(value, wins * kind, kind, wins * ~kind, ~kind)
