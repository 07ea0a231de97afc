"""From the settings of a run to transformers' TrainingArguments and to the plan of its batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from marginkit.batching import BatchPlan
from marginkit.config import RunConfig, TrainConfig
from marginkit.data.encoded import EncodedGroups, Shape
from marginkit.errors import BadInput

log = logging.getLogger("marginkit")

_OWN_KEYS = {
    "prompts_per_step",
    "tokens_per_micro_batch",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per",
    "population",
    "population_window",
    "control",
    "benchmarks",
    "benchmark_sample",
    "disable_dropout",
    "force",
    "layout",
    "precision",
    "extra",
    "push_to_hub",  # a finished run is pushed with its card, see card.py
    "hub_model_id",
    "hub_private_repo",
}


def training_arguments(config: RunConfig, out: Path, *, precision: str, has_eval: bool) -> TrainingArguments:
    """TrainingArguments for a run: the listed subset under its own names, `train.extra`, and what the trainer needs.

    Raises:
        BadInput: transformers refuses them, or an extra contradicts the trainer.
    """
    train = config.train
    given: dict[str, Any] = {name: value for name, value in train.model_dump().items() if name not in _OWN_KEYS}
    if not has_eval:
        given |= {"eval_strategy": "no", "load_best_model_at_end": False}
    given["gradient_checkpointing"] = given["gradient_checkpointing"] is True  # auto is decided with the model at hand
    # the key users know; transformers 5.23 renamed it
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__:
        given["activation_checkpointing"] = given.pop("gradient_checkpointing")
    for name in ("fsdp", "fsdp_config", "deepspeed", "eval_steps"):
        if given[name] is None:
            del given[name]
    if isinstance(given["report_to"], tuple):
        given["report_to"] = list(given["report_to"])
    fixed: dict[str, Any] = {
        "output_dir": str(out / "checkpoints"),
        "seed": config.seed,
        "per_device_train_batch_size": 1,  # one item is one optimizer step
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # it would log a NaN loss as 0 and train on
        "ddp_find_unused_parameters": False,
        "include_num_input_tokens_seen": "no",
        "disable_tqdm": True,
        "label_names": [],
    }
    if train.load_best_model_at_end and has_eval and train.eval_strategy != train.save_strategy != "best":
        raise BadInput(
            f"train.load_best_model_at_end: needs train.save_strategy={train.eval_strategy}, as often as it evaluates; "
            f"got {train.save_strategy}"
        )
    sharding = train.fsdp_config
    if isinstance(sharding, dict) and "SHARDED" in str(sharding.get("state_dict_type", "")).upper():
        raise BadInput(
            "train.fsdp_config.state_dict_type: a run ends with a whole model that transformers loads; "
            "use FULL_STATE_DICT, or leave it out"
        )
    clash = sorted(set(train.extra) & (set(fixed) | set(given)))
    if clash:
        raise BadInput(f"train.extra.{clash[0]}: set by marginkit; use train.{clash[0]} where there is such a key")
    try:
        made = TrainingArguments(**given, **fixed, **train.extra)
    except (TypeError, ValueError, ImportError) as error:
        raise BadInput(f"train: {str(error).splitlines()[0]}") from None
    if made.n_gpu > 1:  # DataParallel would cut packed rows in two
        every = f"torchrun --nproc_per_node {made.n_gpu} -m marginkit ..."
        log.warning("one of %d GPUs is used; for all of them: %s", made.n_gpu, every)
        made._n_gpu = 1
    return made


def batch_plan(
    config: TrainConfig,
    groups: EncodedGroups,
    *,
    world_size: int,
    seed: int,
    packed: bool = False,
    cost: Callable[[Shape], float] | None = None,
) -> tuple[BatchPlan, str]:
    """The plan of an epoch and, in words, how the batch settings were understood."""
    per_device, accumulate = config.per_device_train_batch_size, config.gradient_accumulation_steps
    prompts = config.prompts_per_step
    if prompts is None:
        prompts = (
            32 if per_device is None and accumulate is None else (per_device or 1) * (accumulate or 1) * world_size
        )
    plan = BatchPlan(
        shapes=groups.shapes(),
        prompts_per_step=prompts,
        tokens_per_micro_batch=config.tokens_per_micro_batch,
        prompts_per_micro_batch=per_device,
        world_size=world_size,
        seed=seed,
        packed=packed,
        cost=cost if packed else None,
    )
    limit = f"{config.tokens_per_micro_batch} {'packed' if packed else 'padded'} tokens"
    if per_device is not None:
        limit += f" or {per_device} prompts"
    words = f"{prompts} prompts an optimizer step over {world_size} rank(s), micro-batches of up to {limit}"
    return plan, f"{words}, {len(plan)} steps an epoch"
