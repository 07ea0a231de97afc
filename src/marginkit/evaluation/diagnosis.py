"""What a training run shows, in plain words: signs in its curves and tables, each with its number and what to try.

Nothing is claimed without its number; where a sign is within the noise, nothing is said. The thresholds are judgements,
named below with their reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from marginkit.evaluation.history import History, Points
from marginkit.records import Estimate

Level = Literal["good", "note", "warning", "bad"]
_ORDER = ("bad", "warning", "note", "good")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One sign.

    Args:
        level: good, note, warning or bad.
        topic: what it is about, one word.
        says: what is seen, with its numbers.
        advice: what to try; None where there is nothing to do.
        numbers: the figures behind it.
    """

    level: Level
    topic: str
    says: str
    advice: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the signs are looked for in.

    Args:
        history: what was logged.
        evaluation: estimates on held-out data, by name.
        recipe: its name.
        reward: the function that makes its rewards: implicit, per_token, head ...
        differences: this run - twin, on the same pairs.
        keeps_best: whether the model that was kept is that of the best evaluation, not of the last step.
    """

    history: History
    evaluation: Mapping[str, Estimate]
    recipe: str = ""
    reward: str = ""
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    keeps_best: bool = False

    def course(self, name: str) -> Points:
        """A metric, as it was on the dev split where that was followed, else in training."""
        return self.history.series.get(f"eval_{name}") or self.history.series.get(name, ())


FELL = 1.0
"""Nats that the log-probability of chosen responses falls before it is a sign: less is the noise of a batch."""
FAR_FELL = 30.0
"""Nats from which the fall is a warning: the responses that people chose are then e^30 times less likely."""
OFTEN = 0.5
"""Share of pairs short of their margin at the end, from which the run has not reached what it was asked for."""
LATE = 0.1
"""Share of the training after the best evaluation, from which a worse end is no matter of the last step."""
LOST = 0.005
"""Nats a pair by which the end must be worse than the best evaluation: less is not worth a word."""
WIDER = 1.5
"""How many times wider the gaps of training pairs may spread than those of dev pairs."""
LEANS = 0.6
"""Share of the gradient from the third of pairs with the smallest gaps, from which training is about those."""
ENDS = 5
"""Log lines that count as the beginning, and as the end."""


def diagnose(
    history: History,
    evaluation: Mapping[str, Estimate] | None = None,
    *,
    recipe: str = "",
    reward: str = "",
    differences: Mapping[str, Estimate] | None = None,
    keeps_best: bool = False,
) -> list[Diagnosis]:
    """Look for signs, the gravest first.

    Args:
        history: of the run, `read_history`.
        evaluation: of its held-out pairs, `evaluate`; None if nothing was judged.
        recipe: the recipe's name: what is expected of DPO is not of SimPO.
        reward: the function that makes its rewards (`implicit`, `implicit_mean`, `per_token`, `logp`, `head` ...).
        differences: `compare(run, its hard-label twin)`.
        keeps_best: `train.load_best_model_at_end`.

    Returns:
        What was found; an empty list where nothing stands out.

    Example:
        >>> fell = {"eval_logps/chosen": [(0, -100.0), (50, -114.0)], "eval_rewards/margins": [(0, 0.0), (50, 2.0)]}
        >>> [found] = diagnose(History("step", fell), recipe="dpo", reward="implicit")
        >>> print(found.says)
        The log-probability of chosen responses fell by 14 nats while the gap grew by 2.00 logits: expected under dpo.
    """
    seen = Observed(history, evaluation or {}, recipe, reward, differences or {}, keeps_best)
    found = [one for look in _LOOKS if (one := look(seen)) is not None]
    return sorted(found, key=lambda one: _ORDER.index(one.level))


def ends(points: Points) -> tuple[float, float] | None:
    """Where a curve begins and ends: means of its first and last points, single ones of a short curve.

    Example:
        >>> ends([(0, 1.0), (1, 3.0)])
        (1.0, 3.0)
    """
    if len(points) < 2:
        return None
    # an evaluation is over the whole split: no mean is needed; a log line is a handful of batches
    width = 1 if len(points) < 4 * ENDS else ENDS
    first, last = points[:width], points[-width:]
    return sum(y for _, y in first) / width, sum(y for _, y in last) / width


def _change(seen: Observed, name: str) -> float | None:
    found = ends(seen.course(name))
    return None if found is None else found[1] - found[0]


_HOLDS = (
    "recipe bpo, cal_dpo or dpop holds it, or a term of SFT (objective.sft_weight=0.1); a larger reward.beta moves less"
)
_AVERAGED = ("per_token", "implicit_mean")


def _drift(seen: Observed) -> Diagnosis | None:
    """Both log-probabilities, or both rewards, fall: the question that is asked most."""
    chosen, rejected = _change(seen, "logps/chosen"), _change(seen, "logps/rejected")
    gap = _change(seen, "rewards/margins")
    if chosen is None or gap is None or seen.reward in ("head", ""):
        return None
    numbers = {"chosen": chosen, "gap": gap} | ({"rejected": rejected} if rejected is not None else {})
    if chosen < -FELL and gap > 0:
        both = f" (rejected: {-rejected:.3g})" if rejected is not None and rejected < 0 else ""
        fell = f"The log-probability of chosen responses fell by {-chosen:.3g} nats{both}"
        said = f"{fell} while the gap grew by {gap:.2f} logits"
        why = "expected under a loss that sees differences alone"
        if seen.recipe in ("dpo", "cdpo", "mmpo", "ipo", "rdpo"):
            why = f"expected under {seen.recipe}"
        elif seen.reward in _AVERAGED:
            why = "a reward averaged over tokens pays for short and likely tokens as well as for good ones"
        far = -chosen > FAR_FELL
        return Diagnosis("warning" if far else "note", "drift", f"{said}: {why}.", _HOLDS if far else None, numbers)
    if chosen < -FELL:
        fell = f"The log-probability of chosen responses fell by {-chosen:.3g} nats"
        said = f"{fell} and the gap did not grow ({gap:+.2f} logits)"
        return Diagnosis(
            "bad", "drift", f"{said}: the policy is getting worse.", "a lower train.learning_rate", numbers
        )
    return None


def _learns(seen: Observed) -> Diagnosis | None:
    """The gap, or the loss, never moved."""
    found = ends(seen.course("rewards/margins"))
    loss = ends(seen.history.series.get("loss", ()))
    if found is None or loss is None or len(seen.history.series.get("loss", ())) < ENDS:
        return None
    scale = max(abs(found[0]), abs(found[1]))
    if scale < 0.02 and abs(loss[1] - loss[0]) < 0.01 * max(abs(loss[0]), 1e-9):
        still = f"The gap never grew ({found[1]:.4f} logits at the end)"
        said = f"{still} and the loss did not fall ({loss[0]:.4f} to {loss[1]:.4f})"
        advice = "a higher train.learning_rate, more epochs, or a smaller warm-up"
        numbers = {"gap": found[1], "loss": loss[1]}
        return Diagnosis("bad", "learning", f"{said}: nothing was learnt.", advice, numbers)
    return None


def _reaches(seen: Observed) -> Diagnosis | None:
    """Gap against target: how much of what was asked is given, on held-out pairs."""
    slope = seen.evaluation.get("gap_slope")
    if slope is None or math.isnan(slope.low):
        return None
    numbers = {"slope": slope.value}
    if slope.low > 1:
        said = f"Held-out gaps are {slope.value:.2f} times their targets [{slope.low:.2f}, {slope.high:.2f}]"
        advice = "fewer epochs, or a smaller train.learning_rate"
        return Diagnosis("warning", "target", f"{said}: it overshoots.", advice, numbers)
    if slope.high < 0.5:
        said = f"Held-out gaps are {slope.value:.2f} times their targets [{slope.low:.2f}, {slope.high:.2f}]"
        why = "it has learnt little of how much better, or gamma asks for more than the data can teach"
        advice = "more data or a stronger model; if its confidence is wrong too, a smaller target.gamma"
        if slope.high < 0:
            why = "it puts first what should come second"
            advice = "look at the pairs it is most wrong about: labels may be the wrong way round, there or in training"
            return Diagnosis("warning", "target", f"{said}: {why}.", advice, numbers)
        return Diagnosis("note", "target", f"{said}: {why}.", advice, numbers)
    return None


def _short(seen: Observed) -> Diagnosis | None:
    """Pairs that end short of their margin."""
    found = ends(seen.history.series.get("slack/violation_rate", ()))
    margin = seen.history.last("target/margin")
    if found is None or margin is None or margin == 0 or found[1] < OFTEN:
        return None
    said = f"At the end {found[1]:.0%} of the training pairs are short of their margin (at the start {found[0]:.0%})"
    return Diagnosis("note", "slack", f"{said}.", "more epochs, or a smaller margin", {"violated": found[1]})


def _overfits(seen: Observed) -> Diagnosis | None:
    """The dev split was better before the end."""
    for name, words in (("eval_nll", "NLL"), ("eval_loss", "loss")):
        points = seen.history.series.get(name, ())
        if len(points) < 3:
            continue
        best = min(points, key=lambda point: point[1])
        last = points[-1]
        lost = last[1] - best[1]
        done = seen.history.end or last[0]
        if lost > LOST and last[0] - best[0] > LATE * done:
            was = f"The {words} of the dev split was best at {seen.history.unit} {best[0]:g} ({best[1]:.4f})"
            said = f"{was} and {lost:.4f} worse at the end"
            grew = _grew(seen.history.series.get("eval_rewards/margins", ()), best[0])
            more = f", while the gap grew by {grew:.2f} logits" if grew is not None and grew > 0 else ""
            ece = _grew(seen.history.series.get("eval_calibration/ece", ()), best[0])
            if ece is not None and ece > 0:
                more += f"{' and' if more else ', while'} its ECE rose by {ece:.3f}"
            numbers = {"best_at": best[0], "lost": lost}
            if seen.keeps_best:
                return Diagnosis("note", "overfitting", f"{said}{more}; the best is what was kept.", None, numbers)
            advice = "train.load_best_model_at_end=true keeps the best; fewer epochs; softer targets"
            return Diagnosis("warning", "overfitting", f"{said}{more}: it overfits.", advice, numbers)
        return None
    return None


def _grew(points: Points, since: float) -> float | None:
    """How much a curve rose from a step to its end."""
    start = next((y for x, y in points if x >= since), None)
    return None if start is None else points[-1][1] - start


def _spreads(seen: Observed) -> Diagnosis | None:
    """Gaps of training pairs spread wider than those of pairs never seen."""
    own, dev = seen.history.last("rewards/margins_std"), seen.history.last("eval_rewards/margins_std")
    if own is None or dev is None or dev <= 0 or own / dev < WIDER:
        return None
    wide = f"Gaps of training pairs spread {own / dev:.1f} times as wide as those of dev pairs"
    said = f"{wide} ({own:.2f} and {dev:.2f} logits)"
    advice = "what it knows of training pairs does not carry over: fewer epochs, more data, or train.weight_decay"
    return Diagnosis("note", "overfitting", f"{said}.", advice, {"train": own, "dev": dev})


def _leans(seen: Observed) -> Diagnosis | None:
    """Which pairs the gradient comes from."""
    share, pairs = (_mean(seen.history.series.get(f"{what}/small_gaps", ())) for what in ("gradient", "pairs"))
    large, others = (_mean(seen.history.series.get(f"{what}/large_gaps", ())) for what in ("gradient", "pairs"))
    if share is None or pairs is None or large is None or others is None:
        return None
    for part, of, words in ((share, pairs, "smallest"), (large, others, "largest")):
        if part > LEANS and part > 1.5 * of:
            said = f"{part:.0%} of the gradient comes from the {of:.0%} of pairs with the {words} gaps"
            why = "labels there are the least certain" if words == "smallest" else "the rest has little to say"
            advice = "soft targets (mmpo, mmpo_rm) ask less of them" if words == "smallest" else None
            return Diagnosis("note", "gradient", f"{said}: {why}.", advice, {"gradient": part, "pairs": of})
    return None


def _mean(points: Points) -> float | None:
    return sum(y for _, y in points) / len(points) if points else None


def _twin(seen: Observed) -> Diagnosis | None:
    """Behind the hard-label twin: is gamma too small or too large?"""
    nll = seen.differences.get("nll")
    if nll is None or math.isnan(nll.low):
        return None
    numbers = {"nll": nll.value}
    told = f"{abs(nll.value):.3f} NLL (difference {nll.value:+.3f} [{nll.low:+.3f}, {nll.high:+.3f}])"
    if nll.high < 0:
        return Diagnosis("good", "twin", f"Better than its hard-label twin by {told}.", None, numbers)
    if nll.low <= 0:
        return None
    said = f"Worse than its hard-label twin by {told}"
    own = seen.evaluation.get("temperature")
    if own is not None and not math.isnan(own.high) and own.high < 1:
        why = f"it is not sure enough (temperature {own}): gamma is too small"
        return Diagnosis("warning", "twin", f"{said}; {why}.", "a larger target.gamma, or target.gamma=auto", numbers)
    if own is not None and not math.isnan(own.low) and own.low > 1:
        why = f"it is too sure (temperature {own}): gamma is too large for how long it trains"
        return Diagnosis("warning", "twin", f"{said}; {why}.", "a smaller target.gamma, or earlier stopping", numbers)
    why = "its size of confidence is not the reason: the grades may say less than the order of the pair"
    return Diagnosis("warning", "twin", f"{said}; {why}.", "look at the grades: marginkit check", numbers)


def _chance(seen: Observed) -> Diagnosis | None:
    """No better than a coin on held-out pairs."""
    found = seen.evaluation.get("accuracy")
    if found is None or not found.n or math.isnan(found.low) or not found.low <= 0.5 <= found.high:
        return None
    said = f"On held-out pairs it cannot be told from a coin: accuracy {found} on {found.n} pairs"
    advice = "more pairs to judge on narrow the interval; a stronger start (SFT first) or more steps move it"
    return Diagnosis("warning", "chance", f"{said}.", advice, {"accuracy": found.value})


_LOOKS: tuple[Callable[[Observed], Diagnosis | None], ...] = (
    _learns,
    _drift,
    _overfits,
    _spreads,
    _reaches,
    _short,
    _leans,
    _twin,
    _chance,
)
