"""Scores of a model that is not trained: from the store where it has them, computed and kept where it has not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from marginkit.config import ModelConfig, RunConfig
from marginkit.core.tensors import SequenceScores
from marginkit.data.encoded import EncodedGroup, EncodedGroups
from marginkit.errors import RunFailed
from marginkit.models.loading import model_folder
from marginkit.models.packing import Rung
from marginkit.models.rungs import Layout, choose_rung
from marginkit.progress import progress
from marginkit.scoring import Precision, Progress, score_batches
from marginkit.store import Array, ScoreStore, folder_fingerprint

log = logging.getLogger("marginkit")

Quantity = Literal["logp", "head"]
_WORDS: dict[Quantity, str] = {"logp": "log-probability", "head": "score"}


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A model that is not trained, and how it is asked.

    Args:
        role: what it is in the run, for the log and messages.
        quantity: which score is wanted: logp (nats) or head (logits).
        held: where it is and how it is held.
        load: loads it, called at most once, and only if a score is missing.
        pad_id: its padding token.
        precision: how its forward passes are computed.
        layout: the rung it is asked on, see `choose_rung`; a model that cannot is asked on the next one.
    """

    role: str
    quantity: Quantity
    held: ModelConfig
    load: Callable[[], nn.Module]
    pad_id: int
    precision: Precision
    layout: Layout = "rows"


def frozen_scores(
    model: FrozenModel,
    encoded: Mapping[str, EncodedGroups],
    config: RunConfig,
    out: Path,
    state: PartialState | None,
) -> tuple[dict[str, list[list[float]]], dict[str, Any]]:
    """Scores of every response of every part, and what they were made with.

    With `state` every rank takes part and computes its share; None: this process does it alone.

    Returns:
        By part, [group][response]; and path, fingerprint and settings for the manifest.
    """
    longest = max((shape.longest for groups in encoded.values() for shape in groups.shapes()), default=0)

    @cache
    def load() -> tuple[nn.Module, Rung]:
        found = model.load()
        found = found.to(model.precision.device) if model.held.quantization is None else found
        return found, choose_rung(found, model.layout, longest=longest, kernel=model.held.attention, strict=False)

    assert model.held.path is not None
    if not Path(model.held.path).is_dir():
        load()  # of a model on the hub the weights have to be here before they can be told from others
    folder = Path(config.store.path) if config.store.use else out / "store"
    fingerprint = folder_fingerprint(model_folder(model.held.path, model.held.revision), folder / "files.json")
    settings = score_settings(model.quantity, model.held, model.precision, model.layout)
    share = (0, 1) if state is None else (state.process_index, state.num_processes)
    make: dict[str, Any] = {"quantity": model.quantity, "role": model.role, "pad_id": model.pad_id}
    make |= {"tokens": config.train.tokens_per_micro_batch, "precision": model.precision}
    scores: dict[str, list[list[float]]] = {}
    with ScoreStore(folder, fingerprint, settings) as store:
        total = 0
        for name, groups in encoded.items():
            rows = sum(len(shape.responses) for shape in groups.shapes())
            total += rows
            with progress(rows, f"{model.role} {name}") as bar:
                found = kept_scores(load, groups, store, **make, share=share, progress=bar)
                if found is None:
                    assert state is not None, "a share was computed, so there are other ranks"
                    state.wait_for_everyone()
                    with ScoreStore(folder, fingerprint, settings) as everyone:
                        found = kept_scores(load, groups, everyone, **make)
            assert found is not None
            scores[name] = found
        for count, other in store.under_other_settings() if store.added else ():
            log.info(
                "store: %d scores of this model are kept under %s; not used", count, describe_settings(settings, other)
            )
        log.info(
            "%s: %d scores computed, %d kept before (%s)", model.role, store.added, total - store.added, store.folder
        )
    return scores, {"path": model.held.path, "fingerprint": fingerprint, "settings": settings}


def score_settings(quantity: Quantity, held: ModelConfig, precision: Precision, layout: str) -> dict[str, Any]:
    """What decides a stored score besides the model's weights and the tokens."""
    import transformers

    return {
        "quantity": quantity,
        "weights": held.dtype or "float32",
        "quantization": held.quantization or "none",
        "autocast": "none" if precision.autocast is None else str(precision.autocast).removeprefix("torch."),
        "device": precision.device.type,
        "attention": held.attention or "default",
        "layout": layout,
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "transformers": ".".join(transformers.__version__.split(".")[:2]),
    }


def kept_scores(
    load: Callable[[], tuple[nn.Module, Rung]],
    encoded: EncodedGroups,
    store: ScoreStore,
    *,
    quantity: Quantity,
    role: str,
    pad_id: int,
    tokens: int,
    precision: Precision,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> list[list[float]] | None:
    """Scores of every response, computing only what the store lacks.

    Each batch is kept as soon as it is computed. With several ranks, `share` is (rank, ranks): each computes its part
    and gets None, then reads all of it with `share=(0, 1)`.

    Args:
        load: gives the model and the rung it is asked on; called only if something is missing.
        encoded: encoded groups.
        store: where scores are kept.
        quantity: which score: logp or head.
        role: what the model is, for messages.
        pad_id: padding token.
        tokens: of one forward pass.
        precision: how to compute; for a reference the same as in training, or the first gap is not 0.
        share: (rank, ranks).
        progress: called with the number of responses as they are done.

    Returns:
        [group][response], nats or logits.

    Raises:
        RunFailed: a score is not finite, or the store cannot be written.
    """

    def read(scores: SequenceScores) -> list[float]:
        made = getattr(scores, quantity)
        assert made is not None
        return made.tolist()  # type: ignore[no-any-return]

    return kept(
        load,
        encoded,
        store,
        Column(store.get, store.add, read, f"the {role} gives it {_WORDS[quantity]}"),
        pad_id=pad_id,
        tokens=tokens,
        precision=precision,
        share=share,
        progress=progress,
    )


Value = TypeVar("Value", float, Array)


@dataclass(frozen=True, slots=True)
class Column(Generic[Value]):
    """One kind of value a response: how a store gives and takes it, and where a forward pass has it.

    Args:
        get: the values of these keys, None where there is none.
        add: keeps one batch.
        read: the values of a batch's responses.
        what: what is said in front of a value that is not finite.
        wants: by-products that `read` reads, see `packing.BY_PRODUCTS`.
    """

    get: Callable[[Sequence[bytes]], list[Value | None]]
    add: Callable[[list[tuple[bytes, Value]]], None]
    read: Callable[[SequenceScores], Sequence[Value]]
    what: str
    wants: tuple[str, ...] = ()


def kept(
    load: Callable[[], tuple[nn.Module, Rung]],
    encoded: EncodedGroups,
    store: ScoreStore,
    column: Column[Value],
    *,
    pad_id: int,
    tokens: int,
    precision: Precision,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> list[list[Value]] | None:
    """A value of every response, computing only what the store lacks; arguments and result as in `kept_scores`."""
    keys = [[store.key(group.prompt_ids, ids) for ids in group.response_ids] for group in encoded]
    flat = column.get([key for group in keys for key in group])
    values = iter(flat)
    known = [[next(values) is not None for _ in group] for group in keys]
    todo = [i for i, group in enumerate(known) if not all(group)]
    if progress is not None:
        progress(sum(map(sum, known)))
    # by the group's own number, not its place in `todo`: a rank that comes later has less to do than one before it
    wanted = _Missing(encoded, [index for index in todo if index % share[1] == share[0]], known)
    if len(wanted):
        model, rung = load()
        asked = score_batches(
            model, wanted, pad_id=pad_id, tokens=tokens, precision=precision, rung=rung, wants=column.wants
        )
        for indices, scores in asked:
            made = iter(column.read(scores))
            rows = []
            for index in indices:
                group = wanted[index]
                for ids in group.response_ids:
                    value = next(made)
                    odd = np.ravel(value)[~np.isfinite(np.ravel(value))]
                    if odd.size:
                        raise RunFailed(f"group {group.id}: {column.what} {odd[0]}")
                    rows.append((store.key(group.prompt_ids, ids), value))
            column.add(rows)
            if progress is not None:
                progress(len(rows))
    if share[1] > 1:
        return None
    complete = iter(column.get([key for group in keys for key in group]))
    return [[_present(next(complete)) for _ in group] for group in keys]


def _present(value: Value | None) -> Value:
    assert value is not None, "every value has just been stored"
    return value


class _Missing(Sequence[EncodedGroup]):
    """The groups that lack a value, each with only the responses that do; made when they are asked for."""

    def __init__(self, groups: EncodedGroups, rows: Sequence[int], known: Sequence[Sequence[bool]]) -> None:
        self.groups, self.rows, self.known = groups, rows, known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        group: EncodedGroup = self.groups[row]
        return group.part([number for number, there in enumerate(self.known[row]) if not there])


def describe_settings(settings: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where other settings differ from these, in words."""
    return ", ".join(f"{name}={other.get(name)}" for name in settings if other.get(name) != settings[name])
