"""What the pictures of the methods page show: loss and slope of a recipe against the gap, by the code that trains.

Numbers only; methods_drawing.py makes SVG of them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from marginkit.assembly import build_loss, compose
from marginkit.core.loss import Loss
from marginkit.core.tensors import PairScores, Population, SequenceScores
from marginkit.errors import BadInput
from marginkit.listing import GAMMA, required, sft_term
from marginkit.registry import Recipe

POINTS, NUMBERS = 129, 9  # of a curve; of these in <desc>
TOKENS = 100.0
BOTH, CHOSEN, REJECTED = (0.5, -0.5), (1.0, 0.0), (0.0, -1.0)  # how a gap of 1 is shared out
ALONG = {
    "r(chosen) = -r(rejected)": BOTH,
    "chosen moves, rejected at 0": CHOSEN,
    "rejected moves, chosen at 0": REJECTED,
}


class NotDrawn(Exception):
    """Why a recipe has no picture."""


@dataclass(frozen=True)
class Curve:
    """One line of a picture."""

    label: str
    gap: list[float]
    loss: list[float]
    slope: list[float]

    def __str__(self) -> str:
        """Nine numbers of it, four digits each."""
        step = (len(self.gap) - 1) // (NUMBERS - 1)
        columns = (("gap", self.gap), ("loss", self.loss), ("slope", self.slope))
        words = [f"{name} " + " ".join(f"{value:.4g}" for value in values[::step]) for name, values in columns]
        return " | ".join([self.label, *words])


@dataclass(frozen=True)
class Picture:
    """What is drawn."""

    name: str
    x_label: str
    unit: str  # of the loss
    curves: list[Curve]
    note: str

    @property
    def desc(self) -> str:
        """In words and numbers."""
        head = f"Upper panel: loss. Lower panel: its slope. Both against: {self.x_label}. {self.note}"
        return "\n".join([head, *map(str, self.curves)])


@dataclass(frozen=True)
class Scene:
    """What holds still along one curve while the gap moves.

    Args:
        label: of the curve.
        labels: label columns, the same for every pair: a number, or (chosen, rejected).
        scores: score fields by what the pairs' own scores are, for targets that read them.
        population: the other pairs.
        share: how a gap is made of the two rewards.
    """

    label: str
    labels: Mapping[str, Any] = field(default_factory=dict)
    scores: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    population: Population | None = None
    share: tuple[float, float] = BOTH


# ------------------------------------------------------------------------------------------- what the curves are


def _both(chosen: float, rejected: float) -> Callable[[Tensor], Tensor]:
    return lambda like: torch.tensor([chosen, rejected], dtype=like.dtype).expand(len(like), 2)


def _grades(*gaps: float, ties: bool = False) -> list[Scene]:
    return [
        Scene(f"grade gap {gap:g}" + " (a tie)" * (gap == 0), {"grade": (1.0 + gap, 1.0), "tie": gap == 0})
        for gap in gaps
        if gap or ties
    ]


def _others(mean: float, sd: float, *, running: tuple[float, float] | None = None) -> Population:
    """32 normal quantiles as the gaps of other pairs; running moments as given, else their own."""
    levels = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    gaps = mean + sd * torch.special.ndtri(levels)
    moments = running or (mean, sd)
    return Population(
        rewards=torch.stack((gaps / 2, -gaps / 2), 1),
        chance=torch.full_like(gaps, 0.5),
        mean=torch.tensor(moments[0], dtype=torch.float64),
        sd=torch.tensor(moments[1], dtype=torch.float64),
        updates=1000,
    )


def _reward_model(h: float) -> Scene:
    return Scene(f"reward model's gap {h:g}", scores=lambda own: {"rm_head": _both(h, 0.0)(own["logp"])})


def _confidence(q: float) -> Scene:
    def scores(own: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"log_collision": own["logp"].detach() - q / 2 * TOKENS}

    return Scene(f"q(chosen) + q(rejected) = {q:g}", scores=scores)


def _lengths(difference: float) -> Scene:
    lengths = _both(TOKENS + difference / 2, TOKENS - difference / 2)
    words = f"chosen {abs(difference):g} tokens {'longer' if difference > 0 else 'shorter'}"
    return Scene(words if difference else "equal lengths", scores=lambda own: {"length": lengths(own["logp"])})


def _gain(sds: float, mean: float = 0.2, sd: float = 0.1) -> Scene:
    def scores(own: dict[str, Tensor]) -> dict[str, Tensor]:
        gain = _both((mean + sds * sd) * TOKENS / 2, -(mean + sds * sd) * TOKENS / 2)(own["logp"])
        return {"ref_logp": own["logp"].detach() - gain}

    place = "at the mean" if not sds else f"{abs(sds):g} sd " + ("above" if sds > 0 else "below")
    return Scene(f"gain over the reference {place}", scores=scores, population=_others(mean, sd))


def _plain(_: Loss) -> tuple[list[Scene], str]:
    return [Scene("")], ""


def _adaptive(loss: Loss) -> tuple[list[Scene], str]:
    assert loss.target is not None
    levels = {"gamma_po": (0.0, 3.0), "amapo": (1.0, -1.0)}[loss.target.__name__]
    scenes = [Scene(f"other gaps {level:g} +- 1 logits", population=_others(level, 1.0)) for level in levels]
    return scenes, "The margin follows the pair's own gap and those of 32 other pairs."


def _beta(loss: Loss) -> tuple[list[Scene], str]:
    beta = loss.target_options["beta"]
    scenes = [
        Scene(
            f"other gaps {place} the running mean",
            {"chance": 0.5},
            population=_others(nats * beta, 5 * beta, running=(0.0, 5 * beta)),
        )
        for place, nats in (("2 nats below", -2.0), ("around", 0.0), ("2 nats above", 2.0))
    ]
    return scenes, (
        "32 other pairs, running mean 0 and standard deviation 5 nats, every random number 1/2: pairs far from the "
        "mean are left out (loss 0); in training chance decides."
    )


def _kto(loss: Loss) -> tuple[list[Scene], str]:
    level = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    note = "Mean rewards of the others: chosen 1, rejected 0.5 logits."
    return [Scene("", population=Population(rewards=level))], note


# target function -> the scenes it is shown in; one that is not here and looks at the label alone has one curve
SCENES: Mapping[str, Callable[[Loss], tuple[list[Scene], str]]] = {
    "soft_label": lambda _: (_grades(0, 1, 3, ties=True), ""),
    "matched_gap": lambda _: (_grades(0, 1, 3, ties=True), ""),
    "log_grade_margin": lambda _: (_grades(0.5, 1, 3), ""),
    "madpo_weight": lambda _: ([_reward_model(h) for h in (-1.0, 0.5, 3.0)], ""),
    "wpo_weight": lambda _: ([_confidence(q) for q in (0.0, -1.0, -3.0)], "The weight is held still along a curve."),
    "length_margin": lambda _: ([_lengths(d) for d in (-50.0, 0.0, 50.0)], ""),
    "gamma_po": _adaptive,
    "amapo": _adaptive,
    "beta_scale": _beta,
    "alpha_margin": lambda _: ([_gain(s) for s in (-2.0, 0.0, 2.0)], "Gains of the others: 0.2 +- 0.1 nats a token."),
    "kto_zero": _kto,
    "aplot": lambda _: ([Scene("in a batch of 8")], "The other seven pairs of the batch hold still."),
}


def scenes_of(loss: Loss) -> tuple[list[Scene], str]:
    """The curves of a picture and what holds for all of them."""
    if loss.target is None:
        return _plain(loss)
    part, name = loss.target.part, loss.target.__name__
    if name in SCENES:
        scenes, note = SCENES[name](loss)
    elif part.scores or part.couples != "none" or "chance" in part.needs:
        raise NotDrawn(f"target {name} reads more than the label; say what to show in SCENES of methods_pictures.py")
    else:
        scenes, note = (_grades(1, 2, 3), "") if "grade_gap" in part.needs else _plain(loss)
    if not loss.objective.part.shift_invariant and loss.per == "pair":
        if len(scenes) > 1:
            scenes = [scenes[0]]
        scenes = [replace(scenes[0], label=label, share=share) for label, share in ALONG.items()]
    if "margin" in part.makes and part.couples != "none":
        note += " The slope is the one of training: the margin carries no gradient."
    return scenes, note


# -------------------------------------------------------------------------------------------------- the numbers


def _scores_of(loss: Loss, value: Tensor) -> dict[str, Tensor]:
    """Scores under which the reward is this value."""
    name, beta = loss.reward.__name__, loss.reward_options.get("beta", 1.0)
    flat = value.detach()
    base = {"length": torch.full_like(flat, TOKENS), "ref_logp": torch.full_like(flat, -TOKENS)}
    made: dict[str, Callable[[], dict[str, Tensor]]] = {
        "head": lambda: {"head": value},
        "logp": lambda: {"logp": value / beta},
        "implicit": lambda: {"logp": base["ref_logp"] + value / beta},
        "implicit_mean": lambda: {"logp": base["ref_logp"] + value * TOKENS / beta},
        "per_token": lambda: {"logp": value * TOKENS / beta},
        "log_odds": lambda: {"logp": torch.nn.functional.logsigmoid(value) * TOKENS},
    }
    if name not in made:
        raise NotDrawn(f"reward {name} is not in _scores_of of methods_pictures.py")
    return base | made[name]()


def _column(value: Any, size: int) -> Tensor:
    if isinstance(value, tuple):
        return torch.tensor([value] * size, dtype=torch.float64)
    return torch.full((size,), value, dtype=torch.bool if isinstance(value, bool) else torch.float64)


def _curve(loss: Loss, scene: Scene, gap: Tensor) -> Curve:
    """Loss and slope along one curve."""
    gap = gap.clone().requires_grad_(True)
    value = torch.stack((scene.share[0] * gap, scene.share[1] * gap), 1)
    scores = _scores_of(loss, value)
    if scene.scores is not None:
        scores |= scene.scores(scores)
    scores = {name: column for name, column in scores.items() if name in loss.needs}
    if loss.target is not None and loss.target.part.couples == "batch":
        total = torch.cat([_in_a_batch(loss, scores["head"][at : at + 1]) for at in range(len(gap))])
    else:
        labels = {name: _column(value, len(gap)) for name, value in scene.labels.items()}
        made = loss.evaluate(PairScores(**scores, **labels), scene.population)
        if not torch.allclose(made.rewards.value, value):
            raise NotDrawn(f"reward {loss.reward.__name__} is not what _scores_of of methods_pictures.py takes it for")
        assert made.target is not None
        total = torch.where(made.target.keep, made.target.weight * made.loss, torch.zeros_like(made.loss))
    return _finished(scene.label, gap, total)


def _in_a_batch(loss: Loss, head: Tensor) -> Tensor:
    """The loss of one pair beside seven others."""
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    hidden = torch.randn(8, 2, 16, generator=generator, dtype=torch.float64)
    return loss.evaluate(PairScores(head=torch.cat((head, others)), hidden=hidden)).loss[:1]


def _response_curve(loss: Loss, at: Tensor) -> Curve:
    """Loss and slope of a loss per response: the reward above its level moves."""
    at = at.clone().requires_grad_(True)
    scores = {"logp": at} if "logp" in loss.needs else {"head": at, "grade": torch.zeros_like(at)}
    return _finished("", at, loss.evaluate(SequenceScores(**scores)).total)


def _finished(label: str, gap: Tensor, total: Tensor) -> Curve:
    (slope,) = torch.autograd.grad(total.sum(), gap)
    if not (torch.isfinite(total).all() and torch.isfinite(slope).all()):
        raise NotDrawn("the loss or its slope is not finite over the range of the picture")
    return Curve(label, *(_tidy(values.detach()) for values in (gap, total, slope)))


def _tidy(values: Tensor) -> list[float]:
    """Rounding noise around 0 is 0, on every machine."""
    return torch.where(values.abs() < 1e-9 * values.abs().max(), 0.0, values).tolist()


def _merged(curves: list[Curve]) -> list[Curve]:
    """One curve where it makes no difference which of the two rewards moves."""
    if [curve.label for curve in curves] != list(ALONG):
        return curves
    both, one, other = curves
    same = str(one).split("|")[1:] == str(other).split("|")[1:]
    return [both, replace(one, label="one moves, the other at 0")] if same else curves


def _reference(spec: Recipe, loss: Loss, curves: list[Curve], gap: Tensor) -> list[Curve]:
    """A well-known curve to compare with, of a constant margin or the hard label; none where it says nothing."""
    if loss.per == "response" or spec.name in ("dpo", "bt") or spec.reward.fixed.get("beta") == 1:
        return []
    margin = 0.0
    if loss.target is not None and loss.target.__name__ == "gamma_po":
        margin = 0.0 if loss.target_options["centred"] else loss.target_options["gamma"]
    elif len(curves) > 1:
        return []
    label = f"constant margin {margin:g}" if margin else "hard label (dpo, bt)"
    known = _curve(compose("head", "constant_margin", "logistic", margin=margin), Scene(f"{label}, to compare"), gap)
    same = all(abs(left - right) < 1e-9 for left, right in zip(curves[0].loss, known.loss, strict=True))
    return [known] if not same and max(curves[0].loss) < 4 * max(known.loss) else []


def _span(spec: Recipe, loss: Loss, scenes: Sequence[Scene]) -> tuple[float, float]:
    """The gaps that show what the recipe does."""
    name, options = loss.objective.__name__, loss.objective_options
    if name == "nll":
        return -100.0, 0.0
    if name == "calibrated":
        return -1.0 / options["beta"], 3.0 / options["beta"]
    if name == "sppo":
        return -options["eta"], 3.0 * options["eta"]
    if loss.target is None or loss.per == "response":
        return -4.0, 4.0
    if loss.target.__name__ == "beta_scale":
        return -15.0 * loss.target_options["beta"], 15.0 * loss.target_options["beta"]
    half = max(6.0, 2.5 * loss.target_options.get("gamma", 0.0)) if loss.target.part.couples == "population" else 6.0
    if not loss.target.part.scores and loss.target.part.couples == "none":
        labels = [{key: _column(value, 1) for key, value in scene.labels.items()} for scene in scenes]
        blank = _scores_of(loss, torch.zeros(1, 2, dtype=torch.float64))
        own = {key: value for key, value in blank.items() if key in loss.needs}
        margins = [float(loss.evaluate(PairScores(**own, **found)).target.margin.abs()) for found in labels]
        half = 2.0 if 0 < max(margins) < 0.75 else max(6.0, 2 * max(margins))
    return -half, half


def _x_label(spec: Recipe, loss: Loss) -> str:
    if loss.objective.__name__ == "nll":
        return "log-probability of the response [nats]"
    if loss.per == "response":
        return "reward minus level [logits]"
    unit = "logits"
    if spec.reward.fixed.get("beta") == 1:
        unit = "nats a token" if loss.reward.__name__ == "per_token" else "nats"
    return f"gap: r(chosen) - r(rejected) [{unit}]"


def _unit(loss: Loss) -> str:
    """The unit of the loss, by the objective's docstring."""
    if loss.target is not None and loss.target.__name__ == "regularised":
        return "squared nats"
    returns = (inspect.getdoc(loss.objective) or "").partition("Returns:")[2]
    found = re.match(r"\s*\[[PR]\] ((?:squared )?(?:nats|logits))", returns)
    return found.group(1) if found else ""


def sample(spec: Recipe) -> Picture:
    """The numbers of a recipe's picture, with its default options.

    Raises:
        NotDrawn: there is nothing to say what should move.
    """
    given: dict[str, dict[str, Any]] = {"target": dict.fromkeys(required(spec), GAMMA)}
    try:
        loss = build_loss(spec, given)
        scenes, note = scenes_of(loss)
        low, high = _span(spec, loss, scenes)
        gap = torch.linspace(low, high, POINTS, dtype=torch.float64)
        if loss.per == "response":
            curves = [_response_curve(loss, gap)]
        else:
            curves = _merged([_curve(loss, scene, gap) for scene in scenes])
        curves += _reference(spec, loss, curves, gap)
    except BadInput as error:
        raise NotDrawn(str(error)) from None
    values = [f"{name} = {GAMMA:g}" for name in required(spec)]
    if values:
        note = f"At {', '.join(values)}. {note}"
    if spec.kind == "policy" and (sft_term(spec)[0] or sft_term(spec)[2] not in (None, "sft_weight")):
        note += " Without the SFT term, which looks at the chosen response alone."
    if len(curves) == 2 and not curves[0].label:
        curves[0] = replace(curves[0], label=spec.name)
    x_label, unit = _x_label(spec, loss), _unit(loss)
    unit = "nats" if unit == "logits" and "[nats" in x_label else unit
    return Picture(spec.name, x_label, unit, curves, " ".join(note.split()))
