"""Tiny random models of many families, and the plain way to score them: what packed rows are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

import tiny
from marginkit.data.encoded import EncodedGroup
from marginkit.models.loading import core_of
from marginkit.models.packing import Batch
from marginkit.models.scorer import score

WINDOW = 8
_BASE = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OLD = {"vocab_size": tiny.VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_OLD |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_KV = _BASE | {"num_key_value_heads": 2}
_HEAD = _KV | {"head_dim": 8}
_WINDOW = _KV | {"sliding_window": WINDOW}
_KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": _KV,
    "Qwen2": _KV,
    "Qwen3": _HEAD,
    "Mistral": _WINDOW,
    "Gemma2": _HEAD | _WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "Gemma3": _HEAD | _WINDOW | _KINDS,
    "Phi3": _KV,
    "Olmo2": _KV,
    "Olmo3": _WINDOW | _KINDS,
    "GPT2": _OLD,
    "GPTNeoX": _BASE,
    "Mixtral": _KV | _EXPERTS,
    "GptOss": _HEAD | _WINDOW | _EXPERTS,
    "Cohere2": _WINDOW | _KINDS | {"logit_scale": 1.0},
    "Starcoder2": _WINDOW,
    "Granite": _KV | {"logits_scaling": 2.0, "attention_multiplier": 0.5},
    "SmolLM3": _KV,
    "OPT": _BASE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
"""Families whose attention can be exchanged; windows are shorter than most sequences."""

BY_MASK: dict[str, dict[str, Any]] = {
    "GPTJ": _OLD | {"rotary_dim": 4},
    "CodeGen": _OLD | {"rotary_dim": 4},
    "Falcon": {name: _BASE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
}
"""Families that take a 4D mask and nothing else."""

WRONG: dict[str, dict[str, Any]] = {
    "Qwen3Next": _HEAD
    | {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "Mamba2": {
        "vocab_size": tiny.VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 1,
        "expand": 2,
        "chunk_size": 8,
    },
    "Lfm2": _KV | {"layer_types": ["conv", "full_attention"]},
    "FalconH1": _HEAD
    | {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "RecurrentGemma": _HEAD
    | {"lru_width": 32, "attention_window_size": WINDOW, "num_hidden_layers": 3, "logits_soft_cap": 1e6},
    "Mpt": {"vocab_size": tiny.VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "Bloom": {"vocab_size": tiny.VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
"""Families that packed rows are not for; most of them would say nothing."""


def build(family: str, *, head: str = "ForCausalLM", seed: int = 0, spread: float = 0.2, **changes: Any) -> Any:
    """A small model of a family, its weights wide enough that what a token sees decides what it predicts.

    Args:
        family: a name in one of the tables above.
        head: ForCausalLM or ForSequenceClassification.
        seed: of the weights.
        spread: their standard deviation.
        changes: of the configuration.
    """
    if family == "GPT2" and head == "ForCausalLM":
        head = "LMHeadModel"
    inside = "Gemma3Text" if family == "Gemma3" else family
    whole = getattr(transformers, (inside if "Classification" in head else family) + head)
    torch.manual_seed(seed)
    model = whole(getattr(transformers, inside + "Config")(**(FAMILIES | BY_MASK | WRONG)[family] | changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, spread)
            elif "bias" in name or "sinks" in name:
                weight.normal_(0.0, 0.1)
    return model.eval()


def group(prompt: int, responses: Sequence[int], *, seed: int = 0, vocab: int = tiny.VOCAB) -> EncodedGroup:
    """Random tokens, without grades and pairs."""
    chance = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, vocab, (count,), generator=chance).tolist() for count in (prompt, *responses)]
    absent = [float("nan")] * len(responses)
    bare: dict[str, Any] = {name: [] for name in ("chosen", "rejected", "prob", "target_gap", "strength")}
    return EncodedGroup(seed, str(seed), ids[0], ids[1:], absent, absent, **bare, weight=[], tie=[])


def groups() -> list[EncodedGroup]:
    """Prompts longer and shorter than the window and of one token; responses too; one group of a single response."""
    return [group(20, (12, 1, 9), seed=1), group(3, (10, 4), seed=2), group(1, (5,), seed=3)]


LONGEST = 32


def sequences(of: Sequence[EncodedGroup]) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt and response, for each response."""
    for one in of:
        for ids in one.response_ids:
            yield one.prompt_ids, ids


def plain_logps(model: Any, of: Sequence[EncodedGroup]) -> Tensor:
    """Log p of each response token: one unpadded forward a sequence, the model's own logits, a dense softmax."""
    found = []
    for prompt, response in sequences(of):
        ids = torch.tensor([prompt + response])
        logp = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        found.append(logp[torch.arange(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt) :]])
    return torch.cat(found)


def token_logps(model: Any, batch: Batch) -> Tensor:
    """Log p of each response token as the product scores a batch: every token its own response."""
    count = len(batch["predict"])
    scores = score(core_of(model), batch | {"owner": torch.arange(count), "length": torch.ones(count)})
    assert scores.logp is not None
    return scores.logp


def plain_heads(model: Any, of: Sequence[EncodedGroup]) -> Tensor:
    """The reward of each response: one unpadded forward a sequence."""
    return torch.stack([model(input_ids=torch.tensor([p + r]), use_cache=False).logits[0, 0] for p, r in sequences(of)])


def gradients(model: Any, values: Tensor) -> dict[str, Tensor]:
    """Gradients of a sum of the values, each weighed at random, by every parameter that is trained."""
    model.zero_grad(set_to_none=True)
    weights = torch.randn(len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (weights * values.double()).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
