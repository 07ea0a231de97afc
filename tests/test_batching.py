"""The plan of an epoch: a pure function; every group once; ranks in step; the budget kept."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from marginkit.batching import BatchPlan, MicroBatch

shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(2, 300)), min_size=1, max_size=40)


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    """Any plan."""
    groups = draw(shapes)
    return BatchPlan(
        rows=[rows for rows, _ in groups],
        lengths=[length for _, length in groups],
        prompts_per_step=draw(st.integers(1, 50)),
        tokens_per_micro_batch=draw(st.integers(1, 2000)),
        prompts_per_micro_batch=draw(st.none() | st.integers(1, 6)),
        world_size=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 3)),
    )


def cost(plan: BatchPlan, micro: MicroBatch) -> int:
    """Padded tokens of a forward pass."""
    return sum(plan.rows[g] for g in micro.groups) * max(plan.lengths[g] for g in micro.groups)


@given(plans(), st.integers(0, 3))
def test_every_group_is_in_an_epoch_exactly_once(plan: BatchPlan, epoch: int) -> None:
    """Over all steps, ranks and micro-batches; fillers do not count."""
    seen = Counter(
        group for step in plan.steps(epoch) for rank in step for micro in rank if micro.real for group in micro.groups
    )
    assert seen == Counter(range(len(plan.rows)))


@given(plans(), st.integers(0, 3))
def test_every_rank_has_as_many_micro_batches(plan: BatchPlan, epoch: int) -> None:
    """Each step has one list a rank, all of one length, never empty; the number of steps is len(plan)."""
    steps = list(plan.steps(epoch))
    assert len(steps) == len(plan)
    for step in steps:
        assert len(step) == plan.world_size
        assert len({len(rank) for rank in step}) == 1
        assert len(step[0]) > 0


@given(plans(), st.integers(0, 3))
def test_no_micro_batch_is_above_its_budget_unless_it_is_one_group(plan: BatchPlan, epoch: int) -> None:
    """Padded tokens and prompts of a pass; a group is never cut in two."""
    for step in plan.steps(epoch):
        for micro in (micro for rank in step for micro in rank):
            assert len(micro.groups) == 1 or cost(plan, micro) <= plan.tokens_per_micro_batch
            if plan.prompts_per_micro_batch is not None:
                assert len(micro.groups) <= plan.prompts_per_micro_batch


@given(plans(), st.integers(0, 3))
def test_a_filler_is_the_cheapest_group_of_its_step(plan: BatchPlan, epoch: int) -> None:
    """It costs as little as can be, and comes only after a rank's own work."""
    for step in plan.steps(epoch):
        real = [group for rank in step for micro in rank if micro.real for group in micro.groups]
        cheapest = min(plan.rows[group] * plan.lengths[group] for group in real)
        for rank in step:
            kinds = [micro.real for micro in rank]
            assert kinds == sorted(kinds, reverse=True)
            assert all(cost(plan, micro) == cheapest for micro in rank if not micro.real)


@given(plans(), st.integers(0, 3))
def test_a_step_has_the_same_groups_whatever_the_ranks_and_the_budget(plan: BatchPlan, epoch: int) -> None:
    """Prompts of a step depend on seed, epoch and prompts_per_step alone; all but the last are full."""
    other = BatchPlan(plan.rows, plan.lengths, plan.prompts_per_step, 10**9, None, 1, plan.seed)

    def groups(of: BatchPlan) -> list[list[int]]:
        return [
            sorted(group for rank in step for micro in rank if micro.real for group in micro.groups)
            for step in of.steps(epoch)
        ]

    assert groups(plan) == groups(other)
    assert all(len(step) == plan.prompts_per_step for step in groups(plan)[:-1])


def test_the_plan_is_a_pure_function_and_the_order_changes_with_epoch_and_seed() -> None:
    """Asked twice it is the same; another epoch, another seed: another order."""
    rows, lengths = [2] * 20, list(range(10, 30))

    def plan(seed: int) -> BatchPlan:
        return BatchPlan(rows, lengths, prompts_per_step=4, tokens_per_micro_batch=100, world_size=2, seed=seed)

    orders = [list(plan(seed).steps(epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    again = [list(plan(seed).steps(epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert orders == again
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_ranks_share_the_work() -> None:
    """Costs 8, 5, 4, 3 on two ranks: 8 + 3 against 5 + 4; equal groups are halved."""
    plan = BatchPlan([1] * 4, [8, 5, 4, 3], prompts_per_step=4, tokens_per_micro_batch=100, world_size=2)
    step = plan.step([0, 1, 2, 3])
    assert [sorted(group for micro in rank for group in micro.groups) for rank in step] == [[0, 3], [1, 2]]


@given(plans())
def test_a_scoring_pass_has_every_group_once_shortest_first(plan: BatchPlan) -> None:
    """In order of length, in micro-batches under the budget."""
    groups = [group for micro in plan.in_order() for group in micro.groups]
    assert sorted(groups) == list(range(len(plan.rows)))
    assert [plan.lengths[group] for group in groups] == sorted(plan.lengths)


def test_fewer_groups_than_ranks_leave_fillers() -> None:
    """One group on three ranks: the others compute it too and count nothing."""
    step = BatchPlan([2], [9], prompts_per_step=4, tokens_per_micro_batch=100, world_size=3).step([0])
    assert step == [[MicroBatch((0,))], [MicroBatch((0,), real=False)], [MicroBatch((0,), real=False)]]
