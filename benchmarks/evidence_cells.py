"""What `evidence.py` trains. A cell is a file, an embedder and a seed; what it gave is kept, so a killed run goes on.

A cell keeps the reward gap of every test pair, better response first, under each method and stopping rule, and the
temperature that fits dev best. Everything on the page is worked out from these.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from margins_gamma import RULES
from margins_study import Array, clusters_of, gaps_of, hangs_together, oriented_file, without_grades

import marginkit as mk
from marginkit.assembly import recipe
from marginkit.core.loss import Loss
from marginkit.crossfit import temperatures
from marginkit.data.grades import pair_evidence
from marginkit.data.splits import text_digest
from marginkit.embedders import Embedder
from marginkit.embedding_features import examples_of
from marginkit.embedding_heads import Heads, HeadSettings, best_and_last
from marginkit.gamma import FEW_CLUSTERS, Gamma
from marginkit.gamma_run import choose_gamma
from marginkit.gamma_trained import GRID, from_training
from marginkit.groups import Groups
from marginkit.records import Group

EARLY, END = RULES
SMALL_STEP = 32  # prompts; what `marginkit train` gives a recipe that looks at the other pairs of its step
LARGEST_MARGIN = 3.0  # of Llama 2's large margins, and of the strengths of scaled BT as released
TWIN = "bt in small steps"
VOTES = "mmpo_rm on votes"
OTHER = "mmpo_rm, the other rule's gamma"
BY_TRAINING = "mmpo_rm, gamma by training"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was fixed before a test figure was seen.

    Args:
        epochs: of the long training; the epoch that dev likes best is chosen from the same run.
        lengths: other lengths at whose end BT, smoothing and MMPO are judged as well.
        small_step_epochs: of APLOT and the BT beside it, in steps of 32 prompts.
        left_out: share of the training prompts that a seed leaves out.
    """

    epochs: int = 300
    lengths: tuple[int, ...] = (100, 1000)
    small_step_epochs: int = 40
    left_out: float = 0.2


Source = Path | Sequence[dict[str, Any]]
QUICK = Plan(epochs=30, lengths=(60,), small_step_epochs=3)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one cell gave.

    Args:
        gaps: "rule/method" -> [pair] logits on the test split, better response first.
        temperature: "rule/method" -> fitted on dev.
        cluster: [pair] of the test split.
        responses: [pair, 2], which.
        facts: counts, gammas, seconds.
    """

    gaps: dict[str, Array]
    temperature: dict[str, float]
    cluster: np.ndarray[Any, Any]
    responses: np.ndarray[Any, Any]
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".half")
        with half.open("wb") as sink:
            np.savez(
                sink,
                gaps=np.stack(list(self.gaps.values())),
                cluster=self.cluster,
                responses=self.responses,
                told=np.array(json.dumps([list(self.gaps), self.temperature, self.facts])),
            )
        half.rename(path)

    @classmethod
    def load(cls, path: Path) -> Cell:
        """What `save` wrote."""
        with np.load(path) as held:
            names, temperature, facts = json.loads(str(held["told"]))
            gaps = dict(zip(names, held["gaps"], strict=True))
            return cls(gaps, temperature, held["cluster"], held["responses"], facts)


# -- data


def split(groups: Groups, seed: int, left_out: float) -> tuple[Groups, Groups, Groups]:
    """(train, dev, test): the file's own, and what a seed draws.

    Without a dev split every seventh training cluster is dev; where all rows hang together by their responses, a
    quarter of the responses is, and pairs of one on either side are left out. Of the rest a seed leaves out a share.
    """
    rng = np.random.default_rng(seed)
    given = {name: [group for group in groups if group.split == name] for name in ("train", "dev", "test")}
    train, dev = given["train"], given["dev"]
    if not dev and hangs_together(groups):
        names = sorted({name for group in train for name in _names(group)})
        held = {names[at] for at in rng.permutation(len(names))[::4]}
        dev = [group for group in train if held.issuperset(_names(group))]
        train = [group for group in train if held.isdisjoint(_names(group))]
    elif not dev:
        names = sorted({str(group.cluster) for group in train})
        held = {names[at] for at in rng.permutation(len(names))[::7]}
        dev = [group for group in train if group.cluster in held]
        train = [group for group in train if group.cluster not in held]
    units = [str(group.cluster) for group in train]
    if len(set(units)) < FEW_CLUSTERS:
        units = [group.id for group in train]
    names = sorted(set(units))
    out = {names[at] for at in rng.permutation(len(names))[: int(left_out * len(names))]}
    kept = [replace(group, split=None) for group, unit in zip(train, units, strict=True) if unit not in out]
    return Groups.from_iterable(kept), Groups.from_iterable(dev), Groups.from_iterable(given["test"])


def _names(group: Group) -> set[str]:
    return {text_digest(response.turns) for response in group.responses}


def untied(groups: Groups) -> Groups:
    """The same groups without the pairs that are ties."""
    return groups.map(lambda group: replace(group, pairs=tuple(pair for pair in group.pairs if not pair.tie)))


def vote_shares(path: Path) -> dict[str, float]:
    """Of pairs with votes: group -> share for the response that the grade says is better."""
    groups, _ = mk.read_groups(str(path), contradiction="keep")
    found = {}
    for group in groups:
        for pair in group.pairs:
            told = pair_evidence(group, pair)
            if pair.votes is not None and told.prob is not None and told.grade_gap is not None:
                found[group.id] = told.prob if told.grade_gap >= 0 else 1 - told.prob
    return found


# -- a cell


def measure(source: Source, embedder: Embedder, seed: int, plan: Plan) -> Cell:
    """Train and judge everything of one cell."""
    began = time.perf_counter()
    train, dev, test = split(oriented_file(source), seed, plan.left_out)
    own, watched, held = (examples_of(part, embedder) for part in (train, untied(dev), without_grades(test)))
    pairs = held.columns["pairs"]
    gaps: dict[str, Array] = {}
    temperature: dict[str, float] = {}

    def judge(rule: str, heads: Heads, names: Sequence[str]) -> None:
        rewards, heat = heads.rewards(held.values)[:, pairs].numpy(), temperatures(heads, watched).tolist()
        for name, both, fitted in zip(names, rewards, heat, strict=True):
            gaps[f"{rule}/{name}"], temperature[f"{rule}/{name}"] = both[:, 0] - both[:, 1], fitted

    settings = HeadSettings(epochs=plan.epochs, metric="eval_nll", seed=seed)
    auto, trained = gammas(train, embedder, settings, seed)
    losses = fixed_losses(train) | {f"gamma {n}": _mmpo(gamma) for n, gamma in enumerate(trained[END].details["grid"])}
    names = {rule: _place(found, trained[rule], losses) for rule, found in auto.items()}
    curve: list[dict[str, float]] = []
    both = best_and_last(own, list(losses.values()), settings, dev=watched, log=_into(curve))
    for rule, heads in zip(RULES, both, strict=True):
        judge(rule, heads, list(losses))
        for name, place in (
            ("mmpo_rm", names[rule]),
            (OTHER, names[END if rule == EARLY else EARLY]),
            (BY_TRAINING, _place(trained[rule], trained[rule], losses)),
        ):
            gaps[f"{rule}/{name}"] = gaps[f"{rule}/{place}"]
            temperature[f"{rule}/{name}"] = temperature[f"{rule}/{place}"]
    steps = replace(settings, epochs=plan.small_step_epochs, prompts_per_step=SMALL_STEP)
    both = best_and_last(own, [recipe("bt"), recipe("aplot")], steps, dev=watched)
    for rule, heads in zip(RULES, both, strict=True):
        judge(rule, heads, [TWIN, "aplot"])
    shares = vote_shares(source) if isinstance(source, Path) else {}
    if shares:
        prob = torch.tensor([shares[group.id] for group in train for _ in group.pairs], dtype=torch.float64)
        voted = replace(own, columns={**own.columns, "prob": prob})
        for rule, heads in zip(RULES, best_and_last(voted, [_mmpo(0.0)], settings, dev=watched), strict=True):
            judge(rule, heads, [VOTES])
    lengths = {}
    for epochs in plan.lengths:
        longer = replace(settings, epochs=epochs, keep_best=False)
        found = auto[END] if auto[END].source != "training" else from_training(train, embedder, longer, seed)
        three = {"bt": recipe("bt"), "bt_smooth": recipe("bt_smooth"), "mmpo_rm": _mmpo(found.value)}
        judge(f"{epochs} epochs", best_and_last(own, list(three.values()), longer)[1], list(three))
        lengths[str(epochs)] = found.value
    facts = {
        "train_prompts": len({str(group.cluster) for group in train}),
        "train_pairs": len(own.columns["pairs"]),
        "train_ties": int(own.columns["tie"].sum()),
        "dev_pairs": len(watched.columns["pairs"]),
        "test_pairs": len(pairs),
        "grid": list(trained[END].details["grid"]),
        "gamma": {rule: _told(found) for rule, found in auto.items()},
        "gamma_by_training": {rule: _told(found) for rule, found in trained.items()},
        "gamma_by_length": lengths,
        "bt_best_epoch": 1 + int(np.argmin([line["eval_nll"] for line in curve])),
        "bt_loss": [curve[at]["loss"] for at in (int(0.9 * len(curve)) - 1, -1)],
        "plan": asdict(plan),
        "seconds": time.perf_counter() - began,
    }
    _, cluster = np.unique(clusters_of(test), return_inverse=True)
    _, responses = np.unique(_responses_of(test), return_inverse=True)
    return Cell(gaps, temperature, cluster, responses.reshape(-1, 2), facts)


def fixed_losses(train: Groups) -> dict[str, Loss]:
    """BT and the methods that need a scale: the largest grade gap of the training pairs counts 3."""
    scale = LARGEST_MARGIN / float(gaps_of(train).max())
    return {
        "bt": recipe("bt"),
        "bt_smooth": recipe("bt_smooth", eps=0.1),
        "bt_margin": recipe("bt_margin", scale=scale),
        "bt_scaled": recipe("bt_scaled", scale=scale),
    }


def gammas(
    train: Groups, embedder: Embedder, settings: HeadSettings, seed: int
) -> tuple[dict[str, Gamma], dict[str, Gamma]]:
    """By stopping rule: what `target.gamma=auto` chooses, and what training alone says."""
    auto, trained = {}, {}
    for rule in RULES:
        ruled = replace(settings, keep_best=rule == EARLY)
        auto[rule] = choose_gamma(train, embedder=lambda: embedder, settings=ruled, seed=seed)
        known = auto[rule].source == "training"
        trained[rule] = auto[rule] if known else from_training(train, embedder, ruled, seed)
    return auto, trained


def _place(found: Gamma, trained: Gamma, losses: dict[str, Loss]) -> str:
    """The head of that gamma: one of the grid, or one of its own."""
    grid = list(trained.details["grid"])
    if found.value in grid:
        return f"gamma {grid.index(found.value)}"
    losses[f"gamma {GRID}"] = _mmpo(found.value)  # from raters: the same under both rules
    return f"gamma {GRID}"


def _mmpo(gamma: float) -> Loss:
    return recipe("mmpo_rm", gamma=float(gamma))


def _told(found: Gamma) -> dict[str, Any]:
    return {"value": found.value, "source": found.source, "edge": bool(found.details.get("edge", False))}


def _into(lines: list[dict[str, float]]) -> Callable[[int, dict[str, float]], None]:
    return lambda epoch, line: lines.append(line)


def _responses_of(groups: Groups) -> list[list[str]]:
    """[pair][2] of every untied pair."""
    return [
        [text_digest(group.responses[at].turns) for at in (pair.chosen, pair.rejected)]
        for group in groups
        for pair in group.pairs
        if not pair.tie
    ]


# -- all cells of a file


def cells(
    name: str, source: Source, embedder: Embedder, seeds: int, plan: Plan, folder: Path, say: Callable[[str], None]
) -> list[Cell]:
    """The cells of a file, those that are missing measured now."""
    found = []
    for seed in range(seeds):
        kept = folder / embedder.name / f"{name}-{seed}.npz"
        if not kept.is_file():
            measured = measure(source, embedder, seed, plan)
            measured.save(kept)
            say(f"{embedder.name}, {name}, seed {seed}: {measured.facts['seconds']:.0f} s")
        found.append(Cell.load(kept))
        if found[-1].facts["plan"] != json.loads(json.dumps(asdict(plan))):
            raise SystemExit(f"{kept}: was measured under another plan; use another --store")
    assert all(math.isfinite(float(gap.sum())) for cell in found for gap in cell.gaps.values())
    return found
