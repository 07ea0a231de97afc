"""The same data and weights through TRL's own trainers give the same losses, step after step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

import tiny
from marginkit.data.encoding import CHATML
from marginkit.data.sources import read_groups

STEPS, PAIRS = 3, 12


def rows(form: str) -> list[dict[str, Any]]:
    """Pairs of mixed lengths as a file has them: chat turns, or plain text whose boundary no tokenizer merges."""
    import random

    chance = random.Random(5)
    found = []
    for number in range(PAIRS):
        prompt = f"{number} " + tiny.phrase(chance, 1, 12)
        chosen, rejected = tiny.phrase(chance, 1, 16), tiny.phrase(chance, 1, 16)
        margin = round(chance.uniform(0.1, 3.0), 2)
        if form == "chat":
            found.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                    "margin": margin,
                }
            )
        else:
            found.append({"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected, "margin": margin})
    return found


def arguments(folder: Path) -> dict[str, Any]:
    """A whole epoch is one batch, so that the order of the data does not matter."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": PAIRS,
        "max_steps": STEPS,
        "num_train_epochs": STEPS,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "max_length": None,
    }


def ours(recipe: str, own: Any, form: str, reference: Any, folder: Path, *options: str) -> list[dict[str, float]]:
    """What marginkit logs for the same rows."""
    groups, findings = read_groups(rows(form))
    assert findings.kept == PAIRS
    template = CHATML if form == "chat" else None
    encoded = tiny.encode(groups, tiny.tokenizer(chat_template=template), separator="")
    if reference is not None:
        encoded = encoded.with_ref_logp(tiny.logps(reference, encoded))
    config = tiny.configured(
        recipe, *options, f"train.prompts_per_step={PAIRS}", f"train.max_steps={STEPS}", "train.num_train_epochs=3"
    )
    trainer = tiny.trainer(own, config, encoded, folder)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def theirs(trainer: Any) -> list[dict[str, float]]:
    """What TRL logs."""
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_dpo_gives_the_losses_of_trl(form: str, tmp_path: Path) -> None:
    """Three SGD steps from a policy that is not its reference: loss and rewards within 1e-4."""
    template = CHATML if form == "chat" else None
    start = tiny.save(tmp_path / "start", "llama", chat_template=template)
    before = tiny.save(tmp_path / "before", "llama", seed=1, chat_template=template)
    dataset = Dataset.from_list(rows(form)).remove_columns("margin")
    trl = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        ref_model=AutoModelForCausalLM.from_pretrained(before),
        args=DPOConfig(**arguments(tmp_path / "trl"), beta=0.3, loss_type="sigmoid"),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    peer = theirs(trl)
    mine = ours("dpo", tiny.model("llama"), form, tiny.model("llama", seed=1), tmp_path / "ours", "reward.beta=0.3")
    assert len(peer) == len(mine) == STEPS
    assert abs(mine[0]["loss"] - 0.6931) > 0.01, "the policy has moved away from its reference"
    assert abs(mine[0]["loss"] - mine[-1]["loss"]) > 0.05, "and it is trained"
    for step, (left, right) in enumerate(zip(mine, peer, strict=True)):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4), step
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-4), (step, name)
        for name in ("rewards/accuracies", "logps/chosen", "logps/rejected"):
            assert left[name] == pytest.approx(right[name], rel=1e-5), (step, name)


@pytest.mark.parametrize(("recipe", "form"), [("bt", "chat"), ("bt", "plain"), ("bt_margin", "chat")])
def test_a_reward_model_gives_the_losses_of_trl(recipe: str, form: str, tmp_path: Path) -> None:
    """Three SGD steps, without and with a `margin` column: loss within 1e-5."""
    template = CHATML if form == "chat" else None
    start = tiny.save(tmp_path / "start", "llama_rm", chat_template=template)
    dataset = Dataset.from_list(rows(form))
    if recipe == "bt":
        dataset = dataset.remove_columns("margin")
    trl = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(start, num_labels=1),
        args=RewardConfig(**arguments(tmp_path / "trl")),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    peer = theirs(trl)
    mine = ours(recipe, tiny.model("llama_rm"), form, None, tmp_path / "ours")
    assert len(peer) == len(mine) == STEPS
    assert abs(mine[0]["loss"] - 0.6931) > 0.01
    for step, (left, right) in enumerate(zip(mine, peer, strict=True)):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5), step
        assert left["rewards/margins"] == pytest.approx(right["margin"], rel=1e-4, abs=1e-5), step
