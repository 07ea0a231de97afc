"""What the probe and the estimate see of training itself: dropout, backward, autocast; and what is moved as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from transformers import AttentionInterface

import tiny
from marginkit.arguments import batch_plan
from marginkit.cost import cost_of
from marginkit.memory import estimate, saved_bytes
from marginkit.models.attention import SEGMENTS, attend_segments
from marginkit.models.packing import make_batch
from marginkit.models.rungs import choose_rung
from marginkit.models.scorer import score
from marginkit.scoring import Precision

BF16 = Precision(torch.device("cpu"), torch.bfloat16)


class NoBackward(torch.autograd.Function):
    """The identity, once."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        """As it is."""
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Not there."""
        raise NotImplementedError("no backward on this device")


@pytest.mark.parametrize("kind", ["no backward", "no dropout"])
def test_a_rung_that_cannot_train_is_not_taken_for_training(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the right states; only a training step shows that it fails. Nothing is left behind by that step."""

    def attend(*args: Any, segments: Any = None, dropout: float = 0.0, **kwargs: Any) -> Any:
        output, weights = attend_segments(*args, segments=segments, dropout=dropout, **kwargs)
        if segments is None:
            return output, weights
        if kind == "no dropout" and dropout:
            raise NotImplementedError("no dropout")
        return (NoBackward.apply(output) if kind == "no backward" else output), weights

    own = tiny.model("gpt2", attn_pdrop=0.1)
    AttentionInterface.register(SEGMENTS, attend)
    try:
        assert choose_rung(own, "segments", longest=40) == "segments", "it may be scored on"
        assert choose_rung(tiny.model("gpt2", attn_pdrop=0.1), "auto", longest=40, training=BF16.context()) == "dense"
    finally:
        AttentionInterface.register(SEGMENTS, attend_segments)
    state = torch.get_rng_state()
    assert choose_rung(own, "auto", longest=40, training=tiny.CPU.context()) == "segments"
    assert torch.equal(torch.get_rng_state(), state), "the probe draws nothing"
    assert all(weight.grad is None for weight in own.parameters())
    assert not own.get_input_embeddings()._forward_hooks
    assert not own.training


def test_under_autocast_masks_are_made_in_its_type_once() -> None:
    """In float32 every layer would make, and keep, a copy of its own."""
    own = tiny.model("llama")
    assert choose_rung(own, "segments", longest=60) == "segments"
    batch = make_batch(list(tiny.encode(tiny.graded_groups(3))), rung="segments", pad_id=0)
    with BF16.context():
        found = score(own, batch).logp
    assert {mask.dtype for mask in batch["segments"]._masks.values() if mask is not None} == {torch.bfloat16}
    assert found is not None
    with torch.no_grad():
        assert (
            found - score(own, batch | {"segments": type(batch["segments"])(batch["segments"].pieces)}).logp
        ).abs().max() < 0.5


@pytest.mark.parametrize("precision", [tiny.CPU, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tokens", [120, 100_000])
def test_an_estimate_is_what_the_largest_pass_keeps(precision: Precision, tokens: int) -> None:
    """Within a fifth, also where autocast keeps copies of weights, which do not grow with the tokens."""
    own = tiny.model("llama", hidden_size=512, intermediate_size=2048)
    encoded = tiny.encode(tiny.graded_groups(24))
    config = tiny.configured("dpo", f"train.tokens_per_micro_batch={tokens}", "train.prompts_per_step=24").train
    plan, _ = batch_plan(config, encoded, world_size=1, seed=0, packed=True)
    assert choose_rung(own, "segments", longest=60) == "segments"
    found = estimate(own, encoded, plan, config, precision, "segments", pad_id=0).activations
    passes = [[encoded[index] for index in micro.groups] for micro in plan.step(range(24))[0]]
    kept = max(saved_bytes(own, make_batch(part, rung="segments", pad_id=0), precision) for part in passes)
    assert found == pytest.approx(kept, rel=0.2)


def test_a_model_without_heads_has_a_cost() -> None:
    """Mamba's configuration does not know attention heads."""
    assert cost_of(families.build("Mamba2")).token > 0


def test_what_is_moved_to_the_device_is_not_rounded(tmp_path: Path) -> None:
    """DeepSpeed makes the stock method cast numbers to the type of its weights; ours leaves them."""
    encoded = tiny.encode(tiny.graded_groups(4)).with_ref_logp(
        [[-3700.3] * len(group.response_ids) for group in tiny.encode(tiny.graded_groups(4))]
    )
    trainer = tiny.trainer(tiny.model("llama"), tiny.configured("dpo"), encoded, tmp_path)
    trainer._prepare_input = lambda data: pytest.fail("the stock method was asked")
    (step,) = list(trainer.get_train_dataloader())[:1]
    moved = trainer._prepare_inputs(step)
    assert moved[0]["ref_logp"].dtype == torch.float64
    assert float(moved[0]["ref_logp"][0]) == -3700.3
    assert moved[0]["ids"] == step[0]["ids"]
