"""A recipe in action: reward, target and objective put together into one callable."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from marginkit.core.parts import ObjectiveFunction, RewardFunction, TargetFunction
from marginkit.core.targets import native_gap, soft_prob
from marginkit.core.tensors import Labels, PairScores, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput


@dataclass(frozen=True, slots=True)
class PairLoss:
    """One evaluation of a recipe: the loss and the records it came from, so that logs show what was optimised.

    Args:
        loss: [P] or [R] nats, unweighted; pairs with `target.keep` false do not count.
        rewards: logits.
        target: what the gap should be; None for a loss per response.
    """

    loss: Float[Tensor, " pair"]
    rewards: Rewards
    target: Target | None


@dataclass(frozen=True)
class Loss:
    """The loss of a recipe, usable inside any training loop.

    L[pair] = weight * objective(reward(scores), target(labels)), unreduced.

    Args:
        name: the recipe's name.
        reward: scores -> rewards, with its options.
        target: labels -> target, with its options; None for a loss per response.
        objective: rewards, target -> loss, with its options.
        reward_options: of `reward`.
        target_options: of `target`.
        objective_options: of `objective`.

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

    def __call__(self, scores: PairScores | SequenceScores) -> Float[Tensor, " pair"]:
        """Weighted loss of every pair (of every response for SFT); 0 for a pair that the target leaves out.

        Raises:
            BadInput: a field the recipe needs is missing, or gamma is given beside evidence that makes it idle.
            ShapeError: fields do not fit together.
        """
        if isinstance(scores, PairScores):
            self.check_gamma(scores.labels)
        result = self.evaluate(scores)
        if result.target is None or not isinstance(scores, PairScores):
            return result.loss
        weight = result.target.weight if scores.weight is None else result.target.weight * scores.weight
        return torch.where(result.target.keep, weight * result.loss, torch.zeros_like(result.loss))

    def evaluate(self, scores: SequenceScores | PairScores, population: Population | None = None) -> PairLoss:
        """Loss, rewards and target of every pair (or response), unweighted."""
        rewards = self.reward(scores, **self.reward_options)
        if self.target is None:
            return PairLoss(self.objective(rewards, None, **self.objective_options), rewards, None)
        if not isinstance(scores, PairScores):
            raise BadInput(f"{self.name} is a loss per pair; gather the scores with SequenceScores.at(pairs)")
        target = self.target(scores.labels, rewards.gap, population, **self.target_options)
        return PairLoss(self.objective(rewards, target, **self.objective_options), rewards, target)

    def kept(self, labels: Labels, num_pairs: int) -> Tensor:
        """[P] which pairs take part, before any forward pass; for targets that do not couple pairs."""
        if self.target is None:
            raise BadInput(f"{self.name} has no pairs")
        return self.target(labels, torch.zeros(num_pairs, dtype=torch.float64), None, **self.target_options).keep

    def target_gap(self, labels: Labels, num_pairs: int) -> Tensor:
        """[P] logits: how far apart the recipe wants each pair; infinite for a hard label, NaN for a pair left out."""
        if self.target is None:
            raise BadInput(f"{self.name} has no pairs")
        exact = {
            column.name: value.double() if value.is_floating_point() else value
            for column in fields(labels)
            if (value := getattr(labels, column.name)) is not None
        }
        made = self.target(Labels(**exact), torch.zeros(num_pairs, dtype=torch.float64), None, **self.target_options)
        gap = (torch.logit(made.prob) + made.margin) / made.scale
        return torch.where(made.keep, gap, torch.full_like(gap, float("nan")))

    def check_gamma(self, labels: Labels) -> None:
        """Refuse a gamma that no pair would use.

        Raises:
            BadInput: gamma is given and every pair already has a probability or a gap in logits.
        """
        if self.target_options.get("gamma") is None or "utility_gap" not in self._needs():
            return
        if labels.prob is None and native_gap(labels) is None:
            return
        native = Labels(prob=labels.prob, target_gap=labels.target_gap, utility=labels.utility, tie=labels.tie)
        try:
            soft_prob(native, gamma=None)
        except BadInput:
            return  # some pair has only grades, or nothing, which the target itself refuses
        raise BadInput(
            f"{self.name}: gamma is given, but every pair already has a probability or a gap in logits, "
            "which needs none; drop gamma, or drop that evidence"
        )

    def _needs(self) -> frozenset[str]:
        return self.reward.part.needs | (frozenset() if self.target is None else self.target.part.needs)

    def state_dict(self) -> dict[str, Any]:
        """The state of a stateful recipe; empty for the others."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            BadInput: the state belongs to another recipe.
        """
        if state:
            raise BadInput(f"{self.name} keeps no state, but {sorted(state)} was given")
