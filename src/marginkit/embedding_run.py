"""`model.kind: embedding`: the part of a run in which a head on frozen embeddings takes the model's place."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from marginkit.assembly import build_loss
from marginkit.config import EncodingConfig, ModelConfig, RunConfig, TrainConfig
from marginkit.core.loss import Loss
from marginkit.core.tensors import SequenceScores
from marginkit.data.encoded import encode_labels
from marginkit.embedders import open_embedder
from marginkit.embedding_features import examples_of
from marginkit.embedding_heads import METRICS, HeadSettings, train_heads
from marginkit.embedding_model import EmbeddingModel
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.preparing import Splits
from marginkit.records import content_text
from marginkit.rundir import write_manifest
from marginkit.scoring import group_rows
from marginkit.tables import PAIRS_SCHEMA, RESPONSES_SCHEMA, Scores

log = logging.getLogger("marginkit")

_MODEL_KEYS = {"kind", "path", "head"}
_TRAIN_KEYS = {
    *("learning_rate", "num_train_epochs", "weight_decay", "adam_beta1", "adam_beta2", "prompts_per_step", "per"),
    *("load_best_model_at_end", "metric_for_best_model", "control", "force", "use_cpu", "logging_steps"),
}
_SAMPLE = 64  # texts that a dry run embeds
_COUPLED_STEP = 32  # groups of a step whose pairs are all compared with one another, which costs their square


def check_head(config: RunConfig, ranks: int = 1) -> None:
    """Refuse what a head on frozen embeddings has no use for; nothing is read or loaded.

    Args:
        config: the run.
        ranks: processes.

    Raises:
        BadInput: which key, and the way out.
    """
    if config.kind != "reward_model":
        raise BadInput(
            f"model.kind=embedding: a head on embeddings is a reward model, and recipe {config.recipe} trains a "
            f"{config.kind.replace('_', ' ')}; use a recipe such as bt or mmpo_rm"
        )
    if ranks > 1:
        raise BadInput("model.kind=embedding: a head is trained in seconds by one process; start it without a launcher")
    if config.model.path == "fresh":
        raise BadInput("model.path=fresh: embeddings come from a trained model; use hash, minilm, or a model's folder")
    sections = (("model", ModelConfig(), _MODEL_KEYS), ("train", TrainConfig(), _TRAIN_KEYS))
    for name, default, used in (*sections, ("encoding", EncodingConfig(), set[str]())):
        section = getattr(config, name)
        for key in type(section).model_fields:
            if key not in used and getattr(section, key) != getattr(default, key):
                raise BadInput(f"{name}.{key}: is not used with model.kind=embedding; leave it out")
    train = config.train
    if train.num_train_epochs != int(train.num_train_epochs):
        raise BadInput(f"train.num_train_epochs={train.num_train_epochs:g}: with model.kind=embedding a whole number")
    if train.metric_for_best_model not in METRICS:
        raise BadInput(
            f"train.metric_for_best_model={train.metric_for_best_model}: must be one of {', '.join(METRICS)}"
        )
    loss = build_loss(config.spec, config.options())
    if loss.coupled or "rm_head" in loss.needs:
        why = "looks at a population of other pairs" if loss.coupled else "reads the scores of another reward model"
        raise BadInput(f"model.kind=embedding: the target of recipe {config.recipe} {why}, which a head here has not")


def head_settings(config: RunConfig, *, all_pairs: bool = False) -> HeadSettings:
    """How the head of a run is made and trained.

    Args:
        config: the run.
        all_pairs: whether all pairs of a group are used; they then share weight 1 unless `train.per` says otherwise.
    """
    train, target = config.train, _loss(config).target
    coupled = target is not None and target.part.couples == "batch"
    return HeadSettings(
        hidden=config.model.head.hidden,
        features=config.model.head.features,
        learning_rate=train.learning_rate,
        epochs=int(train.num_train_epochs),
        prompts_per_step=train.prompts_per_step or (_COUPLED_STEP if coupled else HeadSettings().prompts_per_step),
        weight_decay=train.weight_decay,
        betas=(train.adam_beta1, train.adam_beta2),
        per=train.per or ("prompt" if all_pairs else "pair"),
        keep_best=train.load_best_model_at_end,
        metric=train.metric_for_best_model,
        seed=config.seed,
    )


def store_of(config: RunConfig, out: Path | None = None) -> Path | None:
    """Where a run keeps embeddings: the store it names, else its own folder."""
    if config.store.use:
        return Path(config.store.path)
    return None if out is None else out / "store"


def fit_head(config: RunConfig, splits: Splits, out: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Embed the data, train the head, write `model/`, `log.jsonl` and the manifest.

    Args:
        config: the run.
        splits: its groups.
        out: the run directory.
        extra: what else the manifest says.

    Returns:
        What it cost: seconds of embedding and of training.

    Raises:
        BadInput: data without what the recipe needs.
        RunFailed: a loss or a vector is not finite.
    """
    assert config.model.path is not None
    torch.manual_seed(config.seed)
    embedder = open_embedder(config.model.path, store=store_of(config, out))
    settings = head_settings(config, all_pairs=splits.all_pairs and _loss(config).per == "pair")
    began = time.perf_counter()
    train = examples_of(splits.train, embedder, settings.features)
    dev = None if splits.eval is None else examples_of(splits.eval, embedder, settings.features)
    embedded = time.perf_counter() - began
    if settings.keep_best and dev is None:
        log.info("no dev split to choose the best epoch on: the last one is kept")
    shape = "linear" if not settings.hidden else f"one hidden layer of {settings.hidden}"
    words = f"head on {embedder.name} embeddings ({shape}, {train.values.shape[1]} features), {settings.epochs} epochs"
    log.info("%s: %d responses, %d pairs", words, len(train.values), len(train.columns["pairs"]))
    made = {"name": embedder.name, "fingerprint": embedder.fingerprint}
    facts = {"start": config.model.path, "embedder": made, "batches": words, "layout": "none", "per": settings.per}
    write_manifest(out, config, splits, {}, {**facts, **extra})
    with (out / "log.jsonl").open("w", encoding="utf-8") as lines:

        def note(epoch: int, line: dict[str, float]) -> None:
            told = {name: value for name, value in line.items() if value == value}
            lines.write(json.dumps({"epoch": epoch, **told}) + "\n")

        heads = train_heads(train, [_loss(config)], settings, dev=dev, log=note)
    EmbeddingModel(embedder, heads, settings.features, train.blocks).save(out / "model")
    return {"seconds_embedding": embedded, "seconds_training": time.perf_counter() - began - embedded}


def score_head(model: Path, config: RunConfig, groups: Groups, store: Path | None) -> Scores:
    """The two tables of a head on groups; a length in tokens is null there, that in characters is not.

    Raises:
        BadInput: no such model, or another embedder under the same name.
        RunFailed: a reward is not finite.
    """
    loss = _loss(config)
    rewards = EmbeddingModel.load(model, store=store).rewards(groups)
    responses: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for row, (group, own) in enumerate(zip(groups, rewards, strict=True)):
        scores = SequenceScores(head=torch.tensor(own, dtype=torch.float64))
        response_rows, pair_rows = group_rows(group, encode_labels(row, group), scores, own, loss)
        responses += [line | {"length": None} for line in response_rows]
        pairs += [line | {"length_chosen": None, "length_rejected": None} for line in pair_rows]
    return Scores(
        pa.Table.from_pylist(responses, schema=RESPONSES_SCHEMA), pa.Table.from_pylist(pairs, schema=PAIRS_SCHEMA)
    )


def _loss(config: RunConfig) -> Loss:
    return build_loss(config.spec, config.options(), seed=config.seed)


# -- the dry run


@dataclass(frozen=True, slots=True)
class HeadForecast:
    """What a run with a head on embeddings will be.

    Args:
        recipe, embedder: their names.
        groups, responses, pairs: of the training data.
        texts: different prompts and responses of all splits.
        seconds_embedding: from a sample of texts; less what the store has.
        steps: optimizer steps in all.
        bytes: of the features of the training data.
        control: another recipe that the run trains as well, or None.
    """

    recipe: str
    embedder: str
    groups: int
    responses: int
    pairs: int
    texts: int
    seconds_embedding: float
    steps: int
    bytes: int
    control: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    def in_words(self) -> list[tuple[str, str]]:
        """Rows of a table: what, and how much."""
        time = f"about {self.seconds_embedding:.1f} s, less what the store has"
        rows = [
            ("data", f"{self.groups} groups, {self.responses} responses, {self.pairs} pairs"),
            ("embedder", f"{self.embedder}: {self.texts} texts in {time}"),
            ("steps", f"{self.steps} optimizer steps of a head"),
            ("memory", f"{self.bytes / 2**20:,.0f} MiB of features"),
        ]
        if self.control is not None:
            rows.append(("control", f"{self.control} is trained as well, on the same embeddings"))
        return rows


def forecast_head(config: RunConfig, splits: Splits) -> HeadForecast:
    """Embed a sample of the texts and count the rest; nothing is trained or written."""
    assert config.model.path is not None
    every = [group for part in splits.parts().values() for group in part]
    texts = {content_text(group.prompt) for group in every}
    texts |= {response.text for group in every for response in group.responses}
    embedder, settings = open_embedder(config.model.path), head_settings(config)
    sample: Sequence[str] = list(islice(sorted(texts), 0, None, max(1, len(texts) // _SAMPLE)))
    embedder.embed(sample[:1])  # loads the model
    began = time.perf_counter()
    embedder.embed(sample)
    seconds = (time.perf_counter() - began) * len(texts) / len(sample)
    width = examples_of([splits.train[0]], embedder, settings.features).values.shape[1]
    responses = sum(len(group.responses) for group in splits.train)
    return HeadForecast(
        recipe=config.recipe,
        embedder=embedder.name,
        groups=len(splits.train),
        responses=responses,
        pairs=sum(len(group.pairs) for group in splits.train),
        texts=len(texts),
        seconds_embedding=seconds,
        steps=settings.epochs * -(-len(splits.train) // settings.prompts_per_step),
        bytes=4 * width * responses,
        control=config.train.control,
    )
