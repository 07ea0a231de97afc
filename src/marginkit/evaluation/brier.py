"""What the Brier score is made of: calibration, discrimination, and what no forecast could have known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marginkit.evaluation.calibration import Binned, Form


@dataclass(frozen=True, slots=True)
class BrierParts:
    """`Brier = reliability - resolution + uncertainty + within_variance - within_covariance`, exactly.

    Args:
        reliability: squared gap between outcome and forecast of the bins; 0 is calibrated. Biased upward, as an ECE is.
        resolution: how far the bins' outcomes lie from the overall one: what the forecasts tell apart.
        uncertainty: variance of the outcomes: the Brier score of saying the overall share each time.
        within_variance: variance of the forecasts inside their bins.
        within_covariance: twice the covariance of forecast and outcome inside bins: what is told apart within them.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_variance: float
    within_covariance: float

    @property
    def brier(self) -> float:
        """The Brier score they add up to."""
        within = self.within_variance - self.within_covariance
        return self.reliability - self.resolution + self.uncertainty + within


def brier_parts(prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10, *, form: Form = "confidence") -> BrierParts:
    """Decompose `mean (label - prob)^2` over equal bins `(low, high]` on [0, 1].

    With f the forecast and o the outcome of a pair, means over bin b and over all:
    `sum_b n_b/N (f_b - o_b)^2 - sum_b n_b/N (o_b - o)^2 + mean (o - o_all)^2 + mean var_b(f) - 2 mean cov_b(f, o)`.

    In the confidence form o is whether the preferred side is right: uncertainty is accuracy (1 - accuracy), resolution
    how well confidence tells right from wrong. In the symmetric form o is whether the first side is better, from both
    sides: uncertainty is 1/4 for hard labels, and resolution holds the accuracy. The Brier score is the same in both.

    Args:
        prob: `[pair]`, the model's P(first is better).
        label: `[pair]`, the true one: 0, 1, or a vote share between.
        bins: how many on [0, 1].
        form: confidence or symmetric.

    Returns:
        The parts, which add up to the Brier score whatever the bins; the two within parts are 0 where forecasts are
        equal inside each bin.

    Raises:
        BadInput: as `expected_calibration_error`.

    Example:
        >>> parts = brier_parts([0.8, 0.8, 0.8, 0.8, 0.6], [1, 1, 1, 1, 0])
        >>> round(parts.reliability, 4), round(parts.resolution, 4), round(parts.uncertainty, 4)
        (0.104, 0.16, 0.16)
        >>> round(parts.brier, 4)
        0.104

    Source: Murphy 1973; parts within bins Stephenson, Coelho and Jolliffe, Weather and Forecasting 23 (2008).
    """
    binned = Binned.of(prob, label, bins, form=form)
    share = binned.means() / len(binned.code)
    f, o = (binned.means(values)[binned.code] for values in (binned.forecast, binned.outcome))
    overall = float(binned.outcome.mean())
    apart = (binned.means(binned.outcome) - overall) ** 2
    gaps = (binned.means(binned.forecast) - binned.means(binned.outcome)) ** 2
    return BrierParts(
        reliability=float(np.nansum(share * gaps)),
        resolution=float(np.nansum(share * apart)),
        uncertainty=float(np.mean((binned.outcome - overall) ** 2)),
        within_variance=float(np.mean((binned.forecast - f) ** 2)),
        within_covariance=float(2 * np.mean((binned.forecast - f) * (binned.outcome - o))),
    )
