"""Drawing tokens: against a slow loop, against the distribution itself, and the same whatever shares the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from marginkit import decoding
from marginkit.decoding import Drawn, Draws, chances, choose_tokens, draw, in_batches
from marginkit.errors import BadInput, RunFailed

PROMPTS = [[1, *np.random.default_rng(k).integers(5, 300, k).tolist()] for k in (3, 12, 7, 0, 20)]
STOP = (2, *range(40, 60))  # so many that some responses end, and some are cut


def slow_choice(logits: Sequence[float], chance: float, temperature: float, top_p: float) -> int:
    """Nucleus sampling in plain Python: sort, cut, walk through the vocabulary."""
    top = max(logits)
    p = [math.exp((value - top) / temperature) for value in logits]
    p = [value / math.fsum(p) for value in p]
    kept: set[int] = set()
    held = 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        if held >= top_p:
            break
        kept.add(token)
        held += p[token]
    point, walked = chance * held, 0.0
    for token in range(len(p)):
        if token in kept:
            walked += p[token]
            if walked > point:
                return token
    raise AssertionError


@given(
    st.lists(st.floats(-6, 6), min_size=2, max_size=12, unique=True),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.2, 3),
    st.floats(0.05, 1),
)
def test_a_token_is_that_of_the_slow_reference(
    logits: list[float], chance: float, temperature: float, top_p: float
) -> None:
    """Equal but where chance or nucleus falls within a rounding of a border: then a hair to either side is."""
    found = choose_tokens(torch.tensor([logits]), torch.tensor([chance]), temperature=temperature, top_p=top_p).item()
    single = torch.tensor(logits).tolist()  # as float32 holds them
    near = {
        slow_choice(single, min(max(chance + dc, 0.0), 1 - 1e-9), temperature, min(max(top_p + dp, 1e-6), 1.0))
        for dc in (-1e-5, 0.0, 1e-5)
        for dp in (-1e-5, 0.0, 1e-5)
    }
    assert found in near


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.95), (2.0, 0.5)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    """Frequencies of 20,000 draws against softmax(logits / T) cut to its nucleus: a chi-square that chance passes."""
    from scipy.stats import chi2

    logits = torch.randn(30, generator=torch.Generator().manual_seed(0))
    chance = torch.from_numpy(np.random.default_rng(1).random(20_000))
    found = choose_tokens(logits.expand(20_000, -1), chance, temperature=temperature, top_p=top_p)
    p = (logits.double() / temperature).softmax(0).numpy()
    order = np.argsort(-p)
    inside = np.cumsum(p[order]) - p[order] < top_p
    wanted = np.zeros(30)
    wanted[order[inside]] = p[order[inside]] / p[order[inside]].sum()
    counts = np.bincount(found.numpy(), minlength=30)
    assert counts[wanted == 0].sum() == 0
    expected = 20_000 * wanted[wanted > 0]
    statistic = ((counts[wanted > 0] - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(0.999, len(expected) - 1)


def test_limits_of_a_choice() -> None:
    """Temperature 0, a tiny nucleus and a tiny temperature take the likeliest; no chance draws what has no chance."""
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(2))
    chance = torch.linspace(0, 1 - 2**-53, 50, dtype=torch.float64)
    likeliest = logits.argmax(-1)
    for temperature, top_p in ((0.0, 1.0), (1.0, 1e-9), (1e-4, 1.0)):
        assert torch.equal(choose_tokens(logits, chance, temperature=temperature, top_p=top_p), likeliest)
    barred = torch.full((50, 20), -math.inf)
    barred[:, [0, 19]] = 0.0
    edges = torch.where(chance < 0.5, 0, 19)
    assert torch.equal(choose_tokens(barred, chance, temperature=1.0, top_p=1.0), edges)
    barred[:, 19] = -math.inf  # the end of the vocabulary cannot be drawn, not even by the greatest chance
    assert not choose_tokens(barred, chance, temperature=1.0, top_p=1.0).any()


def drawn(model: Any, draws: Draws, batch_tokens: int = 10**6, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[Any]:
    """The draws of every prompt, in the order of the prompts."""
    found: dict[int, list[Drawn]] = {}
    for members, made in draw(model, prompts, draws, stop=STOP, pad_id=0, batch_tokens=batch_tokens):
        found |= dict(zip(members, made, strict=True))
    return [found[at] for at in range(len(prompts))]


def slow_drawn(model: Any, draws: Draws) -> list[list[Drawn]]:
    """One prompt, one sample, one token at a time, the whole text computed anew for each."""
    found = []
    for prompt in PROMPTS:
        rows = []
        for row in chances(prompt, draws):
            ids: list[int] = []
            ended = False
            for chance in row:
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1:]
                token = int(
                    choose_tokens(logits, torch.tensor([chance]), temperature=draws.temperature, top_p=draws.top_p)
                )
                if token in STOP:
                    ended = True
                    break
                ids.append(token)
            rows.append(Drawn(ids, ended))
        found.append(rows)
    return found


@pytest.mark.parametrize("family", tiny.POLICIES)
def test_draws_do_not_depend_on_the_batch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded together, one by one, prompts computed once or n times, and by a loop without any cache: the same."""
    model = tiny.model(family)
    draws = Draws(n=3, temperature=1.0, top_p=0.95, max_new_tokens=10, seed=1)
    together = drawn(model, draws)
    assert together == drawn(model, draws, batch_tokens=1)
    assert together == slow_drawn(model, draws)
    assert len({tuple(one.ids) for responses in together for one in responses}) > 10
    assert {one.ended for responses in together for one in responses} == {True, False}
    monkeypatch.setattr(decoding, "_prompt_states", lambda *_: None)
    assert together == drawn(model, draws)


def test_draws_belong_to_seed_and_prompt() -> None:
    """Fewer samples, a shorter limit and other prompts beside it change none of the others; another seed does."""
    model = tiny.model("llama")
    draws = Draws(n=4, temperature=1.0, top_p=1.0, max_new_tokens=8, seed=3)
    whole = drawn(model, draws)
    assert [two[:2] for two in whole] == drawn(model, Draws(2, 1.0, 1.0, 8, 3))
    short = drawn(model, Draws(4, 1.0, 1.0, 5, 3))
    assert [[one.ids[:5] for one in row] for row in whole] == [[one.ids for one in row] for row in short]
    assert drawn(model, draws, prompts=PROMPTS[2:3]) == whole[2:3]
    assert drawn(model, Draws(4, 1.0, 1.0, 8, 4)) != whole


def test_greedy_is_the_likeliest_token_each_time() -> None:
    """Against a loop of argmax."""
    model = tiny.model("qwen2")
    draws = Draws(n=1, temperature=0.0, max_new_tokens=6)
    assert drawn(model, draws) == slow_drawn(model, draws)


def test_a_model_is_left_as_it_was() -> None:
    """Mode, generation settings, random numbers; and the model's own penalties and top-k do not shape the draws."""
    model = tiny.model("llama")
    draws = Draws(n=2, temperature=1.0, max_new_tokens=6)
    wanted = drawn(model, draws)
    model.generation_config.repetition_penalty, model.generation_config.top_k = 50.0, 1
    model.generation_config.forced_eos_token_id = 2
    own = model.generation_config
    model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert drawn(model, draws) == wanted
    assert model.training
    assert model.generation_config is own
    assert torch.equal(before, torch.get_rng_state())


def test_batches_hold_every_prompt_once_within_the_budget() -> None:
    """Longest first; one prompt alone may exceed the budget."""
    lengths = np.random.default_rng(0).integers(1, 90, 200).tolist()
    draws = Draws(n=3, max_new_tokens=20)
    batches = in_batches(lengths, draws, 1500)
    assert sorted(at for batch in batches for at in batch) == list(range(200))
    for batch in batches:
        assert len(batch) * 3 * (max(lengths[at] for at in batch) + 20) <= 1500
        assert lengths[batch[0]] == max(lengths[at] for at in batch)
    assert [lengths[batch[0]] for batch in batches] == sorted((lengths[b[0]] for b in batches), reverse=True)
    assert in_batches([100, 100], draws, 1) == [[0], [1]]
    assert in_batches([], draws, 100) == []


def test_probabilities_that_are_not_finite_stop_the_run() -> None:
    """A broken policy is named, not sampled from."""
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunFailed, match="not finite"):
        drawn(model, Draws(n=1, max_new_tokens=2))


def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """--batch-tokens, with its value."""

    def full(*_: Any) -> Iterator[Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoding, "_draw_batch", full)
    with pytest.raises(RunFailed, match="batches of 64 tokens; lower --batch-tokens"):
        drawn(tiny.model("llama"), Draws(), 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0: draw at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": 0.0}, "temperature=0: the n=5 responses would all be the same"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_draws_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    """One line with the rule."""
    with pytest.raises(BadInput, match=message):
        Draws(**options)
