"""What a forward pass gives on request and hands through: log collisions, entropies, hidden states, joined columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import marginkit.models.logprobs as logprobs
import tiny
from marginkit.core.tensors import SequenceScores
from marginkit.errors import BadInput
from marginkit.models.loading import keep_head_precise
from marginkit.models.packing import BY_PRODUCTS, Batch, padded_batch
from marginkit.models.scorer import score, teach

PEAKS = ("log_collision", "entropy")
ENCODERS = ("bert_rm", "modernbert_rm")


def groups_for(family: str) -> list[Any]:
    """Groups of mixed lengths in a family's own tokens."""
    return list(tiny.encode(tiny.graded_groups(5, long=10), tiny.tokenizer(encoder=family in ENCODERS)))


def batch_for(family: str, *wants: str) -> Batch:
    """Rows of mixed lengths, padded together."""
    batch = padded_batch(groups_for(family), pad_id=0)
    assert int(batch["attention_mask"].sum()) < batch["attention_mask"].numel(), "something is padded"
    return batch | ({"wants": wants} if wants else {})


def wanted_of(family: str) -> tuple[str, ...]:
    """What a family gives on request."""
    return BY_PRODUCTS if family in tiny.POLICIES else ("hidden",)


def value_of(scores: SequenceScores) -> Tensor:
    """The scores themselves."""
    value = scores.logp if scores.logp is not None else scores.head
    assert value is not None
    return value


# -------------------------------------------------------------------------------------- log collisions and entropies


@torch.no_grad()
def dense_peaks(model: Any, groups: list[Any]) -> Iterator[tuple[float, float]]:
    """The definitions: the model's own logits of one unpadded row, a float64 softmax, squares or logs, the sums."""
    for group in groups:
        for response in group.response_ids:
            logits = model(input_ids=torch.tensor([group.prompt_ids + response])).logits[0].double()
            p = logits[len(group.prompt_ids) - 1 : -1].softmax(-1)
            assert len(p) == len(response)
            yield float((p * p).sum(-1).log().sum()), -float((p * p.log()).sum())


@pytest.mark.parametrize("rows", [1, 7, None])
@pytest.mark.parametrize("family", tiny.POLICIES)
def test_log_collisions_and_entropies_are_those_of_a_dense_softmax(
    family: str, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2e-6 relative to float64, for chunks of one token, of 7, and all at once; float64, one value a response."""
    if rows is not None:
        monkeypatch.setattr(logprobs, "_LOGITS_CPU", rows * tiny.VOCAB)
    model, batch = tiny.model(family), batch_for(family, *PEAKS)
    scores = score(model, batch)
    uniform = [-math.log(tiny.VOCAB) * float(count) for count in batch["length"]]
    far = 0.001 if family == "gemma2" else 0.1  # its cap on logits holds it near uniform
    for name, wanted in zip(PEAKS, zip(*dense_peaks(model, groups_for(family)), strict=True), strict=True):
        found = getattr(scores, name)
        assert found.dtype == torch.float64
        assert not found.requires_grad
        assert all(abs(abs(w) + u) > far for w, u in zip(wanted, uniform, strict=True)), "not a uniform policy"
        assert found.tolist() == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize("family", tiny.POLICIES)
def test_a_uniform_policy_collides_once_in_v(family: str) -> None:
    """Output weights 0: -log V a token, as log p itself, so that WPO's weight is 1; the entropy is log V."""
    model, batch = tiny.model(family), batch_for(family, *PEAKS)
    with torch.no_grad():
        for weight in model.get_output_embeddings().parameters():
            weight.zero_()
        scores = score(model, batch)
    wanted = (-math.log(tiny.VOCAB) * batch["length"]).tolist()
    assert scores.log_collision.tolist() == pytest.approx(wanted, rel=1e-6)
    assert scores.logp.tolist() == pytest.approx(wanted, rel=1e-6)
    assert (-scores.entropy).tolist() == pytest.approx(wanted, rel=1e-6)


# ------------------------------------------------------------------------------------------------------ hidden states


@torch.no_grad()
def own_hidden(model: Any, family: str) -> Iterator[Tensor]:
    """The last hidden state in the model's own forward of one unpadded row: first token, or where the head reads."""
    for group in groups_for(family):
        for response in group.response_ids:
            ids = torch.tensor([group.prompt_ids + response])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            assert torch.allclose(states, model.base_model(input_ids=ids).last_hidden_state, atol=1e-6), "normed"
            yield states[0, 0 if family in ENCODERS else -1]


@pytest.mark.parametrize("family", tiny.REWARD_MODELS)
def test_hidden_states_are_those_of_the_models_own_forward(family: str) -> None:
    """1e-5, for rows of mixed lengths padded together; float32, without a gradient, while the reward has one."""
    model = tiny.model(family)
    scores = score(model, batch_for(family, "hidden"))
    wanted = torch.stack(list(own_hidden(model, family)))
    assert scores.hidden is not None
    assert scores.hidden.shape == wanted.shape
    assert scores.hidden.dtype == torch.float32
    assert (wanted - wanted[:1]).abs().amax(1)[1:].min() > 0.01, "rows differ"
    assert (scores.hidden - wanted).abs().max() <= 1e-5
    assert not scores.hidden.requires_grad
    assert scores.head is not None
    assert scores.head.requires_grad


@pytest.mark.parametrize("family", [f for f in tiny.REWARD_MODELS if f not in ENCODERS])
@pytest.mark.parametrize("pad_id", [0, 2])
def test_a_decoders_reward_is_its_head_on_that_hidden_state(family: str, pad_id: int) -> None:
    """Exactly, also where padding is the end token and the head therefore reads one token earlier."""
    model = tiny.model(family, pad_token_id=pad_id)
    batch = padded_batch(groups_for(family), pad_id=pad_id) | {"wants": ("hidden",)}
    with torch.no_grad():
        scores = score(model, batch)
        assert torch.equal(model.score(scores.hidden)[:, 0].double(), scores.head)


@pytest.mark.parametrize("family", tiny.REWARD_MODELS)
def test_hidden_states_of_a_half_precision_model_are_float32(family: str) -> None:
    """bfloat16 weights: [R, d] float32, storage of its own rather than a view of all tokens."""
    model, batch = tiny.model(family), batch_for(family, "hidden")
    with torch.no_grad():
        for own in (score(model, batch).hidden, score(keep_head_precise(model.bfloat16()), batch).hidden):
            assert own is not None
            assert own.dtype == torch.float32
            assert own.untyped_storage().nbytes() == own.numel() * 4


@pytest.mark.parametrize("family", tiny.REWARD_MODELS)
def test_hidden_states_take_no_second_pass_and_leave_no_hook(family: str) -> None:
    """The backbone runs once with and without; afterwards, and after a pass that fails, the model is as it was."""
    model, passes = tiny.model(family), []
    model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    for wants in ((), ("hidden",)):
        passes.clear()
        score(model, batch_for(family, *wants))
        assert len(passes) == 1
        assert not model.base_model._forward_hooks
    broken = batch_for(family, "hidden")
    broken["input_ids"] = broken["input_ids"] + 10**6
    with pytest.raises(IndexError):
        score(model, broken)
    assert not model.base_model._forward_hooks


# ---------------------------------------------------------------------------------------------------------- on request


@pytest.mark.parametrize("family", [*tiny.POLICIES, *tiny.REWARD_MODELS])
def test_scores_and_gradients_are_the_same_with_and_without_by_products(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise, in chunks of 7 tokens; without a wish nothing of the kind comes back, with wishes just those."""
    monkeypatch.setattr(logprobs, "_LOGITS_CPU", 7 * tiny.VOCAB)
    found = []
    for wants in ((), wanted_of(family)):
        model = teach(tiny.model(family))
        scores = model(batch=batch_for(family, *wants))
        assert tuple(name for name in BY_PRODUCTS if getattr(scores, name) is not None) == wants
        value = value_of(scores)
        (value * torch.linspace(-1, 1, len(value))).sum().backward()
        found.append((value.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (plain, gradients), (both, others) = found
    assert torch.equal(plain, both)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in gradients.items())
    assert any(value.abs().max() > 1e-6 for value in gradients.values())


@pytest.mark.parametrize(
    ("family", "wish", "message"),
    [
        ("llama", "grade", "the score grade is wanted of a policy, .* gives log_collision, entropy, hidden"),
        ("llama_rm", "log_collision", "the score log_collision is wanted of a reward model, .* gives hidden"),
        ("bert_rm", "entropy", "the score entropy is wanted of a reward model"),
    ],
)
def test_a_wish_that_a_model_cannot_grant_is_refused(family: str, wish: str, message: str) -> None:
    """By name, before anything is computed."""
    with pytest.raises(BadInput, match=message):
        score(tiny.model(family), batch_for(family, wish))


# ----------------------------------------------------------------------------------------------------- passed through


@pytest.mark.parametrize("family", ["llama", "llama_rm", "bert_rm"])
def test_scores_of_frozen_models_and_grades_are_handed_through(family: str) -> None:
    """ref_logp and rm_head where all groups have them, the grade of every response, NaN kept, in order of responses."""
    groups = groups_for(family)
    counts = [len(group.response_ids) for group in groups]
    groups[1] = replace(groups[1], grade=[math.nan] * counts[1])
    ref = [[-10.0 * number - k for k in range(count)] for number, count in enumerate(counts)]
    rm = [[0.25 * number + k for k in range(count)] for number, count in enumerate(counts)]
    rm[2][0] = math.nan
    joined = [replace(g, ref_logp=r, rm_head=h) for g, r, h in zip(groups, ref, rm, strict=True)]
    model = tiny.model(family)
    with torch.no_grad():
        scores = score(model, padded_batch(joined, pad_id=0))
        bare = score(model, padded_batch([*joined[:-1], groups[-1]], pad_id=0))
    wanted = {"ref_logp": ref, "rm_head": rm, "grade": [group.grade for group in groups]}
    for name, lists in wanted.items():
        value = getattr(scores, name)
        assert value.dtype == torch.float64
        assert value.tolist() == pytest.approx([entry for values in lists for entry in values], nan_ok=True)
    assert sum(math.isnan(value) for value in scores.grade.tolist()) == counts[1]
    assert bare.ref_logp is None
    assert bare.rm_head is None
    assert torch.equal(value_of(bare), value_of(scores))


def test_grades_of_responses_and_of_pairs_are_the_same_grades() -> None:
    """`grade` [P, 2] is `response_grade` [R] at the pairs; number columns are of the batch's own type."""
    batch = padded_batch(groups_for("llama"), pad_id=0, dtype=torch.float32)
    assert batch["response_grade"].shape == batch["length"].shape
    assert batch["response_grade"].dtype == torch.float32
    assert torch.equal(batch["response_grade"][batch["pairs"]], batch["grade"])


def test_every_by_product_is_a_score_field() -> None:
    """A recipe asks for it by the same name."""
    assert {field.name for field in fields(SequenceScores)} >= set(BY_PRODUCTS)


@pytest.mark.parametrize("name", BY_PRODUCTS)
def test_a_policy_gives_one_by_product_without_the_others(name: str) -> None:
    """Nothing is given that nobody asked for."""
    with torch.no_grad():
        scores = score(tiny.model("llama"), batch_for("llama", name))
    assert [other for other in BY_PRODUCTS if getattr(scores, other) is not None] == [name]
