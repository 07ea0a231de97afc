"""A page as a reader without a browser meets it, and a run directory for it to be made of."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from marginkit.tables import Scores
from pair_tables import pairs, responses

VOID = {"meta", "link", "input", "br", "hr"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "<svg/onload=alert(4)>",
    "[click](javascript:alert(5)) ![](http://example.com/a.png)",
    "javascript:alert(6)",
    "]]> --> */ </style></title></textarea>",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "turn \u202egnp.exe\u2066 and \u200b\ufeff",
    "bell \x07 escape \x1b[31m nul \x00 delete \x7f",
    "lone \ud800 and \udfff",
    "| a | b |\n|---|---|\n# not a heading\n- not a list",
    "${alert(7)} {{7*7}} {% raw %} <%= 7 %>",
    "a\r\nb\rc\u2028d\u2029e\x85f",
)


class Reader(HTMLParser):
    """Elements in their order with attributes, what is open around them, and the texts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a name."""
        return [attributes for name, attributes, _ in self.found if name == tag]

    @property
    def words(self) -> str:
        """All text but styles and scripts."""
        return "".join(text for tag, text in self.texts if tag not in ("style", "script"))


def write_run(folder: Path, count: int = 60, texts: list[tuple[str, str, str]] | None = None, **more: Any) -> Path:
    """A run directory of the reward model `bt`, judged on so many pairs; its mistakes with these texts.

    Args:
        folder: where.
        count: pairs.
        texts: prompt, chosen and rejected of each mistake.
        more: columns of the pairs table.
    """
    tables = folder / "tables"
    tables.mkdir(parents=True)
    draw = np.random.default_rng(0)
    gap = draw.normal(0.7, 1.5, count)
    filled = {"grade_gap": draw.integers(1, 5, count).astype(float), "length_chosen": draw.integers(5, 30, count)}
    own = pairs(gap, **(filled | more))
    Scores(responses(reward=gap), own).save(tables)
    rows = [
        {"group": f"g{at}", "source": "a source", "gap": -2.0, "prob": 0.12, "label": 1.0, "votes": None, "clipped": 7}
        | dict(zip(("prompt", "chosen", "rejected"), own_texts, strict=True))
        for at, own_texts in enumerate(texts or [("p", "c", "r")])
    ]
    lines = [{"mistakes": len(rows), "shown": len(rows), "pairs": count}, *rows]
    (tables / "mistakes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("recipe: bt\nseed: 1\n")
    (folder / "metrics.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"command": ["marginkit", "train", "bt"], "versions": {}}))
    logged = [{"step": step, "loss": 1 / step, "rewards/accuracies": 0.5 + step / 100} for step in range(1, 30)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    return folder
