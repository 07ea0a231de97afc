"""Benchmarks during training: a sample of each, scored at every evaluation, in the log as `benchmark/NAME/accuracy`."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from marginkit.benchmarking import Benchmark, Kind, judge_by_rule, read_benchmarks
from marginkit.config import ModelConfig, RunConfig
from marginkit.data.encoded import EncodedGroup
from marginkit.errors import BadInput
from marginkit.evaluation import rewardbench, rewardbench2
from marginkit.evaluation.pair_columns import PairColumns
from marginkit.groups import Groups
from marginkit.records import Estimate
from marginkit.reference import join_reference
from marginkit.scoring import score_tables
from marginkit.setup import Setup, encode_parts
from marginkit.tables import PAIRS_SCHEMA, RESPONSES_SCHEMA, Scores


def benchmark_samples(config: RunConfig, *, has_eval: bool) -> list[Benchmark]:
    """Read `train.benchmarks` and draw a sample of each: refused at once, not after hours of training.

    Args:
        config: the run.
        has_eval: whether there is data to evaluate on in training.

    Raises:
        BadInput: a benchmark cannot be read, or the run never evaluates.
    """
    train = config.train
    if not train.benchmarks:
        return []
    if not has_eval or train.eval_strategy == "no":
        raise BadInput(
            "train.benchmarks: are scored at every evaluation, and this run has none; give it a dev split "
            "(data.eval or data.eval_split) and train.eval_strategy=steps or epoch"
        )
    if train.fsdp or train.deepspeed:
        raise BadInput(_SHARDED)
    read = read_benchmarks(train.benchmarks)
    return [replace(one, groups=sample(one.groups, train.benchmark_sample, seed=config.seed)) for one in read]


_SHARDED = (
    "train.benchmarks: a model whose weights are sharded is not scored in training; leave them out, and use "
    "marginkit evaluate --model RUN --data FILE afterwards"
)


def sample(groups: Groups, size: int, *, seed: int = 0) -> Groups:
    """At most `size` groups, each subset with its share (rounded up, so that small ones stay), in their order.

    Args:
        groups: of a benchmark.
        size: how many; rounding may add one a subset.
        seed: of the draw.

    Example:
        >>> from marginkit.records import Group, Response
        >>> groups = Groups.from_iterable(
        ...     Group(str(n), "?", (Response("x"),), subset="small" if n == 7 else "large") for n in range(40)
        ... )
        >>> drawn = sample(groups, 10)
        >>> len(drawn), "small" in drawn.column("subset")
        (11, True)
    """
    if len(groups) <= size:
        return groups
    members: dict[str, list[int]] = defaultdict(list)
    for row, subset in enumerate(groups.column("subset")):
        members[subset or ""].append(row)
    drawn: set[int] = set()
    for subset, rows in sorted(members.items()):
        drawn.update(random.Random(f"{seed} {subset}").sample(rows, math.ceil(len(rows) * size / len(groups))))
    return Groups.from_iterable(groups[row] for row in sorted(drawn))


@dataclass(frozen=True, slots=True)
class Watched:
    """A sample in tokens, with reference scores where the rewards need them."""

    name: str
    kind: Kind
    groups: Groups
    encoded: Sequence[EncodedGroup]


class BenchmarkWatch(TrainerCallback):
    """Scores the samples at every evaluation; every rank takes its part.

    Args:
        trainer: whose model is scored, and whose log is written.
        samples: what `benchmark_samples` read.
        setup: of the run: tokenizer, rung and precision of the model.
        config: the run.
        start: the model it starts from.
        out: the run directory.
        state: the ranks.

    Raises:
        BadInput: the weights are sharded, or a sample is too long for the model.
    """

    def __init__(
        self,
        trainer: Any,
        samples: Sequence[Benchmark],
        setup: Setup,
        config: RunConfig,
        start: ModelConfig,
        out: Path,
        state: PartialState,
    ) -> None:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise BadInput(_SHARDED)
        self.trainer, self.setup, self.tokens = trainer, setup, config.train.tokens_per_micro_batch
        encoding = config.encoding
        if encoding.on_overflow == "error":
            encoding = encoding.model_copy(update={"on_overflow": "drop"})
        parts = {f"benchmark {one.name}": one.groups for one in samples}
        encoded, _ = encode_parts(encoding, setup.tokenizer, setup.model, parts)
        for one in samples:
            if f"benchmark {one.name}" not in encoded:
                raise BadInput(f"train.benchmarks: all of {one.file} is too long for the model; leave it out")
        if "ref_logp" in setup.loss.reward.part.needs:
            model, tokenizer = setup.model, setup.tokenizer
            encoded, _ = join_reference(
                config, start, model, tokenizer, encoded, out, setup.precision, setup.rung, state
            )
        self.watched = [Watched(one.name, one.kind, one.groups, encoded[f"benchmark {one.name}"]) for one in samples]

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score, judge and log."""
        found: dict[str, float] = {}
        for one in self.watched:
            judged = _judge_sample(one.kind, *self._tables(one, args.process_index, args.world_size))
            found |= {f"benchmark/{one.name}/{name}": value for name, value in judged.items()}
        self.trainer.log(found)

    def _tables(self, one: Watched, rank: int, world: int) -> tuple[pa.Table, pa.Table]:
        """Responses and pairs of all ranks."""
        setup = self.setup
        own: Any = [one.encoded[row] for row in range(rank, len(one.encoded), world)]
        scores = score_tables(
            self.trainer.model,
            one.groups,
            own,
            setup.loss,
            pad_id=setup.pad_id,
            tokens=self.tokens,
            precision=setup.precision,
            rung=setup.rung,
        )
        if world == 1:
            return scores.responses, scores.pairs
        parts: list[Any] = gather_object([(scores.responses.to_pylist(), scores.pairs.to_pylist())])
        schemas = (RESPONSES_SCHEMA, PAIRS_SCHEMA)
        responses, pairs = (
            pa.Table.from_pylist([row for part in parts for row in part[which]], schema=schema)
            for which, schema in enumerate(schemas)
        )
        return responses, pairs


def _judge_sample(kind: Kind, responses: pa.Table, pairs: pa.Table) -> dict[str, float]:
    """What is logged of a sample: accuracy and nll; of a RewardBench with all its parts in it the score as well.

    Example:
        >>> _judge_sample("pairs", RESPONSES_SCHEMA.empty_table(), PAIRS_SCHEMA.empty_table())
        {}
    """
    if not len(pairs):
        return {}
    values = PairColumns.read(pairs).values()
    found = {name: float(np.nanmean(values[name])) for name in ("accuracy", "nll") if not np.isnan(values[name]).all()}
    judged: dict[str, Estimate] = {}
    if kind != "pairs":
        with suppress(BadInput):  # nothing of it was short enough
            judged = judge_by_rule(kind, Scores(responses, pairs), resamples=1)
    mean = judged.get(rewardbench.MEAN) or judged.get(rewardbench2.MEAN)
    return found if mean is None else found | {"score": mean.value}
