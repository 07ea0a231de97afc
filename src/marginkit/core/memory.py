"""What a recipe remembers of the pairs it has seen: the state behind a `Population`.

A memory is told of pairs (`remember`) and shows them (`population`); it changes in no other way. Its state is a dict of
tensors, so that it is saved and restored like weights. All of it lives on the CPU, the same on every rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from marginkit.core.tensors import Population
from marginkit.errors import BadInput

_QUEUE = 2048
_FIRST = 8
DECAY = 0.9


@dataclass(frozen=True, slots=True)
class Seen:
    """Pairs that a recipe has seen, sorted the same way on every rank.

    Args:
        rewards: [N, 2] logits, detached.
        chance: [N] uniform in (0, 1), for targets that sample pairs.
    """

    rewards: Float[Tensor, "seen 2"]
    chance: Float[Tensor, " seen"] | None = None

    @property
    def gaps(self) -> Float[Tensor, " seen"]:
        """[N] reward(chosen) - reward(rejected)."""
        return self.rewards[:, 0] - self.rewards[:, 1]


class Memory:
    """Remembers nothing but how often it was asked, which seeds the chance of the next pass.

    Args:
        seed: of all chance.

    Example:
        >>> memory = Memory()
        >>> memory.remember(Seen(torch.zeros(2, 2)))
        >>> memory.state_dict()
        {'passes': tensor(1)}
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.passes = 0

    def population(self, seen: Seen, *, training: bool) -> Population:
        """What the targets of a pass see: the pairs of the pass, and what is remembered."""
        return Population(rewards=seen.rewards, chance=seen.chance, generator=self.generator())

    def remember(self, seen: Seen) -> None:
        """Take in the pairs of a pass; called in training only."""
        self.passes += 1

    def generator(self) -> torch.Generator:
        """Chance that depends on the seed and the number of passes alone, so a resumed run draws the same."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.passes) % 2**63)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {"passes": torch.tensor(self.passes)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            BadInput: it is the state of another kind of memory.
        """
        if set(state) != set(self.state_dict()):
            raise BadInput(f"the state holds {sorted(state)}, this recipe keeps {sorted(self.state_dict())}")
        self.passes = int(state["passes"])


class Queue(Memory):
    """The gaps of the last 2048 pairs; it begins with 8 standard normal draws, as gamma-PO's does."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.past = torch.randn(_FIRST, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def population(self, seen: Seen, *, training: bool) -> Population:
        """The pairs of the pass, with the queue as their past."""
        return replace(super().population(seen, training=training), past=self.past)

    def remember(self, seen: Seen) -> None:
        """Push the gaps; the oldest fall out."""
        super().remember(seen)
        self.past = torch.cat((self.past, seen.gaps.double().cpu()))[-_QUEUE:]

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {**super().state_dict(), "past": self.past}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.past = state["past"].double().cpu().clone()


class Moments(Memory):
    """Running mean and standard deviation of the gaps, decay 0.9, starting at 0 and uncorrected, as released.

    In training a pass is taken into the running values before they are used.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.mean = torch.zeros((), dtype=torch.float64)
        self.sd = torch.zeros((), dtype=torch.float64)

    def _after(self, seen: Seen) -> tuple[Tensor, Tensor]:
        gaps = seen.gaps.double().cpu()
        if not len(gaps):
            return self.mean, self.sd
        spread = gaps.std() if len(gaps) > 1 else self.sd  # one pair says nothing of the spread
        return DECAY * self.mean + (1 - DECAY) * gaps.mean(), DECAY * self.sd + (1 - DECAY) * spread

    def population(self, seen: Seen, *, training: bool) -> Population:
        """The pairs of the pass, with the running values (in training, those that include the pass)."""
        mean, sd = self._after(seen) if training else (self.mean, self.sd)
        updates = self.passes + int(training and len(seen.rewards) > 0)
        return replace(super().population(seen, training=training), mean=mean, sd=sd, updates=updates)

    def remember(self, seen: Seen) -> None:
        """Take the pass into the running values."""
        if len(seen.rewards):
            self.mean, self.sd = self._after(seen)
            super().remember(seen)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {**super().state_dict(), "mean": self.mean, "sd": self.sd}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.mean, self.sd = state["mean"].double().cpu().clone(), state["sd"].double().cpu().clone()


class Window(Memory):
    """The pairs of the last optimizer steps, frozen during a step: the same for every layout and number of ranks.

    Args:
        size: pairs kept.
        seed: of all chance.

    Example:
        >>> window = Window(2)
        >>> window.remember(Seen(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])))
        >>> window.population(Seen(torch.zeros(0, 2)), training=True).gaps
        tensor([2., 3.], dtype=torch.float64)
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__(seed)
        if size < 1:
            raise BadInput(f"a window of {size} pairs holds nothing; give at least 1")
        self.size = size
        self.rewards = torch.zeros(0, 2, dtype=torch.float64)
        self.chance = torch.zeros(0, dtype=torch.float64)

    def population(self, seen: Seen, *, training: bool) -> Population:
        """The pairs of the window; those of the pass come in when the step is over."""
        return Population(rewards=self.rewards, chance=self.chance, generator=self.generator())

    def remember(self, seen: Seen) -> None:
        """Take in the pairs of a whole step; the oldest fall out."""
        super().remember(seen)
        chance = torch.full((len(seen.rewards),), 0.5) if seen.chance is None else seen.chance
        self.rewards = torch.cat((self.rewards, seen.rewards.double().cpu()))[-self.size :]
        self.chance = torch.cat((self.chance, chance.double().cpu()))[-self.size :]

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {**super().state_dict(), "rewards": self.rewards, "chance": self.chance}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.rewards, self.chance = state["rewards"].double().cpu().clone(), state["chance"].double().cpu().clone()


MEMORIES: Mapping[str, type[Memory]] = {"nothing": Memory, "queue": Queue, "moments": Moments}
