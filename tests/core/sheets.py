"""What a row of check values is, and how marginkit is asked for the numbers. The rows are in sheet_*.py.

The sheets print numbers to some digits, and those digits are the precision claimed: half a unit of the last one, and
nothing at all for a whole number. Golden pairs, (s_w, s_l, t_w, t_l, n_w, n_l): A healthy, B with a degraded chosen
response, C at initialisation. All of it is float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

import marginkit as mk
from marginkit.core.adaptive import amapo, beta_scale, gamma_po
from marginkit.core.loss import Loss
from marginkit.core.scored import madpo_weight
from marginkit.core.targets import soft_label
from marginkit.core.tensors import Labels, PairScores, Population
from marginkit.core.transport import aplot

Found = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a sheet.

    Args:
        place: sheet, section, method and options.
        find: computes the numbers of the line with marginkit.
        printed: the numbers, as the sheet prints them.
        of: what each number belongs to.
    """

    place: str
    find: Found
    printed: str
    of: str = ""

    def cases(self) -> list[tuple[str, "Row", int]]:
        """One case a number: its name, the row, which number."""
        numbers = self.printed.split()
        names = self.of.split(", ") if self.of else [f"number {i + 1}" for i in range(len(numbers))]
        assert len(names) == len(numbers), self.place
        return [(f"{self.place}: {name}", self, i) for i, name in enumerate(names)]


def half_a_unit(printed: str) -> float:
    """Half a unit of the last digit of a printed number, 5e-7 for 0.371101; a whole number is exact."""
    if printed.lstrip("-").isdigit():
        return 1e-9 * max(1.0, abs(float(printed)))
    exponent = Decimal(printed).as_tuple().exponent
    assert isinstance(exponent, int)
    return float(Decimal(5).scaleb(exponent - 1))


def f64(values: object) -> Tensor:
    """A tensor in float64."""
    return torch.tensor(values, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------- the inputs

LOGP = f64([[-40.0, -66.0], [-45.0, -70.0], [-42.0, -60.0]])
REFERENCE = f64([[-42.0, -60.0]] * 3)
LENGTH = f64([[20.0, 30.0], [20.0, 35.0], [20.0, 30.0]])
ABC = "pair A, pair B, pair C"


def golden(**columns: object) -> PairScores:
    """The pairs A, B and C, with more columns."""
    given = {name: value if isinstance(value, Tensor) else f64(value) for name, value in columns.items()}
    return PairScores(**{"logp": LOGP, "ref_logp": REFERENCE, "length": LENGTH} | given)


def heads(*gaps: float, **columns: object) -> PairScores:
    """Pairs of a reward model with these gaps, around an arbitrary level."""
    return PairScores(
        head=f64([[gap + 5.5, 5.5] for gap in gaps]), **{name: f64(value) for name, value in columns.items()}
    )


def with_gaps(gaps: Tensor) -> PairScores:
    """Pairs of one-token responses with these gaps, with and without the reference."""
    logp = torch.stack((gaps, torch.zeros_like(gaps)), 1)
    return PairScores(logp=logp, ref_logp=torch.zeros_like(logp), length=torch.ones_like(logp))


def seen(gaps: Tensor, **more: Any) -> Population:
    """A population with these gaps."""
    return Population(rewards=torch.stack((gaps, torch.zeros_like(gaps)), 1), **more)


def in_state(loss: Loss, mean: float, sd: float) -> Loss:
    """The loss after many steps, its running mean and sd as given (in the unit of its population)."""
    loss.load_state_dict(loss.state_dict() | {"mean": f64(mean), "sd": f64(sd), "passes": torch.tensor(1000)})
    return loss


def spread(*shape: int, seed: int, low: float = -3.0, high: float = 3.0) -> Tensor:
    """Numbers in an interval, the same every time."""
    drawn = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * drawn


def random_pairs(num_pairs: int = 40, seed: int = 0) -> PairScores:
    """A policy near its reference on responses of 5 to 60 tokens, with all that any recipe asks for."""
    length = spread(num_pairs, 2, seed=seed, low=5.0, high=60.0).round()
    ref = -length * spread(num_pairs, 2, seed=seed + 1, low=0.5, high=3.0)
    better = spread(num_pairs, seed=seed + 2, low=0.2, high=5.0)
    return PairScores(
        logp=torch.minimum(ref + spread(num_pairs, 2, seed=seed + 3, low=-12.0, high=12.0), -0.05 * length),
        ref_logp=ref,
        length=length,
        rm_head=spread(num_pairs, 2, seed=seed + 4, low=-5.0, high=5.0),
        log_collision=-length * spread(num_pairs, 2, seed=seed + 5, low=0.5, high=3.0),
        grade=torch.stack((1.0 + better, torch.ones_like(better)), 1),
        chance=spread(num_pairs, seed=seed + 6, low=0.01, high=0.99),
    )


def log_ratio_gap(scores: PairScores) -> Tensor:
    """D = (s_w - t_w) - (s_l - t_l), written out."""
    s, t = scores.logp, scores.ref_logp
    return (s[:, 0] - t[:, 0]) - (s[:, 1] - t[:, 1])


def token_gap(scores: PairScores) -> Tensor:
    """M = s_w / n_w - s_l / n_l, written out."""
    return scores.logp[:, 0] / scores.length[:, 0] - scores.logp[:, 1] / scores.length[:, 1]


def sp(z: Tensor) -> Tensor:
    """log(1 + e^z), in its plain form."""
    return torch.log1p(torch.exp(-z.abs())) + z.clamp(min=0.0)


def sig(z: Tensor) -> Tensor:
    """1 / (1 + e^-z), in its plain form."""
    return 1.0 / (1.0 + torch.exp(-z))


def close(left: Tensor, right: Tensor, within: float = 1e-10) -> None:
    """Equal to rounding, relative to the larger of 1 and the size; the difference is shown."""
    assert left.shape == right.shape
    torch.testing.assert_close(left, right, rtol=within, atol=within)


# ----------------------------------------------------------------------------------------- how a number is found


def paid(recipe: str, scores: PairScores | None = None, times: float = 1.0, **options: Any) -> Found:
    """The loss of each pair, for A, B and C unless others are given."""
    return lambda: times * mk.recipe(recipe, **options)(golden() if scores is None else scores)


def paid_after(mean: float, sd: float, recipe: str, **options: Any) -> Found:
    """The loss of A, B and C with running values that are already there."""
    return lambda: in_state(mk.recipe(recipe, **options), mean, sd)(golden())


def slope(recipe: str, gaps: tuple[float, ...], **options: Any) -> Found:
    """D loss / d gap of pairs of one-token responses (or of heads), by autograd."""

    def find() -> Tensor:
        leaf = f64(gaps).requires_grad_(True)
        loss = mk.recipe(recipe, **options)
        scores = PairScores(head=torch.stack((leaf, 0 * leaf), 1)) if "head" in loss.needs else with_gaps(leaf)
        population = Population(loss.seen(scores).rewards) if loss.coupled else None
        (gradient,) = torch.autograd.grad(loss.evaluate(scores, population).total.sum(), leaf)
        return gradient

    return find


def rm_weight(c_max: float, h: tuple[float, ...], tau: float = math.log(999.0)) -> Tensor:
    """MADPO's weight of pairs with these reward-model gaps."""
    rm_head = torch.stack((f64(h), torch.zeros(len(h), dtype=torch.float64)), 1)
    target = madpo_weight(
        Labels(),
        torch.zeros(len(h), dtype=torch.float64),
        None,
        PairScores(rm_head=rm_head),
        c_max=c_max,
        tau=tau,
        lam=1.0,
    )
    return target.weight


def gamma_margins(r: tuple[float, ...], gamma: float, tau: float, solver: str = "released") -> Found:
    """gamma-PO's margins with the pool r and no queue."""
    return lambda: gamma_po(Labels(), f64(r), seen(f64(r)), gamma=gamma, tau=tau, solver=solver, centred=False).margin


def amapo_margins(gaps: tuple[float, ...], beta: float, form: str = "released") -> Found:
    """AMaPO's margins for length-averaged gaps D."""
    return lambda: amapo(Labels(), beta * f64(gaps), seen(beta * f64(gaps)), beta=beta, form=form).margin


def soft(gamma: float, *grade_gaps: float) -> Found:
    """MMPO's soft labels."""
    gaps = f64(grade_gaps)
    return lambda: soft_label(Labels(strength=gaps), torch.zeros_like(gaps), gamma=gamma).prob


def transported(
    chosen: list[float], rejected: list[float], *, norm: str = "row", hidden: Tensor | None = None
) -> Tensor:
    """APLOT's margins; the hidden states of a pair are equal, those of two pairs orthogonal, unless given."""
    states = torch.eye(len(chosen), dtype=torch.float64)
    hidden = torch.stack((states, states), 1) if hidden is None else hidden
    scores = PairScores(head=torch.stack((f64(chosen), f64(rejected)), 1), hidden=hidden)
    gap = f64(chosen) - f64(rejected)
    return aplot(Labels(), gap, None, scores, eps=0.1, semantic=0.1, norm=norm).margin


def outlier_z(size: int) -> Tensor:
    """The z of one pair below `size - 1` equal ones, read off AMaPO's margin exp(z * mean) at mean 1, beta 1."""
    gaps = f64([0.0] + [size / (size - 1.0)] * (size - 1))
    return torch.log(amapo(Labels(), gaps, seen(gaps), beta=1.0).margin[:1])


def ratio_of_margins(gamma: float, tau: float) -> Tensor:
    """The largest over the smallest of gamma-PO's margins where the gaps lie as far apart as they can."""
    gaps = f64([-1e3, 1e3])
    made = gamma_po(Labels(), gaps, seen(gaps), gamma=gamma, tau=tau, solver="fixed_point", centred=False)
    return made.margin[1:] / made.margin[:1]


def beta_step(gaps: tuple[float, ...]) -> Found:
    """beta-DPO's running mean and sd (nats) and its beta after a first step at beta 0.1, a 0.6, rho 0."""

    def find() -> Tensor:
        loss = mk.recipe("beta_dpo", beta=0.1, a=0.6, rho=0.0)
        scores = with_gaps(f64(gaps))
        loss(scores)
        state = loss.state_dict()
        again = mk.recipe("beta_dpo", beta=0.1, a=0.6, rho=0.0)
        population = again.memory.population(again.seen(scores), training=True)
        labels = Labels(chance=torch.full((len(gaps),), 0.5, dtype=torch.float64))
        made = beta_scale(labels, 0.1 * f64(gaps), population, beta=0.1, a=0.6, rho=0.0)
        return torch.stack((state["mean"] / 0.1, state["sd"] / 0.1, 0.1 * made.scale[0]))

    return find


def soft_slope(z: float, p: float) -> Tensor:
    """D loss / d z of MMPO at beta*h = z under the soft label p."""
    leaf = f64([z]).requires_grad_(True)
    loss = mk.recipe("mmpo", beta=1.0)(
        PairScores(logp=torch.stack((leaf, 0 * leaf), 1), ref_logp=f64([[0.0, 0.0]]), prob=f64([p]))
    )
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return gradient
