"""Which rung of the attention ladder a model runs on: guards by its configuration, then a probe on the model itself.

Several families give wrong numbers on packed rows without any error (recurrent layers, ALiBi by index, layers that
hide their window from the attention function), so no rung is used that has not just been compared with padded rows.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from marginkit.data.encoded import EncodedGroup
from marginkit.errors import BadInput
from marginkit.models.attention import FLEX, SEGMENTS, model_inputs, windows_of
from marginkit.models.loading import core_of, is_reward_model
from marginkit.models.packing import Batch, Rung, make_batch

log = logging.getLogger("marginkit")

Layout = Literal["auto", "flex", "segments", "dense", "rows"]
_TOLERANCE = 1e-4  # in float32, relative to the states of a token
_HALF_TOLERANCE = 2.0  # in half precision: times what its rounding, or another padding of the rows, changes
_INTERFACE = {"flex": FLEX, "segments": SEGMENTS}


def choose_rung(
    model: Any,
    wanted: Layout,
    *,
    longest: int,
    kernel: str | None = None,
    strict: bool = True,
    training: AbstractContextManager[Any] | None = None,
) -> Rung:
    """The fastest rung on which the model gives what it gives on padded rows; the model is set to it.

    Args:
        model: a transformers or PEFT model, on the device where it will run.
        wanted: auto, or a rung that has to work.
        longest: tokens of the longest sequence to come; the probe goes beyond a sliding window if that does.
        kernel: an attention implementation the user asked for; auto then keeps it, on padded rows.
        strict: a wanted rung that does not work is refused; else padded rows are taken, and it is told.
        training: the autocast of training, where the model is to be trained: forward and backward have to run in it.

    Returns:
        flex (CUDA alone), segments, dense or rows.

    Raises:
        BadInput: the wanted rung does not work for this model.
    """
    core = core_of(model)
    if wanted == "rows":
        return "rows"
    if wanted == "auto" and kernel is not None:
        log.info("layout: padded rows, for model.attention=%s; train.layout=segments shares prompts", kernel)
        return "rows"
    reason = unfit(core, longest)
    if reason is None:
        device = core.device.type
        ladder: Sequence[Rung] = ("flex", "segments", "dense") if device == "cuda" else ("segments", "dense")
        for rung in (wanted,) if wanted != "auto" else ladder:
            found = _try(core, rung, longest, training)
            if found is None:
                return rung
            reason = found
            log.debug("layout %s: %s", rung, reason)
    if wanted != "auto" and strict:
        raise BadInput(f"train.layout={wanted}: {type(core).__name__}: {reason}; use train.layout=auto")
    log.info("layout: padded rows, each response once; %s: %s", type(core).__name__, reason)
    return "rows"


def unfit(core: Any, longest: int) -> str | None:
    """Why a model cannot run on packed rows, as far as its configuration tells; None if nothing speaks against it."""
    config = core.config.get_text_config()
    if core.config.is_encoder_decoder or (is_reward_model(core) and not hasattr(core, "score")):
        return "an encoder reads whole sequences"
    if getattr(core, "_is_stateful", False):
        return "it has recurrent layers, which would carry one response into the next"
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if strange:
        return f"it has {strange[0]} layers"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "its windows are measured along the row"  # GPT-Neo: a probe shorter than the window would not see it
    if getattr(config, "alibi", False) or type(core.base_model).__name__ in ("MptModel", "BloomModel"):
        return "its positions are biases by index (ALiBi)"
    if "position_ids" not in inspect.signature(type(core.base_model).forward).parameters:
        return "it takes no position_ids"
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]:
        original: int = kind.get("original_max_position_embeddings") or config.max_position_embeddings
        if kind.get("rope_type") in ("dynamic", "longrope") and longest > original:
            return f"its positions are scaled by the longest sequence ({kind['rope_type']})"
    if core.config._attn_implementation and "flash" in core.config._attn_implementation:
        return f"{core.config._attn_implementation} takes padded rows"
    return None


def _try(core: Any, rung: Rung, longest: int, training: AbstractContextManager[Any] | None = None) -> str | None:
    """Set the model to a rung; what is wrong with it there, and the model as it was, or None."""
    before = core.config._attn_implementation
    groups = _probe_groups(core, longest)

    def states(rung: Rung, *parts: Sequence[EncodedGroup]) -> Tensor:
        return _last_states(core, [make_batch(part, rung=rung, pad_id=_pad(core)) for part in parts])

    plain = states("rows", groups)
    rounding = max(torch.finfo(dtype).eps for dtype in (plain.dtype, core.dtype))
    half = rounding > _TOLERANCE
    # measured in float32 too: quantised layers and TF32 compute in less and say nothing of it
    noise = _apart(states("rows", *([group] for group in groups)), plain, half)
    tolerance = max(_TOLERANCE, _HALF_TOLERANCE * noise)
    if half:
        rounding *= (2 * core.config.get_text_config().num_hidden_layers) ** 0.5  # one at each addition, at random
        tolerance = max(tolerance, _HALF_TOLERANCE * rounding)
    try:
        if rung in _INTERFACE:
            _set_attention(core, _INTERFACE[rung])
        wrong = _apart(states(rung, groups), plain, half)
        if wrong <= tolerance:
            if training is not None:
                _step(core, make_batch(groups, rung=rung, pad_id=_pad(core)), training)
            return None
        problem = f"packed rows differ from padded ones by {wrong:.2g} of the scale of its states on a probe"
    except Exception as error:  # a rung that does not run is a rung that is not taken
        first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        problem = f"{type(error).__name__} on a probe: {first}"
    _set_attention(core, before)
    return problem


def _set_attention(core: Any, name: str) -> None:
    """Change the attention function of the model and its parts."""
    if core.config._attn_implementation == name:
        return
    with _quiet("transformers.modeling_utils"):
        core.set_attn_implementation(name)
    if core.config._attn_implementation != name:
        raise NotImplementedError("its attention cannot be exchanged")


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def _last_states(core: Any, batches: Sequence[Batch]) -> Tensor:
    """Hidden states where response tokens are predicted, then those where rewards are read."""
    training = core.training
    core.eval()
    predicting: list[Tensor] = []
    reading: list[Tensor] = []
    try:
        for batch in batches:
            moved = {name: part.to(core.device) if isinstance(part, Tensor) else part for name, part in batch.items()}
            states = core.base_model(**model_inputs(core, moved), use_cache=False).last_hidden_state.flatten(0, 1)
            predicting.append(states[moved["predict_at"]])
            reading.append(states[moved["read_at"]])
        return torch.cat(predicting + reading)
    finally:
        core.train(training)


def _step(core: Any, batch: Batch, training: AbstractContextManager[Any]) -> None:
    """A forward and backward as in training; raises where a kernel has no dropout, no backward, or not this type."""
    moved = {name: part.to(core.device) if isinstance(part, Tensor) else part for name, part in batch.items()}
    mode, seen = core.training, []

    def note(_: Any, __: Any, output: Tensor) -> Tensor:  # no gradient of a weight is made: it would be as large
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hook = core.get_input_embeddings().register_forward_hook(note)
    core.train()
    try:
        with torch.random.fork_rng([core.device] if core.device.type == "cuda" else []), torch.enable_grad(), training:
            states = core.base_model(**model_inputs(core, moved), use_cache=False).last_hidden_state
        torch.autograd.grad(states.float().sum(), seen)
    finally:
        core.train(mode)
        hook.remove()


def _apart(states: Tensor, plain: Tensor, half: bool) -> float:
    """How far tokens' states are apart, relative to their size, where it is most.

    In half precision at all but a quarter of the tokens: rounding alone can send a few to other experts.
    """
    apart = (states.float() - plain.float()).norm(dim=-1) / plain.float().norm(dim=-1)
    return float(apart.quantile(0.75) if half else apart.max())


def _pad(core: Any) -> int:
    pad: int | None = getattr(core.config.get_text_config(), "pad_token_id", None)
    return 0 if pad is None else pad


def _probe_groups(core: Any, longest: int) -> list[EncodedGroup]:
    """Two groups of three responses, one of them longer than any window that the data goes beyond."""
    config = core.config.get_text_config()
    windows = [window for window in windows_of(config).values() if window is not None and window < longest]
    chunk = getattr(config, "attention_chunk_size", None)
    reach = max([*windows, *([chunk] if chunk and chunk < longest else [])], default=0)
    limit = min(longest, getattr(config, "max_position_embeddings", None) or longest)
    prompt = max(2, min(11 + reach, limit - 9))
    generator = torch.Generator().manual_seed(0)
    high, pad = min(config.vocab_size, 1000), _pad(core)

    def tokens(count: int) -> list[int]:
        drawn = torch.randint(min(5, high - 2), high, (max(1, count),), generator=generator)
        return [int(token) if int(token) != pad else high - 1 - (pad == high - 1) for token in drawn]

    def group(row: int, prompt: int, responses: Sequence[int]) -> EncodedGroup:
        absent = [float("nan")] * len(responses)
        bare: dict[str, Any] = {name: [] for name in ("chosen", "rejected", "prob", "target_gap", "strength")}
        return EncodedGroup(
            row, str(row), tokens(prompt), [tokens(count) for count in responses], absent, absent, **bare, weight=[],
            tie=[],
        )  # fmt: skip

    return [group(0, prompt, (6, 3, 9)), group(1, max(1, min(5, limit - 9)), (4, 8, 2))]
