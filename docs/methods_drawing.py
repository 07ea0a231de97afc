"""The pictures of the methods page as SVG, drawn with matplotlib.

The sampled numbers of nine gaps stand in the file's <desc>, where a screen reader and the test find them.
"""

from __future__ import annotations

import io
import re
from html import escape, unescape
from typing import Any

from methods_pictures import Picture

COLORS = ("#0072B2", "#D55E00", "#009E73", "#555555")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (4, 1, 1, 1)))
SLOPES = {  # units that cancel
    ("logits", "logit"): "slope",
    ("nats", "nat"): "slope",
    ("squared logits", "logit"): "slope [logits]",
    ("squared nats", "nat"): "slope [nats]",
}


def figure(picture: Picture) -> Any:
    """The picture as a matplotlib figure."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "axes.edgecolor": "#777777",
        "text.color": "#222222",
        "axes.labelcolor": "#222222",
        "xtick.color": "#444444",
        "ytick.color": "#444444",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.8,
    }
    labelled = any(curve.label for curve in picture.curves)
    wide = sum(len(curve.label) + 6 for curve in picture.curves) > 66
    rows = (len(picture.curves) if wide else 1) if labelled else 0
    with rc_context(style):
        made = Figure(figsize=(6.4, 4.5 + 0.24 * rows), facecolor="white", layout="constrained")
        made.get_layout_engine().set(w_pad=0.12, h_pad=0.06)
        top, bottom = made.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for number, curve in enumerate(picture.curves):
            last = curve.label.endswith(", to compare")
            look = {
                "color": "#888888" if last else COLORS[number],
                "linestyle": (0, (2, 2)) if last else DASHES[number],
                "linewidth": 1.4 if last else 2.2,
                "zorder": 2 if last else 3,
            }
            top.plot(curve.gap, curve.loss, label=curve.label, **look)
            bottom.plot(curve.gap, curve.slope, **look)
        per = "nat" if "[nats" in picture.x_label else "logit"
        top.set_ylabel(f"loss [{picture.unit}]" if picture.unit else "loss")
        bottom.set_ylabel(SLOPES.get((picture.unit, per), f"slope [{picture.unit or 1} / {per}]"))
        bottom.set_xlabel(picture.x_label)
        for axes in (top, bottom):
            axes.margins(x=0.0, y=0.08)
            axes.axhline(0.0, color="#777777", linewidth=0.9, zorder=1.6)
            axes.axvline(0.0, color="#777777", linewidth=0.9, zorder=1.6)
        made.align_ylabels()
        if labelled:
            made.legend(
                *top.get_legend_handles_labels(),
                loc="outside upper left",
                ncols=1 if wide else len(picture.curves),
                frameon=False,
                handlelength=2.6,
            )
    return made


def svg(picture: Picture) -> str:
    """The picture as SVG: text stays text, no date, the same bytes for the same numbers and matplotlib."""
    from matplotlib import rc_context

    sink = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.name}):
        figure(picture).savefig(sink, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = re.sub(r" ?\n(?=[LCQMz]\b)", "", re.sub(r"\n +", "\n", sink.getvalue()))
    drawn = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found.group()):.1f}".removesuffix(".0"), drawn)
    drawn = re.sub(
        r'"([\d.]+)pt"', lambda found: f'"{float(found.group(1)) * 4 / 3:.0f}"', drawn
    )  # px: some readers know no pt
    head = f"<title>{escape(picture.name)}: loss and slope</title>\n<desc>{escape(picture.desc)}</desc>\n"
    return re.sub(r"(<svg [^>]*)>", lambda found: f'{found.group(1)} role="img">\n{head}', drawn, count=1)


def numbers_in(drawn: str) -> dict[str, dict[str, list[float]]]:
    """The numbers that stand in a drawn picture: curve -> gap, loss, slope.

    Raises:
        ValueError: there are none.
    """
    found = re.search(r"<desc>(.*?)</desc>", drawn, flags=re.DOTALL)
    if found is None:
        raise ValueError("the file has no numbers in <desc>")
    curves: dict[str, dict[str, list[float]]] = {}
    for line in unescape(found.group(1)).splitlines()[1:]:
        label, *columns = line.split(" | ")
        curves[label] = {words.split()[0]: [float(word) for word in words.split()[1:]] for words in columns}
    return curves
