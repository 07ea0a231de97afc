"""The pictures of `evidence.py` as SVG: the gamma curve, differences with intervals, and ECE beside its floor."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from evidence_cells import EARLY, END
from evidence_figures import File
from evidence_page import short
from matplotlib import rc_context
from matplotlib.figure import Figure

COLORS = {END: "#D55E00", EARLY: "#0072B2"}
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "svg.fonttype": "none",
    "svg.hashsalt": "evidence",
}
METHODS = {"bt_smooth": ("#009E73", "s"), "mmpo_rm": ("#0072B2", "o"), "bt_margin": ("#D55E00", "^")}
LABELS = {"bt": "BT", "bt_smooth": "label smoothing", "mmpo_rm": "MMPO, gamma auto", "bt_margin": "Llama-2 margin"}


def draw(files: Sequence[File], folder: Path) -> list[Path]:
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "evidence_gamma": (
            gamma_curves,
            "NLL on the test split along gamma under both stopping rules, a panel a file",
        ),
        "evidence_nll": (forest, "NLL minus that of BT with 95% intervals, at the end and stopped early"),
        "evidence_ece": (floors, "ECE of BT, smoothing and MMPO beside the noise floor"),
    }
    written = []
    for name, (make, title) in pictures.items():
        sink = io.StringIO()
        with rc_context(STYLE):
            make(files).savefig(sink, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        drawn = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found.group()):.2f}", sink.getvalue())
        head = f'\\1 role="img">\n<title>{escape(title)}</title>\n'
        written.append(folder / f"{name}.svg")
        written[-1].write_text(re.sub(r"(<svg [^>]*)>", head, drawn, count=1), encoding="utf-8")
    return written


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def gamma_curves(files: Sequence[File]) -> Figure:
    """NLL along the grid, BT's as a dashed line, the chosen gammas as rings."""
    columns = min(4, len(files))
    rows = -(-len(files) // columns)
    made = _figure(2.6 * columns, 2.3 * rows + 0.5)
    panels = made.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(files) :]:
        panel.set_visible(False)
    for panel, file in zip(panels.flat, files, strict=False):
        grid = np.mean([cell.facts["grid"] for cell in file.cells], 0)
        for rule in (END, EARLY):
            curve = [file.drawn(rule, f"gamma {place}")["nll"][0] for place in range(len(grid))]
            panel.plot(grid, curve, color=COLORS[rule], marker=".", label=f"MMPO, {rule}")
            level = file.drawn(rule, "bt")["nll"][0]
            panel.axhline(level, color=COLORS[rule], linestyle=(0, (4, 2)), linewidth=1, label=f"BT, {rule}")
            values = [cell.facts["gamma"][rule]["value"] for cell in file.cells]
            heights = np.interp(np.log(values), np.log(grid), curve)
            panel.plot(values, heights, "o", mfc="none", color=COLORS[rule], markersize=8, label=f"chosen, {rule}")
        panel.set_xscale("log")
        panel.set_xticks(grid[::2], [f"{gamma:.2g}" for gamma in grid[::2]])
        panel.set_xticks([], minor=True)
        panel.set_title(short(file.name), fontsize=9)
    made.supxlabel("gamma, logits a grade", fontsize=9)
    made.supylabel("NLL on the test split, nats", fontsize=9)
    made.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return made


def forest(files: Sequence[File]) -> Figure:
    """NLL minus BT's; left is better."""
    made = _figure(8.4, 0.55 * len(files) + 1.3)
    panels = made.subplots(1, 2, sharey=True)
    for panel, rule in zip(panels, (END, EARLY), strict=True):
        for row, file in enumerate(files):
            for step, (method, (color, marker)) in enumerate(METHODS.items()):
                found, height = file.difference(rule, method, "nll"), row + 0.24 * (step - 1)
                panel.plot([found.low, found.high], [height, height], color=color, linewidth=1.6)
                panel.plot(found.value, height, marker, color=color, label=LABELS[method] if not row else None)
        panel.axvline(0, color="#444444", linewidth=1)
        panel.set_title(rule, fontsize=9)
        panel.set_xlabel("NLL - that of BT, nats (left is better)")
    panels[0].set_yticks(range(len(files)), [short(file.name) for file in files])
    panels[0].invert_yaxis()
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return made


def floors(files: Sequence[File]) -> Figure:
    """Plug-in ECE as points; the bar is what a calibrated model with the same confidences would show."""
    made = _figure(8.4, 0.55 * len(files) + 1.3)
    panels = made.subplots(1, 2, sharey=True)
    looks = {"bt": ("#555555", "D"), "bt_smooth": METHODS["bt_smooth"], "mmpo_rm": METHODS["mmpo_rm"]}
    for panel, rule in zip(panels, (END, EARLY), strict=True):
        for row, file in enumerate(files):
            for step, (method, (color, marker)) in enumerate(looks.items()):
                found, height = file.floor(rule, method), row + 0.24 * (step - 1)
                panel.plot([0, found.high], [height, height], color="#cccccc", linewidth=5, solid_capstyle="butt")
                panel.plot(found.ece, height, marker, color=color, label=LABELS[method] if not row else None)
        panel.set_title(rule, fontsize=9)
        panel.set_xlabel("ECE (grey: up to the floor's 95% quantile)")
    panels[0].set_yticks(range(len(files)), [short(file.name) for file in files])
    panels[0].invert_yaxis()
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return made
