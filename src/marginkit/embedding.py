"""Embeddings of responses: the state from which a model's head reads, computed once and kept between runs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from marginkit.core.tensors import SequenceScores
from marginkit.data.encoded import EncodedGroups
from marginkit.frozen_scores import Column, kept
from marginkit.models.packing import Rung
from marginkit.scoring import Precision, Progress
from marginkit.store import Array, ScoreStore


def embed(
    load: Callable[[], tuple[nn.Module, Rung]],
    encoded: EncodedGroups,
    store: ScoreStore,
    *,
    pad_id: int,
    tokens: int,
    precision: Precision,
    progress: Progress | None = None,
) -> list[list[Array]]:
    """The last hidden state of every response, after the final norm, at its last token; of an encoder, at its first.

    Only what the store lacks is computed, and each batch is kept as soon as it is.

    Args:
        load: gives the model, a policy or a reward model, and the rung it is asked on; called only if something is
            missing.
        encoded: encoded groups.
        store: where vectors are kept; its settings say that they are hidden states.
        pad_id: padding token.
        tokens: of one forward pass.
        precision: how to compute.
        progress: called with the number of responses as they are done.

    Returns:
        [group][response], each [d] float32.

    Raises:
        RunFailed: a state is not finite, or the store cannot be written.
    """
    column = Column(store.get_vectors, store.add_vectors, _states, "the model gives it hidden state", ("hidden",))
    found = kept(load, encoded, store, column, pad_id=pad_id, tokens=tokens, precision=precision, progress=progress)
    assert found is not None, "there are no other ranks"
    return found


def _states(scores: SequenceScores) -> list[Array]:
    assert scores.hidden is not None
    return list(scores.hidden.cpu().numpy())
