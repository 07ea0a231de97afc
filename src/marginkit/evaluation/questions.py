"""What is asked of a table of pairs, answered together: one draw of clusters for all numbers on the same pairs."""

from __future__ import annotations

import math

import numpy as np

from marginkit.evaluation.bootstrap import Array, Codes, Mask, Statistic, estimates, mean_of
from marginkit.evaluation.calibration import Binned, Form, ece_of
from marginkit.evaluation.noise import debiased_of
from marginkit.records import Estimate


class Questions:
    """Statistics of subsets of the same rows, collected and then estimated.

    Args:
        cluster: `[row]`, the cluster of each row.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Example:
        >>> asked = Questions(np.arange(4), resamples=100)
        >>> asked.mean("accuracy", np.array([1.0, 0.0, np.nan, 1.0]))
        >>> found = asked.answers()["accuracy"]
        >>> round(found.value, 3), found.n
        (0.667, 3)
    """

    def __init__(self, cluster: Codes, *, resamples: int = 1000, seed: int = 0) -> None:
        self.cluster = cluster
        self.resamples, self.seed = resamples, seed
        self._asked: dict[bytes, tuple[Mask, dict[str, Statistic]]] = {}
        self._names: list[str] = []
        self._debiased: dict[str, str] = {}

    def ask(self, name: str, statistic: Statistic, here: Mask) -> None:
        """A statistic of the rows that are `here`; it was built on those rows alone."""
        self._asked.setdefault(here.tobytes(), (here, {}))[1][name] = statistic
        self._names.append(name)

    def mean(self, name: str, values: Array) -> None:
        """The mean of the rows that have a value (are not NaN)."""
        here = ~np.isnan(values)
        self.ask(name, mean_of(values[here]), here)

    def ece(
        self,
        name: str,
        prob: Array,
        label: Array,
        here: Mask,
        *,
        bins: int = 10,
        form: Form = "confidence",
        adaptive: bool = False,
        debiased: str | None = None,
    ) -> None:
        """The plug-in ECE of the rows that are `here`, with the debiased one's interval, widened to hold the value.

        The plug-in's own percentiles miss a true ECE of 0 every time: each resample adds noise to the sample's.

        Args:
            name: of the answer.
            prob: `[here]`, the model's P(first is better).
            label: `[here]`, the true one.
            here: `[row]`, which rows they are.
            bins: how many.
            form: confidence or symmetric.
            adaptive: bins of equal count.
            debiased: answer the debiased ECE itself too, under this name.
        """
        if not len(prob):
            self.ask(name, mean_of(prob), here)  # NaN, and n = 0
            return
        binned = Binned.of(prob, label, bins, form=form, adaptive=adaptive)
        self.ask(name, ece_of(binned), here)
        own = debiased or f"{name} without noise"
        self.ask(own, debiased_of(binned, self.cluster[here]), here)
        if debiased is None:
            self._names.remove(own)
        self._debiased[name] = own

    def answers(self) -> dict[str, Estimate]:
        """All estimates, in the order in which they were asked for."""
        found: dict[str, Estimate] = {}
        for here, statistics in self._asked.values():
            found |= estimates(statistics, self.cluster[here], resamples=self.resamples, seed=self.seed)
        return {name: self._widened(name, found) for name in self._names}

    def _widened(self, name: str, found: dict[str, Estimate]) -> Estimate:
        own = found[name]
        if name not in self._debiased or math.isnan(own.low):
            return own
        around = found[self._debiased[name]]
        return Estimate(own.value, min(around.low, own.value), max(around.high, own.value), own.n, own.clusters)
