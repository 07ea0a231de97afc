"""Reference log-probabilities: from the store where it has them, computed and kept where it has not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from marginkit.config import ModelConfig, RunConfig
from marginkit.data.encoded import EncodedGroup, EncodedGroups
from marginkit.errors import RunFailed
from marginkit.models.loading import load_model, model_folder
from marginkit.models.packing import LABEL_COLUMNS
from marginkit.progress import progress
from marginkit.scoring import Precision, Progress, score_batches
from marginkit.store import ScoreStore, folder_fingerprint

log = logging.getLogger("marginkit")


def join_reference(
    config: RunConfig,
    start: ModelConfig,
    model: nn.Module | None,
    tokenizer: Any,
    encoded: Mapping[str, EncodedGroups],
    out: Path,
    precision: Precision,
    state: PartialState | None,
) -> tuple[dict[str, EncodedGroups], dict[str, Any]]:
    """Join reference log-probabilities from the store into the encoded groups, computing what is missing.

    The reference is `model.reference`, else the model before training: `model` if it is at hand in that state.
    With `state` every rank takes part and computes its share; None: this process does it alone.
    """
    holder = (
        start.model_copy(update={"path": config.model.reference, "lora": None}) if config.model.reference else start
    )

    def load() -> nn.Module:
        if model is not None and config.model.reference is None:
            return model.to(precision.device) if start.quantization is None else model
        reference = load_model(holder, "policy", tokenizer, trainable=False)
        return reference.to(precision.device) if start.quantization is None else reference

    folder = Path(config.store.path) if config.store.use else out / "store"
    fingerprint = folder_fingerprint(model_folder(str(holder.path), holder.revision), folder / "files.json")
    settings = reference_settings(
        holder.attention or "default", holder.dtype or "float32", holder.quantization, precision
    )
    joined: dict[str, EncodedGroups] = {}
    with ScoreStore(folder, fingerprint, settings) as store:
        for count, other in store.under_other_settings():
            log.info(
                "store: %d scores of this model are kept under %s; not used", count, describe_settings(settings, other)
            )
        for name, groups in encoded.items():
            rows = sum(groups.shapes()[0])
            with progress(rows, f"reference {name}") as bar:
                share = (0, 1) if state is None else (state.process_index, state.num_processes)
                tokens = config.train.tokens_per_micro_batch
                make = {"pad_id": tokenizer.pad_token_id, "tokens": tokens, "precision": precision}
                found = reference_logps(load, groups, store, **make, share=share, progress=bar)
                if found is None:
                    assert state is not None, "a share was computed, so there are other ranks"
                    state.wait_for_everyone()
                    with ScoreStore(folder, fingerprint, settings) as everyone:
                        found = reference_logps(load, groups, everyone, **make)
            assert found is not None
            joined[name] = groups.with_ref_logp(found)
        total = sum(sum(groups.shapes()[0]) for groups in encoded.values())
        log.info("reference: %d scores computed, %d kept before (%s)", store.added, total - store.added, store.folder)
    return joined, {"path": str(holder.path), "fingerprint": fingerprint, "settings": settings}


def reference_settings(attention: str, weights: str, quantization: str | None, precision: Precision) -> dict[str, Any]:
    """What decides a stored log-probability besides the model's weights and the tokens."""
    import transformers

    return {
        "quantity": "logp",
        "weights": weights,
        "quantization": quantization or "none",
        "autocast": "none" if precision.autocast is None else str(precision.autocast).removeprefix("torch."),
        "device": precision.device.type,
        "attention": attention,
        "layout": "padded",
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "transformers": ".".join(transformers.__version__.split(".")[:2]),
    }


def reference_logps(
    model: nn.Module | Callable[[], nn.Module],
    encoded: EncodedGroups,
    store: ScoreStore,
    *,
    pad_id: int,
    tokens: int,
    precision: Precision,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> list[list[float]] | None:
    """Log-probabilities of every response under the reference, computing only what the store lacks.

    Each batch is kept as soon as it is computed. With several ranks, `share` is (rank, ranks): each computes its part
    and gets None, then reads all of it with `share=(0, 1)`.

    Args:
        model: the reference, or a function that loads it, called only if something is missing.
        encoded: encoded groups.
        store: where scores are kept.
        pad_id: padding token.
        tokens: padded tokens of one batch.
        precision: how to compute; the same as in training, or the first gap is not 0.
        share: (rank, ranks).
        progress: called with the number of responses as they are done.

    Returns:
        [group][response] nats.

    Raises:
        RunFailed: a score is not finite, or the store cannot be written.
    """
    keys = [[store.key(group.prompt_ids, ids) for ids in group.response_ids] for group in encoded]
    flat = store.get([key for group in keys for key in group])
    values = iter(flat)
    known = [[next(values) for _ in group] for group in keys]
    todo = [i for i, group in enumerate(known) if any(value is None for value in group)]
    if progress is not None:
        progress(sum(value is not None for value in flat))
    # by the group's own number, not its place in `todo`: a rank that comes later has less to do than one before it
    wanted = _Missing(encoded, [index for index in todo if index % share[1] == share[0]], known)
    if len(wanted):
        model = model if isinstance(model, nn.Module) else model()
        for indices, scores in score_batches(model, wanted, pad_id=pad_id, tokens=tokens, precision=precision):
            assert scores.logp is not None
            logps = iter(scores.logp.tolist())
            rows = []
            for index in indices:
                group = wanted[index]
                for ids in group.response_ids:
                    value = next(logps)
                    if value != value or value in (float("inf"), float("-inf")):
                        raise RunFailed(f"group {group.id}: the reference gives it log-probability {value}")
                    rows.append((store.key(group.prompt_ids, ids), value))
            store.add(rows)
            if progress is not None:
                progress(len(rows))
    if share[1] > 1:
        return None
    complete = iter(store.get([key for group in keys for key in group]))
    return [[_present(next(complete)) for _ in group] for group in keys]


def _present(value: float | None) -> float:
    assert value is not None, "every score has just been stored"
    return value


class _Missing(Sequence[EncodedGroup]):
    """The groups that lack a score, each with only the responses that do; made when they are asked for."""

    def __init__(self, groups: EncodedGroups, rows: Sequence[int], known: Sequence[Sequence[float | None]]) -> None:
        self.groups, self.rows, self.known = groups, rows, known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        group: EncodedGroup = self.groups[row]
        missing = [ids for ids, value in zip(group.response_ids, self.known[row], strict=True) if value is None]
        absent = [float("nan")] * len(missing)
        bare: dict[str, Any] = {name: [] for name in ("chosen", "rejected", "tie", *LABEL_COLUMNS)}
        return replace(group, response_ids=missing, grade=absent, utility=absent, ref_logp=None, **bare)


def describe_settings(settings: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where other settings differ from these, in words."""
    return ", ".join(f"{name}={other.get(name)}" for name in settings if other.get(name) != settings[name])
