"""Log-probabilities under the reference policy, joined to the groups of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from marginkit.config import ModelConfig, RunConfig
from marginkit.data.encoded import EncodedGroups
from marginkit.frozen_scores import FrozenModel, frozen_scores
from marginkit.models.loading import load_model
from marginkit.models.packing import Rung
from marginkit.scoring import Precision


def join_reference(
    config: RunConfig,
    start: ModelConfig,
    model: nn.Module | None,
    tokenizer: Any,
    encoded: Mapping[str, EncodedGroups],
    out: Path,
    precision: Precision,
    rung: Rung,
    state: PartialState | None,
) -> tuple[dict[str, EncodedGroups], dict[str, Any]]:
    """Join reference log-probabilities from the store into the encoded groups, computing what is missing.

    The reference is `model.reference`, else the model before training: `model` if it is at hand in that state.
    It is asked on the rung of the policy, in the same precision: otherwise the first gap would not be 0.
    With `state` every rank takes part and computes its share; None: this process does it alone.
    """
    other = config.model.reference
    held = start.model_copy(update={"path": other, "lora": None}) if other else start

    def load() -> nn.Module:
        if model is not None and other is None:
            return model
        return load_model(held, "policy", tokenizer, trainable=False)

    reference = FrozenModel("reference", "logp", held, load, tokenizer.pad_token_id, precision, rung)
    logps, made = frozen_scores(reference, encoded, config, out, state)
    return {name: groups.with_ref_logp(logps[name]) for name, groups in encoded.items()}, made
