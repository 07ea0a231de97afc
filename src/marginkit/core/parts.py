"""The three decorators: each declares what a function is, and checks shapes at its seam, once per call.

A declaration is a promise that the contract tests hold the function to, in both directions.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from marginkit.core.tensors import SCORE_FIELDS, Labels, PairScores, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput, ShapeError

Per = Literal["pair", "response"]
Couples = Literal["none", "population", "batch"]
Remembers = Literal["nothing", "queue", "moments"]
Asks = Literal["gap", "anchored", "own", "logp"]
SCORES = frozenset({*SCORE_FIELDS, "hidden"})
COLUMNS = tuple(column.name for column in fields(Target))


@dataclass(frozen=True, slots=True)
class Part:
    """What a function of the algebra declares of itself.

    Args:
        kind: reward, target or objective.
        per: what one value belongs to.
        needs: score fields; for targets also evidence (utility_gap, grade_gap) and columns of circumstance (chance).
        reads: label columns that a target uses where they are there.
        anchored: the zero of the reward means something (rewards).
        makes: the columns that a target sets; the others keep their defaults.
        couples: none; population: the target depends on other pairs, handed in; batch: on the pairs of the same call.
        remembers: what of earlier passes a population holds.
        population_of: the reward whose values make the population; None: the recipe's own.
        population_options: its options: beta 1, where it has a beta.
        training_only: the target is a device of training; evaluation uses the bare label.
        ties_match: ties stay, with a margin of 0 to match.
        uses: the target columns that change the loss (objectives).
        matches: the loss is least where the gap equals the margin, not where it exceeds it (objectives).
        asks: what of the rewards an objective needs: gap (a constant added to both changes nothing), anchored (a
            reward whose zero means something), own (the objective fixes the zero itself), logp (log-probabilities).
        smooth: the gradient is continuous (objectives).
        finite_to: value and gradient are finite for |reward| up to here (objectives).
        normaliser: what the loss of an optimizer step is divided by.
    """

    kind: Literal["reward", "target", "objective"]
    per: Per = "pair"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    anchored: bool = False
    makes: frozenset[str] = frozenset()
    couples: Couples = "none"
    remembers: Remembers = "nothing"
    population_of: "RewardFunction | None" = None
    population_options: Mapping[str, float] = field(default_factory=dict)
    training_only: bool = False
    ties_match: bool = False
    uses: frozenset[str] = frozenset()
    matches: bool = False
    asks: Asks = "gap"
    smooth: bool = True
    finite_to: float = 1e4
    normaliser: Literal["pair", "response", "token"] = "pair"

    @property
    def shift_invariant(self) -> bool:
        """Whether a constant added to all rewards changes nothing."""
        return self.asks == "gap"

    @property
    def scores(self) -> frozenset[str]:
        """The score fields among the needs."""
        return self.needs & SCORES


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

    def __call__(
        self,
        labels: Labels,
        gap: Tensor,
        population: Population | None = None,
        scores: PairScores | None = None,
        **options: Any,
    ) -> Target:
        """Apply it; `scores` goes on to the functions that declare a need of them."""
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


def reward(*, needs: Iterable[str], anchored: bool = False) -> Callable[[Callable[..., Rewards]], RewardFunction]:
    """Declare a reward function, the score fields it reads, and whether its zero means something."""

    def declare(function: Callable[..., Rewards]) -> RewardFunction:
        part = Part("reward", needs=frozenset(needs), anchored=anchored)

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
    *,
    needs: Iterable[str] = (),
    reads: Iterable[str] = (),
    makes: Iterable[str] = (),
    per: Per = "pair",
    couples: Couples = "none",
    remembers: Remembers = "nothing",
    population_of: RewardFunction | None = None,
    training_only: bool = False,
    ties_match: bool = False,
) -> Callable[[Callable[..., Target]], TargetFunction]:
    """Declare a target function: what it needs, what it makes, and whether it looks at other pairs.

    A function that declares a need of score fields is called with them, detached, as its fourth argument.
    """

    def declare(function: Callable[..., Target]) -> TargetFunction:
        part = Part(
            "target",
            per=per,
            needs=frozenset(needs),
            reads=frozenset(reads),
            makes=frozenset(makes),
            couples=couples,
            remembers=remembers,
            population_of=population_of,
            population_options=_beta_of_1(population_of),
            training_only=training_only,
            ties_match=ties_match,
        )
        name = function.__name__

        @wraps(function)
        def checked(
            labels: Labels,
            gap: Tensor,
            population: Population | None = None,
            scores: PairScores | None = None,
            **options: Any,
        ) -> Target:
            if gap.ndim != 1:
                raise ShapeError(f"target {name}: gap has shape {_shape(gap)}, expected [{per}]")
            _check_labels(name, labels, len(gap), per)
            if part.couples == "population" and population is None:
                raise BadInput(f"target {name} needs a population of gaps")
            if "chance" in part.needs and labels.chance is None:
                raise BadInput(f"target {name} needs `chance`, one uniform number a pair, which was not given")
            given: tuple[Any, ...] = (labels, gap.detach(), population)
            if part.scores:
                for needed in sorted(part.scores):
                    given_score = None if scores is None else getattr(scores, needed)
                    if given_score is None:
                        raise BadInput(f"target {name} needs `{needed}`, which was not given")
                    if len(given_score) != len(gap):
                        raise ShapeError(
                            f"target {name}: {needed} has shape {_shape(given_score)}, expected {len(gap)} pairs"
                        )
                assert scores is not None
                given += (scores.detached(part.scores),)
            made = function(*given, **options)
            for column in COLUMNS:
                value: Tensor = getattr(made, column)
                want = [len(gap), 2] if column == "zero" and per == "pair" else _shape(gap)
                if _shape(value) != want:
                    raise ShapeError(f"target {name}: {column} has shape {_shape(value)}, expected {want}")
                if value.requires_grad:
                    raise BadInput(f"target {name}: {column} carries a gradient; a target is detached")
            return made

        checked.part = part  # type: ignore[attr-defined]
        return cast("TargetFunction", checked)

    return declare


def _beta_of_1(function: RewardFunction | None) -> dict[str, float]:
    return {"beta": 1.0} if function is not None and "beta" in inspect.signature(function).parameters else {}


def _check_labels(function: str, labels: Labels, size: int, per: Per) -> None:
    for column in fields(labels):
        value: Tensor | None = getattr(labels, column.name)
        want = [size, 2] if column.name in ("grade", "utility") and per == "pair" else [size]
        if value is not None and _shape(value) != want:
            raise ShapeError(f"target {function}: labels.{column.name} has shape {_shape(value)}, expected {want}")


def objective(
    *,
    per: Per = "pair",
    uses: Iterable[str] = (),
    matches: bool = False,
    asks: Asks = "gap",
    smooth: bool = True,
    finite_to: float = 1e4,
    normaliser: Literal["pair", "response", "token"] = "pair",
) -> Callable[[Callable[..., Tensor]], ObjectiveFunction]:
    """Declare an objective: what its loss belongs to, what it reads of the target, and how it behaves."""

    def declare(function: Callable[..., Tensor]) -> ObjectiveFunction:
        part = Part(
            "objective",
            per=per,
            uses=frozenset(uses),
            matches=matches,
            asks=asks,
            smooth=smooth,
            finite_to=finite_to,
            normaliser=normaliser,
        )

        @wraps(function)
        def checked(rewards: Rewards, target: Target | None = None, **options: Any) -> Tensor:
            value = rewards.value
            fits = value.ndim == 1 if per == "response" else value.ndim == 2 and value.shape[1] == 2
            if not fits:
                want = "[response]" if per == "response" else "[pair, 2]"
                raise ShapeError(f"objective {function.__name__}: rewards have shape {_shape(value)}, expected {want}")
            if part.uses or per == "pair":
                if target is None:
                    raise BadInput(f"objective {function.__name__} needs a target")
                for name in COLUMNS:
                    column: Tensor = getattr(target, name)
                    expected = _shape(value) if name == "zero" else _shape(value)[:1]
                    if _shape(column) != expected:
                        raise ShapeError(
                            f"objective {function.__name__}: target.{name} has shape {_shape(column)}, "
                            f"expected {expected}; one value a {per}"
                        )
            loss = function(rewards, target, **options)
            if loss.shape != value.shape[:1]:
                raise ShapeError(f"objective {function.__name__} returned {_shape(loss)}, expected {_shape(value)[:1]}")
            return loss

        checked.part = part  # type: ignore[attr-defined]
        return cast("ObjectiveFunction", checked)

    return declare
