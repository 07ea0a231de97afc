"""Log-probabilities of responses under a policy that is not trained here, with the prompt and without, by the store."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from marginkit.data.encoded import EncodedGroups
from marginkit.data.encoding import Encoder
from marginkit.errors import BadInput
from marginkit.frozen_scores import FrozenModel, frozen_scores
from marginkit.groups import Groups
from marginkit.models.loading import load_model, load_tokenizer, model_limit, prepare_padding
from marginkit.policies import open_policy, settings_of
from marginkit.progress import progress
from marginkit.scoring import choose_precision

log = logging.getLogger("marginkit")
Nested = list[list[float | None]]


@dataclass(frozen=True, slots=True)
class PolicyScores:
    """What a policy says of every response, [group][response]; None for groups longer than it reads.

    Args:
        logp: nats, summed over the response's tokens, its end token included.
        length: tokens.
        bare_logp: nats without the prompt; None where not asked for.
        facts: model, fingerprint, settings, groups too long.
    """

    logp: Nested
    length: Nested
    bare_logp: Nested | None
    facts: dict[str, Any]


def policy_scores(
    policy: str | Path, groups: Groups, *, bare: bool = False, store: str | Path = "store"
) -> PolicyScores:
    """Log-probabilities under a run or a saved causal model; only what the store lacks is computed.

    Without the prompt, a response follows what opens an answer and nothing else: the header of the chat template, or
    the token that starts a text.

    Args:
        policy: a run directory, or a saved model (folder or hub name).
        groups: groups with responses.
        bare: also without the prompt.
        store: folder of the score store.

    Raises:
        BadInput: no such policy, or every group is longer than it reads.
    """
    opened = open_policy(policy)
    config = opened.config.with_(store=opened.config.store.model_copy(update={"path": str(store)}))
    held = opened.held
    tokenizer = load_tokenizer(
        str(held.tokenizer or held.path), revision=held.revision, trust_remote_code=held.trust_remote_code
    )
    if tokenizer.pad_token_id is None:
        prepare_padding(tokenizer, config.kind)
    limit = config.encoding.max_length or model_limit(settings_of(held), tokenizer)
    cut = config.encoding.on_overflow == "cut_prompt_left"
    changes = {"max_length": limit, "on_overflow": "cut_prompt_left" if cut else "drop"}
    encoder = Encoder(tokenizer, **config.encoding.model_dump() | changes)
    with progress(len(groups), "encode for the policy") as bar:
        encoded, report = encoder.encode(groups, bar)
    if not len(encoded):
        raise BadInput(f"--policy {policy}: every group is longer than the {limit} tokens that it reads")
    parts = {"responses": encoded}
    if bare:
        start = _header(tokenizer, encoder)
        parts["responses alone"] = EncodedGroups.from_iterable(replace(one, prompt_ids=start) for one in encoded)

    def load() -> nn.Module:
        return load_model(held, "policy", tokenizer, trainable=False)

    asked = FrozenModel(
        "policy", "logp", held, load, tokenizer.pad_token_id, choose_precision(config, PartialState()), "auto"
    )
    found, made = frozen_scores(asked, parts, config, Path(store), None)
    rows, sizes = encoded.rows(), [len(group.responses) for group in groups]
    lengths = [[float(length) for length in shape.responses] for shape in encoded.shapes()]
    left_out = report.groups - report.kept
    if left_out:
        log.info("%s: %d of %d groups are longer than its %d tokens", policy, left_out, report.groups, limit)
    return PolicyScores(
        _nested(found["responses"], rows, sizes),
        _nested(lengths, rows, sizes),
        _nested(found["responses alone"], rows, sizes) if bare else None,
        made | {"groups too long": left_out},
    )


def _header(tokenizer: Any, encoder: Encoder) -> list[int]:
    """The tokens that stand before an answer to no question; never empty."""
    text = ""
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "x"}]
        said = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        text = asked.removeprefix(said) if asked.startswith(said) else ""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    first = tokenizer("a")["input_ids"][0]
    if ids or first not in tokenizer.all_special_ids:
        return ids or [encoder.end_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
    return [first]


def _nested(values: Sequence[Sequence[float]], rows: Sequence[int], sizes: Sequence[int]) -> Nested:
    made: Nested = [[None] * size for size in sizes]
    for row, own in zip(rows, values, strict=True):
        made[row] = list(own)
    return made
