"""The methods side by side: margin-matching and margin-adaptive policies, and reward models, on equal terms.

    python benchmarks/methods.py ratings.jsonl --out docs/methods_measured.md   # the built-in world and a graded file
    python benchmarks/methods.py                                                # the built-in world alone
    python benchmarks/methods.py --quick                                        # seconds; says nothing about methods

Within a section all methods have the same start model (SFT first), the same data in the same order, the same number of
optimizer steps and the same number of candidate settings: learning rate times the method's own scale, from a grid that
is printed. The candidate with the lowest NLL on the dev split, at one temperature fitted there, is judged on the test
split: the temperature is there so that rewards without a calibrated scale have no handicap. Every run goes through
`marginkit.train`, as a user's would. With --work, a run that is done is not repeated when the command is started again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import marginkit as mk
from marginkit.data.grades import pair_evidence, suggest_gamma
from marginkit.data.splits import assign_splits
from marginkit.evaluation.bootstrap import Array, Statistic, estimate, estimate_mean, of_sums
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.calibrators import fit_temperature
from marginkit.evaluation.compare import compare
from marginkit.evaluation.metrics import evaluate
from marginkit.evaluation.noise import noise_floor
from marginkit.evaluation.pair_columns import PairColumns
from marginkit.groups import Groups, write_groups
from marginkit.records import Estimate, Group, Pair
from marginkit.tables import Scores
from marginkit.world import make_world

POLICIES = ("dpo", "mmpo", "gamma_dpo", "madpo", "bpo", "simpo", "gamma_simpo", "amapo", "repo")
REWARD_MODELS = ("bt", "mmpo_rm", "bt_margin", "aplot", "regression")
NOISY = ("dpo", "mmpo", "gamma_dpo", "madpo")
CONTROLS = {"policies": "dpo", "reward models": "bt"}
REFERENCE_FREE = ("simpo", "gamma_simpo", "amapo", "repo")
START = "start, mean log-prob"
ONE_LOGIT = 0.4  # gamma / tau of gamma-PO, that of its released configuration


# -- Candidates


@dataclass(frozen=True)
class Scales:
    """What the grids are made of.

    Args:
        policy_rates: learning rates of policies.
        head_rates: learning rates of reward models; one without a scale of its own tries more of them, `more_rates`.
        more_rates: see above.
        beta: logits per nat, for rewards relative to a reference.
        token_beta: logits per nat a token, for mean log-probabilities.
        token_margin: nats a token.
        gamma: logits per grade, from the training data.
        wide: whether a method with two scales tries two values of the second one, and one with a single scale four.
        most: only the first so many candidates of each method.
    """

    policy_rates: tuple[float, ...]
    head_rates: tuple[float, ...]
    more_rates: tuple[float, ...]
    beta: tuple[float, ...]
    token_beta: tuple[float, ...]
    token_margin: tuple[float, ...]
    gamma: float
    wide: bool
    most: int | None = None


def settings_of(name: str, scales: Scales) -> list[dict[str, float]]:
    """The values of a method's own scales, each a dict of `part.option`."""
    s, g = scales, round(scales.gamma, 4)
    few_beta, few_token = s.beta, s.token_beta
    if s.wide:  # the two in the middle: the second scale takes the other factor of two
        few_beta, few_token = s.beta[1:3], s.token_beta[1:3]

    def second(*values: float) -> tuple[float, ...]:
        return values if s.wide else values[:1]

    one: dict[str, list[dict[str, float]]] = {
        "dpo": [{"reward.beta": b} for b in s.beta],
        "amapo": [{"reward.beta": b} for b in s.token_beta],
        "repo": [{"target.gamma": m} for m in s.token_margin],
        "bt": [{}],
        "mmpo": [{"reward.beta": b, "target.gamma": m} for b in few_beta for m in second(g, round(3 * g, 4))],
        "gamma_dpo": [
            {"reward.beta": b, "target.gamma": m, "target.tau": m / ONE_LOGIT}
            for b in few_beta
            for m in second(1.0, 3.0)
        ],
        "madpo": [{"reward.beta": b, "target.tau": t} for b in few_beta for t in second(2.0, 6.906755)],
        "bpo": [{"reward.beta": b, "objective.alpha": a} for b in few_beta for a in second(0.3, 1.0)],
        "simpo": [{"reward.beta": b, "target.gamma": m * b} for b in few_token for m in second(0.1, 0.4)],
        "gamma_simpo": [
            {"reward.beta": b, "target.gamma": m * b, "target.tau": m * b / ONE_LOGIT}
            for b in few_token
            for m in second(0.1, 0.4)
        ],
        "mmpo_rm": [{"target.gamma": g}, {"target.gamma": round(3 * g, 4)}],
        "bt_margin": [{"target.scale": round(0.3 * g, 4)}, {"target.scale": g}],
        "aplot": [{"target.eps": 0.1}, {"target.eps": 1.0}],
        "regression": [{"target.scale": g}, {"target.scale": round(3 * g, 4)}],
    }
    return one[name]


def candidates(name: str, scales: Scales) -> list[dict[str, float]]:
    """Learning rate x own scales; the same number for every method of a table."""
    rates = scales.policy_rates
    if name in REWARD_MODELS:
        rates = scales.more_rates if name == "bt" else scales.head_rates
    tried = [{"train.learning_rate": rate} | own for rate in rates for own in settings_of(name, scales)]
    return tried[: scales.most]


# -- Data


@dataclass(frozen=True)
class Section:
    """One set of data and how everything is trained on it.

    Args:
        name: of the folder.
        title: in the report.
        policies: which.
        reward_models: which; bt is also what madpo reads.
        truth: utility or grade: what a held-out pair's true gap is the difference of.
        fresh: the start model.
        sft: `train` of the SFT that makes it.
        train: `train` of all methods.
        limits: positions, of the encoding.
        seeds: of the chosen settings; the candidates are trained with the first.
    """

    name: str
    title: str
    policies: tuple[str, ...]
    reward_models: tuple[str, ...]
    truth: str
    fresh: Mapping[str, int]
    sft: Mapping[str, Any]
    train: Mapping[str, Any]
    scales: Scales
    seeds: tuple[int, ...]
    about: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


COMMON: Mapping[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "tokens_per_micro_batch": 4096,
    "per": "prompt",
    "save_strategy": "no",
    "eval_strategy": "no",
    "use_cpu": True,
}


def write_data(folder: Path, groups: Groups, demonstrations: Groups | None) -> dict[str, int]:
    """Files of a section: what is trained on (train and dev), what is judged (test), what SFT learns from."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: Groups.from_iterable(g for g in groups if g.split == name) for name in ("train", "dev", "test")}
    write_groups(Groups.from_iterable(itertools.chain(parts["train"], parts["dev"])), folder / "graded.jsonl")
    write_groups(parts["test"], folder / "test.jsonl")
    shown = demonstrations if demonstrations is not None else parts["train"]  # SFT takes the best response of each
    write_groups(shown, folder / "shown.jsonl")
    counts = {f"{name} prompts": len(part) for name, part in parts.items()}
    return counts | {f"{name} pairs": sum(len(g.pairs) for g in part) for name, part in parts.items()}


def flipped(groups: Groups, share: float, seed: int) -> Groups:
    """Train and dev pairs as strengths, a share of them turned round; the grades themselves are taken away."""
    rng = np.random.default_rng(seed)

    def turned(group: Group) -> Group:
        if group.split == "test":
            return group
        pairs = []
        for pair in group.pairs:
            gap = pair_evidence(group, pair).grade_gap
            assert gap is not None
            ends = (pair.chosen, pair.rejected)
            first, second = ends[::-1] if rng.random() < share else ends
            pairs.append(Pair(first, second, strength=abs(gap), tie=gap == 0))
        bare = tuple(replace(response, grade=None, ratings=()) for response in group.responses)
        return replace(group, responses=bare, pairs=tuple(pairs))

    return Groups.from_iterable(turned(group) for group in groups)


def drawn_responses(groups: Iterable[Group], count: int) -> Iterable[Group]:
    """Train groups with `count` of their responses, drawn at random; other groups whole."""
    for group in groups:
        if group.split == "train" and len(group.responses) > count:
            kept = sorted(random.Random(group.id).sample(range(len(group.responses)), count))
            group = replace(group, responses=tuple(group.responses[at] for at in kept))
        yield group


def world_section(work: Path, options: argparse.Namespace, flips: float = 0.0) -> Section:
    """The built-in world, with or without wrong labels."""
    quick = options.quick
    sizes = (8, 16, 20, 24) if quick else (150, 1200, 120, 200)
    prompts, demonstrations, dev, test = sizes
    world = make_world(
        options.quality, prompts=prompts, demonstrations=demonstrations, dev=dev, test=test, seed=options.world_seed
    )
    groups = mk.make_pairs(world.graded, "all")
    gamma = suggest_gamma(g for g in groups if g.split == "train") or 1.0
    if flips:
        groups = flipped(groups, flips, options.world_seed)
    name = f"flipped-{flips:g}" if flips else "world"
    counts = write_data(work / name, groups, world.demonstrations)
    scales = Scales(
        policy_rates=(1e-3,) if quick else (2e-3, 6e-3),
        head_rates=(3e-3,) if quick else (1e-3, 2e-3, 5e-3, 1e-2),
        more_rates=(3e-3,) if quick else (7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7e-3, 1e-2),
        beta=(0.3, 1.0) if quick else (0.03, 0.1, 0.3, 1.0),
        token_beta=(2.5, 10.0) if quick else (0.5, 2.0, 6.0, 20.0),
        token_margin=(0.05, 0.2) if quick else (0.03, 0.1, 0.3, 1.0),
        gamma=gamma,
        wide=not quick,
        most=1 if quick else None,
    )
    with_flips = f", with {flips:.0%} of the train and dev labels turned round" if flips else ""
    return Section(
        name=name,
        title=f"The built-in world ({options.quality} feedback){with_flips}",
        policies=NOISY if flips else POLICIES,
        reward_models=("bt",) if flips else REWARD_MODELS,
        truth="utility",
        fresh={"layers": 2, "hidden": 16 if quick else 64, "vocab": 512 if quick else 1024, "max_length": 128},
        sft={**COMMON, "learning_rate": 1e-2, "num_train_epochs": 1 if quick else 6, "prompts_per_step": 32},
        train={**COMMON, "num_train_epochs": 1 if quick else 3, "prompts_per_step": 4 if quick else 16},
        scales=scales,
        seeds=(0,) if quick or flips else tuple(range(options.seeds)),
        about="Judged against the known probability of each test pair; `gap` is compared with the true utility gap.",
        counts=counts,
    )


def file_section(work: Path, options: argparse.Namespace) -> Section:
    """A graded file; nothing of its text leaves the work folder."""
    read, _ = mk.read_groups(str(options.file))
    whole = assign_splits(read, {"train": 0.78, "dev": 0.1, "test": 0.12})
    groups = mk.make_pairs(Groups.from_iterable(drawn_responses(whole, options.responses)), "all")
    gamma = suggest_gamma(g for g in groups if g.split == "train") or 1.0
    counts = write_data(work / "file", groups, None)
    scales = Scales(
        policy_rates=(1e-3, 3e-3),
        head_rates=(3e-3, 1e-2),
        more_rates=(2e-3, 3e-3, 5e-3, 1e-2),
        beta=(0.01, 0.05),
        token_beta=(2.5, 10.0),
        token_margin=(0.05, 0.2),
        gamma=gamma,
        wide=False,
    )
    return Section(
        name="file",
        title=f"A graded file ({options.file.stem})",
        policies=POLICIES,
        reward_models=REWARD_MODELS,
        truth="grade",
        fresh={"layers": 2, "hidden": 32, "vocab": 2048, "max_length": 4096},
        sft={**COMMON, "learning_rate": 5e-3, "num_train_epochs": 3, "prompts_per_step": 16},
        train={**COMMON, "num_train_epochs": 1, "prompts_per_step": 16},
        scales=scales,
        seeds=(0,),
        about=f"Judged against the order of the grades; at most {options.responses} responses of a train prompt, drawn "
        "at random. `gap` is compared with the grade gap.",
        counts=counts,
    )


# -- Runs


@dataclass(frozen=True)
class Job:
    """One training and its scores, in a folder of its own.

    Args:
        folder: of the run.
        recipe: what is trained.
        overrides: the configuration.
        test: groups to score besides the dev split, or None.
    """

    folder: str
    recipe: str
    overrides: Mapping[str, Any]
    test: str | None = None


def run_job(job: Job) -> dict[str, Any]:
    """Train unless it is done, score the test groups if asked, and tell how many steps it took."""
    torch.set_num_threads(1)
    _quiet()
    folder = Path(job.folder)
    done = folder / "job.json"
    if done.is_file():
        told: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    else:
        began = time.perf_counter()
        mk.train(job.recipe, dict(job.overrides) | {"out": str(folder)})
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        steps = max(int(line.get("step", 0)) for line in lines)
        told = {"seconds": time.perf_counter() - began, "steps": steps}
        done.write_text(json.dumps(told), encoding="utf-8")
    if job.test is not None and not (folder / "test").is_dir():
        groups, _ = mk.read_groups(job.test)
        mk.score(folder, groups).save(folder / "test")
    return told


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """`{"part.option": value}` as a configuration."""
    made: dict[str, Any] = {}
    for key, value in options.items():
        part, _, option = key.partition(".")
        made.setdefault(part, {})[option] = value
    return made


def job_of(
    section: Section,
    work: Path,
    name: str,
    chosen: Mapping[str, float],
    number: int,
    seed: int,
    reward_model: str | None = None,
    test: bool = False,
) -> Job:
    """A method's run with one candidate's settings."""
    own = nested(chosen)
    base = work / section.name
    model: dict[str, Any] = {"path": str(base / "sft" / "model")}
    if name == "madpo":
        model["reward_model"] = reward_model
    overrides: dict[str, Any] = {
        **{part: own[part] for part in ("reward", "target", "objective") if part in own},
        "seed": seed,
        "model": model,
        "data": {"train": str(base / "graded.jsonl"), "pairs": "all", "test_split": None},
        "train": {**section.train, **own["train"]},
        "store": {"path": str(base / "store")},
    }
    return Job(str(base / f"{name}-{number}-{seed}"), name, overrides, str(base / "test.jsonl") if test else None)


def sft_job(section: Section, work: Path) -> Job:
    """The start model of a section."""
    base = work / section.name
    overrides = {
        "seed": 0,
        "model": {"path": "fresh", "fresh": dict(section.fresh)},
        "data": {"train": str(base / "shown.jsonl"), "eval_split": None, "test_split": None},
        "train": dict(section.sft),
        "store": {"path": str(base / "store")},
    }
    return Job(str(base / "sft"), "sft", overrides)


def run_all(sections: Sequence[Section], work: Path, processes: int) -> dict[str, dict[str, Any]]:
    """Everything in four rounds: start models, reward models, policies (madpo reads the chosen bt), chosen settings.

    Returns:
        For every section: the choice of each method, the dev NLL of its candidates, seconds and steps.
    """

    def say(words: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)

    def done(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        say(f"{len(jobs)} runs")
        if processes == 1:
            return [run_job(job) for job in jobs]
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            return list(pool.map(run_job, jobs))

    done([sft_job(section, work) for section in sections])
    found: dict[str, dict[str, Any]] = {section.name: {} for section in sections}
    for kind in ("reward_models", "policies"):
        plan: list[tuple[Section, str, int, Job]] = []
        for section in sections:
            judge = found[section.name].get("bt", {}).get("folder")
            for name in getattr(section, kind):
                for number, chosen in enumerate(candidates(name, section.scales)):
                    plan.append((section, name, number, job_of(section, work, name, chosen, number, 0, judge)))
        for (section, name, number, job), told in zip(plan, done([job for *_, job in plan]), strict=True):
            own = found[section.name].setdefault(name, {"dev": [], "seconds": [], "steps": [], "jobs": []})
            own["dev"].append(dev_nll(Path(job.folder) / "tables"))
            own["seconds"].append(told["seconds"])
            own["steps"].append(told["steps"])
            own["jobs"].append(job)
            if own["dev"][-1] == min(own["dev"]):
                own["number"], own["folder"] = number, job.folder
    last: list[Job] = []
    for section in sections:
        judge = found[section.name].get("bt", {}).get("folder")
        for name, own in found[section.name].items():
            grid = candidates(name, section.scales)
            own["chosen"], own["grid"] = grid[own["number"]], grid
            jobs = [
                job_of(section, work, name, own["chosen"], own["number"], seed, judge, test=True)
                for seed in section.seeds
            ]
            own["folders"] = [job.folder for job in jobs]
            last += jobs
    done(last)
    for section in sections:
        score_start(work / section.name)
    check_equal(found)
    return found


def score_start(base: Path) -> None:
    """Dev and test tables of the start model, by its mean log-probabilities: where reference-free rewards begin."""
    graded, _ = mk.read_groups(str(base / "graded.jsonl"))
    test, _ = mk.read_groups(str(base / "test.jsonl"))
    dev = Groups.from_iterable(group for group in graded if group.split == "dev")
    for name, groups in (("tables", dev), ("test", test)):
        if not (base / START / name).is_dir():
            mk.score(base / "sft" / "model", groups, recipe="simpo").save(base / START / name)


def check_equal(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a result in which methods of a kind did not have the same steps and number of candidates."""
    for section, methods in found.items():
        for names in (POLICIES, REWARD_MODELS):
            here = [own for name, own in methods.items() if name in names]
            budgets = {(len(own["grid"]), *own["steps"]) for own in here}
            if len({len(own["grid"]) for own in here}) > 1 or len({n for own in here for n in own["steps"]}) > 1:
                raise RuntimeError(f"{section}: methods had different budgets: {sorted(budgets)}")


# -- Judging


def temperature_of(gap: Array, label: Array) -> float:
    """One temperature, fitted on gaps in units of their own spread, so that its bounds fit every reward."""
    known = ~np.isnan(label)
    unit = float(np.sqrt(np.mean(gap[known] ** 2))) or 1.0
    return unit * fit_temperature(gap[known] / unit, label[known])[0]


def dev_temperature(folder: Path) -> float:
    """The temperature of a run's dev tables."""
    pairs = PairColumns.read(Scores.load(folder).pairs)
    return temperature_of(pairs.gap, pairs.label)


def dev_nll(folder: Path) -> float:
    """NLL of the dev pairs at the temperature fitted on them; ties without a probability are left out."""
    pairs = PairColumns.read(Scores.load(folder).pairs)
    return float(np.nanmean(pairs.values(temperature_of(pairs.gap, pairs.label))["nll"]))


def pearson(x: Array, y: Array) -> Statistic:
    """Pearson's correlation as a function of sums."""

    def value(total: Array) -> Array:
        n, a, b, aa, bb, ab = np.moveaxis(total, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((ab / n - a * b / n**2) / np.sqrt((aa / n - (a / n) ** 2) * (bb / n - (b / n) ** 2)))

    return of_sums(value, np.ones_like(x), x, y, x * x, y * y, x * y)


def held_out(folder: Path, truth: str, seed: int) -> pa.Table:
    """The test pairs of a run, with the true gap as target gap; groups carry the seed, clusters do not."""
    scores = Scores.load(folder / "test")
    values = {(r["group"], r["response"]): r[truth] for r in scores.responses.to_pylist()}
    pairs = scores.pairs
    rows = pairs.select(["group", "chosen", "rejected"]).to_pylist()
    gap = [values[row["group"], row["chosen"]] - values[row["group"], row["rejected"]] for row in rows]
    columns = {
        "target_gap": pa.array(gap, pa.float64()),
        "cluster": pa.array(
            [c or g for c, g in zip(*(pairs[n].to_pylist() for n in ("cluster", "group")), strict=True)]
        ),
        "group": pa.array([f"{row['group']}#{seed}" for row in rows]),
    }
    for name, column in columns.items():
        pairs = pairs.set_column(pairs.column_names.index(name), name, column)
    return pairs


def cooled(pairs: pa.Table, temperature: float) -> pa.Table:
    """The same pairs with rewards divided by a temperature."""
    for name in ("reward_chosen", "reward_rejected", "gap"):
        values = pairs[name].to_numpy() / temperature
        pairs = pairs.set_column(pairs.column_names.index(name), name, pa.array(values))
    return pairs


@dataclass(frozen=True)
class Judged:
    """A method on the test split: its pairs over all seeds, as they are and at the dev temperature."""

    raw: list[pa.Table]
    calm: list[pa.Table]

    @classmethod
    def read(cls, folders: Sequence[str], truth: str) -> Judged:
        raw = [held_out(Path(folder), truth, seed) for seed, folder in enumerate(folders)]
        calm = [cooled(t, dev_temperature(Path(f) / "tables")) for t, f in zip(raw, folders, strict=True)]
        return cls(raw, calm)


def row_of(judged: Judged, control: Judged | None, resamples: int) -> dict[str, Any]:
    """One row of the table."""
    together = pa.concat_tables(judged.raw)
    draw = {"resamples": resamples}
    found = evaluate(together, **draw)
    pairs = PairColumns.read(together)
    calm = PairColumns.read(pa.concat_tables(judged.calm))
    nll = calm.values()["nll"]
    first = PairColumns.read(judged.raw[0])
    labelled = ~np.isnan(first.label)
    floor = noise_floor(sigmoid(first.gap[labelled]))  # seeds share their labels: the noise is that of one
    row: dict[str, Any] = {
        "n": len(first.gap),
        "untied": int((~first.tie).sum()),
        "prompts": len(np.unique(first.cluster)),
        "length": found["length_baseline"],
        "accuracy": found["accuracy"],
        "spearman": found["gap_correlation"],
        "pearson": estimate(pearson(pairs.gap, pairs.target_gap), pairs.cluster, **draw),
        "nll": found["nll"],
        "nll_calm": estimate_mean(nll[~np.isnan(nll)], calm.cluster[~np.isnan(nll)], **draw),
        "ece": found["ece"],
        "floor": floor.high,
        "ece_debiased": found["ece_debiased"],
    }
    if control is not None:
        against = compare(together, pa.concat_tables(control.raw), **draw)
        row["d_nll"], row["d_accuracy"] = against["nll"], against["accuracy"]
        row["d_calm"] = compare(pa.concat_tables(judged.calm), pa.concat_tables(control.calm), **draw)["nll"]
        by_seed = [compare(a, b, resamples=2)["nll"].value for a, b in zip(judged.calm, control.calm, strict=True)]
        row["d_by_seed"] = by_seed
    return row


def judge(section: Section, methods: Mapping[str, Any], work: Path, resamples: int) -> dict[str, Any]:
    """The rows of a section's tables."""
    read = {name: Judged.read(own["folders"], section.truth) for name, own in methods.items()}
    start = Judged.read([str(work / section.name / START)] * len(section.seeds), section.truth)
    rows: dict[str, Any] = {START: row_of(start, read["dpo"], resamples)}
    for kind, names in (("policies", section.policies), ("reward models", section.reward_models)):
        control = CONTROLS[kind]
        for name in names:
            rows[name] = row_of(read[name], None if name == control else read[control], resamples)
    return rows


# -- The report


def shown(found: Estimate, sign: bool = False) -> str:
    """Value and interval in one cell."""
    mark = "+" if sign else ""
    return f"{found.value:{mark}.3f} [{found.low:{mark}.3f}, {found.high:{mark}.3f}]"


def marked(found: Estimate, *, more: bool, seeds: int = 2) -> str:
    """A difference, with a mark where its interval leaves 0 out; none on a single seed."""
    if seeds < 2:
        return shown(found, sign=True)
    side = 0 if found.low <= 0 <= found.high else (1 if (found.value > 0) == more else -1)
    return shown(found, sign=True) + {0: "", 1: " **better**", -1: " *worse*"}[side]


COLUMNS = (
    *("method", "accuracy", "Spearman", "Pearson", "NLL", "NLL at dev T", "ECE (floor)", "ECE debiased"),
    *("NLL - control", "NLL at dev T - control", "accuracy - control", "s a run"),
)


def table(rows: Mapping[str, Any], names: Sequence[str], seconds: Mapping[str, float]) -> list[str]:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    first = rows[names[0]]
    lines.append(f"| the longer one | {shown(first['length'])} |" + " |" * (len(COLUMNS) - 2))
    for name in names:
        row = rows[name]
        cells = [shown(row[key]) for key in ("accuracy", "spearman", "pearson", "nll", "nll_calm")]
        cells += [f"{row['ece'].value:.3f} ({row['floor']:.3f})", shown(row["ece_debiased"])]
        if "d_nll" in row:
            each, count = ", ".join(f"{value:+.3f}" for value in row["d_by_seed"]), len(row["d_by_seed"])
            cells += [marked(row["d_nll"], more=False, seeds=count)]
            cells += [marked(row["d_calm"], more=False, seeds=count) + (f" ({each})" if count > 1 else "")]
            cells += [marked(row["d_accuracy"], more=True, seeds=count)]
        else:
            cells += ["control"] * 3
        told = f"{seconds[name]:.0f}" if name in seconds else ""
        lines.append(f"| {name} | " + " | ".join([*cells, told]) + " |")
    return lines


def words_of(settings: Mapping[str, float]) -> str:
    """Settings in a cell."""
    return ", ".join(f"{key.partition('.')[2]} {value:.4g}" for key, value in settings.items())


def at_edge(key: str, value: float, grid: Sequence[Mapping[str, float]]) -> bool:
    """Whether a choice is the least or the largest of three or more that were tried."""
    tried = sorted({candidate[key] for candidate in grid})
    return len(tried) > 2 and value in (tried[0], tried[-1])


def grid_table(section: Section, methods: Mapping[str, Any]) -> list[str]:
    """What was tried, what was chosen."""
    lines = ["| method | candidates | learning rates | own scales | chosen | dev NLL at T: best, worst | at the edge |"]
    lines += ["|" + " --- |" * 7]
    for name in (*section.policies, *section.reward_models):
        own = methods[name]
        rates = sorted({c["train.learning_rate"] for c in own["grid"]})
        tried = [words_of(s) for s in settings_of(name, section.scales)]
        edge = [key.partition(".")[2] for key, value in own["chosen"].items() if at_edge(key, value, own["grid"])]
        lines.append(
            f"| {name} | {len(own['grid'])} | {', '.join(f'{r:g}' for r in rates)} | {'; '.join(tried) or 'none'} "
            f"| {words_of(own['chosen'])} | {min(own['dev']):.3f}, {max(own['dev']):.3f} | {', '.join(edge)} |"
        )
    return lines


def section_report(section: Section, methods: Mapping[str, Any], rows: Mapping[str, Any]) -> list[str]:
    """A section of the report."""
    first, fresh, seeds = rows[section.policies[0]], section.fresh, len(section.seeds)
    seconds = {name: float(np.mean(own["seconds"])) for name, own in methods.items()}
    about = [
        ", ".join(f"{count} {name}" for name, count in section.counts.items()),
        section.about,
        f"n = {first['n']} test pairs ({first['untied']} untied) of {first['prompts']} prompts.",
        f"Start: llama of {fresh['layers']} layers of {fresh['hidden']}, vocabulary {fresh['vocab']}, after SFT.",
        f"{methods['dpo']['steps'][0]} optimizer steps of {section.train['prompts_per_step']} prompts and "
        f"{len(methods['dpo']['grid'])} candidates for every method.",
        f"The chosen settings are trained with {seeds} seeds, rows pool them." if seeds > 1 else "One seed.",
    ]
    length = first["length"].value
    beyond = [name for name in (*section.policies, *section.reward_models) if rows[name]["accuracy"].low > length]
    about += [f"Accuracy above that of the longer response, beyond the interval: {', '.join(beyond) or 'no method'}."]
    lines = ["", f"## {section.title}", "", *about]
    lines[3] += "."
    for kind, names in (("Policies", section.policies), ("Reward models", section.reward_models)):
        if len(names) > 1:
            listed = (*names, START) if kind == "Policies" else names
            lines += ["", f"**{kind}** (control: {CONTROLS[kind.lower()]})", "", *table(rows, listed, seconds)]
    lines += ["", "Tried and chosen:", "", *grid_table(section, methods)]
    return lines


NOTES = """\
- 95% intervals over prompts (cluster bootstrap). They hold the training fixed: what single seeds gave is behind the
  difference, in brackets. Better and worse are marked where an uncorrected interval leaves 0 out (of so many
  comparisons some do by chance), and not at all where there is one seed: another one can turn such a difference round.
- *NLL* and *ECE* take sigmoid(gap) with the method's own reward as the probability. The rewards of simpo, gamma_simpo,
  amapo and repo have no calibrated scale (repo's are plain mean log-probabilities), and margins and weights (gamma_dpo,
  madpo, bpo, bt_margin, aplot) shift it: there the NLL as it is says little. *NLL at dev T* divides by one temperature,
  fitted on the dev split, for every method; settings were chosen by the NLL of the dev split at that temperature.
  Dev pairs with equal grades have no label, and they are the hard ones: where the test split has the known probability
  of all pairs, that temperature is too cold, and the NLL at it can be above the NLL as it is.
- *ECE (floor)*: the plug-in, and in brackets the 95% quantile of what a calibrated model would show (for known
  probabilities an upper bound); *debiased* takes the sample's noise out.
- *Spearman*, *Pearson*: between the gap and the true gap, over pairs with the better response first: does the size of
  the gap follow the size of the difference?
- *start, mean log-prob*: the start model itself, by the reward that reference-free methods begin with (simpo's, beta
  2.5). Rewards relative to a reference begin at 0.
- Learning rates and scales were chosen from the grids shown, not from the papers, whose scales are those of models of
  7B. These models are tiny and made on the spot: the tables compare losses on equal terms, and say nothing about 7B."""


def report(
    command: str, sections: Sequence[Section], found: Mapping[str, Any], rows: Mapping[str, Any], minutes: float
) -> str:
    """The whole report."""
    lines = ["# The methods side by side", ""]
    lines += [f"Written by `{command}`; read with [the log](log.md).", ""]
    lines += [
        f"{machine()}; {minutes:.0f} process minutes of training and dev scoring, taken while other work ran on",
        "the same cores, so the seconds are no measure of a method's cost.",
        "",
    ]
    lines += [NOTES]
    for section in sections:
        lines += section_report(section, found[section.name], rows[section.name])
    return "\n".join(lines) + "\n"


def machine() -> str:
    """What it ran on, in a few words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, one thread a process, torch {torch.__version__}"


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def measure(options: argparse.Namespace, work: Path) -> tuple[list[Section], dict[str, Any], dict[str, Any]]:
    """Sections, what was chosen, rows."""
    sections = []
    if not options.skip_world:
        sections.append(world_section(work, options))
        if options.flips and not options.quick:
            sections.append(world_section(work, options, options.flips))
    if options.file is not None and not options.quick:
        sections.append(file_section(work, options))
    found = run_all(sections, work, options.processes)
    resamples = 100 if options.quick else 1000
    rows = {section.name: judge(section, found[section.name], work, resamples) for section in sections}
    return sections, found, rows


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="a graded file, several responses a prompt")
    parser.add_argument("--responses", type=int, default=2, help="responses of a train prompt of the file (2)")
    parser.add_argument("--quality", default="mixed", help="of the built-in world: high, mixed or low (mixed)")
    parser.add_argument("--world-seed", type=int, default=1, help="of the built-in world and the flips (1)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of the chosen settings in the world (3)")
    parser.add_argument("--flips", type=float, default=0.2, help="share of wrong labels in the ablation; 0: none (0.2)")
    parser.add_argument("--skip-world", action="store_true", help="the file alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny, the world alone, one process, for the test")
    parser.add_argument("--work", type=Path, help="folder for the runs, kept; default: a temporary one")
    parser.add_argument("--out", type=Path, help="write the report here; default: print it")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> str:
    """Parse arguments, measure, report."""
    options = arguments(words)
    if options.quick:
        options.processes = 1
    torch.set_num_threads(1)
    _quiet()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        sections, found, rows = measure(options, work)
        done = [
            json.loads(file.read_text(encoding="utf-8")) for s in sections for file in work.glob(f"{s.name}/*/job.json")
        ]
    given = sys.argv[1:] if words is None else words
    command = " ".join(["python benchmarks/methods.py", *(Path(word).name if "/" in word else word for word in given)])
    text = report(command, sections, found, rows, sum(told["seconds"] for told in done) / 60)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
