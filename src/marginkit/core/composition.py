"""Which reward, target and objective go together, and why the others do not."""

from marginkit.core.parts import ObjectiveFunction, RewardFunction, TargetFunction
from marginkit.errors import BadInput

_ALWAYS = frozenset({"weight", "keep"})  # the shell applies them, whatever the objective
_MEANING = {
    "margin": "a margin",
    "prob": "a soft label",
    "scale": "a scale of the gap",
    "zero": "a reward level",
}


def check_composition(
    reward: RewardFunction, target: TargetFunction | None, objective: ObjectiveFunction, *, sft_weight: float = 0.0
) -> None:
    """Refuse a reward, a target and an objective that do not make sense together.

    Raises:
        BadInput: the two parts, and the reason.

    Example:
        >>> from marginkit.core.objectives import hinge
        >>> from marginkit.core.rewards import head
        >>> from marginkit.core.targets import soft_label
        >>> check_composition(head, soft_label, hinge)
        Traceback (most recent call last):
        marginkit.errors.BadInput: target soft_label makes a soft label, which objective hinge does not read
    """
    of, asks = reward.part, objective.part
    names = f"objective {objective.__name__}"
    if asks.asks == "logp" and reward.__name__ != "logp":
        raise BadInput(f"{names} needs log-probabilities: use reward logp, not {reward.__name__}")
    if asks.asks == "anchored" and not of.anchored:
        raise BadInput(
            f"{names} looks at each reward by itself, but the zero of reward {reward.__name__} means nothing; "
            "use an anchored reward (implicit, implicit_mean) or an objective on the gap"
        )
    if target is None:
        if asks.per == "pair" or asks.uses:
            raise BadInput(f"{names} needs a target")
        return
    if asks.per == "response" and not asks.uses:
        raise BadInput(f"{names} is a loss per response and reads no target, but target {target.__name__} is given")
    made = target.part
    if made.per != asks.per:
        raise BadInput(f"target {target.__name__} is per {made.per}, {names} per {asks.per}")
    for column in sorted(made.makes - _ALWAYS):
        if column not in asks.uses:
            raise BadInput(f"target {target.__name__} makes {_MEANING[column]}, which {names} does not read")
    if made.ties_match and not asks.matches:
        raise BadInput(
            f"target {target.__name__} gives a tie the margin 0 to match, but {names} is least beyond its margin: "
            "a tie would be trained toward a winner; use grade_margin"
        )
    if sft_weight and "head" in of.needs:
        raise BadInput("objective.sft_weight: a reward model has no log-probabilities to train")
    if sft_weight and asks.per == "response":
        raise BadInput("objective.sft_weight: a loss per response has no chosen response")
