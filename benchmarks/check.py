"""What `marginkit check` costs: rows a CPU second of reading and of the survey, and peak memory, at two sizes.

python benchmarks/check.py [ROWS ...]      default 100000 and 1000000; invented rows, one process a size, one thread
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = 20_000


def write_rows(path: Path, rows: int) -> None:
    """Graded pairs of about 1,300 characters: two of a hundred prompts come again, nearly or in another split."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    prompts: list[str] = []
    with path.open("w", encoding="utf-8") as sink:
        for number in range(rows):
            prompt = " ".join(draw.choices(words, k=35))
            if prompts and number % 50 == 0:
                prompt = draw.choice(prompts) + draw.choice(["", ", please"])
            if len(prompts) < 1000:
                prompts.append(prompt)
            texts = [" ".join(draw.choices(words, k=draw.randint(40, 120))) for _ in range(2)]
            good = draw.randint(2, 10)
            row = {"prompt": prompt, "chosen": texts[0], "rejected": texts[1], "score_chosen": good}
            row |= {"score_rejected": draw.randint(1, good), "split": "test" if number % 20 == 0 else "train"}
            sink.write(json.dumps(row) + "\n")


def anonymous() -> float:
    """Memory of this process that no file backs, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure(path: Path) -> dict[str, float]:
    """Read and survey one file."""
    from marginkit.data.sources import read_groups
    from marginkit.data.summary import summarise

    before, start = anonymous(), time.process_time()
    groups, findings = read_groups(path)
    read, after = time.process_time() - start, anonymous()
    start, most = time.process_time(), 0.0

    def look(_: int) -> None:
        nonlocal most
        most = max(most, anonymous())

    survey = summarise(groups, findings=findings, progress=look)
    surveyed = time.process_time() - start
    return {
        "rows": findings.read,
        "MB of file": path.stat().st_size / 1e6,
        "read, rows/CPU s": findings.read / read,
        "survey, rows/CPU s": findings.read / surveyed,
        "MB before": before,
        "MB after reading": after,
        "MB most in the survey": max(most, anonymous()),
        "MB peak, mapped file included": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "near-duplicate prompts": survey.facts["prompts_near_duplicate"],
        "prompts in several splits": survey.facts["prompts_in_several_splits"],
    }


def main(sizes: list[int]) -> None:
    """Measure every size in a process of its own."""
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, rows)
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(path)], capture_output=True, text=True, check=True
            )
        print(", ".join(f"{name} {value:,.0f}" for name, value in json.loads(done.stdout).items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main([int(size) for size in sys.argv[1:]] or [100_000, 1_000_000])
