"""Best of n: what drawing n responses and keeping the one with the highest reward brings, judged by something else."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, estimates, mean_of
from marginkit.evaluation.over_optimisation import OverOptimisation, fit_over_optimisation
from marginkit.records import Estimate

GOLDS = ("grade", "utility")
MOST_SAMPLES = 1000


def best_of_n_kl(n: npt.ArrayLike) -> Array:
    """KL divergence of best-of-n from the policy it draws from, in nats, where no two responses are equal.

    KL = log n - (n - 1) / n

    It is exact where the policy has no atoms (no response, and no reward, is ever drawn twice) and an *upper bound*
    otherwise: a policy that can say ten things only cannot move further than log 10. `best_of_n_kl_uniform` shows it.

    Args:
        n: `[...]`, how many are drawn; at least 1.

    Returns:
        `[...]`, nats.

    Raises:
        BadInput: an n below 1.

    Example:
        >>> best_of_n_kl([1, 2, 4, 512]).round(6).tolist()
        [0.0, 0.193147, 0.636294, 5.240278]

    Source: Stiennon et al. 2009.01325; that it is a bound: Beirami et al. 2401.01879.
    """
    drawn = np.asarray(n, np.float64)
    if (drawn < 1).any():
        raise BadInput(f"n={drawn.min():g}: best of n draws at least one response")
    return np.asarray(np.log(drawn) - (drawn - 1) / drawn)


def best_of_n_kl_uniform(n: int, answers: int) -> float:
    """The exact KL of best-of-n where the policy draws one of K answers with different rewards, each as often.

    KL = sum_k q_k log(K q_k), q_k = (k / K)^n - ((k - 1) / K)^n, k = 1..K

    Args:
        n: how many are drawn; at least 1.
        answers: K; at least 1.

    Returns:
        Nats: at most `best_of_n_kl(n)`, and at most log K.

    Raises:
        BadInput: n or K below 1.

    Example:
        >>> round(best_of_n_kl_uniform(8, 2), 6), round(float(best_of_n_kl(8)), 6)
        (0.667588, 1.204442)
    """
    if n < 1 or answers < 1:
        raise BadInput(f"n={n}, answers={answers}: both are at least 1")
    edges = (np.arange(answers + 1) / answers) ** n
    q = np.diff(edges)
    q = q[q > 0]
    return float(np.sum(q * np.log(answers * q)))


def chances_of_best(proxy: npt.ArrayLike, most: int | None = None) -> Array:
    """Chance of each of N responses to be the best of n of them, drawn without replacement, for all n.

    Sorted by the proxy, the response at place i (from 0) is the best of n with chance `C(i, n-1) / C(N, n)`. Equal
    proxies are in random order, averaged exactly: a block of m equal ones at places lo to hi shares
    `(C(hi, n) - C(lo, n)) / C(N, n)` equally.

    Args:
        proxy: `[N]`, finite.
        most: the largest n; N if None.

    Returns:
        `[most, N]`; row n - 1 is best-of-n and sums to 1.

    Raises:
        BadInput: no response, one that is not finite, or `most` above N.

    Example:
        >>> gold = np.array([0.1, 0.4, 0.2, 0.3])
        >>> (chances_of_best([1, 2, 3, 4]) @ gold).round(6).tolist()
        [0.25, 0.283333, 0.275, 0.3]
        >>> chances_of_best([5, 5, 1], 2).round(6).tolist()
        [[0.333333, 0.333333, 0.333333], [0.5, 0.5, 0.0]]
    """
    values = np.asarray(proxy, np.float64)
    count = len(values)
    upto = count if most is None else most
    if values.ndim != 1 or not count or not np.isfinite(values).all():
        raise BadInput("the proxy has one finite number for each response, and at least one response")
    if not 1 <= upto <= count:
        raise BadInput(f"n={upto} of {count} responses: n lies between 1 and their number")
    _, block, size = np.unique(values, return_inverse=True, return_counts=True)
    high = np.cumsum(size)
    reached = _all_among(count, upto)
    share = (reached[:, high] - reached[:, high - size]) / size
    return np.asarray(share[:, block])


def _all_among(count: int, upto: int) -> Array:
    """`[n - 1, r]`: chance that n of N draws all lie among the r lowest, `C(r, n) / C(N, n)`."""
    below = np.arange(count + 1.0)
    step = np.arange(float(upto))[:, None]
    return np.asarray(np.cumprod(np.maximum(below - step, 0.0) / (count - step), axis=0))


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The curve, one entry for each n from 1 to N.

    Args:
        n: how many responses are drawn.
        kl: nats, `log n - (n - 1) / n`: an upper bound where responses or rewards repeat.
        proxy: mean reward of the response kept, in the proxy's units.
        gold: its mean gold score, in the gold's units.
        gain: `gold(n) - gold(1)`, paired by prompt.
        ceiling: the mean gold score if the gold itself chose: what a perfect proxy would reach.
        prompts: prompts judged.
        samples: N.
        largest: the most responses that any of these prompts has.
        left_out: prompts left out, by reason.
        tied: share of responses whose proxy equals that of another response to the prompt.
        over_optimisation: the fit of Gao et al.; None below five samples.
    """

    n: list[int]
    kl: list[float]
    proxy: list[Estimate]
    gold: list[Estimate]
    gain: list[Estimate]
    ceiling: list[Estimate]
    prompts: int
    samples: int
    largest: int
    left_out: dict[str, int]
    tied: float
    over_optimisation: OverOptimisation | None

    def to_json(self) -> dict[str, Any]:
        """Lists of equal length, so that a page can draw them; estimates as they are elsewhere."""
        curves = {name: [e.to_json() for e in getattr(self, name)] for name in ("proxy", "gold", "gain", "ceiling")}
        found = {name: getattr(self, name) for name in ("n", "kl", "prompts", "samples", "largest", "left_out", "tied")}
        fit = self.over_optimisation
        return {**found, **curves, "over_optimisation": None if fit is None else fit.to_json()}


def judge_best_of_n(
    responses: pa.Table,
    gold: str | pa.Table = "grade",
    *,
    samples: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> BestOfN:
    """Gold score of the best of n by a proxy, for all n up to N, from N scored responses a prompt.

    gold(n) = mean over prompts of sum_i P(i is the best of n) gold_i, with the chances of `chances_of_best`: the
    mean over all ways to draw n of the N responses, so that nothing is drawn anew and no draw is wasted.

    Args:
        responses: the responses table of `marginkit score`; its `reward` is the proxy.
        gold: `grade` or `utility` of the same table, or another responses table of the same responses, whose
            `reward` is the gold.
        samples: N; prompts with fewer responses are left out and counted. None takes as many as every prompt has.
        resamples: of the bootstrap over clusters.
        seed: of the bootstrap.

    Returns:
        The curve.

    Raises:
        BadInput: no gold, the tables hold different responses, a reward is not finite, or no prompt is left.

    Example:
        >>> table = pa.table({"group": ["a"] * 4, "response": range(4), "cluster": ["a"] * 4,
        ...                   "reward": [1.0, 2.0, 3.0, 4.0], "grade": [0.1, 0.4, 0.2, 0.3]})
        >>> [round(one.value, 6) for one in judge_best_of_n(table).gold]
        [0.25, 0.283333, 0.275, 0.3]

    Source: the estimator without re-sampling as in Nakano et al. 2112.09332. Deviation: ties are averaged exactly,
    and no large binomial is formed.
    """
    columns = _Columns.read(responses, gold)
    groups = columns.by_group()
    prompts = [rows for rows in groups if columns.known(rows)]
    left_out = {"no gold score": len(groups) - len(prompts)} if len(prompts) < len(groups) else {}
    if samples is not None and not 1 <= samples <= MOST_SAMPLES:
        raise BadInput(f"samples={samples}: lies between 1 and {MOST_SAMPLES}")
    count = min((len(rows) for rows in prompts), default=0) if samples is None else samples
    count = min(count, MOST_SAMPLES)
    kept = [rows for rows in prompts if len(rows) >= count]
    if len(kept) < len(prompts):
        left_out[f"fewer than {count} responses"] = len(prompts) - len(kept)
    if not kept or not count:
        why = ", ".join(f"{reason}: {times}" for reason, times in left_out.items()) or "the table is empty"
        raise BadInput(f"best of {count}: no prompt is left ({why}); sample more responses, or ask for fewer")
    curves = {name: np.empty((count, len(kept))) for name in ("proxy", "gold", "ceiling")}
    tied = 0
    for at, rows in enumerate(kept):
        proxy, true = columns.proxy[rows], columns.gold[rows]
        chances = chances_of_best(proxy, count)
        curves["proxy"][:, at], curves["gold"][:, at] = chances @ proxy, chances @ true
        curves["ceiling"][:, at] = chances_of_best(true, count) @ true
        _, times = np.unique(proxy, return_counts=True)
        tied += int(times[times > 1].sum())
    curves["gain"] = curves["gold"] - curves["gold"][0]
    clusters = np.asarray([columns.cluster[rows[0]] for rows in kept])
    asked = {(name, n): mean_of(curve[n]) for name, curve in curves.items() for n in range(count)}
    found = estimates(
        {f"{name} {n}": one for (name, n), one in asked.items()}, clusters, resamples=resamples, seed=seed
    )
    drawn = list(range(1, count + 1))
    return BestOfN(
        n=drawn,
        kl=[float(nats) for nats in best_of_n_kl(drawn)],
        prompts=len(kept),
        samples=count,
        largest=max(len(rows) for rows in kept),
        left_out=left_out,
        tied=tied / sum(len(rows) for rows in kept),
        over_optimisation=fit_over_optimisation(curves["gain"], clusters, resamples=resamples, seed=seed),
        **{name: [found[f"{name} {n}"] for n in range(count)] for name in curves},
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """One row a response."""

    group: list[str]
    cluster: list[str]
    proxy: Array
    gold: Array

    @classmethod
    def read(cls, table: pa.Table, gold: str | pa.Table) -> _Columns:
        keys = _keys(table, "the table")
        proxy = _numbers(table, "reward", "the table")
        if np.isnan(proxy).any():
            raise BadInput(f"the table: {np.isnan(proxy).sum()} responses have no reward; score them again")
        if isinstance(gold, str):
            if gold not in GOLDS:
                raise BadInput(f"gold={gold!r}: is {' or '.join(GOLDS)}, or another table of the same responses")
            true = _numbers(table, gold, "the table")
            if np.isnan(true).all():
                raise BadInput(f"no response has a {gold}: grade them, or name another scoring of them as the gold")
        else:
            other = dict(zip(_keys(gold, "the gold table"), _numbers(gold, "reward", "the gold table"), strict=True))
            missing = [key for key in keys if key not in other]
            if missing:
                lacking, response = missing[0]
                raise BadInput(
                    f"the gold table lacks {len(missing)} of {len(keys)} responses (the first: group {lacking}, "
                    f"response {response}); score the same file with both models"
                )
            true = np.asarray([other[key] for key in keys])
        names = table.column_names
        group = [key[0] for key in keys]
        cluster = table["cluster"].to_pylist() if "cluster" in names else [None] * len(keys)
        return cls(
            group, [one if one is not None else own for one, own in zip(cluster, group, strict=True)], proxy, true
        )

    def by_group(self) -> list[npt.NDArray[np.int64]]:
        """The rows of each prompt."""
        rows: dict[str, list[int]] = {}
        for at, group in enumerate(self.group):
            rows.setdefault(group, []).append(at)
        return [np.asarray(members) for members in rows.values()]

    def known(self, rows: npt.NDArray[np.int64]) -> bool:
        """Whether every response to a prompt has a gold score."""
        return not np.isnan(self.gold[rows]).any()


def _keys(table: pa.Table, name: str) -> list[tuple[str, int]]:
    for column in ("group", "response"):
        if column not in table.column_names:
            raise BadInput(f"{name}: has no column {column!r}; give the responses.parquet that marginkit score wrote")
    keys = list(zip(table["group"].to_pylist(), table["response"].to_pylist(), strict=True))
    if len(set(keys)) < len(keys):
        (twice, response), times = Counter(keys).most_common(1)[0]
        raise BadInput(f"{name}: group {twice}, response {response} is there {times} times; score the file once")
    return keys


def _numbers(table: pa.Table, column: str, name: str) -> Array:
    if column not in table.column_names:
        raise BadInput(f"{name}: has no column {column!r}; give the responses.parquet that marginkit score wrote")
    values = [math.nan if value is None else float(value) for value in table[column].to_pylist()]
    if any(math.isinf(value) for value in values):
        raise BadInput(f"{name}: a {column} is infinite; score the responses again")
    return np.asarray(values, np.float64)
