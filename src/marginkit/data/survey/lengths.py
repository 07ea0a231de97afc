"""How long the texts are, and how far mere length goes."""

from __future__ import annotations

from marginkit.data.survey.remarks import Level, Remark, Report
from marginkit.data.survey.seen import Seen
from marginkit.data.survey.sketches import ClusterShare, Values
from marginkit.records import Estimate, content_text

_STRONG, _CLEAR = 0.2, 0.05


class Lengths:
    """Characters of prompts and responses, and the accuracy of "the longer response wins".

    Ties are left out, equal lengths count one half.
    """

    def __init__(self) -> None:
        self.prompt, self.response = Values(), Values()
        self.longer = ClusterShare()

    def see(self, seen: Seen) -> None:
        """Take one group."""
        self.prompt.add(float(len(content_text(seen.group.prompt))))
        lengths = [len(text) for text in seen.texts]
        for length in lengths:
            self.response.add(float(length))
        for pair, _ in seen.judged:
            self.longer.add(longer(lengths[pair.chosen], lengths[pair.rejected]), seen.cluster)

    def report(self) -> Report:
        """Figures and a remark."""
        found = self.longer.estimate()
        facts = {
            "prompt_characters": self.prompt.percentiles(),
            "response_characters": self.response.percentiles(),
            "longer_wins": None if found is None else found.value,
            "longer_wins_interval": None if found is None else found.to_json(),
        }
        return Report(facts, [] if found is None else [about_longer(found, "characters")])


def longer(chosen: int, rejected: int) -> float:
    """1 where the chosen response is longer, 0 where it is shorter, one half between equals.

    Example:
        >>> longer(3, 2), longer(2, 2)
        (1.0, 0.5)
    """
    return 0.5 if chosen == rejected else float(chosen > rejected)


def about_longer(found: Estimate, unit: str) -> Remark:
    """What to make of the accuracy of length.

    Example:
        >>> about_longer(Estimate(0.8, 0.77, 0.83, 500, 100), "characters").level
        'warning'
    """
    away = abs(found.value - 0.5)
    certain = not found.low <= 0.5 <= found.high
    level: Level = "warning" if away > _STRONG and certain else "note" if away > _CLEAR and certain else "ok"
    which = "longer" if found.value >= 0.5 else "shorter"
    best = max(found.value, 1 - found.value)
    fix = f"a model that only prefers the {which} one reaches {best:.2f}: hold yours against that"
    return Remark("length", level, words_on_longer(found, unit), fix if level != "ok" else "")


def words_on_longer(found: Estimate, unit: str) -> str:
    """The accuracy of length in words.

    Example:
        >>> words_on_longer(Estimate(0.8, 0.77, 0.83, 500, 100), "tokens")
        'the longer response (in tokens) wins 0.80 [0.77, 0.83] of the pairs'
    """
    return f"the longer response (in {unit}) wins {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] of the pairs"
