"""What a head on frozen embeddings reads of graded groups: features of every response, and the labels of the pairs.

features = [e(y), e(x) * e(y), cos(e(x), e(y)), log(1 + characters of y)] of prompt x and response y, e an embedder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from marginkit.core.tensors import Labels
from marginkit.data.encoded import encode_labels
from marginkit.embedders import Embedder
from marginkit.models.packing import labels_of, pair_columns
from marginkit.records import Group, content_text

Features = Literal["interaction", "response", "joined"]
_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Examples:
    """Graded groups as a head reads them.

    Args:
        values: [R, d] float32, the features of every response.
        owner: [R] which group a response belongs to.
        columns: pairs and labels, see `packing.pair_columns`; `group_of` numbers groups as `owner` does.
        groups: how many groups the numbers run over.
        blocks: how many features belong together, see `Heads.normalise`.
    """

    values: Tensor
    owner: Tensor
    columns: Mapping[str, Tensor]
    groups: int
    blocks: tuple[int, ...]

    def take(self, rows: Iterable[int]) -> Examples:
        """The examples of some groups, in their old order and under their old numbers."""
        member = torch.zeros(self.groups, dtype=torch.bool)
        member[torch.tensor(list(rows), dtype=torch.long)] = True
        response, pair = member[self.owner], member[self.columns["group_of"]]
        place = torch.cumsum(response, 0) - 1
        columns = {name: value[response if name == "response_grade" else pair] for name, value in self.columns.items()}
        columns["pairs"] = place[columns["pairs"]]
        return Examples(self.values[response], self.owner[response], columns, self.groups, self.blocks)

    @property
    def labels(self) -> Labels:
        """What the data says of every pair."""
        return labels_of(dict(self.columns))


def examples_of(groups: Iterable[Group], embedder: Embedder, features: Features = "interaction") -> Examples:
    """What a head reads of groups, each prompt and each response embedded once.

    Args:
        groups: paired groups; those without a pair are only scored.
        embedder: makes the vectors.
        features: interaction: [e(y), e(x) * e(y), cos(e(x), e(y)), log(1 + characters of y)]; response: without what
            reads the prompt x; joined: [e(x and y as one text), log(1 + characters of y)].

    Returns:
        The examples of all responses and pairs.

    Raises:
        RunFailed: a vector is not finite.
    """
    held = list(groups)
    sizes = torch.tensor([len(group.responses) for group in held])
    owner = torch.repeat_interleave(sizes)
    texts = [response.text for group in held for response in group.responses]
    prompts = [content_text(group.prompt) for group in held]
    length = np.log1p([len(text) for text in texts])
    if features == "joined":
        said = embedder.embed([f"{prompts[at]}\n{text}" for at, text in zip(owner.tolist(), texts, strict=True)])
    else:
        said = embedder.embed(texts)
    width = said.shape[1]
    blocks = (width, width, 1, 1) if features == "interaction" else (width, 1)
    values = np.empty((len(texts), sum(blocks)), np.float32)
    values[:, :width], values[:, -1] = said, length
    if features == "interaction":
        asked = embedder.embed(prompts)
        for start in range(0, len(texts), _ROWS):  # no second table of all rows
            rows = slice(start, start + _ROWS)
            product = asked[owner[rows].numpy()] * said[rows]
            values[rows, width : 2 * width], values[rows, -2] = product, product.sum(1)
    encoded = [encode_labels(row, group) for row, group in enumerate(held)]
    columns = {name: value for name, value in pair_columns(encoded, torch.float64).items() if isinstance(value, Tensor)}
    return Examples(torch.from_numpy(values), owner, columns, len(held), blocks)
