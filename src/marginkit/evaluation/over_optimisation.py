"""How far a proxy can be pushed: the fit of Gao et al. to a best-of-n curve, and whether the curve can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, estimates, mean_of
from marginkit.records import Estimate

FEWEST_SAMPLES = 5
"""Samples below which two coefficients are not fitted: from four points on."""


@dataclass(frozen=True, slots=True)
class OverOptimisation:
    """`gain = d (a - b d)`, `d = sqrt(KL)`.

    Args:
        a: gold units per sqrt(nat): how fast the gold rises at first.
        b: gold units per nat: how fast the rise bends down.
        peak: `a / (2 b)`, the d at which the gold would be highest; None where the data do not tell (see `says`).
        peak_gain: `a^2 / (4 b)`, the gain there, gold units; None likewise.
        seen: the largest d of the curve.
        rms: root mean square of what the fit leaves, gold units.
        identified: whether the 95% intervals of a and b are both above 0 and the peak lies in what was seen.
        says: the reading in words.
    """

    a: Estimate
    b: Estimate
    peak: float | None
    peak_gain: float | None
    seen: float
    rms: float
    identified: bool
    says: str

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere."""
        found = {name: getattr(self, name) for name in ("peak", "peak_gain", "seen", "rms", "identified", "says")}
        return {"a": self.a.to_json(), "b": self.b.to_json(), **found}


def fit_over_optimisation(
    gain: npt.ArrayLike, clusters: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> OverOptimisation | None:
    """Fit `R(d) = d (a - b d)`, with `d = sqrt(log n - (n - 1) / n)`, to the gain of best-of-n by least squares.

    The coefficients are linear in the curve, and the curve is a mean over prompts: each prompt's own coefficients are
    averaged, and their interval is that of any mean. All n are points, equally weighted; they come from the same
    responses, so how well the line lies on them says little, and the interval over prompts is what counts.

    Args:
        gain: `[N, prompt]`, gold(n) - gold(1) of each prompt for n = 1..N.
        clusters: `[prompt]`.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The fit; None below 5 samples.

    Raises:
        BadInput: the shapes do not fit.

    Example:
        >>> n = np.arange(1, 17)
        >>> d = np.sqrt(np.log(n) - (n - 1) / n)
        >>> fit = fit_over_optimisation((d * (1.0 - 0.5 * d))[:, None].repeat(30, axis=1), range(30))
        >>> round(fit.a.value, 6), round(fit.b.value, 6), round(fit.peak, 6), fit.identified
        (1.0, 0.5, 1.0, True)

    Source: Gao, Schulman and Hilton 2210.10760, section 3.1. The form is theirs for best-of-n only; that of
    reinforcement learning, `d (a - b log d)`, is another. Deviation: R(0) is the curve's own value at n = 1.
    """
    curve = np.asarray(gain, np.float64)
    groups = np.asarray(clusters)
    if curve.ndim != 2 or curve.shape[1] != len(groups):
        raise BadInput(f"gain {curve.shape} and clusters {groups.shape}: one column for each prompt")
    if len(curve) < FEWEST_SAMPLES:
        return None
    n = np.arange(1, len(curve) + 1)
    d: Array = np.sqrt(np.log(n) - (n - 1) / n)[1:]
    design = np.stack([d, -d * d], axis=1)
    own = np.linalg.pinv(design) @ curve[1:]
    found = estimates({"a": mean_of(own[0]), "b": mean_of(own[1])}, groups, resamples=resamples, seed=seed)
    a, b, seen = found["a"], found["b"], float(d[-1])
    rms = float(np.sqrt(np.mean((curve[1:].mean(1) - design @ own.mean(1)) ** 2)))
    peak = a.value / (2 * b.value) if a.value > 0 and b.value > 0 else None
    says = _says(a, b, peak, seen)
    identified = says is None
    if not identified or peak is None:
        return OverOptimisation(a, b, None, None, seen, rms, False, says or "not identified")
    top = a.value**2 / (4 * b.value)
    words = f"the gold is highest at sqrt(KL) = {peak:.2f} and falls beyond: this proxy is over-optimised there"
    return OverOptimisation(a, b, peak, top, seen, rms, True, words)


def _says(a: Estimate, b: Estimate, peak: float | None, seen: float) -> str | None:
    """Why the peak is not identified; None where it is."""
    if not (a.low > 0):
        return "not identified: the gold does not surely rise at all, so nothing is said of a peak"
    if not (b.low > 0) or peak is None:
        return "not identified: the curve does not surely bend down within what was sampled"
    if peak > seen:
        return f"not identified: the peak would lie at sqrt(KL) = {peak:.2f}, beyond the {seen:.2f} that was sampled"
    return None
