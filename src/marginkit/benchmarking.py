"""A model on files: read, scored, judged, and kept beside the run.

RUN/benchmarks/NAME/responses.parquet, pairs.parquet   the scores
RUN/benchmarks/NAME/result.json                        what they come to, with the fingerprint of model and data
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from marginkit.data.pairing import make_pairs
from marginkit.data.recognising import Mapped
from marginkit.data.sources import read_groups
from marginkit.errors import BadInput, RunFailed
from marginkit.evaluation.compare import Comparison, compare
from marginkit.evaluation.metrics import Evaluation, evaluate
from marginkit.evaluation.rewardbench import SECTIONS, judge_v1
from marginkit.evaluation.rewardbench2 import answers_of, judge_v2
from marginkit.evaluation.rewardbench_files import write_official
from marginkit.groups import Groups
from marginkit.progress import is_first, progress
from marginkit.records import Estimate
from marginkit.run_scores import Scorer
from marginkit.rundir import write_whole
from marginkit.tables import Scores

log = logging.getLogger("marginkit")

Kind = Literal["pairs", "rewardbench-v1", "rewardbench-v2"]
HUB: Mapping[str, tuple[str, str]] = {
    "reward-bench": ("allenai/reward-bench", "filtered"),
    "reward-bench-2": ("allenai/reward-bench-2", "test"),
}
"""Short names of benchmarks on the hub: dataset and split."""
BY_LENGTH = ", longer is better"
_KNOWN = frozenset(name for section in SECTIONS.values() for name in section)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A file of pairs or grades that models are judged on.

    Args:
        name: what its results are called.
        file: where it came from.
        kind: pairs, or a RewardBench with rules of its own.
        groups: with their pairs, the same for every model.
        read: rows of the file.
        left_out: rows and pairs that are no part of it, by reason.
    """

    name: str
    file: str
    kind: Kind
    groups: Groups
    read: int
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_benchmark(
    source: str | Path, *, columns: Mapping[str, str] | None = None, mapping: Mapped | None = None
) -> Benchmark:
    """Read a file, a saved dataset or a hub name as a benchmark; rows need no grades.

    Pairs are those of the data, else all that grades or votes decide. `reward-bench` and `reward-bench-2` are the hub's
    allenai/reward-bench (split filtered) and allenai/reward-bench-2 (split test); a local file of their form is judged
    by their rules too.

    Args:
        source: what `read_groups` reads, or one of the two short names.
        columns: renames, as in `read_groups`.
        mapping: which field is what, as in `read_groups`.

    Raises:
        BadInput: it cannot be read, or holds no pair.
    """
    named = str(source)
    place, split = HUB.get(named, (named, None)) if not Path(named).exists() else (named, None)
    split = split or next((own for hub, own in HUB.values() if hub == place), None)
    with progress(None, f"read {Path(named).name}") as bar:
        groups, found = read_groups(place, split=split, columns=columns, mapping=mapping, progress=bar.to)
    left_out = dict(found.dropped)
    given = any(group.pairs or group.comparisons for group in groups)
    second = found.dialect == "reward-bench-2"  # its answers are correct or wrong: two that are the same are no pair
    paired = make_pairs(groups, "given" if given else "all", ties="drop" if second else "half")
    for reason, count in paired.dropped.items():
        if reason not in left_out and not (second and reason == "pairs tied"):
            left_out[reason] = count
    if not len(paired):
        first = next((one for one in found.items if one.severity == "drop"), None)
        refused = f" ({sum(found.dropped.values())} of {found.read} rows refused, first {first})" if first else ""
        raise BadInput(f"{found.file}: holds no pair to judge a model on{refused}; give chosen and rejected, or grades")
    kind: Kind = "pairs"
    if second:
        kind = "rewardbench-v2"
    elif _KNOWN.intersection(name for name in paired.column("subset") if name):
        kind = "rewardbench-v1"
    return Benchmark(_name(named), named, kind, paired, found.read, left_out)


def read_benchmarks(
    sources: Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    mapping: Mapped | None = None,
    suffix: str = "",
) -> list[Benchmark]:
    """Read several, each under a name of its own, which `suffix` ends.

    Raises:
        BadInput: one cannot be read, or two would have the same name.
    """
    names: dict[str, str] = {}
    for source in map(str, sources):
        if (other := names.setdefault(_name(source), source)) != source:
            raise BadInput(
                f"{source} and {other}: both would be kept as {_name(source)}; rename one, or run them apart"
            )
    read = [read_benchmark(source, columns=columns, mapping=mapping) for source in dict.fromkeys(map(str, sources))]
    return [replace(one, name=one.name + suffix) for one in read]


def _name(source: str) -> str:
    """The file's name without its endings, safe for a folder."""
    stem = re.sub(r"(\.(jsonl|ndjson|json|parquet|csv|tsv))?(\.gz)?$", "", Path(source).name)
    return re.sub(r"[^\w.-]", "_", stem) or "benchmark"


@dataclass(frozen=True, slots=True)
class Judged:
    """A model on one benchmark.

    Args:
        benchmark: its name.
        model: the model's name.
        folder: where tables and result are.
        evaluation: of its pairs.
        sections: RewardBench: sections and means, by the model's rewards.
        lengths: the same where the longer answer is taken to be better.
        subsets: RewardBench 1: accuracy of each subset.
        result: what `result.json` says.
        reused: the scores were there already.
    """

    benchmark: str
    model: str
    folder: Path
    evaluation: Evaluation
    sections: Mapping[str, Estimate]
    lengths: Mapping[str, Estimate]
    subsets: Mapping[str, Estimate]
    result: dict[str, Any]
    reused: bool


def judge_benchmark(
    scorer: Scorer, benchmark: Benchmark, folder: Path, *, bins: int = 10, resamples: int = 1000, seed: int = 0
) -> Judged:
    """Score a benchmark with a model, judge the scores, and keep both.

    Scores that were kept before are taken again if model, data and way of scoring are the same; else they are replaced.
    With several processes all of them take part, and the first writes.

    Args:
        scorer: the model.
        benchmark: what it is judged on.
        folder: where results are kept.
        bins: of the calibration errors.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        BadInput: every row is too long for the model.
        RunFailed: a reward is not finite, or the results cannot be written.
    """
    name = benchmark.name
    print_ = hashlib.sha256(f"{scorer.fingerprint()} {benchmark.groups.fingerprint()}".encode()).hexdigest()[:16]
    scores = _kept(folder, print_)
    reused = scores is not None
    if scores is None:
        if (folder / "result.json").is_file():
            log.info("%s: model, data or way of scoring is another one; what was kept there is replaced", folder)
        log.info("%s: %d prompts, scored with %s", name, len(benchmark.groups), scorer.folder)
        scores = scorer.score(benchmark.groups)
    else:
        log.info("%s: scored before with %s, the same model and data: taken from %s", name, scorer.folder, folder)
    if not scores.pairs.num_rows:
        raise BadInput(f"{benchmark.file}: no pair could be scored; all are too long for {scorer.folder}")
    evaluation = evaluate(scores, bins=bins, resamples=resamples, seed=seed)
    draw = {"resamples": resamples, "seed": seed}
    found, lengths = (judge_by_rule(benchmark.kind, scores, lengths=own, **draw) for own in (False, True))
    subsets = {name: value for name, value in found.items() if name in _KNOWN}
    sections = {name: value for name, value in found.items() if name not in _KNOWN}
    left_out = dict(benchmark.left_out)
    scored = len(set(scores.responses["group"].to_pylist()))
    if unscored := len(benchmark.groups) - scored:
        left_out["too long for the model"] = unscored
        log.info("%s: %d of %d prompts are too long and were left out", name, unscored, len(benchmark.groups))
    seen = Path(benchmark.file).resolve() in {Path(one).resolve() for one in scorer.config.data.train}
    if seen:
        log.info(
            "%s: %s was trained on this file; how good it is on other rows is not known from it", name, scorer.folder
        )
    facts = scorer.facts()
    result: dict[str, Any] = {
        "name": name,
        "file": benchmark.file,
        "fingerprint": print_,
        "kind": benchmark.kind,
        "model": str(scorer.folder),
        "rows": {"read": benchmark.read, "scored": scored, "left_out": left_out},
        "trained_on": seen,
        "scoring": facts,
        "evaluation": evaluation.to_json(),
    }
    if sections:
        shown = {}
        for section, value in sections.items():
            shown[section] = value.to_json()
            if section in lengths:
                shown[section + BY_LENGTH] = lengths[section].to_json()
        result["sections"] = shown
        result["subsets"] = {subset: value.to_json() for subset, value in subsets.items()}
    if is_first():
        try:
            (folder / "result.json").unlink(missing_ok=True)
            if not reused:
                scores.save(folder)
            write_whole(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else error
            raise RunFailed(f"{folder}: cannot be written ({why}); name another folder with --out") from error
    return Judged(name, str(scorer.folder), folder, evaluation, sections, lengths, subsets, result, reused)


def _kept(folder: Path, fingerprint: str) -> Scores | None:
    """The scores that were kept under this fingerprint."""
    held = folder / "result.json"
    try:
        if held.is_file() and json.loads(held.read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
            return Scores.load(folder)
    except (ValueError, AttributeError, OSError, pa.ArrowInvalid):
        log.info("%s: what was kept there cannot be read, and is made again", folder)
    return None


def judge_by_rule(
    kind: Kind, scores: Scores, *, lengths: bool = False, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Sections, means and subsets by the benchmark's own rules; nothing for plain pairs.

    Args:
        kind: which rules.
        scores: of its groups.
        lengths: the longer answer is taken to be better, whatever the rewards.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    if kind == "rewardbench-v1":
        return judge_v1(scores.pairs, lengths=lengths, resamples=resamples, seed=seed)
    if kind == "rewardbench-v2":
        return judge_v2(answers_of(scores.responses, lengths=lengths), resamples=resamples, seed=seed)
    return {}


def write_leaderboard(folder: Path, model: str, benchmark: Benchmark, judged: Judged, scorer: Scorer) -> list[Path]:
    """Write the files that the RewardBench leaderboard keeps of a model; see `write_official`.

    Args:
        folder: where they go, under the benchmark's name.
        model: ORG/NAME.
        benchmark: RewardBench 1 or 2.
        judged: the model on it.
        scorer: the model.
    """
    if left_out := sum(judged.result["rows"]["left_out"].values()):
        log.warning("%s: %d rows were left out; the leaderboard's own files hold all of them", folder, left_out)
    written = write_official(
        folder / benchmark.name,
        model,
        benchmark.groups,
        Scores.load(judged.folder),
        version=1 if benchmark.kind == "rewardbench-v1" else 2,
        model_type=scorer.model_type,
        chat_template=scorer.config.encoding.chat_template,
    )
    log.info("leaderboard files: %s", ", ".join(map(str, written)))
    return written


def difference(one: Judged, other: Judged, *, seed: int = 0) -> Comparison:
    """Paired differences, one - other, on the pairs that both models could score.

    Args:
        one: a model on a benchmark.
        other: another one on the same benchmark.
        seed: of the bootstrap.
    """
    tables = [Scores.load(judged.folder).pairs for judged in (one, other)]
    groups = [table["group"].unique() for table in tables]
    shared = [
        table.filter(pc.is_in(table["group"], value_set=held))
        for table, held in zip(tables, reversed(groups), strict=True)
    ]
    for judged, table, part in zip((one, other), tables, shared, strict=True):
        if len(part) < len(table):
            log.info("%s: %d pairs of %s are in one only", one.benchmark, len(table) - len(part), judged.model)
    return compare(*shared, seed=seed)


def result_folder(model: str, benchmark: str, out: Path | None) -> Path:
    """Where the result of a model on a benchmark is kept: in the run, or under `out`.

    Raises:
        BadInput: the model is no run, and there is no `out`; or nothing can be written there.

    Example:
        >>> result_folder("owner/model", "eval_hhh", Path("judged")).as_posix()
        'judged/owner_model/eval_hhh'
    """
    if out is not None:
        target = out / re.sub(r"[^\w.-]", "_", model.strip("./")) / benchmark
    elif (Path(model) / "config.yaml").is_file():
        target = Path(model) / "benchmarks" / benchmark
    else:
        raise BadInput(f"{model}: is not a run, so its results need a place; name a folder with --out")
    return checked_folder(target, "--out")


def checked_folder(folder: Path, option: str) -> Path:
    """A folder that an option named, or that is to be made: before the work begins, so that none is lost.

    Raises:
        BadInput: nothing can be written there.
    """
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise BadInput(f"{there}: {why}, so results cannot be kept there; name another folder with {option}")
    return folder
