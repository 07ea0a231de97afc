"""Operations of a group: by hand, counted by torch as a model runs, and from the attention weights themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

import tiny
from marginkit.cost import Cost, cost_of, measured_peak, pair_tokens
from marginkit.data.encoded import EncodedGroup, Shape
from marginkit.models.attention import model_inputs
from marginkit.models.loading import core_of, is_reward_model
from marginkit.models.packing import Rung, make_batch
from marginkit.models.rungs import choose_rung

SHAPE = Shape(13, (7, 12, 4))
_SIZES = tiny._SIZES | {"num_key_value_heads": 2}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_WINDOW = {"sliding_window": 6, "head_dim": 16}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "num_hidden_layers": 3}
_MORE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, _EXPERTS),
    "qwen2_moe": (
        Qwen2MoeForCausalLM,
        Qwen2MoeConfig,
        {
            "num_experts": 4,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "gpt_oss": (GptOssForCausalLM, GptOssConfig, _EXPERTS | _WINDOW | _MIXED | {"rope_parameters": None}),
    "deepseek": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config,
        {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 12}
        | {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
    ),
    "mistral": (MistralForCausalLM, MistralConfig, _WINDOW),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, _WINDOW | _MIXED),
}


def model(family: str, **changes: Any) -> Any:
    """A small model of any family here."""
    if family not in _MORE:
        return tiny.model(family, **changes)
    made, config, sizes = _MORE[family]
    torch.manual_seed(0)
    return made(config(**_SIZES | sizes | changes)).eval()


def written_out(family: str, **changes: Any) -> Any:
    """The same with attention that shows its weights."""
    own = model(family, **changes)
    own.set_attn_implementation("eager")
    return own


def group(shape: Shape = SHAPE) -> EncodedGroup:
    """A group of random tokens."""
    made = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in torch.randint(5, tiny.VOCAB, (count,), generator=made)]

    absent = [float("nan")] * len(shape.responses)
    bare: dict[str, Any] = {name: [] for name in ("chosen", "rejected", "prob", "target_gap", "strength")}
    responses = [tokens(count) for count in shape.responses]
    return EncodedGroup(0, "0", tokens(shape.prompt), responses, absent, absent, **bare, weight=[], tie=[])


def counted(own: Any, *, training: bool, rung: Rung = "segments", shape: Shape = SHAPE) -> dict[str, int]:
    """What torch counts, by operation, of a group in the body and the output layer: forward, or backward as well."""
    core = core_of(own)
    if rung == "segments":
        assert choose_rung(own, "segments", longest=shape.longest) == "segments"
    batch = make_batch([group(shape)], rung=rung, pad_id=0)
    with FlopCounterMode(display=False) as counter:
        states = core.base_model(**model_inputs(core, batch), use_cache=False).last_hidden_state.flatten(0, 1)
        at = states[batch["read_at" if is_reward_model(core) else "predict_at"]]
        result = at if is_reward_model(core) else core.get_output_embeddings()(at)
        if training:
            result.sum().backward()
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


def linear(counts: dict[str, int]) -> int:
    """Operations of linear layers: their products are mm, or addmm with a bias; those of attention are not."""
    return counts.get("aten.mm", 0) + counts.get("aten.addmm", 0)


def linear_part(cost: Cost, shape: Shape = SHAPE) -> float:
    """The same by the formula."""
    return cost.token * shape.packed + cost.predicted * sum(shape.responses)


def test_a_group_by_hand() -> None:
    """A prompt of 3, responses of 2 and 1, a window of 2 in some layers.

    Pairs: 1 + 2 + 3, 4 + 5, 4 = 19; in the window 1 + 2 + 2, 2 + 2, 2 = 11. Encoder: 25 + 16 = 41; one to each side:
    5 + 2 * 4 + 4 + 2 * 3 = 23.
    """
    shape = Shape(3, (2, 1))
    assert Cost(token=1, predicted=0, attended=0).group(shape) == 6
    assert Cost(token=0, predicted=1, attended=0).group(shape) == 3
    assert Cost(token=0, predicted=0, attended=1).group(shape) == 19
    assert Cost(token=0, predicted=0, attended=0, windowed=1, window=2).group(shape) == 11
    assert Cost(token=100, predicted=1000, attended=1, windowed=10, window=2).group(shape) == 600 + 3000 + 19 + 110
    assert Cost(token=1, predicted=0, attended=0, encoder=True).group(shape) == 9
    assert Cost(token=0, predicted=0, attended=1, encoder=True).group(shape) == 41
    assert Cost(token=0, predicted=0, attended=0, windowed=1, window=1, encoder=True).group(shape) == 23


def test_the_coefficients_of_a_llama_by_hand() -> None:
    """2 layers, d = 32, 48 inside, 304 tokens: a layer has 4 * 32^2 + 3 * 32 * 48 weights."""
    body = 2 * (4 * 32**2 + 3 * 32 * 48)
    own = tiny.model("llama")
    assert cost_of(own, training=False) == Cost(2.0 * body, 2.0 * 32 * 304, 4.0 * 2 * 32)
    assert cost_of(own) == Cost(6.0 * body, 6.0 * 32 * 304, 12.0 * 2 * 32)
    assert cost_of(tiny.model("llama_rm")) == Cost(6.0 * body, 0.0, 12.0 * 2 * 32)


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("gemma3", {}),
    ("mixtral", {"experts_implementation": "eager"}),
    ("qwen2_moe", {"experts_implementation": "eager"}),
    ("deepseek", {"experts_implementation": "eager"}),
    ("gpt_oss", {"experts_implementation": "eager"}),
    ("llama_rm", {}),
    ("qwen2_rm", {}),
    ("gpt2_rm", {}),
]


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize(
    ("family", "changes"), FAMILIES, ids=[f + "-tied" * bool(c.get("tie_word_embeddings")) for f, c in FAMILIES]
)
def test_linear_layers_are_what_torch_counts(family: str, changes: dict[str, Any], training: bool) -> None:
    """Exactly, on packed rows: grouped heads, transposed weights, experts, a tied output layer, a reward head."""
    own = model(family, **changes)
    cost = cost_of(own, training=training)
    assert linear(counted(own, training=training)) == linear_part(cost)
    assert (cost.predicted == 0) == family.endswith("_rm")


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"], ids=["two", "all"])
@pytest.mark.parametrize("family", ["llama", "llama_rm"])
def test_adapters_leave_out_the_gradients_of_frozen_weights(family: str, targets: Any) -> None:
    """Two thirds of a frozen weight; torch saves besides what the first layer would tell the frozen embeddings."""
    task = "CAUSAL_LM" if family == "llama" else "SEQ_CLS"
    own = get_peft_model(tiny.model(family), LoraConfig(r=4, target_modules=targets, task_type=task))
    cost = cost_of(own)
    first = [
        weight.numel()
        for name, weight in own.named_parameters()
        if any(f"layers.0.self_attn.{part}_proj" in name for part in "qkv") and "lora_B" not in name
    ]
    assert len(first) == 3 + (2 if targets != "all-linear" else 3)
    found = linear(counted(own, training=True))
    assert found + 2 * SHAPE.packed * sum(first) == linear_part(cost)
    plain = cost_of(tiny.model(family))
    assert 2 / 3 * plain.token < cost.token < plain.token
    assert cost.predicted == pytest.approx(2 / 3 * plain.predicted)
    assert cost.attended == plain.attended


def test_a_weight_in_four_bits_counts_in_full() -> None:
    """It holds two numbers in a byte, and its own shape beside it."""
    own = tiny.model("llama").requires_grad_(False)
    full = cost_of(own)
    for part in own.model.layers:
        weight = part.mlp.up_proj.weight
        packed = torch.nn.Parameter(torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        packed.quant_state = SimpleNamespace(shape=weight.shape)  # type: ignore[attr-defined]
        part.mlp.up_proj.weight = packed
    assert cost_of(own) == full


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_attention_is_what_torch_counts(training: bool) -> None:
    """Written out, it computes all T x T pairs: two products a layer, and two for each in the backward pass."""
    own = written_out("gpt2")
    shape = Shape(13, (7,))
    found = counted(own, training=training, rung="rows", shape=shape)["aten.bmm"]
    assert found == cost_of(own, training=training).attended * 20**2


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mistral", "gemma3", "gpt_oss", "llama_rm"])
def test_attended_pairs_are_those_with_a_weight(family: str) -> None:
    """Rows of the prompt once, rows of every response: the attention weights above 0 in all layers and heads."""
    own = written_out(family)
    one = group()
    pairs = 0
    for number, response in enumerate(one.response_ids):
        ids = torch.tensor([one.prompt_ids + response])
        with torch.no_grad():
            weights = own(input_ids=ids, output_attentions=True).attentions
        start = len(one.prompt_ids) if number else 0
        pairs += sum(int((layer[0, :, start:] > 0).sum()) for layer in weights)
    cost = cost_of(own, training=False)
    size = getattr(own.config, "head_dim", None) or 8
    assert cost.group(SHAPE) - linear_part(cost) == 4 * size * pairs
    assert (cost.windowed > 0) == (family in ("mistral", "gemma3", "gpt_oss"))
    assert (cost.attended > 0) == (family != "mistral")


@pytest.mark.parametrize("family", ["bert_rm", "modernbert_rm"])
def test_an_encoder_reads_the_prompt_with_every_response(family: str) -> None:
    """Tokens and attended pairs of whole sequences, both ways; ModernBERT's window reaches to both sides."""
    changes: dict[str, Any] = {}
    if family == "modernbert_rm":
        changes = {"local_attention": 12, "layer_types": ["full_attention", "sliding_attention"]}
    own = written_out(family, **changes)
    pairs = found = 0
    for length in SHAPE.responses:
        ids = torch.randint(5, tiny.VOCAB, (1, SHAPE.prompt + length))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            weights = own(input_ids=ids, output_attentions=True).attentions
        pairs += sum(int((layer[0] > 0).sum()) for layer in weights)
        found += linear({str(name): count for name, count in counter.get_flop_counts()["Global"].items()})
    cost = cost_of(own, training=False)
    tokens = sum(SHAPE.prompt + length for length in SHAPE.responses)
    assert cost.group(SHAPE) == cost.token * tokens + 4 * 8 * pairs
    assert (cost.windowed > 0) == (family == "modernbert_rm")
    once = 2 * (32 * 32 + 32) * len(SHAPE.responses)  # the dense layer before the head, and the head, at one token
    if family == "modernbert_rm":
        assert cost.token * tokens == found - once


def test_tokens_of_padded_pairs_are_those_of_a_padded_batch() -> None:
    """Two rows a pair, each with the prompt, as wide as the longer of the two."""
    chosen, rejected = [1, 0, 1, 0], [0, 2, 2, 1]
    one, nan = group(), [math.nan] * 4
    one = replace(
        one, chosen=chosen, rejected=rejected, prob=nan, target_gap=nan, strength=nan, weight=nan, tie=[False] * 4
    )
    laid_out = 0
    for pair in zip(chosen[:3], rejected[:3], strict=True):
        laid_out += make_batch([one.part(pair)], rung="rows", pad_id=0)["input_ids"].numel()
    assert pair_tokens([one], [1, 1, 1, 0]) == laid_out == 2 * (25 + 20 + 25), "the last is left out by the recipe"
    assert pair_tokens([one, one], [0.0, 0.5, 0.0, 0.0] + [0.0] * 4) == 2 * 20


def test_the_peak_is_measured_once_and_draws_nothing() -> None:
    """Positive; the same on asking again; the global generator is where it was."""
    measured_peak.cache_clear()
    before = torch.get_rng_state()
    peak = measured_peak(tiny.CPU)
    assert 1e8 < peak < 1e16
    assert measured_peak(tiny.CPU) == peak
    assert measured_peak.cache_info().hits == 1
    assert torch.equal(torch.get_rng_state(), before)
