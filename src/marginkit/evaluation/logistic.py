"""Logistic regression on probabilities as targets, to its minimum: what the win rates with controls are fitted by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput, RunFailed
from marginkit.evaluation.bootstrap import Array
from marginkit.evaluation.calibration import sigmoid

MOST_STEPS = 500


def fit_logistic(features: npt.ArrayLike, target: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Array:
    """Weights w that minimise `sum_i weight_i (log(1 + exp(z_i)) - target_i z_i)`, `z = features w`.

    No intercept, no penalty; L-BFGS from 0. The objective is convex. Where one side wins everything it has no
    minimum: w grows until the gradient is next to nothing, and the fitted probabilities are next to 0 and 1.

    Args:
        features: `[row, k]`.
        target: `[row]`, in [0, 1].
        weight: `[row]`, at least 0; equal if None.

    Returns:
        `[k]`.

    Raises:
        BadInput: shapes do not fit, or a value is not finite.
        RunFailed: the fit does not come to an end.

    Example:
        >>> fit_logistic(np.ones((2, 1)), [0.5, 1.0]).round(5).tolist()  # log(.75 / .25)
        [1.09861]
    """
    from scipy.optimize import minimize

    x, y = np.asarray(features, np.float64), np.asarray(target, np.float64)
    w = np.ones_like(y) if weight is None else np.asarray(weight, np.float64)
    if x.ndim != 2 or y.shape != (len(x),) or w.shape != y.shape or not len(x):
        raise BadInput(f"features {x.shape}, target {y.shape}, weight {w.shape}: one row each")
    if not all(np.isfinite(one).all() for one in (x, y, w)):
        raise BadInput("features, targets and weights must be finite")
    total = w.sum()

    def loss(coefficients: Array) -> tuple[float, Array]:
        z = x @ coefficients
        slope = w * (sigmoid(z) - y)
        return float(w @ (np.logaddexp(0, z) - y * z) / total), np.asarray(x.T @ slope / total)

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options=_OPTIONS)
    if np.abs(found.jac).max() > 1e-4:
        raise RunFailed(f"a logistic regression on {len(x)} rows did not come to an end: {found.message}")
    return np.asarray(found.x)


_OPTIONS = {"maxiter": MOST_STEPS, "gtol": 1e-7, "ftol": 1e-15}
