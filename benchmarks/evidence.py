"""Is margin matching better calibrated than Bradley-Terry on real graded data? The evidence page.

Reward models that are linear heads on frozen embeddings, on eight graded files with their given splits: BT, label
smoothing, Llama-2 margins, scaled BT, APLOT and MMPO with `gamma: auto`, at the end of a long training and at the epoch
that dev likes best, before and after temperature scaling. What a file, embedder and seed gave is kept under the store,
so a run that is killed goes on, and the page is written from what is kept.

    python benchmarks/evidence.py ../shared/data --store /tmp/store --page docs/evidence.md
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import evidence_page as pages
import torch
from evidence_cells import BY_TRAINING, EARLY, END, QUICK, VOTES, Cell, Plan, cells
from evidence_figures import RESAMPLES, File
from evidence_later import LOG_ODDS, log_odds, with_larger_gammas
from evidence_pictures import draw

from marginkit.embedders import open_embedder

FILES = (
    *("feedbackqa_human_graded", "ultrafeedback_pairs", "fgrlhf_human_graded", "arenabench_graded"),
    *("ukpconvarg_pairs", "humour_pairs", "tulu2_bon_graded", "alpacaeval_graded"),
)

PAGE = """# Evidence: margins, smoothing and plain labels on real grades

Written by `benchmarks/evidence.py` ({machine}; {date}; {minutes:.0f} minutes of wall time for {cells} cells,
embeddings kept from before). Reward models are linear heads on frozen **{embedder}** embeddings, {seeds} seeds, each
file's own test split. {absent}Brackets are 95% intervals; what they cover is [below](#what-was-fixed-and-when). Files
with † are for local use alone (non-commercial, or of unclear terms): of them the page holds figures and nothing else.

## Where MMPO loses

Differences, MMPO minus the other (for accuracy below 0, for the rest above 0 is worse), whose 95% interval leaves 0
out. In brackets: NLL that is worse by value with 0 inside the interval.

{losses}

## In one table

In how many of {files} files a method is **better / level / worse** than BT trained in the same steps, by whether the
95% interval of the paired difference leaves 0 out. With eight files, six columns and two rules some interval misses
by chance. "At T": after temperature scaling, the temperature fitted on dev. ECE here is the debiased one. The
last columns are of a method by itself: in how many files its plug-in ECE is inside the noise floor of its own
confidences (in brackets: or at most 0.02 above), and in how many the interval of its NLL lies below ln 2 = 0.693, which
is what saying 1/2 of every pair costs. A model that knows nothing and says so is calibrated; low ECE alone is no
achievement.

{summary}

![NLL minus that of BT, with intervals]({pictures}/evidence_nll.svg)

![ECE beside its noise floor]({pictures}/evidence_ece.svg)

## The claims, counted

An earlier, quick study (three seeds, gamma from validation NLL, another script) had found: **(a)** at the end of a long
training MMPO's NLL is lower than BT's on all eight, its ECE near or inside the noise floor on six, at about equal
accuracy; **(b)** uniform smoothing is a strong cheap baseline; **(c)** Llama-2 margins are worse calibrated than BT on
seven; **(d)** stopped early NLL is about level, and only if gamma is chosen for that rule. What counting alone can say
of it here; "by value" without regard to the interval:

{claims}

## Reading

{reading}

## What was fixed, and when

Fixed in the script before a test figure was seen, from training and dev curves of BT on three files:

- **Data.** Pairs are ordered by the grade (pair files: by the strength), at most 6 a prompt, drawn once; ties are
  left out of dev and test, and every method but MMPO leaves them out of training (MMPO learns P = 1/2 from them).
  Labels of dev and test are the order of the grades, hard. Votes and single ratings are not used as targets (but see
  [other targets](#other-targets)).
- **Splits.** The file's own. Files without dev (ultrafeedback, humour): every seventh training prompt is dev; in
  humour, one prompt whose items come back in many pairs, a quarter of the items is, and pairs across are left out. A
  seed leaves out a fifth of the training prompts (rows where they are fewer than 20), draws dev where none is given,
  and deals the folds of `gamma: auto`. A linear head that starts at 0 and sees all prompts in a step has no other
  chance.
- **Training.** The tool's defaults for heads: AdamW at 0.02 falling linearly to 0, steps of 2,048 prompts. **Long**
  is {epochs} epochs, three times the default; BT's best epoch on dev and what is left of its training loss are
  [below](#data). *Stopped early* is the epoch of the same run with the lowest NLL of dev's order, for every method.
- **APLOT** compares the pairs of a step with one another and is trained in steps of 32 prompts, the tool's default
  for it, {small_steps} epochs; it is compared with a BT in the same steps.
- **Scales are a choice.** `bt_margin` and `bt_scaled`: the largest grade gap of the training pairs counts 3, the end
  of Llama 2's "large" margins and of the strengths in scaled BT's code; smaller gaps in proportion. `bt_smooth`: 0.1.
- **gamma: auto** is `choose_gamma` on the training prompts of the seed, told the stopping rule: raters where there
  are single ratings (feedbackqa), else by training ([gamma.md](gamma.md)).
- **Intervals** are over {resamples} resamples that draw test prompts *and* seeds, the same for both methods of a
  difference; so they cover which prompts are judged on and, as far as {seeds} seeds do, which were trained on. Seeds
  share four fifths of their training prompts, so the second part is a lower bound. ukpconvarg and humour have fewer
  than 20 test prompts: there responses are drawn, and a pair counts the product of how often its two were drawn
  (dependence through shared responses is covered, prompts are not). No correction for many comparisons.
- The noise floor takes pairs as independent; pairs of a prompt share responses, so a calibrated model may stick out
  more often than 5%.

## At the end of a long training

{end_differences}

Levels: means over seeds; "ECE (floor: mean, 95%)" is the plug-in with what a calibrated model of the same confidences
shows; T is the median of the temperatures, "at bound" where dev asked for 50, no better than chance.

{end_levels}

## Stopped early

{early_differences}

{early_levels}

## The gamma curve

![NLL along gamma]({pictures}/evidence_gamma.svg)

NLL on the test split along the grid of `gamma: auto` (0.1 to 3 over the spread of the grade gaps); bold: the lowest,
which nobody knows beforehand.

{gamma}

What was chosen, and what the gamma chosen for the *other* stopping rule does:

{chosen}

## How long is long

At the end of {lengths} epochs, each with its own schedule and its own `gamma: auto`. "out": above the noise floor.

{longer}

## Cheaper cures

What long training does to BT can be healed by stopping early or by a temperature fitted on dev (which needs dev, too).
MMPO at the end of a long training, as it is, minus each of them:

{cures}

## Other targets

`{votes}`: the share of votes is the target, as the tool does without being asked where there are votes.
`{by_training}`: where raters gave `auto` its gamma, the one that training says.

{others}

## Asked afterwards

Measured after the figures above had been seen, to find out why MMPO loses where it does.

**Grades that are probabilities.** In the files with † a grade is a judge's P(better than a reference), and most are
within 0.01 of 0 or 1: their differences are 0 where their log-odds differ by five. The same with the log-odds as the
grade, differences to BT:

{log_odds}

**Gammas beyond the grid.** NLL at 10, 30 and 100 over the spread of the grade gaps, where the grid ends at 3. "Best of
these" is chosen on the test split, so it flatters.

{beyond}

## Data

{data}
{second}"""

SECOND = """
## The same on {embedder} embeddings

{seeds} seeds, the same plan without the other lengths.{absent}

{summary}

### At the end, minus BT

{end}

### Stopped early, minus BT

{early}
"""

NO_READING = "Not written yet.\n"


def reading(page: Path) -> str:
    """What a person wrote into an earlier page, between its marks."""
    begin, end = pages.READING
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    own = text.split(begin)[1].split(end)[0].strip() if begin in text and end in text else NO_READING.strip()
    return f"{begin}\n\n{own}\n\n{end}"


def absent(found: Sequence[File], wanted: Sequence[str]) -> str:
    """Which files are not on the page."""
    names = {file.name for file in found}
    missing = [name for name in wanted if name not in names]
    return f"Not measured: {', '.join(missing)}. " if missing else ""


def page(files: Sequence[File], second: str, afterwards: Sequence[File], facts: dict[str, str | int | float]) -> str:
    """The text of the page."""
    plan = files[0].cells[0].facts["plan"]
    return PAGE.format(
        **facts,
        files=len(files),
        epochs=plan["epochs"],
        small_steps=plan["small_step_epochs"],
        lengths=", ".join(str(epochs) for epochs in sorted([*plan["lengths"], plan["epochs"]])),
        losses=pages.losses(files),
        summary=pages.summary(files),
        claims=pages.claims(files),
        end_levels=pages.levels(files, END),
        end_differences=pages.differences(files, END),
        early_levels=pages.levels(files, EARLY),
        early_differences=pages.differences(files, EARLY),
        gamma=pages.gamma_curve(files),
        chosen=pages.chosen(files),
        longer=pages.lengths(files),
        cures=pages.cures(files),
        others=pages.other_targets(files),
        log_odds="\n\n".join(f"{rule.capitalize()}:\n\n{pages.differences(afterwards, rule)}" for rule in (END, EARLY)),
        beyond=pages.beyond(files),
        data=pages.data(files),
        votes=VOTES,
        by_training=BY_TRAINING,
        second=second,
    )


def main() -> None:
    """Measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the graded files")
    parser.add_argument("--store", type=Path, required=True, help="folder for embeddings and for what was measured")
    parser.add_argument("--page", type=Path, required=True, help="the page; pictures go to pictures/ beside it")
    parser.add_argument("--embedders", nargs="+", default=["minilm", "hash"], help="the first is the page's main one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 3], help="of each embedder")
    parser.add_argument("--quick", action="store_true", help="a few epochs, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan, began = QUICK if options.quick else Plan(), time.perf_counter()

    def say(words: str) -> None:
        print(f"[{time.perf_counter() - began:.0f} s] {words}", flush=True)

    found: list[list[File]] = []
    afterwards: list[File] = []
    folder = options.store / ("evidence-quick" if options.quick else "evidence")
    there = {name: path for name in FILES if (path := options.data / f"{name}.jsonl").is_file()}
    if not there:
        raise SystemExit(f"{options.data}: none of {', '.join(FILES)}")
    for place, (name, seeds) in enumerate(zip(options.embedders, options.seeds, strict=False)):
        embedder = open_embedder(name, store=options.store)
        measured = {file: cells(file, path, embedder, seeds, plan, folder, say) for file, path in there.items()}
        if place == 0:
            for file, path in there.items():
                measured[file] = with_larger_gammas(measured[file], file, path, embedder, plan, folder, say)
            plan = replace(plan, lengths=())  # the other lengths are measured on the first embedder alone
            for file in (file for file in pages.LOCAL if file in there):
                own = cells(file + LOG_ODDS, log_odds(there[file]), embedder, seeds, plan, folder, say)
                afterwards.append(File(file + LOG_ODDS, own))
        found.append([File(file, own) for file, own in measured.items()])
    main_files = found[0]
    every = [cell for part in [*found, afterwards] for file in part for cell in file.cells]
    say("figures and pictures")
    second = "".join(
        SECOND.format(
            embedder=name,
            seeds=len(part[0].cells),
            absent=" " * bool(left := absent(part, FILES)) + left.rstrip(),
            summary=pages.summary(part),
            end=pages.differences(part, END),
            early=pages.differences(part, EARLY),
        )
        for name, part in zip(options.embedders[1:], found[1:], strict=False)
    )
    draw(main_files, options.page.parent / "pictures")
    facts: dict[str, str | int | float] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores shared with other work, one thread",
        "date": time.strftime("%Y-%m-%d"),
        "minutes": _seconds(every) / 60,
        "cells": len(every),
        "embedder": options.embedders[0],
        "seeds": len(main_files[0].cells),
        "absent": absent(main_files, FILES),
        "resamples": RESAMPLES,
        "reading": reading(options.page),
        "pictures": "pictures",
    }
    options.page.write_text(page(main_files, second, afterwards, facts), encoding="utf-8")
    say(f"written: {options.page}")


def _seconds(every: Sequence[Cell]) -> float:
    return sum(float(cell.facts["seconds"]) for cell in every)


if __name__ == "__main__":
    main()
