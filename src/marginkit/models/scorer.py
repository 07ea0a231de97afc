"""From a batch to scores: the one function behind training, reference scoring and evaluation.

`teach` lets a transformers (or PEFT) model's own forward answer to `model(batch=...)`, so that DDP, FSDP2 and
accelerate see an ordinary forward, and checkpoints stay ordinary transformers checkpoints.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from marginkit.core.tensors import SequenceScores
from marginkit.errors import BadInput
from marginkit.models.loading import core_of
from marginkit.models.logprobs import sum_by_owner, token_logprobs
from marginkit.models.packing import Batch

_PROBE_TOLERANCE = 2e-3


def teach(model: Any) -> Any:
    """Give the model's forward one keyword, `batch=`, that returns `SequenceScores`; returns the same object."""
    core = core_of(model)
    plain = type(core).forward

    def forward(self: Any, *args: Any, batch: Batch | None = None, **kwargs: Any) -> Any:
        # type(self).forward, not a captured bound method: a copied model must run its own weights
        return score(self, batch) if batch is not None else plain(self, *args, **kwargs)

    core.forward = MethodType(forward, core)
    return model


def score(core: Any, batch: Batch) -> SequenceScores:
    """Scores of every response of a batch.

    A causal model gives `logp` (nats, summed over response tokens); a classifier gives `head`, read at the response's
    last token, as transformers itself reads it. Reference scores in the batch are passed through.

    Args:
        core: a transformers model (not a wrapper around one).
        batch: see `packing.Batch`.
    """
    if is_reward_model(core):
        return SequenceScores(head=_head(core, batch), length=batch["length"])
    hidden = core.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    tokens = batch["predict"]
    at = hidden.flatten(0, 1)[batch["predict_at"]]
    output = core.get_output_embeddings()
    transform = _logit_transform(core.config.get_text_config())
    logp = token_logprobs(
        lambda states: transform(output(states)), at, tokens, vocab=core.config.get_text_config().vocab_size
    )
    return SequenceScores(
        logp=sum_by_owner(logp, batch["owner"], len(batch["length"])),
        ref_logp=batch.get("ref_logp"),
        length=batch["length"],
    )


def is_reward_model(core: Any) -> bool:
    """Whether the model is a sequence classifier."""
    return "ForSequenceClassification" in type(core).__name__


def _head(core: Any, batch: Batch) -> Tensor:
    if hasattr(core, "score") and not core.config.is_encoder_decoder:
        hidden = core.base_model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        last = hidden.flatten(0, 1)[batch["read_at"]]
        with torch.autocast(device_type=last.device.type, enabled=False):
            logits = core.score(last.float())
    else:  # an encoder pools in its own way: rows are responses there
        logits = type(core).forward(core, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    head: Tensor = logits[:, 0]
    return head.to(batch["length"].dtype)


def _logit_transform(config: Any) -> Any:
    """What some families do to logits after the output layer."""
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    divide = getattr(config, "logits_scaling", None)

    def transform(logits: Tensor) -> Tensor:
        if scale:
            logits = logits * scale
        if divide:
            logits = logits / divide
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        return logits

    return transform


@torch.no_grad()
def probe(model: nn.Module) -> None:
    """Check on two tiny rows that our way of scoring gives what the model's own forward gives.

    Raises:
        BadInput: it does not; the model does something after its last layer that is not known here.
    """
    core = core_of(model)
    was_training = core.training
    core.eval()
    device = next(core.parameters()).device
    config = core.config.get_text_config()
    high = min(config.vocab_size, 1000)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, high, (2, 8), generator=generator)
    pad = config.pad_token_id
    ids[ids == pad] = 5 if pad != 5 else 6
    at = torch.arange(4, 7)
    batch: Batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "predict_at": torch.cat([at, at + 8]),
        "predict": torch.cat([ids[0, 5:], ids[1, 5:]]),
        "owner": torch.tensor([0, 0, 0, 1, 1, 1]),
        "read_at": torch.tensor([7, 15]),
        "length": torch.tensor([3.0, 3.0]),
    }
    batch = {name: value.to(device) for name, value in batch.items()}
    ours = score(core, batch)
    logits = (
        type(core).forward(core, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    )
    core.train(was_training)
    if ours.head is not None:
        wrong = (ours.head - logits[:, 0]).abs().max()
        scale = logits.abs().max().clamp(min=1.0)
    else:
        assert ours.logp is not None
        log_probs = logits[:, 4:7].log_softmax(-1).gather(-1, batch["input_ids"][:, 5:, None])[..., 0].sum(1)
        wrong = (ours.logp - log_probs).abs().max()
        scale = log_probs.abs().max()
    tolerance = _PROBE_TOLERANCE if next(core.parameters()).dtype == torch.float32 else 0.05
    if not wrong <= tolerance * scale:
        raise BadInput(
            f"model {type(core).__name__}: its own forward and marginkit's scoring differ by {float(wrong):.3g} "
            "on a probe; the model transforms its output in a way that is not supported"
        )
