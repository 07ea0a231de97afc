"""Known benchmarks by the hashes of their prompts; no text of theirs is kept here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from marginkit.data.survey.nearness import digest64, normalised
from marginkit.records import Content, content_text

FILE = "known_prompts.json"
_FEWEST_WORDS = 4


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    Args:
        name: as its users call it.
        source: where its prompts were taken from.
        held: how many of its distinct prompts are known here.
        of: how many rows it has; None where that is not known.
    """

    name: str
    source: str
    held: int
    of: int | None

    def coverage(self) -> str:
        """How much of it is known.

        Example:
            >>> Benchmark("AlpacaEval", "", 452, 805).coverage()
            '452 distinct prompts of its 805 rows are known'
        """
        whole = "rows" if self.of is None else f"{self.of:,} rows"
        return f"{self.held:,} distinct prompts of its {whole} are known"


@cache
def known_prompts() -> tuple[tuple[Benchmark, ...], dict[int, tuple[int, ...]]]:
    """The benchmarks, and which of them (by index) hold a prompt, by its hash.

    Example:
        >>> benchmarks, holders = known_prompts()
        >>> len(benchmarks) > 5, len(holders) > 3000
        (True, True)
    """
    content: dict[str, Any] = json.loads(files("marginkit.data.survey").joinpath(FILE).read_text(encoding="utf-8"))
    benchmarks = []
    holders: dict[int, tuple[int, ...]] = {}
    for index, entry in enumerate(content["benchmarks"]):
        benchmarks.append(Benchmark(entry["name"], entry["source"], len(entry["digests"]), entry["of"]))
        for digest in entry["digests"]:
            holders[int(digest, 16)] = (*holders.get(int(digest, 16), ()), index)
    return tuple(benchmarks), holders


def prompt_digests(prompt: Content) -> set[int]:
    """The hashes by which a prompt is looked up: of all its words, and of its last user turn where that has four words.

    Example:
        >>> len(prompt_digests("Name a fruit."))
        1
    """
    found = {digest64(normalised(content_text(prompt)))}
    if not isinstance(prompt, str):
        last = next((turn.content for turn in reversed(prompt) if turn.role == "user"), "")
        words = normalised(last)
        if words.count(" ") + 1 >= _FEWEST_WORDS:
            found.add(digest64(words))
    return found
