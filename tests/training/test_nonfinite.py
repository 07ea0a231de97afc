"""A number that is no number stops the run before it reaches the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_invariance
import torch

import tiny
from marginkit.core.loss import Loss, PairLoss
from marginkit.errors import RunFailed


class Breaking(tiny.Recording):
    """Keeps the weights from before every step and breaks the loss of one group at step 3."""

    damage: Callable[[torch.Tensor], torch.Tensor]
    group = "train-5"

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.before = {name: value.clone() for name, value in self.model.state_dict().items()}
        return super().training_step(*args, **kwargs)

    def _pair_loss(self, scores: Any, batch: Any, *, training: bool) -> PairLoss:
        result = super()._pair_loss(scores, batch, training=training)
        if self.state.global_step != 2 or self.group not in batch["ids"]:
            return result
        hit = batch["group_of"] == batch["ids"].index(self.group)
        return replace(result, loss=torch.where(hit, type(self).damage(result.loss), result.loss))


DAMAGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda loss: loss * float("nan"),
    "inf": lambda loss: loss + float("inf"),
    "-inf": lambda loss: loss - float("inf"),
}


@pytest.mark.parametrize("value", DAMAGE)
@pytest.mark.parametrize("recipe", ["dpo", "mmpo_rm"])
def test_a_non_finite_loss_stops_before_the_weights_change(recipe: str, value: str, tmp_path: Path) -> None:
    """RunFailed names step, group and loss; weights are those before the step; nothing is logged for it."""
    kind = type("Breaks", (Breaking,), {"damage": staticmethod(DAMAGE[value])})
    family, options = test_invariance.RECIPES[recipe]
    config = tiny.configured(recipe, *options, "train.prompts_per_step=4", "train.num_train_epochs=4")
    groups = test_invariance.groups_for(recipe, 6)
    kind.group = step_three(groups, config)
    trainer = tiny.trainer(tiny.model(family), config, groups, tmp_path, kind=kind)
    with pytest.raises(RunFailed) as e:
        trainer.train()
    message = str(e.value)
    assert message.startswith("step 3: a loss is not finite, the weights were left as they were; groups: ")
    assert f"{kind.group} (loss {value})" in message
    assert "\n" not in message
    after = trainer.model.state_dict()
    assert all(torch.equal(trainer.before[name], after[name]) for name in after)
    assert all(bool(torch.isfinite(weight).all()) for weight in after.values())
    assert [line["step"] for line in tiny.log_lines(tmp_path) if "loss" in line] == [1, 2]
    assert all(loss > 0.01 for loss in trainer.losses)


def step_three(groups: Any, config: Any) -> str:
    """A group with a kept pair in the third step (the first of the second epoch)."""
    from marginkit.arguments import batch_plan

    plan, _ = batch_plan(config.train, groups, world_size=1, seed=config.seed)
    first = next(iter(plan.steps(1)))
    names = [groups[index] for micro in first[0] for index in micro.groups]
    return next(group.id for group in names if not all(group.tie))


def test_a_non_finite_gradient_of_a_finite_loss_names_the_groups_of_the_step(tmp_path: Path) -> None:
    """Sqrt at 0 has a finite value and an infinite slope."""

    class Steep(tiny.Recording):
        def _pair_loss(self, scores: Any, batch: Any, *, training: bool) -> PairLoss:
            result = super()._pair_loss(scores, batch, training=training)
            flat = result.loss - result.loss.detach()
            return replace(result, loss=result.loss + torch.sqrt(flat * flat))

    config = tiny.configured("bt", "train.prompts_per_step=4")
    trainer = tiny.trainer(tiny.model("llama_rm"), config, test_invariance.groups_for("bt", 4), tmp_path, kind=Steep)
    with pytest.raises(RunFailed, match=r"step 1: the gradient is not finite, .*; groups: train-\d, train-\d"):
        trainer.train()


def test_a_nan_reference_score_never_enters_the_store_or_the_tables(tmp_path: Path) -> None:
    """A reference or a trained model that gives NaN is named with the group, and stops."""
    from marginkit.frozen_scores import kept_scores
    from marginkit.scoring import score_tables
    from marginkit.store import ScoreStore

    groups = tiny.graded_groups(3)
    encoded = tiny.encode(groups)
    broken = tiny.model("llama")
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    make: dict[str, Any] = {"pad_id": 0, "tokens": 300, "precision": tiny.CPU}
    with ScoreStore(tmp_path, "m", {}) as store:
        with pytest.raises(RunFailed, match=r"group train-\d: the reference gives it log-probability nan"):
            kept_scores(lambda: (broken, "rows"), encoded, store, quantity="logp", role="reference", **make)
        assert store.added == 0
    head = tiny.model("llama_rm")
    with torch.no_grad():
        head.score.weight[0, 0] = float("inf")
    loss = loss_of("bt")
    with pytest.raises(RunFailed, match=r"group train-0: the model gives it reward -?(inf|nan)"):
        score_tables(head, groups, encoded, loss, **make)


def loss_of(recipe: str) -> Loss:
    """The recipe's loss."""
    from marginkit.assembly import build_loss

    config = tiny.configured(recipe)
    return build_loss(config.spec, config.options())


def test_a_pair_that_does_not_count_cannot_break_the_loss(tmp_path: Path) -> None:
    """A tie under a hard label is left out: even a weight of 1e300 on it changes nothing."""
    groups = list(test_invariance.groups_for("bt", 12))
    assert any(any(group.tie) for group in groups)
    heavy = [
        replace(group, weight=[1e300 if tie else w for tie, w in zip(group.tie, group.weight, strict=True)])
        for group in groups
    ]
    losses = []
    for number, given in enumerate((groups, heavy)):
        from marginkit.data.encoded import EncodedGroups

        config = tiny.configured("bt", "train.prompts_per_step=4")
        trainer = tiny.trainer(
            tiny.model("llama_rm"), config, EncodedGroups.from_iterable(given), tmp_path / str(number)
        )
        trainer.train()
        losses.append(trainer.losses)
    assert losses[0] == losses[1]
