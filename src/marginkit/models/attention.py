"""Attention over packed rows: each response sees its prompt and itself, and nothing else of the row.

A packed row holds groups one after the other: a prompt, then its responses, positions going on from the prompt's end
in each. Three ways to compute the same attention ("rungs"), all through transformers' own attention interface; no
layer of a model is patched:

segments: one scaled-dot-product call for each piece of the row; any device.
flex: FlexAttention with a block mask; CUDA, where its kernels are.
dense: one call with a 4D mask over whole rows; for models that leave the attention function no say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

SEGMENTS = "marginkit_segments"
FLEX = "marginkit_flex"
FLEX_MULTIPLE = 128  # of tokens: the block size of FlexAttention


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a packed row whose tokens see `shared` tokens from `origin` on, and the stretch itself causally.

    The first response of a group and its prompt are one piece (shared = 0): together they are an ordinary sequence.
    """

    start: int
    stop: int
    origin: int
    shared: int


@dataclass(eq=False)
class Segments:
    """Where the pieces of one packed row are, and the masks made for them, kept as long as the batch."""

    pieces: tuple[Piece, ...]
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)

    @cached_property
    def _edges(self) -> list[int]:
        """Where a piece, or what it shares, begins or ends."""
        found = {edge for one in self.pieces for edge in (one.start, one.stop, one.origin, one.origin + one.shared)}
        return sorted(found)

    def cut(self, row: Tensor) -> Callable[[int, int], Tensor]:
        """A function that gives the stretch of [1, heads, T, d] between two edges.

        The row is cut once: the backward of a split writes its gradient once, that of each slice all of T.
        """
        edges = self._edges
        parts = row.split([stop - start for start, stop in pairwise(edges)], 2)
        number = {edge: index for index, edge in enumerate(edges)}

        def stretch(start: int, stop: int) -> Tensor:
            own = parts[number[start] : number[stop]]
            return own[0] if len(own) == 1 else torch.cat(own, 2)

        return stretch

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor | None:
        """Additive mask [queries, keys] of the last `queries` of `keys` positions; None where it is plainly causal.

        All layers share one tensor, so it is held once for the backward pass.
        """
        if window is not None and window >= keys:
            window = None
        kind = like.device.type  # autocast would make a copy for every layer
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
        name = (queries, keys, window, dtype, like.device)
        if name not in self._masks:
            behind = torch.arange(keys - queries, keys, device=like.device)[:, None] - torch.arange(
                keys, device=like.device
            )
            hidden = behind < 0
            if window is not None:
                hidden |= behind >= window
            plain = queries == keys and window is None
            mask = torch.zeros(queries, keys, dtype=dtype, device=like.device)
            self._masks[name] = None if plain else mask.masked_fill(hidden, float("-inf"))
        return self._masks[name]


def attend_segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: per piece if `segments` are given, else over the rows as they are.

    Args:
        module: the attention layer.
        query: [1, heads, T, d].
        key: [1, key heads, T, d].
        value: [1, key heads, T, d].
        attention_mask: of ordinary calls; unused with segments.
        dropout: of attention weights.
        scaling: of scores; default d^-1/2.
        sliding_window: tokens a query looks back, itself included.
        softcap: scores become softcap * tanh(scores / softcap).
        s_aux: [heads] attention sinks: one more score, whose weight goes nowhere.
        position_bias: not known here; refused.
        segments: the pieces of the row.
        kwargs: of ordinary calls.

    Returns:
        [1, T, heads, d], and None for the weights.
    """
    if segments is None:
        if softcap is None and s_aux is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                position_bias=position_bias, **kwargs,
            )  # fmt: skip
        additive = _additive(attention_mask, query, key)
        return _explicit(query, key, value, additive, dropout, scaling, softcap, s_aux), None
    if position_bias is not None or not getattr(module, "is_causal", True):
        raise NotImplementedError("segments: attention with a position bias, or in both directions")
    outputs = []
    query_of, key_of, value_of = (segments.cut(row) for row in (query, key, value))
    for piece in segments.pieces:
        queries = query_of(piece.start, piece.stop)
        keys, values = key_of(piece.start, piece.stop), value_of(piece.start, piece.stop)
        # further back than the window nothing is seen
        first = 0 if sliding_window is None else max(0, piece.shared - sliding_window + 1)
        if first < piece.shared:
            seen = piece.origin, piece.origin + piece.shared
            keys = torch.cat((key_of(*seen)[:, :, first:], keys), 2)
            values = torch.cat((value_of(*seen)[:, :, first:], values), 2)
        mask = segments.mask(queries.shape[2], keys.shape[2], sliding_window, query)
        if softcap is not None or s_aux is not None:
            additive = _additive(mask, queries, keys)
            outputs.append(_explicit(queries, keys, values, additive, dropout, scaling, softcap, s_aux))
            continue
        grouped = queries.shape[1] != keys.shape[1]
        if grouped and mask is not None and query.device.type != "cpu":  # elsewhere that combination has no kernel
            keys, values = (repeat_kv(part, queries.shape[1] // part.shape[1]) for part in (keys, values))
            grouped = False
        outputs.append(
            scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=grouped,
            ).transpose(1, 2)
        )
    return torch.cat(outputs, 1), None


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out, for what the kernels do not have: [1, T, heads, d]."""
    times = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1).to(scores.dtype)), -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return (nn.functional.dropout(weights, dropout) @ value).transpose(1, 2).contiguous()


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """An ordinary call's mask as numbers to add; none means what it means to SDPA.

    Causal from the first key on, whatever empty places of a static cache follow; a single query sees all.
    """
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys if queries == 1 else 0)
    if mask.dtype != torch.bool:
        return mask
    low = torch.finfo(query.dtype).min  # not -inf: a row of padding sees nothing
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, low)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)  # without `dynamic` every new length is compiled anew


class Blocks:
    """Block masks of a packed row by window, made when a layer first asks."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch
        self._made: dict[int | None, Any] = {}

    def mask(self, window: int | None) -> Any:
        """The BlockMask of layers with this window."""
        from torch.nn.attention.flex_attention import create_block_mask

        if window not in self._made:
            group, segment = self.batch["group_ids"][0], self.batch["segment_ids"][0]
            position = self.batch["position_ids"][0]

            def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return _visible(
                    (group[query], segment[query], position[query]), (group[key], segment[key], position[key]), window
                )

            length = len(group)
            self._made[window] = create_block_mask(
                visible,
                B=None,
                H=None,
                Q_LEN=length,
                KV_LEN=length,
                device=str(group.device),
                _compile=group.is_cuda,  # otherwise the mask is made whole first, T x T
            )
        return self._made[window]


def attend_flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `attend_segments`, in one FlexAttention call; without `blocks` an ordinary call."""
    if blocks is None:
        return attend_segments(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, softcap=softcap,
            s_aux=s_aux, position_bias=position_bias, **kwargs,
        )  # fmt: skip
    if position_bias is not None or s_aux is not None or dropout or not getattr(module, "is_causal", True):
        raise NotImplementedError("flex: attention with a position bias, sinks or dropout, or in both directions")
    from torch.nn.attention.flex_attention import flex_attention

    def capped(score: Tensor, _: Tensor, __: Tensor, ___: Tensor, ____: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)  # type: ignore[operator]

    # under autocast positions have turned queries and keys into float32; before torch 2.13 FlexAttention refuses that
    query, key = query.to(value.dtype), key.to(value.dtype)
    attend = flex_attention if query.device.type == "cpu" else _compiled_flex()
    output = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=blocks.mask(sliding_window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


Coordinates = tuple[Tensor, Tensor, Tensor]


def _visible(query: Coordinates, key: Coordinates, window: int | None) -> Tensor:
    """Whether a query sees a key, each given by group, segment (0: prompt) and position."""
    (group, segment, at), (key_group, key_segment, key_at) = query, key
    seen = (group == key_group) & ((key_segment == 0) | (key_segment == segment)) & (key_at <= at)
    return seen if window is None else seen & (at - key_at < window)


def _dense(core: Any, batch: dict[str, Any]) -> Any:
    """The 4D mask (or, where layers differ, one a kind of layer) of packed rows."""
    config = core.config.get_text_config()
    tokens = (batch["group_ids"], batch["segment_ids"], batch["position_ids"])
    queries: Any = tuple(part[:, None, :, None] for part in tokens)
    keys: Any = tuple(part[:, None, None, :] for part in tokens)

    def mask(window: int | None) -> Tensor:
        seen = _visible(queries, keys, window)
        if config._attn_implementation != "eager":
            return seen
        dtype = core.dtype  # eager attention adds the mask to the scores: a boolean one would add 0 and 1
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    windows = windows_of(config)
    made = {kind: mask(window) for kind, window in windows.items()}
    return made if len(made) > 1 else next(iter(made.values()))


def windows_of(config: Any) -> dict[str, int | None]:
    """How far back each kind of layer looks, by the kind's name in transformers; None: to the beginning."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return {"full_attention": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}


def model_inputs(core: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What the body of a model is called with, for a batch of any layout."""
    rung = batch.get("rung", "rows")
    if rung == "rows":
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    if rung == "dense":
        return inputs | {"attention_mask": _dense(core, batch)}
    # a 4D mask reaches every layer as it is, so that transformers makes none of its own, which would be T x T
    carrier = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch["input_ids"].device)
    if rung == "flex":
        return inputs | {"attention_mask": carrier, "blocks": Blocks(batch)}
    return inputs | {"attention_mask": carrier, "segments": batch["segments"]}


def _register() -> None:
    for name, attend in ((SEGMENTS, attend_segments), (FLEX, attend_flex)):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, sdpa_mask)  # of ordinary calls, with padding


_register()
