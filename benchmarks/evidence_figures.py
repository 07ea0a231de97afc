"""From cells to numbers with intervals: what `evidence.py` says of a file, each figure the mean over its seeds.

A resample draws test prompts and seeds, both with replacement, the same draw for all methods: an interval covers which
prompts are judged on, and which training prompts (and folds, and order) the seeds had. Where there are fewer than 20
test prompts, responses are drawn instead and a pair counts the product of how often its two were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from evidence_cells import TWIN, Cell
from margins_study import Array, nll

from marginkit.evaluation.calibration import expected_calibration_error, sigmoid
from marginkit.evaluation.noise import debiased_statistic, noise_floor
from marginkit.gamma import FEW_CLUSTERS
from marginkit.records import Estimate

RESAMPLES = 1000
METRICS = ("accuracy", "nll", "brier", "ece")
"""`ece` is the debiased one; the plug-in stands beside its noise floor."""
NEAR = 0.02
Judged = tuple[str, str, bool]
"""Rule, method, and whether after temperature scaling."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The plug-in ECE and what a calibrated model would show, means over the seeds.

    Args:
        ece: plug-in.
        mean: of the floor.
        high: its 95% quantile.
    """

    ece: float
    mean: float
    high: float

    @property
    def inside(self) -> bool:
        """No sign of miscalibration."""
        return self.ece <= self.high

    @property
    def near(self) -> bool:
        """Inside, or at most 0.02 above."""
        return self.ece <= self.high + NEAR


@dataclass
class File:
    """All that is asked of a file's cells.

    Args:
        name: of the file.
        cells: one a seed, on the same test pairs.
    """

    name: str
    cells: Sequence[Cell]
    _drawn: dict[Judged, dict[str, tuple[float, Array]]] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Untied test pairs."""
        return len(self.cells[0].cluster)

    @property
    def clusters(self) -> int:
        """Test prompts; 0 where they are too few to be drawn."""
        found = len(set(self.cells[0].cluster.tolist()))
        return found if found >= FEW_CLUSTERS else 0

    @property
    def drawn_from(self) -> str:
        """What a resample draws."""
        responses = len(set(self.cells[0].responses.ravel().tolist()))
        return f"{self.clusters} prompts" if self.clusters else f"{responses} responses"

    def has(self, rule: str, method: str) -> bool:
        """Whether the method was trained on this file."""
        return f"{rule}/{method}" in self.cells[0].gaps

    def gaps(self, rule: str, method: str, cooled: bool) -> list[Array]:
        """Logits of every seed, better response first; cooled: divided by the temperature of dev."""
        key = f"{rule}/{method}"
        return [np.asarray(cell.gaps[key] / (cell.temperature[key] if cooled else 1.0), float) for cell in self.cells]

    @cached_property
    def weights(self) -> Array:
        """[resample, pair] how often a pair was drawn."""
        rng = np.random.default_rng(0)
        cell = self.cells[0]
        assert all((other.cluster == cell.cluster).all() for other in self.cells)
        codes = cell.cluster if self.clusters else cell.responses
        size = int(codes.max()) + 1
        times = rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(float)
        return times[:, codes] if self.clusters else times[:, codes[:, 0]] * times[:, codes[:, 1]]

    @cached_property
    def seeds(self) -> Array:
        """[resample, seed] how often a seed was drawn."""
        size = len(self.cells)
        return np.random.default_rng(1).multinomial(size, np.full(size, 1 / size), size=RESAMPLES) / size

    def drawn(self, rule: str, method: str, cooled: bool = False) -> dict[str, tuple[float, Array]]:
        """Metric -> its value, and its value on every resample [resample, seed]."""
        key = (rule, method, cooled)
        if key not in self._drawn:
            made: dict[str, tuple[list[float], list[Array]]] = {name: ([], []) for name in METRICS}
            clusters = self.cells[0].cluster if self.clusters else None
            for gap in self.gaps(*key):
                prob, ones = sigmoid(gap), np.ones_like(gap)
                means = {"accuracy": (gap > 0) * 1.0, "nll": nll(gap), "brier": (1 - prob) ** 2}
                total = self.weights.sum(1)
                for name, values in means.items():
                    made[name][0].append(float(values.mean()))
                    made[name][1].append(self.weights @ values / total)
                debiased = debiased_statistic(prob, ones, 10, clusters)
                made["ece"][0].append(float(debiased(np.ones((1, len(gap))))[0]))
                made["ece"][1].append(debiased(self.weights))
            self._drawn[key] = {
                name: (float(np.mean(value)), np.stack(drawn, 1)) for name, (value, drawn) in made.items()
            }
        return self._drawn[key]

    def level(self, rule: str, method: str, metric: str, cooled: bool = False) -> Estimate:
        """A metric of a method."""
        value, drawn = self.drawn(rule, method, cooled)[metric]
        found = self._estimate(value, drawn)
        if metric != "ece":
            return found
        return replace(found, low=min(found.low, value), high=max(found.high, value))  # resamples add noise to it

    def difference(
        self, rule: str, method: str, metric: str, cooled: bool = False, against: str | None = None
    ) -> Estimate:
        """A metric of a method minus that of BT (or of another), paired by seed and by pair."""
        return self.between((rule, method, cooled), (rule, against or base_of(method), cooled), metric)

    def between(self, one: Judged, other: Judged, metric: str) -> Estimate:
        """A metric of one minus that of the other, which may have another rule or temperature."""
        (value, drawn), (base, beside) = (self.drawn(*judged)[metric] for judged in (one, other))
        return self._estimate(value - base, drawn - beside)

    def floor(self, rule: str, method: str, cooled: bool = False) -> Floor:
        """The plug-in ECE beside its noise floor."""
        told = []
        for gap in self.gaps(rule, method, cooled):
            prob = sigmoid(gap)
            floor = noise_floor(prob, 10)
            told.append((expected_calibration_error(prob, np.ones_like(prob), 10), floor.mean, floor.high))
        return Floor(*(float(value) for value in np.mean(told, 0)))

    def at_bound(self, rule: str, method: str) -> int:
        """In how many seeds dev asked for the largest temperature there is: no better than chance."""
        return sum(cell.temperature[f"{rule}/{method}"] > 49 for cell in self.cells)

    def _estimate(self, value: float, drawn: Array) -> Estimate:
        low, high = np.quantile((drawn * self.seeds).sum(1), [0.025, 0.975])
        return Estimate(value, float(low), float(high), self.pairs, self.clusters)


def base_of(method: str) -> str:
    """What a method is compared with: BT, trained in the same steps."""
    return TWIN if method == "aplot" else "bt"


def outcome(found: Estimate, *, more_is_better: bool = False) -> str:
    """better, worse or level: whether the interval of a difference leaves 0 out."""
    low, high = (-found.high, -found.low) if more_is_better else (found.low, found.high)
    if math.isnan(low) or low <= 0 <= high:
        return "level"
    return "better" if high < 0 else "worse"
