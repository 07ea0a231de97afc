"""What the page of a run costs: seconds to build it, its size, and how long a browser takes to open it.

python benchmarks/report_page.py [PAIRS ...]      default 1000, 10000 and 100000; invented scores, one thread
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np

from browser import Tab, browser, chromium
from marginkit.reporting.html import render_html
from marginkit.reporting.markdown import render_markdown
from marginkit.reporting.reports import page_of
from marginkit.tables import Scores
from page_reading import write_run
from pair_tables import pairs, responses

WORDS = 2000  # characters of a text; 200 pairs of three are the most that a page shows
STEPS = 20_000
OPENED = 5


def write_judged(folder: Path, count: int) -> Path:
    """A run on so many pairs of a fifth as many prompts, ten sources, with 200 mistakes and a long log."""
    draw = np.random.default_rng(0)
    texts = [tuple("".join(draw.choice(list("abcdefgh  <&\n"), WORDS)) for _ in range(3)) for _ in range(200)]
    write_run(folder, texts=texts)
    target = draw.normal(0, 1.5, count).round(1)
    gap = target + draw.normal(0, 1, count)
    prompts = [f"g{at // 5}" for at in range(count)]
    own = pairs(
        gap,
        group=prompts,
        cluster=prompts,
        pair=[at % 5 for at in range(count)],
        source=[f"source {at // 5 % 10}" for at in range(count)],
        target_gap=target,
        grade_gap=np.abs(target),
        tie=target == 0,
        length_chosen=draw.integers(5, 300, count),
        length_rejected=draw.integers(5, 300, count),
    )
    Scores(responses(reward=gap), own).save(folder / "tables")
    logged = [
        {"step": step, "loss": 1 / step, "rewards/accuracies": 0.7, "rewards/margins": step / STEPS, "eval_nll": 0.6}
        for step in range(1, STEPS)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    return folder


def opening(tab: Tab, page: Path) -> tuple[float, float]:
    """Seconds until a page is loaded, and until something is to be seen, by the browser's own clock: the median."""
    loaded, painted = [], []
    for _ in range(OPENED):
        tab.open(page)
        tab.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
        loaded.append(tab.run("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        painted.append(tab.run("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    return float(np.median(loaded)) / 1e3, float(np.median(painted)) / 1e3


def main(sizes: list[int]) -> None:
    """One line a size."""
    if chromium() is None:
        raise SystemExit("no browser: install Chromium")
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; median of {OPENED} openings"
    )
    with tempfile.TemporaryDirectory() as place, browser() as tab:
        tab.screen(1280)
        for count in sizes:
            folder = write_judged(Path(place) / str(count), count)
            begin = time.perf_counter()
            page = page_of([folder])
            built = time.perf_counter() - begin
            html, markdown = render_html(page), render_markdown(page)
            drawn = time.perf_counter() - begin - built
            target = folder / "report.html"
            target.write_text(html, encoding="utf-8")
            size = len(html.encode()) / 1e6
            loaded, painted = opening(tab, target)
            print(
                f"{count:,} pairs: judged in {built:.1f} s, drawn in {drawn:.1f} s; HTML {size:.2f} MB, "
                f"Markdown {len(markdown.encode()) / 1e3:.0f} kB; seen after {painted:.2f} s, loaded after {loaded:.2f}"
            )


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [1_000, 10_000, 100_000])
