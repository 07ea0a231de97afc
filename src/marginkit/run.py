"""A run, the whole way: graded data in, a trained and judged model in a run directory out."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object

from marginkit.benchmark_watch import BenchmarkWatch, benchmark_samples
from marginkit.benchmarking import Benchmark
from marginkit.card import push, write_card
from marginkit.config import ModelConfig, RunConfig, resolve
from marginkit.control import twin_of
from marginkit.cost import measured_peak
from marginkit.embedding_run import check_head, fit_head
from marginkit.errors import BadInput
from marginkit.evaluation.compare import compare, verdict
from marginkit.evaluation.diagnosis import Diagnosis
from marginkit.evaluation.metrics import Evaluation, evaluate
from marginkit.gamma_run import gamma_at, keep_gamma, settle_gamma
from marginkit.groups import Groups, write_groups
from marginkit.memory import estimate, wants_checkpointing
from marginkit.mistaken_texts import write_mistakes
from marginkit.preparing import Splits, prepare
from marginkit.records import Estimate
from marginkit.reference import join_reference
from marginkit.reporting.reports import diagnoses_of
from marginkit.reporting.run_page import run_page
from marginkit.reporting.runs import read_record
from marginkit.reporting.writing import write_page
from marginkit.requirements import check_model
from marginkit.reward_scores import join_reward_scores
from marginkit.run_scores import score_run
from marginkit.rundir import check_data, last_checkpoint, open_run, run_folder, write_manifest, write_whole
from marginkit.setup import Setup, ranks, set_up, starting_model
from marginkit.speed import Speedometer
from marginkit.tables import Scores

log = logging.getLogger("marginkit")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Args:
        path: the run directory.
        config: what it was made of.
        checkpoint: the trained model, a folder that transformers (or PEFT) loads.
        metrics: the evaluation on the test split, else on the dev split; empty if there is neither.
        control: the hard-label twin, if one was trained.
        differences: this run - control, on the same pairs.
        seconds: wall time.
        page: `report.html` of the run; None where it could not be drawn, and in other processes than the first.
        diagnosis: what its training shows, the gravest first.
    """

    path: Path
    config: RunConfig
    checkpoint: Path
    metrics: Evaluation | None
    control: Run | None = None
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    seconds: float = 0.0
    page: Path | None = None
    diagnosis: Sequence[Diagnosis] = ()

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result of `marginkit train`."""
        result: dict[str, Any] = {
            "run": str(self.path),
            "checkpoint": str(self.checkpoint),
            "metrics": None if self.metrics is None else self.metrics.to_json(),
            "seconds": round(self.seconds, 1),
            "page": None if self.page is None else str(self.page),
            "diagnosis": [one.to_json() for one in self.diagnosis],
        }
        if self.control is not None:
            result["control"] = self.control.to_json()
            result["differences"] = {name: value.to_json() for name, value in self.differences.items()}
            result["verdict"] = verdict(self.differences, names=(self.config.recipe, self.control.config.recipe))
        return result


def train(
    recipe: str | Path | RunConfig,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    train: Groups | None = None,
) -> Run:
    """Train a policy or reward model with a recipe, judge it on held-out data, keep everything in a run directory.

    Args:
        recipe: a name of the catalogue, a YAML file, or a resolved configuration.
        overrides: `key.sub=value` strings, or a nested mapping.
        train: groups at hand, instead of what `data.train` names.

    Returns:
        The finished run. An interrupted one, started again with the same `out`, goes on where it was.

    Raises:
        BadInput: configuration or data are wrong; raised before a model is loaded wherever that is possible.
        RunFailed: a number is not finite, a disk is full.

    Example: `train("mmpo", ["model.path=gpt2", "data.train=ratings.jsonl", "target.gamma=0.5"])`
    """
    config = recipe if isinstance(recipe, RunConfig) else resolve(recipe, overrides)
    check_model(config)
    splits = prepare(config, train)
    samples = benchmark_samples(config, has_eval=splits.eval is not None)
    state = ranks(config)
    if config.model.kind == "embedding":
        check_head(config, state.num_processes)
    if config.out is None and state.num_processes > 1:
        raise BadInput("out is missing: with several processes, name the run directory, e.g. out=runs/mmpo-a")
    out = run_folder(config)
    config, gamma = settle_gamma(config, splits.train, out, state)
    if train is not None:
        config = config.with_(data=config.data.model_copy(update={"train": (str(out / "groups.jsonl"),)}))
    new = not out.exists()
    if state.is_main_process:
        open_run(config.with_(out=str(out)))
        check_data(out, splits)
        keep_gamma(gamma, out)
        if train is not None:
            write_groups(train, out / "groups.jsonl")  # so that the configuration is enough to repeat the run
    state.wait_for_everyone()
    try:
        start = starting_model(config, splits, out, state)
        run = fit(config, splits, out, start, state, samples)
    except BadInput:
        began = (out / "log.jsonl").exists() or (out / "model").exists()
        if new and state.is_main_process and not began and last_checkpoint(out) is None:
            shutil.rmtree(out)  # made a moment ago for a run that never began
        raise
    if config.train.control is None:
        return _looked_back(run, state)
    twin = twin_of(config, config.train.control, out / "control")
    log.info("control: %s on the same data, from the same start", twin.recipe)
    control_out = out / "control"
    if state.is_main_process and not (control_out / "metrics.json").is_file():
        open_run(twin)
    state.wait_for_everyone()
    control = fit(twin, splits, control_out, start, state, samples)
    differences: Mapping[str, Estimate] = {}
    if run.metrics is not None:
        differences = compare(out / "tables", control_out / "tables")
    both = Run(out, config, run.checkpoint, run.metrics, control, differences, run.seconds + control.seconds)
    return _looked_back(both, state)


def _looked_back(run: Run, state: PartialState) -> Run:
    """The run with its page and with what its training shows."""
    if not state.is_main_process:
        return run
    try:
        record = read_record(run.path)
        found = diagnoses_of(record)
        page = write_page(run_page(record, found), run.path / "report.html")
    except Exception as error:  # a page that cannot be drawn must not take the run with it
        log.warning("%s: its page could not be drawn (%s: %s)", run.path, type(error).__name__, error)
        return run
    return replace(run, page=page, diagnosis=found)


def fit(
    config: RunConfig,
    splits: Splits,
    out: Path,
    start: ModelConfig,
    state: PartialState,
    samples: Sequence[Benchmark] = (),
) -> Run:
    """Train from `start` into `out` and judge the result; goes on from the last checkpoint if there is one."""
    from marginkit.arguments import training_arguments
    from marginkit.training import MarginTrainer

    began = time.perf_counter()
    if (out / "metrics.json").is_file():  # a control that was finished before the interruption
        return Run(out, config, out / "model", _judge(config, out, splits), seconds=0.0)
    if config.model.kind == "embedding":
        cost = fit_head(config, splits, out, _chosen(out))
        return Run(out, config, out / "model", _finish(config, splits, out, cost), seconds=time.perf_counter() - began)
    setup = set_up(config, splits, start, state)
    model, tokenizer, loss, encoded = setup.model, setup.tokenizer, setup.loss, setup.encoded
    extra: dict[str, Any] = {"start": str(start.path), "distributed": str(state.distributed_type)} | _chosen(out)
    if "rm_head" in loss.needs:
        read = {name: groups for name, groups in encoded.items() if name != "test"}  # judging asks for none
        joined, extra["reward_model"] = join_reward_scores(config, splits.parts(), read, out, state)
        encoded |= joined
    if "ref_logp" in loss.needs:
        encoded, extra["reference"] = join_reference(
            config, start, model, tokenizer, encoded, out, setup.precision, setup.rung, state
        )
    log.info("%s; layout: %s", setup.words, setup.rung)
    config = without_idle_warmup(config, len(setup.plan))
    config = _with_checkpointing(config, setup, state)
    checkpoint = last_checkpoint(out)
    arguments = training_arguments(config, out, precision=setup.precision.name, has_eval="eval" in encoded)
    # where training starts from: "fell by 14 nats" needs an origin; weights that are sharded would be gathered by it
    sharded = state.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED) or bool(config.train.fsdp)
    arguments.eval_on_start = arguments.eval_strategy != "no" and checkpoint is None and not sharded
    per = setup.per
    speed = Speedometer(measured_peak(setup.precision) * state.num_processes)
    if state.is_main_process:
        counted = "response" if loss.per == "response" and per == "pair" else per
        extra |= {"batches": setup.words, "layout": setup.rung, "per": counted}
        write_manifest(out, config, splits, setup.reports, extra)
    trainer = MarginTrainer(
        model,
        loss,
        arguments,
        setup.plan,
        encoded["train"],
        encoded.get("eval"),
        tokenizer,
        per=per,
        population=(config.train.population if loss.coupled else None) or "microbatch",
        population_window=config.train.population_window or 1024,
        log_file=out / "log.jsonl",
        rung=setup.rung,
        speed=speed,
    )
    if samples:
        trainer.add_callback(BenchmarkWatch(trainer, samples, setup, config, start, out, state))
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(out / "model"))
    trainer.accelerator.wait_for_everyone()
    metrics = _finish(config, splits, out, speed.summary()) if state.is_main_process else None
    state.wait_for_everyone()
    return Run(out, config, out / "model", metrics, seconds=time.perf_counter() - began)


def _chosen(out: Path) -> dict[str, Any]:
    """What `target.gamma=auto` came to, for the manifest."""
    found = gamma_at(out)
    return {} if found is None else {"gamma": found.to_json()}


def _finish(config: RunConfig, splits: Splits, out: Path, cost: Mapping[str, Any]) -> Evaluation | None:
    """Judge the trained model and write down what is known of it; a run is finished when `metrics.json` is there."""
    metrics = _judge(config, out, splits)
    told = None if metrics is None else metrics.to_json()
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8")) | {"cost": dict(cost)}
    write_whole(out / "manifest.json", json.dumps(manifest, indent=2))
    write_card(out / "model", config, manifest, told)
    if config.train.push_to_hub:
        push(out / "model", config, manifest)
    write_whole(out / "metrics.json", json.dumps(told, indent=2))
    return metrics


def _with_checkpointing(config: RunConfig, setup: Setup, state: PartialState) -> RunConfig:
    """Decide what `train.gradient_checkpointing=auto` means here: for all ranks the same."""
    wanted = config.train.gradient_checkpointing
    sharding = config.train.fsdp_config
    if wanted == "auto" and isinstance(sharding, dict) and sharding.get("activation_checkpointing"):
        wanted = False  # the wrapper does it
    if wanted == "auto":
        sharded = bool(config.train.fsdp or config.train.deepspeed)
        memory = estimate(
            setup.model,
            setup.encoded["train"],
            setup.plan,
            config.train,
            setup.precision,
            setup.rung,
            pad_id=setup.pad_id,
            shards=state.num_processes if sharded else 1,
        )
        wanted = any(gather_object([wants_checkpointing(setup.model, memory, wanted)]))
    return config.with_(train=config.train.model_copy(update={"gradient_checkpointing": wanted}))


def without_idle_warmup(config: RunConfig, steps_an_epoch: int) -> RunConfig:
    """Leave the warm-up out where it would take every step: its first step has rate 0, so nothing would be trained."""
    train = config.train
    total = train.max_steps if train.max_steps > 0 else math.ceil(steps_an_epoch * train.num_train_epochs)
    warm = train.warmup_steps if train.warmup_steps >= 1 else math.ceil(total * train.warmup_steps)
    if warm < total:
        return config
    log.info(
        "%d optimizer step(s) in all, so the warm-up of %g is left out; a smaller train.prompts_per_step gives more",
        total,
        warm,
    )
    return config.with_(train=train.model_copy(update={"warmup_steps": 0.0}))


def _judge(config: RunConfig, out: Path, splits: Splits) -> Evaluation | None:
    """Score the saved model on the held-out groups and evaluate the tables."""
    held = splits.test if splits.test is not None else splits.eval
    if held is None:
        log.info("no test or dev split: nothing is judged")
        return None
    scores = score_run(out, held, shared=False)  # the other ranks wait for this one
    scores.save(out / "tables")
    write_mistakes(held, scores, out / "tables")
    if config.kind != "sft" and not scores.pairs.num_rows:
        log.info("no pairs in the held-out data: nothing is judged (the scores are in %s)", out / "tables")
        return None
    return evaluate(scores)


def score(
    run: Run | str | Path,
    groups: Groups,
    *,
    recipe: str | None = None,
    reference: str | None = None,
) -> Scores:
    """What a trained model says of graded data: one row a response, one row a pair.

    With several processes each scores a part of the groups, and all of them get the whole tables.

    Args:
        run: a run, its directory, or any saved model (a folder or hub name).
        groups: groups; pairs are made as in training where they have none.
        recipe: for a saved model that is no run: how its scores become rewards. Default: bt for a classifier.
        reference: for a saved policy that is no run: the reference policy.

    Returns:
        Two Arrow tables.

    Raises:
        BadInput: no such run or model, or a policy without a reference.
        RunFailed: a reward is not finite.
    """
    return score_run(run.path if isinstance(run, Run) else run, groups, recipe=recipe, reference=reference)
