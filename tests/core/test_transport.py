"""The entropic plan against POT, the reference implementation of optimal transport."""

import math

import ot
import pytest
import torch

from marginkit.core.transport import aplot, entropic_plan


def cost(size: int, seed: int = 0) -> torch.Tensor:
    """A cost of the kind APLOT has: in [-0.1, 0.55]."""
    generator = torch.Generator().manual_seed(seed)
    return 0.65 * torch.rand(size, size, generator=generator, dtype=torch.float64) - 0.1


@pytest.mark.parametrize("size", [1, 2, 7, 32])
@pytest.mark.parametrize("eps", [0.03, 0.1, 1.0])
def test_the_plan_is_that_of_pot(size: int, eps: float) -> None:
    """Sinkhorn to convergence on both sides: the same plan to 1e-9."""
    ours = entropic_plan(cost(size), eps=eps, iterations=20_000 if size == 2 else 2000)  # two by two converges slowly
    uniform = torch.full((size,), 1.0 / size, dtype=torch.float64)
    theirs = ot.sinkhorn(uniform, uniform, cost(size), eps, method="sinkhorn_log", stopThr=1e-14, numItermax=20_000)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [2, 7, 32])
def test_after_the_50_steps_of_aplot_the_plan_is_that_of_pot_after_50(size: int) -> None:
    """The same number of steps, not only the same limit."""
    ours = entropic_plan(cost(size), eps=0.1, iterations=50)
    uniform = torch.full((size,), 1.0 / size, dtype=torch.float64)
    theirs = ot.sinkhorn(uniform, uniform, cost(size), 0.1, method="sinkhorn", stopThr=0.0, numItermax=50, warn=False)
    # POT scales columns first, we rows first: after 50 steps both are within the same distance of the limit
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert torch.allclose(ours.sum(0), uniform, atol=1e-12)


def test_with_no_entropy_it_is_the_cheapest_assignment() -> None:
    """With eps -> 0: the plan of the exact solver."""
    ours = entropic_plan(cost(6, seed=3), eps=1e-3, iterations=20_000)
    uniform = torch.full((6,), 1.0 / 6, dtype=torch.float64)
    assert torch.allclose(ours, ot.emd(uniform, uniform, cost(6, seed=3)), atol=1e-4)


def test_it_does_not_overflow_where_a_plain_kernel_would() -> None:
    """In logs: exp(-cost / eps) of a cost of 500 and an eps of 0.1 is 0 in any type."""
    plan = entropic_plan((1000.0 * cost(8)).float(), eps=0.1, iterations=50)
    assert torch.isfinite(plan).all()
    assert float(plan.sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_margins_of_a_batch_are_those_of_pots_plan() -> None:
    """The whole target, with costs written down a second time."""
    from marginkit.core.tensors import Labels, PairScores

    generator = torch.Generator().manual_seed(1)
    head = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    hidden = torch.randn(9, 2, 5, generator=generator, dtype=torch.float64)
    found = aplot(Labels(), head[:, 0] - head[:, 1], None, PairScores(head=head, hidden=hidden), eps=0.1, semantic=0.1)
    cells = torch.zeros(9, 9, dtype=torch.float64)
    for i in range(9):
        for j in range(9):
            apart = abs(float(head[i, 0] - head[j, 1]))
            likeness = torch.nn.functional.cosine_similarity(hidden[i, 0], hidden[j, 1], dim=0)
            cells[i, j] = 0.9 * (1 - 1 / (1 + math.exp(-apart))) + 0.1 * float(likeness)
    uniform = torch.full((9,), 1 / 9, dtype=torch.float64)
    plan = ot.sinkhorn(uniform, uniform, cells, 0.1, method="sinkhorn_log", stopThr=1e-14, numItermax=20_000)
    assert torch.allclose(found.margin, 9 * (plan * cells).sum(1), atol=1e-6)
