"""What `margins.py` measures of gamma: by training or by raters, against hindsight and the known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from margins_study import (
    MOST_PAIRS,
    SETTINGS,
    Array,
    clusters_of,
    graded_file,
    interval,
    nll,
    parts,
    split_dev,
    spread,
    without_grades,
)

import marginkit as mk
from marginkit.assembly import recipe
from marginkit.data.pairing import make_pairs
from marginkit.embedders import Embedder
from marginkit.embedding_features import examples_of
from marginkit.embedding_heads import best_and_last
from marginkit.gamma import from_raters
from marginkit.gamma_fits import fit_slope
from marginkit.gamma_trained import GRID, from_training
from marginkit.groups import Groups
from marginkit.world import QUALITIES, make_world, preference_prob, true_gamma

RULES = ("stopped early", "to the end")


def gammas(name: str, path: Path, embedder: Embedder, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The gamma of auto against the best of the same grid on the test split of a file, under both stopping rules."""
    whole = graded_file(path)
    tables: dict[str, list[Array]] = {rule: [] for rule in RULES}
    chosen: dict[str, list[int]] = {rule: [] for rule in RULES}
    values: dict[str, list[float]] = {rule: [] for rule in RULES}
    for seed in seeds:
        train, test = parts(whole, seed)
        grid: list[float] = []
        for rule in RULES:
            found = from_training(train, embedder, replace(SETTINGS, keep_best=rule == RULES[0]), seed)
            grid = list(found.details["grid"])
            chosen[rule].append(grid.index(found.value))
            values[rule].append(found.value)
        losses = [*(recipe("mmpo_rm", gamma=gamma) for gamma in grid), recipe("bt")]
        own, dev = split_dev(examples_of(train, embedder), train, seed)
        held = examples_of(without_grades(test), embedder)
        for rule, heads in zip(RULES, best_and_last(own, losses, replace(SETTINGS, seed=seed), dev=dev), strict=True):
            rewards = heads.rewards(held.values)[:, held.columns["pairs"]]
            tables[rule].append(nll((rewards[..., 0] - rewards[..., 1]).numpy()))
    clusters = clusters_of(test)
    raters = from_raters(_with_ratings(path))
    rows = []
    for rule in RULES:
        table = np.mean(tables[rule], 0)  # [GRID + 1, pair], mean over seeds
        auto = np.mean([one[at] for one, at in zip(tables[rule], chosen[rule], strict=True)], 0)
        best = int(table[:GRID].mean(1).argmin())
        rows.append(
            {
                **{"file": name, "rule": rule, "pairs": table.shape[1], "seeds": len(seeds), "chosen": values[rule]},
                "grid": grid,
                "best": grid[best],
                "nll by gamma": [float(value) for value in table.mean(1)],
                "auto": interval(auto, clusters),
                "auto - best": interval(auto - table[best], clusters),
                "auto - hard": interval(auto - table[GRID], clusters),
                "raters": None if raters is None else (raters.value, raters.low, raters.high),
            }
        )
    return rows


def _with_ratings(path: Path) -> Groups:
    groups, _ = mk.read_groups(str(path), contradiction="keep")
    return groups if any(group.pairs for group in groups) else make_pairs(groups, "all", max_pairs=MOST_PAIRS)


def raters_of_the_world(sizes: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Gamma by raters against the known truth: the built-in world of high quality, of several sizes."""
    truth, rows = true_gamma("high"), []
    for size in sizes:
        told: dict[str, list[float]] = {name: [] for name in ("ratio", "covered", "held out", "left out", "halved")}
        for seed in seeds:
            world = make_world("high", prompts=size, demonstrations=1, dev=1, test=1, seed=seed)
            groups = make_pairs(_ungiven(world.graded), "all")
            found = from_raters(groups)
            assert found is not None
            held = found.details["held_out"]
            others, answer = _held_out(groups)
            told["ratio"].append(found.value / truth)
            told["covered"].append(float(found.low <= truth <= found.high))
            told["held out"].append(held / truth)
            clear = answer != 0
            for name, used in (("left out", clear), ("halved", np.full_like(clear, True))):
                share = (answer[used] + 1) / 2
                told[name].append(fit_slope(others[used], share, np.ones(len(share))) / held)
        row = {name: spread(column) for name, column in told.items() if name != "covered"}
        covered = f"{sum(told['covered']):.0f} of {len(seeds)}"
        rows.append({"prompts": size, "truth": truth, "covered": covered} | row)
    return rows


def _held_out(groups: Groups) -> tuple[Array, Array]:
    """Mean gap of the other raters, and what the one held out says (1, -1, or 0 for a tie)."""
    others, answer = [], []
    for group in groups:
        given = np.array([[rating.value for rating in response.ratings] for response in group.responses])
        for pair in group.pairs:
            gap = given[pair.chosen] - given[pair.rejected]
            others += ((gap.sum() - gap) / (len(gap) - 1)).tolist()
            answer += np.sign(gap).tolist()
    return np.array(others), np.array(answer)


def _ungiven(groups: Groups) -> Groups:
    return groups.map(lambda group: replace(group, pairs=()))


def training_in_the_world(prompts: int, embedder: Embedder, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Gamma by training where the truth is known: against true gamma, and how far its models are from the known P."""
    rows = []
    for quality in QUALITIES:
        truth = true_gamma(quality)
        told: dict[str, dict[str, list[float]]] = {
            rule: {"ratio": [], "auto": [], "true": [], "best": [], "hard": [], "best ratio": []} for rule in RULES
        }
        for seed in seeds:
            world = make_world(quality, prompts=prompts, demonstrations=1, dev=1, test=300, seed=seed).graded
            bare = make_pairs(_ungiven(Groups.from_iterable(g for g in world if g.split == "train")), "all")
            held = Groups.from_iterable(group for group in world if group.split == "test")
            data, known = examples_of(bare, embedder), examples_of(held, embedder)
            own, dev = split_dev(data, bare, seed)
            found = [
                from_training(bare, embedder, replace(SETTINGS, keep_best=rule == RULES[0]), seed) for rule in RULES
            ]
            grid = list(found[0].details["grid"])
            losses = [*(recipe("mmpo_rm", gamma=gamma) for gamma in [*grid, truth]), recipe("bt")]
            both = best_and_last(own, losses, replace(SETTINGS, seed=seed), dev=dev)
            utility = known.columns["utility"].numpy()
            prob = preference_prob(utility[:, 0], utility[:, 1])
            for rule, heads, one in zip(RULES, both, found, strict=True):
                pairs = heads.rewards(known.values)[:, known.columns["pairs"]].numpy()
                distance = np.abs(1 / (1 + np.exp(-(pairs[..., 0] - pairs[..., 1]))) - prob).mean(1)
                into = told[rule]
                into["ratio"].append(one.value / truth)
                into["auto"].append(float(distance[grid.index(one.value)]))
                into["true"].append(float(distance[GRID]))
                into["hard"].append(float(distance[GRID + 1]))
                into["best"].append(float(distance[:GRID].min()))
                into["best ratio"].append(grid[int(distance[:GRID].argmin())] / truth)
        for rule in RULES:
            row = {name: spread(column) for name, column in told[rule].items()}
            rows.append({"quality": quality, "rule": rule, "seeds": len(seeds), "truth": truth} | row)
    return rows
