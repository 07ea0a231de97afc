"""A saved reward model on frozen embeddings: which embedder, which features, one small head; no pickle.

model/config.json        format, embedder (name and fingerprint), features and their blocks, width of the hidden layer
model/head.safetensors   mean [d], scale [d], outer [1, h], bias [1]; if hidden, inner [1, h, d] and inner_bias [1, h]

reward = outer @ s + bias, s = z or tanh(inner @ z + inner_bias), z = (features - mean) / scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from marginkit.embedders import Embedder, open_embedder
from marginkit.embedding_features import Features, examples_of
from marginkit.embedding_heads import Heads
from marginkit.errors import BadInput
from marginkit.records import Group

FORMAT = "marginkit-embedding-model/1"


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A reward model: an embedder and one head.

    Args:
        embedder: makes the vectors.
        head: reads them; one of it.
        features: what it reads of prompt and response, see `examples_of`.
        blocks: sizes of the blocks of features.
    """

    embedder: Embedder
    head: Heads
    features: Features
    blocks: tuple[int, ...]

    def rewards(self, groups: Iterable[Group]) -> list[list[float]]:
        """[group][response], logits.

        Raises:
            RunFailed: a reward or a vector is not finite.
        """
        held = list(groups)
        sizes = [len(group.responses) for group in held]
        values = examples_of(held, self.embedder, self.features).values
        return [part.tolist() for part in self.head.rewards(values)[0].split(sizes)]

    def save(self, folder: str | Path) -> Path:
        """Write `config.json` and `head.safetensors` into a folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, target / _WEIGHTS)
        content = {
            "format": FORMAT,
            "embedder": {"name": self.embedder.name, "fingerprint": self.embedder.fingerprint},
            "features": self.features,
            "blocks": list(self.blocks),
            "hidden": self.head.hidden,
        }
        (target / _CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path, *, store: str | Path | None = None) -> EmbeddingModel:
        """Read what `save` wrote.

        Args:
            folder: a saved model.
            store: folder of the score store, for the embeddings.

        Raises:
            BadInput: no such model, a file that is cut short, or another embedder under the same name.
        """
        place = Path(folder)
        content = _config_at(place)
        if content is None:
            raise BadInput(f"{place}: holds no reward model on embeddings ({FORMAT})")
        try:
            name, fingerprint = content["embedder"]["name"], content["embedder"]["fingerprint"]
            blocks, features = tuple(content["blocks"]), content["features"]
            head = Heads(sum(blocks), content["hidden"])
            head.load_state_dict(load_file(place / _WEIGHTS))
            if not isinstance(name, str) or len(blocks) != _BLOCKS[features]:
                raise ValueError(f"{_CONFIG} is not as it was written: embedder {name}, features {features}")
        except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise BadInput(f"{place}: not a whole model ({str(error).splitlines()[0]}); train it again") from None
        embedder = open_embedder(name, store=store)
        if embedder.fingerprint != fingerprint:
            raise BadInput(
                f"{place}: was trained on embedder {name} with fingerprint {fingerprint}, the one here has "
                f"{embedder.fingerprint}: its vectors mean something else; bring back that one, or train again"
            )
        return cls(embedder, head, features, blocks)


_CONFIG, _WEIGHTS = "config.json", "head.safetensors"
_BLOCKS: Mapping[Features, int] = {"interaction": 4, "response": 2, "joined": 2}


def is_embedding_model(folder: str | Path) -> bool:
    """Whether a folder holds a saved reward model on embeddings.

    Example:
        >>> is_embedding_model("no/such/folder")
        False
    """
    return _config_at(Path(folder)) is not None


def _config_at(folder: Path) -> dict[str, Any] | None:
    file = folder / _CONFIG
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None
