"""Responses drawn from a policy in transformers: the same seed gives the same draws, whatever shares the batch.

The chance of every token comes from numbers that are fixed beforehand by seed, prompt and sample alone; a token is then
found by inverting the cumulated probabilities. So a draw depends on its batch through the rounding of the logits only.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from marginkit.errors import BadInput, RunFailed
from marginkit.models.loading import core_of
from marginkit.models.packing import number_dtype


@dataclass(frozen=True, slots=True)
class Draws:
    """How responses are drawn.

    Args:
        n: responses a prompt.
        temperature: the logits are divided by it; 0 takes the likeliest token each time.
        top_p: of each step the likeliest tokens that together hold this probability; 1 for all.
        max_new_tokens: a response that has not ended by then is cut.
        seed: another seed gives other draws.

    Raises:
        BadInput: a value out of range, or several greedy responses, which would all be the same.

    Example:
        >>> Draws(n=2, temperature=0.0)
        Traceback (most recent call last):
        marginkit.errors.BadInput: temperature=0: the n=2 responses would all be the same; use n=1, or a temperature > 0
    """

    n: int = 5
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise BadInput(f"n={self.n}: draw at least 1 response a prompt")
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"temperature={self.temperature}: must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p={self.top_p}: must be in (0, 1]; 1 leaves no token out")
        if self.max_new_tokens < 1:
            raise BadInput(f"max_new_tokens={self.max_new_tokens}: allow at least 1")
        if self.seed < 0:
            raise BadInput(f"seed={self.seed}: must be 0 or above")
        if self.temperature == 0 and self.n > 1:
            same = f"the n={self.n} responses would all be the same"
            raise BadInput(f"temperature=0: {same}; use n=1, or a temperature > 0")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One response in tokens.

    Args:
        ids: its tokens, without the one that ended it.
        ended: whether it came to an end of its own; else it was cut at `max_new_tokens`.
    """

    ids: list[int]
    ended: bool


def prompt_seed(seed: int, prompt_ids: Sequence[int]) -> int:
    """Sixty-four bits that belong to a seed and a prompt, wherever in a file the prompt stands."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + array("q", prompt_ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def chances(prompt_ids: Sequence[int], draws: Draws) -> npt.NDArray[np.float64]:
    """`[n, max_new_tokens]` in [0, 1): what decides every token of a prompt's responses.

    Response k reads a stream of its own, so the first of five are those of eight, and a longer limit changes no token
    before the shorter one.

    Example:
        >>> few, many = (chances([1, 2], Draws(n=n, max_new_tokens=3)) for n in (2, 4))
        >>> bool((few == many[:2]).all())
        True
    """
    key = prompt_seed(draws.seed, prompt_ids)
    return np.stack([np.random.default_rng([key, k]).random(draws.max_new_tokens) for k in range(draws.n)])


def choose_tokens(logits: Tensor, chance: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """The next token of every row: the first whose cumulated probability exceeds the row's chance.

    p = softmax(logits / temperature); a token outside the nucleus (likelier ones hold top_p already) gets p = 0;
    token = min {v : sum of p up to v > chance * sum of p}, in the order of the vocabulary.

    Args:
        logits: [row, vocabulary].
        chance: [row], in [0, 1).
        temperature: 0 takes the likeliest token.
        top_p: in (0, 1].

    Returns:
        [row] tokens, distributed as temperature and nucleus sampling say when chance is uniform.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(3, 3)
        >>> choose_tokens(logits, torch.tensor([0.49, 0.6, 0.9]), temperature=1.0, top_p=1.0).tolist()
        [0, 1, 2]
        >>> choose_tokens(logits, torch.tensor([0.49, 0.6, 0.9]), temperature=1.0, top_p=0.6).tolist()
        [0, 0, 1]
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        falling, order = p.sort(dim=-1, descending=True, stable=True)
        outside = falling.cumsum(-1) - falling >= top_p
        p = torch.zeros_like(p).scatter(-1, order, falling.masked_fill(outside, 0.0))
    cumulated = p.cumsum(-1, dtype=number_dtype(p.device))
    point = chance.to(cumulated)[:, None] * cumulated[:, -1:]
    token = torch.searchsorted(cumulated, point, right=True).clamp(max=p.shape[-1] - 1)
    # rounding may carry a point to the very end, behind the last token that can be drawn
    return torch.where(p.gather(-1, token) > 0, token, p.argmax(-1, keepdim=True)).squeeze(-1)


def in_batches(lengths: Sequence[int], draws: Draws, batch_tokens: int) -> list[list[int]]:
    """Prompts of like length together, longest first, so that what does not fit is known at once.

    Args:
        lengths: prompt tokens.
        draws: how many responses of what length.
        batch_tokens: rows x (longest prompt + max_new_tokens) of a batch; one prompt may exceed it.

    Example:
        >>> in_batches([3, 9, 4], Draws(n=1, max_new_tokens=6), 30)
        [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    batches: list[list[int]] = []
    for at in order:
        width = draws.n * ((lengths[batches[-1][0]] if batches else 0) + draws.max_new_tokens)
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
        batches[-1].append(at)
    return batches


@torch.no_grad()
def draw(
    model: Any,
    prompts: Sequence[Sequence[int]],
    draws: Draws,
    *,
    stop: Collection[int],
    pad_id: int,
    batch_tokens: int = 16384,
) -> Iterator[tuple[list[int], list[list[Drawn]]]]:
    """Draw responses batch by batch.

    Nothing but temperature and nucleus shapes the distribution: what a model's own generation settings add (penalties,
    top-k, forced tokens) is set aside, since the draws are to be the policy's.

    Args:
        model: a causal language model, with or without an adapter; it is left in the mode it was in.
        prompts: their tokens.
        draws: how.
        stop: tokens that end a response.
        pad_id: any token; it is masked.
        batch_tokens: of one batch, padding and room for new tokens included.

    Yields:
        Indices of prompts, and n responses for each of them.

    Raises:
        RunFailed: out of memory, or a model whose probabilities are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        for members in in_batches([len(prompt) for prompt in prompts], draws, batch_tokens):
            try:
                made = _draw_batch(core_of(model), [prompts[at] for at in members], draws, sorted(stop), pad_id)
            except torch.OutOfMemoryError:
                raise RunFailed(f"out of memory with batches of {batch_tokens} tokens; lower --batch-tokens") from None
            yield members, made
    finally:
        model.train(was_training)


def _draw_batch(
    core: Any, prompts: list[Sequence[int]], draws: Draws, stop: list[int], pad_id: int
) -> list[list[Drawn]]:
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ids, mask = ids.to(core.device), mask.to(core.device)
    dtype = number_dtype(core.device)
    chance = torch.from_numpy(np.concatenate([chances(prompt, draws) for prompt in prompts])).to(core.device, dtype)
    choice = _Choice(chance, draws, longest)
    known = _prompt_states(core, ids, mask, draws.n)
    settings = GenerationConfig(
        do_sample=False,  # the processor has drawn already
        max_new_tokens=draws.max_new_tokens,
        eos_token_id=stop,
        pad_token_id=pad_id,
    )
    with _plain_settings(core):
        made = core.generate(
            input_ids=ids.repeat_interleave(draws.n, 0),
            attention_mask=mask.repeat_interleave(draws.n, 0),
            generation_config=settings,
            logits_processor=LogitsProcessorList([choice]),
            **({} if known is None else {"past_key_values": known}),
        )
    if not bool(choice.finite):
        raise RunFailed("the policy's next-token probabilities are not finite; was it trained with too high a rate?")
    rows = [_until_stop(row, set(stop)) for row in made[:, longest:].tolist()]
    return [rows[start : start + draws.n] for start in range(0, len(rows), draws.n)]


class _Choice:
    """A logits processor of transformers: leaves to every row the one token that was drawn."""

    def __init__(self, chance: Tensor, draws: Draws, start: int) -> None:
        self.chance, self.draws, self.start = chance, draws, start
        self.finite = torch.ones((), dtype=torch.bool, device=chance.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = min(input_ids.shape[1] - self.start, self.chance.shape[1] - 1)
        self.finite = self.finite & ~scores.isnan().any() & (scores < float("inf")).all()
        draws = self.draws
        token = choose_tokens(scores, self.chance[:, step], temperature=draws.temperature, top_p=draws.top_p)
        return torch.full_like(scores, -float("inf")).scatter(1, token[:, None], 0.0)


def _prompt_states(core: Any, ids: Tensor, mask: Tensor, n: int) -> Any:
    """Keys and values of the prompts but for their last token, computed once for all n; None where it does not pay.

    Models that keep other states than keys and values compute their prompts n times.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if n == 1 or ids.shape[1] == 1:
        return None
    cache: Any = DynamicCache(config=core.config)
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    mask = mask[:, :-1]
    wished = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "logits_to_keep": 1}
    taken = {name: value for name, value in wished.items() if name in signature(core.forward).parameters}
    core(input_ids=ids[:, :-1], attention_mask=mask, past_key_values=cache, use_cache=True, **taken)
    cache.batch_repeat_interleave(n)
    return cache


@contextmanager
def _plain_settings(core: Any) -> Iterator[None]:
    from transformers import GenerationConfig

    own, core.generation_config = core.generation_config, GenerationConfig()
    try:
        yield
    finally:
        core.generation_config = own


def _until_stop(ids: list[int], stop: set[int]) -> Drawn:
    end = next((at for at, token in enumerate(ids) if token in stop), None)
    return Drawn(ids, False) if end is None else Drawn(ids[:end], True)
