"""`target.gamma: auto`: gamma chosen by the best evidence that the data of a run has, once, and written down.

In this order: raters or votes as a function of the grade gap; human labels (`data.labels`), or the order of pairs that
contradicts the grades now and then; ratings alone, by small models trained for it. Otherwise refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from marginkit.config import RunConfig
from marginkit.data.pairing import make_pairs
from marginkit.data.splits import assign_clusters
from marginkit.embedders import Embedder, open_embedder
from marginkit.embedding_heads import HeadSettings
from marginkit.embedding_run import head_settings, store_of
from marginkit.errors import BadInput
from marginkit.gamma import Gamma, from_labels, from_order, from_raters, from_votes
from marginkit.gamma_trained import from_training
from marginkit.groups import Groups
from marginkit.preparing import read_source
from marginkit.rundir import write_whole

log = logging.getLogger("marginkit")

FILE = "gamma.json"
"""Where a run keeps what was chosen: one that goes on does not choose again."""


def choose_gamma(
    groups: Groups,
    *,
    labels: Groups | None = None,
    independent_order: bool = False,
    embedder: Callable[[], Embedder] = lambda: open_embedder("hash"),
    settings: HeadSettings | None = None,
    seed: int = 0,
) -> Gamma:
    """The gamma of the first source of evidence that says something; the record says which.

    Args:
        groups: paired groups.
        labels: pairs with human labels of the same responses.
        independent_order: the order of the given pairs was not read off the grades.
        embedder: gives what heads read, where ratings are all there is.
        settings: of those heads; their stopping rule should be that of the run to come.
        seed: of bootstrap and halves.

    Returns:
        The gamma with its interval, source, and a sentence.

    Raises:
        BadInput: no evidence, or evidence that goes against the grades.

    Example:
        >>> from marginkit.world import make_world
        >>> groups = make_pairs(make_world("high", prompts=60, demonstrations=1, dev=1, test=1).graded, "all")
        >>> choose_gamma(groups).source
        'raters'
    """
    held = assign_clusters(groups)
    found = from_raters(held, seed) or from_votes(held, seed)
    if found is not None and labels is not None:
        log.info("target.gamma=auto: the labels are not used, as %s comes first", found.how)
    elif labels is not None:
        found = from_labels(held, assign_clusters(labels), seed)
        if found is None:
            log.info("target.gamma=auto: no label goes against the grades, so how large gamma is they do not say")
    if found is None and independent_order:
        found = from_order(held, seed)
    if found is None:
        found = from_training(held, embedder(), settings or HeadSettings(), seed)
    if found.value <= 0:
        raise BadInput(
            f"target.gamma=auto: {found.how} goes against the grades (gamma would be {found.value:.3g}): where grades "
            "are higher, answers are not preferred; check the scale of the grades, or give target.gamma a number"
        )
    return found


def wants_gamma(config: RunConfig) -> bool:
    """Whether the run's gamma is still to be chosen."""
    return config.target.get("gamma") == "auto"


def settle_gamma(config: RunConfig, train: Groups, out: Path, state: PartialState) -> tuple[RunConfig, Gamma | None]:
    """The run with a number for its gamma: as chosen when the run began, else chosen now, the same on every rank.

    Args:
        config: the run.
        train: its training groups.
        out: the run directory, which need not be there.
        state: the processes; the first one chooses.

    Returns:
        The run, and what was chosen; None where nothing was to choose.

    Raises:
        BadInput: no evidence to choose by, or labels that nobody reads.
    """
    if not wants_gamma(config):
        for key in ("labels", "embedder"):
            if getattr(config.data, key):
                raise BadInput(f"data.{key}: is read by target.gamma=auto alone; add that, or leave data.{key} out")
        return config, None
    made: list[Gamma | BadInput | None] = [None]
    if state.is_main_process:
        try:
            made = [gamma_at(out) or _chosen(config, train, out)]
        except BadInput as refusal:
            made = [refusal]
    if state.num_processes > 1:
        broadcast_object_list(made)
    found = made[0]
    if not isinstance(found, Gamma):
        raise found or BadInput("target.gamma=auto: nothing was chosen")
    log.info("target.gamma=auto: %s", found.sentence)
    return config.with_(target=config.target | {"gamma": found.value}), found


def keep_gamma(found: Gamma | None, out: Path) -> None:
    """Write down what was chosen."""
    if found is not None and not (out / FILE).is_file():
        write_whole(out / FILE, json.dumps(found.to_json(), indent=2))


def gamma_at(out: Path) -> Gamma | None:
    """What was chosen when the run in this directory began."""
    if not (out / FILE).is_file():
        return None
    return Gamma.from_json(json.loads((out / FILE).read_text(encoding="utf-8")))


def _chosen(config: RunConfig, train: Groups, out: Path) -> Gamma:
    data = config.data
    labels = None
    if data.labels:
        kept = config.with_(data=data.model_copy(update={"contradiction": "keep", "ties": "half", "limit": None}))
        read, _ = read_source(kept, data.labels)
        labels = make_pairs(read, "given")
    own = config.model.kind == "embedding"
    name = data.embedder or (str(config.model.path) if own else "hash")
    settings = head_settings(config) if own else HeadSettings(keep_best=config.train.load_best_model_at_end)
    return choose_gamma(
        train,
        labels=labels,
        independent_order=data.contradiction == "keep",
        embedder=lambda: open_embedder(name, store=store_of(config)),
        settings=settings,
        seed=config.seed,
    )
