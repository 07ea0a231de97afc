"""The tensor records that pass between the parts of the algebra.

Shapes: R responses, P pairs; a `[P, 2]` tensor holds (chosen, rejected). A column that no row has is None; a row that
lacks a value which others have holds NaN. Units are logits unless a name says otherwise.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginkit.errors import BadInput, ShapeError

SCORE_FIELDS = ("logp", "ref_logp", "length", "head", "rm_head", "log_collision", "entropy")


@dataclass(frozen=True, slots=True)
class SequenceScores:
    """What a forward pass says of each response.

    Args:
        logp: [R] nats, summed over response tokens.
        ref_logp: [R] the same under the reference.
        length: [R] response tokens.
        head: [R] output of the model's reward head.
        rm_head: [R] output of another, frozen reward model.
        log_collision: [R] nats, sum over response tokens of log sum_v p(v)^2.
        entropy: [R] nats, sum over response tokens of -sum_v p(v) log p(v).
        hidden: [R, d] last hidden state of the response.
        grade: [R] dataset units, for objectives per response; NaN where there is none.
    """

    logp: Float[Tensor, " response"] | None = None
    ref_logp: Float[Tensor, " response"] | None = None
    length: Float[Tensor, " response"] | None = None
    head: Float[Tensor, " response"] | None = None
    rm_head: Float[Tensor, " response"] | None = None
    log_collision: Float[Tensor, " response"] | None = None
    entropy: Float[Tensor, " response"] | None = None
    hidden: Float[Tensor, "response dim"] | None = None
    grade: Float[Tensor, " response"] | None = None

    def at(self, pairs: Int[Tensor, "pair 2"], labels: "Labels | None" = None) -> "PairScores":
        """Gather the scores of both members of every pair."""
        gathered = {
            name: None if (value := getattr(self, name)) is None else value[pairs] for name in (*SCORE_FIELDS, "hidden")
        }
        columns = {} if labels is None else {field.name: getattr(labels, field.name) for field in fields(labels)}
        return PairScores(**gathered, **columns)

    @property
    def labels(self) -> "Labels":
        """What the data says of each response: its grade."""
        return Labels(grade=self.grade)


@dataclass(frozen=True, slots=True)
class Labels:
    """What the data says of each pair.

    Args:
        grade: [P, 2] dataset units; [R] for a target per response.
        utility: [P, 2] logits.
        prob: [P] observed P(the label is right).
        target_gap: [P] logits, where the evidence is one.
        strength: [P] dataset units.
        weight: [P] importance, >= 0.
        tie: [P] the evidence is equal; the order of the pair means nothing.
        chance: [P] uniform in (0, 1), drawn by the shell for targets that sample pairs.
        progress: [P] share of the training done when the pair is seen, for targets with a schedule.
    """

    grade: Float[Tensor, "pair 2"] | Float[Tensor, " response"] | None = None
    utility: Float[Tensor, "pair 2"] | None = None
    prob: Float[Tensor, " pair"] | None = None
    target_gap: Float[Tensor, " pair"] | None = None
    strength: Float[Tensor, " pair"] | None = None
    weight: Float[Tensor, " pair"] | None = None
    tie: Bool[Tensor, " pair"] | None = None
    chance: Float[Tensor, " pair"] | None = None
    progress: Float[Tensor, " pair"] | None = None


@dataclass(frozen=True, slots=True)
class PairScores:
    """`SequenceScores` gathered by pairs, beside the labels: all a recipe's loss needs. Every field is optional.

    Args:
        logp: [P, 2] nats, summed; columns are chosen, rejected. The other scores alike.
        ref_logp: [P, 2] nats.
        length: [P, 2] response tokens.
        head: [P, 2] logits.
        rm_head: [P, 2] logits of another, frozen reward model.
        log_collision: [P, 2] nats.
        entropy: [P, 2] nats.
        hidden: [P, 2, d].
        grade: [P, 2] dataset units.
        utility: [P, 2] logits.
        prob: [P] observed P(the label is right).
        target_gap: [P] logits.
        strength: [P] dataset units.
        weight: [P] importance.
        tie: [P] bool.
        chance: [P] uniform in (0, 1); left out, a recipe that samples pairs draws its own.
        progress: [P] share of the training done, in [0, 1]; for recipes with a schedule.

    Raises:
        ShapeError: the fields do not describe the same pairs.

    Example:
        >>> PairScores(head=torch.zeros(3, 2), prob=torch.zeros(3, 1))
        Traceback (most recent call last):
        marginkit.errors.ShapeError: PairScores.prob has shape [3, 1], expected [3]; one value a pair
    """

    logp: Float[Tensor, "pair 2"] | None = None
    ref_logp: Float[Tensor, "pair 2"] | None = None
    length: Float[Tensor, "pair 2"] | None = None
    head: Float[Tensor, "pair 2"] | None = None
    rm_head: Float[Tensor, "pair 2"] | None = None
    log_collision: Float[Tensor, "pair 2"] | None = None
    entropy: Float[Tensor, "pair 2"] | None = None
    hidden: Float[Tensor, "pair 2 dim"] | None = None
    grade: Float[Tensor, "pair 2"] | None = None
    utility: Float[Tensor, "pair 2"] | None = None
    prob: Float[Tensor, " pair"] | None = None
    target_gap: Float[Tensor, " pair"] | None = None
    strength: Float[Tensor, " pair"] | None = None
    weight: Float[Tensor, " pair"] | None = None
    tie: Bool[Tensor, " pair"] | None = None
    chance: Float[Tensor, " pair"] | None = None
    progress: Float[Tensor, " pair"] | None = None

    def __post_init__(self) -> None:
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        if not given:
            raise BadInput("PairScores is empty; give at least the scores the recipe needs")
        num_pairs = max((value.shape[0] for value in given.values() if value.ndim), default=1)
        for name, value in given.items():
            want = (num_pairs,) if name in _PER_PAIR else (num_pairs, 2)
            got = tuple(value.shape[:2]) if name == "hidden" else tuple(value.shape)
            if got != want:
                fix = "one value a pair" if name in _PER_PAIR else "columns are chosen, rejected"
                raise ShapeError(f"PairScores.{name} has shape {list(value.shape)}, expected {list(want)}; {fix}")
        if self.tie is not None and self.tie.dtype != torch.bool:
            raise BadInput(f"PairScores.tie is {self.tie.dtype}, expected torch.bool; give tie.bool()")

    @property
    def labels(self) -> Labels:
        """The label columns alone."""
        return Labels(**{field.name: getattr(self, field.name) for field in fields(Labels)})

    def detached(self, names: Iterable[str]) -> "PairScores":
        """These score fields alone, without a gradient."""
        return PairScores(**{name: getattr(self, name).detach() for name in names})


_PER_PAIR = frozenset({"prob", "target_gap", "strength", "weight", "tie", "chance", "progress"})


@dataclass(frozen=True, slots=True)
class Rewards:
    """What the model being trained says of responses, in logits.

    Args:
        value: [P, 2] (chosen, rejected) for a pair objective, [R] for a response objective.
    """

    value: Float[Tensor, "pair 2"] | Float[Tensor, " response"]

    @property
    def chosen(self) -> Float[Tensor, " pair"]:
        """[P] reward of the chosen responses."""
        return self.value[:, 0]

    @property
    def rejected(self) -> Float[Tensor, " pair"]:
        """[P] reward of the rejected responses."""
        return self.value[:, 1]

    @property
    def gap(self) -> Float[Tensor, " pair"]:
        """[P] reward(chosen) - reward(rejected)."""
        return self.value[:, 0] - self.value[:, 1]


@dataclass(frozen=True, slots=True)
class Target:
    """What the gap of each pair should be; always detached.

    Args:
        margin: [P] logits of the gap that an objective requires before it is satisfied.
        prob: [P] P(the label is right), the soft target; 1 for a hard label.
        weight: [P] multiplies the loss of the pair.
        scale: [P] multiplies the gap.
        keep: [P] whether the pair takes part at all.
        zero: [P, 2] logits; the reward level that objectives on single rewards measure from. Per response: [R], and
            every column is [R].
    """

    margin: Float[Tensor, " pair"]
    prob: Float[Tensor, " pair"]
    weight: Float[Tensor, " pair"]
    scale: Float[Tensor, " pair"]
    keep: Bool[Tensor, " pair"]
    zero: Float[Tensor, "pair 2"] | Float[Tensor, " response"]

    @classmethod
    def of(
        cls,
        gap: Float[Tensor, " pair"],
        *,
        margin: Float[Tensor, " pair"] | float = 0.0,
        prob: Float[Tensor, " pair"] | float = 1.0,
        weight: Float[Tensor, " pair"] | float = 1.0,
        scale: Float[Tensor, " pair"] | float = 1.0,
        keep: Bool[Tensor, " pair"] | bool = True,
        zero: Float[Tensor, "pair 2"] | Float[Tensor, " response"] | float = 0.0,
    ) -> Self:
        """A target for the pairs of `gap`, on its device: numbers become columns, tensors are detached.

        Raises:
            ShapeError: a column is not one value a pair.
        """
        if gap.ndim != 1:
            raise ShapeError(f"gap has shape {list(gap.shape)}, expected [pair]")

        def column(name: str, value: Tensor | float, dtype: torch.dtype) -> Tensor:
            if not isinstance(value, Tensor):
                return torch.full_like(gap, value, dtype=dtype, requires_grad=False)
            if value.shape != gap.shape:
                raise ShapeError(
                    f"Target.{name} has shape {list(value.shape)}, expected {list(gap.shape)}; one value a pair"
                )
            return value.detach().to(device=gap.device, dtype=dtype)

        if not isinstance(zero, Tensor):
            zero = torch.full((len(gap), 2), zero, dtype=gap.dtype, device=gap.device)
        elif zero.shape not in (gap.shape, (len(gap), 2)):
            raise ShapeError(f"Target.zero has shape {list(zero.shape)}, expected {[len(gap), 2]}")
        return cls(
            margin=column("margin", margin, gap.dtype),
            prob=column("prob", prob, gap.dtype),
            weight=column("weight", weight, gap.dtype),
            scale=column("scale", scale, gap.dtype),
            keep=column("keep", keep, torch.bool),
            zero=zero.detach().to(device=gap.device, dtype=gap.dtype),
        )


@dataclass(frozen=True, slots=True)
class Population:
    """What other pairs look like, handed in by the shell to the methods that declare they need it.

    Empty (N = 0) where nothing has been seen yet; a method then asks what it asks of a pair without neighbours.

    Args:
        rewards: [N, 2] logits of the pairs seen in this pass, or in the last steps; detached.
        past: [M] gaps kept from earlier passes, in logits.
        chance: [N] the uniform numbers of those pairs.
        mean: [] running mean of the gaps, this pass included; None where none is kept.
        sd: [] running standard deviation of the gaps, likewise.
        updates: how many passes the running values have seen; None: enough to need no correction.
        generator: the source of chance, seeded by the shell.
    """

    rewards: Float[Tensor, "seen 2"]
    past: Float[Tensor, " past"] | None = None
    chance: Float[Tensor, " seen"] | None = None
    mean: Float[Tensor, ""] | None = None
    sd: Float[Tensor, ""] | None = None
    updates: int | None = None
    generator: torch.Generator | None = None

    @property
    def gaps(self) -> Float[Tensor, " seen"]:
        """[N] reward(chosen) - reward(rejected)."""
        return self.rewards[:, 0] - self.rewards[:, 1]
