"""One loss, whatever the layout: micro-batches, accumulation, and each pair on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from marginkit.assembly import build_loss
from marginkit.data.encoded import EncodedGroup, EncodedGroups
from marginkit.models.packing import labels_of, padded_batch
from marginkit.models.scorer import score
from marginkit.preparing import best_response_only
from marginkit.registry import load_recipe

LOSSES = 1e-6  # nats, absolute
# Relative to the largest entry of each tensor. A head read at one token a row gives attention far smaller gradients
# than a likelihood over all tokens does, and fp32 rounding is the larger share of them.
GRADIENTS = {"policy": 2e-6, "reward_model": 5e-6, "sft": 2e-6}

RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dpo": ("llama", ()),
    "mmpo": ("llama", ("target.gamma=0.6", "reward.beta=0.1")),
    "bt": ("llama_rm", ()),
    "mmpo_rm": ("llama_rm", ("target.gamma=0.6",)),
    "bt_margin": ("modernbert_rm", ("target.scale=0.5",)),
    "sft": ("llama", ()),
}
LAYOUTS: dict[str, tuple[str, ...]] = {
    "8x1": ("train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1"),
    "1x8": ("train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=8"),
    "4x2": ("train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=2"),
    "bins of 300 tokens": ("train.prompts_per_step=8", "train.tokens_per_micro_batch=300"),
    "groups in several passes": ("train.prompts_per_step=8", "train.tokens_per_micro_batch=24"),
    "padded rows": ("train.prompts_per_step=8", "train.layout=rows"),
    "padded rows in several passes": (
        "train.prompts_per_step=8",
        "train.layout=rows",
        "train.tokens_per_micro_batch=50",
    ),
}
DENSE = ("train.prompts_per_step=8", "train.layout=dense", "train.tokens_per_micro_batch=200")


def groups_for(recipe: str, count: int = 12) -> EncodedGroups:
    """Encoded groups of 2 to 4 responses with ties and weights; policies get another model's reference scores."""
    family = RECIPES[recipe][0]
    groups = tiny.graded_groups(count)
    if recipe == "sft":
        groups = groups.map(best_response_only)
    encoded = tiny.encode(groups, tiny.tokenizer(encoder=family == "modernbert_rm"))
    if family == "llama" and recipe != "sft":
        encoded = encoded.with_ref_logp(tiny.logps(tiny.model("llama", seed=1), encoded))
    return encoded


def fit(recipe: str, layout: tuple[str, ...], folder: Path, *, per: str = "pair") -> Any:
    """Two epochs of the recipe in a layout."""
    family, options = RECIPES[recipe]
    config = tiny.configured(recipe, *options, *layout, "train.num_train_epochs=1")
    trainer = tiny.trainer(tiny.model(family), config, groups_for(recipe), folder, per=per)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("recipe", "per"), [*((recipe, "pair") for recipe in RECIPES), ("mmpo", "prompt"), ("bt", "prompt")]
)
def test_the_layout_of_a_step_changes_neither_loss_nor_gradient(recipe: str, per: str, tmp_path: Path) -> None:
    """8x1 == 1x8 == 4x2 == token bins over an epoch of 2 steps (8 and 4 prompts)."""
    whole = fit(recipe, LAYOUTS["8x1"], tmp_path / "whole", per=per)
    assert len(whole.losses) == len(whole.gradients) == len(set(whole.losses)) == 2
    tolerance = GRADIENTS[load_recipe(recipe).kind]
    packable = RECIPES[recipe][0] != "modernbert_rm"
    for name, layout in (LAYOUTS | ({"4D masks": DENSE} if packable else {})).items():
        other = fit(recipe, layout, tmp_path / name, per=per)
        assert other.losses == pytest.approx(whole.losses, rel=0, abs=LOSSES), name
        for step, (left, right) in enumerate(zip(whole.gradients, other.gradients, strict=True)):
            assert tiny.worst_gradient(left, right) <= tolerance, f"{name}, step {step + 1}"


@pytest.mark.parametrize("recipe", ["dpo", "mmpo", "bt", "mmpo_rm", "bt_margin"])
def test_each_pair_alone_gives_the_loss_it_has_in_a_batch(recipe: str) -> None:
    """Pairs of mixed lengths, padded together, lose nothing and gain nothing (1e-6)."""
    family, options = RECIPES[recipe]
    own = tiny.model(family)
    config = tiny.configured(recipe, *options)
    loss = build_loss(config.spec, config.options())
    groups = list(groups_for(recipe))

    def losses(batch_of: list[EncodedGroup]) -> torch.Tensor:
        batch = padded_batch(batch_of, pad_id=0)
        with torch.no_grad():
            return loss.evaluate(score(own, batch).at(batch["pairs"], labels_of(batch))).loss

    together = losses(groups)
    alone = torch.cat([losses([only(group, pair)]) for group in groups for pair in range(len(group.chosen))])
    assert len(together) == sum(len(group.chosen) for group in groups) > 30
    assert len({group.length for group in groups}) > 5, "the lengths are mixed"
    assert together.std() > 0.01, "the losses differ from pair to pair"
    assert (together - alone).abs().max() <= LOSSES


def only(group: EncodedGroup, pair: int) -> EncodedGroup:
    """The group with one pair and its two responses."""
    both = [group.chosen[pair], group.rejected[pair]]
    columns: dict[str, Any] = {
        name: [getattr(group, name)[pair]] for name in ("prob", "target_gap", "strength", "weight", "tie")
    }
    return EncodedGroup(
        row=group.row,
        id=group.id,
        prompt_ids=group.prompt_ids,
        response_ids=[group.response_ids[k] for k in both],
        grade=[group.grade[k] for k in both],
        utility=[group.utility[k] for k in both],
        chosen=[0],
        rejected=[1],
        ref_logp=None if group.ref_logp is None else [group.ref_logp[k] for k in both],
        **columns,
    )


@pytest.mark.parametrize("per", ["pair", "prompt"])
def test_the_loss_of_a_step_is_the_weighted_mean_over_its_kept_pairs(per: str, tmp_path: Path) -> None:
    """sum(weight * loss over kept pairs) / sum(kept pairs); per prompt, the kept pairs of a group share weight 1."""
    groups = groups_for("bt")
    config = tiny.configured("bt", "train.prompts_per_step=12", "train.num_train_epochs=1")
    heads = tiny.logps(tiny.model("llama_rm"), groups)
    total = units = 0.0
    for group, head in zip(groups, heads, strict=True):
        kept = [k for k, tie in enumerate(group.tie) if not tie]
        for k in kept:
            gap = torch.tensor(head[group.chosen[k]] - head[group.rejected[k]])
            share = 1.0 if per == "pair" else 1.0 / len(kept)
            total += share * group.weight[k] * float(torch.log1p(torch.exp(-gap)))
            units += share
    assert any(any(group.tie) for group in groups)
    trainer = tiny.trainer(tiny.model("llama_rm"), config, groups, tmp_path, per=per)
    trainer.train()
    assert trainer.losses == pytest.approx([total / units], abs=1e-5)


def test_sft_loss_is_the_mean_nll_over_the_tokens_of_the_step(tmp_path: Path) -> None:
    """-sum log p / sum tokens, by brute force over the model's own full log-softmax."""
    groups = groups_for("sft")
    own = tiny.model("llama")
    nll = tokens = 0.0
    for group in groups:
        for response in group.response_ids:
            ids = torch.tensor([group.prompt_ids + response])
            with torch.no_grad():
                logp = own(input_ids=ids).logits[0].double().log_softmax(-1)
            start = len(group.prompt_ids)
            nll -= float(logp[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].sum())
            tokens += len(response)
    config = tiny.configured("sft", "train.prompts_per_step=12", "train.tokens_per_micro_batch=400")
    trainer = tiny.trainer(own, config, groups, tmp_path, held=groups)
    before = trainer.evaluate()
    trainer.train()
    assert trainer.losses == pytest.approx([nll / tokens], rel=1e-6)
    logged = [entry["nll/token"] for entry in trainer.state.log_history if "nll/token" in entry]
    assert logged == pytest.approx([nll / tokens], rel=1e-6)
    assert before["eval_loss"] == pytest.approx(nll / tokens, rel=1e-6)
    assert before["eval_perplexity"] == pytest.approx(torch.tensor(nll / tokens).exp().item(), rel=1e-5)
