"""docs/in_trl.md: the text of the page, pasted as it stands, trains inside TRL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

import marginkit as mk
import tiny
from marginkit.data.sources import read_groups

PAGE = Path(__file__).parent.parent / "docs" / "in_trl.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
TRAINER, USE, STATE, RESUME = BLOCKS


def pasted(*blocks: str, **names: Any) -> dict[str, Any]:
    """The names that a script has which holds these blocks."""
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    return names


def rows(graded: bool = False) -> list[dict[str, Any]]:
    """Plain preference rows, with whole grades on request."""
    found = tiny.preference_rows("plain")
    for number, row in enumerate(found):
        del row["margin"]
        if graded:
            row |= {"score_chosen": 5, "score_rejected": 1 + number % 4}
    return found


def script(folder: Path, made: list[dict[str, Any]], own: Any = None, **changes: Any) -> dict[str, Any]:
    """What a user's script has at hand: models, data, settings."""
    return {
        "model": tiny.model("llama") if own is None else own,
        "ref_model": tiny.model("llama", seed=1),
        "args": DPOConfig(**tiny.trl_arguments(folder) | {"beta": 0.3} | changes),
        "train_dataset": Dataset.from_list(made),
        "eval_dataset": Dataset.from_list(made),
        "processing_class": tiny.tokenizer(),
    }


def losses(trainer: Any) -> list[float]:
    """The loss of every step, and of an evaluation after them."""
    return [*(entry["loss"] for entry in tiny.logged(trainer)), trainer.evaluate()["eval_loss"]]


def test_the_example_is_short() -> None:
    """The subclass is under 30 lines."""
    assert len(TRAINER[TRAINER.index("class ") :].splitlines()) < 30


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precompute_ref_log_probs": True},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "seed": 7},
    ],
    ids=["plain", "precomputed", "accumulated"],
)
def test_dpo_is_the_dpo_of_trl(changes: dict[str, Any], tmp_path: Path) -> None:
    """The losses of DPOTrainer, in training and evaluation."""
    made = pasted(TRAINER)["RecipeTrainer"]
    peer = losses(DPOTrainer(**script(tmp_path / "trl", rows(), **changes)))
    mine = losses(made(**script(tmp_path / "ours", rows(), **changes), recipe=mk.recipe("dpo", beta=0.3)))
    assert mine == pytest.approx(peer, rel=1e-5)
    assert peer[0] - peer[-1] > 0.05


def test_grades_reach_the_loss(tmp_path: Path) -> None:
    """The page's second block, on graded rows: the losses of marginkit's own trainer, which are not those of DPO."""
    graded = rows(graded=True)
    known = script(tmp_path / "trl", graded)
    names = pasted(
        *(TRAINER, USE),
        model=known["model"],
        reference=known["ref_model"],
        config=known["args"],
        dataset=known["train_dataset"],
        tokenizer=known["processing_class"],
    )
    peer = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]
    groups, _ = read_groups(graded)
    encoded = tiny.encode(groups, tiny.tokenizer(), separator="")
    encoded = encoded.with_ref_logp(tiny.logps(tiny.model("llama", seed=1), encoded))
    config = tiny.configured(
        *("mmpo", "reward.beta=0.1", "target.gamma=0.5"),
        *(f"train.prompts_per_step={tiny.TRL_PAIRS}", f"train.max_steps={tiny.TRL_STEPS}", "train.num_train_epochs=3"),
    )
    mine = [entry["loss"] for entry in tiny.logged(tiny.trainer(tiny.model("llama"), config, encoded, tmp_path / "mk"))]
    assert mine == pytest.approx(peer, rel=1e-5)
    plain = script(tmp_path / "dpo", graded)
    hard = losses(names["RecipeTrainer"](**plain, recipe=mk.recipe("dpo", beta=0.1)))
    assert abs(hard[0] - peer[0]) > 0.01


def test_without_grades_the_recipe_says_so(tmp_path: Path) -> None:
    """Rows without the columns are refused by the recipe, not trained as hard labels."""
    made = pasted(TRAINER)["RecipeTrainer"]
    with pytest.raises(mk.BadInput, match="grade"):
        made(**script(tmp_path, rows()), recipe=mk.recipe("mmpo", beta=0.1, gamma=0.5)).train()


class States(TrainerCallback):
    """Keeps the state of a recipe after every step and every evaluation."""

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def keep(self, event: str) -> None:
        """Copy the state."""
        state = {name: torch.as_tensor(value).clone() for name, value in self.recipe.state_dict().items()}
        self.seen.append((event, state))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """After an optimizer step."""
        self.keep("step")

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """After an evaluation."""
        self.keep("evaluation")


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Equal states."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_lora_needs_no_reference_model(tmp_path: Path) -> None:
    """The adapter switched off is the reference, as in DPOTrainer."""
    found = []
    for kind, more in ((DPOTrainer, {}), (pasted(TRAINER)["RecipeTrainer"], {"recipe": mk.recipe("dpo", beta=0.3)})):
        adapter = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        given = script(tmp_path, rows(), learning_rate=0.1) | {"ref_model": None, "peft_config": adapter}
        torch.manual_seed(0)
        found.append(losses(kind(**given, **more)))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert abs(found[0][0] - 0.6931) > 0.001
    assert found[0][0] - found[0][-1] > 0.05


@pytest.mark.parametrize("name", ["gamma_simpo", "beta_dpo"])
def test_state_moves_in_training_alone_and_is_resumed(name: str, tmp_path: Path) -> None:
    """An evaluation after every step leaves the state as it was; the saved state continues the run."""
    recipe = mk.recipe(name)
    names = pasted(TRAINER, STATE)
    watched = States(recipe)
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = names["RecipeTrainer"](
        **script(tmp_path, rows(), **often), recipe=recipe, callbacks=[names["RecipeState"](recipe), watched]
    )
    whole = [entry["loss"] for entry in tiny.logged(trainer)]
    assert [event for event, _ in watched.seen] == ["step", "evaluation"] * tiny.TRL_STEPS
    states = [state for _, state in watched.seen]
    for step in range(tiny.TRL_STEPS):
        assert same(states[2 * step], states[2 * step + 1]), "the evaluation did not move it"
        assert step == 0 or not same(states[2 * step], states[2 * step - 2]), "the step did"
    trainer.evaluate()
    assert same(watched.seen[-1][1], states[-2])

    again = mk.recipe(name)
    assert not same(again.state_dict(), states[0])
    resumed = names["RecipeTrainer"](**script(tmp_path, rows(), **often), recipe=again)
    pasted(RESUME, torch=torch, recipe=again, trainer=resumed, checkpoint=str(tmp_path / "checkpoint-2"))
    last = [entry["loss"] for entry in resumed.state.log_history if "loss" in entry]
    assert last == pytest.approx(whole, rel=1e-5)
    assert same(again.state_dict(), states[-1])
