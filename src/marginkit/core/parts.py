"""The three decorators: each declares what a function is, and checks shapes at its seam, once per call.

A declaration is a promise that the contract tests hold the function to, in both directions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from marginkit.core.tensors import Labels, PairScores, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput, ShapeError

Per = Literal["pair", "response"]
Couples = Literal["none", "population"]
EVIDENCE = frozenset({"utility_gap", "grade_gap"})


@dataclass(frozen=True, slots=True)
class Part:
    """What a function of the algebra declares of itself.

    Args:
        kind: reward, target or objective.
        per: what one loss value belongs to.
        couples: none, or population: the value of a pair depends on other pairs.
        needs: score fields (rewards), or evidence: utility_gap, grade_gap (targets).
        smooth: the gradient is continuous (objectives).
        shift_invariant: adding a constant to all rewards changes nothing (objectives).
        finite_to: value and gradient are finite for |reward| up to here (objectives).
        uses_prob: the target's `prob` changes the loss (objectives).
        normaliser: what the loss of an optimizer step is divided by.
    """

    kind: Literal["reward", "target", "objective"]
    per: Per = "pair"
    couples: Couples = "none"
    needs: frozenset[str] = frozenset()
    smooth: bool = True
    shift_invariant: bool = True
    finite_to: float = 1e4
    uses_prob: bool = True
    normaliser: Literal["pair", "token"] = "pair"


class RewardFunction(Protocol):
    """Scores -> rewards in logits."""

    part: Part
    __name__: str

    def __call__(self, scores: SequenceScores | PairScores, **options: Any) -> Rewards:
        """Apply it."""
        ...


class TargetFunction(Protocol):
    """Labels and current gap -> what the gap should be."""

    part: Part
    __name__: str

    def __call__(self, labels: Labels, gap: Tensor, population: Population | None = None, **options: Any) -> Target:
        """Apply it."""
        ...


class ObjectiveFunction(Protocol):
    """Rewards and target -> one loss a pair (or a response), unreduced."""

    part: Part
    __name__: str

    def __call__(self, rewards: Rewards, target: Target | None = None, **options: Any) -> Tensor:
        """Apply it."""
        ...


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def reward(*, needs: Iterable[str]) -> Callable[[Callable[..., Rewards]], RewardFunction]:
    """Declare a reward function and the score fields it reads."""

    def declare(function: Callable[..., Rewards]) -> RewardFunction:
        part = Part("reward", needs=frozenset(needs))

        @wraps(function)
        def checked(scores: SequenceScores | PairScores, **options: Any) -> Rewards:
            for name in sorted(part.needs):
                if getattr(scores, name) is None:
                    raise BadInput(f"reward {function.__name__} needs `{name}`, which was not given")
            shapes = {name: getattr(scores, name).shape for name in sorted(part.needs)}
            if len(set(shapes.values())) > 1:
                described = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
                raise ShapeError(f"reward {function.__name__}: shapes differ ({described}); one value a response")
            rewards = function(scores, **options)
            if rewards.value.dtype in (torch.bfloat16, torch.float16):
                rewards = Rewards(rewards.value.float())
            if shapes and rewards.value.shape not in shapes.values():
                raise ShapeError(f"reward {function.__name__} returned {_shape(rewards.value)} from {shapes}")
            return rewards

        checked.part = part  # type: ignore[attr-defined]
        return cast("RewardFunction", checked)

    return declare


def target(
    *, needs: Iterable[str] = (), couples: Couples = "none"
) -> Callable[[Callable[..., Target]], TargetFunction]:
    """Declare a target function, the evidence it needs and whether it looks at other pairs."""

    def declare(function: Callable[..., Target]) -> TargetFunction:
        part = Part("target", couples=couples, needs=frozenset(needs))

        @wraps(function)
        def checked(labels: Labels, gap: Tensor, population: Population | None = None, **options: Any) -> Target:
            if gap.ndim != 1:
                raise ShapeError(f"target {function.__name__}: gap has shape {_shape(gap)}, expected [pair]")
            for name, value in ((column.name, getattr(labels, column.name)) for column in fields(labels)):
                want = [len(gap), 2] if name in ("grade", "utility") else [len(gap)]
                if value is not None and _shape(value) != want:
                    raise ShapeError(
                        f"target {function.__name__}: labels.{name} has shape {_shape(value)}, expected {want}"
                    )
            if part.couples == "population" and population is None:
                raise BadInput(f"target {function.__name__} needs a population of gaps")
            made = function(labels, gap.detach(), population, **options)
            for name in ("margin", "prob", "weight", "scale", "keep"):
                column: Tensor = getattr(made, name)
                if column.shape != gap.shape:
                    raise ShapeError(
                        f"target {function.__name__}: {name} has shape {_shape(column)}, expected {_shape(gap)}"
                    )
                if column.requires_grad:
                    raise BadInput(f"target {function.__name__}: {name} carries a gradient; a target is detached")
            return made

        checked.part = part  # type: ignore[attr-defined]
        return cast("TargetFunction", checked)

    return declare


def objective(
    *,
    per: Per = "pair",
    couples: Couples = "none",
    smooth: bool = True,
    shift_invariant: bool = True,
    finite_to: float = 1e4,
    uses_prob: bool = True,
    normaliser: Literal["pair", "token"] = "pair",
) -> Callable[[Callable[..., Tensor]], ObjectiveFunction]:
    """Declare an objective: what its loss belongs to and how it behaves."""

    def declare(function: Callable[..., Tensor]) -> ObjectiveFunction:
        part = Part(
            "objective",
            per=per,
            couples=couples,
            smooth=smooth,
            shift_invariant=shift_invariant,
            finite_to=finite_to,
            uses_prob=uses_prob,
            normaliser=normaliser,
        )

        @wraps(function)
        def checked(rewards: Rewards, target: Target | None = None, **options: Any) -> Tensor:
            value = rewards.value
            fits = value.ndim == 1 if per == "response" else value.ndim == 2 and value.shape[1] == 2
            if not fits:
                want = "[response]" if per == "response" else "[pair, 2]"
                raise ShapeError(f"objective {function.__name__}: rewards have shape {_shape(value)}, expected {want}")
            if per == "pair":
                if target is None:
                    raise BadInput(f"objective {function.__name__} needs a target")
                for name in ("margin", "prob", "weight", "scale", "keep"):
                    column: Tensor = getattr(target, name)
                    if column.shape != value.shape[:1]:
                        raise ShapeError(
                            f"objective {function.__name__}: target.{name} has shape {_shape(column)}, "
                            f"expected {_shape(value)[:1]}; one value a pair"
                        )
            loss = function(rewards, target, **options)
            if loss.shape != value.shape[:1]:
                raise ShapeError(f"objective {function.__name__} returned {_shape(loss)}, expected {_shape(value)[:1]}")
            return loss

        checked.part = part  # type: ignore[attr-defined]
        return cast("ObjectiveFunction", checked)

    return declare
