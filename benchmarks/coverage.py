"""Do intervals and verdicts hold? Cheap worlds whose truth is known, judged many times over as `evaluate` does.

    python benchmarks/coverage.py [--worlds 1000] [--pairs 1000] [--draws 400]

A world: the model's gaps are normal numbers (sd 1.5 logits), in part shared by the pairs of a prompt; which response
was preferred is drawn from sigmoid(gap / T), T = 1 for a calibrated model and 1.5 for one that is surer than it should
be. Prompts have one to three pairs, and prompts are what is drawn. Two kinds of answers:

- coverage: the share of worlds whose 95% interval of accuracy, NLL and Brier score holds the true value, which is known
  from a million pairs of the same model;
- the ECE null test (`verdict["inside_floor"]`): how often a calibrated model is called miscalibrated, and how often
  one at temperature 1.5 is.

Each figure is printed with its own 95% Wilson interval over worlds. Exit code 1 if one is outside its bounds: coverage
93 to 97%, a calibrated model rejected in at most 7%, the other in at least 90%.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from marginkit.evaluation.calibration import expected_calibration_error, sigmoid, wilson_interval
from marginkit.evaluation.noise import noise_floor
from marginkit.evaluation.pair_columns import nll
from marginkit.evaluation.questions import Questions

Array = npt.NDArray[np.float64]
BOUNDS = {
    "accuracy": (0.93, 0.97),
    "nll": (0.93, 0.97),
    "brier": (0.93, 0.97),
    "rejected, calibrated": (0.0, 0.07),
    "rejected, temperature 1.5": (0.90, 1.0),
}


def world(rng: np.random.Generator, n: int, temperature: float) -> tuple[Array, npt.NDArray[np.int64]]:
    """`n` gaps, of the response that was preferred over the other, and their prompts."""
    cluster = np.repeat(np.arange(n), rng.integers(1, 4, n))[:n]
    gap = 1.5 * (np.sqrt(0.3) * rng.standard_normal(n)[cluster] + np.sqrt(0.7) * rng.standard_normal(n))
    first = rng.random(n) < sigmoid(gap / temperature)
    return np.where(first, gap, -gap), cluster


def values_of(gap: Array) -> dict[str, Array]:
    """What each pair adds to the means; the label is on the first response."""
    ones = np.ones_like(gap)
    return {"accuracy": (gap > 0).astype(float), "nll": nll(gap, ones), "brier": (1 - sigmoid(gap)) ** 2}


def covered(worlds: int, pairs: int, draws: int, temperature: float = 1.0) -> Iterator[dict[str, bool]]:
    """World by world, whether each interval holds the truth."""
    truth = {
        name: x.mean() for name, x in values_of(world(np.random.default_rng(99), 1_000_000, temperature)[0]).items()
    }
    for number in range(worlds):
        gap, cluster = world(np.random.default_rng([1, number]), pairs, temperature)
        asked = Questions(cluster, resamples=draws, seed=number)
        for name, x in values_of(gap).items():
            asked.mean(name, x)
        yield {name: found.low <= truth[name] <= found.high for name, found in asked.answers().items()}


def rejected(worlds: int, pairs: int, temperature: float) -> Iterator[bool]:
    """World by world, whether the ECE lies above the floor of a calibrated model."""
    for number in range(worlds):
        gap, _ = world(np.random.default_rng([2, number]), pairs, temperature)
        prob = sigmoid(gap)
        yield expected_calibration_error(prob, np.ones(pairs)) > noise_floor(prob, seed=number).high


def figures(worlds: int, pairs: int, draws: int) -> dict[str, tuple[float, int]]:
    """Each share, and over how many worlds."""
    held = list(covered(worlds, pairs, draws))
    found = {name: (float(np.mean([one[name] for one in held])), worlds) for name in ("accuracy", "nll", "brier")}
    for name, temperature in (("rejected, calibrated", 1.0), ("rejected, temperature 1.5", 1.5)):
        found[name] = (float(np.mean(list(rejected(worlds, pairs, temperature)))), worlds)
    return found


def main() -> None:
    """Print one line of JSON; exit code 1 if a figure is out of bounds."""
    parser = argparse.ArgumentParser(description="Coverage of intervals and size of the null test.")
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=400)
    options = parser.parse_args()
    began = time.perf_counter()
    found = figures(options.worlds, options.pairs, options.draws)
    told = {
        name: {"share": share, "interval": [round(end, 4) for end in wilson_interval(share, n)], "bounds": BOUNDS[name]}
        for name, (share, n) in found.items()
    }
    print(json.dumps({**vars(options), "seconds": round(time.perf_counter() - began, 1), **told}))
    sys.exit(any(not BOUNDS[name][0] <= share <= BOUNDS[name][1] for name, (share, _) in found.items()))


if __name__ == "__main__":
    main()
