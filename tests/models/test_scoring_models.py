"""Our scores are the model's own: log-probabilities of responses, rewards where transformers reads them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from marginkit.config import resolve
from marginkit.errors import BadInput
from marginkit.models.head import LogitTransform
from marginkit.models.loading import (
    add_lora,
    core_of,
    fresh_model,
    keep_head_precise,
    model_limit,
    without_dropout,
)
from marginkit.models.packing import padded_batch
from marginkit.models.scorer import _logit_transform, probe, score, teach

# ------------------------------------------------------------------------------------------------------- families


def encoded_for(family: str) -> list[Any]:
    """Groups of mixed lengths for a family's tokenizer."""
    encoder = family in ("bert_rm", "modernbert_rm")
    return list(tiny.encode(tiny.graded_groups(5, long=10), tiny.tokenizer(encoder=encoder)))


@torch.no_grad()
def own_scores(model: Any, group: Any) -> list[float]:
    """What the model's own forward says of each response, one unpadded row at a time."""
    found = []
    for response in group.response_ids:
        ids = torch.tensor([group.prompt_ids + response])
        logits = model(input_ids=ids).logits
        if logits.ndim == 2:
            found.append(float(logits[0, 0]))
        else:
            start = len(group.prompt_ids)
            logp = logits[0].double().log_softmax(-1)
            found.append(float(logp[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()))
    return found


@pytest.mark.parametrize("family", [*tiny.POLICIES, *tiny.REWARD_MODELS])
def test_scores_in_a_padded_batch_are_those_of_the_models_own_forward(family: str) -> None:
    """Log-probabilities within 2e-6 relative, rewards within 1e-5, for rows of mixed lengths padded together."""
    model, groups = tiny.model(family), encoded_for(family)
    batch = padded_batch(groups, pad_id=0)
    assert int(batch["attention_mask"].sum()) < batch["attention_mask"].numel(), "something is padded"
    with torch.no_grad():
        scores = score(model, batch)
    wanted = [value for group in groups for value in own_scores(model, group)]
    assert len(set(wanted)) > 10
    if family in tiny.POLICIES:
        assert scores.head is None
        assert scores.logp is not None
        assert scores.logp.tolist() == pytest.approx(wanted, rel=2e-6)
    else:
        assert scores.logp is None
        assert scores.head is not None
        assert scores.head.tolist() == pytest.approx(wanted, abs=1e-5)
    assert scores.length is not None
    assert scores.length.tolist() == [len(ids) for group in groups for ids in group.response_ids]
    probe(model)


def test_gemmas_cap_on_logits_is_applied() -> None:
    """Without the cap the scores differ: the family is a real test of it."""
    model, groups = tiny.model("gemma2"), encoded_for("gemma2")
    with torch.no_grad():
        capped = score(model, padded_batch(groups, pad_id=0)).logp
        model.config.final_logit_softcapping = None
        bare = score(model, padded_batch(groups, pad_id=0)).logp
    assert (capped - bare).abs().max() > 0.1


@pytest.mark.parametrize(
    ("set_by", "config"),
    [
        (LogitTransform(), {}),
        (LogitTransform(softcap=30.0), {"final_logit_softcapping": 30.0}),
        (LogitTransform(scale=0.0625), {"logit_scale": 0.0625}),
        (LogitTransform(scale=0.5), {"lm_head_multiplier": 0.5}),
        (LogitTransform(scale=0.125), {"logits_scaling": 8.0}),
        (LogitTransform(), {"final_logit_softcapping": None, "logit_scale": None, "logits_scaling": None}),
    ],
)
def test_what_families_do_to_logits_is_read_from_their_config(set_by: LogitTransform, config: dict[str, Any]) -> None:
    """Gemma caps, Cohere and Falcon-H1 multiply, Granite divides."""
    assert _logit_transform(SimpleNamespace(**config)) == set_by


@pytest.mark.parametrize("pad_id", [0, 2])
def test_a_reward_is_read_where_transformers_reads_it(pad_id: int) -> None:
    """At the end token; where padding is that same token, as in many saved models, at the last token before it."""
    model, groups = tiny.model("llama_rm", pad_token_id=pad_id), encoded_for("llama_rm")
    with torch.no_grad():
        head = score(model, padded_batch(groups, pad_id=pad_id)).head
    assert head is not None
    assert head.tolist() == pytest.approx([v for group in groups for v in own_scores(model, group)], abs=1e-5)


@pytest.mark.parametrize("family", tiny.POLICIES)
def test_the_probe_refuses_a_model_that_does_something_after_its_output_layer(family: str) -> None:
    """A model class that scales its logits in a way we do not know is refused by name."""
    model = tiny.model(family)

    class Scaled(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            result = super().forward(*args, **kwargs)
            result.logits = 1.5 * result.logits
            return result

    model.__class__ = Scaled
    with pytest.raises(BadInput, match=r"model Scaled: its own forward and marginkit's scoring differ by [\d.e+]+"):
        probe(model)


def test_the_probe_leaves_the_model_as_it_was() -> None:
    """Training mode, weights and gradients are untouched."""
    model = tiny.model("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


# ------------------------------------------------------------------------------------------------------ the forward


def test_a_taught_model_answers_to_a_batch_and_to_all_else_as_before() -> None:
    """`model(batch=...)` gives scores; input_ids give logits; generate works."""
    plain, model = tiny.model("llama"), teach(tiny.model("llama"))
    batch = padded_batch(encoded_for("llama"), pad_id=0)
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        assert torch.equal(model(batch=batch).logp, score(plain, batch).logp)
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        assert torch.equal(
            model.generate(ids, max_new_tokens=4, do_sample=False),
            plain.generate(ids, max_new_tokens=4, do_sample=False),
        )


@pytest.mark.parametrize("lora", [False, True])
def test_a_copy_of_a_taught_model_runs_its_own_weights(lora: bool) -> None:
    """Deepcopy, then change the copy: the copy's scores change, the original's do not."""
    model = tiny.model("llama")
    if lora:
        model = add_lora(model, resolve("dpo", ["model.path=x", "model.lora.r=4"]).model, "policy")
    model = teach(model)
    batch = padded_batch(encoded_for("llama"), pad_id=0)
    with torch.no_grad():
        before = model(batch=batch).logp
        twin = copy.deepcopy(model)
        for weight in twin.parameters():
            weight.mul_(1.5)
        assert (twin(batch=batch).logp - before).abs().max() > 0.1
        assert torch.equal(model(batch=batch).logp, before)
        ids = torch.tensor([[1, 20, 30]])
        assert (twin(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() > 0.1


# ---------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("family", "dropouts"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("gpt2", {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
        ("gpt_neox", {"attention_dropout": 0.5, "hidden_dropout": 0.5}),
        ("bert_rm", {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.5, "classifier_dropout": 0.5}),
        (
            "modernbert_rm",
            {"attention_dropout": 0.5, "mlp_dropout": 0.5, "embedding_dropout": 0.5, "classifier_dropout": 0.5},
        ),
    ],
)
def test_no_dropout_is_left(family: str, dropouts: dict[str, float]) -> None:
    """In training mode the scores are those of evaluation, exactly; before, they were not."""
    model = tiny.model(family, **dropouts)
    batch = padded_batch(encoded_for(family), pad_id=0)

    def scores() -> Tensor:
        with torch.no_grad():
            found = score(model, batch)
        return found.logp if found.logp is not None else found.head

    quiet = scores()
    model.train()
    assert (scores() - quiet).abs().max() > 1e-3, "there was dropout"
    without_dropout(model)
    assert torch.equal(scores(), scores())
    assert (scores() - quiet).abs().max() < 1e-5


def test_a_reward_head_stays_in_float32() -> None:
    """bfloat16 weights: the head is float32, the rest is not, and the reward is not rounded to bfloat16."""
    model = keep_head_precise(tiny.model("llama_rm").bfloat16())
    assert model.score.weight.dtype == torch.float32
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    with torch.no_grad():
        head = score(model, padded_batch(encoded_for("llama_rm"), pad_id=0)).head
    assert (head != head.bfloat16().double()).any()


def test_a_fresh_model_is_the_same_from_the_same_seed() -> None:
    """Bitwise; another seed gives another."""
    own = tiny.tokenizer()
    config = resolve("bt", ["model.path=fresh", "model.fresh.hidden=16", "model.fresh.layers=1"]).model.fresh
    first, same, other = (fresh_model(config, "reward_model", own, seed=seed) for seed in (1, 1, 2))
    pairs = list(zip(first.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    assert model_limit(first, own) == config.max_length


def test_the_core_of_a_peft_model_is_the_transformers_model() -> None:
    """The wrapper's insides; a bare model is its own."""
    model = tiny.model("llama")
    assert core_of(model) is model
    wrapped = add_lora(model, resolve("dpo", ["model.path=x", "model.lora.r=4"]).model, "policy")
    assert type(core_of(wrapped)).__name__ == "LlamaForCausalLM"
