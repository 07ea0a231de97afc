"""Groups and a model: scores of every response, and the two tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from accelerate import PartialState
from torch import Tensor, nn

from marginkit.batching import BatchPlan, MicroBatch
from marginkit.config import RunConfig
from marginkit.core.loss import Loss
from marginkit.core.tensors import Labels, SequenceScores
from marginkit.data.encoded import EncodedGroup, EncodedGroups
from marginkit.data.grades import pair_evidence
from marginkit.errors import BadInput, RunFailed
from marginkit.groups import Groups
from marginkit.models.loading import core_of
from marginkit.models.packing import Batch, Rung, labels_of, number_dtype, pair_columns
from marginkit.models.scorer import score
from marginkit.passes import batch_of, scores_of
from marginkit.records import Group
from marginkit.tables import PAIRS_SCHEMA, RESPONSES_SCHEMA, Scores

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Precision:
    """How forward passes are computed: the autocast type of a device, or none."""

    device: torch.device
    autocast: torch.dtype | None = None

    @property
    def name(self) -> str:
        """bf16, fp16 or fp32."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[self.autocast]

    def context(self) -> AbstractContextManager[Any]:
        """The autocast of this precision."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device_type=self.device.type, dtype=self.autocast)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


@torch.no_grad()
def score_batches(
    model: nn.Module,
    groups: Sequence[EncodedGroup],
    *,
    pad_id: int,
    tokens: int,
    precision: Precision,
    rung: Rung = "rows",
    wants: tuple[str, ...] = (),
) -> Iterator[tuple[tuple[int, ...], SequenceScores]]:
    """Score groups batch by batch, shortest first; yields group indices and the scores of their responses.

    Args:
        model: a policy or reward model, set to the rung.
        groups: encoded groups.
        pad_id: padding token.
        tokens: of one forward pass; a larger group takes several.
        precision: how to compute.
        rung: how rows are laid out and attention is computed.
        wants: by-products, see `packing.BY_PRODUCTS`.
    """
    shapes = [group.shape for group in groups]
    plan = BatchPlan(shapes, prompts_per_step=1, tokens_per_micro_batch=tokens, packed=rung != "rows")
    core = core_of(model)

    def forward(batch: Batch) -> SequenceScores:
        with precision.context():
            return score(core, to_device(batch, precision.device))

    was_training = model.training
    model.eval()
    try:
        for members in plan.in_order():
            passes = len(plan.parts(members[0])) if len(members) == 1 else 1
            batch = batch_of(
                plan,
                MicroBatch(members, passes=passes),
                [groups[index] for index in members],
                rung=rung,
                pad_id=pad_id,
                dtype=number_dtype(precision.device),
                wants=wants,
            )
            yield members, scores_of(forward, batch)
    finally:
        model.train(was_training)


def score_tables(
    model: nn.Module,
    groups: Groups,
    encoded: EncodedGroups,
    loss: Loss,
    *,
    pad_id: int,
    tokens: int,
    precision: Precision,
    rung: Rung = "rows",
    progress: Progress | None = None,
) -> Scores:
    """The two tables of a model on groups: one row a response, one row a pair.

    Args:
        model: a policy or reward model.
        groups: the text records, for what is carried along (split, subset, cluster, characters).
        encoded: the same groups in tokens; over-long ones may be missing there.
        loss: the recipe: how scores become rewards, and what it wants of each pair.
        pad_id: padding token.
        tokens: of one forward pass.
        precision: how to compute.
        rung: how rows are laid out and attention is computed.
        progress: called with the number of responses as they are done.

    Raises:
        RunFailed: a reward is not finite.
    """
    found: dict[int, tuple[SequenceScores, list[float]]] = {}
    asked = score_batches(model, encoded, pad_id=pad_id, tokens=tokens, precision=precision, rung=rung)
    for indices, scores in asked:
        first = 0
        for index in indices:
            item = encoded[index]
            count = len(item.response_ids)
            own = _slice(scores, first, first + count, item.ref_logp)
            found[index] = (own, loss.reward(own, **loss.reward_options).value.tolist())
            first += count
        if progress is not None:
            progress(first)
    responses: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for index, item in enumerate(encoded):
        own, rewards = found[index]
        response_rows, pair_rows = group_rows(groups[item.row], item, own, rewards, loss)
        responses += response_rows
        pairs += pair_rows
    return Scores(
        pa.Table.from_pylist(responses, schema=RESPONSES_SCHEMA), pa.Table.from_pylist(pairs, schema=PAIRS_SCHEMA)
    )


def _slice(scores: SequenceScores, start: int, stop: int, ref_logp: list[float] | None) -> SequenceScores:
    def part(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[start:stop].cpu()

    return SequenceScores(
        logp=part(scores.logp),
        ref_logp=None if ref_logp is None else torch.tensor(ref_logp, dtype=torch.float64),
        length=part(scores.length),
        head=part(scores.head),
    )


def group_rows(
    group: Group, item: EncodedGroup, scores: SequenceScores, rewards: Sequence[float], loss: Loss
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of one group in the two tables.

    Args:
        group: the text record.
        item: the same group encoded; the lengths of its responses are told as they are there.
        scores: [K] what the model says of its responses.
        rewards: [K] logits.
        loss: what it wants of each pair.

    Raises:
        RunFailed: a reward is not finite.
    """
    where: dict[str, Any] = {"group": group.id, "split": group.split, "subset": group.subset}
    where |= {"source": group.source, "cluster": group.cluster}
    texts = [response.text for response in group.responses]
    lengths = [len(ids) for ids in item.response_ids]
    columns = {name: _column(getattr(scores, name), len(texts)) for name in ("logp", "ref_logp", "head")}
    for value in rewards:
        if value != value or value in (float("inf"), float("-inf")):
            raise RunFailed(f"group {group.id}: the model gives it reward {value}")
    responses = [
        where
        | {
            "response": k,
            "model": response.model,
            "length": lengths[k],
            "chars": len(texts[k]),
            "reward": rewards[k],
            "grade": response.grade,
            "utility": response.utility,
        }
        | {name: values[k] for name, values in columns.items()}
        for k, response in enumerate(group.responses)
    ]
    targets = _target_gaps(loss, item)
    pairs = []
    for number, pair in enumerate(group.pairs):
        gap = rewards[pair.chosen] - rewards[pair.rejected]
        evidence = pair_evidence(group, pair)
        pairs.append(
            where
            | {
                "pair": number,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "reward_chosen": rewards[pair.chosen],
                "reward_rejected": rewards[pair.rejected],
                "gap": gap,
                "prob": float(torch.sigmoid(torch.tensor(gap, dtype=torch.float64))),
                "label_prob": evidence.prob,
                "target_gap": targets[number],
                "grade_gap": evidence.grade_gap,
                "tie": evidence.tie,
                "weight": pair.weight,
                "length_chosen": lengths[pair.chosen],
                "length_rejected": lengths[pair.rejected],
                "chars_chosen": len(texts[pair.chosen]),
                "chars_rejected": len(texts[pair.rejected]),
            }
        )
    return responses, pairs


def _column(values: Tensor | None, count: int) -> list[float | None]:
    return [None] * count if values is None else values.tolist()


def _target_gaps(loss: Loss, item: EncodedGroup) -> list[float | None]:
    """What the recipe wants of each pair, in logits; None for a hard label, a pair left out, or no evidence."""
    if loss.target is None or not item.chosen:
        return [None] * len(item.chosen)
    labels: Labels = labels_of(pair_columns([item], torch.float64))
    try:
        gaps = loss.target_gap(labels, len(item.chosen)).tolist()
    except BadInput:  # data without the evidence the recipe trains on can still be scored
        return [None] * len(item.chosen)
    return [None if gap != gap or gap in (float("inf"), float("-inf")) else gap for gap in gaps]


def choose_precision(config: RunConfig, state: PartialState) -> Precision:
    """Autocast: bfloat16 on an accelerator that has it, float32 on a CPU, or what `train.precision` says."""
    device = torch.device(state.device)
    wanted = config.train.precision
    if wanted == "auto":
        able = device.type == "mps" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
        wanted = "bf16" if able else "fp32"
    return Precision(device, {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[wanted])
