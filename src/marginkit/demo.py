"""The demo: on the built-in world, where the truth is known, train, judge and say in two sentences what it shows.

SFT on demonstrations; from it DPO and MMPO policies, and reward models by Bradley-Terry and by MMPO, on the same graded
pairs in the same order. What is measured against the truth: the predicted probability of held-out pairs, and the
utility of freshly sampled answers (for a reward model: of the answer that it picks out of four).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import estimate_mean
from marginkit.evaluation.compare import compare
from marginkit.evaluation.metrics import PairColumns
from marginkit.groups import Groups, write_groups
from marginkit.progress import progress
from marginkit.records import Estimate, Group, Response
from marginkit.run import Run, score, train
from marginkit.tables import Scores
from marginkit.world import HIGHEST, World, make_world, true_utility

log = logging.getLogger("marginkit")
Array = npt.NDArray[np.float64]

SIZES = {"small": 32, "medium": 64, "large": 80}
"""Hidden size of the models; all have two layers."""
LAYERS, VOCABULARY, MAX_LENGTH = 2, 1024, 128
BETA = 0.5
TEMPERATURE, NEW_TOKENS = 1.0, 48


@dataclass(frozen=True, slots=True)
class Settings:
    """How one kind of model is trained; docs/demo.md says on what grounds."""

    learning_rate: float
    epochs: int
    prompts_per_step: int
    lr_scheduler_type: str = "linear"
    warmup: float = 0.1


SETTINGS: Mapping[str, Settings] = {
    "sft": Settings(1e-2, 6, 32, "cosine"),
    "policy": Settings(5e-4, 3, 16),
    "reward_model": Settings(5e-3, 3, 16),
}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo is run with, fixed before any result is seen.

    Args:
        quality: of the feedback: high, mixed or low.
        size: of the models: small, medium or large.
        seed: of the world, the raters and the models.
        out: folder for data and runs; default the first free runs/demo-N.
        prompts: graded prompts to train on, four responses each.
        demonstrations: prompts with one ungraded response, for SFT.
        test: graded prompts held out.
        samples: answers drawn for each test prompt.
    """

    quality: str = "mixed"
    size: str = "medium"
    seed: int = 0
    out: str | Path | None = None
    prompts: int = 600
    demonstrations: int = 4800
    test: int = 300
    samples: int = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One trained model: its name, what was measured and how long it took; `utility` is absent for what has none."""

    name: str
    estimates: Mapping[str, Estimate]
    seconds: float


_COLUMNS = {
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "ece_floor": "ECE floor",
    "prob_error_label": "|P - known P|",
    "sampled": "utility, sampled",
    "best_of": "utility, best of {}",
}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found.

    Args:
        options: what it was run with.
        rows: sft, dpo, mmpo, bt, mmpo_rm.
        differences: MMPO - control on the same pairs or prompts: policy and reward_model, each by measure.
        gamma: logits that one grade is worth in this world.
        out: where data, runs and tables are.
        seconds: wall time of all of it.
    """

    options: DemoOptions
    rows: Sequence[Row]
    differences: Mapping[str, Mapping[str, Estimate]]
    gamma: float
    out: Path
    seconds: float

    @property
    def title(self) -> str:
        """What the table is of."""
        o = self.options
        return (
            f"built-in world: {o.quality} feedback, {o.size} models, seed {o.seed}, gamma {self.gamma:.3f} logits a "
            f"grade, highest utility {HIGHEST:g}; {self.seconds:.0f} seconds, kept in {self.out}"
        )

    @property
    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column names, and one row of words a model; ± is half the 95% interval, whose ends are in `to_json`."""
        heads = [name.format(self.options.samples) for name in _COLUMNS.values()]
        rows = [
            (row.name, *(_cell(name, row.estimates.get(name)) for name in _COLUMNS), f"{row.seconds:.0f}")
            for row in self.rows
        ]
        return ("", *heads, "seconds"), rows

    @property
    def sentences(self) -> tuple[str, str]:
        """What it shows: one sentence on the reward models, one on the policies."""
        return (
            sentence("Reward models", "BT", self.differences["reward_model"]),
            sentence("Policies", "DPO", self.differences["policy"]),
        )

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result."""
        o = self.options
        return {
            "world": {"quality": o.quality, "size": o.size, "seed": o.seed, "gamma": self.gamma, "prompts": o.prompts},
            "rows": [
                {"name": row.name, "seconds": round(row.seconds, 1)}
                | {name: found.to_json() for name, found in row.estimates.items()}
                for row in self.rows
            ],
            "differences": {
                kind: {name: found.to_json() for name, found in by_name.items()}
                for kind, by_name in self.differences.items()
            },
            "sentences": list(self.sentences),
            "out": str(self.out),
            "seconds": round(self.seconds, 1),
        }


def _cell(name: str, found: Estimate | None) -> str:
    if found is None or math.isnan(found.value):
        return "-"
    if name == "ece_floor":
        return f"{found.high:.3f}"
    digits = 2 if name in ("sampled", "best_of") else 3
    if math.isnan(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ±{(found.high - found.low) / 2:.{digits}f}"


# -- In words

_WORDS = {
    # measure: (its name, the sign that is better)
    "prob_error_label": ("distance from the known probability", -1),
    "nll": ("NLL", -1),
    "accuracy": ("accuracy", 1),
    "sampled": ("true utility of sampled answers", 1),
    "best_of": ("true utility of the answers picked", 1),
}


def sentence(what: str, control: str, differences: Mapping[str, Estimate]) -> str:
    """One sentence from the paired differences MMPO - control; nothing in it but what the numbers say.

    Better or worse where the 95% interval leaves 0 out, not distinguishable where it does not.

    Args:
        what: which models.
        control: what MMPO is held against.
        differences: measure -> MMPO - control.

    Example:
        >>> sentence("Policies", "DPO", {"nll": Estimate(-0.05, -0.08, -0.02, 900, 300)})
        'Policies: against DPO, MMPO is better in NLL (-0.050 [-0.080, -0.020]).'
    """
    parts: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for name, (words, good) in _WORDS.items():
        found = differences.get(name)
        if found is None or math.isnan(found.value):
            continue
        low, high = sorted((good * found.low, good * found.high))
        kind = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
        parts[kind].append(f"{words} ({found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}])")
    told = [f"{kind} in {', '.join(named)}" for kind, named in parts.items() if named]
    return f"{what}: against {control}, MMPO is {'; '.join(told)}."


# -- The way


def run_demo(options: DemoOptions = DemoOptions()) -> DemoResult:
    """Draw a world, train five models in it, judge them against the truth.

    Args:
        options: the world and where to keep it.

    Returns:
        The table, the paired differences and two sentences.

    Raises:
        BadInput: no such quality or size, or a folder that is not empty.
    """
    if options.size not in SIZES:
        raise BadInput(f"size {options.size!r}: must be one of {', '.join(SIZES)}")
    began = time.perf_counter()
    world = make_world(
        options.quality,
        prompts=options.prompts,
        demonstrations=options.demonstrations,
        dev=max(1, options.prompts // 6),
        test=options.test,
        seed=options.seed,
    )
    out = _open_folder(options.out)
    write_groups(world.demonstrations, out / "demonstrations.jsonl")
    write_groups(world.graded, out / "graded.jsonl")
    log.info("%s: a %s world with %d graded prompts", out, options.quality, options.prompts)
    with _calm():
        runs = _train_all(world, out, options)
        tests = Groups.from_iterable(group for group in world.graded if group.split == "test")
        rows, differences = _judge_all(runs, tests, options)
    return DemoResult(options, rows, differences, world.gamma, out, time.perf_counter() - began)


@contextmanager
def _calm() -> Iterator[None]:
    """One thread, as models this small are slower on several that wait for one another; no chatter of transformers."""
    from transformers.utils import logging as chatter

    threads, level, bars = torch.get_num_threads(), chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    torch.set_num_threads(1)
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


def _open_folder(out: str | Path | None) -> Path:
    if out is None:
        number = 1
        while (folder := Path("runs") / f"demo-{number}").exists():
            number += 1
    else:
        folder = Path(out)
        if folder.exists() and any(folder.iterdir()):
            raise BadInput(f"out={folder}: not empty; choose another folder, or leave it out for a new one under runs/")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _train_all(world: World, out: Path, options: DemoOptions) -> dict[str, Run]:
    """Five runs; policies and reward models start from the SFT model."""
    fresh = {"layers": LAYERS, "hidden": SIZES[options.size], "vocab": VOCABULARY, "max_length": MAX_LENGTH}
    graded = {"train": str(out / "graded.jsonl"), "pairs": "all"}
    model = {"path": str(out / "sft" / "model")}
    gamma, beta = {"gamma": world.gamma}, {"beta": BETA}
    plans: dict[str, tuple[str, dict[str, Any]]] = {
        "sft": (
            "sft",
            {
                "model": {"path": "fresh", "fresh": fresh},
                "data": {"train": str(out / "demonstrations.jsonl"), "eval_split": None, "test_split": None},
            },
        ),
        "dpo": ("policy", {"model": model, "data": graded, "reward": beta}),
        "mmpo": ("policy", {"model": model, "data": graded, "reward": beta, "target": gamma}),
        "bt": ("reward_model", {"model": model, "data": graded}),
        "mmpo_rm": ("reward_model", {"model": model, "data": graded, "target": gamma}),
    }
    runs: dict[str, Run] = {}
    with progress(len(plans), "train five models") as bar:
        for name, (kind, own) in plans.items():
            log.info("train %s", name)
            common = {
                "out": str(out / name),
                "seed": options.seed,
                "encoding": {"max_length": MAX_LENGTH},
                "store": {"path": str(out / "store")},
                "train": train_options(SETTINGS[kind]),
            }
            runs[name] = train(name, own | common)
            bar()
    return runs


def train_options(settings: Settings) -> dict[str, Any]:
    """`train:` of a run of the demo."""
    return {
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "prompts_per_step": settings.prompts_per_step,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup,
        "tokens_per_micro_batch": 16384,
        "save_strategy": "no",
        "eval_strategy": "no",
        "use_cpu": True,
    }


def sample_answers(model: Any, tokenizer: Any, prompts: Sequence[str], count: int, *, seed: int) -> list[list[str]]:
    """`count` answers a prompt, sampled at temperature 1; the same seed gives the same answers."""
    from transformers import GenerationConfig

    made: list[str] = []
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    config = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        max_new_tokens=NEW_TOKENS,
        num_return_sequences=count,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), progress(len(prompts), "sample answers") as bar:
        torch.manual_seed(seed)
        for start in range(0, len(prompts), 256):
            texts = [prompt + "\n" for prompt in prompts[start : start + 256]]
            rows = tokenizer(texts, return_tensors="pt", padding=True)
            ids = rows["input_ids"]
            drawn = model.generate(input_ids=ids, attention_mask=rows["attention_mask"], generation_config=config)
            made += tokenizer.batch_decode(drawn[:, ids.shape[1] :], skip_special_tokens=True)
            bar(len(texts))
    tokenizer.padding_side = side
    return [made[start : start + count] for start in range(0, len(made), count)]


def utilities_of(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Array:
    """`[prompt, answer]`: the true utility of every answer, logits."""
    return np.array([[true_utility(p, text) for text in texts] for p, texts in zip(prompts, answers, strict=True)])


# -- Judging


def _judge_all(
    runs: Mapping[str, Run], tests: Groups, options: DemoOptions
) -> tuple[list[Row], dict[str, dict[str, Estimate]]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = [str(group.prompt) for group in tests]
    utility: dict[str, Array] = {}
    answers: dict[str, list[list[str]]] = {}
    for name in ("sft", "dpo", "mmpo"):
        folder = str(runs[name].checkpoint)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        answers[name] = sample_answers(model, tokenizer, prompts, options.samples, seed=options.seed)
        utility[name] = utilities_of(prompts, answers[name]).mean(1)
    pool = answer_groups(prompts, answers["sft"])
    for name in ("bt", "mmpo_rm"):
        utility[name] = best_picked(score(runs[name], pool), len(prompts))
    rows = []
    for name, run in runs.items():
        own: dict[str, Estimate] = {}
        if name != "sft" and run.metrics is not None:
            own = {key: run.metrics[key] for key in _COLUMNS if key in run.metrics}
        column = "best_of" if name in ("bt", "mmpo_rm") else "sampled"
        own[column] = estimate_mean(utility[name], np.arange(len(prompts)))
        rows.append(Row(name, own, run.seconds))
    differences = {}
    for kind, ours, control in (("policy", "mmpo", "dpo"), ("reward_model", "mmpo_rm", "bt")):
        found = known_differences(runs[ours].path / "tables", runs[control].path / "tables")
        column = "sampled" if kind == "policy" else "best_of"
        found[column] = estimate_mean(utility[ours] - utility[control], np.arange(len(prompts)))
        differences[kind] = found
    return rows, differences


def known_differences(ours: Path, control: Path) -> dict[str, Estimate]:
    """MMPO - control on the same test pairs: NLL, accuracy, and the distance from the known probability."""
    found = {name: value for name, value in compare(ours, control).items() if name in ("nll", "accuracy")}
    order = [("group", "ascending"), ("pair", "ascending")]
    left, right = (PairColumns.read(Scores.load(folder).pairs.sort_by(order)) for folder in (ours, control))
    difference = left.values()["prob_error_label"] - right.values()["prob_error_label"]
    return {"prob_error_label": estimate_mean(difference, left.cluster)} | found


def answer_groups(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Groups:
    """Sampled answers as groups that can be scored, each answer with its true utility."""
    return Groups.from_iterable(
        Group(
            f"{number:06d}",
            prompt,
            tuple(Response(text, utility=true_utility(prompt, text)) for text in texts),
            cluster=str(number),
        )
        for number, (prompt, texts) in enumerate(zip(prompts, answers, strict=True))
    )


def best_picked(scores: Scores, prompts: int) -> Array:
    """`[prompt]`: the true utility of the answer with the highest reward; of equal rewards the first."""
    picked: dict[str, tuple[float, float]] = {}
    for row in scores.responses.select(["group", "reward", "utility"]).to_pylist():
        if row["group"] not in picked or row["reward"] > picked[row["group"]][0]:
            picked[row["group"]] = (row["reward"], row["utility"])
    assert len(picked) == prompts
    return np.array([picked[name][1] for name in sorted(picked)])
