"""What a trained model says of graded data: a run or a saved model, asked by all processes there are.

Every rank takes a part of the groups, in order, and all get the whole tables: `accelerate launch -m marginkit score`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from accelerate.utils import gather_object
from torch import nn

from marginkit.assembly import build_loss
from marginkit.config import ModelConfig, RunConfig, resolve, trained_model
from marginkit.embedding_model import is_embedding_model
from marginkit.embedding_run import score_head, store_of
from marginkit.errors import BadInput, MarginkitError, RunFailed
from marginkit.groups import Groups
from marginkit.models.loading import load_model, load_tokenizer, prepare_padding
from marginkit.models.rungs import choose_rung
from marginkit.preparing import ready
from marginkit.progress import progress
from marginkit.reference import join_reference
from marginkit.registry import resolve_options
from marginkit.scoring import Precision, choose_precision, score_tables
from marginkit.setup import encode_parts, longest_of, ranks
from marginkit.store import folder_fingerprint
from marginkit.tables import Scores

Rule = Literal["sum", "avg"]
_RULES: Mapping[Rule, Mapping[str, Any]] = {"sum": {"name": "logp"}, "avg": {"name": "per_token", "beta": 1.0}}


def score_run(
    run: str | Path,
    groups: Groups,
    *,
    recipe: str | None = None,
    reference: str | None = None,
    shared: bool = True,
) -> Scores:
    """The two tables of a run or a saved model on groups; arguments and errors of `marginkit.run.score`.

    Args:
        run: a run directory, or a saved model (a folder or hub name).
        groups: groups; pairs are made as in training where they have none.
        recipe: how a model that is no run is read.
        reference: the reference policy of one.
        shared: with several processes, each scores a part and all get the whole; False: this process does it alone,
            while the others wait for it.
    """
    return open_scorer(run, recipe=recipe, reference=reference).score(groups, shared=shared)


def open_scorer(
    run: str | Path,
    *,
    recipe: str | None = None,
    reference: str | None = None,
    rule: Rule | None = None,
    on_overflow: str | None = None,
    chat_template: str | None = None,
) -> Scorer:
    """A run or a saved model that is asked again and again; its weights are read when the first score is wanted.

    Args:
        run: a run directory, or a saved model (a folder or hub name).
        recipe: how a model that is no run is read.
        reference: the reference policy of one.
        rule: how a policy's log-probabilities become rewards, in place of its recipe's own way: `sum` over tokens or
            their mean (`avg`), both without a reference.
        on_overflow: drop or cut_prompt_left, in place of what it was trained with.
        chat_template: a file, or chatml, in place of the tokenizer's own: for chats, where it has none.

    Raises:
        BadInput: no such run or model, a policy without a reference, or a rule for what is no policy.
    """
    if rule is not None and reference is not None:
        raise BadInput(f"--reference {reference}: rule {rule} asks no reference; leave one of the two out")
    folder = Path(run)
    config, held, start = _what_to_score(folder, recipe, reference, rule)
    if rule is not None:
        if config.kind == "reward_model":
            raise BadInput(f"{folder}: rule {rule} is for policies, and this is a reward model; leave it out")
        config = config.with_(recipe="dpo", reward=dict(_RULES[rule]), target={}, objective={})
    given = {"on_overflow": on_overflow, "chat_template": chat_template}
    told = {name: value for name, value in given.items() if value is not None}
    if told and config.model.kind == "embedding":
        raise BadInput(
            f"{folder}: a head on embeddings cuts no text and knows no template; leave out {', '.join(told)}"
        )
    config = config.with_(encoding=config.encoding.model_copy(update=told)) if told else config
    return Scorer(folder, config, held, start)


@dataclass(frozen=True, slots=True)
class _Loaded:
    tokenizer: Any
    model: nn.Module
    precision: Precision


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model that is asked for scores.

    Args:
        folder: the run directory or saved model.
        config: how its scores are made.
        held: how the model is loaded.
        start: the model it started from: its reference.
    """

    folder: Path
    config: RunConfig
    held: ModelConfig
    start: ModelConfig
    _loaded: list[_Loaded] = field(default_factory=list)

    def score(self, groups: Groups, *, shared: bool = True) -> Scores:
        """The two tables; pairs are made as in training where the groups have none."""
        config = self.config
        if config.kind != "sft" and not any(len(group.pairs) for group in groups):
            groups = ready(groups, config, keep_all=True)
        if config.model.kind == "embedding":  # seconds: every process does it alone
            return score_head(Path(str(self.held.path)), config, groups, store_of(config, self.folder))
        state = ranks(config)
        shared = shared and 1 < state.num_processes <= len(groups)
        if shared:
            ends = [rank * len(groups) // state.num_processes for rank in range(state.num_processes + 1)]
            groups = groups[ends[state.process_index] : ends[state.process_index + 1]]
        own = self._load()
        return _of_all_ranks(lambda: self._tables(own, groups)) if shared else self._tables(own, groups)

    def close(self) -> None:
        """Let go of the weights."""
        self._loaded.clear()

    def _load(self) -> _Loaded:
        """Tokenizer and model, read once."""
        if not self._loaded:
            held = self.held
            tokenizer = load_tokenizer(str(held.tokenizer or held.path), revision=held.revision)
            if tokenizer.pad_token_id is None:  # where there is one, the model reads its reward as it was trained to
                prepare_padding(tokenizer, self.config.kind)
            model = load_model(held, self.config.kind, tokenizer, trainable=False)
            precision = choose_precision(self.config, ranks(self.config))
            if held.quantization is None:
                model = model.to(precision.device)
            self._loaded.append(_Loaded(tokenizer, model, precision))
        return self._loaded[0]

    def _tables(self, own: _Loaded, groups: Groups) -> Scores:
        config, precision, model = self.config, own.precision, own.model
        encoding = config.encoding
        if encoding.on_overflow == "error":
            encoding = encoding.model_copy(update={"on_overflow": "drop"})
        layout = "auto" if config.train.layout == "flex" and precision.device.type != "cuda" else config.train.layout
        loss = build_loss(config.spec, config.options())
        encoded, _ = encode_parts(encoding, own.tokenizer, model, {"score": groups})
        if not encoded:
            raise BadInput("every group is longer than max_length; raise encoding.max_length")
        kernel = self.held.attention
        rung = choose_rung(model, layout, longest=longest_of(encoded), kernel=kernel, strict=False)
        if "ref_logp" in loss.reward.part.needs:
            # each rank asks for its own part, or the others wait meanwhile: none is asked for a share
            encoded, _ = join_reference(
                config, self.start, None, own.tokenizer, encoded, self.folder, precision, rung, None
            )
        rows = sum(len(shape.responses) for shape in encoded["score"].shapes())
        with progress(rows, "score responses") as bar:
            return score_tables(
                model,
                groups,
                encoded["score"],
                loss,
                pad_id=own.tokenizer.pad_token_id,
                tokens=config.train.tokens_per_micro_batch,
                precision=precision,
                rung=rung,
                progress=bar,
            )

    def facts(self) -> dict[str, Any]:
        """How its scores are made, for whoever reads them: nothing is quantised or cut in silence."""
        config, held = self.config, self.held
        if config.model.kind == "embedding":
            return {"recipe": config.recipe, "reward": {"function": "head on frozen embeddings"}, "precision": "fp32"}
        function, options = resolve_options(config.spec, "reward", config.reward)
        encoding = config.encoding
        return {
            "recipe": config.recipe,
            "reward": {"function": function.rpartition(":")[2], **options},
            "reference": str(config.model.reference or self.start.path) if self._asks_reference() else None,
            "precision": choose_precision(config, ranks(config)).name,
            "dtype": held.dtype or "float32",
            "quantization": held.quantization,
            "max_length": encoding.max_length,
            "on_overflow": encoding.on_overflow if encoding.on_overflow != "error" else "drop",
            "chat_template": encoding.chat_template,
        }

    @property
    def model_type(self) -> Literal["Seq. Classifier", "DPO", "DPO Ref. Free", "Custom Classifier"]:
        """The word for it on the RewardBench leaderboard."""
        if self.config.model.kind == "embedding":
            return "Custom Classifier"
        if self.config.kind == "reward_model":
            return "Seq. Classifier"
        return "DPO" if self._asks_reference() else "DPO Ref. Free"

    def _asks_reference(self) -> bool:
        return "ref_logp" in build_loss(self.config.spec, self.config.options()).reward.part.needs

    def fingerprint(self) -> str:
        """Sixteen hex digits of the model, of the reference it asks, and of how its scores are made."""
        facts = self.facts()
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for path in (str(self.held.path), facts.get("reference")):
            if path is not None:  # a model that is not here yet is known by its name
                digest.update((folder_fingerprint(path) if Path(path).is_dir() else path).encode())
        return digest.hexdigest()[:16]


def _of_all_ranks(tables: Callable[[], Scores]) -> Scores:
    """The tables of every rank, one after the other; where one fails all of them do, and none is left waiting."""
    failed: tuple[bool, str] | None = None
    made: tuple[bytes, bytes] | None = None
    try:
        own = tables()
        made = (_to_bytes(own.responses), _to_bytes(own.pairs))
    except MarginkitError as error:
        failed = (isinstance(error, BadInput), str(error))
    everyone: list[tuple[Any, Any]] = gather_object([(failed, made)])
    for refused, _ in everyone:
        if refused is not None:
            raise (BadInput if refused[0] else RunFailed)(refused[1])
    parts = [part for _, part in everyone]
    return Scores(*(pa.concat_tables([_from_bytes(part[which]) for part in parts]) for which in (0, 1)))


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _from_bytes(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()


def _what_to_score(
    folder: Path, recipe: str | None, reference: str | None, rule: Rule | None
) -> tuple[RunConfig, ModelConfig, ModelConfig]:
    """The configuration, the trained model and the model it started from."""
    if (folder / "config.yaml").is_file():
        config, trained = trained_model(folder)
        try:
            origin = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["start"]
        except (OSError, ValueError, LookupError, TypeError):
            raise BadInput(f"{folder}: its manifest.json cannot be read; continue the run, or train it again") from None
        start = config.model.model_copy(update={"path": origin, "tokenizer": None})
        return config, trained, start
    if is_embedding_model(folder):
        config = resolve(recipe or "bt", {"model": {"kind": "embedding"}})
        return config, config.model.model_copy(update={"path": str(folder)}), config.model
    held = folder / "config.json"
    names = json.loads(held.read_text(encoding="utf-8")).get("architectures") or [] if held.is_file() else []
    rewards = any("SequenceClassification" in name for name in names)
    if recipe is None and not rewards and rule is not None:
        recipe = "dpo"
    if recipe is None:
        if not folder.exists():
            raise BadInput(f"{folder}: no such run or model; a model on the hub needs --recipe, e.g. --recipe bt")
        if not rewards:
            raise BadInput(f"{folder}: not a run, and not a saved reward model; say how to read it, e.g. --recipe dpo")
        recipe = "bt"
    path = str(folder)
    config = resolve(recipe, {"model": {"path": path, "reference": reference}})
    if rule is not None:
        return config, config.model, config.model
    needs = build_loss(config.spec, config.options()).reward.part.needs
    if "ref_logp" in needs and reference is None:
        raise BadInput(f"{path}: the reward of recipe {recipe} is relative to a reference; name it with --reference")
    if "ref_logp" not in needs and reference is not None:
        raise BadInput(f"--reference {reference}: the reward of recipe {recipe} has no reference; leave it out")
    return config, config.model, config.model
