"""Train on real graded files, by the command line alone, and print a table for docs/log.md.

Models are small and fresh (random weights, own tokenizer), so the figures say that the way works from end to end, not
how good a method is on a real model. Settings are the same for every recipe of a kind and file, and were not tuned.

    python benchmarks/real_files.py ../shared/data --out /tmp/real
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FRESH = ["model.path=fresh", "model.fresh.max_length=4096"]
REWARD_MODEL = [*FRESH, "train.learning_rate=5e-4", "train.num_train_epochs=3", "train.save_strategy=no"]
POLICY = ["reward.beta=0.1", "train.learning_rate=2e-4", "train.num_train_epochs=2", "train.save_strategy=no"]
MEASURES = ("accuracy", "length_baseline", "nll", "brier", "ece", "ece_floor", "prob_error_label", "nll_per_token")

# name, recipe, file, settings; a policy starts from the SFT run
CASES: list[tuple[str, str, str, list[str]]] = [
    ("polite bt", "bt", "polite_pairs_demo", [*REWARD_MODEL, "train.learning_rate=1e-3"]),
    ("convincing bt", "bt", "ukpconvarg_pairs", REWARD_MODEL),
    ("convincing mmpo_rm", "mmpo_rm", "ukpconvarg_pairs", REWARD_MODEL),
    ("feedbackqa bt", "bt", "feedbackqa_human_graded", REWARD_MODEL),
    ("feedbackqa mmpo_rm", "mmpo_rm", "feedbackqa_human_graded", [*REWARD_MODEL, "target.gamma=0.82"]),
    (
        "sft",
        "sft",
        "sft_permissive",
        [*FRESH, "train.learning_rate=1e-3", "train.num_train_epochs=3", "train.save_strategy=no"],
    ),
    ("arena mmpo, control dpo", "mmpo", "arenabench_graded", [*POLICY, "target.gamma=0.55", "train.control=dpo"]),
]


def marginkit(*words: str) -> tuple[int, str, str]:
    """Run the command line; exit code, stdout, stderr."""
    done = subprocess.run([sys.executable, "-m", "marginkit", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def shown(estimate: dict[str, Any] | None) -> str:
    """One cell: value [low, high]."""
    if estimate is None or estimate["value"] is None:
        return ""
    low, high = estimate["low"], estimate["high"]
    return f"{estimate['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def row(name: str, metrics: dict[str, Any], seconds: float) -> str:
    """One line of the table."""
    n = next((metrics[key]["n"] for key in ("accuracy", "nll_per_token") if key in metrics), 0)
    return f"| {name} | {n} | " + " | ".join(shown(metrics.get(key)) for key in MEASURES) + f" | {seconds:.0f} |"


def main() -> None:
    """Run every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the graded files")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder for the runs")
    parser.add_argument("--only", help="run the cases whose name contains this")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch threads {os.environ.get('OMP_NUM_THREADS', 'default')}\n"
    )
    code, _, said = marginkit(
        "train", "mmpo_rm", "model.path=fresh", f"data.train={options.data / 'polite_pairs_demo.jsonl'}"
    )
    print(f"mmpo_rm on ungraded pairs: exit code {code}: {said.strip().splitlines()[-1]}\n")
    print("| run | n | " + " | ".join(MEASURES) + " | s |\n|" + "---|" * (len(MEASURES) + 3))
    start = options.out / "sft" / "model"
    for name, recipe, file, settings in CASES:
        if options.only and options.only not in name:
            continue
        out = options.out / name.replace(" ", "-").replace(",", "")
        words = [
            "train",
            recipe,
            f"data.train={options.data / file}.jsonl",
            f"out={out}",
            f"store.path={options.out}/store",
        ]
        if recipe in ("dpo", "mmpo"):
            words.append(f"model.path={start}")
        began = time.perf_counter()
        code, text, said = marginkit(*words, *settings, "--json")
        if code != 0:
            print(f"{name}: exit code {code}: {said.strip().splitlines()[-1]}")
            continue
        result = json.loads(text.strip().splitlines()[-1])
        print(row(name, result["metrics"], time.perf_counter() - began), flush=True)
        if "control" in result:
            print(row(name.split(", ")[1], result["control"]["metrics"], result["control"]["seconds"]))
            print(f"\n{result['verdict']}\n", flush=True)


if __name__ == "__main__":
    main()
