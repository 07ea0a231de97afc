"""From a batch to scores: the one function behind training, reference scoring and evaluation.

`teach` lets a transformers (or PEFT) model's own forward answer to `model(batch=...)`, so that DDP, FSDP2 and
accelerate see an ordinary forward, and checkpoints stay ordinary transformers checkpoints.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from marginkit.core.tensors import SequenceScores
from marginkit.errors import BadInput
from marginkit.models.attention import model_inputs
from marginkit.models.head import LogitTransform
from marginkit.models.loading import core_of, is_reward_model
from marginkit.models.logprobs import sum_by_owner, token_logprobs
from marginkit.models.packing import BY_PRODUCTS, Batch

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
    last token, as transformers itself reads it. Lengths, grades and the scores of frozen models (`ref_logp`, `rm_head`)
    in the batch are passed through.

    What `batch["wants"]` names comes out of the same pass, without a gradient, and costs nothing unless named:

    log_collision: of a policy, [R] nats, log sum_v p(v)^2 summed over response tokens.
    entropy: of a policy, [R] nats, -sum_v p(v) log p(v) summed over response tokens.
    hidden: [R, d] float32, the last hidden state, after the final norm where the family has one. A decoder (llama,
        qwen2, gpt2, ...) gives it at the response's last token, where a head reads the reward; an encoder (BERT,
        ModernBERT, ...) at the first token of the row, however its head pools.

    Args:
        core: a transformers model (not a wrapper around one).
        batch: see `packing.Batch`.

    Raises:
        BadInput: the batch wants what this kind of model does not have.
    """
    wants = _wanted(core, batch)
    given = {name: batch.get(name) for name in ("length", "ref_logp", "rm_head")}
    given["grade"] = batch.get("response_grade")
    if is_reward_model(core):
        head, hidden = _head(core, batch, want_hidden="hidden" in wants)
        return SequenceScores(head=head, hidden=hidden, **given)
    states = core.base_model(**model_inputs(core, batch), use_cache=False).last_hidden_state.flatten(0, 1)
    hidden = states[batch["read_at"]].detach().float() if "hidden" in wants else None
    tokens = token_logprobs(
        core.get_output_embeddings(),
        states[batch["predict_at"]],
        batch["predict"],
        transform=_logit_transform(core.config.get_text_config()),
        wants=[name for name in wants if name != "hidden"],
    )

    def summed(values: Tensor | None) -> Tensor | None:
        return None if values is None else sum_by_owner(values, batch["owner"], len(batch["length"]))

    return SequenceScores(
        logp=summed(tokens.logp),
        log_collision=summed(tokens.log_collision),
        entropy=summed(tokens.entropy),
        hidden=hidden,
        **given,
    )


def _wanted(core: Any, batch: Batch) -> tuple[str, ...]:
    wants: tuple[str, ...] = batch.get("wants", ())
    kind, has = ("reward model", ("hidden",)) if is_reward_model(core) else ("policy", BY_PRODUCTS)
    for name in wants:
        if name not in has:
            raise BadInput(
                f"the score {name} is wanted of a {kind}, which has no such score; on request it gives {', '.join(has)}"
            )
    return wants


def _head(core: Any, batch: Batch, *, want_hidden: bool) -> tuple[Tensor, Tensor | None]:
    """The reward of every response and, if wanted, the hidden state that goes with it."""
    inputs = model_inputs(core, batch)
    hidden: Tensor | None = None
    if hasattr(core, "score") and not core.config.is_encoder_decoder:
        states = core.base_model(**inputs, use_cache=False).last_hidden_state
        last = states.flatten(0, 1)[batch["read_at"]]
        hidden = last.detach().float() if want_hidden else None
        with torch.autocast(device_type=last.device.type, enabled=False):
            logits = core.score(last.float())
    else:  # an encoder pools in its own way: rows are responses there
        seen: list[Tensor] = []
        with _first_tokens(core.base_model, seen) if want_hidden else nullcontext():
            logits = type(core).forward(core, **inputs).logits
        hidden = seen[0] if want_hidden else None
    head: Tensor = logits[:, 0]
    return head.to(batch["length"].dtype), hidden


def _first_tokens(base: Any, seen: list[Tensor]) -> Any:
    """Note the first token's last hidden state of a pass through `base`, while the returned context lasts.

    `output_hidden_states` would hold the states of every layer until the end of the pass.
    """

    def note(_: Any, __: Any, output: Any) -> None:
        seen.append(output[0][:, 0].detach().to(torch.float32, copy=True))  # a view would keep all tokens alive

    return base.register_forward_hook(note)


def _logit_transform(config: Any) -> LogitTransform:
    """What some families do to logits after the output layer."""
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    divide = getattr(config, "logits_scaling", None)
    return LogitTransform(scale=(scale or 1.0) / (divide or 1.0), softcap=softcap or None)


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
