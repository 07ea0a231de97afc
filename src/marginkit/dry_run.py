"""`marginkit train ... --dry-run`: what a run will compute, take and hold, before anything is trained or written."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from marginkit.batching import MicroBatch
from marginkit.benchmark_watch import benchmark_samples
from marginkit.config import RunConfig
from marginkit.core.tensors import SequenceScores
from marginkit.cost import measured_peak, pair_tokens
from marginkit.data.grades import suggest_gamma
from marginkit.embedding_run import HeadForecast, forecast_head
from marginkit.errors import BadInput
from marginkit.gamma_run import wants_gamma
from marginkit.memory import Memory, estimate, in_words, wants_checkpointing
from marginkit.models.loading import core_of
from marginkit.models.packing import Batch, labels_of, number_dtype, pair_columns
from marginkit.models.scorer import score
from marginkit.passes import batch_of, scores_of
from marginkit.preparing import prepare
from marginkit.requirements import check_model
from marginkit.scoring import to_device
from marginkit.setup import Setup, ranks, set_up, starting_model

log = logging.getLogger("marginkit")

_STEPS = 16  # optimizer steps that are looked through for passes to time


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will be.

    Args:
        recipe: its name.
        layout: the rung: how rows are laid out and attention is computed.
        groups, responses, pairs: of the training data; pairs that the recipe trains on.
        steps: optimizer steps in all; steps_an_epoch: of an epoch.
        tokens: an epoch computes, padding and repeated prompts included.
        seen: tokens of an epoch's data: each prompt and each response once.
        pair_tokens: tokens that a trainer of padded pairs would compute; 0 where there are no pairs.
        seconds_a_step: forward and backward passes of a mean step, from those timed; the update comes on top.
        goodput: irreducible operations / time / measured peak, of the timed passes.
        peak: operations a second of a matrix multiplication here.
        reference_responses: to be scored once by frozen models, where the store does not have them.
        reference_seconds: about how long that takes.
        memory: what one rank needs and has.
        checkpointing: whether activations are computed again in the backward pass.
        control: another recipe that the run trains as well, or None.
    """

    recipe: str
    layout: str
    groups: int
    responses: int
    pairs: int
    steps: int
    steps_an_epoch: int
    tokens: int
    seen: int
    pair_tokens: int
    seconds_a_step: float
    goodput: float
    peak: float
    reference_responses: int
    reference_seconds: float
    memory: Memory
    checkpointing: bool
    control: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self) | {"fits": self.memory.fits}

    def in_words(self) -> list[tuple[str, str]]:
        """Rows of a table: what, and how much."""
        rows = [
            ("data", f"{self.groups} groups, {self.responses} responses, {self.pairs} pairs"),
            ("layout", self.layout),
            ("steps", f"{self.steps} optimizer steps, {self.steps_an_epoch} an epoch"),
            ("tokens an epoch", f"{self.tokens:,} computed for {self.seen:,} of data"),
        ]
        if self.pair_tokens:
            times = self.pair_tokens / self.tokens
            rows.append(("", f"{self.pair_tokens:,} in a trainer of padded pairs: {times:.1f} times as many"))
        whole = _duration(self.seconds_a_step * self.steps)
        rows.append(("time", f"{_duration(self.seconds_a_step)} a step, {whole} in all, updates and evaluation apart"))
        rows.append(("goodput", f"{self.goodput:.0%} of {self.peak / 1e9:,.0f} GFLOP/s, measured"))
        if self.reference_responses:
            most = _duration(self.reference_seconds)
            rows.append(("scored before", f"{self.reference_responses} responses in {most}, less what the store has"))
        held = self.memory
        parts = {"weights": held.weights, "gradients": held.gradients, "optimizer": held.optimizer}
        parts["activations"] = held.activations
        rows.append(("memory", ", ".join(f"{name} {in_words(size)}" for name, size in parts.items())))
        enough = "enough" if held.fits else "not enough"
        rows.append(("", f"{in_words(held.needed)} beside the weights, {in_words(held.free)} free: {enough}"))
        if self.control is not None:
            rows.append(("control", f"{self.control} is trained as well: about the same again"))
        rows.append(("checkpointing", "activations are computed again" if self.checkpointing else "off"))
        return rows


def dry_run(config: RunConfig) -> Forecast | HeadForecast:
    """Encode, pack, probe and time a run without training it. Nothing is written.

    Args:
        config: the run.

    Returns:
        What it will be. Times are of a few passes timed here and now; the optimizer's update comes on top.

    Raises:
        BadInput: what the run itself would refuse.
    """
    check_model(config)
    state = ranks(config)
    if state.num_processes > 1:
        raise BadInput("--dry-run: is for one process; start it without a launcher")
    splits = prepare(config)
    benchmark_samples(config, has_eval=splits.eval is not None)
    if wants_gamma(config):  # any number will do: it changes neither tokens nor time nor memory
        log.info(
            "target.gamma=auto: chosen when the run starts; whether the data has evidence for it is not tried here"
        )
        config = config.with_(target=config.target | {"gamma": suggest_gamma(splits.train)})
    if config.model.kind == "embedding":
        return forecast_head(config, splits)
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(config, splits, starting_model(config, splits, Path(folder), state), state)
    return forecast(config, setup)


def forecast(config: RunConfig, setup: Setup) -> Forecast:
    """What a run that is set up will be."""
    plan, shapes = setup.plan, setup.plan.shapes
    train = setup.encoded["train"]

    def memory_now() -> Memory:
        return estimate(setup.model, train, plan, config.train, setup.precision, setup.rung, pad_id=setup.pad_id)

    memory = memory_now()
    checkpointing = wants_checkpointing(setup.model, memory, config.train.gradient_checkpointing)
    if checkpointing:
        core_of(setup.model).gradient_checkpointing_enable()
        memory = memory_now()
    keep = _kept_pairs(setup)
    seconds, operations = _timed(setup)
    peak = measured_peak(setup.precision)
    whole = sum(map(setup.cost.group, shapes))
    tokens = sum(plan.tokens(micro) for (own,) in plan.steps(epoch=0) for micro in own)
    epochs = math.ceil(len(plan) * config.train.num_train_epochs)
    frozen = [name for name in ("ref_logp", "rm_head") if name in setup.loss.needs]
    every = [shape for groups in setup.encoded.values() for shape in groups.shapes()]
    return Forecast(
        recipe=config.recipe,
        layout=setup.rung,
        groups=len(shapes),
        responses=sum(len(shape.responses) for shape in shapes),
        pairs=sum(map(bool, keep)),
        steps=config.train.max_steps if config.train.max_steps > 0 else epochs,
        steps_an_epoch=len(plan),
        tokens=tokens,
        seen=sum(shape.packed for shape in shapes),
        pair_tokens=pair_tokens(train, keep),
        seconds_a_step=seconds / operations * whole / len(plan),
        goodput=operations / seconds / peak,
        peak=peak,
        reference_responses=len(frozen) * sum(len(shape.responses) for shape in every),
        reference_seconds=len(frozen) * seconds / operations * sum(map(setup.cost.group, every)) / 3,
        memory=memory,
        checkpointing=checkpointing,
        control=config.train.control,
    )


def _kept_pairs(setup: Setup) -> list[float]:
    """Of every pair of the training data, whether the recipe trains on it (not 0)."""
    loss, train = setup.loss, setup.encoded["train"]
    if loss.target is None or loss.per == "response":
        return [0.0] * sum(len(group.chosen) for group in train)
    keep: list[float] = []
    for start in range(0, len(train), 512):
        columns = pair_columns(list(train[start : start + 512]), torch.float64)
        keep += loss.kept(labels_of(columns), len(columns["pairs"])).double().tolist()
    return keep


def _timed(setup: Setup) -> tuple[float, float]:
    """Seconds and irreducible operations of three micro-batches of the first steps: largest, middle, smallest."""
    plan, core, device = setup.plan, core_of(setup.model), setup.precision.device

    def cost(micro: MicroBatch) -> float:
        return sum(setup.cost.group(plan.shapes[index]) for index in micro.groups)

    def forward(batch: Batch) -> SequenceScores:
        with setup.precision.context():
            return score(core, to_device(batch, device))

    micros = sorted((micro for (own,) in islice(plan.steps(epoch=0), _STEPS) for micro in own), key=cost)
    core.train()
    seconds = operations = 0.0
    for number, micro in enumerate([micros[0], micros[-1], micros[len(micros) // 2], micros[0]]):
        groups = [setup.encoded["train"][index] for index in micro.groups]
        began = time.perf_counter()
        batch = batch_of(
            plan, micro, groups, rung=setup.rung, pad_id=setup.pad_id, dtype=number_dtype(setup.precision.device)
        )
        if "passes" in batch:
            with torch.no_grad():
                scores_of(forward, batch)
        for one in batch.get("passes", (batch,)):
            scores = forward(one)
            made = scores.logp if scores.logp is not None else scores.head
            assert made is not None
            made.sum().backward()
            float(made.detach().sum())  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize()
        core.zero_grad()
        if number:  # the first warms up
            seconds += time.perf_counter() - began
            operations += cost(micro)
    return seconds, operations


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> [_duration(value) for value in (0.0123, 4.2, 250, 9000, 500_000)]
        ['0.012 s', '4.2 s', '4.2 min', '2.5 h', '5.8 days']
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
