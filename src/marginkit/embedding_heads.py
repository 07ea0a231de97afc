"""Small heads on frozen embeddings, trained with any reward-model recipe in seconds on a CPU.

reward = head(z), z = (features - mean) / scale, where each block of features gets variance 1 in all, so that one
number, such as the length, is not lost among a thousand. Several heads that differ in their loss alone are trained side
by side, for the price of little more than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from marginkit.core.loss import Loss, PairLoss
from marginkit.core.tensors import Labels, SequenceScores
from marginkit.embedding_features import Examples, Features
from marginkit.errors import RunFailed
from marginkit.metering import summarise

_LOOKS_AT_TRAIN = 20  # times that training pairs are judged like dev pairs, for the log

METRICS: Mapping[str, float] = {"eval_loss": 1.0, "eval_nll": 1.0, "eval_rewards/accuracies": -1.0}
"""What the best epoch may be chosen by, and whether less (1) or more (-1) of it is better."""


class Heads(nn.Module):
    """G small heads side by side on the same features; each is linear, or has one hidden layer.

    Args:
        dim: of the features.
        hidden: width of the hidden layer (tanh); 0: linear.
        count: G.
        seed: of the first weights of a hidden layer; the same for every head.

    Example:
        >>> heads = Heads(3, count=2)
        >>> heads(torch.ones(4, 3))[0].shape
        torch.Size([2, 4])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, hidden: int = 0, count: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        if hidden:
            drawn = torch.randn(hidden, dim, generator=torch.Generator().manual_seed(seed))
            self.inner = nn.Parameter(drawn.expand(count, -1, -1).clone())
            self.inner_bias = nn.Parameter(torch.zeros(count, hidden))
        self.outer = nn.Parameter(torch.zeros(count, hidden or dim))
        self.bias = nn.Parameter(torch.zeros(count))

    def normalise(self, values: Tensor, blocks: Sequence[int]) -> None:
        """Take mean and scale from these values: each block gets variance 1 in all; a constant one counts nothing."""
        self.mean.copy_(values.mean(0))
        spread = values.var(0, unbiased=False)
        whole = torch.cat([part.sum().expand(len(part)) for part in spread.split(list(blocks))])
        self.scale.copy_(torch.where(whole > 0, whole, torch.full_like(whole, math.inf)).sqrt())

    def normalised(self, values: Tensor) -> Tensor:
        """[R, d] what the heads read of features."""
        return (values - self.mean) / self.scale

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From normalised features rewards [G, R] in logits, and the states [G, R, h] that each head reads last."""
        if not self.hidden:
            return self.outer @ z.T + self.bias[:, None], z.expand(len(self.outer), -1, -1)
        states = torch.tanh(torch.einsum("ghd,rd->grh", self.inner, z) + self.inner_bias[:, None])
        return torch.einsum("gh,grh->gr", self.outer, states) + self.bias[:, None], states

    def only(self, number: int) -> Heads:
        """One of the heads, by itself."""
        alone = Heads(len(self.mean), self.hidden)
        own = {name: value[number : number + 1] for name, value in self.named_parameters()}
        alone.load_state_dict({**own, "mean": self.mean, "scale": self.scale})
        return alone

    @torch.no_grad()
    def rewards(self, values: Tensor) -> Tensor:
        """[G, R] float64 logits.

        Raises:
            RunFailed: a reward is not finite.
        """
        made = torch.cat([self(self.normalised(part))[0] for part in values.split(8192)], 1).double()
        if not bool(torch.isfinite(made).all()):
            raise RunFailed("the head gives a response a reward that is no number; lower train.learning_rate")
        return made


# -- training


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """How heads are made and trained; `marginkit train` takes them from `model.head` and `train`.

    Args:
        hidden: width of one hidden layer; 0: linear.
        features: what a head reads, see `examples_of`.
        learning_rate: of AdamW; falls linearly to 0.
        epochs: passes over the data.
        prompts_per_step: groups of an optimizer step.
        weight_decay: of AdamW.
        betas: of AdamW.
        per: pair, or prompt (the pairs of a group share weight 1).
        keep_best: keep the epoch that is best by `metric` on dev data; else the last.
        metric: see `METRICS`.
        seed: of the order of the groups and of a hidden layer.
    """

    hidden: int = 0
    features: Features = "interaction"
    learning_rate: float = 0.02
    epochs: int = 100
    prompts_per_step: int = 2048
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    per: str = "pair"
    keep_best: bool = True
    metric: str = "eval_loss"
    seed: int = 0


def train_heads(
    train: Examples,
    losses: Sequence[Loss],
    settings: HeadSettings,
    *,
    dev: Examples | None = None,
    log: Callable[[int, dict[str, float]], None] | None = None,
) -> Heads:
    """Train one head a loss, all on the same data in the same order.

    The loss of a step is the main trainer's: sum(share * weight * loss over kept pairs) / sum(share), share 1 a pair,
    or 1 / (kept pairs of the group) with per=prompt.

    Args:
        train: what to learn from.
        losses: reward-model recipes.
        settings: how.
        dev: what the best epoch is chosen on; without it the last epoch is kept.
        log: called after each epoch with its number and the first head's metrics.

    Returns:
        The heads, in the order of the losses.

    Raises:
        BadInput: nothing to train on, or data without what a recipe needs.
        RunFailed: a loss is not finite.
    """
    best, last = best_and_last(train, losses, settings, dev=dev, log=log)
    return best if settings.keep_best else last


def best_and_last(
    train: Examples,
    losses: Sequence[Loss],
    settings: HeadSettings,
    *,
    dev: Examples | None = None,
    log: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Heads, Heads]:
    """`train_heads` under both stopping rules at once: the heads of the best epochs, and of the last.

    Args:
        train: what to learn from.
        losses: reward-model recipes.
        settings: how; `keep_best` is not read.
        dev: what the best epoch is chosen on; without it both are the last.
        log: called after each epoch with its number and the first head's metrics.

    Returns:
        (best, last), heads in the order of the losses.

    Raises:
        BadInput: data without what a recipe needs.
        RunFailed: a loss is not finite.
    """
    made = Heads(train.values.shape[1], settings.hidden, len(losses), settings.seed)
    made.normalise(train.values, train.blocks)
    train = replace(train, values=made.normalised(train.values))
    dev = None if dev is None else replace(dev, values=made.normalised(dev.values))
    rng = np.random.default_rng(settings.seed)
    present = train.columns["group_of"].unique() if losses[0].per == "pair" else train.owner.unique()
    steps = max(1, math.ceil(len(present) / settings.prompts_per_step))
    optimizer = torch.optim.AdamW(
        made.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    # where only gaps count, the gradient of the bias is rounding error, which AdamW would blow up
    zero = torch.tensor([0.0 if loss.objective.part.asks == "gap" else 1.0 for loss in losses])
    total = steps * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0 - done / total)
    best = [math.inf] * len(losses)
    kept = {name: value.detach().clone() for name, value in made.named_parameters()}
    done = 0
    for epoch in range(1, settings.epochs + 1):
        order = present.numpy() if steps == 1 else rng.permutation(present.numpy())
        told = 0.0
        for part in np.array_split(order, steps):
            own = train if steps == 1 else train.take(part.tolist())
            optimizer.zero_grad()
            values = _step_losses(made, own, losses, settings.per, done / max(1, total - 1))
            if not bool(torch.isfinite(values).all()):
                raise RunFailed(f"epoch {epoch}: the loss is {float(values.sum().detach())}; lower the learning rate")
            values.sum().backward()
            made.bias.grad = None if made.bias.grad is None else made.bias.grad * zero
            optimizer.step()
            schedule.step()
            done += 1
            told += float(values[0].detach()) / steps
        line: dict[str, float] = {"loss": told}
        measured = [] if dev is None else _metrics(made, dev, losses, settings.per)
        line |= measured[0] if measured else {}
        for number in range(len(losses)):
            value = METRICS[settings.metric] * measured[number][settings.metric] if measured else math.nan
            better = value < best[number]
            best[number] = value if better else best[number]
            if better or best[number] == math.inf:  # no value to choose by: the last epoch
                for name, now in made.named_parameters():
                    kept[name][number] = now.detach()[number]
        if log is not None:
            if epoch == settings.epochs or epoch % max(1, settings.epochs // _LOOKS_AT_TRAIN) == 0:
                seen = _metrics(made, train, losses[:1], settings.per)[0]
                line |= {name.removeprefix("eval_"): value for name, value in seen.items() if name != "eval_loss"}
            log(epoch, line)
    chosen = Heads(train.values.shape[1], settings.hidden, len(losses))
    chosen.load_state_dict({**kept, "mean": made.mean, "scale": made.scale})
    return chosen, made


def _step_losses(heads: Heads, data: Examples, losses: Sequence[Loss], per: str, progress: float) -> Tensor:
    """[G] the loss of every head on these examples; `progress` is the share of the steps done."""
    evaluated = _evaluated(heads, data, losses, per, progress)
    return torch.stack([counted.sum() / share.sum().clamp(min=1e-12) for _, share, counted in evaluated])


def metrics_of(heads: Heads, data: Examples, losses: Sequence[Loss], per: str) -> list[dict[str, float]]:
    """The metrics of every head on held-out examples, under the names of the main trainer."""
    return _metrics(heads, replace(data, values=heads.normalised(data.values)), losses, per)


@torch.no_grad()
def _metrics(heads: Heads, data: Examples, losses: Sequence[Loss], per: str) -> list[dict[str, float]]:
    found = []
    prob, tie = data.columns["prob"], data.columns["tie"]
    label = torch.where(torch.isnan(prob), torch.ones_like(prob), prob)
    label = torch.where(tie & torch.isnan(prob), torch.full_like(label, math.nan), label)
    for (result, share, counted), loss in zip(_evaluated(heads, data, losses, per, None), losses, strict=True):
        value = result.rewards.value
        own = value[data.columns["pairs"]] if loss.per == "response" else value
        keep = torch.ones_like(label) if loss.per == "response" else (share > 0).double()
        table = {"chosen": own[:, 0], "rejected": own[:, 1], "label": label, "kept": keep}
        table |= {"share": share, "weighted": counted}
        measured = summarise({name: column.numpy() for name, column in table.items()})
        found.append({f"eval_{name}": number for name, number in measured.items()})
    return found


def _evaluated(
    heads: Heads, data: Examples, losses: Sequence[Loss], per: str, progress: float | None
) -> Iterator[tuple[PairLoss, Tensor, Tensor]]:
    """Of every head, on normalised features: rewards and loss, what each pair counts, and share * weight * loss.

    `progress` is the share of the training done; None in evaluation.
    """
    rewards, states = heads(data.values)
    pairs, labels, grade = data.columns["pairs"], data.labels, data.columns["response_grade"]
    training = progress is not None
    labels = replace(labels, progress=torch.full((len(pairs),), progress or 0.0, dtype=torch.float64))
    for number, loss in enumerate(losses):
        hidden = states[number].detach() if "hidden" in loss.needs else None
        scores = SequenceScores(head=rewards[number].double(), hidden=hidden, grade=grade)
        if loss.per == "response":
            keep, owner, weight = loss.kept(Labels(grade=grade), len(grade)), data.owner, torch.ones_like(grade)
            result = loss.evaluate(scores, training=training)
        else:
            keep, owner, weight = loss.kept(labels, len(pairs)), data.columns["group_of"], data.columns["weight"]
            result = loss.evaluate(scores.at(pairs, labels), training=training)
        share = keep.double()
        if per == "prompt":
            inside = torch.zeros(data.groups, dtype=torch.float64).index_add(0, owner, share)
            share = share / inside.clamp(min=1.0)[owner]
        counts = share > 0 if result.target is None else (share > 0) & result.target.keep
        counted = torch.where(counts, share * weight * result.total, torch.zeros_like(result.total))
        yield result, share, counted
