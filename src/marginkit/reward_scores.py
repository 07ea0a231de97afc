"""Scores of another reward model, joined to the groups of a run: read in that model's own tokens, not the policy's."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import PartialState
from torch import nn

from marginkit.config import ModelConfig, RunConfig, resolve, trained_model
from marginkit.data.encoded import EncodedGroups, EncodingReport
from marginkit.data.encoding import Encoder
from marginkit.embedding_model import EmbeddingModel
from marginkit.errors import BadInput
from marginkit.frozen_scores import FrozenModel, frozen_scores
from marginkit.groups import Groups
from marginkit.models.loading import load_model, load_tokenizer, model_limit, prepare_padding
from marginkit.models.scorer import probe
from marginkit.progress import progress
from marginkit.scoring import choose_precision

log = logging.getLogger("marginkit")


def check_reward_model(config: RunConfig, needs: frozenset[str]) -> None:
    """Refuse `model.reward_model` where it is missing, idle, or not a reward model; nothing is loaded.

    Args:
        config: the run.
        needs: the score fields that the recipe needs.

    Raises:
        BadInput: which of these it is, and the way out.
    """
    path = config.model.reward_model
    if "rm_head" not in needs:
        if path is not None:
            raise BadInput(
                f"model.reward_model={path}: recipe {config.recipe} does not read the scores of a reward model; "
                "leave it out"
            )
        return
    if path is None:
        raise BadInput(
            f"model.reward_model is missing: recipe {config.recipe} reads the scores of a reward model; train one with "
            "`marginkit train bt model.path=... data.train=... out=runs/rm`, then give model.reward_model=runs/rm"
        )
    theirs, held = _reward_model(config)
    if theirs.model.kind != "embedding":
        _check_classifier(path, held)


def join_reward_scores(
    config: RunConfig,
    parts: Mapping[str, Groups],
    encoded: Mapping[str, EncodedGroups],
    out: Path,
    state: PartialState,
) -> tuple[dict[str, EncodedGroups], dict[str, Any]]:
    """Join the scores of `model.reward_model` into the encoded groups, computing what the store lacks.

    The reward model reads the same texts with its own tokenizer and as its own run encoded them (the defaults for one
    that is no run). Every rank takes part and computes its share.

    Args:
        config: the run.
        parts: the texts.
        encoded: the same groups in the policy's tokens; over-long ones may be missing there.
        out: the run directory.
        state: the processes.

    Returns:
        The groups with `rm_head`, and path, fingerprint and settings for the manifest.

    Raises:
        BadInput: a group is too long for the reward model, or cannot be encoded for it.
    """
    path = config.model.reward_model
    theirs, held = _reward_model(config)
    if theirs.model.kind == "embedding":
        return _of_head(str(held.path), config, parts, encoded, out)
    tokenizer = load_tokenizer(
        str(held.tokenizer or held.path), revision=held.revision, trust_remote_code=held.trust_remote_code
    )
    if tokenizer.pad_token_id is None:  # where there is one, the model reads its reward as it was trained to
        prepare_padding(tokenizer, "reward_model")
    try:
        own = _in_its_tokens(theirs, held, tokenizer, parts, encoded)
    except BadInput as error:
        raise BadInput(f"model.reward_model={path}: {error}") from None

    def load() -> nn.Module:
        model = load_model(held, "reward_model", tokenizer, trainable=False)
        probe(model)
        return model

    asked = FrozenModel(
        "reward model", "head", held, load, tokenizer.pad_token_id, choose_precision(theirs, state), config.train.layout
    )
    heads, made = frozen_scores(asked, own, config, out, state)
    return {name: groups.with_rm_head(heads[name]) for name, groups in encoded.items()}, made


def _of_head(
    path: str, config: RunConfig, parts: Mapping[str, Groups], encoded: Mapping[str, EncodedGroups], out: Path
) -> tuple[dict[str, EncodedGroups], dict[str, Any]]:
    """The same of a head on embeddings, which reads the texts themselves, however long."""
    store = Path(config.store.path) if config.store.use else out / "store"
    model = EmbeddingModel.load(path, store=store)
    joined = {
        name: groups.with_rm_head(model.rewards(parts[name][row] for row in groups.rows()))
        for name, groups in encoded.items()
    }
    return joined, {"path": path, "embedder": model.embedder.name, "fingerprint": model.embedder.fingerprint}


def _reward_model(config: RunConfig) -> tuple[RunConfig, ModelConfig]:
    """How the reward model reads text, and how it is loaded: as its run says, else by the defaults."""
    path = config.model.reward_model
    assert path is not None
    folder = Path(path)
    if folder.name == "model" and (folder.parent / "config.yaml").is_file():
        raise BadInput(
            f"model.reward_model={path}: is the model of a run; name the run itself, which knows how its texts were "
            f"encoded: model.reward_model={folder.parent}"
        )
    if not (folder / "config.yaml").is_file():
        theirs = resolve("bt", {"model": {"path": path}, "train": {"precision": config.train.precision}})
        return theirs, theirs.model
    try:
        theirs, held = trained_model(folder)
    except BadInput as error:
        raise BadInput(f"model.reward_model: {error}") from None
    if theirs.kind != "reward_model":
        raise BadInput(
            f"model.reward_model={path}: is a run of recipe {theirs.recipe}, which does not train a reward model; "
            "name the run of one that does, e.g. of recipe bt"
        )
    return theirs, held


def _check_classifier(path: str, held: ModelConfig) -> None:
    """Refuse a model without a reward head of its own: loading would give it a random one."""
    adapter = _adapter(held)
    if adapter is not None:
        if adapter.get("task_type") != "SEQ_CLS":
            raise BadInput(f"model.reward_model={path}: is an adapter of a language model, not of a reward model")
        return
    found = _model_config(path, held)
    if not any("SequenceClassification" in name for name in found.architectures or ()):
        raise BadInput(
            f"model.reward_model={path}: holds {', '.join(found.architectures or ['no model'])}, which has no reward "
            "head; name a run of recipe bt, or a saved sequence classifier"
        )
    if found.num_labels != 1:
        raise BadInput(f"model.reward_model={path}: has {found.num_labels} outputs, a reward model has one")


def _adapter(held: ModelConfig) -> dict[str, Any] | None:
    file = Path(str(held.path)) / "adapter_config.json"
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _model_config(path: str | None, held: ModelConfig) -> Any:
    """The transformers configuration of the model, or of the base of an adapter; no weights are read."""
    from transformers import AutoConfig

    adapter = _adapter(held)
    name = str(held.path if adapter is None else adapter["base_model_name_or_path"])
    try:
        return AutoConfig.from_pretrained(name, revision=held.revision, trust_remote_code=held.trust_remote_code)
    except (OSError, ValueError) as error:
        where = "" if Path(name).is_dir() else "no such folder, and not found on the hub: "
        raise BadInput(f"model.reward_model={path}: {where}{str(error).strip().splitlines()[0]}") from None


def _in_its_tokens(
    theirs: RunConfig,
    held: ModelConfig,
    tokenizer: Any,
    parts: Mapping[str, Groups],
    encoded: Mapping[str, EncodedGroups],
) -> dict[str, EncodedGroups]:
    """The groups that the policy kept, in the same order, in the reward model's tokens; all of them, or none."""
    encoding = theirs.encoding
    limit = encoding.max_length or model_limit(SimpleNamespace(config=_model_config(held.path, held)), tokenizer)
    cut = encoding.on_overflow == "cut_prompt_left"
    changes = {"max_length": limit, "on_overflow": "cut_prompt_left" if cut else "drop"}
    encoder = Encoder(tokenizer, **encoding.model_dump() | changes)
    own: dict[str, EncodedGroups] = {}
    reports: list[EncodingReport] = []
    for name, groups in encoded.items():
        with progress(len(groups), f"encode {name} for the reward model") as bar:
            own[name], report = encoder.encode((parts[name][row] for row in groups.rows()), bar)
        log.info("%s for the reward model: %s", name, report.in_words())
        reports.append(report)
    too_long = sum(report.groups - report.kept for report in reports)
    if too_long:
        what = "have a response that alone fills" if cut else "are longer than"
        fix = "" if cut else " or encoding.on_overflow=cut_prompt_left"
        raise BadInput(
            f"{too_long} of {sum(report.groups for report in reports)} groups {what} the {limit} tokens that it reads "
            f"(the longest has {max(report.longest for report in reports)}); train it with a larger "
            f"encoding.max_length{fix}, or leave long groups out here with a smaller encoding.max_length and "
            "encoding.on_overflow=drop"
        )
    return own
