"""Where margins come from if nobody graded, and what a grade is worth: estimators of the gap, and target.gamma=auto.

The files are graded; their grades are hidden from the estimators and used to judge them. Texts stay where they are: the
page holds figures alone. Embeddings are kept in a store between runs.

    python benchmarks/margins.py ../shared/data --store /tmp/store --page docs/margins_measured.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import margins_gamma as gamma
import margins_study as study
import torch

from marginkit.embedders import open_embedder
from marginkit.errors import BadInput

PAGE = """# Margins measured

Written by `benchmarks/margins.py` ({machine}; {date}; {seconds:.0f} s of wall time). What it says in words is in
[the log](log.md). The defaults of the head were set before on dev and test figures of up to four of these files; gamma
and the estimators were not tuned.

## Estimators of the gap, with the grades hidden

Heads on hashed words, the same for all rows of a file, learn from targets `sigmoid(estimated gap)` of the training
pairs (at most 1,200 prompts, 6 pairs each, ties left out) and are judged on the file's own test split by the order of
the grades. `rank`: Spearman correlation of the estimate with the true grade gap, over training pairs with the better
response first, so it says how well *how much better* is known. `target NLL, ECE`: of `sigmoid(estimate)` against the
labels, for estimates that may disagree with them (NLL of knowing nothing: 0.693). `size`: the cross-fitted gap without
its sign, in the label's direction, as similarity is. The quality model saw the grades of one cluster in five (of 8
clusters at least). Ranges in `rank` and `target` are over {seeds} seeds (other folds, other samples), intervals in
accuracy and NLL are 95%, over test clusters, of the mean over seeds.

{estimators}

## target.gamma=auto by training, against the best gamma of its grid

Chosen on training data alone; `best` is the gamma of the grid with the lowest NLL on the test split, which nobody knows
beforehand. Gammas are in units of the file's grades. NLL of the order of the grades, test split.

{gammas}

NLL on the test split along the grid (0.1 to 3 over the spread of the grade gaps), last the hard label:

{curves}

## Against the known truth

By raters, in the built-in world of high quality (four raters); ratio of the chosen to the true gamma, mean and range
over seeds; `covered`: how many 95% intervals hold the truth.

{raters}

By training, ratings alone ({prompts} prompts; the single ratings behind a mean are not looked at). Mean and range over
seeds. `distance`: mean distance of the model's P from the known one, on 300 held-out prompts; `best`: the gamma of the
grid with the smallest distance.

{trained}

## What a head reads

`bt` on the order of the grades; test split, mean over seeds, 95% intervals over test clusters. `hidden 32`: one tanh
layer, at a learning rate of 0.005.

{features}
"""


def cell(value: Any, digits: int = 3) -> str:
    """A number with what is around it."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        middle, low, high = value
        return "" if middle != middle else f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return value if isinstance(value, str) else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """A Markdown table: title -> key."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row[key]) for key in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def page(found: dict[str, Any]) -> str:
    """The page from the measurements."""
    estimators = table(
        found["estimators"],
        {
            **{"file": "file", "estimator": "estimator", "test pairs": "pairs", "rank": "rank"},
            **{"target NLL": "target nll", "target ECE": "target ece"},
            **{"accuracy": "accuracy", "NLL": "nll", "NLL - hard label's": "nll - hard"},
        },
    )
    for row in found["gammas"]:
        row["told"] = ", ".join(f"{value:.3g}" for value in row["chosen"])
    gammas = table(
        found["gammas"],
        {
            **{"file": "file", "rule": "rule", "chosen (each seed)": "told", "best": "best"},
            **{"NLL of auto": "auto", "auto - best": "auto - best", "auto - hard label": "auto - hard"},
            "by raters": "raters",
        },
    )
    names = ["file", "rule", *(f"g{number}" for number in range(1, 8)), "hard"]
    curves = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in found["gammas"]:
        values = " | ".join(f"{value:.3f}" for value in row["nll by gamma"])
        curves.append(f"| {row['file']} | {row['rule']} | {values} |")
    raters = table(
        found["raters"],
        {
            **{"prompts": "prompts", "chosen / true": "ratio", "covered": "covered"},
            "slope of the rater held out / true": "held out",
            **{"the same, ties left out / modelled": "left out", "ties halved / modelled": "halved"},
        },
    )
    read = table(
        found["features"],
        {name: name for name in ("file", "embedder", "features", "pairs", "accuracy")} | {"NLL": "nll"},
    )
    trained = table(
        found["trained"],
        {
            **{"quality": "quality", "rule": "rule", "true gamma": "truth", "chosen / true": "ratio"},
            **{"best / true": "best ratio", "distance, auto": "auto", "distance, true gamma": "true"},
            **{"distance, best": "best", "distance, hard label": "hard"},
        },
    )
    return PAGE.format(
        **{name: found[name] for name in ("machine", "date", "seconds", "seeds", "prompts")},
        estimators=estimators,
        gammas=gammas,
        curves="\n".join(curves),
        raters=raters,
        features=read,
        trained=trained,
    )


def main() -> None:
    """Run the study and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the graded files")
    parser.add_argument("--store", type=Path, default=Path("store"), help="where embeddings are kept")
    parser.add_argument("--page", type=Path, help="the page to write, e.g. docs/margins_measured.md")
    parser.add_argument("--raw", type=Path, default=Path("margins.json"), help="all figures; kept after each step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=300, help="of the built-in world")
    parser.add_argument("--only", default=",".join(study.FILES), help="files, with commas between")
    parser.add_argument("--without-minilm", default="", help="files for which minilm would take too long here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    found: dict[str, Any] = json.loads(options.raw.read_text()) if options.raw.is_file() else {}
    spent = float(found.get("seconds", 0.0))
    seeds = range(options.seeds)
    hashed = open_embedder("hash")

    def keep(name: str, rows: list[dict[str, Any]]) -> None:
        found[name] = found.get(name, []) + rows
        found["seconds"] = spent + time.perf_counter() - began
        options.raw.write_text(json.dumps(found, indent=1))

    if "raters" not in found:
        keep("raters", study.timed("raters", lambda: gamma.raters_of_the_world((100, 600), range(5))))
    if "trained" not in found:
        keep("trained", study.timed("world", lambda: gamma.training_in_the_world(options.prompts, hashed, seeds)))
    for name in options.only.split(","):
        path = options.data / f"{name}.jsonl"
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        if not any(row["file"] == name for row in found.get("gammas", [])):
            keep("gammas", study.timed(f"{name}, gamma", lambda n=name, p=path: gamma.gammas(n, p, hashed, seeds)))
        readers = [hashed]
        if name not in options.without_minilm.split(","):
            readers.append(open_embedder("minilm", store=options.store))
        if not any(row["file"] == name for row in found.get("features", [])):
            measure = lambda n=name, p=path, r=readers: study.features(n, p, r, seeds)  # noqa: E731
            keep("features", study.timed(f"{name}, features", measure))
        if not any(row["file"] == name for row in found.get("estimators", [])):
            measure = lambda n=name, p=path, r=readers: study.estimators(n, p, r, seeds)  # noqa: E731
            keep("estimators", study.timed(f"{name}, estimators", measure))
    found |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread", "seeds": options.seeds}
    found |= {"date": time.strftime("%Y-%m-%d"), "prompts": options.prompts}
    text = page(found)
    print(text)
    if options.page is not None:
        options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
