"""The demo: on the built-in world, where the truth is known, train, judge and say in two sentences what it shows.

SFT on demonstrations; from it DPO and MMPO policies, and reward models by Bradley-Terry and by MMPO, on the same graded
pairs in the same order. What is measured against the truth: the predicted probability of held-out pairs, and the
utility of freshly sampled answers (for a reward model: of the answer that it picks out of four).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from marginkit.decoding import Draws, draw
from marginkit.demo_result import MEASURES, DemoOptions, DemoResult, Row
from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import estimate_mean
from marginkit.evaluation.compare import compare
from marginkit.evaluation.pair_columns import PairColumns
from marginkit.groups import Groups, write_groups
from marginkit.kitchen import true_utility
from marginkit.progress import progress
from marginkit.records import Estimate, Group, Response
from marginkit.reporting.demo_page import demo_page
from marginkit.reporting.writing import write_page
from marginkit.run import Run, score, train
from marginkit.tables import Scores
from marginkit.world import World, make_world

log = logging.getLogger("marginkit")
Array = npt.NDArray[np.float64]

SIZES = {"small": 32, "medium": 64, "large": 80}
"""Hidden size of the models; all have two layers."""
LAYERS, VOCABULARY, MAX_LENGTH = 2, 1024, 128
BETA = 0.5
TEMPERATURE, NEW_TOKENS, BATCH_TOKENS = 1.0, 48, 65536


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


# -- The way


def run_demo(options: DemoOptions) -> DemoResult:
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
    result = DemoResult(options, rows, differences, world.gamma, out, time.perf_counter() - began)
    write_page(demo_page(result.to_json(), out), result.page)
    return result


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
    asked: list[list[int]] = tokenizer([prompt + "\n" for prompt in prompts])["input_ids"]
    draws = Draws(count, TEMPERATURE, top_p=1.0, max_new_tokens=NEW_TOKENS, seed=seed)
    stop, pad_id = {tokenizer.eos_token_id}, tokenizer.pad_token_id
    made: dict[int, list[str]] = {}
    with progress(len(prompts), "sample answers") as bar:
        for members, drawn in draw(model, asked, draws, stop=stop, pad_id=pad_id, batch_tokens=BATCH_TOKENS):
            texts = (tokenizer.batch_decode([one.ids for one in own], skip_special_tokens=True) for own in drawn)
            made |= dict(zip(members, texts, strict=True))
            bar(len(members))
    return [made[at] for at in range(len(prompts))]


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
            own = {key: run.metrics[key] for key in MEASURES if key in run.metrics}
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
