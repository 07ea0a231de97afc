"""Does margin matching keep its promise in the built-in world? Seeds x qualities x model sizes x a sweep of gamma.

    python benchmarks/demo_claims.py --processes 2 --out build/demo_claims.jsonl   # resumable: skips finished cells
    python benchmarks/demo_claims.py --report build/demo_claims.jsonl              # the tables for docs/log.md
    python benchmarks/demo_claims.py --limits                                      # what the labels themselves allow
    python benchmarks/demo_claims.py --pilot                                       # what the settings were chosen by

One cell is a world (quality, seed) and a model size. In it a policy is trained by SFT, and from it reward models by BT
and by MMPO, policies by DPO and by MMPO, MMPO once for each multiple of the world's true gamma. All trainings of a cell
see the same data in the same order, from the same start, with the settings of `marginkit.demo`, but for more epochs.
Each is judged twice against the known probabilities: after the last epoch (long), and after the epoch with the best
NLL on the graded dev prompts, hard labels (early), which is what a user could pick, by the same rule for all.

The trainings are short and many, so the loop below stands in for `MarginTrainer`, whose start costs more than the
training itself; a test holds it to the trainer's losses.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marginkit import demo
from marginkit.assembly import recipe
from marginkit.batching import BatchPlan
from marginkit.config import FreshModel, ModelConfig
from marginkit.core.loss import Loss
from marginkit.data.encoded import EncodedGroup
from marginkit.data.encoding import Encoder
from marginkit.data.pairing import make_pairs
from marginkit.evaluation.calibration import expected_calibration_error, sigmoid
from marginkit.kitchen import write_prompt
from marginkit.models.loading import fresh_model, fresh_tokenizer, load_model
from marginkit.models.packing import labels_of, padded_batch
from marginkit.models.scorer import score
from marginkit.records import Group
from marginkit.registry import Kind
from marginkit.world import (
    QUALITIES,
    World,
    grade_gap_distribution,
    graded_group,
    make_world,
    preference_prob,
    true_gamma,
)

MULTIPLES = (0.01, 0.3, 1.0, 3.0, 100.0)
LIMIT_MULTIPLES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
PROMPTS, DEMONSTRATIONS, DEV, TEST = 120, 2400, 60, 150
EPOCHS = {"reward_model": 6, "policy": 6}  # the demo trains 3
SAMPLES = 2  # answers drawn for each test prompt
TOKENS = 16384  # padded tokens of one forward pass
EPOCHS_SFT = 6


# -- One training, without the trainer


def train_steps(
    model: Any,
    loss: Loss,
    groups: Sequence[EncodedGroup],
    settings: demo.Settings,
    *,
    epochs: int,
    seed: int,
    pad_id: int,
) -> Iterator[list[float]]:
    """Train as `MarginTrainer` does on one rank, an epoch at a time; yields the losses of its optimizer steps."""
    from transformers import get_scheduler

    plan = BatchPlan(
        shapes=[group.shape for group in groups],
        prompts_per_step=settings.prompts_per_step,
        tokens_per_micro_batch=TOKENS,
        seed=seed,
    )
    total = len(plan) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_scheduler(settings.lr_scheduler_type, optimizer, int(np.ceil(settings.warmup * total)), total)
    model.train()
    for epoch in range(epochs):
        seen = []
        for step in plan.steps(epoch):
            batches = [padded_batch([groups[at] for at in micro.groups], pad_id=pad_id) for micro in step[0]]
            parts = [_shares(loss, batch) for batch in batches]
            units = sum(float(count) for _, count in parts)
            value = 0.0
            for batch, (share, _) in zip(batches, parts, strict=True):
                part = _step_loss(loss, model, batch, share) / units
                part.backward()
                value += float(part.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            seen.append(value)
        yield seen


def _shares(loss: Loss, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What each pair (or response) counts, pairs of a prompt sharing weight 1, and the units of the step."""
    if loss.target is None:
        return torch.ones_like(batch["length"]), batch["length"].sum()
    keep = loss.kept(labels_of(dict(batch)), len(batch["pairs"])).double()
    of_group = torch.zeros(len(batch["ids"]), dtype=torch.float64).index_add(0, batch["group_of"], keep)
    share = keep / of_group.clamp(min=1.0)[batch["group_of"]]
    return share, share.sum()


def _step_loss(loss: Loss, model: Any, batch: Any, share: Tensor) -> Tensor:
    scores = score(model, batch)
    if loss.target is None:
        return (share * loss.evaluate(scores).loss).sum()
    found = loss.evaluate(scores.at(batch["pairs"], labels_of(batch)))
    assert found.target is not None
    return torch.where(share > 0, share * found.target.weight * found.loss, 0.0).sum()


@torch.no_grad()
def gaps_of(model: Any, loss: Loss, groups: Sequence[EncodedGroup], pad_id: int) -> np.ndarray[Any, Any]:
    """The gap of every pair, in the order of the groups and their pairs."""
    plan = BatchPlan(
        shapes=[g.shape for g in groups],
        prompts_per_step=1,
        tokens_per_micro_batch=TOKENS,
    )
    found: dict[int, list[float]] = {}
    model.eval()
    for members in plan.in_order():
        batch = padded_batch([groups[at] for at in members], pad_id=pad_id)
        rewards = loss.reward(score(model, batch).at(batch["pairs"], labels_of(batch)), **loss.reward_options)
        values = iter(rewards.gap.tolist())
        for at in members:
            found[at] = [next(values) for _ in groups[at].chosen]
    model.train()
    return np.array([value for at in range(len(groups)) for value in found[at]])


# -- One cell


@dataclass(frozen=True)
class Parts:
    """A world in tokens."""

    train: list[EncodedGroup]
    dev: list[EncodedGroup]
    test: list[EncodedGroup]
    prompts: list[str]
    tokenizer: Any

    def with_reference(self, model: Any, loss: Loss) -> Parts:
        """The same with reference log-probabilities under `model`."""
        pad_id = self.tokenizer.pad_token_id

        def joined(groups: list[EncodedGroup]) -> list[EncodedGroup]:
            made = []
            with torch.no_grad():
                for start in range(0, len(groups), 64):
                    batch = padded_batch(groups[start : start + 64], pad_id=pad_id)
                    logp = score(model, batch).logp
                    assert logp is not None
                    values = iter(logp.tolist())
                    made += [
                        replace(group, ref_logp=[next(values) for _ in group.response_ids])
                        for group in groups[start : start + 64]
                    ]
            return made

        model.eval()
        return replace(self, train=joined(self.train), dev=joined(self.dev), test=joined(self.test))


def encode_world(world: World, tokenizer: Any) -> tuple[Parts, list[EncodedGroup]]:
    """The graded splits with all pairs, and the demonstrations."""
    encoder = Encoder(tokenizer, max_length=demo.MAX_LENGTH)
    paired = make_pairs(world.graded, "all")
    held: dict[str, list[Group]] = {"train": [], "dev": [], "test": []}
    for group in paired:
        held[str(group.split)].append(group)
    tokens = {name: list(encoder.encode(groups)[0]) for name, groups in held.items()}
    prompts = [str(group.prompt) for group in held["test"]]
    return Parts(**tokens, prompts=prompts, tokenizer=tokenizer), list(encoder.encode(world.demonstrations)[0])


def judge(model: Any, loss: Loss, parts: Parts, kind: str, seed: int) -> dict[str, float]:
    """What the known truth says of a model."""
    gap = gaps_of(model, loss, parts.test, parts.tokenizer.pad_token_id)
    known = np.array([value for group in parts.test for value in group.prob])
    tie = np.array([value for group in parts.test for value in group.tie])
    prob = sigmoid(gap)
    found = {
        "accuracy": float((gap > 0)[~tie].mean()),
        "nll": float((known * np.logaddexp(0, -gap) + (1 - known) * np.logaddexp(0, gap)).mean()),
        "ece": expected_calibration_error(prob, known),
        "prob_error": float(np.abs(prob - known).mean()),
        "mean_confidence": float(np.maximum(prob, 1 - prob).mean()),
    }
    if kind == "policy":
        answers = demo.sample_answers(model, parts.tokenizer, parts.prompts, SAMPLES, seed=seed)
        found["utility"] = float(np.mean(demo.utilities_of(parts.prompts, answers)))
    return found


def dev_nll(model: Any, loss: Loss, parts: Parts) -> float:
    """NLL of the dev prompts' grade order, ties left out: known to any user."""
    gap = gaps_of(model, loss, parts.dev, parts.tokenizer.pad_token_id)
    tie = np.array([value for group in parts.dev for value in group.tie])
    return float(np.logaddexp(0, -gap)[~tie].mean())


def fit_and_judge(
    start: Callable[[], Any], loss: Loss, parts: Parts, kind: str, seed: int, epochs: int
) -> dict[str, Any]:
    """Train long, look at the dev prompts after each epoch, judge the last state and the one with the best look."""
    began = time.perf_counter()
    model = start()
    settings = demo.SETTINGS[kind]
    curve: list[float] = []
    best: dict[str, Tensor] = {}
    steps = train_steps(
        model, loss, parts.train, settings, epochs=epochs, seed=seed, pad_id=parts.tokenizer.pad_token_id
    )
    losses = []
    for seen in steps:
        losses.append(float(np.mean(seen)))
        curve.append(dev_nll(model, loss, parts))
        if curve[-1] == min(curve):
            best = copy.deepcopy(model.state_dict())
    result: dict[str, Any] = {"long": judge(model, loss, parts, kind, seed)}
    model.load_state_dict(best)
    result["early"] = judge(model, loss, parts, kind, seed) | {"epoch": int(np.argmin(curve)) + 1}
    return result | {"dev_nll": curve, "loss": losses, "seconds": time.perf_counter() - began}


def run_cell(quality: str, seed: int, size: str, multiples: Sequence[float] = MULTIPLES) -> dict[str, Any]:
    """Every training of one cell."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    world = make_world(quality, prompts=PROMPTS, demonstrations=DEMONSTRATIONS, dev=DEV, test=TEST, seed=10_000 + seed)
    texts = (text for group in world.demonstrations for text in (str(group.prompt), group.responses[0].text))
    tokenizer = fresh_tokenizer(texts, demo.VOCABULARY)
    parts, demonstrations = encode_world(world, tokenizer)
    fresh = FreshModel(layers=demo.LAYERS, hidden=demo.SIZES[size], vocab=demo.VOCABULARY, max_length=demo.MAX_LENGTH)
    cell: dict[str, Any] = {"quality": quality, "seed": seed, "size": size, "gamma": world.gamma, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        sft = fresh_model(fresh, "sft", tokenizer, seed=seed)
        nll = recipe("sft")
        for seen in train_steps(
            sft, nll, demonstrations, demo.SETTINGS["sft"], epochs=EPOCHS_SFT, seed=seed, pad_id=tokenizer.pad_token_id
        ):
            cell["sft_loss"] = float(np.mean(seen))
        sft.eval()
        answers = demo.sample_answers(sft, tokenizer, parts.prompts, SAMPLES, seed=seed)
        cell["sft_utility"] = float(np.mean(demo.utilities_of(parts.prompts, answers)))
        sft.save_pretrained(folder)  # type: ignore[operator]
        cell["sft_seconds"] = time.perf_counter() - began

        def reward_model() -> Any:
            torch.manual_seed(seed)  # the new head
            return load_model(ModelConfig(path=folder), "reward_model", tokenizer)

        recipes: list[tuple[str, str, Loss]] = [("bt", "reward_model", recipe("bt"))]
        recipes += [(f"mmpo_rm@{m:g}", "reward_model", recipe("mmpo_rm", gamma=m * world.gamma)) for m in multiples]
        recipes += [("dpo", "policy", recipe("dpo", beta=demo.BETA))]
        recipes += [(f"mmpo@{m:g}", "policy", recipe("mmpo", beta=demo.BETA, gamma=m * world.gamma)) for m in multiples]
        with_reference = parts.with_reference(sft, nll)
        for name, kind, loss in recipes:
            own = with_reference if kind == "policy" else parts
            start = reward_model if kind == "reward_model" else lambda: copy.deepcopy(sft)
            cell["runs"][name] = fit_and_judge(start, loss, own, kind, seed, EPOCHS[kind])
    return cell | {"seconds": time.perf_counter() - began, "machine": machine()}


def machine() -> str:
    """What it ran on, in a few words."""
    return f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}"


# -- All cells


def sweep(cells: Sequence[tuple[str, int, str]], out: Path, processes: int) -> None:
    """Run the cells that `out` does not hold yet; one line is added as each is done."""
    done = {(cell["quality"], cell["seed"], cell["size"]) for cell in read_cells(out)}
    todo = [cell for cell in cells if cell not in done]
    print(f"{len(cells)} cells, {len(cells) - len(todo)} done before, {len(todo)} to run", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_quiet) as pool:
        futures = {pool.submit(run_cell, *cell): cell for cell in todo}
        for number, future in enumerate(as_completed(futures), 1):
            with out.open("a", encoding="utf-8") as sink:
                sink.write(json.dumps(future.result()) + "\n")
            seconds = future.result()["seconds"]
            print(f"{number}/{len(todo)} {futures[future]} {seconds:.0f} s", file=sys.stderr, flush=True)


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The finished cells; a last line that was cut short is passed over."""
    if not path.is_file():
        return []
    cells = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            cells.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return cells


T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5% quantile of Student's t by degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95% interval (Student's t)."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(T_975.get(len(x) - 1, 1.96) * x.std(ddof=1) / np.sqrt(len(x)))


MEASURES = {
    "prob_error": "distance from known P",
    "nll": "NLL",
    "ece": "ECE",
    "accuracy": "accuracy",
    "utility": "utility",
}
KINDS = {"reward model": ("bt", "mmpo_rm"), "policy": ("dpo", "mmpo")}


def row(cells: Sequence[Mapping[str, Any]], name: str, control: str, stop: str, measures: Sequence[str]) -> list[str]:
    """The control's means, or a run's differences to it: one value a seed, averaged over the sizes given."""
    words = []
    for measure in measures:
        by_seed: dict[int, list[float]] = {}
        for cell in cells:
            base = cell["runs"][control][stop][measure]
            value = base if name == control else cell["runs"][name][stop][measure] - base
            by_seed.setdefault(cell["seed"], []).append(value)
        mean, half = interval([float(np.mean(values)) for values in by_seed.values()])
        if name == control:
            words.append(f"{mean:.3f} ± {half:.3f}")
            continue
        good = 1 if measure in ("accuracy", "utility") else -1
        mark = " **better**" if good * mean - half > 0 else " *worse*" if good * mean + half < 0 else ""
        words.append(f"{mean:+.3f} ± {half:.3f}{mark}")
    return words


def table(cells: Sequence[Mapping[str, Any]], kind: str, stop: str, sizes: Sequence[str]) -> list[str]:
    """One Markdown table: by quality and size the control, then MMPO - control by multiple of gamma."""
    control, ours = KINDS[kind]
    measures = [name for name in MEASURES if name != "utility" or kind == "policy"]
    lines = ["", f"**{kind}, {stop}**: {control} (mean), then {ours} - {control} by multiple of gamma", ""]
    lines += ["| quality | size | seeds | model | " + " | ".join(MEASURES[name] for name in measures) + " |"]
    lines += ["|" + " --- |" * (4 + len(measures))]
    for quality in QUALITIES:
        for size in sizes:
            held = [c for c in cells if c["quality"] == quality and size in (c["size"], "all")]
            seeds = len({cell["seed"] for cell in held})
            for name in [run for run in (held[0]["runs"] if held else ()) if run.partition("@")[0] in (control, ours)]:
                label = name if name == control else f"x {name.partition('@')[2]}"
                cells_of_row = " | ".join(row(held, name, control, stop, measures))
                lines.append(f"| {quality} | {size} | {seeds} | {label} | {cells_of_row} |")
    return lines


def report(cells: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: first averaged over the model sizes, then for each size; paired by seed."""
    lines = ["# Does margin matching keep its promise in the built-in world?", ""]
    lines += [
        "Written by `python benchmarks/demo_claims.py --report`; read with [the log](log.md). Better and worse are"
    ]
    lines += ["marked where an uncorrected 95% interval leaves 0 out: of some 1,000 comparisons many are chance."]
    for title, sizes in (("Averaged over the model sizes", ["all"]), ("By model size", list(demo.SIZES))):
        lines += ["", f"## {title}"]
        for kind in KINDS:
            for stop in ("early", "long"):
                lines += table(cells, kind, stop, sizes)
    machines = ", ".join(sorted({str(cell["machine"]) for cell in cells}))
    hours = sum(cell["seconds"] for cell in cells) / 3600
    lines += ["", f"{len(cells)} cells, {hours:.1f} process hours, {machines}; ± is the 95% t interval over seeds."]
    return "\n".join(lines)


def limits(groups: int = 400) -> str:
    """Markdown: the mean |P - known P| of a perfect learner with endless data, by method and gamma.

    For each pair such a learner says P(grade order says so | not a tie) with hard labels, and the mean of
    sigmoid(gamma * grade gap) over the raters' noise with MMPO: the best that these labels allow.
    """
    lines = ["| quality | gamma | hard labels | " + " | ".join(f"x {m:g}" for m in LIMIT_MULTIPLES) + " |"]
    lines += ["|" + " --- |" * (3 + len(LIMIT_MULTIPLES))]
    for name, quality in QUALITIES.items():
        rng = np.random.default_rng(7)
        chances, known = [], []
        for number in range(groups):
            group = graded_group(rng, write_prompt(rng), quality, 4, name=str(number), split="test")
            utility = [float(response.utility or 0.0) for response in group.responses]
            for pair in group.pairs:
                if not pair.tie:
                    chances.append(grade_gap_distribution(utility[pair.chosen], utility[pair.rejected], quality)[1])
                    known.append(float(pair.prob or 0.0))
        chance, truth = np.array(chances), np.array(known)
        gaps = grade_gap_distribution(0.0, 0.0, quality)[0]
        hard = chance[:, gaps > 0].sum(1) / (1 - chance[:, gaps == 0].sum(1))
        soft = [chance @ preference_prob(m * true_gamma(name) * gaps, 0.0) for m in LIMIT_MULTIPLES]
        errors = [f"{np.abs(found - truth).mean():.3f}" for found in (hard, *soft)]
        lines.append(f"| {name} | {true_gamma(name):.3f} | " + " | ".join(errors) + " |")
    return "\n".join(lines)


PILOT: dict[str, tuple[tuple[float, int, float], ...]] = {
    # (learning rate, epochs, beta)
    "bt": ((1e-3, 5, 0), (3e-3, 5, 0), (1e-2, 5, 0), (2e-3, 3, 0), (3e-3, 3, 0), (5e-3, 3, 0), (1e-2, 3, 0)),
    "dpo": (
        *((1e-3, 3, 0.1), (1e-3, 3, 0.3), (3e-3, 3, 0.3), (1e-3, 2, 0.1), (1e-3, 2, 0.2), (1e-3, 2, 0.3)),
        *((1e-3, 2, 0.5), (2e-3, 2, 0.3), (3e-4, 3, 0.3), (1e-3, 3, 0.5), (5e-4, 2, 0.5), (5e-4, 3, 0.5)),
        *((3e-4, 3, 0.5), (1e-3, 2, 1.0), (3e-4, 3, 1.0)),
    ),
}


def pilot(seed: int = 1000) -> str:
    """Markdown: dev NLL of the controls alone, on a seed used for nothing else: what the demo's settings rest on."""
    torch.set_num_threads(1)
    world = make_world("mixed", prompts=600, demonstrations=4800, dev=300, test=10, seed=seed)
    texts = (text for group in world.demonstrations for text in (str(group.prompt), group.responses[0].text))
    tokenizer = fresh_tokenizer(texts, demo.VOCABULARY)
    parts, demonstrations = encode_world(world, tokenizer)
    fresh = FreshModel(layers=demo.LAYERS, hidden=64, vocab=demo.VOCABULARY, max_length=demo.MAX_LENGTH)
    sft = fresh_model(fresh, "sft", tokenizer, seed=0)
    pad_id, settings = tokenizer.pad_token_id, demo.SETTINGS["sft"]
    for _ in train_steps(sft, recipe("sft"), demonstrations, settings, epochs=settings.epochs, seed=0, pad_id=pad_id):
        pass
    lines = ["| model | learning rate | epochs | beta | dev NLL |", "| --- | --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        sft.save_pretrained(folder)  # type: ignore[operator]
        for name, tried in PILOT.items():
            for rate, epochs, beta in tried:
                kind: Kind = "reward_model" if name == "bt" else "policy"
                loss = recipe("bt") if name == "bt" else recipe("dpo", beta=beta)
                own = parts if name == "bt" else parts.with_reference(sft, loss)
                torch.manual_seed(0)
                model = load_model(ModelConfig(path=folder), kind, tokenizer)
                for _ in train_steps(
                    model, loss, own.train, demo.Settings(rate, epochs, 16), epochs=epochs, seed=0, pad_id=pad_id
                ):
                    pass
                words = f"{beta:g}" if beta else "-"
                lines.append(f"| {name} | {rate:g} | {epochs} | {words} | {dev_nll(model, loss, own):.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--qualities", nargs="+", default=list(QUALITIES), choices=list(QUALITIES))
    parser.add_argument("--sizes", nargs="+", default=list(demo.SIZES), choices=list(demo.SIZES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/demo_claims.jsonl"))
    parser.add_argument("--report", type=Path, help="print the tables of a finished sweep")
    parser.add_argument("--limits", action="store_true", help="print what the labels themselves allow")
    parser.add_argument("--pilot", action="store_true", help="print the controls' dev NLL that settings were chosen by")
    given = parser.parse_args()
    if given.pilot:
        _quiet()
        print(pilot())
        return
    if given.limits:
        print(limits())
        return
    if given.report is None:
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        sweep(
            [(q, seed, size) for seed in seeds for q in given.qualities for size in given.sizes],
            given.out,
            given.processes,
        )
    print(report(read_cells(given.report or given.out)))


if __name__ == "__main__":
    main()
