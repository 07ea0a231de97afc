"""Scoring a RewardBench: each prompt once with its two responses, against a plain loop over padded rows.

    python benchmarks/rewardbench_speed.py [--pairs 298] [--repeats 3] [--hidden 256] [--layers 4]

2,985 pairs have the size of RewardBench; the default is a tenth of them, for a CPU. Texts are made up: words drawn at
random, prompts of a median of 60 words, responses of 90, both log-normal, the two responses of a prompt independent.
The model is a small llama with random weights and a reward head, in float32.

The plain loop is what RewardBench's own command does: transformers' AutoModelForSequenceClassification, all chosen and
then all rejected texts in rows of eight, in the order of the file, padded to the longest of eight. `sorted` is the same
loop over rows sorted by length, which wastes less. Both tokenize, as ours does; the rewards must agree. Ours and the
loops take turns in one process, so that the ratios have one machine under them. Times are CPU seconds of the process,
which a neighbour on the machine disturbs less. `positions` are what the model computes, padding included. One line of
JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from marginkit.groups import Groups
from marginkit.models.loading import fresh_tokenizer
from marginkit.records import Group, Pair, Response
from marginkit.run_scores import open_scorer

WHOLE = 2985
ROWS = 8
VOCABULARY = [f"{first}{second}{third}" for first in "bcdfglmn" for second in "aeiou" for third in "klmnrst"]


def made_up(pairs: int, seed: int = 0) -> Groups:
    """Groups of one prompt and two responses."""
    chance = np.random.default_rng(seed)

    def text(median: int) -> str:
        words = int(np.clip(chance.lognormal(np.log(median), 0.7), 5, 500))
        return " ".join(chance.choice(VOCABULARY, words))

    return Groups.from_iterable(
        Group(str(n), text(60), (Response(text(90)), Response(text(90))), pairs=(Pair(0, 1),)) for n in range(pairs)
    )


def save_model(folder: Path, hidden: int, layers: int) -> None:
    """A small reward model and its tokenizer."""
    tokenizer = fresh_tokenizer([" ".join(VOCABULARY)] * 4, 600)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,  # type: ignore[call-arg]
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)


def plain(folder: Path, groups: Groups, *, by_length: bool) -> Callable[[], list[float]]:
    """The loop; it returns the rewards response by response, in the order of the groups."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [
        f"{group.prompt}\n{group.responses[side].text}{tokenizer.eos_token}" for side in (0, 1) for group in groups
    ]

    @torch.no_grad()
    def score() -> list[float]:
        ids = tokenizer(texts)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row])) if by_length else list(range(len(ids)))
        rewards = [0.0] * len(ids)
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            for row, value in zip(rows, model(**batch).logits[:, 0].tolist(), strict=True):
                rewards[row] = value
        half = len(rewards) // 2
        return [value for both in zip(rewards[:half], rewards[half:], strict=True) for value in both]

    return score


def positions(folder: Path, groups: Groups) -> dict[str, int]:
    """Tokens that each way computes: padded rows, or each prompt and response once."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    rows = [
        len(tokenizer(f"{group.prompt}\n{group.responses[side].text}{tokenizer.eos_token}")["input_ids"])
        for side in (0, 1)
        for group in groups
    ]

    def padded(lengths: Sequence[int]) -> int:
        blocks = [lengths[start : start + ROWS] for start in range(0, len(lengths), ROWS)]
        return sum(max(block) * len(block) for block in blocks)

    twice = sum(len(tokenizer(f"{group.prompt}\n")["input_ids"]) for group in groups)
    return {"marginkit": sum(rows) - twice, "plain": padded(rows), "sorted": padded(sorted(rows))}


def ours(folder: Path, groups: Groups) -> Callable[[], list[float]]:
    """The scorer of `marginkit evaluate --model`."""
    scorer = open_scorer(folder)
    scorer.score(groups[:2])  # weights are read and the layout is probed here, as the loops have theirs loaded
    return lambda: scorer.score(groups).responses["reward"].to_pylist()


def measure(pairs: int, repeats: int, hidden: int, layers: int) -> dict[str, Any]:
    """CPU seconds of each way, and the ratios."""
    groups = made_up(pairs)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_model(folder, hidden, layers)
        ways = {
            "marginkit": ours(folder, groups),
            "plain": plain(folder, groups, by_length=False),
            "sorted": plain(folder, groups, by_length=True),
        }
        computed = positions(folder, groups)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        rewards: dict[str, Sequence[float]] = {}
        for _ in range(repeats):
            for name, way in ways.items():
                began = time.process_time()
                rewards[name] = way()
                seconds[name].append(time.process_time() - began)
    worst = max(float(np.abs(np.subtract(rewards[name], rewards["marginkit"])).max()) for name in ways)
    middle = {name: statistics.median(own) for name, own in seconds.items()}
    ratios = {
        name: [own / mine for own, mine in zip(seconds[name], seconds["marginkit"], strict=True)]
        for name in ("plain", "sorted")
    }
    return {
        "pairs": pairs,
        "of_rewardbench": round(pairs / WHOLE, 3),
        "positions": computed,
        "cpu_seconds": {name: round(value, 2) for name, value in middle.items()},
        "ratio": {name: round(statistics.median(own), 2) for name, own in ratios.items()},
        "ratio_lowest_highest": {name: [round(min(own), 2), round(max(own), 2)] for name, own in ratios.items()},
        "largest_difference_of_rewards": worst,
        "model": f"llama, {layers} layers of {hidden}, float32",
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=WHOLE // 10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    logging.getLogger("marginkit").setLevel(logging.ERROR)
    print(json.dumps(measure(arguments.pairs, arguments.repeats, arguments.hidden, arguments.layers)))


if __name__ == "__main__":
    main()
