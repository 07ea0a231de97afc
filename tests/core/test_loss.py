"""A loss as a whole: what it needs, what it remembers, what it leaves out, and that a resumed run is the same run."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from inputs import (
    EVERYTHING,
    close,
    declared,
    draw,
    equal_targets,
    recipe_options,
    recipes,
    rows,
    some_labels,
    some_pair_scores,
    some_scores,
)
from torch import Tensor

import marginkit as mk
from marginkit.assembly import build_loss
from marginkit.config import resolve
from marginkit.core.loss import Loss
from marginkit.core.memory import MEMORIES, Memory, Moments, Queue, Seen, Window
from marginkit.core.parts import objective, reward, target
from marginkit.core.rewards import head
from marginkit.core.tensors import Labels, PairScores, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput

BY_NAME = {spec.name: spec for spec in recipes()}


def built(name: str, **more: Any) -> Loss:
    """The recipe with a value for each option that needs one."""
    return mk.recipe(name, **(recipe_options(BY_NAME[name]) | more))


PAIRED = [name for name in BY_NAME if built(name).per == "pair"]
COUPLED = [name for name in PAIRED if built(name).coupled]
EVIDENCE = ("grade", "strength", "weight", "progress")


def batch(seed: int = 1, num: int = 6, scores: tuple[str, ...] = EVERYTHING, *more: str) -> PairScores:
    """Pairs with these scores and every label that a recipe of the catalogue may need."""
    made = some_pair_scores(*scores, seed=seed, num=num)
    labels = some_labels(*EVIDENCE, *more, seed=seed, num=num)
    columns = {column.name: getattr(labels, column.name) for column in fields(Labels)}
    return replace(made, **{name: value for name, value in columns.items() if value is not None})


def stream(start: int, stop: int) -> Iterator[PairScores]:
    """The batches of a run, of different sizes, some with a tie."""
    for step in range(start, stop):
        scores = batch(seed=100 + 17 * step, num=3 + step % 4)
        tie = torch.zeros(len(scores.logp), dtype=torch.bool)
        tie[0] = step % 3 == 1
        yield replace(scores, tie=tie)


def run(loss: Loss, start: int, stop: int) -> list[Tensor]:
    """The losses of some steps of a run."""
    return [loss(scores) for scores in stream(start, stop)]


def same_state(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


# -------------------------------------------------------------------------------------------------- what it needs


@pytest.mark.parametrize("name", BY_NAME)
def test_the_declared_scores_are_enough_and_each_is_asked_for_by_name(name: str) -> None:
    """`loss.needs` is what a shell computes, no more and no less."""
    loss = built(name)
    if loss.per == "response":
        scores: Any = replace(some_scores(*loss.needs), grade=some_labels("grade", num=6, per="response").grade)
    else:
        scores = batch(1, 6, tuple(loss.needs))
    assert torch.isfinite(loss(scores)).all()
    for missing in loss.needs:
        if len(loss.needs) > 1 or loss.per == "pair":
            with pytest.raises(BadInput, match=f"`{missing}`"):
                loss(replace(scores, **{missing: None}))


@pytest.mark.parametrize("name", PAIRED)
def test_scores_that_are_not_needed_change_nothing(name: str) -> None:
    """A reference that happens to be stored does not decide what is trained."""
    loss, other = built(name), built(name)
    full = batch()
    bare = replace(full, **{field: None for field in EVERYTHING if field not in loss.needs})
    assert torch.equal(loss(full), other(bare))


def test_an_sft_term_needs_log_probabilities_and_per_token_their_length() -> None:
    """What the shell has to compute grows with the options."""
    assert built("dpo").needs == {"logp", "ref_logp"}
    assert built("dpo", sft_weight=1.0).needs == {"logp", "ref_logp", "length"}
    assert built("dpo", sft_weight=1.0, sft_per="sequence").needs == {"logp", "ref_logp"}
    assert built("alpha_dpo").needs == {"logp", "ref_logp", "length"}
    assert built("madpo").needs == {"logp", "ref_logp", "rm_head"}


@pytest.mark.parametrize("name", [name for name in PAIRED if BY_NAME[name].kind == "policy"])
@pytest.mark.parametrize("per", ["token", "sequence"])
def test_the_sft_term_is_the_nll_of_the_chosen_response_beside_the_target_weight(name: str, per: str) -> None:
    """+ weight * NLL for every policy recipe, whatever else it does; the data's weight multiplies both."""
    scores = batch()
    options: dict[str, Any] = {"sft_weight": 0.7, "sft_per": per}
    spec = BY_NAME[name].objective
    renamed = {spec.parameter(option): option for option in spec.options}
    options = {renamed.get(word, word): value for word, value in options.items() if word not in spec.fixed}
    loss, sft_weight = built(name, **options), 1.0 if "sft_weight" in spec.fixed else 0.7
    without = replace(loss, sft_weight=0.0)
    assert loss.sft_weight == sft_weight
    per = loss.sft_per
    nll = -scores.logp[:, 0] / (scores.length[:, 0] if per == "token" else 1.0)
    plain = without(scores)
    drawn = plain != 0 if "chance" in loss.target.part.needs else torch.ones(6, dtype=torch.bool)  # else not trained on
    assert close(loss(scores), plain + drawn * scores.weight * sft_weight * nll)


# ------------------------------------------------------------------------------------------- before a forward pass


@pytest.mark.parametrize("name", PAIRED)
def test_kept_pairs_are_known_before_a_forward_pass(name: str) -> None:
    """By their labels: those that the loss keeps, where it does not draw pairs by their gaps."""
    loss, tie = built(name), torch.tensor([False, True, False, False, True, False])
    scores = replace(batch(), tie=tie)
    kept = loss.kept(scores.labels, 6)
    assert kept.dtype == torch.bool
    loss_scores = replace(scores, chance=draw(6, seed=3, low=0.1, high=0.9))
    population = loss.memory.population(loss.seen(loss_scores), training=True) if loss.coupled else None
    found = loss.evaluate(loss_scores, population).target
    assert found is not None
    if "chance" in loss.target.part.needs:
        assert (kept | ~found.keep).all()
    else:
        assert torch.equal(kept, found.keep)
    gap = loss.target_gap(scores.labels, 6)
    assert gap.shape == (6,)
    part = loss.target.part
    wants = loss.objective.part.matches or {"prob", "margin"} <= loss.objective.part.uses
    if part.couples != "none" or (part.scores and "margin" in part.makes) or not wants:
        assert torch.isnan(gap).all()
    else:
        assert torch.equal(torch.isnan(gap), ~kept)


@pytest.mark.parametrize("name", [name for name in PAIRED if built(name).objective.part.asks == "gap"])
def test_the_gap_that_is_asked_for_is_where_the_loss_is_least(name: str) -> None:
    """Finite: the slope of the loss is 0 there. Infinite: it never points back."""
    loss, scores = built(name), batch()
    wanted = loss.target_gap(scores.labels, 6)
    population = loss.memory.population(loss.seen(batch()), training=True) if loss.coupled else None
    made = loss.evaluate(replace(scores, chance=draw(6, seed=3, low=0.1, high=0.9)), population).target
    gap = torch.where(torch.isfinite(wanted), wanted, torch.full_like(wanted, 60.0))
    value = torch.stack((gap / 2, -gap / 2), 1).requires_grad_(True)
    (slope,) = torch.autograd.grad(loss.objective(Rewards(value), made, **loss.objective_options).sum(), value)
    finite = torch.isfinite(wanted)
    assert (slope[finite].abs() < 1e-9).all()
    assert (slope[~finite, 0] <= 0).all()
    if loss.target.part.needs & {"utility_gap"} or loss.objective.part.matches:
        assert finite.all()


@pytest.mark.parametrize("name", BY_NAME)
def test_a_loss_in_single_precision_is_the_loss(name: str) -> None:
    """To its digits, with state in float64; half precision is computed in float32."""
    wide, single, half = built(name), built(name), built(name)
    for seed in (1, 2, 3):
        if wide.per == "response":
            grade = some_labels("grade", num=6, per="response").grade
            scores: Any = replace(some_scores(*wide.needs, seed=seed), grade=grade)
        else:
            scores = replace(batch(seed), chance=draw(6, seed=seed, low=0.1, high=0.9))
        columns = {column.name: getattr(scores, column.name) for column in fields(scores)}
        given = {word: value for word, value in columns.items() if value is not None}
        exact, coarse = (loss(kind) for loss, kind in ((wide, scores), (single, cast(scores, given, torch.float32))))
        assert coarse.dtype == torch.float32
        assert torch.allclose(exact, coarse.double(), rtol=2e-3, atol=2e-4), (exact, coarse)
        rough = half(cast(scores, {word: given[word] for word in wide.needs}, torch.bfloat16))
        assert rough.dtype in (torch.float32, torch.float64)
        assert torch.isfinite(rough).all()


def cast(scores: Any, columns: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """The same scores with these columns in another type."""
    return replace(scores, **{name: value.to(dtype) for name, value in columns.items()})


# ------------------------------------------------------------------------------------------------------ other pairs


@pytest.mark.parametrize("name", COUPLED)
def test_the_population_is_made_of_detached_rewards_without_ties(name: str) -> None:
    """A pair that is left out is in nobody's population."""
    loss, tie = built(name), torch.tensor([False, True, False, False, True, False])
    scores = replace(batch(), tie=tie, chance=draw(6, seed=3, low=0.1, high=0.9))
    scores.logp.requires_grad_(True)
    seen = loss.seen(scores)
    assert seen.rewards.shape == (4, 2)
    assert not seen.rewards.requires_grad
    assert torch.equal(seen.rewards, loss.seen(rows(scores, ~tie)).rewards)
    assert torch.equal(seen.chance, scores.chance[~tie])
    other = replace(scores, logp=torch.where(tie[:, None], scores.logp - 5.0, scores.logp))
    first, second = built(name), built(name)
    assert torch.equal(first(scores)[~tie], second(other)[~tie])
    assert first(scores)[tie].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", [name for name in PAIRED if name not in COUPLED])
def test_a_tie_changes_no_other_loss(name: str) -> None:
    """Left-out pairs do not matter to the rest, in the batch of APLOT neither."""
    tie = torch.tensor([False, True, False, False, True, False])
    scores = replace(batch(), tie=tie)
    assert close(built(name)(scores)[~tie], built(name)(rows(scores, ~tie)))


@pytest.mark.parametrize("name", COUPLED)
def test_a_target_gets_no_gradient_through_the_population(name: str) -> None:
    """The gradient of the loss is that of the same target as a constant."""
    scores = replace(batch(num=8), chance=draw(8, seed=3, low=0.1, high=0.9))
    loss = built(name)
    population = loss.memory.population(loss.seen(scores), training=True)
    found = loss.evaluate(scores, population).target
    scores.logp.requires_grad_(True)
    (whole,) = torch.autograd.grad(built(name)(scores).sum(), scores.logp)
    value = loss.objective(loss.reward(scores, **loss.reward_options), found, **loss.objective_options)
    (fixed,) = torch.autograd.grad((found.keep * scores.weight * found.weight * value).sum(), scores.logp)
    assert close(whole, fixed)


# ---------------------------------------------------------------------------------------------------- training only


@pytest.mark.parametrize("name", PAIRED)
def test_a_device_of_training_is_left_out_of_evaluation_and_nothing_else_is(name: str) -> None:
    """APLOT's margin is gone, ties stay out; every other target is the same."""
    loss = built(name)
    scores = replace(batch(), chance=draw(6, seed=3, low=0.1, high=0.9))
    scores = replace(scores, tie=torch.tensor([False, True, False, False, False, False]))
    population = loss.memory.population(loss.seen(scores), training=False) if loss.coupled else None
    training, evaluation = (loss.evaluate(scores, population, training=mode).target for mode in (True, False))
    if loss.target.part.training_only:
        assert not equal_targets(training, evaluation)
        assert (evaluation.margin == 0).all()
        assert evaluation.keep.tolist() == [True, False, True, True, True, True]
    else:
        assert equal_targets(training, evaluation)


def test_aplot_is_the_only_device_of_training() -> None:
    """And both eval() and no_grad() leave it out."""
    assert [name for name in PAIRED if built(name).target.part.training_only] == ["aplot"]
    scores, bare = batch(), built("bt")(batch())
    loss = built("aplot")
    assert not close(loss(scores), bare)
    with torch.no_grad():
        assert torch.equal(loss(scores), bare)
    assert torch.equal(loss.eval()(scores), bare)
    assert not close(loss.train()(scores), bare)


# ----------------------------------------------------------------------------------------------------------- memory


def test_these_recipes_look_at_other_pairs() -> None:
    """The tests below cannot be empty."""
    assert set(COUPLED) == {"gamma_simpo", "gamma_dpo", "amapo", "beta_dpo", "alpha_dpo", "kto_pair"}


def memories() -> list[Memory]:
    """One of each kind, empty."""
    return [*(kind(seed=3) for kind in MEMORIES.values()), Window(7, seed=3)]


def seen(seed: int, num: int) -> Seen:
    """Some pairs."""
    return Seen(draw(num, 2, seed=seed), draw(num, seed=seed + 1, low=0.0, high=1.0))


def shown(memory: Memory, now: Seen) -> dict[str, Any]:
    """What a pass sees of a memory, its chance included."""
    found = memory.population(now, training=True)
    columns = {name: getattr(found, name) for name in ("rewards", "past", "chance", "mean", "sd", "updates")}
    return columns | {"drawn": torch.rand(3, generator=found.generator)}


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Bit for bit."""
    return all(
        torch.equal(left[name], right[name]) if isinstance(left[name], Tensor) else left[name] == right[name]
        for name in left
    )


@pytest.mark.parametrize("memory", memories(), ids=lambda memory: type(memory).__name__)
def test_a_memory_restored_in_the_middle_goes_on_the_same(memory: Memory) -> None:
    """Bit for bit, chance included; the saved state does not move with the memory it came from."""
    restored = Window(7, seed=3) if isinstance(memory, Window) else type(memory)(seed=3)
    for step in range(4):
        memory.remember(seen(step, 2 + step))
    saved = memory.state_dict()
    copy = {name: value.clone() for name, value in saved.items()}
    restored.load_state_dict(saved)
    for step in range(4, 8):
        assert equal(shown(memory, seen(step, 3)), shown(restored, seen(step, 3)))
        memory.remember(seen(step, 3))
        restored.remember(seen(step, 3))
        assert same_state(memory.state_dict(), restored.state_dict())
    assert same_state(saved, copy)
    assert not same_state(saved, memory.state_dict())


@pytest.mark.parametrize("memory", memories(), ids=lambda memory: type(memory).__name__)
def test_a_memory_is_looked_at_without_changing(memory: Memory) -> None:
    """`population` may be called any number of times, in training and out of it."""
    memory.remember(seen(1, 4))
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    first = shown(memory, seen(2, 3))
    memory.population(seen(3, 5), training=False)
    memory.population(seen(4, 5), training=True)
    assert same_state(memory.state_dict(), before)
    assert equal(shown(memory, seen(2, 3)), first)


@pytest.mark.parametrize("kind", [*MEMORIES.values()], ids=lambda kind: kind.__name__)
def test_chance_follows_the_seed_and_the_number_of_passes(kind: type[Memory]) -> None:
    """The same seed draws the same, another seed or another pass something else."""

    def draws(seed: int, passes: int) -> list[float]:
        memory = kind(seed=seed)
        for step in range(passes):
            memory.remember(seen(step, 2))
        found: list[float] = torch.rand(2, generator=memory.generator()).tolist()
        return found

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(2, 0)
    assert draws(1, 0) != draws(1, 1)
    assert draws(1, 1) != draws(2, 0)


def test_a_queue_holds_the_last_2048_gaps() -> None:
    """It begins with eight normal draws of the seed; the oldest fall out; float64 on the CPU."""
    queue = Queue(seed=5)
    assert len(queue.past) == 8
    assert torch.equal(queue.past, Queue(seed=5).past)
    assert not torch.equal(queue.past, Queue(seed=6).past)
    every = []
    for step in range(5):
        some = seen(step, 700)
        every.append(some.gaps)
        queue.remember(some)
        assert len(queue.past) == min(2048, 8 + 700 * (step + 1))
    assert torch.equal(queue.past, torch.cat(every)[-2048:])
    assert queue.past.dtype == torch.float64


def test_moments_are_the_released_running_values() -> None:
    """0.9 * before + 0.1 * now, from 0; a pass counts before it is used; one pair has no spread; no pairs, no pass."""
    moments = Moments()
    first, second = seen(1, 4), seen(2, 5)
    now = moments.population(first, training=True)
    assert close(now.mean, 0.1 * first.gaps.mean())
    assert close(now.sd, 0.1 * first.gaps.std())
    assert now.updates == 1
    idle = moments.population(first, training=False)
    assert (idle.mean.item(), idle.sd.item(), idle.updates) == (0.0, 0.0, 0)
    moments.remember(first)
    assert close(moments.mean, now.mean)
    now = moments.population(second, training=True)
    assert close(now.mean, 0.09 * first.gaps.mean() + 0.1 * second.gaps.mean())
    assert now.updates == 2
    nobody = Seen(torch.zeros(0, 2, dtype=torch.float64))
    before = {name: value.clone() for name, value in moments.state_dict().items()}
    moments.remember(nobody)
    assert same_state(moments.state_dict(), before)
    assert moments.population(nobody, training=True).updates == 1
    moments.remember(seen(3, 1))
    assert torch.isfinite(moments.sd)


def test_a_window_shows_the_last_steps_and_not_the_pass() -> None:
    """Frozen during a step; the oldest pairs fall out; a pair without a chance has 1/2."""
    window = Window(5)
    assert not len(window.population(seen(1, 3), training=True).rewards)
    window.remember(seen(1, 3))
    window.remember(Seen(seen(2, 4).rewards))
    found = window.population(seen(9, 2), training=True)
    assert torch.equal(found.rewards, torch.cat((seen(1, 3).rewards, seen(2, 4).rewards))[-5:])
    assert torch.equal(found.chance[1:], torch.full((4,), 0.5, dtype=torch.float64))
    assert (found.past, found.mean, found.sd) == (None, None, None)


def test_the_state_of_another_memory_is_refused() -> None:
    """By what it holds and what is kept."""
    for memory in memories():
        for other in memories():
            if set(other.state_dict()) != set(memory.state_dict()):
                with pytest.raises(BadInput, match=r"the state holds \['.*'\], this recipe keeps \['.*'\]"):
                    memory.load_state_dict(other.state_dict())
    with pytest.raises(BadInput, match=r"the state holds \['mean', 'passes', 'sd'\], this recipe keeps \['passes', "):
        built("gamma_simpo").load_state_dict(built("beta_dpo").state_dict())


# ------------------------------------------------------------------------------------------------- runs that resume


@pytest.mark.parametrize("name", COUPLED)
def test_a_run_that_is_resumed_is_the_run_itself(name: str) -> None:
    """Bit for bit, through the whole loss: losses and state."""
    whole, first, second = built(name), built(name), built(name)
    wanted = run(whole, 0, 8)
    assert same(run(first, 0, 4), wanted[:4])
    second.load_state_dict(first.state_dict())
    assert same(run(second, 4, 8), wanted[4:])
    assert same_state(second.state_dict(), whole.state_dict())
    if BY_NAME[name].name not in ("amapo", "kto_pair"):
        assert not same(run(built(name), 4, 8), wanted[4:])


@pytest.mark.parametrize("name", COUPLED)
def test_evaluation_between_the_steps_changes_nothing(name: str) -> None:
    """gamma-PO's released code pushes evaluation gaps into its queue; here neither eval() nor no_grad() moves state."""
    plain, watched = built(name), built(name)
    wanted, found = run(plain, 0, 6), []
    for step in range(6):
        before = {word: value.clone() for word, value in watched.state_dict().items()}
        watched.eval()
        assert same(run(watched, 40, 42), run(watched, 40, 42))
        watched.train()
        with torch.no_grad():
            run(watched, 50, 52)
        assert same_state(watched.state_dict(), before)
        assert watched.training
        found += run(watched, step, step + 1)
        assert not same_state(watched.state_dict(), before)
    assert same(found, wanted)


@pytest.mark.parametrize("name", COUPLED)
def test_two_losses_of_one_seed_agree(name: str) -> None:
    """Whatever torch's own generator does."""
    options = recipe_options(BY_NAME[name])
    torch.manual_seed(1)
    first = run(mk.recipe(name, seed=4, **options), 0, 5)
    torch.manual_seed(2)
    assert same(run(mk.recipe(name, seed=4, **options), 0, 5), first)


def test_another_seed_draws_other_pairs_and_begins_another_queue() -> None:
    """The recipes that have chance."""
    corrected = {"ema": "corrected", "rho": 0.5}  # as released, the first pairs are drawn almost without chance
    for name, options in (("beta_dpo", corrected), ("gamma_simpo", {}), ("gamma_dpo", {})):
        runs = [run(mk.recipe(name, seed=seed, **options), 0, 5) for seed in (4, 5)]
        assert not same(*runs), name
    for name in ("amapo", "alpha_dpo", "kto_pair"):
        assert same(run(mk.recipe(name, seed=4), 0, 5), run(mk.recipe(name, seed=5), 0, 5)), name


def test_beta_dpo_keeps_its_share_of_the_pairs_wherever_they_are_cut() -> None:
    """Of N pairs int(N * (1 - rho)) are kept, whether the target is asked for all of them or for one at a time."""
    loss = mk.recipe("beta_dpo", rho=0.3)
    for seed in range(60):
        scores = replace(batch(seed=seed, num=19), chance=draw(19, seed=seed, low=0.0, high=1.0))
        population = loss.memory.population(loss.seen(scores), training=True)
        found = loss.evaluate(scores, population).target
        alone = [loss.evaluate(rows(scores, torch.tensor([i])), population).target.keep for i in range(19)]
        assert int(found.keep.sum()) == int(19 * 0.7)
        assert torch.equal(torch.cat(alone), found.keep), seed
        loss.memory.remember(loss.seen(scores))


# ----------------------------------------------------------------------------------------- a window over the steps


def steps(loss: Loss, cuts: list[list[int]], order: bool) -> list[Tensor]:
    """A run of steps as a shell does it: every step in micro-batches, the window fed once a step, in sorted order."""
    found = []
    for step, sizes in enumerate(cuts):
        scores = replace(batch(seed=300 + 29 * step, num=12), chance=draw(12, seed=step, low=0.1, high=0.9))
        made = torch.zeros(12, dtype=torch.float64)
        parts = list(torch.arange(12).split(sizes))
        for index in reversed(parts) if order else parts:
            own = rows(scores, index)
            population = loss.memory.population(loss.seen(own), training=True)
            result = loss.evaluate(own, population)
            made[index] = torch.where(result.target.keep, result.total, torch.zeros_like(result.total))
        loss.memory.remember(loss.seen(scores))
        found.append(made)
    return found


@pytest.mark.parametrize("name", COUPLED)
def test_on_a_window_the_cut_and_the_order_of_micro_batches_do_not_matter(name: str) -> None:
    """In the released code margins change with batch size and number of ranks; here they do not."""
    whole = steps(built(name).remember_with(Window(20)), [[12]] * 4, order=False)
    halves = steps(built(name).remember_with(Window(20)), [[6, 6], [1, 11], [5, 4, 3], [12]], order=False)
    turned = steps(built(name).remember_with(Window(20)), [[6, 6], [1, 11], [5, 4, 3], [2] * 6], order=True)
    for wanted, *others in zip(whole, halves, turned, strict=True):
        assert all(close(wanted, other) for other in others)
    own = steps(built(name), [[12]] * 4, order=False)
    assert not all(close(one, other) for one, other in zip(whole, own, strict=True))


@pytest.mark.parametrize("name", COUPLED)
def test_a_window_is_saved_and_restored_with_its_loss(name: str) -> None:
    """Round trip in the middle of a run."""
    first, second = (built(name).remember_with(Window(9)) for _ in range(2))
    run(first, 0, 3)
    second.load_state_dict(first.state_dict())
    assert same(run(first, 3, 6), run(second, 3, 6))


# -------------------------------------------------------------------------------------------------- a user's own


@reward(needs={"rm_head"}, anchored=False)
def teacher(scores: PairScores, *, beta: float = 1.0) -> Rewards:
    """Another model's rewards."""
    return Rewards(beta * scores.rm_head)


@target(makes={"margin"}, couples="population", remembers="queue", population_of=teacher)
def teachers_mean(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A margin from the teacher's gaps, of now and of the past."""
    every = torch.cat((population.gaps, population.past if population.past is not None else population.gaps[:0]))
    return Target.of(gap, margin=float(every.mean()) if len(every) else 0.0)


def test_a_users_own_target_gets_its_population_and_its_memory() -> None:
    """Declared, and nothing else."""
    loss = mk.compose(head, teachers_mean, "logistic")
    assert loss.needs == {"head", "rm_head"}
    assert set(loss.state_dict()) == {"passes", "past"}
    scores = batch(1, 6, ("head", "rm_head"))
    made = loss.evaluate(scores, loss.memory.population(loss.seen(scores), training=True)).target
    gaps = scores.rm_head[:, 0] - scores.rm_head[:, 1]
    assert close(made.margin[0], torch.cat((gaps, Queue(0).past)).mean())
    loss(scores)
    assert len(loss.state_dict()["past"]) == 14


@objective(per="response", uses={"zero"}, matches=True, asks="own", normaliser="response")
def absolute(rewards: Rewards, target: Target) -> Tensor:
    """Regression by the absolute error."""
    return (rewards.value - target.zero).abs()


def test_a_loss_per_response_takes_a_target_per_response() -> None:
    """Responses without a grade do not count; without a column of grades it is refused."""
    loss = mk.compose("head", "grade_value", absolute, scale=0.5)
    nan = float("nan")
    scores = SequenceScores(head=torch.tensor([1.0, 5.0, 2.0]), grade=torch.tensor([4.0, nan, 2.0]))
    assert loss(scores).tolist() == [1.0, 0.0, 1.0]
    assert loss.kept(scores.labels, 3).tolist() == [True, False, True]
    assert loss(SequenceScores(head=torch.ones(2), grade=torch.full((2,), nan))).tolist() == [0.0, 0.0]
    with pytest.raises(BadInput, match="needs `grade`"):
        loss(SequenceScores(head=torch.zeros(2)))
    with pytest.raises(BadInput, match="is a loss per response; give it SequenceScores"):
        loss(PairScores(head=torch.zeros(2, 2)))


def test_every_declared_target_is_in_a_loss_here() -> None:
    """The catalogue covers the functions, so that the tests above do."""
    used = {built(name).target.__name__ for name in BY_NAME if built(name).target is not None}
    assert used == set(declared("target"))


def test_a_left_out_pair_gives_no_gradient_where_the_objective_overflows() -> None:
    """exp(-rho) of a tie at -1500 nats is infinite in float32; 0 * inf would make the whole step NaN."""
    logp = torch.tensor([[-20.0, -30.0], [-1500.0, -30.0]], requires_grad=True)
    ref = torch.tensor([[-21.0, -29.0], [-30.0, -30.0]])
    loss = mk.recipe("bpo", f="exponential")
    loss(PairScores(logp=logp, ref_logp=ref, tie=torch.tensor([False, True]))).sum().backward()
    assert logp.grad is not None
    assert torch.isfinite(logp.grad).all()
    assert logp.grad[1].tolist() == [0.0, 0.0]
    assert logp.grad[0].abs().max() > 0


# ------------------------------------------------------------------------------------------- one definition, three ways


@pytest.mark.parametrize("name", BY_NAME)
def test_a_recipe_is_its_three_parts_put_together_by_hand_and_by_a_run(name: str) -> None:
    """`mk.recipe`, `mk.compose` and what `marginkit train` builds give the same losses."""
    recipe = built(name)
    parts = {"reward": recipe.reward, "target": recipe.target, "objective": recipe.objective}
    options = {f"{part}_options": getattr(recipe, f"{part}_options") for part in parts}
    composed = mk.compose(**parts, **options, sft_weight=recipe.sft_weight, sft_per=recipe.sft_per)
    spec = BY_NAME[name]
    given = [f"{spec.options()[word][0]}.{word}={value}" for word, value in recipe_options(spec).items()]
    config = resolve(name, given)
    trained = build_loss(config.spec, config.options())
    for seed in (1, 2):
        if recipe.per == "response":
            grade = some_labels("grade", num=6, per="response").grade
            scores: Any = replace(some_scores(*recipe.needs, seed=seed), grade=grade)
        else:
            scores = replace(batch(seed), chance=draw(6, seed=seed, low=0.1, high=0.9))
        expected = recipe(scores)
        assert torch.equal(composed(scores), expected)
        assert torch.equal(trained(scores), expected)
