"""Every test: no network, one thread, the shape annotations of the formulas checked, the same examples every time."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # commands that a test starts: the tests themselves take the cores
)

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

torch.set_num_threads(1)

# The records and decorators (core.tensors, core.parts) stay as they are: their own messages are what a user meets.
FORMULAS = ("rewards", "evidence", "targets", "scored", "adaptive", "transport", "objectives", "anchored")
install_import_hook([f"marginkit.core.{name}" for name in FORMULAS], "beartype.beartype")

settings.register_profile("marginkit", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("marginkit")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many responses models that are not trained were asked to score, batch by batch."""
    # inside: the import hook above has to come before marginkit
    import marginkit.frozen_scores
    import marginkit.scoring

    seen: list[int] = []
    score_batches = marginkit.scoring.score_batches

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for indices, scores in score_batches(*args, **kwargs):
            seen.append(len(scores.length))
            yield indices, scores

    monkeypatch.setattr(marginkit.frozen_scores, "score_batches", counted)
    monkeypatch.setattr(marginkit.scoring, "score_batches", counted)
    return seen
