"""Check values of the sheet on reward models: APLOT (section 1.2) and the baseline objectives (section 2.3)."""

import math

import torch
from sheets import Row, f64, heads, paid, slope, soft, transported
from torch import Tensor

import marginkit as mk
from marginkit.core.tensors import PairScores, SequenceScores
from marginkit.core.transport import entropic_plan

CHOSEN, REJECTED = [2.0, 0.5], [0.0, 0.4]
CELLS = "11, 12, 21, 22"
ORTHOGONAL = torch.eye(2, dtype=torch.float64)[None]  # cos(h+, h-) = 0: the semantic cost of the pair is 0


def cost() -> Tensor:
    """[2, 2] the cost of every chosen-rejected couple of the sheet's batch: the margin of that couple alone."""
    states = torch.eye(2, dtype=torch.float64)
    couples = []
    for i in range(2):
        for j in range(2):
            hidden = torch.stack((states[i], states[j]))[None]
            scores = PairScores(head=f64([[CHOSEN[i], REJECTED[j]]]), hidden=hidden)
            couples.append(mk.recipe("aplot", eps=0.1, semantic=0.1, norm="none").evaluate(scores).target.margin)
    return torch.cat(couples).reshape(2, 2)


def smoothed(gap: float) -> Tensor:
    """D loss / d gap under label smoothing 0.1."""
    return slope("bt_smooth", (gap,), eps=0.1)()


APLOT = (
    Row("reward-models 1.2, B=1 r=(1,0) equal h", lambda: transported([1.0], [0.0]), "0.342047"),
    Row(
        "reward-models 1.2, B=1 without semantic cost",
        lambda: torch.cat([transported([d], [0.0], hidden=ORTHOGONAL) for d in (0.0, 1.0, -1.0, 2.0, -2.0)]),
        "0.45 0.242047 0.242047 0.107283 0.107283",
        "d=0, d=1, d=-1, d=2, d=-2",
    ),
    Row("reward-models 1.2, B=2 C", lambda: cost().flatten(), "0.207283 0.151183 0.339787 0.527519", CELLS),
    Row(
        "reward-models 1.2, B=2 P",
        lambda: entropic_plan(cost(), eps=0.1, iterations=50).flatten(),
        "0.114042 0.385958 0.385958 0.114042",
        CELLS,
    ),
    Row("reward-models 1.2, B=2 m literal", lambda: transported(CHOSEN, REJECTED, norm="none"), "0.081989 0.191303"),
    Row("reward-models 1.2, B=2 m by row", lambda: transported(CHOSEN, REJECTED), "0.163979 0.382605"),
    Row(
        "reward-models 1.2, all rewards and h equal, m by row",
        lambda: transported([1.5] * 4, [1.5] * 4, hidden=torch.ones(4, 2, 3, dtype=torch.float64)),
        "0.55 0.55 0.55 0.55",
    ),
    Row(
        "reward-models 1.2, all rewards and h equal, B * m literal",
        lambda: 4 * transported([1.5] * 4, [1.5] * 4, hidden=torch.ones(4, 2, 3, dtype=torch.float64), norm="none"),
        "0.55 0.55 0.55 0.55",
    ),
    Row(
        "reward-models 1.2, gradient at d=0 without semantic cost",
        lambda: aplot_slope(0.0),
        "-0.610639",
    ),
    Row("reward-models 1.2, gradient of BT at d=0", slope("bt", (0.0,)), "-0.5"),
    Row(
        "reward-models 1.2, m at d -> +-inf",
        lambda: torch.cat([transported([d], [0.0]) for d in (1e4, -1e4)]),
        "0.100000 0.100000",
        "d=1e4, d=-1e4",
    ),
)


def aplot_slope(gap: float) -> Tensor:
    """D loss / d gap of one pair under APLOT, without a semantic cost."""
    leaf = f64([gap]).requires_grad_(True)
    scores = PairScores(head=torch.stack((leaf, 0 * leaf), 1), hidden=ORTHOGONAL)
    (gradient,) = torch.autograd.grad(mk.recipe("aplot", eps=0.1, semantic=0.1)(scores).sum(), leaf)
    return gradient


def centring() -> Tensor:
    """What the centring of r = (2, -1) adds to Bradley-Terry."""
    scores = PairScores(head=f64([[2.0, -1.0]]))
    return mk.recipe("bt_centered", c=0.01)(scores) - mk.recipe("bt")(scores)


BASELINES = (
    Row("reward-models 2.3, BT", paid("bt", heads(1.0)), "0.313262"),
    Row("reward-models 2.3, margin .5", paid("bt_margin", heads(1.0, strength=[0.5]), scale=1.0), "0.474077"),
    Row(
        "reward-models 2.3, margins 3/2/1/0",
        paid("bt_margin", heads(1.0, 1.0, 1.0, 1.0, strength=[3.0, 2.0, 1.0, 0.0]), scale=1.0),
        "2.126928 1.313262 0.693147 0.313262",
    ),
    Row("reward-models 2.3, smoothing .1", paid("bt_smooth", heads(1.0), eps=0.1), "0.413262"),
    Row("reward-models 2.3, slope at the minimiser of smoothing .1", lambda: smoothed(math.log(9.0)), "0.000000"),
    Row(
        "reward-models 2.3, minimiser of smoothing .1",
        lambda: mk.recipe("bt_smooth", eps=0.1).target_gap(heads(0.0).labels, 1),
        "2.197225",
    ),
    Row("reward-models 2.3, scaled k=3", paid("bt_scaled", heads(1.0, strength=[3.0]), scale=1.0), "0.939785"),
    Row(
        "reward-models 2.3, focal gamma 2",
        paid("bt_focal", heads(1.0, 0.0, -1.0), gamma=2.0),
        "0.090632 0.693147 1.313262",
        "d=1, d=0, d=-1",
    ),
    Row("reward-models 2.3, soft t=s(1.1)", paid("mmpo_rm", heads(1.0, strength=[1.0]), gamma=1.1), "0.563002"),
    Row("reward-models 2.3, its minimum", paid("mmpo_rm", heads(1.1, strength=[1.0]), gamma=1.1), "0.562049"),
    Row(
        "reward-models 2.3, t",
        lambda: torch.cat((soft(2.2, 0.5, 1.0)(), soft(0.3, 1.0)(), soft(1.1, 1.0)())),
        ".750260 .900250 .574443 .750260",
        "(2.2 .5), (2.2 1), (0.3 1), (1.1 1)",
    ),
    Row("reward-models 2.3, centring c=.01 r=(2,-1)", centring, "0.01"),
    Row(
        "reward-models 2.1, regression (pred - label)^2",
        lambda: mk.recipe("regression", scale=0.5)(SequenceScores(head=f64([1.5, 7.0]), grade=f64([4.0, math.nan]))),
        "0.25 0",
        "graded, without a grade",
    ),
)
