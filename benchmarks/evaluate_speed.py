"""How long judging takes: `evaluate` on a million scored pairs, and four of its numbers against a plain bootstrap loop.

    python benchmarks/evaluate_speed.py [--pairs 1000000] [--plain 20000] [--draws 1000]

The pairs are made up: 0.4 prompts a pair, gaps that know the grade gap, 5% ties, hard labels. The plain loop draws
clusters with replacement, gathers their rows and computes accuracy, NLL, Brier score and ECE (10 bins) anew, in numpy;
ours gives the same four from the same number of draws in the same process, so the ratio has one machine under it. The
intervals of the two are printed beside each other. One line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.compare import compare
from marginkit.evaluation.metrics import evaluate
from marginkit.evaluation.pair_columns import PairColumns
from marginkit.evaluation.questions import Questions

Array = npt.NDArray[np.float64]


def made_up(n: int, seed: int = 0) -> pa.Table:
    """A pairs table of `n` pairs."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, max(1, int(0.4 * n)), n)
    grade_gap = rng.integers(0, 5, n).astype(float)
    target = 0.6 * grade_gap
    gap = target + rng.normal(0, 1, n)
    names = pa.array([f"p{number:07d}" for number in range(int(prompt.max()) + 1)]).take(pa.array(prompt))
    return pa.table(
        {
            "group": names,
            "pair": np.arange(n),
            "chosen": np.zeros(n, np.int32),
            "rejected": np.ones(n, np.int32),
            "cluster": names,
            "reward_chosen": gap,
            "reward_rejected": np.zeros(n),
            "gap": gap,
            "label_prob": pa.nulls(n, pa.float64()),
            "target_gap": target,
            "grade_gap": grade_gap,
            "tie": rng.random(n) < 0.05,
            "length_chosen": rng.integers(1, 400, n),
            "length_rejected": rng.integers(1, 400, n),
        }
    )


def plain(pairs: PairColumns, draws: int) -> dict[str, Array]:
    """The intervals of four numbers, each resample gathered and computed anew."""
    rng = np.random.default_rng(0)
    order = np.argsort(pairs.cluster, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(pairs.cluster[order])) + 1)
    drawn: dict[str, list[float]] = {name: [] for name in ("accuracy", "nll", "brier", "ece")}
    for _ in range(draws):
        rows = np.concatenate([members[own] for own in rng.integers(len(members), size=len(members))])
        gap, label, tie = pairs.gap[rows], pairs.label[rows], pairs.tie[rows]
        drawn["accuracy"].append(float((gap[~tie] > 0).mean()))
        gap, label = gap[~np.isnan(label)], label[~np.isnan(label)]
        prob = sigmoid(gap)
        drawn["nll"].append(float(np.mean(label * np.logaddexp(0, -gap) + (1 - label) * np.logaddexp(0, gap))))
        drawn["brier"].append(float(np.mean((label - prob) ** 2)))
        confidence, hit = np.maximum(prob, 1 - prob), np.where(prob > 0.5, label, 1 - label)
        code = np.searchsorted(np.arange(1, 11) / 10, confidence)
        drawn["ece"].append(float(np.abs(np.bincount(code, hit - confidence, 10)).sum() / len(gap)))
    return {name: np.quantile(values, [0.025, 0.975]) for name, values in drawn.items()}


def ours(pairs: PairColumns, draws: int) -> dict[str, Array]:
    """The same from sums over clusters."""
    asked = Questions(pairs.cluster, resamples=draws)
    values = pairs.values()
    for name in ("accuracy", "nll", "brier"):
        asked.mean(name, values[name])
    here = ~np.isnan(pairs.label)
    asked.ece("ece", sigmoid(pairs.gap[here]), pairs.label[here], here)
    return {name: np.array([found.low, found.high]) for name, found in asked.answers().items()}


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """The least time of a few runs."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description="Seconds of judging.")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--plain", type=int, default=20_000)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    small = PairColumns.read(made_up(options.plain))
    slow = seconds(lambda: plain(small, options.draws))
    fast = seconds(lambda: ours(small, options.draws), repeats=5)
    expected, found = plain(small, options.draws), ours(small, options.draws)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table, other = made_up(options.pairs), made_up(options.pairs)
    read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = seconds(lambda: evaluate(table, resamples=options.draws))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "machine": platform.processor() or platform.machine(),
        "plain": {"pairs": options.plain, "draws": options.draws, "seconds": slow},
        "ours": {"pairs": options.plain, "draws": options.draws, "seconds": fast},
        "ratio": slow / fast,
        "intervals": {
            name: {"plain": expected[name].round(4).tolist(), "ours": found[name].round(4).tolist()}
            for name in ("accuracy", "nll", "brier")
        },
        "evaluate": {
            "pairs": options.pairs,
            "draws": options.draws,
            "numbers": len(evaluate(made_up(1000))),
            "seconds": whole,
            "table_mb": table.nbytes / 1e6,
            "peak_mb": peak / 1e3,
            "peak_mb_with_tables_made": max(read, before) / 1e3,
        },
        "compare": {"pairs": options.pairs, "seconds": seconds(lambda: compare(table, other, resamples=options.draws))},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
