"""A recipe in action: reward, target and objective put together into one callable."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from marginkit.core.composition import check_composition
from marginkit.core.evidence import native_gap, soft_prob
from marginkit.core.memory import MEMORIES, Memory, Seen
from marginkit.core.parts import SCORES, ObjectiveFunction, Per, RewardFunction, TargetFunction
from marginkit.core.rewards import tokens
from marginkit.core.targets import none
from marginkit.core.tensors import Labels, PairScores, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput


@dataclass(frozen=True, slots=True)
class PairLoss:
    """One evaluation of a recipe: the loss and the records it came from, so that logs show what was optimised.

    Args:
        loss: [P] or [R] nats, unweighted; where `target.keep` is false it means nothing.
        rewards: logits.
        target: what the gap should be; None for a loss that has none.
        sft: [P] the weighted SFT term; None if there is none.
    """

    loss: Float[Tensor, " pair"]
    rewards: Rewards
    target: Target | None
    sft: Float[Tensor, " pair"] | None = None

    @property
    def total(self) -> Float[Tensor, " pair"]:
        """[P] target weight * loss + SFT term, before the weights of the data."""
        weighted = self.loss if self.target is None else self.target.weight * self.loss
        return weighted if self.sft is None else weighted + self.sft


@dataclass(eq=False)
class Loss:
    """The loss of a recipe, usable inside any training loop.

    L[pair] = data weight * (target weight * objective(reward(scores), target(labels)) + SFT term), unreduced.

    A recipe that looks at other pairs takes those it is called with, and what it remembers, which moves only in
    training mode (`train()`, the default) and where gradients are enabled.

    Args:
        name: the recipe's name.
        reward: scores -> rewards, with its options.
        target: labels -> target, with its options; None for a loss per response that has none.
        objective: rewards, target -> loss, with its options.
        reward_options: of `reward`.
        target_options: of `target`.
        objective_options: of `objective`.
        sft_weight: weight of the negative log-likelihood of the chosen response, added to the loss of its pair.
        sft_per: token: that term is a mean over the response's tokens; sequence: a sum.
        seed: of all chance.

    Raises:
        BadInput: the parts do not go together; the message says why.

    Example:
        >>> import marginkit as mk
        >>> loss = mk.recipe("mmpo", beta=0.1, gamma=0.3)
        >>> logp, ref = torch.tensor([[-40.0, -66.0]]), torch.tensor([[-42.0, -60.0]])
        >>> loss(mk.PairScores(logp=logp, ref_logp=ref, grade=torch.tensor([[4.0, 1.0]])))
        tensor([0.6023])
    """

    name: str
    reward: RewardFunction
    target: TargetFunction | None
    objective: ObjectiveFunction
    reward_options: Mapping[str, Any] = field(default_factory=dict)
    target_options: Mapping[str, Any] = field(default_factory=dict)
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    sft_weight: float = 0.0
    sft_per: Literal["token", "sequence"] = "token"
    seed: int = 0
    memory: Memory = field(init=False, repr=False)
    training: bool = field(init=False, repr=False, default=True)  # whether calls move the state

    def __post_init__(self) -> None:
        check_composition(self.reward, self.target, self.objective, sft_weight=self.sft_weight)
        if not self.sft_weight >= 0:
            raise BadInput(f"{self.name}: sft_weight must be >= 0, got {self.sft_weight!r}")
        if self.sft_per not in ("token", "sequence"):
            raise BadInput(f"{self.name}: sft_per must be token | sequence, got {self.sft_per!r}")
        remembers = "nothing" if self.target is None else self.target.part.remembers
        self.memory = MEMORIES[remembers](self.seed)

    # -- what it is

    @property
    def per(self) -> Per:
        """What one loss value belongs to: pair or response."""
        return self.objective.part.per

    @property
    def needs(self) -> frozenset[str]:
        """The score fields that have to be given."""
        needed = self.reward.part.needs
        if self.target is not None:
            needed |= self.target.part.scores
            other = self.target.part.population_of
            needed |= frozenset() if other is None else other.part.needs
        if self.sft_weight:
            needed |= {"logp"} | ({"length"} if self.sft_per == "token" else set())
        return needed & SCORES

    @property
    def coupled(self) -> bool:
        """Whether the target looks at a population of other pairs."""
        return self.target is not None and self.target.part.couples == "population"

    def train(self, mode: bool = True) -> Self:
        """Let calls move the state (where gradients are enabled)."""
        self.training = mode
        return self

    def eval(self) -> Self:
        """Freeze the state; targets that are a device of training are left out."""
        return self.train(False)

    # -- the loss

    def __call__(self, scores: PairScores | SequenceScores) -> Float[Tensor, " pair"]:
        """Weighted loss of every pair (of every response for SFT); 0 for a pair that the target leaves out.

        Raises:
            BadInput: a field the recipe needs is missing, or gamma is given beside evidence that makes it idle.
            ShapeError: fields do not fit together.
        """
        moving = self.training and torch.is_grad_enabled()
        population = None
        if isinstance(scores, PairScores):
            self.check_gamma(scores.labels)
            if self.coupled:
                scores = self._with_chance(scores)
                seen = self.seen(scores)
                population = self.memory.population(seen, training=moving)
        result = self.evaluate(scores, population, training=moving)
        if moving and self.coupled:
            self.memory.remember(seen)
        if result.target is None:
            return result.total
        weight = scores.weight if isinstance(scores, PairScores) else None
        total = result.total if weight is None else weight * result.total
        return torch.where(result.target.keep, total, torch.zeros_like(total))

    def evaluate(
        self,
        scores: SequenceScores | PairScores,
        population: Population | None = None,
        *,
        training: bool = True,
    ) -> PairLoss:
        """Loss, rewards and target of every pair (or response), without the weights of the data.

        Args:
            scores: what the model says, and the labels.
            population: of other pairs, for recipes that look at them.
            training: false leaves out what is a device of training (the margin of APLOT, the draw of beta-DPO).
        """
        rewards = self.reward(scores, **self.reward_options)
        if self.target is None:
            return PairLoss(self.objective(rewards, None, **self.objective_options), rewards, None)
        if self.per == "response":
            if isinstance(scores, PairScores):
                raise BadInput(f"{self.name} is a loss per response; give it SequenceScores, not pairs")
            target = self.target(scores.labels, rewards.value, population, **self.target_options)
            return PairLoss(self.objective(rewards, target, **self.objective_options), rewards, target)
        if not isinstance(scores, PairScores):
            raise BadInput(f"{self.name} is a loss per pair; gather the scores with SequenceScores.at(pairs)")
        if self.target.part.training_only and not training:
            target = none(scores.labels, rewards.gap)
        else:
            target = self.target(scores.labels, rewards.gap, population, scores, **self.target_options)
            if "chance" in self.target.part.needs and not training:  # draws no pairs: an evaluation is of all of them
                every = none(scores.labels, rewards.gap)
                target = replace(target, keep=every.keep, weight=every.weight)
        # a left-out pair may lie where an objective overflows, and 0 * inf is NaN in its gradient
        counted = Rewards(torch.where(target.keep[:, None], rewards.value, torch.zeros_like(rewards.value)))
        loss = self.objective(counted, target, **self.objective_options)
        return PairLoss(loss, rewards, target, self._sft_term(scores) if self.sft_weight else None)

    def _sft_term(self, scores: PairScores) -> Tensor:
        if scores.logp is None:
            raise BadInput(f"{self.name}: the SFT term needs `logp`, which was not given")
        if self.sft_per == "sequence":
            return -self.sft_weight * scores.logp[:, 0]
        if scores.length is None:
            raise BadInput(f"{self.name}: the SFT term per token needs `length`, which was not given")
        return -self.sft_weight * (scores.logp / tokens(scores))[:, 0]

    # -- other pairs

    def seen(self, scores: PairScores) -> Seen:
        """What these pairs add to a population: the detached rewards it is made of, ties left out."""
        assert self.target is not None
        part = self.target.part
        if part.population_of is None:
            made = self.reward(scores, **self.reward_options)
        else:
            made = part.population_of(scores, **part.population_options)
        kept = slice(None) if scores.tie is None else ~scores.tie
        return Seen(made.value.detach()[kept], None if scores.chance is None else scores.chance[kept])

    def _with_chance(self, scores: PairScores) -> PairScores:
        assert self.target is not None
        if "chance" not in self.target.part.needs or scores.chance is not None:
            return scores
        found = next(value for name in sorted(SCORES) if (value := getattr(scores, name)) is not None)
        drawn = torch.rand(len(found), generator=self.memory.generator(), dtype=torch.float64)
        return replace(scores, chance=drawn.to(found.device))

    # -- before any forward pass

    def kept(self, labels: Labels, num_pairs: int) -> Tensor:
        """[P] which pairs take part by their labels (of responses for a loss per response), before any forward pass.

        A method that draws pairs by their gaps leaves out more.
        """
        return self._unscored(labels, num_pairs).keep

    def target_gap(self, labels: Labels, num_pairs: int) -> Tensor:
        """[P] logits: how far apart the recipe wants each pair; infinite for a hard label, NaN for a pair left out.

        NaN for every pair where the target depends on the model's own scores.
        """
        if self.per == "response" or self.target is None:
            raise BadInput(f"{self.name} has no pairs")
        part = self.target.part
        if part.couples != "none" or ("margin" in part.makes and part.scores):
            return torch.full((num_pairs,), float("nan"), dtype=torch.float64)
        exact = {
            column.name: value.double() if value.is_floating_point() else value
            for column in fields(labels)
            if (value := getattr(labels, column.name)) is not None
        }
        made = self._unscored(Labels(**exact), num_pairs)
        gap = self.wanted(made)
        return torch.where(made.keep, gap, torch.full_like(gap, float("nan")))

    def wanted(self, target: Target) -> Tensor:
        """[P] logits: the gap of least loss under a target; infinite for a hard label, which is never satisfied.

        NaN for an objective that neither is logistic nor matches a margin: it has no one gap that it wants.
        """
        part = self.objective.part
        if part.matches:
            return target.margin / target.scale
        if not {"prob", "margin"} <= part.uses:
            return torch.full_like(target.margin, float("nan"))
        return (torch.logit(target.prob) + target.margin) / target.scale

    def _unscored(self, labels: Labels, size: int) -> Target:
        """The target with placeholders for what only a forward pass gives: no gaps, no population."""
        if self.target is None:
            raise BadInput(f"{self.name} has no pairs")
        gap = torch.zeros(size, dtype=torch.float64)
        circumstance = {
            name: torch.full((size,), 0.5, dtype=torch.float64)
            for name in ("chance", "progress")
            if getattr(labels, name) is None
        }
        scores = None
        if self.target.part.scores:
            blank = {name: torch.ones(size, 2, dtype=torch.float64) for name in self.target.part.scores - {"hidden"}}
            if "hidden" in self.target.part.scores:
                blank["hidden"] = torch.ones(size, 2, 1, dtype=torch.float64)
            scores = PairScores(**blank)
        nobody = Population(rewards=torch.zeros(0, 2, dtype=torch.float64))
        return self.target(replace(labels, **circumstance), gap, nobody, scores, **self.target_options)

    def check_gamma(self, labels: Labels) -> None:
        """Refuse a gamma that no pair would use.

        Raises:
            BadInput: gamma is given and every pair already has a probability or a gap in logits.
        """
        if self.target is None or "utility_gap" not in self.target.part.needs:
            return
        if self.target_options.get("gamma") is None or (labels.prob is None and native_gap(labels) is None):
            return
        if labels.grade is not None or labels.strength is not None:
            return  # another batch may need it
        native = Labels(prob=labels.prob, target_gap=labels.target_gap, utility=labels.utility, tie=labels.tie)
        try:
            soft_prob(native, gamma=None)
        except BadInput:
            return  # some pair has only grades, or nothing, which the target itself refuses
        raise BadInput(
            f"{self.name}: gamma is given, but every pair already has a probability or a gap in logits, "
            "which needs none; drop gamma, or drop that evidence"
        )

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """The state of a recipe that remembers; empty for the others."""
        return self.memory.state_dict() if self.coupled else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            BadInput: the state belongs to another recipe.
        """
        if not self.coupled:
            if state:
                raise BadInput(f"{self.name} keeps no state, but {sorted(state)} was given")
            return
        self.memory.load_state_dict(state)

    def remember_with(self, memory: Memory) -> Self:
        """Replace the memory, e.g. by a `Window`; returns the same loss."""
        self.memory = memory
        return self
