"""Does learning from one's own graded samples beat more training on old data? Two rounds in the built-in world.

    python benchmarks/self_play.py --seeds 3 --out build/self_play.jsonl   # resumable: skips finished seeds
    python benchmarks/self_play.py --demonstrations 2400 --graded 400 --out build/self_play.jsonl      # weaker models
    python benchmarks/self_play.py --report build/self_play.jsonl          # the tables for docs/log.md

One seed is one world. In it a policy is trained by SFT and a reward model by Bradley-Terry on graded data. Three arms
then train that policy for two rounds, each round by the same recipe (mmpo), on one pair (best, worst) of each of the
same prompts, for the same optimizer steps, from the model of the round before, which is also the reference:

- graded: the old data again, the responses and grades that the reward model learned from (gamma: the world's own);
- once: samples of the SFT policy, graded by the reward model, in both rounds the same;
- loop: samples of the policy of the round before, graded by the reward model.

After each round fresh answers to held-out prompts are judged by the world itself (true utility) and by the reward
model. Reward up and utility not: that is the reward model being exploited. Worlds, models and training settings are
those of `marginkit.demo`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_claims import interval, machine, read_cells
from scipy.stats import spearmanr

import marginkit as mk
from marginkit import demo
from marginkit.demo import SETTINGS, train_options
from marginkit.generate import sample
from marginkit.kitchen import true_utility
from marginkit.run import Run
from marginkit.self_play import sample_dataset
from marginkit.world import QUALITIES, make_world

SIZE = "medium"
PROMPTS, TEST = 400, 150
N, TEMPERATURE, TOP_P = 5, 0.8, 0.95  # what is trained on
JUDGED = 4  # fresh answers to every test prompt, at temperature 1
ROUNDS = (1, 2)
KIND = ("quality", "graded", "demonstrations")
ARMS = ("graded", "once", "loop")
MEASURES = {
    "utility": "true utility of fresh answers (logits)",
    "reward": "reward of the same answers (logits; start = 0)",
    "kl": "KL to the start (nats an answer)",
    "right": "reward model right on pairs of them",
    "rank": "rank correlation of reward and true utility",
    "length": "tokens an answer",
}


def run_seed(seed: int, quality: str, graded: int, demonstrations: int, folder: Path) -> dict[str, Any]:
    """Every arm in one world: the reward model learns from all graded prompts, the policies from the first 400."""
    began = time.perf_counter()
    sizes = {"prompts": graded, "demonstrations": demonstrations, "dev": 1, "test": TEST}
    world = make_world(quality, **sizes, seed=20_000 + seed)
    mk.write_groups(world.demonstrations, folder / "demonstrations.jsonl")
    mk.write_groups(world.graded, folder / "graded.jsonl")
    prompts = [str(group.prompt) for group in world.graded if group.split == "test"]
    common = {
        "seed": seed,
        "encoding": {"max_length": demo.MAX_LENGTH},
        "store": {"path": str(folder / "store")},
    }
    no_tests = {"eval_split": None, "test_split": None}

    def trained(recipe: str, kind: str, name: str, **own: Any) -> Run:
        out = {"out": str(folder / name), "train": train_options(SETTINGS[kind])}
        return mk.train(recipe, common | out | own)

    fresh = {"layers": demo.LAYERS, "hidden": demo.SIZES[SIZE], "vocab": demo.VOCABULARY, "max_length": demo.MAX_LENGTH}
    shown = {"train": str(folder / "demonstrations.jsonl")} | no_tests
    start = trained("sft", "sft", "sft", model={"path": "fresh", "fresh": fresh}, data=shown)
    old = {"train": str(folder / "graded.jsonl")}
    model = {"path": str(start.checkpoint)}
    judge = trained("bt", "reward_model", "rm", model=model, data=old | {"pairs": "all"})
    assert judge.metrics is not None
    found: dict[str, Any] = {
        "seed": seed,
        "quality": quality,
        "graded": graded,
        "demonstrations": demonstrations,
        "rm_accuracy": judge.metrics["accuracy"].value,
    }
    base = judged(start, start, judge, prompts, seed)
    found["start"] = base
    for arm in ARMS:
        policy = start
        for number in ROUNDS:
            target: dict[str, Any] = {}
            if arm == "graded":
                data = old | {"pairs": "best_worst", "limit": PROMPTS} | no_tests
                target = {"target": {"gamma": world.gamma}}
            else:
                name = f"{arm}-{number}" if arm == "loop" and number > 1 else "first"
                made = folder / f"{name}.jsonl"
                manifest, _ = sample_dataset(
                    str(policy.path if name != "first" else start.path),
                    str(folder / "graded.jsonl"),
                    made,
                    n=N,
                    temperature=TEMPERATURE,
                    top_p=TOP_P,
                    max_new_tokens=demo.NEW_TOKENS,
                    seed=number if name != "first" else 1,
                    reward=str(judge.path),
                    split="train",
                    limit=PROMPTS,
                    batch_tokens=demo.BATCH_TOKENS,
                )
                data = {"train": str(made)} | no_tests
                found[f"{arm}-{number}-data"] = {
                    "pairs": manifest["pairs"],
                    "dropped": manifest["dropped"],
                    "tokens": manifest["facts"]["tokens"],
                }
            model = {"path": str(policy.checkpoint)}
            reward = {"reward": {"beta": demo.BETA}}
            policy = trained("mmpo", "policy", f"{arm}-{number}", model=model, data=data, **reward, **target)
            found[f"{arm}-{number}"] = judged(policy, start, judge, prompts, seed)
            print(seed, arm, number, {k: round(v, 3) for k, v in found[f"{arm}-{number}"].items()}, file=sys.stderr)
    return found | {"seconds": time.perf_counter() - began, "machine": machine()}


def judged(policy: Run, start: Run, judge: Run, prompts: Sequence[str], seed: int) -> dict[str, float]:
    """What the world and the reward model say of a policy's fresh answers, and how far it has gone from the start."""
    groups = sample(
        policy,
        [{"prompt": prompt} for prompt in prompts],
        n=JUDGED,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=demo.NEW_TOKENS,
        seed=1000 + seed,
        batch_tokens=demo.BATCH_TOKENS,
    )
    tables = [mk.score(run, groups).responses.to_pylist() for run in (judge, policy, start)]
    reward, own, first = (
        {(row["group"], row["response"]): row[name] for row in table}
        for table, name in zip(tables, ("reward", "logp", "logp"), strict=True)
    )
    lengths = [row["length"] for row in tables[1]]
    utility = {
        (group.id, k): true_utility(str(group.prompt), response.text)
        for group in groups
        for k, response in enumerate(group.responses)
    }
    keys = sorted(utility)
    right = [
        float((reward[a] > reward[b]) == (utility[a] > utility[b]))
        for a in keys
        for b in keys
        if a[0] == b[0] and a[1] < b[1] and abs(utility[a] - utility[b]) > 1e-9
    ]
    u, r = np.array([utility[key] for key in keys]), np.array([reward[key] for key in keys])
    return {
        "utility": float(u.mean()),
        "reward": float(r.mean()),
        "kl": float(np.mean([own[key] - first[key] for key in keys])),
        "right": float(np.mean(right)),
        "rank": float(spearmanr(u, r).statistic),
        "length": float(np.mean(lengths)),
        "answers": len(keys) / len(prompts),
    }


# -- Report


def value(cell: Mapping[str, Any], place: str, name: str) -> float:
    """A measure of a place in one world; rewards are told from the start's on, as their zero means nothing."""
    return float(cell[place][name] - (cell["start"][name] if name == "reward" else 0.0))


def report(cells: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: every measure at every place, and what the loop gains over the others in the same worlds."""
    kinds = list(dict.fromkeys(kind_of(cell) for cell in cells))
    return "\n\n".join(_report([cell for cell in cells if kind_of(cell) == kind]) for kind in kinds)


def kind_of(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a cell has in common with those of other seeds."""
    return tuple(cell[name] for name in KIND)


def _report(cells: Sequence[Mapping[str, Any]]) -> str:
    places = ["start", *(f"{arm}-{number}" for arm in ARMS for number in ROUNDS)]
    accuracy = interval([cell["rm_accuracy"] for cell in cells])
    minutes = sum(cell["seconds"] for cell in cells) / 60
    lines = [
        f"**{cells[0]['quality']} quality, {len(cells)} worlds.** SFT: {cells[0]['demonstrations']} demonstrations. "
        f"Reward model: {cells[0]['graded']} graded prompts, "
        f"accuracy {accuracy[0]:.3f} ± {accuracy[1]:.3f} on held-out pairs. Policies: {PROMPTS} prompts, n = {N}. "
        f"Judged on {TEST} prompts x {JUDGED} answers. {minutes:.1f} minutes, {cells[0]['machine']}.",
        "",
        "| | " + " | ".join(places) + " |",
        "|---|" + "---|" * len(places),
    ]
    for name, words in MEASURES.items():
        shown = [interval([value(cell, place, name) for cell in cells]) for place in places]
        lines.append(f"| {words} | " + " | ".join(f"{mean:.2f} ± {half:.2f}" for mean, half in shown) + " |")
    compared = ("utility", "reward", "kl", "right")
    lines += ["", "| paired difference, same worlds | " + " | ".join(compared) + " |", "|---" * 5 + "|"]
    comparisons = [("loop-2", other) for other in ("loop-1", "once-2", "graded-2", "start")] + [("loop-1", "graded-1")]
    for ours, other in comparisons:
        gaps = [interval([value(cell, ours, name) - value(cell, other, name) for cell in cells]) for name in compared]
        lines.append(f"| {ours} - {other} | " + " | ".join(f"{mean:+.2f} ± {half:.2f}" for mean, half in gaps) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the seeds that are missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quality", default="mixed", choices=list(QUALITIES))
    parser.add_argument("--graded", type=int, default=600, help="graded prompts that the reward model learns from")
    parser.add_argument("--demonstrations", type=int, default=4800, help="what the first policy learns from")
    parser.add_argument("--out", type=Path, default=Path("build/self_play.jsonl"))
    parser.add_argument("--report", type=Path)
    chosen = parser.parse_args()
    if chosen.report:
        print(report(read_cells(chosen.report)))
        return
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    kind = tuple(getattr(chosen, name) for name in KIND)
    done = {cell["seed"] for cell in read_cells(chosen.out) if kind_of(cell) == kind}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in sorted(set(range(chosen.seeds)) - done):
        with tempfile.TemporaryDirectory() as folder:
            cell = run_seed(seed, *kind, Path(folder))
        with chosen.out.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(cell) + "\n")
        print(f"seed {seed}: {cell['seconds']:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
