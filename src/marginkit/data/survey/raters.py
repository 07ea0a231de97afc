"""How far several raters agree: Krippendorff's alpha over ratings, agreement over votes, and the noise they imply."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from marginkit.data.survey.remarks import Level, Remark, Report, share
from marginkit.data.survey.seen import Seen

_MOST_VALUES = 64
_HARDLY, _FAIRLY = 0.2, 0.5


class Agreement:
    """Krippendorff's alpha of one aspect, streamed: 1 - observed / expected disagreement.

    Units are responses with two ratings or more. Interval data: difference (v - w)^2, which needs only sums. Ordinal
    data: (the ratings between v and w, ends counted half)^2, from the table of coincidences; at most 64 values.

    Example (hand-worked: two units, ratings 1, 2 and 3, 3):
        >>> agreement = Agreement()
        >>> agreement.add([1.0, 2.0])
        >>> agreement.add([3.0, 3.0])
        >>> round(agreement.interval(), 4), agreement.noise()
        (0.7273, 0.25)

    Source: Krippendorff, Computing Krippendorff's alpha-reliability (2011).
    """

    def __init__(self) -> None:
        self.units = self.ratings = 0
        self._sum = self._squares = self._within = self._spread = 0.0
        self._coincide: Counter[tuple[float, float]] = Counter()
        self._values: set[float] = set()

    def add(self, values: list[float]) -> None:
        """Take the ratings of one response; a single one says nothing of agreement and is left out."""
        count = len(values)
        if count < 2:
            return
        total, squares = sum(values), sum(value * value for value in values)
        self.units += 1
        self.ratings += count
        self._sum += total
        self._squares += squares
        unequal = max(0.0, 2 * (count * squares - total * total))  # over ordered pairs of raters
        self._within += unequal / (count - 1)
        self._spread += unequal / (2 * count * (count - 1))  # the variance within the unit
        self._values.update(values)
        if len(self._values) <= _MOST_VALUES:
            for one, value in enumerate(values):
                for other, second in enumerate(values):
                    if one != other:
                        self._coincide[value, second] += 1 / (count - 1)  # type: ignore[assignment]

    def interval(self) -> float | None:
        """Alpha of interval data; None where all ratings are equal or there are none."""
        n = self.ratings
        expected = 2 * (n * self._squares - self._sum**2) / (n - 1) if n > 1 else 0.0
        return None if expected <= 1e-12 * max(1.0, self._squares) else 1 - self._within / expected

    def ordinal(self) -> float | None:
        """Alpha of ordinal data; None where all ratings are equal or more than 64 values occur."""
        if not 1 < len(self._values) <= _MOST_VALUES:
            return None
        values = sorted(self._values)
        at = {value: place for place, value in enumerate(values)}
        table = np.zeros((len(values), len(values)))
        for (value, second), count in self._coincide.items():
            table[at[value], at[second]] += count
        margins = table.sum(1)
        below = np.cumsum(margins) - margins / 2
        distance = (below[:, None] - below[None, :]) ** 2
        expected = (np.outer(margins, margins) * distance).sum() / (margins.sum() - 1)
        return float(1 - (table * distance).sum() / expected)

    def noise(self) -> float | None:
        """s^2, the mean variance of the ratings within a response, dataset units squared."""
        return self._spread / self.units if self.units else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "units": self.units,
            "ratings": self.ratings,
            "alpha_interval": self.interval(),
            "alpha_ordinal": self.ordinal(),
            "noise_variance": self.noise(),
        }


class Raters:
    """Ratings by several raters, and votes.

    Of votes: the mean share of the most frequent answer (for, against, tie), the share of unanimous pairs, and how
    often two voters of a pair agree: sum c (c - 1) / (n (n - 1)) over the counts c of its n votes.
    """

    def __init__(self) -> None:
        self.aspects: dict[str, Agreement] = {}
        self.voted = self.unanimous = self.several = 0
        self.majority = self.agree = self.votes = 0.0

    def see(self, seen: Seen) -> None:
        """Take one group."""
        for response in seen.group.responses:
            by_aspect: dict[str, list[float]] = {}
            for rating in response.ratings:
                by_aspect.setdefault(rating.aspect or "", []).append(rating.value)
            for aspect, values in by_aspect.items():
                if len(values) > 1:
                    self.aspects.setdefault(aspect, Agreement()).add(values)
        for pair in seen.pairs:
            if pair.votes is not None:
                total = sum(pair.votes)
                self.voted += 1
                self.votes += total
                if total >= 2:
                    self.several += 1
                    self.majority += max(pair.votes) / total
                    self.unanimous += max(pair.votes) == total
                    self.agree += sum(c * (c - 1) for c in pair.votes) / (total * (total - 1))

    def report(self) -> Report:
        """Figures and remarks; nothing where there is one rater, or one vote a pair."""
        facts: dict[str, Any] = {
            "ratings": {aspect or "grade": found.to_json() for aspect, found in sorted(self.aspects.items())} or None,
            "votes": None,
        }
        remarks = [_about_ratings(aspect, found) for aspect, found in sorted(self.aspects.items())]
        if self.several:
            facts["votes"] = {
                "pairs": self.voted,
                "votes_per_pair": self.votes / self.voted,
                "majority_share": self.majority / self.several,
                "unanimous": self.unanimous / self.several,
                "two_voters_agree": self.agree / self.several,
            }
            says = (
                f"two voters of a pair agree {self.agree / self.several:.2f} of the time, the majority holds "
                f"{self.majority / self.several:.2f}; unanimous: {share(self.unanimous, self.several)} pairs"
            )
            remarks.append(Remark("raters", "note", says, "no model can agree more with one voter than voters do"))
        return Report(facts, remarks)


def _about_ratings(aspect: str, found: Agreement) -> Remark:
    alpha, noise = found.interval(), found.noise() or 0.0
    name = f" of {aspect}" if aspect else ""
    if alpha is None:
        return Remark("raters", "note", f"all raters give one and the same rating{name}", "it orders nothing")
    level: Level = "warning" if alpha < _HARDLY else "note" if alpha < _FAIRLY else "ok"
    says = (
        f"raters{name} agree with alpha {alpha:.2f} over {found.units:,} responses; "
        f"a single rating has a standard error of {noise**0.5:.2g}"
    )
    fix = "small gaps are mostly noise: shrink them (marginkit grade), or keep only large ones"
    return Remark("raters", level, says, fix if level != "ok" else "")
