"""Every recipe of the catalogue trains: two steps on a small model, from data to gradients to evaluation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tiny
from marginkit.assembly import build_loss
from marginkit.data.encoded import EncodedGroups
from marginkit.preparing import best_response_only
from marginkit.registry import load_recipe, recipe_names

# Options without a default in the catalogue, and what keeps a tiny random model in range.
OPTIONS: dict[str, tuple[str, ...]] = {"mmpo": ("target.gamma=0.5",), "mmpo_rm": ("target.gamma=0.5",)}
FAMILIES = {"policy": ("llama",), "sft": ("llama",), "reward_model": ("llama_rm", "modernbert_rm")}
EVERY = [
    pytest.param(name, family, id=f"{name}-{family}")
    for name in recipe_names()
    for family in FAMILIES[load_recipe(name).kind]
]


@cache
def plain(family: str, *, sft: bool) -> EncodedGroups:
    """Graded groups in tokens."""
    groups = tiny.graded_groups(6)
    return tiny.encode(groups.map(best_response_only) if sft else groups, tiny.tokenizer(encoder="bert" in family))


def encoded_for(recipe: str, family: str) -> EncodedGroups:
    """Graded groups in tokens with the scores of other models that the recipe needs."""
    encoded = plain(family, sft=recipe == "sft")
    config = tiny.configured(recipe, *OPTIONS.get(recipe, ()))
    needs = build_loss(config.spec, config.options()).needs
    if "ref_logp" in needs:
        encoded = encoded.with_ref_logp(tiny.logps(tiny.model("llama", seed=1), encoded))
    if "rm_head" in needs:
        encoded = encoded.with_rm_head(tiny.logps(tiny.model("llama_rm", seed=2), encoded))
    return encoded


@pytest.mark.parametrize(("recipe", "family"), EVERY)
def test_two_steps_move_the_model_and_evaluation_is_finite(recipe: str, family: str, tmp_path: Path) -> None:
    """Gradients reach the weights, losses and metrics are numbers."""
    encoded = encoded_for(recipe, family)
    config = tiny.configured(
        recipe, *OPTIONS.get(recipe, ()), "train.prompts_per_step=3", "train.max_steps=2", "train.max_grad_norm=1"
    )
    trainer = tiny.trainer(tiny.model(family), config, encoded, tmp_path, held=encoded)
    trainer.train()
    assert len(trainer.losses) == 2
    assert all(math.isfinite(loss) for loss in trainer.losses)
    for gradients in trainer.gradients:
        assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    if recipe != "sft":
        assert {"eval_rewards/accuracies", "eval_nll", "eval_calibration/ece"} <= set(metrics)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_runs_from_the_command_line(recipe: str, tmp_path: Path) -> None:
    """`marginkit train NAME` on graded pairs with a fresh model; madpo after a reward model of its own."""
    rows = [
        {
            "prompt": f"question {number} " + "on " * (number % 5),
            "chosen": f"good answer {number} " + "well " * (number % 3),
            "rejected": f"bad {number}",
            "score_chosen": 4 + number % 2,
            "score_rejected": 1 + number % 2,
            "split": ("train", "train", "dev", "test")[number % 4],
        }
        for number in range(24)
    ]
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fresh = [
        "model.path=fresh",
        *(f"model.fresh.{key}" for key in ("layers=1", "hidden=16", "heads=2", "vocab=300")),
        "data.train=ratings.jsonl",
        "train.use_cpu=true",
        "train.save_strategy=no",
        "train.max_steps=2",
    ]

    def command(name: str, *more: str) -> dict[str, Any]:
        words = [sys.executable, "-m", "marginkit", "train", name, *fresh, f"out={name}", *more, "--json"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    more: list[str] = list(OPTIONS.get(recipe, ()))
    if recipe == "madpo":
        command("bt")
        more.append("model.reward_model=bt")
    result = command(recipe, *more)
    assert (tmp_path / recipe / "model").is_dir()
    if load_recipe(recipe).kind != "sft":
        assert math.isfinite(result["metrics"]["nll"]["value"])
