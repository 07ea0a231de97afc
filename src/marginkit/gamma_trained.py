"""gamma for ratings and nothing else: the one whose trained model is most often right, and sure when it is.

A grid of 7 gammas, 0.1 to 3 over the spread of the grade gaps. For each, heads on frozen embeddings are trained on one
half of the clusters with targets sigmoid(gamma * grade gap) and judged on the other half by the negative
log-likelihood of the order of the grades, ties left out. Never by the loss that they are trained on: that of a small
gamma is a different number, not a better model.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from marginkit.assembly import recipe
from marginkit.crossfit import crossfit_many
from marginkit.data.grades import pair_evidence
from marginkit.data.splits import assign_clusters, text_digest
from marginkit.embedders import Embedder
from marginkit.embedding_heads import HeadSettings
from marginkit.errors import BadInput
from marginkit.gamma import FEWEST, Gamma, resampled
from marginkit.groups import Groups
from marginkit.records import Group, Pair

GRID = 7
LOW, HIGH = 0.1, 3.0
"""Ends of the grid, in units of 1 / the root mean square of the grade gaps."""
MOST = 3000
"""Groups that heads are trained on at most; of more, an even sample is taken."""
_REPEATS, _PARTS = 1000, 8


def from_training(groups: Groups, embedder: Embedder, settings: HeadSettings, seed: int = 0) -> Gamma:
    """The gamma whose trained heads have the lowest NLL of the grades' order on clusters that they never saw.

    Args:
        groups: paired groups with grades or strengths.
        embedder: what the heads read, see `open_embedder`.
        settings: of the heads; `keep_best` is the stopping rule of the run to come, on which the best gamma depends.
        seed: of halves and bootstrap.

    Returns:
        The gamma, with the share of resampled clusters in the interval and the NLL of each candidate in `details`.

    Raises:
        BadInput: too few pairs or clusters, or all grades tie.
    """
    held = assign_clusters(_bare(groups))
    whole = 2 * Counter(held.column("cluster")).most_common(1)[0][1] <= len(held) if len(held) else True
    gaps = _gaps(held)
    untied = gaps[gaps != 0]
    if len(untied) < FEWEST:
        ties = f" ({len(gaps) - len(untied)} pairs are ties)" if len(untied) < len(gaps) else ""
        raise BadInput(
            f"target.gamma=auto: {len(untied)} pairs have different grades{ties}, and {FEWEST} are needed to choose a "
            "gamma by training; give target.gamma a number, or label pairs and name the file with data.labels"
        )
    parts = ""
    if not whole:
        held = cut_by_response(held)
        parts = f" of the pairs inside {_PARTS} clusters that share no response"
        every, gaps = len(untied), _gaps(held)
        untied = gaps[gaps != 0]
        if len(untied) < FEWEST:
            raise BadInput(
                f"target.gamma=auto: the data hangs together (one prompt, or responses in many rows): {len(untied)} of "
                f"{every} pairs with different grades can be kept apart for a model to be asked about, and {FEWEST} "
                "are needed; give more prompts, or give target.gamma a number"
            )
    unit = math.sqrt(float((untied**2).mean()))
    grid = np.geomspace(LOW, HIGH, GRID) / unit
    losses = [recipe("mmpo_rm", gamma=float(gamma)) for gamma in grid]
    try:
        rewards = crossfit_many(held, losses, embedder=embedder, seed=seed, settings=settings)
    except BadInput as refusal:
        raise BadInput(f"target.gamma=auto: {refusal}, or give target.gamma a number") from None
    nll: list[list[float]] = []
    cluster: list[str] = []
    for row, group in enumerate(held):
        for pair in group.pairs:
            gap = _gap(group, pair)
            if gap:
                own = [math.copysign(1, gap) * (one[row][pair.chosen] - one[row][pair.rejected]) for one in rewards]
                nll.append([float(np.logaddexp(0, -value)) for value in own])
                cluster.append(str(group.cluster))
    table = np.array(nll)
    place, clusters = resampled(cluster)
    sums = np.zeros((clusters or len(cluster), GRID))
    np.add.at(sums, place, table)
    best = int(sums.sum(0).argmin())
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_REPEATS)
    drawn = (times @ sums).argmin(1)
    low, high = (int(np.quantile(drawn, share, method="nearest")) for share in (0.025, 0.975))
    rule = "stopped early" if settings.keep_best else "trained to the end"
    edge = ""
    if best in (0, GRID - 1):
        edge = (
            ", at the edge of the grid: "
            + ("a still smaller" if best == 0 else "a still larger")
            + " one may do as well"
        )
    how = f"small models on {embedder.name} embeddings, {rule}, cross-fitted in halves{parts}{edge}"
    details = {
        "grid": [float(gamma) for gamma in grid],
        "nll": [float(value) for value in table.mean(0)],
        "chosen": [float(share) for share in np.bincount(drawn, minlength=GRID) / _REPEATS],
        "keep_best": settings.keep_best,
        "embedder": embedder.name,
        "edge": best in (0, GRID - 1),
    }
    return Gamma(
        float(grid[best]),
        float(grid[low]),
        float(grid[high]),
        "training",
        len(table),
        clusters,
        how,
        details,
    )


def cut_by_response(groups: Groups) -> Groups:
    """Groups of pairs in eight clusters that share no response; pairs between two of them are left out.

    For rows that all hang together because every response is in many of them: a response belongs to the cluster that
    its words' digest says.

    Args:
        groups: pairs, one or more a group.

    Returns:
        The groups whose pairs are inside a cluster; the others are counted in `dropped`.
    """

    def placed(group: Group) -> Group:
        parts = {int(text_digest(response.turns), 16) % _PARTS for response in group.responses}
        return replace(group, cluster=str(parts.pop()) if len(parts) == 1 else None)

    return groups.map(placed).filter(lambda group: group.cluster is not None, reason="between clusters")


def _bare(groups: Groups) -> Groups:
    """Grades alone: pairs without a grade gap left out, and no more groups than heads need."""
    step = max(1, -(-len(groups) // MOST))

    def kept(group: Group) -> Group:
        pairs = [
            Pair(pair.chosen, pair.rejected, strength=found.grade_gap, weight=pair.weight, tie=not found.grade_gap)
            for pair in group.pairs
            if (found := pair_evidence(group, pair)).grade_gap is not None
        ]
        return replace(
            group,
            responses=tuple(replace(response, utility=None) for response in group.responses),
            comparisons=(),
            pairs=tuple(pairs),
        )

    return Groups.from_iterable(kept(group) for group in groups[::step])


def _gaps(groups: Groups) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([_gap(group, pair) for group in groups for pair in group.pairs])


def _gap(group: Group, pair: Pair) -> float:
    gap = pair_evidence(group, pair).grade_gap
    assert gap is not None
    return gap
