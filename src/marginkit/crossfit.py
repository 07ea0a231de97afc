"""Cross-fitted rewards: of every response, from a head that never saw its cluster.

A reward model that is asked about its own training pairs repeats their labels. Here the clusters are dealt into folds;
a head on frozen embeddings is trained on the other folds and asked about this one, so a label never speaks for itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from marginkit.assembly import recipe as loss_of
from marginkit.core.loss import Loss
from marginkit.data.pairing import make_pairs
from marginkit.data.splits import assign_clusters
from marginkit.embedders import Embedder
from marginkit.embedding_features import Examples, examples_of
from marginkit.embedding_heads import Heads, HeadSettings, train_heads
from marginkit.errors import BadInput
from marginkit.evaluation.calibrators import fit_temperature
from marginkit.groups import Groups
from marginkit.progress import progress
from marginkit.registry import load_recipe

DEV_SHARE = 7
"""Of the clusters a head may see, every so-manieth is kept from training, for early stopping and the temperature."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold and who may see what of it.

    Args:
        asked: rows of the groups that are scored.
        train: rows to train on, of other clusters.
        dev: rows of yet other clusters, to stop and to calibrate on.
    """

    asked: tuple[int, ...]
    train: tuple[int, ...]
    dev: tuple[int, ...]


def deal(clusters: Sequence[str], folds: int = 2, seed: int = 0) -> list[Fold]:
    """Deal clusters into folds of equal numbers of clusters, in an order that the seed draws.

    Args:
        clusters: of every group.
        folds: 2 or more.
        seed: another seed deals otherwise.

    Returns:
        The folds; every group is asked about once, and no cluster is in two parts of a fold.

    Raises:
        BadInput: fewer than 4 clusters a fold, or one that holds more than half of the groups.

    Example:
        >>> fold = deal([str(n) for n in range(28)])[0]
        >>> len(fold.asked), len(fold.train), len(fold.dev)
        (14, 12, 2)
    """
    names = sorted(set(clusters), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    if folds < 2 or len(names) < 4 * folds:
        raise BadInput(
            f"cross-fitting in {folds} folds: needs 2 folds or more and 4 clusters (prompts) in each, and there are "
            f"{len(names)} clusters; give more prompts"
        )
    largest, size = Counter(clusters).most_common(1)[0]
    if 2 * size > len(clusters):
        raise BadInput(
            f"cross-fitting: cluster {largest} holds {size} of {len(clusters)} groups (one prompt, or rows that share "
            "responses), so hardly anything is left to train the head on that is asked about it; take the rewards of a "
            "model that was trained on other data"
        )
    place = {name: at for at, name in enumerate(names)}
    dealt = []
    for number in range(folds):
        parts: dict[str, list[int]] = {"asked": [], "train": [], "dev": []}
        for row, name in enumerate(clusters):
            turn, fold = divmod(place[name], folds)
            part = "asked" if fold == number else "dev" if turn % DEV_SHARE == DEV_SHARE - 1 else "train"
            parts[part].append(row)
        if not parts["dev"]:
            others = [name for at, name in enumerate(names) if at % folds != number]
            parts["dev"] = [row for row in parts["train"] if clusters[row] == others[-1]]
            parts["train"] = [row for row in parts["train"] if clusters[row] != others[-1]]
        dealt.append(Fold(*(tuple(parts[name]) for name in ("asked", "train", "dev"))))
    return dealt


def crossfit(
    groups: Groups,
    recipe: str = "bt",
    options: Mapping[str, Any] | None = None,
    *,
    embedder: Embedder,
    folds: int = 2,
    seed: int = 0,
    settings: HeadSettings | None = None,
    calibrate: bool = True,
) -> list[list[float]]:
    """The reward of every response, always from a head on frozen embeddings that never saw its cluster.

    Args:
        groups: graded groups; where there is no pair at all, the compared pairs, else all that the evidence orders.
            Where there is a split train, heads learn from it alone; the other splits are asked about.
        recipe: a reward-model recipe, by which the heads are trained.
        options: of the recipe by the paper's names, e.g. {"gamma": 0.5} for mmpo_rm.
        embedder: see `open_embedder`.
        folds: how many parts; each head sees the others.
        seed: of the folds.
        settings: of the heads.
        calibrate: divide each fold's rewards by the temperature that fits the labels of clusters kept from training,
            so that sigmoid(difference) is a probability; without labels there it is left at 1.

    Returns:
        [group][response], logits. Only differences inside a group mean something: every fold has its own zero.

    Raises:
        BadInput: no pair to learn from, too few clusters, or no reward-model recipe.

    Example:
        >>> from marginkit.embedders import open_embedder
        >>> from marginkit.records import Group, Pair, Response
        >>> answers = Response("A full answer."), Response("No idea.")
        >>> groups = Groups.from_iterable(Group(str(n), f"Why {n}?", answers, pairs=(Pair(0, 1),)) for n in range(60))
        >>> rewards = crossfit(groups, embedder=open_embedder("hash"))
        >>> all(full > none for full, none in rewards)
        True
    """
    return crossfit_many(
        groups,
        [_loss(recipe, options or {}, seed)],
        embedder=embedder,
        folds=folds,
        seed=seed,
        settings=settings,
        calibrate=calibrate,
    )[0]


def crossfit_many(
    groups: Groups,
    losses: Sequence[Loss],
    *,
    embedder: Embedder,
    folds: int = 2,
    seed: int = 0,
    settings: HeadSettings | None = None,
    calibrate: bool = False,
) -> list[list[list[float]]]:
    """`crossfit` for several losses at once, for the price of little more than one.

    Args:
        groups: as for `crossfit`.
        losses: what the heads are trained by.
        embedder: see `open_embedder`.
        folds: how many parts.
        seed: of the folds.
        settings: of the heads.
        calibrate: see `crossfit`.

    Returns:
        [loss][group][response], logits.

    Raises:
        BadInput: as `crossfit`.
    """
    held = assign_clusters(_paired(groups))
    settings = replace(settings or HeadSettings(), seed=seed)
    parts = _dealt(held, folds, seed)
    data = examples_of(held, embedder, settings.features)
    if not len(data.columns["pairs"]) and any(loss.per == "pair" for loss in losses):
        raise BadInput("cross-fitting: no pair to learn from; the data has neither pairs, votes nor grades")
    rewards = torch.zeros(len(losses), len(data.values), dtype=torch.float64)
    with progress(len(parts), "cross-fit heads") as bar:
        for fold in parts:
            dev = data.take(fold.dev)
            heads = train_heads(data.take(fold.train), losses, settings, dev=dev)
            asked = torch.isin(data.owner, torch.tensor(fold.asked))
            made = heads.rewards(data.values[asked])
            if calibrate:
                made = made / temperatures(heads, dev)[:, None]
            rewards[:, asked] = made
            bar()
    sizes = torch.bincount(data.owner, minlength=data.groups).tolist()
    return [[part.tolist() for part in row.split(sizes)] for row in rewards]


def _dealt(groups: Groups, folds: int, seed: int) -> list[Fold]:
    """The folds; where there is a split train, only its labels are learnt from, and the others are asked about."""
    clusters, splits = groups.column("cluster"), groups.column("split")
    learn = [row for row, split in enumerate(splits) if split == "train"] or list(range(len(splits)))
    dealt = deal([clusters[row] for row in learn], folds, seed)
    home = {clusters[learn[at]]: number for number, fold in enumerate(dealt) for at in fold.asked}
    asked: list[list[int]] = [[] for _ in dealt]
    for row, name in enumerate(clusters):
        asked[home.setdefault(name, len(home) % folds)].append(row)
    return [
        Fold(tuple(rows), tuple(learn[at] for at in fold.train), tuple(learn[at] for at in fold.dev))
        for rows, fold in zip(asked, dealt, strict=True)
    ]


def temperatures(heads: Heads, dev: Examples) -> torch.Tensor:
    """[G] what each head's rewards are divided by so that they fit held-out labels best; 1 where there are none.

    A label is the observed probability, else 1; ties without one are left out.
    """
    prob, tie = dev.columns["prob"], dev.columns["tie"]
    label = torch.where(torch.isnan(prob), torch.ones_like(prob), prob)
    used = ~(tie & torch.isnan(prob))
    found = torch.ones(len(heads.outer), dtype=torch.float64)
    if not bool(used.any()):
        return found
    rewards = heads.rewards(dev.values)
    for number, row in enumerate(rewards):
        pairs = row[dev.columns["pairs"]][used]
        gaps = (pairs[:, 0] - pairs[:, 1]).numpy()
        if np.abs(gaps).max() > 0:
            temperature, at_bound = fit_temperature(gaps, label[used].numpy())
            found[number] = 1.0 if at_bound and temperature < 1 else temperature  # all right: nothing to fit
    return found


def _loss(name: str, options: Mapping[str, Any], seed: int) -> Loss:
    kind = load_recipe(name).kind
    if kind != "reward_model":
        raise BadInput(f"cross-fitting: recipe {name} trains a {kind.replace('_', ' ')}; use bt or mmpo_rm")
    return loss_of(name, seed=seed, **options)


def _paired(groups: Groups) -> Groups:
    """The groups with pairs, all of them kept."""
    if any(group.pairs for group in groups):
        return groups
    how = "given" if any(group.comparisons for group in groups) else "all"
    return make_pairs(groups, how, keep_unpaired=True)  # type: ignore[arg-type]
