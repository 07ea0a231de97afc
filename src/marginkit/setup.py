"""What a run needs before its first step: model, tokens, loss, rung and plan. Training and the dry run start here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from marginkit.arguments import batch_plan
from marginkit.assembly import build_loss
from marginkit.batching import BatchPlan
from marginkit.config import EncodingConfig, ModelConfig, RunConfig
from marginkit.core.loss import Loss
from marginkit.cost import Cost, cost_of
from marginkit.data.encoded import EncodedGroups, EncodingReport
from marginkit.data.encoding import Encoder
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.models.loading import (
    fresh_model,
    fresh_tokenizer,
    load_model,
    load_tokenizer,
    model_limit,
    prepare_padding,
    without_dropout,
)
from marginkit.models.packing import Rung
from marginkit.models.rungs import choose_rung
from marginkit.models.scorer import probe
from marginkit.preparing import Splits
from marginkit.progress import progress
from marginkit.records import content_text
from marginkit.scoring import Precision, choose_precision

log = logging.getLogger("marginkit")


@dataclass(slots=True)
class Setup:
    """A run before its first step.

    Args:
        model: to be trained, on the rung.
        tokenizer: with a padding token.
        loss: the recipe.
        encoded: groups in tokens, by split.
        reports: what encoding did, by split.
        precision: how forward passes are computed.
        rung: how rows are laid out and attention is computed.
        cost: what a group costs.
        plan: of the epochs.
        words: the plan in words.
        per: pair or prompt: what counts the same.
    """

    model: nn.Module
    tokenizer: Any
    loss: Loss
    encoded: dict[str, EncodedGroups]
    reports: dict[str, EncodingReport]
    precision: Precision
    rung: Rung
    cost: Cost
    plan: BatchPlan
    words: str
    per: str

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return int(self.tokenizer.pad_token_id)


def ranks(config: RunConfig) -> PartialState:
    """The processes of a run; one waits for another for `train.extra.ddp_timeout` seconds, by default 1800."""
    seconds = config.train.extra.get("ddp_timeout", 1800)
    return PartialState(cpu=config.train.use_cpu, timeout=timedelta(seconds=seconds))


def starting_model(config: RunConfig, splits: Splits, out: Path, state: PartialState) -> ModelConfig:
    """Where training starts from: the configured model, or a small fresh one, made once and kept in the run."""
    if config.model.path != "fresh":
        return config.model
    folder = out / "start"
    if state.is_main_process and not (folder / "config.json").is_file():
        encoder = config.model.fresh.arch == "modernbert"
        if config.model.tokenizer is not None:
            tokenizer = load_tokenizer(config.model.tokenizer)
        else:
            texts = (
                content_text(content)
                for group in splits.train
                for content in (group.prompt, *(response.turns for response in group.responses))
            )
            tokenizer = fresh_tokenizer(texts, config.model.fresh.vocab, encoder=encoder)
        prepare_padding(tokenizer, config.kind)
        model = fresh_model(config.model.fresh, config.kind, tokenizer, seed=config.seed)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)  # type: ignore[operator]
    state.wait_for_everyone()
    return config.model.model_copy(update={"path": str(folder), "tokenizer": None})


def set_up(config: RunConfig, splits: Splits, start: ModelConfig, state: PartialState) -> Setup:
    """Load the model to be trained, encode the data, choose the rung, plan the epochs.

    Args:
        config: the run.
        splits: its groups.
        start: the model that training starts from.
        state: the ranks; they agree on a rung.

    Raises:
        BadInput: model, data and settings do not go together.
    """
    from transformers import set_seed

    set_seed(config.seed)  # a reward head or adapter made on loading must be the same in a repeated run
    tokenizer = load_tokenizer(
        start.tokenizer or str(start.path), revision=start.revision, trust_remote_code=start.trust_remote_code
    )
    prepare_padding(tokenizer, config.kind)
    model = load_model(start, config.kind, tokenizer)
    probe(model)
    if config.train.disable_dropout if config.train.disable_dropout is not None else config.kind != "sft":
        without_dropout(model)
    precision = choose_precision(config, state)
    encoded, reports = encode_parts(config.encoding, tokenizer, model, splits.parts())
    rung = _agreed_rung(model, encoded, config, start, precision, state)
    loss = build_loss(config.spec, config.options(), seed=config.seed)
    cost = cost_of(model)
    plan, words = batch_plan(
        config.train,
        encoded["train"],
        world_size=state.num_processes,
        seed=config.seed,
        packed=rung != "rows",
        cost=cost.group,
    )
    per = config.train.per or ("prompt" if splits.all_pairs and loss.per == "pair" else "pair")
    return Setup(model, tokenizer, loss, encoded, reports, precision, rung, cost, plan, words, per)


def _agreed_rung(
    model: Any,
    encoded: Mapping[str, EncodedGroups],
    config: RunConfig,
    start: ModelConfig,
    precision: Precision,
    state: PartialState,
) -> Rung:
    """The rung of all ranks: where one cannot take it, none does."""
    if config.train.layout == "flex" and precision.device.type != "cuda":
        here = precision.device.type
        raise BadInput(f"train.layout=flex: FlexAttention trains on CUDA alone, this is {here}; use train.layout=auto")
    if start.quantization is None:
        model.to(precision.device)  # probed where it will run; the weights must fit there, sharded later or not
    longest = longest_of(encoded)
    rung = choose_rung(
        model, config.train.layout, longest=longest, kernel=start.attention, training=precision.context()
    )
    if state.num_processes > 1 and len(set(gather_object([rung]))) > 1:
        rung = choose_rung(model, "rows", longest=longest)
        log.warning("layout: padded rows; the ranks do not agree on another")
    return rung


def longest_of(encoded: Mapping[str, EncodedGroups]) -> int:
    """Tokens of the longest sequence of all parts."""
    return max((shape.longest for groups in encoded.values() for shape in groups.shapes()), default=0)


def encode_parts(
    config: EncodingConfig, tokenizer: Any, model: Any, parts: Mapping[str, Groups]
) -> tuple[dict[str, EncodedGroups], dict[str, EncodingReport]]:
    """Encode every split; what is cut or left out is told."""
    limit = model_limit(model, tokenizer)
    if config.max_length is not None and config.max_length > limit:
        raise BadInput(f"encoding.max_length={config.max_length}: the model ends at {limit} tokens")
    encoder = Encoder(tokenizer, **config.model_dump() | {"max_length": config.max_length or limit})
    encoded: dict[str, EncodedGroups] = {}
    reports: dict[str, EncodingReport] = {}
    for name, groups in parts.items():
        with progress(len(groups), f"encode {name}") as bar:
            encoded[name], reports[name] = encoder.encode(groups, bar)
        log.info("%s: %s", name, reports[name].in_words())
    if not len(encoded["train" if "train" in encoded else next(iter(encoded))]):
        raise BadInput("every group is longer than max_length; raise encoding.max_length")
    return {name: part for name, part in encoded.items() if len(part)}, reports
