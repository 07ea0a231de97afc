"""What `margins.py` measures: estimators of the gap where grades are hidden, and gamma chosen by evidence.

Every measurement is a function from data to a list of flat rows; `margins.py` runs them and writes the page.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import marginkit as mk
from marginkit.assembly import recipe
from marginkit.crossfit import crossfit
from marginkit.data.grades import pair_evidence
from marginkit.data.pairing import make_pairs
from marginkit.data.splits import assign_clusters
from marginkit.embedders import Embedder
from marginkit.embedding_features import Examples, examples_of
from marginkit.embedding_heads import Heads, HeadSettings, train_heads
from marginkit.evaluation.calibration import expected_calibration_error
from marginkit.evaluation.calibrators import fit_temperature
from marginkit.gamma import FEW_CLUSTERS
from marginkit.gamma_trained import cut_by_response, from_training
from marginkit.groups import Groups
from marginkit.records import Group, Pair

FILES = (
    *("feedbackqa_human_graded", "fgrlhf_human_graded", "arenabench_graded"),
    *("ultrafeedback_pairs", "humour_pairs", "ukpconvarg_pairs"),
)
MOST_GROUPS, MOST_PAIRS = 1200, 6
GRADED_SHARE = 5  # every so-manieth cluster keeps its grades, for the quality model
SETTINGS = HeadSettings()
Array = np.ndarray[Any, np.dtype[np.float64]]


# -- data


def oriented_file(source: Path | Sequence[dict[str, Any]]) -> Groups:
    """Groups of a file or of rows, with at most so many pairs, ordered by the grade gap; it alone is left of them."""
    given = str(source) if isinstance(source, Path) else source
    groups, _ = mk.read_groups(given, contradiction="keep")
    how = "given" if any(group.pairs for group in groups) else "all"
    bare = groups.map(lambda group: replace(group, comparisons=()))  # gaps of grades, not votes, are what is estimated
    return assign_clusters(make_pairs(bare, how, max_pairs=MOST_PAIRS).map(_by_grade))


def hangs_together(groups: Groups) -> bool:
    """Whether one cluster holds more than half of the groups: rows that share their responses."""
    return 2 * Counter(groups.column("cluster")).most_common(1)[0][1] > len(groups)


def graded_file(path: Path) -> Groups:
    """`oriented_file`; where all rows hang together, pairs to learn from are those inside one of eight clusters."""
    made = oriented_file(path)
    if not hangs_together(made):
        return made
    rest, test = (made.filter(lambda group, own=own: (group.split == "test") == own, reason="split") for own in (0, 1))
    return Groups.from_iterable([*cut_by_response(rest), *test])  # rows hang together by their responses


def _by_grade(group: Group) -> Group:
    pairs = []
    for pair in group.pairs:
        gap = pair_evidence(group, pair).grade_gap
        if gap is not None:
            first, second = (pair.chosen, pair.rejected) if gap >= 0 else (pair.rejected, pair.chosen)
            pairs.append(Pair(first, second, strength=abs(gap), tie=gap == 0))
    return replace(group, pairs=tuple(pairs))


def parts(groups: Groups, seed: int) -> tuple[Groups, Groups]:
    """(train, test): the file's own test split, and of the rest an even sample that the seed draws."""
    test = [group for group in groups if group.split == "test"]
    rest = [group for group in groups if group.split != "test"]
    drawn = np.random.default_rng(seed).permutation(len(rest))[:MOST_GROUPS]
    train = (replace(rest[at], split=None) for at in sorted(drawn))  # all of it may be learnt from
    return Groups.from_iterable(train), Groups.from_iterable(test[:MOST_GROUPS])


def gaps_of(groups: Groups, rewards: Sequence[Sequence[float]] | None = None) -> Array:
    """Of every untied pair: reward gap, or the grade gap."""
    return np.array(
        [
            pair.strength if rewards is None else rewards[row][pair.chosen] - rewards[row][pair.rejected]
            for row, group in enumerate(groups)
            for pair in group.pairs
            if not pair.tie
        ],
        dtype=np.float64,
    )


def clusters_of(groups: Groups) -> list[str]:
    """Of every untied pair."""
    return [str(group.cluster) for group in groups for pair in group.pairs if not pair.tie]


def interval(values: Array, clusters: Sequence[str], seed: int = 0, repeats: int = 1000) -> tuple[float, float, float]:
    """A mean and its 95% bootstrap interval over clusters."""
    few = len(set(clusters)) < FEW_CLUSTERS  # then the interval is over pairs
    _, place = np.unique(np.arange(len(clusters)) if few else clusters, return_inverse=True)
    size = int(place.max()) + 1
    sums, counts = np.bincount(place, values), np.bincount(place)
    times = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=repeats)
    drawn = (times @ sums) / np.maximum(times @ counts, 1e-9)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def nll(gaps: Array) -> Array:
    """Of the label, that the first is better."""
    return np.asarray(np.logaddexp(0, -gaps))


def split_dev(data: Examples, groups: Groups, seed: int) -> tuple[Examples, Examples]:
    """(train, dev) of examples: every seventh cluster, in an order that the seed draws, is dev."""
    names = sorted(set(groups.column("cluster")))
    dev = {names[at] for at in np.random.default_rng(seed).permutation(len(names))[::7]}
    rows = [row for row, name in enumerate(groups.column("cluster")) if name in dev]
    return data.take(sorted({*range(data.groups)} - {*rows})), data.take(rows)


# -- estimators of the gap


def without_grades(groups: Groups) -> Groups:
    """The same pairs with a hard label alone; ties are left out, as an ungraded file has none."""

    def bare(group: Group) -> Group:
        return replace(
            group,
            responses=tuple(replace(one, grade=None, ratings=(), aspects={}, utility=None) for one in group.responses),
            pairs=tuple(Pair(pair.chosen, pair.rejected) for pair in group.pairs if not pair.tie),
        )

    return groups.map(bare)


def estimate_gaps(train: Groups, embedders: Sequence[Embedder], seed: int) -> dict[str, Array]:
    """Estimates of the gap of every untied training pair, in logits, by name; made from labels and texts alone.

    The quality model alone sees grades: those of every fifth cluster.
    """
    hidden = without_grades(train)
    length = [[math.log1p(len(response.text)) for response in group.responses] for group in train]
    found = {"length": _fitted(gaps_of(train, length))}
    for embedder in embedders:
        found[f"similarity, {embedder.name}"] = _apart(hidden, embedder)
        rewards = crossfit(hidden, embedder=embedder, seed=seed)
        found[f"cross-fitted, {embedder.name}"] = gaps_of(train, rewards)
        found[f"cross-fitted size, {embedder.name}"] = np.abs(gaps_of(train, rewards))
    found[f"quality model, {embedders[-1].name}"] = gaps_of(train, _quality(train, embedders[-1], seed))
    return found


def _fitted(gaps: Array) -> Array:
    """Divided by the temperature that fits the labels."""
    return gaps / fit_temperature(gaps, np.ones_like(gaps))[0] if np.abs(gaps).max() > 0 else gaps


def _apart(groups: Groups, embedder: Embedder) -> Array:
    """1 - cos of the two responses, times a gamma that puts its median at P = 0.75; unsigned, so the label's way."""
    texts = [[response.text for response in group.responses] for group in groups]
    flat = embedder.embed([text for own in texts for text in own])
    first, made = 0, []
    for group in groups:
        made += [1 - float(flat[first + pair.chosen] @ flat[first + pair.rejected]) for pair in group.pairs]
        first += len(group.responses)
    apart = np.array(made)
    return apart * math.log(3) / float(np.median(apart[apart > 1e-6]))


def _quality(train: Groups, embedder: Embedder, seed: int) -> list[list[float]]:
    """Rewards of a head that saw the grades of every fifth cluster, its gamma chosen there; those cross-fitted."""
    names = sorted({str(group.cluster) for group in train})
    names = [names[at] for at in np.random.default_rng(seed).permutation(len(names))]
    kept = set(names[: max(8, len(names) // GRADED_SHARE)])
    graded = Groups.from_iterable(group for group in train if group.cluster in kept)
    gamma = from_training(graded, embedder, SETTINGS, seed).value
    data = examples_of(train, embedder)
    rows = [row for row, group in enumerate(train) if group.cluster in kept]
    dev = [row for row in rows if str(train[row].cluster) in set(sorted(kept)[::7])]
    fit = data.take([row for row in rows if row not in set(dev)])
    head = train_heads(fit, [recipe("mmpo_rm", gamma=gamma)], SETTINGS, dev=data.take(dev))
    sizes = [len(group.responses) for group in train]
    rewards = [part.tolist() for part in head.rewards(data.values)[0].split(sizes)]
    own = crossfit(graded, "mmpo_rm", {"gamma": gamma}, embedder=embedder, seed=seed, calibrate=False)
    for row, values in zip(rows, own, strict=True):
        rewards[row] = values
    return rewards


def estimators(name: str, path: Path, embedders: Sequence[Embedder], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every estimator on one file: rank correlation with true gaps, its target's NLL and ECE, what is learnt of it."""
    whole = graded_file(path)
    sums: dict[str, dict[str, list[Any]]] = {}
    reader = embedders[0]  # the downstream head is the same for all
    for seed in seeds:
        train, test = parts(whole, seed)
        gamma = from_training(train, reader, SETTINGS, seed).value
        truth = gaps_of(train)
        found = {"hard label": np.full_like(truth, np.inf), "true grades": gamma * truth}
        found |= estimate_gaps(train, embedders, seed)
        data, held = examples_of(without_grades(train), reader), examples_of(without_grades(test), reader)
        for estimator, gaps in found.items():
            told = sums.setdefault(estimator, {"rank": [], "nll": [], "ece": [], "right": [], "own": []})
            finite = bool(np.isfinite(gaps).all())
            told["rank"].append(float(spearmanr(gaps, truth).statistic) if finite and gaps.std() > 0 else math.nan)
            signed = finite and estimator.startswith(("length", "cross-fitted,", "quality"))
            prob = 1 / (1 + np.exp(-gaps)) if signed else np.ones(1)
            told["nll"].append(float(nll(gaps).mean()) if signed else math.nan)
            told["ece"].append(_ece(prob) if signed else math.nan)
            rewards = _learnt(data, train, None if not finite else gaps, seed).rewards(held.values)[0]
            learnt = rewards[held.columns["pairs"]]
            told["right"].append((learnt[:, 0] > learnt[:, 1]).double().numpy())
            told["own"].append(nll((learnt[:, 0] - learnt[:, 1]).numpy()))
    clusters = clusters_of(test)
    hard = np.mean(sums["hard label"]["own"], 0)
    rows = []
    for estimator, told in sums.items():
        own, right = np.mean(told["own"], 0), np.mean(told["right"], 0)
        rows.append(
            {
                **{"file": name, "estimator": estimator, "pairs": len(hard), "seeds": len(seeds)},
                "rank": spread(told["rank"]),
                "target nll": spread(told["nll"]),
                "target ece": spread(told["ece"]),
                "accuracy": interval(right, clusters),
                "nll": interval(own, clusters),
                "nll - hard": interval(own - hard, clusters),
            }
        )
    return rows


def _ece(prob: Array) -> float:
    """Of labels that are all 1: half of the pairs are turned around, as their order means nothing to a calibration."""
    turned = np.arange(len(prob)) % 2 == 1
    return float(expected_calibration_error(np.where(turned, 1 - prob, prob), np.where(turned, 0.0, 1.0)))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, smallest and largest over the seeds."""
    return float(np.mean(values)), float(np.min(values)), float(np.max(values))


def _learnt(data: Examples, train: Groups, gaps: Array | None, seed: int) -> Heads:
    """A head trained on the estimated gaps (None: the hard label), stopped by the order of held-out pairs."""
    loss = recipe("bt") if gaps is None else recipe("mmpo_rm")
    if gaps is not None:
        data = replace(data, columns={**data.columns, "target_gap": torch.from_numpy(gaps)})
    own, dev = split_dev(data, train, seed)
    return train_heads(own, [loss], replace(SETTINGS, metric="eval_nll", seed=seed), dev=dev)


def features(name: str, path: Path, embedders: Sequence[Embedder], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What a head reads, and its shape: accuracy and NLL of the true order on the test split."""
    whole, rows = graded_file(path), []
    for embedder in embedders:
        told: dict[str, tuple[list[Array], list[Array]]] = {}
        for seed in seeds:
            train, test = (without_grades(part) for part in parts(whole, seed))
            for kind, hidden in (("interaction", 0), ("response", 0), ("joined", 0), ("interaction", 32)):
                if kind == "joined" and embedder.name != "hash":
                    continue  # texts of their own to embed
                own, dev = split_dev(examples_of(train, embedder, kind), train, seed)  # type: ignore[arg-type]
                held = examples_of(test, embedder, kind)  # type: ignore[arg-type]
                settings = replace(SETTINGS, hidden=hidden, learning_rate=0.005 if hidden else 0.02, seed=seed)
                rewards = train_heads(own, [recipe("bt")], settings, dev=dev).rewards(held.values)[0]
                pairs = rewards[held.columns["pairs"]].numpy()
                right, own_nll = told.setdefault(f"{kind}{', hidden 32' if hidden else ''}", ([], []))
                right.append((pairs[:, 0] > pairs[:, 1]).astype(np.float64))
                own_nll.append(nll(pairs[:, 0] - pairs[:, 1]))
        clusters = clusters_of(test)
        for kind, (right, own_nll) in told.items():
            row: dict[str, Any] = {"file": name, "embedder": embedder.name, "features": kind, "pairs": len(right[0])}
            figures = {
                "accuracy": interval(np.mean(right, 0), clusters),
                "nll": interval(np.mean(own_nll, 0), clusters),
            }
            rows.append({**row, **figures})
    return rows


def timed(what: str, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Run a measurement and say how long it took."""
    began = time.perf_counter()
    rows = measure()
    print(f"{what}: {time.perf_counter() - began:.0f} s", flush=True)
    return rows
