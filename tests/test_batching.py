"""The plan of an epoch: a pure function; every group once; ranks in step; the budget kept by every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.batching import BatchPlan, MicroBatch
from marginkit.data.encoded import Shape

shapes = st.builds(Shape, st.integers(1, 120), st.lists(st.integers(1, 120), min_size=1, max_size=6).map(tuple))


def squared(shape: Shape) -> float:
    """A cost that orders groups otherwise than their tokens do."""
    return float(max(shape.responses) ** 2 + shape.prompt)


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    """Any plan."""
    return BatchPlan(
        shapes=draw(st.lists(shapes, min_size=1, max_size=40)),
        prompts_per_step=draw(st.integers(1, 50)),
        tokens_per_micro_batch=draw(st.integers(1, 1500)),
        prompts_per_micro_batch=draw(st.none() | st.integers(1, 6)),
        world_size=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 3)),
        packed=draw(st.booleans()),
        cost=draw(st.sampled_from([None, squared])),
    )


def tokens(of: Sequence[Shape], *, packed: bool) -> int:
    """Tokens of a forward pass, by laying it out: a token of text is 1, one of padding 0."""
    if packed:
        return sum(len([1] * shape.prompt + [1] * sum(shape.responses)) for shape in of)
    rows = [[1] * (shape.prompt + length) for shape in of for length in shape.responses]
    width = max(map(len, rows))
    return sum(len(row + [0] * (width - len(row))) for row in rows)


def cost(plan: BatchPlan, group: int) -> float:
    """Of a group, as it is spread over ranks."""
    shape = plan.shapes[group]
    return float(tokens([shape], packed=plan.packed)) if plan.cost is None else plan.cost(shape)


def passes(plan: BatchPlan, groups: Sequence[int]) -> list[list[Shape]]:
    """What each forward pass of a micro-batch holds."""
    of = [plan.shapes[group] for group in groups]
    return [of] if len(of) > 1 else [[of[0].part(part)] for part in plan.parts(groups[0])]


def keeps_budget(plan: BatchPlan, groups: Sequence[int]) -> bool:
    """Each pass is within the token budget, or a single response of a single group."""
    return all(
        tokens(one, packed=plan.packed) <= plan.tokens_per_micro_batch or (len(one) == 1 and len(one[0].responses) == 1)
        for one in passes(plan, groups)
    )


@given(plans(), st.integers(0, 3))
def test_every_group_is_in_an_epoch_exactly_once(plan: BatchPlan, epoch: int) -> None:
    """Over all steps, ranks and micro-batches; fillers do not count."""
    seen = Counter(
        group for step in plan.steps(epoch) for rank in step for micro in rank if micro.real for group in micro.groups
    )
    assert seen == Counter(range(len(plan.shapes)))


@given(plans(), st.integers(0, 3))
def test_every_rank_has_as_many_micro_batches_and_passes(plan: BatchPlan, epoch: int) -> None:
    """One list a rank, all of one length, never empty; micro-batch for micro-batch as many passes as the most take."""
    steps = list(plan.steps(epoch))
    assert len(steps) == len(plan)
    for step in steps:
        assert len(step) == plan.world_size
        assert len({len(rank) for rank in step}) == 1
        assert len(step[0]) > 0
        for rank in step:
            own = [len(passes(plan, micro.groups)) for micro in rank if micro.real]
            assert own == sorted(own, reverse=True), "so that few have to wait for another rank's"
        for slot in zip(*step, strict=True):
            assert {micro.passes for micro in slot} == {max(len(passes(plan, micro.groups)) for micro in slot)}


@given(plans(), st.integers(0, 3))
def test_every_pass_keeps_the_budget(plan: BatchPlan, epoch: int) -> None:
    """Tokens and prompts of a pass, those of fillers too."""
    for step in plan.steps(epoch):
        for micro in (micro for rank in step for micro in rank):
            assert keeps_budget(plan, micro.groups)
            assert plan.tokens(micro) == sum(tokens(one, packed=plan.packed) for one in passes(plan, micro.groups))
            if plan.prompts_per_micro_batch is not None:
                assert len(micro.groups) <= plan.prompts_per_micro_batch


@given(plans())
def test_a_group_is_cut_into_no_more_parts_than_it_needs(plan: BatchPlan) -> None:
    """Its responses in order, each once; the first of a part would have been too much for the part before."""
    for number, shape in enumerate(plan.shapes):
        parts = plan.parts(number)
        assert [member for part in parts for member in part] == list(range(len(shape.responses)))
        for before, part in pairwise(parts):
            assert tokens([shape.part([*before, part[0]])], packed=plan.packed) > plan.tokens_per_micro_batch


@pytest.mark.parametrize(
    ("packed", "budget", "parts"),
    [
        (True, 30, [[0, 1, 2, 3]]),
        (True, 29, [[0, 1, 2], [3]]),
        (True, 15, [[0, 1], [2], [3]]),  # the prompt again in each
        (True, 1, [[0], [1], [2], [3]]),
        (False, 72, [[0, 1, 2, 3]]),
        (False, 71, [[0, 1, 2], [3]]),
        (False, 36, [[0, 1], [2, 3]]),
    ],
)
def test_a_large_group_is_cut_as_worked_out_by_hand(packed: bool, budget: int, parts: list[list[int]]) -> None:
    """A prompt of 10 and responses of 2, 3, 7, 8: 30 tokens packed, 4 x 18 padded."""
    plan = BatchPlan([Shape(10, (2, 3, 7, 8))], prompts_per_step=1, tokens_per_micro_batch=budget, packed=packed)
    assert plan.parts(0) == parts
    assert plan.step([0]) == [[MicroBatch((0,), passes=len(parts))]]


@given(plans(), st.integers(0, 3))
def test_a_filler_is_the_cheapest_group_of_its_step(plan: BatchPlan, epoch: int) -> None:
    """It costs as little as can be, and comes only after a rank's own work."""
    for step in plan.steps(epoch):
        cheapest = min(cost(plan, group) for rank in step for micro in rank if micro.real for group in micro.groups)
        for rank in step:
            kinds = [micro.real for micro in rank]
            assert kinds == sorted(kinds, reverse=True)
            assert all([cost(plan, g) for g in micro.groups] == [cheapest] for micro in rank if not micro.real)


@given(plans(), st.integers(0, 3))
def test_a_step_has_the_same_groups_whatever_the_ranks_and_the_budget(plan: BatchPlan, epoch: int) -> None:
    """Prompts of a step depend on seed, epoch and prompts_per_step alone; all but the last are full."""
    other = BatchPlan(plan.shapes, plan.prompts_per_step, 10**9, seed=plan.seed, packed=not plan.packed)

    def groups(of: BatchPlan) -> list[list[int]]:
        return [
            sorted(group for rank in step for micro in rank if micro.real for group in micro.groups)
            for step in of.steps(epoch)
        ]

    assert groups(plan) == groups(other)
    assert all(len(step) == plan.prompts_per_step for step in groups(plan)[:-1])


def test_the_plan_is_a_pure_function_and_the_order_changes_with_epoch_and_seed() -> None:
    """Asked twice it is the same; another epoch, another seed: another order."""
    of = [Shape(10 + number, (4, 9)) for number in range(20)]

    def steps(seed: int, epoch: int) -> list[list[list[MicroBatch]]]:
        plan = BatchPlan(of, prompts_per_step=4, tokens_per_micro_batch=100, world_size=2, seed=seed)
        return list(plan.steps(epoch))

    orders = [steps(*which) for which in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert orders == [steps(*which) for which in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


# ---------------------------------------------------------------------------------------------------- work over ranks


def test_ranks_share_the_work() -> None:
    """Costs 8, 5, 4, 3 on two ranks: 8 + 3 against 5 + 4; the cost is tokens unless another is given."""
    of = [Shape(length, (1,)) for length in (7, 4, 3, 2)]
    plan = BatchPlan(of, prompts_per_step=4, tokens_per_micro_batch=100, world_size=2)
    assert [sorted(group for micro in rank for group in micro.groups) for rank in plan.step(range(4))] == [
        [0, 3],
        [1, 2],
    ]
    upside_down = BatchPlan(of, 4, 100, world_size=2, cost=lambda shape: {7: 1.0, 4: 2.0, 3: 3.0, 2: 9.0}[shape.prompt])
    assert [sorted(group for micro in rank for group in micro.groups) for rank in upside_down.step(range(4))] == [
        [3],
        [0, 1, 2],
    ]


@given(st.lists(shapes, min_size=1, max_size=7), st.integers(1, 3), st.booleans(), st.sampled_from([None, squared]))
def test_no_rank_has_much_more_than_the_best_split_gives_it(
    of: list[Shape], ranks: int, packed: bool, given_cost: object
) -> None:
    """The largest load is at most 4/3 - 1/(3 ranks) of the best of all splits (Graham's bound for largest first)."""
    plan = BatchPlan(of, len(of), 500, world_size=ranks, packed=packed, cost=given_cost)  # type: ignore[arg-type]
    costs = np.array([cost(plan, group) for group in range(len(of))])
    loads = [sum(costs[g] for micro in rank if micro.real for g in micro.groups) for rank in plan.step(range(len(of)))]
    owners = np.array(list(product(range(ranks), repeat=len(of))))
    every = np.stack([(owners == rank) @ costs for rank in range(ranks)])
    assert max(loads) <= (4 / 3 - 1 / (3 * ranks)) * every.max(0).min() * (1 + 1e-12)


def test_fewer_groups_than_ranks_leave_fillers() -> None:
    """One group on three ranks: the others compute it too, in as many passes, and count nothing."""
    for budget, count in ((20, 1), (10, 2)):
        plan = BatchPlan([Shape(5, (4, 4))], prompts_per_step=4, tokens_per_micro_batch=budget, world_size=3)
        own, filler = MicroBatch((0,), passes=count), MicroBatch((0,), real=False, passes=count)
        assert plan.step([0]) == [[own], [filler], [filler]]


def test_ranks_meet_pass_by_pass() -> None:
    """A group of three passes beside small ones: the other rank's micro-batch in that slot takes three as well."""
    of = [Shape(10, (10, 10, 10)), Shape(5, (9,)), Shape(4, (9,)), Shape(3, (9,))]
    plan = BatchPlan(of, prompts_per_step=4, tokens_per_micro_batch=20, world_size=2, packed=True)
    first, second = plan.step(range(4))
    assert first == [MicroBatch((0,), passes=3), *[MicroBatch((3,), real=False)] * 2]
    assert second == [MicroBatch((1,), passes=3), MicroBatch((2,)), MicroBatch((3,))]


def test_a_filler_may_take_more_passes_than_what_it_stands_beside() -> None:
    """The cheapest group has two responses, each a pass of its own; the larger ones have one."""
    of = [Shape(1, (61,)), Shape(1, (60,)), Shape(2, (12, 11))]
    first, second = BatchPlan(of, 3, 20, world_size=2, packed=True).step(range(3))
    assert first == [MicroBatch((0,), passes=2), MicroBatch((2,), real=False, passes=2)]
    assert second == [MicroBatch((2,), passes=2), MicroBatch((1,), passes=2)]


# ------------------------------------------------------------------------------------------- scoring and large plans


@given(plans())
def test_a_scoring_pass_has_every_group_once_smallest_first(plan: BatchPlan) -> None:
    """In order of size, in micro-batches under the budget."""
    batches = list(plan.in_order())
    groups = [group for batch in batches for group in batch]
    assert sorted(groups) == list(range(len(plan.shapes)))
    sizes = [tokens([plan.shapes[group]], packed=plan.packed) for group in groups]
    assert sizes == sorted(sizes)
    assert all(keeps_budget(plan, batch) for batch in batches)
    if plan.prompts_per_micro_batch is not None:
        assert max(map(len, batches)) <= plan.prompts_per_micro_batch


def test_batches_are_full() -> None:
    """30 groups of 10 tokens under 100: three passes of ten, in training and in scoring."""
    plan = BatchPlan([Shape(4, (6,))] * 30, prompts_per_step=30, tokens_per_micro_batch=100, packed=True)
    assert [len(micro.groups) for micro in plan.step(range(30))[0]] == [10, 10, 10]
    assert list(map(len, plan.in_order())) == [10, 10, 10]


def test_an_evaluation_of_many_groups_is_planned_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at a group's lengths: eight times the groups take eight times as many."""
    looks = 0
    inside = {name: getattr(Shape, name).fget for name in ("packed", "padded", "longest")}

    def counted(name: str) -> property:
        def look(shape: Shape) -> int:
            nonlocal looks
            looks += 1
            return int(inside[name](shape))

        return property(look)

    for name in inside:
        monkeypatch.setattr(Shape, name, counted(name))
    chance = np.random.default_rng(0)
    drawn = [Shape(int(row[0]), tuple(map(int, row[1:]))) for row in chance.integers(1, 400, (8000, 5))]

    def looks_for(count: int) -> int:
        nonlocal looks
        looks = 0
        plan = BatchPlan(drawn[:count], count, 1000, world_size=2, packed=True)
        assert sum(len(micro.groups) for rank in plan.step(range(count)) for micro in rank if micro.real) == count
        return looks

    few, many = looks_for(1000), looks_for(8000)
    assert few > 1000, "they are counted"
    assert many < 8 * 1.2 * few
