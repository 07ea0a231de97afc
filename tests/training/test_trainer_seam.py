"""The seam to transformers.Trainer: the private hooks are where we left them, and what passes through is exact."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_invariance
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import tiny
from marginkit.arguments import batch_plan, training_arguments
from marginkit.config import resolve
from marginkit.data.encoded import EncodedGroups
from marginkit.errors import BadInput
from marginkit.metering import Meter
from marginkit.run import train
from marginkit.training import MarginTrainer

# What MarginTrainer overrides or calls of the installed Trainer, public and private. If an upgrade changes one of
# these, read the new code and tests/training before changing the line here.
HOOKS = {
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "_get_grad_norm": ("model", "grad_norm"),
    "evaluation_loop": ("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
    "log": ("logs", "start_time"),
    "_prepare_inputs": ("inputs",),
    "_prepare_input": ("data",),
    "floating_point_ops": ("inputs",),
    "get_train_dataloader": (),
    "get_eval_dataloader": ("eval_dataset",),
    "compute_loss_context_manager": (),
    "create_accelerator_and_postprocess": (),
    "autocast_smart_context_manager": ("cache_enabled",),
    "_wrap_model": ("model", "training", "dataloader"),
    "_save_optimizer_and_scheduler": ("output_dir",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_load_best_model": (),
}


@pytest.mark.parametrize("name", HOOKS)
def test_the_hooks_of_the_installed_trainer_are_those_we_know(name: str) -> None:
    """Same parameters, in the same order; ours takes what the caller passes."""
    parameters = tuple(inspect.signature(getattr(Trainer, name)).parameters)[1:]
    assert parameters == HOOKS[name]
    if name in vars(MarginTrainer):
        assert tuple(inspect.signature(getattr(MarginTrainer, name)).parameters)[1:] == HOOKS[name]


def test_every_override_is_pinned() -> None:
    """What MarginTrainer overrides of Trainer is in the table above."""
    own = {name for name, value in vars(MarginTrainer).items() if callable(value) and name != "__init__"}
    assert {name for name in own if hasattr(Trainer, name)} <= set(HOOKS)
    assert hasattr(Trainer, "loss_is_scaled_for_ga"), "the documented switch for a loss that is already normalised"


def test_the_arguments_we_fix_exist_in_the_installed_release() -> None:
    """Under the names we use; `logging_nan_inf_filter` and `remove_unused_columns` are off."""
    arguments = training_arguments(resolve("dpo", ["model.path=x"]), Path("x"), precision="fp32", has_eval=True)
    assert arguments.logging_nan_inf_filter is False
    assert arguments.remove_unused_columns is False
    assert arguments.gradient_accumulation_steps == arguments.per_device_train_batch_size == 1
    assert arguments.ddp_find_unused_parameters is False
    listed = set(resolve("dpo", ["model.path=x"]).train.model_dump())
    own = {
        *("prompts_per_step", "tokens_per_micro_batch", "per", "control", "disable_dropout", "force", "precision"),
        *("extra", "torch_compile", "gradient_checkpointing", "population", "population_window", "layout"),
        *("benchmarks", "benchmark_sample"),
    }
    assert listed - own <= set(TrainingArguments.__dataclass_fields__), "train.* has the names of TrainingArguments"


def test_extra_arguments_pass_through_and_may_not_contradict() -> None:
    """A name of transformers passes, an unknown one and one of ours are refused in one line."""
    config = resolve("dpo", ["model.path=x", "train.extra.logging_first_step=true"])
    assert training_arguments(config, Path("x"), precision="fp32", has_eval=False).logging_first_step is True
    for extra, wanted in (
        ("remove_unused_columns=true", "train.extra.remove_unused_columns: set by marginkit"),
        ("learning_rate=1", "train.extra.learning_rate: set by marginkit; use train.learning_rate"),
        ("no_such_thing=1", "no_such_thing"),
    ):
        config = resolve("dpo", ["model.path=x", f"train.extra.{extra}"])
        with pytest.raises(BadInput) as e:
            training_arguments(config, Path("x"), precision="fp32", has_eval=False)
        assert wanted in str(e.value)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("given", "world", "prompts", "a_pass"),
    [
        ((), 1, 32, None),
        (("train.prompts_per_step=12",), 3, 12, None),
        (("train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=3"), 2, 24, 4),
        (("train.gradient_accumulation_steps=3",), 2, 6, None),
        (("train.per_device_train_batch_size=4", "train.prompts_per_step=10"), 2, 10, 4),
    ],
)
def test_batch_settings_are_understood_as_they_are_meant(
    given: tuple[str, ...], world: int, prompts: int, a_pass: int | None
) -> None:
    """Prompts of an optimizer step over all ranks, and what one pass may hold; told in words."""
    groups = tiny.encode(tiny.graded_groups(5))
    plan, words = batch_plan(resolve("dpo", list(given)).train, groups, world_size=world, seed=0)
    assert (plan.prompts_per_step, plan.prompts_per_micro_batch) == (prompts, a_pass)
    assert words.startswith(f"{prompts} prompts an optimizer step over {world} rank(s)")


# --------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(("recipe", "per"), [("mmpo", "pair"), ("dpo", "prompt"), ("bt", "pair")])
def test_eval_metrics_are_those_of_brute_force(recipe: str, per: str, tmp_path: Path) -> None:
    """Loss, rewards, accuracy, NLL, Brier over all rows, from scores of one response at a time."""
    family, options = test_invariance.RECIPES[recipe]
    groups = test_invariance.groups_for(recipe, 9)
    beta = {"mmpo": 0.1, "dpo": 0.1, "bt": 1.0}[recipe]
    config = tiny.configured(recipe, *options, "train.tokens_per_micro_batch=300")
    trainer = tiny.trainer(tiny.model(family), config, groups, tmp_path, held=groups, per=per)
    metrics = trainer.evaluate()

    found = tiny.logps(tiny.model(family), groups, tokens=1)
    gap, chosen, rejected, prob, tie, weight, share, logp = ([] for _ in range(8))
    for group, values in zip(groups, found, strict=True):
        rewards = [beta * (v - (0.0 if group.ref_logp is None else group.ref_logp[k])) for k, v in enumerate(values)]
        kept = len(group.tie) - (0 if recipe == "mmpo" else sum(group.tie))
        for k, (i, j) in enumerate(zip(group.chosen, group.rejected, strict=True)):
            chosen.append(rewards[i])
            rejected.append(rewards[j])
            gap.append(rewards[i] - rewards[j])
            logp.append(values[i])
            tie.append(group.tie[k])
            weight.append(group.weight[k])
            prob.append(1 / (1 + math.exp(-0.6 * (group.grade[i] - group.grade[j]))) if recipe == "mmpo" else 1.0)
            share.append((1.0 if per == "pair" else 1 / kept) if recipe == "mmpo" or not group.tie[k] else 0.0)
    d, p, s, clear = (np.array(column) for column in (gap, prob, share, [not t for t in tie]))
    loss = p * np.logaddexp(0, -d) + (1 - p) * np.logaddexp(0, d)
    wanted = {
        "loss": (s * np.array(weight) * loss).sum() / s.sum(),
        "rewards/chosen": np.array(chosen)[s > 0].mean(),
        "rewards/rejected": np.array(rejected)[s > 0].mean(),
        "rewards/margins": d[s > 0].mean(),
        "rewards/accuracies": (d[clear] > 0).mean(),
        "nll": np.logaddexp(0, -d[clear]).mean(),
        "calibration/brier": ((1 - 1 / (1 + np.exp(-d[clear]))) ** 2).mean(),
    }
    if recipe != "bt":
        wanted["logps/chosen"] = np.array(logp)[s > 0].mean()
    assert {name: metrics[f"eval_{name}"] for name in wanted} == pytest.approx(wanted, abs=2e-6, rel=2e-6)
    assert (~clear).any()


def test_groups_of_one_name_count_each(tmp_path: Path) -> None:
    """Evaluation goes by rows: groups that share an id are not merged."""
    groups = list(test_invariance.groups_for("bt", 6))
    losses = []
    for name, ids in (("own", [group.id for group in groups]), ("one", ["same"] * 6)):
        renamed = [replace(group, id=own) for group, own in zip(groups, ids, strict=True)]
        held = EncodedGroups.from_iterable(renamed)
        config = tiny.configured("bt", "train.tokens_per_micro_batch=60")
        losses.append(tiny.trainer(tiny.model("llama_rm"), config, held, tmp_path / name, held=held).evaluate())
    assert losses[1]["eval_loss"] == losses[0]["eval_loss"]


def test_metric_names_are_those_of_trl(tmp_path: Path) -> None:
    """Dashboards keep working: TRL's names in training, the same behind eval_; ours beside them."""
    groups = test_invariance.groups_for("mmpo", 8)
    config = tiny.configured("mmpo", "target.gamma=0.5", "train.prompts_per_step=4", "train.eval_strategy=epoch")
    trainer = tiny.trainer(tiny.model("llama"), config, groups, tmp_path, held=groups)
    trainer.train()
    lines = tiny.log_lines(tmp_path)
    trl = {
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected"),
    }
    training = [line for line in lines if "loss" in line]
    held = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in training] == [1, 2]
    assert [line["step"] for line in held] == [2]
    for line in training:
        assert trl | {"target/gap", "slack/violation_rate", "grad_norm", "learning_rate", "num_tokens"} <= set(line)
    assert {f"eval_{name}" for name in trl | {"loss", "nll", "calibration/brier", "calibration/ece"}} <= set(held[0])
    assert all(isinstance(value, (int, float)) for line in lines for value in line.values())


def test_tokens_seen_are_counted_once_whatever_the_layout(tmp_path: Path) -> None:
    """num_tokens after two steps: each prompt and each response once, without padding and fillers."""
    groups = test_invariance.groups_for("dpo", 8)
    total = sum(len(g.prompt_ids) + sum(map(len, g.response_ids)) for g in groups)
    for name, layout in test_invariance.LAYOUTS.items():
        config = tiny.configured("dpo", *layout)
        trainer = tiny.trainer(tiny.model("llama"), config, groups, tmp_path / name)
        trainer.train()
        assert tiny.log_lines(tmp_path / name)[0]["num_tokens"] == total, name


def test_logged_metrics_are_means_over_the_pairs_of_the_logged_steps(tmp_path: Path) -> None:
    """Two steps in one line: the mean over all their pairs, in every layout."""
    groups = test_invariance.groups_for("mmpo", 12)
    logged = []
    for name, layout in test_invariance.LAYOUTS.items():
        config = tiny.configured("mmpo", "target.gamma=0.6", *layout, "train.learning_rate=0", "train.logging_steps=2")
        trainer = tiny.trainer(tiny.model("llama"), config, groups, tmp_path / name)
        trainer.train()
        (line,) = tiny.training_lines(tmp_path / name)
        logged.append(line)
    gaps = [
        0.6 * (group.grade[i] - group.grade[j])
        for group in groups
        for i, j in zip(group.chosen, group.rejected, strict=True)
    ]
    for line in logged:
        assert line["target/gap"] == pytest.approx(np.mean(gaps), rel=1e-6)
        for name in ("rewards/margins", "rewards/accuracies", "logps/chosen", "slack/violation_rate"):
            assert line[name] == pytest.approx(logged[0][name], rel=1e-5, abs=1e-6), name


def test_the_meter_keeps_its_sums_where_the_values_are() -> None:
    """No tensor of another device is mixed in: sums and counts stay on the device of the values."""
    meter = Meter()
    for _ in range(2):
        meter.add("x", torch.ones(3, device="meta"))
        meter.add("flags", torch.ones(3, dtype=torch.bool, device="meta"))
    assert {total.device.type for total in meter.sums.values()} == {"meta"}


# ------------------------------------------------------------------------------------------------------ as it is run

GROUPS = tiny.world(train=8, dev=6, test=3)


def settings(start: str, out: Path, *more: str) -> list[str]:
    """A short run."""
    return [
        f"model.path={start}",
        f"out={out}",
        "store.use=false",
        "train.learning_rate=0.01",
        "train.prompts_per_step=4",
        "train.logging_steps=1",
        "train.use_cpu=true",
        *more,
    ]


def test_dropout_is_off_for_preferences_and_on_for_sft(tmp_path: Path) -> None:
    """A config with attention_dropout 0.5: DPO's first loss is ln 2 and does not hang on chance; SFT's does."""
    start = tiny.save(tmp_path / "start", "llama", attention_dropout=0.5)

    def first(recipe: str, name: str, *more: str) -> float:
        out = tmp_path / name
        train(recipe, settings(start, out, "train.max_steps=1", "train.save_strategy=no", *more), train=GROUPS)
        return float(tiny.training_lines(out)[0]["loss"])

    assert first("dpo", "dpo") == pytest.approx(math.log(2), abs=1e-5)
    assert abs(first("dpo", "dpo-on", "train.disable_dropout=false") - math.log(2)) > 1e-3
    with_dropout, without = first("sft", "sft"), first("sft", "sft-off", "train.disable_dropout=true")
    assert abs(with_dropout - without) > 1e-3


def test_the_best_checkpoint_is_what_is_kept(tmp_path: Path) -> None:
    """load_best_model_at_end with a rate that ruins the model: the saved weights are those of the best checkpoint."""
    start = tiny.save(tmp_path / "start", "llama_rm")
    run = train(
        "bt",
        settings(
            start,
            tmp_path / "out",
            "train.num_train_epochs=4",
            "train.lr_scheduler_type=constant",
            "train.learning_rate=0.5",
            "train.max_grad_norm=0",
            "train.optim=sgd",
            "train.load_best_model_at_end=true",
            "train.save_total_limit=5",
        ),
        train=GROUPS,
    )
    held = {line["step"]: line["eval_loss"] for line in tiny.log_lines(run.path) if "eval_loss" in line}
    best = min(held, key=lambda step: held[step])
    assert best != max(held), "the last epoch is not the best"
    checkpoint = run.path / "checkpoints" / f"checkpoint-{best}"
    assert tiny.weights_digest(run.checkpoint) == tiny.weights_digest(checkpoint)


def test_activation_checkpointing_changes_no_number(tmp_path: Path) -> None:
    """Gradients with and without it, policy and LoRA-free reward model."""
    for recipe in ("dpo", "bt"):
        family, options = test_invariance.RECIPES[recipe]
        runs = []
        for word in ("false", "true"):
            config = tiny.configured(
                recipe, *options, "train.prompts_per_step=8", f"train.gradient_checkpointing={word}"
            )
            trainer = tiny.trainer(
                tiny.model(family), config, test_invariance.groups_for(recipe, 8), tmp_path / f"{recipe}-{word}"
            )
            trainer.train()
            runs.append(trainer)
        assert runs[1].model.is_gradient_checkpointing
        assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-6)
        assert tiny.worst_gradient(runs[0].gradients[0], runs[1].gradients[0]) <= 2e-6


def test_the_order_of_an_epoch_follows_the_epoch_that_begins(tmp_path: Path) -> None:
    """The sampler is told the epoch although the loader is not prepared; every epoch has every group once."""
    groups = test_invariance.groups_for("bt", 12)
    config = tiny.configured("bt", "train.prompts_per_step=5", "train.num_train_epochs=3")
    seen: list[list[str]] = []

    class Watching(tiny.Recording):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            seen[-1] += [name for batch in inputs if batch["real"] for name in batch["ids"]]
            return super().training_step(model, inputs, num_items_in_batch)

    class Begin(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            seen.append([])

    trainer = tiny.trainer(tiny.model("llama_rm"), config, groups, tmp_path, kind=Watching)
    trainer.add_callback(Begin())
    trainer.train()
    assert [sorted(epoch) for epoch in seen] == [sorted(group.id for group in groups)] * 3
    steps = [[set(epoch[:5]), set(epoch[5:10])] for epoch in seen]
    assert steps[0] != steps[1] != steps[2]
    planned = [
        {groups[index].id for micro in next(iter(trainer.plan.steps(epoch)))[0] for index in micro.groups}
        for epoch in range(3)
    ]
    assert [epoch[0] for epoch in steps] == planned
