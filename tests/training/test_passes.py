"""A group in several forward passes: the scores, the loss and the gradients of one, and the memory of one pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_every_recipe
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import marginkit.scoring
import tiny
from marginkit.batching import BatchPlan, MicroBatch
from marginkit.core.tensors import SequenceScores
from marginkit.data.encoded import EncodedGroups
from marginkit.models.packing import Batch
from marginkit.models.rungs import choose_rung
from marginkit.passes import Dice, scores_of, slopes_at
from marginkit.registry import load_recipe
from marginkit.scoring import score_batches

BUDGET = {"segments": 50, "rows": 80}  # tokens: most groups take 2 passes or more, some of them with 2 responses
SLOW = ("train.prompts_per_step=1", "train.max_steps=3", "train.learning_rate=1e-4")  # a step is no far jump
# As in test_invariance, twice that for policies: over three steps a processor's rounding adds up (2.2e-6 seen, sppo).
GRADIENTS = {"policy": 4e-6, "reward_model": 5e-6, "sft": 4e-6}


def grouped(recipe: str, family: str) -> EncodedGroups:
    """Groups of 2 to 4 responses with the scores that a recipe needs; for sft all responses, not the best alone."""
    return (
        test_every_recipe.plain(family, sft=False) if recipe == "sft" else test_every_recipe.encoded_for(recipe, family)
    )


def budget(tokens: int) -> str:
    """As a setting."""
    return f"train.tokens_per_micro_batch={tokens}"


def split(plan: BatchPlan) -> list[int]:
    """Passes of each group."""
    return [len(plan.parts(number)) for number in range(len(plan.shapes))]


def differing(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Names of the numbers of two log lines that are not the same."""
    assert left.keys() == right.keys()
    timed = [name for name in left if "second" in name or "time" in name]
    return [name for name in left.keys() - timed if right[name] != pytest.approx(left[name], rel=2e-5, abs=2e-6)]


@pytest.mark.parametrize(("recipe", "family"), test_every_recipe.EVERY)
def test_every_recipe_gives_in_passes_what_it_gives_in_one(recipe: str, family: str, tmp_path: Path) -> None:
    """Three steps of one group: losses, gradients and everything logged; coupled recipes see the same neighbours."""
    found = []
    for name, tokens in (("one", 10_000), ("passes", BUDGET["rows" if family == "modernbert_rm" else "segments"])):
        options = (*test_every_recipe.OPTIONS.get(recipe, ()), *SLOW)
        config = tiny.configured(recipe, *options, budget(tokens))
        trainer = tiny.trainer(tiny.model(family), config, grouped(recipe, family), tmp_path / name)
        trainer.train()
        found.append(trainer)
    one, passes = found
    assert set(split(one.plan)) == {1}
    assert sum(count > 1 for count in split(passes.plan)) > 4
    assert any(len(part) > 1 for number in range(6) for part in passes.plan.parts(number)), "and a pass has two"
    assert len(one.losses) == len(passes.losses) == 3
    tolerance = GRADIENTS[load_recipe(recipe).kind]
    for left, right in zip(one.gradients, passes.gradients, strict=True):
        assert tiny.worst_gradient(left, right) <= tolerance
    for left, right in zip(one.state.log_history, passes.state.log_history, strict=True):
        assert not differing(left, right)


# ------------------------------------------------------------------------------------- one step, beside one backward


def with_adapter(family: str = "llama", *, dropout: float = 0.1) -> Any:
    """A model with a LoRA adapter that moves its scores."""
    own = get_peft_model(tiny.model(family), LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout))
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in own.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=made))
    return own


def at_step(own: Any, folder: Path, *options: str, tokens: int = BUDGET["segments"]) -> tuple[Any, list[Batch]]:
    """A DPO trainer and the micro-batches of its first step, of 6 prompts."""
    groups = grouped("dpo", "llama")
    config = tiny.configured("dpo", "train.prompts_per_step=6", budget(tokens), *options)
    trainer = tiny.trainer(own, config, groups, folder)
    batches = next(iter(trainer.get_train_dataloader()))
    return trainer, batches


def gradients(own: Any) -> dict[str, Tensor]:
    """Of every weight that is trained."""
    found = {name: weight.grad.clone() for name, weight in own.named_parameters() if weight.grad is not None}
    own.zero_grad()
    return found


def of_one_backward(trainer: Any, batches: list[Batch]) -> dict[str, Tensor]:
    """Gradients with the graphs of all passes held at once: what a machine with memory enough would do."""
    trainer.model.train()

    def forward(batch: Batch) -> SequenceScores:
        with trainer.compute_loss_context_manager():
            return trainer.model(batch=batch)  # type: ignore[no-any-return]

    for batch in batches:
        trainer._loss(scores_of(forward, batch), batch, torch.tensor(7.0)).backward()
    return gradients(trainer.model)


@pytest.mark.parametrize("case", ["plain", "checkpointing", "bf16"])
def test_both_passes_draw_the_same_dropout(case: str, tmp_path: Path) -> None:
    """Seeded alike, gradients are those of one backward over all passes, and as much chance is used up."""
    own = with_adapter()
    trainer, batches = at_step(own, tmp_path)
    assert len([batch for batch in batches if "passes" in batch]) > 2
    if case == "bf16":
        trainer.compute_loss_context_manager = lambda: torch.autocast("cpu", torch.bfloat16)
    torch.manual_seed(7)
    wanted = of_one_backward(trainer, batches)
    after = torch.get_rng_state()
    calls: list[None] = []
    own.get_base_model().model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(None))
    if case == "checkpointing":
        own.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(7)
    trainer.training_step(own, batches, torch.tensor(7.0))
    assert torch.equal(torch.get_rng_state(), after)
    again = case == "checkpointing"  # a layer runs once more in every backward
    assert len(calls) == sum(len(b["passes"]) * (2 + again) if "passes" in b else 1 + again for b in batches)
    found = gradients(own)
    assert tiny.worst_gradient(wanted, found) <= 2e-6
    torch.manual_seed(8)
    assert tiny.worst_gradient(wanted, of_one_backward(trainer, batches)) > 0.01, "other chance, other gradients"


def test_dice_fall_again_as_they_fell() -> None:
    """Each pass as before, in any order; afterwards chance goes on as if nothing had been drawn again."""
    torch.manual_seed(3)
    dice, first = Dice(torch.device("cpu")), []
    for _ in range(3):
        dice.note()
        first.append(torch.rand(4))
    following = torch.rand(4)
    torch.manual_seed(3)
    torch.rand(12)
    for number in (1, 0, 2, 1):
        with dice.again(number):
            assert torch.equal(torch.rand(4), first[number])
    assert torch.equal(torch.rand(4), following)


@pytest.mark.parametrize("members", [(0,), (2,), (1, 3)], ids=["small", "large", "two groups"])
def test_passes_that_keep_ranks_in_step_count_nothing(members: tuple[int, ...], tmp_path: Path) -> None:
    """A micro-batch in more passes than it needs; a filler has gradients, and they are 0."""
    own = tiny.model("llama")
    trainer, _ = at_step(own, tmp_path, tokens=60)
    groups = [trainer.train_dataset.groups[member] for member in members]
    needed = len(trainer.plan.parts(members[0])) if len(members) == 1 else 1

    def step(micro: MicroBatch) -> tuple[float, dict[str, Tensor]]:
        batch = trainer._batch(micro, groups, trainer.plan)
        assert len(batch.get("passes", [batch])) == micro.passes
        assert len(scores_of(own, batch).length) == sum(batch["sizes"])  # type: ignore[arg-type]
        return float(trainer.training_step(own, [batch], torch.tensor(7.0))), gradients(own)

    loss, wanted = step(MicroBatch(members, passes=needed))
    for more in (1, 3):
        again, found = step(MicroBatch(members, passes=needed + more))
        assert again == pytest.approx(loss, rel=1e-6)
        assert tiny.worst_gradient(wanted, found) <= 2e-6
        nothing, none = step(MicroBatch(members, real=False, passes=needed + more))
        assert nothing == 0.0
        assert none.keys() == wanted.keys()
        assert not any(gradient.any() for gradient in none.values())


def test_a_loss_without_slope_has_none() -> None:
    """All pairs left out: the loss may not depend on the scores at all."""
    scores = SequenceScores(logp=torch.tensor([-1.0, -2.0]), length=torch.tensor([3.0, 4.0]))
    assert slopes_at(scores, lambda at: at.length.sum())[1].tolist() == [0.0, 0.0]  # type: ignore[union-attr]
    loss, slope = slopes_at(scores, lambda at: (at.logp**2).sum())  # type: ignore[operator]
    assert (float(loss), slope.tolist()) == (5.0, [-2.0, -4.0])
    assert not loss.requires_grad


# -------------------------------------------------------------------------------------------------------- two ranks


def on_a_rank(recipe: str, population: str | None, folder: str) -> dict[str, Any]:
    """Three steps of two prompts (the last of one): gradients, losses, an evaluation, and who had how many passes."""
    options = [*test_every_recipe.OPTIONS.get(recipe, ()), "train.prompts_per_step=2", "train.num_train_epochs=1"]
    options += [] if population is None else [f"train.population={population}"]
    family = "llama_rm" if load_recipe(recipe).kind == "reward_model" else "llama"
    groups = grouped(recipe, family)[:5]
    trainer = tiny.trainer(
        tiny.model(family), tiny.configured(recipe, *options, budget(50)), groups, Path(folder), held=groups
    )
    before = trainer.evaluate()
    trainer.train()
    plan, rank = trainer.plan, trainer.args.process_index
    return {
        "gradients": trainer.gradients,
        "losses": trainer.losses,
        "eval": {name: value for name, value in before.items() if "second" not in name and "time" not in name},
        "own": [[len(plan.parts(micro.groups[0])) for micro in step[rank]] for step in plan.steps(0)],
        "passes": [[micro.passes for micro in step[rank]] for step in plan.steps(0)],
        "real": [[micro.real for micro in step[rank]] for step in plan.steps(0)],
    }


@pytest.mark.parametrize(("recipe", "population"), [("dpo", None), ("gamma_dpo", "window")])
def test_a_rank_without_a_large_group_keeps_pace_with_one_that_has(
    recipe: str, population: str | None, tmp_path: Path
) -> None:
    """DDP on two ranks, one group in passes and one whole: gradients, losses and metrics of one process."""
    ranks = tiny.on_ranks(on_a_rank, tmp_path / "ranks", recipe, population, str(tmp_path / "two"))
    for rank in ranks:
        assert "error" not in rank, rank
    alone = on_a_rank(recipe, population, str(tmp_path / "one"))
    values = [rank["value"] for rank in ranks]
    assert values[0]["passes"] == values[1]["passes"]
    assert any({1} < {one[0], other[0]} for one, other in zip(values[0]["own"], values[1]["own"], strict=True))
    assert not all(all(step) for value in values for step in value["real"]), "and one had a filler"
    for value in values:
        assert value["losses"] == pytest.approx(alone["losses"], abs=1e-6)
        assert value["eval"] == pytest.approx(alone["eval"], abs=2e-6, rel=2e-6)
        for left, right in zip(alone["gradients"], value["gradients"], strict=True):
            assert tiny.worst_gradient(left, right) <= GRADIENTS[load_recipe(recipe).kind]


# ------------------------------------------------------------------------------------------- without gradients


@pytest.mark.parametrize(
    ("recipe", "family"), [("mmpo", "llama"), ("wpo", "llama"), ("bt", "llama_rm"), ("kto_pair", "llama")]
)
def test_an_evaluation_in_passes_is_that_of_one(recipe: str, family: str, tmp_path: Path) -> None:
    """Loss and all metrics over all rows."""
    groups, found = grouped(recipe, family), []
    for tokens in (10_000, BUDGET["segments"], 1):
        config = tiny.configured(recipe, *test_every_recipe.OPTIONS.get(recipe, ()), budget(tokens))
        trainer = tiny.trainer(tiny.model(family), config, groups, tmp_path / str(tokens), held=groups)
        found.append(trainer.evaluate())
        assert (sum(split(trainer.plan)) == len(groups)) == (tokens == 10_000)
    assert not differing(found[0], found[1])
    assert not differing(found[0], found[2])


@pytest.mark.parametrize("rung", ["segments", "rows"])
@pytest.mark.parametrize(
    ("family", "wants"), [("llama", ("log_collision", "hidden")), ("gpt2", ()), ("llama_rm", ("hidden",))]
)
def test_scoring_with_any_budget_gives_the_same(
    family: str, wants: tuple[str, ...], rung: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and by-products of all responses, whatever number of passes; a pass keeps the budget where it can."""
    sizes: list[tuple[int, int]] = []  # tokens and responses of a pass
    score = marginkit.scoring.score

    def noted(core: Any, batch: Batch) -> SequenceScores:
        sizes.append((batch["input_ids"].numel(), len(batch["length"])))
        return score(core, batch)

    monkeypatch.setattr(marginkit.scoring, "score", noted)
    own = tiny.model(family)
    groups = list(test_every_recipe.plain("llama", sft=False))
    assert choose_rung(own, rung, longest=64) == rung

    def scored(tokens: int) -> dict[str, Tensor]:
        asked = score_batches(own, groups, pad_id=0, tokens=tokens, precision=tiny.CPU, rung=rung, wants=wants)
        parts = {}
        for members, scores in asked:
            bounds = [0]
            for member in members:
                bounds.append(bounds[-1] + len(groups[member].response_ids))
            for at, member in enumerate(members):
                own_part = slice(bounds[at], bounds[at + 1])
                for name in ("logp", "head", "length", *wants):
                    value = getattr(scores, name)
                    if value is not None:
                        parts[member, name] = value[own_part]
        names = {name for _, name in parts}
        assert names == {"head" if family == "llama_rm" else "logp", "length", *wants}
        return {name: torch.cat([parts[member, name] for member in range(len(groups))]) for name in names}

    whole = scored(10_000)
    for tokens in (BUDGET[rung], 1):
        sizes.clear()
        for name, values in scored(tokens).items():
            assert torch.allclose(values, whole[name], rtol=2e-6, atol=2e-6), name
        assert all(size <= tokens or responses == 1 for size, responses in sizes)


# ---------------------------------------------------------------------------------------------------------- memory


class Held:
    """Bytes of tensors kept for backward passes: now, and at most."""

    def __init__(self, own: Any) -> None:
        self.weights = {weight.untyped_storage().data_ptr() for weight in own.parameters()}
        self.now = self.most = 0

    def __enter__(self) -> Held:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    def _keep(self, tensor: Tensor) -> Any:
        kept = _Kept()
        kept.tensor = tensor
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self._add(tensor.nbytes)
            weakref.finalize(kept, self._add, -tensor.nbytes)
        return kept

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


class _Kept:
    tensor: Tensor


def test_memory_is_that_of_one_pass(tmp_path: Path) -> None:
    """What is held for the backward of a group of 8 responses: in one pass, in 8, and of the largest of these alone."""
    own = tiny.model("llama")
    groups = tiny.encode(tiny.graded_groups(1, responses=(8,), long=30))
    groups = groups.with_ref_logp([[-20.0] * 8])

    def batches(tokens: int) -> tuple[Any, list[Batch]]:
        config = tiny.configured("dpo", "train.prompts_per_step=1", budget(tokens))
        trainer = tiny.trainer(own, config, groups, tmp_path)
        found = next(iter(trainer.get_train_dataloader()))
        return trainer, found

    def held(job: Callable[[], Any]) -> int:
        with Held(own) as memory:
            job()
        return memory.most

    trainer, whole = batches(10_000)
    in_one = held(lambda: trainer.training_step(own, whole, torch.tensor(7.0)))
    trainer, parted = batches(1)
    (batch,) = parted
    assert len(batch["passes"]) == 8
    one_pass = max(held(lambda one=one: own(batch=one)) for one in batch["passes"])  # type: ignore[misc]
    in_passes = held(lambda: trainer.training_step(own, parted, torch.tensor(7.0)))
    assert one_pass <= in_passes <= 1.05 * one_pass
    assert in_passes < in_one / 3
    assert "input_ids" not in batch, "nor is the whole moved to the device"
