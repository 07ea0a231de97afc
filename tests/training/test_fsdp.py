"""FSDP2 on two processes (gloo): the losses, gradients and saved models of one process, and a resumed run's weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import test_invariance
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import marginkit.training
import tiny
from marginkit.config import Lora, ModelConfig
from marginkit.models import logprobs
from marginkit.models.loading import add_lora
from marginkit.run import train
from marginkit.training import MarginTrainer

LAYOUTS = ("rows", "segments")
TOLERANCE = 5e-6  # of gradients, relative to the largest entry of each tensor
STEPS = ("train.prompts_per_step=3", "train.tokens_per_micro_batch=60", "train.num_train_epochs=1")


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        recipe: out of those of test_invariance.
        family: out of those of tiny.
        settings: beside the recipe's own.
        changes: of the model's configuration.
        lora: train an adapter.
        logits: held at a time; few of them cut the output layer's work into chunks.
        precision: of forward passes.
    """

    recipe: str
    family: str
    settings: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    logits: int | None = None
    precision: str = "fp32"


CASES = {
    "policy": Case("mmpo", "llama"),
    "clipped": Case("mmpo", "llama", ("train.max_grad_norm=0.05",)),
    "recomputed": Case("mmpo", "llama", ("train.gradient_checkpointing=true",)),
    "tied": Case("mmpo", "llama", changes={"tie_word_embeddings": True}),
    "reward model": Case("mmpo_rm", "llama_rm"),
    "LoRA": Case("dpo", "llama", ("train.learning_rate=0.001",), lora=True),
    "LoRA reward model": Case("bt", "llama_rm", ("train.learning_rate=0.001",), lora=True),
    # accelerate shards the embeddings twice unless it is told which layers to shard
    "encoder": Case(
        "bt_margin", "modernbert_rm", ("train.fsdp_config.transformer_layer_cls_to_wrap=[ModernBertEncoderLayer]",)
    ),
    # accelerate would round to bfloat16 whatever goes into and comes out of the model
    "bf16": Case("mmpo", "llama", precision="bf16"),
    "bf16 reward model": Case("mmpo_rm", "llama_rm", precision="bf16"),
    # ranks have as many chunks as they have tokens, but must communicate as often
    "chunks": Case("mmpo", "llama", logits=16 * tiny.VOCAB),
    "chunks, tied": Case("mmpo", "llama", changes={"tie_word_embeddings": True}, logits=16 * tiny.VOCAB),
}


def shard_on_cpu() -> None:
    """Let accelerate shard on gloo; on a CPU it ignores the plugin and trains DDP without a word."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a mesh is made of what there is
    plain = AcceleratorState.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("fsdp_plugin") is not None and not AcceleratorState._shared_state:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU  # any type that it does shard
        plain(self, *args, **kwargs)

    AcceleratorState.__init__ = made


def whole(value: Tensor) -> Tensor:
    """A tensor put together from all ranks."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class Whole(tiny.Recording):
    """Keeps whole gradients."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.gradients[-1] = {name: whole(value) for name, value in self.gradients[-1].items()}
        return norm


def start_of(case: Case) -> nn.Module:
    """The model before training."""
    own: nn.Module = tiny.model(case.family, **case.changes)
    if case.lora:
        torch.manual_seed(1)
        own = add_lora(own, ModelConfig(lora=Lora(r=4)), "reward_model" if case.family.endswith("_rm") else "policy")
        for name, weight in own.named_parameters():
            if "lora_B" in name:  # it starts at 0, where lora_A has no gradient
                weight.data.normal_(0.0, 0.1)
    return own


def fitted(case: Case, layout: str, folder: Path, *more: str) -> tuple[Any, dict[str, Any]]:
    """A trainer after three steps of three prompts, saved; and what was seen."""
    groups = test_invariance.groups_for(case.recipe, 9)
    options = test_invariance.RECIPES[case.recipe][1]
    config = tiny.configured(case.recipe, *options, *STEPS, f"train.layout={layout}", *case.settings, *more)
    with pytest.MonkeyPatch.context() as patch:
        if case.logits is not None:
            patch.setattr(logprobs, "_LOGITS_CPU", case.logits)
            patch.setattr(logprobs, "_CACHE_CPU", 0)
        if case.precision != "fp32":  # a head that is not sharded has a gradient of its own, rounded elsewhere
            patch.setattr(logprobs, "_is_plain", lambda head: False)
        plain = tiny.training_arguments
        patch.setattr(tiny, "training_arguments", lambda *a, **k: plain(*a, **k | {"precision": case.precision}))
        trainer = tiny.trainer(start_of(case), config, groups, folder, held=groups, kind=Whole)
        trainer.train()
        found = trainer.evaluate()
    trainer.save_model(str(folder / "model"))
    return trainer, {
        "gradients": trainer.gradients,
        "losses": trainer.losses,
        "eval": {name: value for name, value in found.items() if "second" not in name and "time" not in name},
    }


def sharded(name: str, folder: str) -> dict[str, Any]:
    """What this rank saw of a case with sharded weights, by layout."""
    shard_on_cpu()
    seen: dict[str, Any] = {}
    for layout in layouts_of(CASES[name]):
        trainer, seen[layout] = fitted(CASES[name], layout, Path(folder) / layout, "train.fsdp=true")
        assert trainer.args.world_size == 2
        assert trainer.accelerator.is_fsdp2
        assert all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        steps = list(trainer.plan.steps(0))
        assert any(not micro.real for step in steps for rank in step for micro in rank), "a rank has a filler"
    return seen


def layouts_of(case: Case) -> tuple[str, ...]:
    """An encoder has padded rows alone."""
    return LAYOUTS if case.family != "modernbert_rm" else ("rows",)


def saved_model(case: Case, folder: Path) -> nn.Module:
    """What was saved, as transformers and PEFT load it."""
    own = tiny.model(case.family, **case.changes)
    if case.lora:
        from peft import PeftModel

        return PeftModel.from_pretrained(own, folder).eval()
    return type(own).from_pretrained(folder).eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "chunks" else pytest.mark.slow) for name in CASES]
)
def test_sharded_ranks_give_what_one_process_gives(name: str, tmp_path: Path) -> None:
    """FSDP2 on 2 ranks == 1 process: losses, whole gradients, eval metrics, and scores of the saved model."""
    case = CASES[name]
    groups = test_invariance.groups_for(case.recipe, 9)
    ranks = tiny.on_ranks(sharded, tmp_path / "ranks", name, str(tmp_path / "two"))
    for rank in ranks:
        assert "error" not in rank, rank
    for layout in layouts_of(case):
        trainer, alone = fitted(case, layout, tmp_path / "one" / layout)
        for rank in ranks:
            seen = rank["value"][layout]
            assert len(seen["losses"]) == len(seen["gradients"]) == 3
            assert seen["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE), layout
            assert seen["eval"] == pytest.approx(alone["eval"], rel=TOLERANCE, abs=1e-6), layout
            for left, right in zip(alone["gradients"], seen["gradients"], strict=True):
                assert tiny.worst_gradient(left, right) <= TOLERANCE, layout
        saved = saved_model(case, tmp_path / "two" / layout / "model")
        for left, right in zip(tiny.logps(trainer.model.eval(), groups), tiny.logps(saved, groups), strict=True):
            assert right == pytest.approx(left, rel=TOLERANCE, abs=5e-6), layout


# ------------------------------------------------------------------------------------------------------ whole runs


class PlugPulled(Exception):
    """Somebody stopped the run."""


GROUPS = tiny.world(train=12, dev=4, test=3)


def whole_run(settings: list[str], stop_after: int | None) -> None:
    """A run with sharded weights, stopped in the middle of the step that follows `stop_after` whole ones."""
    shard_on_cpu()

    class Stops(MarginTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            assert all(isinstance(weight, DTensor) for weight in self.model.parameters())
            loss = super().training_step(*args, **kwargs)
            if self.state.global_step == stop_after:
                raise PlugPulled
            return loss

    marginkit.training.MarginTrainer = Stops  # type: ignore[misc]
    train("mmpo", settings, train=GROUPS)


@pytest.mark.slow
def test_an_interrupted_sharded_run_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    """Bitwise, with AdamW, a schedule and attention dropout; stopped at an epoch's end and in the second."""
    start = tiny.save(tmp_path / "start", "llama", attention_dropout=0.1)
    settings = [
        f"model.path={start}",
        f"store.path={tmp_path / 'store'}",
        "target.gamma=0.5",
        "reward.beta=0.2",
        "train.fsdp=true",
        "train.disable_dropout=false",
        "train.learning_rate=0.01",
        "train.lr_scheduler_type=cosine",
        "train.num_train_epochs=2",
        "train.prompts_per_step=4",
        "train.save_strategy=steps",
        "train.save_steps=2",
        "train.load_best_model_at_end=true",
        "train.eval_strategy=steps",
        "train.eval_steps=2",
        "train.use_cpu=true",
    ]
    assert errors_of(whole_run, tmp_path / "a", [*settings, f"out={tmp_path / 'straight'}"], None) == [None, None]
    for after in (3, 4):
        out = tmp_path / f"stopped-{after}"
        pulled = errors_of(whole_run, tmp_path / f"b{after}", [*settings, f"out={out}"], after)
        assert [str(error).split(":")[0] for error in pulled] == ["PlugPulled", "PlugPulled"]
        assert errors_of(whole_run, tmp_path / f"c{after}", [*settings, f"out={out}"], None) == [None, None]
        assert tiny.weights_digest(out / "model") == tiny.weights_digest(tmp_path / "straight" / "model")
        losses = [
            [line["loss"] for line in tiny.log_lines(place) if "loss" in line] for place in (out, tmp_path / "straight")
        ]
        assert losses[0] == losses[1]


def losses_of(out: Path) -> list[float]:
    """What a run logged."""
    return [line["loss"] for line in tiny.log_lines(out) if "loss" in line]


def not_finite(folder: str) -> None:
    """A step in which one pair of one rank has a NaN reference score."""
    shard_on_cpu()
    groups = test_invariance.groups_for("dpo", 8)
    values = [list(group.ref_logp or ()) for group in groups]
    values[3][0] = float("nan")
    settings = ("train.prompts_per_step=8", "train.tokens_per_micro_batch=250", "train.fsdp=true")
    config = tiny.configured("dpo", *settings)
    tiny.trainer(tiny.model("llama"), config, groups.with_ref_logp(values), Path(folder)).train()


@pytest.mark.slow
def test_a_non_finite_loss_stops_sharded_ranks_with_one_message(tmp_path: Path) -> None:
    """No rank hangs: each raises RunFailed and names the same group."""
    errors = errors_of(not_finite, tmp_path / "ranks", str(tmp_path / "out"))
    assert errors[0] == errors[1]
    assert "RunFailed: step 1: a loss is not finite" in str(errors[0])
    assert "train-3 (loss nan)" in str(errors[0])


def errors_of(job: Callable[..., Any], folder: Path, *args: Any) -> list[str | None]:
    """What each rank raised."""
    return [rank.get("error") for rank in tiny.on_ranks(job, folder, *args, timeout=90)]
