"""What a trained model says of graded data: a run or a saved model, asked by all processes there are.

Every rank takes a part of the groups, in order, and all get the whole tables: `accelerate launch -m marginkit score`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate.utils import gather_object

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
from marginkit.scoring import choose_precision, score_tables
from marginkit.setup import encode_parts, longest_of, ranks
from marginkit.tables import Scores


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
    folder = Path(run)
    config, model_config, start = _what_to_score(folder, recipe, reference)
    if config.kind != "sft" and not any(len(group.pairs) for group in groups):
        groups = ready(groups, config, keep_all=True)
    if config.model.kind == "embedding":  # seconds: every process does it alone
        return score_head(Path(str(model_config.path)), config, groups, store_of(config, folder))
    tokenizer = load_tokenizer(str(model_config.tokenizer or model_config.path), revision=model_config.revision)
    if tokenizer.pad_token_id is None:  # where there is one, the model reads its reward as it was trained to
        prepare_padding(tokenizer, config.kind)
    model = load_model(model_config, config.kind, tokenizer, trainable=False)
    state = ranks(config)
    precision = choose_precision(config, state)
    if model_config.quantization is None:
        model = model.to(precision.device)
    shared = shared and 1 < state.num_processes <= len(groups)
    if shared:
        ends = [rank * len(groups) // state.num_processes for rank in range(state.num_processes + 1)]
        groups = groups[ends[state.process_index] : ends[state.process_index + 1]]
    encoding = config.encoding.model_copy(
        update={"on_overflow": "drop" if config.encoding.on_overflow == "error" else config.encoding.on_overflow}
    )
    layout = "auto" if config.train.layout == "flex" and precision.device.type != "cuda" else config.train.layout
    loss = build_loss(config.spec, config.options())

    def tables() -> Scores:
        encoded, _ = encode_parts(encoding, tokenizer, model, {"score": groups})
        if not encoded:
            raise BadInput("every group is longer than max_length; raise encoding.max_length")
        rung = choose_rung(model, layout, longest=longest_of(encoded), kernel=model_config.attention, strict=False)
        if "ref_logp" in loss.reward.part.needs:
            # each rank asks for its own part, or the others wait meanwhile: none is asked for a share
            encoded, _ = join_reference(config, start, None, tokenizer, encoded, folder, precision, rung, None)
        rows = sum(len(shape.responses) for shape in encoded["score"].shapes())
        with progress(rows, "score responses") as bar:
            return score_tables(
                model,
                groups,
                encoded["score"],
                loss,
                pad_id=tokenizer.pad_token_id,
                tokens=config.train.tokens_per_micro_batch,
                precision=precision,
                rung=rung,
                progress=bar,
            )

    return _of_all_ranks(tables) if shared else tables()


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
    folder: Path, recipe: str | None, reference: str | None
) -> tuple[RunConfig, ModelConfig, ModelConfig]:
    """The configuration, the trained model and the model it started from."""
    if (folder / "config.yaml").is_file():
        config, trained = trained_model(folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        start = config.model.model_copy(update={"path": manifest["start"], "tokenizer": None})
        return config, trained, start
    if is_embedding_model(folder):
        config = resolve(recipe or "bt", {"model": {"kind": "embedding"}})
        return config, config.model.model_copy(update={"path": str(folder)}), config.model
    if recipe is None:
        if not folder.exists():
            raise BadInput(f"{folder}: no such run or model; a model on the hub needs --recipe, e.g. --recipe bt")
        held = folder / "config.json"
        names = json.loads(held.read_text(encoding="utf-8")).get("architectures") or [] if held.is_file() else []
        if not any("SequenceClassification" in name for name in names):
            raise BadInput(f"{folder}: not a run, and not a saved reward model; say how to read it, e.g. --recipe dpo")
        recipe = "bt"
    path = str(folder)
    config = resolve(recipe, {"model": {"path": path, "reference": reference}})
    needs = build_loss(config.spec, config.options()).reward.part.needs
    if "ref_logp" in needs and reference is None:
        raise BadInput(f"{path}: the reward of recipe {recipe} is relative to a reference; name it with --reference")
    if "ref_logp" not in needs and reference is not None:
        raise BadInput(f"--reference {reference}: the reward of recipe {recipe} has no reference; leave it out")
    return config, config.model, config.model
