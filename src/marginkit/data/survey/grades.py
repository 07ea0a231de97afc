"""The grades: their scale, histogram and outliers, and where they or the probabilities have nowhere left to go."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import numpy as np

from marginkit.data.survey.remarks import Level, Remark, Report, Worst, WorstRow, share
from marginkit.data.survey.seen import Seen
from marginkit.data.survey.sketches import Values

BINS = 10
FAR = 8.0  # robust standard deviations
_FEW_SOURCES = 200
_WIDER = 5
_HEAVY_TAIL = 0.01
_AT_END = 0.5
_SATURATED, _MOSTLY_SATURATED = 0.2, 0.5
_CERTAIN = math.log(0.99 / 0.01)  # a target gap of so many logits is a probability of .99


class Grades:
    """Scale, histogram, outliers (over all and by source) and saturation.

    A grade is an outlier where |grade - median| > 8 s, s = the larger of 1.4826 * MAD and the width of the middle 80%
    over 2.563: two measures of a standard deviation that a few wild values do not move.

    Saturation: the share of probabilities (given ones; those of utilities; grades where all lie in [0, 1] and more than
    20 differ) beyond .001/.999 and .01/.99, of grades at either end of the scale, and of pairs whose target is beyond
    .99 under the gamma that puts the median gap at .75.
    """

    def __init__(self) -> None:
        self.values, self.gaps, self.probs = Values(), Values(), Values()
        self.by_source: dict[str, Values] = defaultdict(lambda: Values(5_000))
        self.missing = 0
        self.high, self.low = Worst(), Worst()

    def see(self, seen: Seen) -> None:
        """Take one group."""
        source = self.by_source[seen.group.source or ""] if self._room(seen.group.source or "") else None
        for response in seen.group.responses:
            grade = response.grade
            if grade is None:
                self.missing += 1
                continue
            self.values.add(grade)
            if source is not None:
                source.add(grade)
            self.high.offer(grade, seen.row, seen.group.id, "")
            self.low.offer(-grade, seen.row, seen.group.id, "")
        for pair, evidence in zip(seen.pairs, seen.evidence, strict=True):
            if evidence.grade_gap:
                self.gaps.add(abs(evidence.grade_gap))
            if pair.prob is not None and pair.votes is None:
                self.probs.add(pair.prob)
            elif evidence.target_gap is not None:
                self.probs.add(1 / (1 + math.exp(-max(-700.0, min(700.0, evidence.target_gap)))))

    def _room(self, source: str) -> bool:
        return source in self.by_source or len(self.by_source) < _FEW_SOURCES

    def report(self) -> Report:
        """Figures, remarks, the rows that are furthest out."""
        gamma = math.log(3) / self.gaps.median() if self.gaps.n else None
        facts: dict[str, Any] = {
            "grades": None,
            "gamma_for_75_percent": gamma,
            "grade_gap": self.gaps.percentiles(),
            "histogram": histogram(self.values),
            "gap_histogram": histogram(self.gaps),
            "saturation": self._saturation(gamma),
        }
        if not self.values.n:
            return Report(facts, self._about_saturation(facts["saturation"]))
        facts["grades"] = {
            "low": self.values.low,
            "high": self.values.high,
            "distinct": self.values.distinct,
            "missing": self.missing / (self.values.n + self.missing),
        }
        outliers, worst = self._outliers()
        facts["outliers"] = outliers
        sources, scales = self._scales()
        facts["scale_by_source"] = sources
        remarks = [*self._about_scale(), *self._about_outliers(outliers), *scales]
        return Report(facts, [*remarks, *self._about_saturation(facts["saturation"])], worst)

    # -- outliers

    def _outliers(self) -> tuple[dict[str, Any], list[WorstRow]]:
        middle, spread = centre_and_spread(self.values)
        low, high = middle - FAR * spread, middle + FAR * spread
        values, shares = self.values.table()
        part = float(shares[(values < low) | (values > high)].sum()) if spread > 0 else 0.0
        count = round(part * self.values.n)
        worst = Worst()
        extremes = [(row, row.size) for row in self.high.rows()] + [(row, -row.size) for row in self.low.rows()]
        for row, grade in extremes:
            if spread > 0 and not low <= grade <= high:
                away = abs(grade - middle) / spread
                worst.offer(away, row.row, row.id, f"grade {grade:g} is {away:.0f} spreads from the median {middle:g}")
        facts = {"median": middle, "spread": spread, "count": count, "share": part, "low": low, "high": high}
        return facts, worst.rows() if part <= _HEAVY_TAIL else []

    def _about_outliers(self, found: dict[str, Any]) -> list[Remark]:
        if not found["count"]:
            return [Remark("outliers", "ok", f"no grade is more than {FAR:g} spreads from the median")]
        many = found["share"] > _HEAVY_TAIL
        says = f"{share(found['count'], self.values.n)} grades are beyond {found['low']:.3g} .. {found['high']:.3g}"
        if many:
            fix = "a long tail, not slips: differences of such grades are dominated by a few; a log or rank map helps"
            return [Remark("outliers", "note", says, fix)]
        fix = "slips of the scale? look at the worst rows; --clean OUT --drop outliers leaves them out"
        return [Remark("outliers", "warning", says, fix)]

    def _scales(self) -> tuple[dict[str, Any] | None, list[Remark]]:
        """The scale of each source, and whether they can be one."""
        known = {name: values for name, values in self.by_source.items() if values.n >= 20}
        if len(known) < 2:
            return None, []
        facts = {
            name: {"median": values.median(), "low": values.low, "high": values.high, "n": values.n}
            for name, values in known.items()
        }
        ranges = sorted((values.quantile(0.05), values.quantile(0.95), name) for name, values in known.items())
        fix = "one gamma cannot serve both; map them to one scale"
        for (_, top, below), (bottom, _, above) in itertools.pairwise(ranges):
            if bottom > top:
                says = f"95% of {below}'s grades are up to {top:g}, 95% of {above}'s from {bottom:g}"
                return facts, [Remark("scales", "warning", says, fix)]
        widths = sorted((top - bottom, name) for bottom, top, name in ranges if top > bottom)
        if widths and widths[-1][0] > _WIDER * widths[0][0]:
            (narrow, here), (wide, there) = widths[0], widths[-1]
            says = f"the middle 90% of {there}'s grades span {wide:g}, of {here}'s {narrow:g}"
            return facts, [Remark("scales", "warning", says, fix)]
        return facts, [Remark("scales", "ok", f"{len(known)} sources grade on one scale")]

    # -- scale and saturation

    def _about_scale(self) -> list[Remark]:
        remarks = []
        if self.missing:
            says = f"{share(self.missing, self.values.n + self.missing)} responses have no grade"
            remarks.append(Remark("grades", "note", says, "pairs with one of them have no grade gap"))
        if self.values.distinct == 1 and self.values.n > 1:
            says = f"every grade is {self.values.low:g}: they order nothing"
            remarks.append(Remark("grades", "problem", says, "is this the right column? see --column"))
        elif not remarks:
            says = f"{self.values.n:,} grades from {self.values.low:g} to {self.values.high:g}"
            remarks.append(Remark("grades", "ok", says))
        return remarks

    def _saturation(self, gamma: float | None) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        values, shares = self.values.table()
        like = len(values) > 20 and values[0] >= 0 and values[-1] <= 1
        for name, known in (
            ("probabilities", self.probs),
            *([("grades_as_probabilities", self.values)] if like else []),
        ):
            if known.n:
                at, part = known.table()
                facts[name] = {
                    "n": known.n,
                    "beyond_.001": float(part[(at < 0.001) | (at > 0.999)].sum()),
                    "beyond_.01": float(part[(at < 0.01) | (at > 0.99)].sum()),
                }
        if len(values) > 2:
            facts["grades_at_low_end"], facts["grades_at_high_end"] = float(shares[0]), float(shares[-1])
        if gamma is not None:
            gaps, part = self.gaps.table()
            facts["targets_beyond_.99"] = float(part[gaps > _CERTAIN / math.log(3) * self.gaps.median()].sum())
        return facts

    def _about_saturation(self, facts: dict[str, Any]) -> list[Remark]:
        remarks: list[Remark] = []
        for name, words in (
            ("probabilities", "probabilities"),
            ("grades_as_probabilities", "grades, probabilities by their range,"),
        ):
            part = facts.get(name, {}).get("beyond_.01", 0.0)
            if part > _SATURATED:
                level: Level = "warning" if part > _MOSTLY_SATURATED else "note"
                beyond = facts[name]["beyond_.001"]
                says = f"{part:.0%} of the {words} are beyond .01/.99, {beyond:.0%} beyond .001/.999"
                fix = "their differences read as 0 where log-odds differ by 5 or more: train on logits, clipped"
                remarks.append(Remark("saturation", level, says, fix))
        for name, words in (("grades_at_low_end", "lowest"), ("grades_at_high_end", "highest")):
            if facts.get(name, 0.0) > _AT_END and "grades_as_probabilities" not in facts:
                says = f"{facts[name]:.0%} of the grades are the {words} of the scale"
                remarks.append(Remark("saturation", "note", says, "among these the grades order nothing"))
        part = facts.get("targets_beyond_.99", 0.0)
        if part > _SATURATED:
            says = f"{part:.0%} of the targets are beyond .99 where gamma puts the median gap at .75"
            remarks.append(
                Remark("saturation", "note", says, "they train as hard labels; a smaller gamma, or a log map")
            )
        if not remarks and facts:
            remarks.append(Remark("saturation", "ok", "probabilities and targets keep away from 0 and 1"))
        return remarks


def centre_and_spread(values: Values) -> tuple[float, float]:
    """Median, and a standard deviation that a few wild values do not move.

    s = max(1.4826 * median|x - median|, (q90 - q10) / 2.563); both are the standard deviation of a normal.

    Example:
        >>> values = Values()
        >>> for value in (1.0, 2.0, 3.0, 4.0, 500.0):
        ...     values.add(value)
        >>> centre_and_spread(values)[0]
        3.0
    """
    middle = values.median()
    at, shares = values.table()
    with np.errstate(over="ignore"):  # grades of 1e308 are refused nowhere
        away = np.abs(at - middle)
    order = np.argsort(away, kind="stable")
    reached = np.cumsum(shares[order])
    mad = float(away[order][min(len(at) - 1, int(np.searchsorted(reached, 0.5 - 1e-12)))])
    return middle, max(1.4826 * mad, (values.quantile(0.9) - values.quantile(0.1)) / 2.5631)


def histogram(values: Values) -> list[dict[str, float]] | None:
    """Shares of the grades, or of their gaps; None where there are none.

    One bar a value where at most 10 differ, else ten equal steps.

    Example:
        >>> values = Values()
        >>> for value in (1.0, 1.0, 5.0, 5.0):
        ...     values.add(value)
        >>> histogram(values)
        [{'low': 1.0, 'high': 1.0, 'share': 0.5}, {'low': 5.0, 'high': 5.0, 'share': 0.5}]
    """
    if not values.n:
        return None
    at, shares = values.table()
    if len(at) <= BINS or not math.isfinite(values.high - values.low):  # the range of a float is no scale
        at, shares = at[:BINS], shares[:BINS]
        return [{"low": float(v), "high": float(v), "share": float(s)} for v, s in zip(at, shares, strict=True)]
    edges = np.linspace(values.low, values.high, BINS + 1)
    heights, _ = np.histogram(at, edges, weights=shares)
    return [
        {"low": float(edges[bar]), "high": float(edges[bar + 1]), "share": float(heights[bar])} for bar in range(BINS)
    ]
