"""What finding the best of N^2 by DCRM costs: seconds for 60,000 prompts, by N, length and number of processes.

Synthetic token ids (Zipf over 120,000, a normal number a response), rewards and log-probabilities drawn; e_D + p_D.
Beside it all edit distances by a plain loop over rapidfuzz. Large cases are measured on fewer prompts and scaled.

    python benchmarks/best_of_n2.py
"""

from __future__ import annotations

import itertools
import os
import platform
import resource
import time

import numpy as np

from marginkit.data.best_of_n2 import Job, best_pairs
from marginkit.data.dcrm import DcrmOptions
from marginkit.data.distances import edit_distance, ids_as_bytes, ids_as_text

# N, tokens a response, prompts measured, words in place of token ids
CASES = (
    (4, 300, 30_000, False),
    (8, 300, 30_000, False),
    (16, 300, 10_000, False),
    (8, 1000, 3_000, False),
    (8, 300, 5_000, True),
)
WHOLE = 60_000
_IDS = 120_001


def jobs_of(n: int, tokens: int, prompts: int, words: bool) -> list[Job]:
    """Drawn prompts with n responses each."""
    rng = np.random.default_rng(0)
    zipf = np.minimum(rng.zipf(1.2, 4_000_000), _IDS - 1)

    def response() -> str | bytes:
        length = max(10, int(rng.normal(tokens, tokens / 4)))
        start = rng.integers(0, len(zipf) - length)
        ids = zipf[start : start + length]
        return " ".join(f"w{one}" for one in ids.tolist()) if words else ids_as_bytes(ids)

    def job() -> Job:
        logp = rng.normal(-1.3 * tokens, 0.2 * tokens, size=n)
        return Job(tuple(response() for _ in range(n)), tuple(rng.normal(size=n)), tuple(logp), words=words)

    return [job() for _ in range(prompts)]


def plain_loop(jobs: list[Job]) -> float:
    """Seconds for all distances of the first 500 prompts, scaled to all."""
    some = [[ids_as_text(np.frombuffer(text, "<u4")) for text in job.texts] for job in jobs[:500]]
    began = time.perf_counter()
    for texts in some:
        for left, right in itertools.combinations(texts, 2):
            edit_distance(left, right)
    return (time.perf_counter() - began) * len(jobs) / len(some)


def main() -> None:
    """Measure every case twice and print the better time."""
    print(f"{platform.machine()}, {os.cpu_count()} cores; seconds for {WHOLE:,} prompts, the better of two\n")
    print(
        "| N x tokens | pairs a prompt | one process | two processes | all distances, a loop |\n|---|---|---|---|---|"
    )
    for n, tokens, prompts, words in CASES:
        jobs, options = jobs_of(n, tokens, prompts, words), DcrmOptions.of({})
        cells = []
        for workers in (1, 2):
            taken = []
            for _ in range(2):
                began = time.perf_counter()
                assert sum(best is not None for best in best_pairs(iter(jobs), options, workers=workers)) == prompts
                taken.append(time.perf_counter() - began)
            cells.append(f"{min(taken) * WHOLE / prompts:.3g} s")
        cells.append("" if words else f"{plain_loop(jobs) * WHOLE / prompts:.3g} s")
        what = f"{n} x {tokens}{' words' if words else ''} (from {prompts:,} prompts)"
        print(f"| {what} | {n * (n - 1) // 2} | {' | '.join(cells)} |", flush=True)
    print(f"\npeak memory with all cases held: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
