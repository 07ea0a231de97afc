"""Embeddings: what transformers gives at the last token, computed once, kept batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import marginkit.frozen_scores
import tiny
from marginkit.data.encoded import EncodedGroups
from marginkit.embedding import embed
from marginkit.errors import RunFailed
from marginkit.models.rungs import choose_rung
from marginkit.scoring import score_batches
from marginkit.store import ScoreStore

ENCODED = tiny.encode(tiny.graded_groups(8))
SIZES = [len(group.response_ids) for group in ENCODED]
ASKED: dict[str, Any] = {"pad_id": 0, "tokens": 120, "precision": tiny.CPU}


def opened(folder: Path) -> ScoreStore:
    """A store of hidden states."""
    return ScoreStore(folder, "m", {"quantity": "hidden"})


def embedded(own: Any, groups: EncodedGroups, folder: Path, rung: Any = "rows", **more: Any) -> list[list[Any]]:
    """Embeddings by way of a store in a folder."""
    with opened(folder) as store:
        return embed(lambda: (own, rung), groups, store, **ASKED | more)


def flat(groups: list[list[Any]]) -> list[Any]:
    """Response after response."""
    return [value for group in groups for value in group]


@torch.no_grad()
def direct(own: Any, groups: EncodedGroups) -> list[list[Any]]:
    """The last hidden state at the last token, each response alone in a forward pass of transformers itself."""
    return [
        [
            own.base_model(input_ids=torch.tensor([group.prompt_ids + ids])).last_hidden_state[0, -1].numpy()
            for ids in group.response_ids
        ]
        for group in groups
    ]


@pytest.mark.parametrize("rung", ["rows", "segments"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_rm"])
def test_it_is_the_last_state_of_the_last_token(family: str, rung: Any, tmp_path: Path) -> None:
    """Of policies and reward models, in order, in float32, also where a group takes several passes."""
    own = tiny.model(family)
    expected = direct(own, ENCODED)
    assert choose_rung(own, rung, longest=60) == rung
    done: list[int] = []
    found = embedded(own, ENCODED, tmp_path, rung, tokens=50, progress=done.append)
    assert [len(group) for group in found] == SIZES
    assert sum(done) == sum(SIZES)
    for left, right in zip(flat(expected), flat(found), strict=True):
        assert right.dtype == np.float32
        assert right == pytest.approx(left, abs=2e-5)
    everything = np.stack(flat(found))
    assert everything.std(0).min() > 0.1, "responses differ"


def test_of_an_encoder_it_is_the_first_token(tmp_path: Path) -> None:
    """As its head reads it."""
    own = tiny.model("modernbert_rm")
    groups = tiny.encode(tiny.graded_groups(4), tiny.tokenizer(encoder=True))
    found = embedded(own, groups, tmp_path)
    ids = torch.tensor([groups[1].prompt_ids + groups[1].response_ids[0]])
    with torch.no_grad():
        first = own.base_model(input_ids=ids).last_hidden_state[0, 0].numpy()
    assert found[1][0] == pytest.approx(first, abs=2e-5)


def test_only_what_is_missing_is_computed(tmp_path: Path, passes: list[int]) -> None:
    """All, then none and no model, then those of new groups, and one response that was lost."""
    own = tiny.model("llama")
    first = embedded(own, ENCODED[:5], tmp_path)
    assert sum(passes) == sum(SIZES[:5])
    passes.clear()
    with opened(tmp_path) as store:
        again = embed(lambda: pytest.fail("the model was loaded"), ENCODED[:5], store, **ASKED)
    assert all((left == right).all() for left, right in zip(flat(first), flat(again), strict=True))
    with opened(tmp_path) as store:
        store._writer.execute(
            "DELETE FROM vectors WHERE key = ?", (store.key(ENCODED[2].prompt_ids, ENCODED[2].response_ids[1]),)
        )
        store._writer.commit()
    done: list[int] = []
    whole = embedded(own, ENCODED, tmp_path, progress=done.append)
    assert sum(passes) == sum(SIZES[5:]) + 1
    assert sum(done) == sum(SIZES)
    assert whole[2][1] == pytest.approx(first[2][1], abs=1e-6)


def test_two_at_once_use_what_the_other_has_kept(tmp_path: Path, passes: list[int]) -> None:
    """One writer a file; the second computes only what the first has not."""
    own = tiny.model("llama")
    with opened(tmp_path) as one, opened(tmp_path) as two:
        embed(lambda: (own, "rows"), ENCODED[:4], one, **ASKED)
        embed(lambda: (own, "rows"), ENCODED, two, **ASKED)
        assert (one.added, two.added) == (sum(SIZES[:4]), sum(SIZES[4:]))
    assert sum(passes) == sum(SIZES)


def test_a_state_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    """One line with the group; its batch is not kept."""
    own = tiny.model("llama")
    own.get_input_embeddings().weight.data[ENCODED[3].response_ids[0][0]] = float("inf")
    with pytest.raises(RunFailed, match=r"^group train-3: the model gives it hidden state nan$"):
        embedded(own, ENCODED[3:4], tmp_path)
    with opened(tmp_path) as store:
        assert (
            store.get_vectors([store.key(ENCODED[3].prompt_ids, ids) for ids in ENCODED[3].response_ids]) == [None] * 2
        )


# --------------------------------------------------------------------------------------------------------- kill -9


def slow_embedding(folder: str) -> None:
    """Takes its time, and says which batches it has computed."""

    def slow(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for indices, scores in score_batches(*args, **kwargs):
            with open(Path(folder) / "computed", "a") as sink:
                sink.write(f"{len(scores.length)}\n")
            yield indices, scores
            time.sleep(0.15)

    marginkit.frozen_scores.score_batches = slow
    embedded(tiny.model("llama"), ENCODED, Path(folder))


def test_a_kill_loses_at_most_one_batch(tmp_path: Path, passes: list[int]) -> None:
    """SIGKILL after some batches; the second process computes only the rest."""
    process = tiny.start(slow_embedding, str(tmp_path))
    computed = tmp_path / "computed"
    end = time.monotonic() + 60
    while time.monotonic() < end and (not computed.is_file() or len(computed.read_text().splitlines()) < 3):
        time.sleep(0.02)
    assert process.is_alive()
    tiny.kill(process)
    batches = [int(line) for line in computed.read_text().splitlines()]
    found = embedded(tiny.model("llama"), ENCODED, tmp_path)
    left = sum(SIZES) - sum(passes)
    assert 0 < sum(batches[:-1]) <= left <= sum(batches) < sum(SIZES)
    expected = direct(tiny.model("llama"), ENCODED)
    for ours, theirs in zip(flat(found), flat(expected), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)
