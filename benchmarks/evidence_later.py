"""What `evidence.py` measures besides, asked after the first figures had been seen; the page keeps it apart.

Grades that are probabilities read as log-odds, and gammas beyond the grid of `gamma: auto`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence_cells import Cell, Plan, Source, split, untied
from margins_gamma import RULES
from margins_study import oriented_file, without_grades

from marginkit.assembly import recipe
from marginkit.crossfit import temperatures
from marginkit.embedders import Embedder
from marginkit.embedding_features import examples_of
from marginkit.embedding_heads import HeadSettings, best_and_last
from marginkit.gamma_trained import HIGH

BEYOND = (10.0, 30.0, 100.0)
"""In units of 1 / the spread of the grade gaps, as the grid's end of 3 is."""
LOG_ODDS = "_log_odds"


def log_odds(path: Path) -> list[dict[str, Any]]:
    """The rows of a file whose responses give their grade as log-odds too, with that as the grade."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row | {"responses": [one | {"score": one["logit"]} for one in row["responses"]]} for row in rows]


def with_larger_gammas(
    found: list[Cell],
    name: str,
    source: Source,
    embedder: Embedder,
    plan: Plan,
    folder: Path,
    say: Callable[[str], None],
) -> list[Cell]:
    """The cells of a file with MMPO at gammas beyond the grid; what is kept is not trained again."""
    made = []
    for seed, cell in enumerate(found):
        kept = folder / embedder.name / f"{name}-{seed}-beyond.npz"
        if not kept.is_file():
            _beyond(cell, source, embedder, seed, plan).save(kept)
            say(f"{embedder.name}, {name}, seed {seed}: gammas beyond the grid")
        more = Cell.load(kept)
        gaps, heat = cell.gaps | more.gaps, cell.temperature | more.temperature
        made.append(replace(cell, gaps=gaps, temperature=heat))
    return made


def _beyond(cell: Cell, source: Source, embedder: Embedder, seed: int, plan: Plan) -> Cell:
    train, dev, test = split(oriented_file(source), seed, plan.left_out)
    own, watched, held = (examples_of(part, embedder) for part in (train, untied(dev), without_grades(test)))
    unit = cell.facts["grid"][-1] / HIGH
    losses = [recipe("mmpo_rm", gamma=times * unit) for times in BEYOND]
    settings = HeadSettings(epochs=plan.epochs, metric="eval_nll", seed=seed)
    gaps, heat = {}, {}
    for rule, heads in zip(RULES, best_and_last(own, losses, settings, dev=watched), strict=True):
        rewards = heads.rewards(held.values)[:, held.columns["pairs"]].numpy()
        for times, both, fitted in zip(BEYOND, rewards, temperatures(heads, watched).tolist(), strict=True):
            key = f"{rule}/gamma at {times:g}"
            gaps[key], heat[key] = both[..., 0] - both[..., 1], fitted
    return Cell(gaps, heat, cell.cluster, cell.responses, {})
