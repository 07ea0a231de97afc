"""The other pairs that a coupled recipe looks at, during training: gathered over ranks, remembered, saved.

microbatch: the pairs of one forward pass, of all ranks, and what the recipe remembers, as its authors released it.
window: the pairs of the last optimizer steps, frozen during a step, so that neither layout nor rank count matters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from marginkit.core.loss import Loss
from marginkit.core.memory import Seen, Window
from marginkit.core.tensors import PairScores, Population
from marginkit.errors import BadInput, RunFailed
from marginkit.models.packing import number_dtype

Mode = Literal["microbatch", "window"]
_FILE = "population.safetensors"
_PAIRS_A_GROUP = 2**20


def check_population(loss: Loss, mode: Mode | None, window: int | None) -> Mode:
    """The mode of a run, refused where it means nothing.

    Raises:
        BadInput: a setting that the recipe does not use.
    """
    if not loss.coupled and (mode is not None or window is not None):
        key = "population" if mode is not None else "population_window"
        batch = loss.target is not None and loss.target.part.couples == "batch"
        why = "transports between the pairs of one pass alone" if batch else "looks at no other pairs"
        raise BadInput(f"train.{key}: recipe {loss.name} {why}; leave it out")
    if mode != "window" and window is not None:
        raise BadInput("train.population_window: is the size of a window; add train.population=window, or leave it out")
    return mode or "microbatch"


class Neighbours:
    """Makes the population of each pass, and remembers its pairs.

    Args:
        loss: a coupled recipe; its memory is replaced by a `Window` in that mode.
        mode: microbatch or window.
        window: pairs in a window.
        accelerator: of the trainer.
    """

    def __init__(self, loss: Loss, mode: Mode, window: int, accelerator: Any) -> None:
        self.loss, self.mode, self.accelerator = loss, mode, accelerator
        if mode == "window":
            loss.remember_with(Window(window, loss.seed))
        self.step: list[Tensor] = []

    def population(self, scores: PairScores, keys: Tensor, *, real: bool, training: bool) -> Population:
        """The population of one pass; in training its pairs are remembered (in a window: when the step is over).

        Args:
            scores: of the pairs.
            keys: [P] a number that names each pair, the same in every layout.
            real: false for a filler, whose pairs count for nothing.
            training: whether the memory moves.
        """
        own = self._rows(scores, keys)[: None if real else 0]
        if self.mode == "window":
            if training:
                self.step.append(own)
            return self.loss.memory.population(_seen(own), training=training)
        seen = _seen(self._gathered(own))
        population = self.loss.memory.population(seen, training=training)
        if training:
            self.loss.memory.remember(seen)
        return population

    def end_step(self) -> None:
        """Let the pairs of the optimizer step into the window, in the same order on every rank."""
        if self.mode == "window":
            rows = self._gathered(torch.cat(self.step))
            self.step = []
            self.loss.memory.remember(_seen(rows))

    def _rows(self, scores: PairScores, keys: Tensor) -> Tensor:
        """[N, 4] of the pairs that take part: key, reward of chosen and rejected, chance."""
        seen = self.loss.seen(scores)
        rewards = seen.rewards.to(number_dtype(seen.rewards.device))  # a key has more digits than float32
        kept = slice(None) if scores.tie is None else ~scores.tie
        chance = torch.full_like(rewards[:, 0], 0.5) if seen.chance is None else seen.chance
        return torch.cat((keys[kept, None].to(rewards), rewards, chance[:, None].to(rewards)), 1)

    def _gathered(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, sorted by key."""
        if self.accelerator.num_processes > 1:
            padded = self.accelerator.pad_across_processes(rows, dim=0, pad_index=float("nan"))
            rows = self.accelerator.gather(padded)
            rows = rows[~torch.isnan(rows[:, 0])]
        return rows[torch.argsort(rows[:, 0], stable=True)]

    def save(self, folder: str | Path) -> None:
        """Write the state beside a checkpoint."""
        save_file({name: value.contiguous() for name, value in self.loss.state_dict().items()}, Path(folder) / _FILE)

    def load(self, folder: str | Path) -> None:
        """Restore the state of a checkpoint.

        Raises:
            RunFailed: the checkpoint has none.
        """
        path = Path(folder) / _FILE
        if not path.is_file():
            raise RunFailed(f"{path}: missing; without it recipe {self.loss.name} cannot go on as it was")
        self.loss.load_state_dict(load_file(path))


def pair_keys(rows: list[int], group_of: Tensor) -> Tensor:
    """[P] a number for every pair of a batch: its group's row, then its place in the group.

    Example:
        >>> pair_keys([3, 5], torch.tensor([0, 0, 1])) - 3 * 2**20
        tensor([      0,       1, 2097152])
    """
    first = torch.searchsorted(group_of, group_of)
    place = torch.arange(len(group_of), device=group_of.device) - first
    return torch.tensor(rows, device=group_of.device)[group_of] * _PAIRS_A_GROUP + place


def _seen(rows: Tensor) -> Seen:
    return Seen(rewards=rows[:, 1:3], chance=rows[:, 3])
