"""Grading by a model: rewards made into utilities by a temperature, or cross-fitted on the data's own labels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.data.graded import Grades, response_starts
from marginkit.data.grades import pair_evidence
from marginkit.errors import BadInput
from marginkit.groups import Groups

Array = npt.NDArray[np.float64]


def grade_by_reward(
    groups: Groups, *, reward: str = "", temperature: str | float = "fit", store: str = "store"
) -> Grades:
    """Utility = reward / temperature: a reward model's scores of the responses, from the store or from tables.

    The temperature makes the differences logits: fitted on the labels of the pairs in the data (`labelled_gaps`), or
    given. Source: Guo et al., ICML 2017, here for rewards.

    Args:
        groups: any groups; with labelled pairs for temperature=fit.
        reward: a run, a saved reward model, or score tables (a folder of `marginkit score`).
        temperature: fit, or a number > 0.
        store: folder of the score store.

    Raises:
        BadInput: no reward is named, tables that do not cover the groups, or labels that no temperature fits.
    """
    if not reward:
        raise BadInput("how=reward needs reward: a run, a saved reward model, or score tables, e.g. reward=runs/bt-1")
    from marginkit.signals import collect_signals

    values = collect_signals(groups, rewards=[reward], store=store).reward
    return _scaled(groups, values, temperature, {"reward": reward})


def grade_by_crossfit(
    groups: Groups,
    *,
    embedder: Any = "minilm",
    recipe: str = "bt",
    gamma: float | None = None,
    folds: int = 2,
    seed: int = 0,
    store: str = "",
) -> Grades:
    """Utilities for data without grades: rewards of heads on embeddings that never saw the prompt.

    See `marginkit.crossfit.crossfit`: each fold's rewards are divided by the temperature that fits the labels of
    prompts its head did not see. Every fold has its own zero, so a prompt's utilities are centred on 0.

    Args:
        groups: groups with labels of any kind.
        embedder: `minilm`, `hash`, a folder or hub name, or an opened embedder.
        recipe: a reward-model recipe.
        gamma: of the recipe, where it takes grades (mmpo_rm).
        folds: how many parts.
        seed: of the folds.
        store: folder of the score store for embeddings; empty for none.

    Raises:
        BadInput: no pair to learn from, or too few prompts.
    """
    from marginkit.crossfit import crossfit
    from marginkit.embedders import open_embedder

    if isinstance(embedder, str):
        embedder = open_embedder(embedder, store=Path(store) if store else None)
    options = {} if gamma is None else {"gamma": gamma}
    rewards = crossfit(groups, recipe, options, embedder=embedder, folds=int(folds), seed=int(seed))
    values = np.array([value for own in rewards for value in own], dtype=float)
    # each fold has its own zero: only differences inside a prompt mean something
    for start, stop in pairwise(response_starts(groups).tolist()):
        values[start:stop] -= values[start:stop].mean()
    return Grades(groups, "utility", values, {}, {"embedder": embedder.name, "recipe": recipe, "folds": int(folds)})


def _scaled(groups: Groups, rewards: Array, temperature: str | float, facts: dict[str, Any]) -> Grades:
    """Rewards divided by a temperature: given, or fitted on the labels of the pairs in the data."""
    if temperature == "fit":
        from marginkit.evaluation.calibrators import fit_temperature

        gap, label = labelled_gaps(groups, rewards)
        if not gap.any():
            raise BadInput("temperature=fit: no pair with a label has two different rewards; set temperature=1")
        temperature, at_bound = fit_temperature(gap, label)
        if at_bound:
            why = "all of them are ordered rightly" if temperature < 1 else "the rewards do not go with the labels"
            raise BadInput(
                f"temperature=fit: none is best for {len(gap)} labelled pairs: {why}; use labels that the model "
                "has not seen, how=crossfit, or set temperature=1"
            )
        facts |= {
            "fitted on": len(gap),
            "right": float(np.mean((gap > 0)[label != 0.5] == (label > 0.5)[label != 0.5])),
        }
    if not isinstance(temperature, int | float) or not np.isfinite(temperature) or temperature <= 0:
        raise BadInput(f"temperature={temperature!r}: fit, or a number > 0 that rewards are divided by")
    return Grades(groups, "utility", rewards / temperature, {}, facts | {"temperature": float(temperature)})


def labelled_gaps(groups: Groups, rewards: Array) -> tuple[Array, Array]:
    """Gap of rewards and label of every pair in the data: of the split `train` where there is one, else of all.

    A label is the vote share or probability where there is one, 1/2 for a tie, else 1.

    Args:
        groups: groups with pairs.
        rewards: [response] flat.

    Example:
        >>> from marginkit.records import Group, Pair, Response
        >>> group = Group("a", "?", (Response("x"), Response("y")), pairs=(Pair(1, 0),))
        >>> [column.tolist() for column in labelled_gaps(Groups.from_iterable([group]), np.array([0.5, 2.0]))]
        [[1.5], [1.0]]
    """
    train_only = "train" in groups.column("split")
    rows = []
    for start, group in zip(response_starts(groups), groups, strict=False):
        if train_only and group.split != "train":
            continue
        for pair in group.pairs:
            prob = pair_evidence(group, pair).prob
            label = 1.0 if prob is None else prob
            rows.append((rewards[start + pair.chosen] - rewards[start + pair.rejected], 0.5 if pair.tie else label))
    columns = np.array(rows, dtype=float).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]
