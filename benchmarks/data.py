"""What reading, checking and pairing cost: rows a second, memory and growth, beside `datasets.map` and a loop.

Every measurement is a process of its own on invented rows, so that memory is its own too; all ways of a case do the
same work, and are run one after the other. `datasets.map` keeps its cache in a folder that is new each time.

    python benchmarks/data.py                 # the table of docs/data_measured.md
    python benchmarks/data.py --quick         # a tenth of the rows
    python benchmarks/data.py --only dcrm
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

WORDS = [f"w{number}" for number in range(5000)]
WEIGHTS = [1 / (rank + 3) for rank in range(len(WORDS))]
Work = Callable[[Path], int]

# name -> (rows, responses a row, words a response)
SIZES: Mapping[str, tuple[int, int, int]] = {
    "read 10k pairs": (10_000, 2, 100),
    "read 100k pairs": (100_000, 2, 100),
    "check 10k pairs": (10_000, 2, 100),
    "check 100k pairs": (100_000, 2, 100),
    "pair all, 20k x 8": (20_000, 8, 40),
    "dcrm N=4, 3k": (3_000, 4, 300),
    "dcrm N=8, 3k": (3_000, 8, 300),
    "dcrm N=16, 3k": (3_000, 16, 300),
    "dcrm N=8, 60k": (60_000, 8, 300),
}
LONG = ("dcrm N=8, 60k",)


# -- Invented rows


def write_rows(path: Path, rows: int, responses: int, words: int) -> None:
    """Graded rows of invented words: pairs where there are two responses, else lists of responses."""
    draw = random.Random(f"{rows} {responses} {words}")
    cumulated = list(itertools.accumulate(WEIGHTS))
    with path.open("w", encoding="utf-8") as sink:
        for number in range(rows):
            texts = [
                " ".join(draw.choices(WORDS, cum_weights=cumulated, k=max(5, int(draw.gauss(words, words / 4)))))
                for _ in range(responses)
            ]
            grades = [round(draw.gauss(3, 1), 3) for _ in range(responses)]
            row: dict[str, Any] = {"id": f"r{number}", "prompt": f"{' '.join(draw.choices(WORDS, k=20))} {number}"}
            if responses == 2:
                best = int(grades[1] > grades[0])
                row |= {"chosen": texts[best], "rejected": texts[1 - best]}
                row |= {"score_chosen": grades[best], "score_rejected": grades[1 - best]}
            else:
                row["responses"] = [{"text": text, "score": grade} for text, grade in zip(texts, grades, strict=True)]
            sink.write(json.dumps(row) + "\n")


# -- The same work, three ways. A way takes the file and returns how many rows it made.


def checked(row: Mapping[str, Any]) -> bool:
    """What a careful user writes by hand: texts there, different, numbers finite, the label as the scores say."""
    texts = (row.get("prompt"), row.get("chosen"), row.get("rejected"))
    scores = (row.get("score_chosen"), row.get("score_rejected"))
    if not all(isinstance(text, str) and text.strip() for text in texts) or texts[1] == texts[2]:
        return False
    if not all(isinstance(score, float | int) and math.isfinite(score) for score in scores):
        return False
    return bool(scores[0] >= scores[1])  # type: ignore[operator]


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON lines file."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def loaded(path: Path) -> Any:
    """The file as a dataset."""
    import datasets

    return datasets.load_dataset("json", data_files=str(path), split="train")


def read_marginkit(path: Path) -> int:
    """Read and check every row."""
    from marginkit.data.sources import read_groups

    return len(read_groups(path)[0])


def read_map(path: Path) -> int:
    """The same checks with `datasets.filter`, and the margin with `datasets.map`."""
    rows = loaded(path).filter(checked)
    return len(rows.map(lambda row: {"margin": row["score_chosen"] - row["score_rejected"]}))


def read_loop(path: Path) -> int:
    """The same checks in a loop that keeps the rows in memory."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for row in rows_of(path):
        said = (row["prompt"], row["chosen"], row["rejected"])
        if checked(row) and said not in seen:
            seen.add(said)
            kept.append(row | {"margin": row["score_chosen"] - row["score_rejected"]})
    return len(kept)


def check_marginkit(path: Path) -> int:
    """All that `marginkit check` computes."""
    from marginkit.data.sources import read_groups
    from marginkit.data.summary import summarise

    groups, findings = read_groups(path)
    summarise(groups, findings=findings)
    return len(groups)


def pairs_of(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """All pairs of a row, the better one first; ties in the order of the responses."""
    scores = [response["score"] for response in row["responses"]]
    return [(i, j) if scores[i] >= scores[j] else (j, i) for i, j in itertools.combinations(range(len(scores)), 2)]


def pair_marginkit(path: Path) -> int:
    """Read and pair."""
    from marginkit.data.pairing import make_pairs
    from marginkit.data.sources import read_groups

    return len(make_pairs(read_groups(path)[0], "all"))


def pair_map(path: Path) -> int:
    """The same with `datasets.map`: the pairs' indices beside the responses, as we keep them."""
    return len(loaded(path).map(lambda row: {"pairs": pairs_of(row)}))


def pair_rows_map(path: Path) -> int:
    """What pair trainers need of `datasets.map`: a row a pair, texts repeated."""

    def exploded(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {"prompt": [], "chosen": [], "rejected": [], "margin": []}
        for prompt, responses in zip(batch["prompt"], batch["responses"], strict=True):
            for better, worse in pairs_of({"responses": responses}):
                made["prompt"].append(prompt)
                made["chosen"].append(responses[better]["text"])
                made["rejected"].append(responses[worse]["text"])
                made["margin"].append(responses[better]["score"] - responses[worse]["score"])
        return made

    rows = loaded(path)
    return len(rows.map(exploded, batched=True, batch_size=100, remove_columns=rows.column_names))


def pair_loop(path: Path) -> int:
    """The same in a loop that keeps the rows in memory."""
    return sum(len(row["pairs"]) for row in [row | {"pairs": pairs_of(row)} for row in rows_of(path)])


def margin_over(distance: float, gap: float) -> float:
    """DCRM of a pair whose log-probabilities differ by nothing."""
    return (1 / (1 + math.exp(-gap)) - 0.5) / (distance + 1.0)


def best_of(row: Mapping[str, Any], distance: Callable[[list[str], list[str]], int]) -> list[int]:
    """The pair of highest DCRM of a row: every pair's distance in full."""
    texts = [response["text"].split() for response in row["responses"]]
    scores = [response["score"] for response in row["responses"]]
    best, found = 0.0, [-1, -1]
    for i, j in itertools.combinations(range(len(texts)), 2):
        value = margin_over(distance(texts[i], texts[j]), abs(scores[i] - scores[j]))
        if value > best:
            best, found = value, ([i, j] if scores[i] > scores[j] else [j, i])
    return found


def dcrm_marginkit(path: Path) -> int:
    """Read, and take the best of N^2 by words and edit distance alone."""
    from marginkit.data.pairing import make_pairs
    from marginkit.data.sources import read_groups

    return sum(
        len(group.pairs)
        for group in make_pairs(read_groups(path)[0], "dcrm", options={"distance": "edit"}, workers=os.cpu_count() or 1)
    )


def dcrm_map(path: Path) -> int:
    """The same with `datasets.map` on all cores and rapidfuzz."""

    def paired(row: Mapping[str, Any]) -> dict[str, Any]:
        from rapidfuzz.distance import Levenshtein

        return {"pair": best_of(row, Levenshtein.distance)}

    return sum(pair[0] >= 0 for pair in loaded(path).map(paired, num_proc=os.cpu_count())["pair"])


def table_distance(left: list[str], right: list[str]) -> int:
    """Levenshtein's table in plain Python."""
    before = list(range(len(right) + 1))
    for i, word in enumerate(left, 1):
        row = [i]
        for j, other in enumerate(right, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other)))
        before = row
    return before[-1]


def dcrm_loop(path: Path) -> int:
    """The same in a plain loop with a table in Python; 20 rows only, the caller scales up."""
    return sum(best_of(row, table_distance)[0] >= 0 for row in itertools.islice(rows_of(path), 20))


WAYS: Mapping[str, Mapping[str, Work]] = {
    "read": {"marginkit": read_marginkit, "datasets": read_map, "loop": read_loop},
    "check": {"marginkit": check_marginkit},
    "pair": {
        "marginkit": pair_marginkit,
        "datasets": pair_map,
        "datasets, a row a pair": pair_rows_map,
        "loop": pair_loop,
    },
    "dcrm": {"marginkit": dcrm_marginkit, "datasets": dcrm_map, "loop": dcrm_loop},
}
LOOP_ROWS = 20


# -- Measuring


def work(kind: str, way: str, path: Path) -> dict[str, float]:
    """Do it, in this process: seconds, processor seconds of all processes, peak memory over what imports take."""
    import datasets  # the imports are not the work

    import marginkit.data.pairing
    import marginkit.data.sources  # noqa: F401

    datasets.disable_progress_bars()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, used = time.perf_counter(), time.process_time()
    made = WAYS[kind][way](path)
    seconds = time.perf_counter() - began
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "made": made,
        "seconds": seconds,
        "cpu": time.process_time() - used + children.ru_utime + children.ru_stime,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
    }


def measure(kind: str, way: str, path: Path) -> dict[str, float]:
    """The same in a process of its own, with a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1", "TMPDIR": cache}
        done = subprocess.run(
            [sys.executable, __file__, "--work", kind, way, str(path)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    if done.returncode != 0:
        raise SystemExit(f"{kind}, {way}: {done.stderr.strip().splitlines()[-1]}")
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def spread(values: list[float], digits: int = 3) -> str:
    """Median [smallest, largest]."""
    return f"{median(values):.{digits}g} [{min(values):.{digits}g}, {max(values):.{digits}g}]"


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, once")
    parser.add_argument("--long", action="store_true", help="60k prompts x 8 and a million rows too")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", nargs=3, metavar=("KIND", "WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        kind, way, file = options.work
        print(json.dumps(work(kind, way, Path(file))))
        return
    sizes = dict(SIZES) | ({"check 1M pairs": (1_000_000, 2, 30)} if options.long else {})
    print(f"{platform.machine()}, {os.cpu_count()} cores; median [smallest, largest] of {options.repeats}\n")
    print("| case | way | rows | rows/s | s | CPU s | MB over imports | time / ours | CPU / ours |\n|" + "---|" * 9)
    with tempfile.TemporaryDirectory() as folder:
        for name, (rows, responses, words) in sizes.items():
            if options.only not in name or (name in LONG and not options.long):
                continue
            rows //= 10 if options.quick else 1
            path = Path(folder) / "rows.jsonl"
            write_rows(path, rows, responses, words)
            kind = name.split(" ")[0]
            ways = ["marginkit"] if name in LONG else list(WAYS[kind])
            found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(1 if options.quick or options.long else options.repeats):
                for way in ways:
                    found[way].append(measure(kind, way, path))
            ours = [told["seconds"] for told in found["marginkit"]]
            for way in ways:
                scale = rows / LOOP_ROWS if (kind, way) == ("dcrm", "loop") else 1.0
                seconds = [told["seconds"] * scale for told in found[way]]
                ratio = [theirs / own for theirs, own in zip(seconds, ours, strict=True)]
                cpu = [told["cpu"] * scale for told in found[way]]
                cpu_ratio = [theirs / own["cpu"] for theirs, own in zip(cpu, found["marginkit"], strict=True)]
                words = f"{way} ({LOOP_ROWS} rows, scaled)" if scale > 1 else way
                print(
                    f"| {name} | {words} | {rows} | {rows / median(seconds):,.0f} | "
                    f"{spread(seconds)} | {median(cpu):.3g} | {median(told['megabytes'] for told in found[way]):.0f} | "
                    f"{'1 | 1' if way == 'marginkit' else f'{spread(ratio)} | {spread(cpu_ratio)}'} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
