"""Who wrote the responses: win rates by model, and which of the three known types of preference data this is."""

from __future__ import annotations

from collections import Counter
from typing import Any

from marginkit.data.survey.remarks import Remark, Report
from marginkit.data.survey.seen import Seen
from marginkit.data.survey.sketches import Values

_MOST_MODELS = 1_000
_ALWAYS, _ENOUGH = 0.95, 50
_NEARLY_ALL, _FIXED, _FEWEST = 0.9, 0.98, 20


class Writers:
    """Wins by model, and the type of the data after Huang and Goyal (2025): where responses come from x who labels.

    source: same (SS) where both responses of at least 90% of the pairs are by one model, different (DS) where at most
    10% are, mixed between; unknown where models are named for under 90% of the pairs.
    label: fixed (Fix) where the sources differ and, of every two models, the same one wins at least 98% of their pairs
    (20 or more of them);
    human where there are votes or several ratings a response; RM where grades take more than 20 values and at least
    half of them are no multiples of one half (a reward model, or a judge's probabilities); unknown otherwise.
    "SS RM", "DS RM", "DS Fix" are the paper's three; "DS human" and others follow the same rule.

    Source: the names as recalled from Huang and Goyal, DCRM (Findings of EMNLP 2025); the rule is ours.
    """

    def __init__(self) -> None:
        self.pairs = self.named = self.same = self.human = 0
        self.wins: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()
        self.against: Counter[tuple[str, str]] = Counter()  # (winner, loser)
        self.grades = Values(5_000)

    def see(self, seen: Seen) -> None:
        """Take one group."""
        for response in seen.group.responses:
            self.human += len(response.ratings) > len({rating.aspect for rating in response.ratings})
            if response.grade is not None:
                self.grades.add(response.grade)
        models = [response.model for response in seen.group.responses]
        for pair in seen.pairs:
            self.pairs += 1
            self.human += pair.votes is not None
            winner, loser = models[pair.chosen], models[pair.rejected]
            if winner is None or loser is None:
                continue
            self.named += 1
            if winner == loser:
                self.same += 1
            elif not pair.tie and self._room(winner) and self._room(loser):
                self.wins[winner] += 1
                self.losses[loser] += 1
                self.against[winner, loser] += 1

    def _room(self, model: str) -> bool:
        return model in self.wins or model in self.losses or len(self.wins) + len(self.losses) < 2 * _MOST_MODELS

    def report(self) -> Report:
        """Figures and remarks; nothing to say of models that are not named."""
        kind, why = self.type()
        rates = {
            model: {"win_rate": self.wins[model] / n, "pairs": n}
            for model in sorted({*self.wins, *self.losses}, key=lambda model: -self.wins[model] - self.losses[model])
            if (n := self.wins[model] + self.losses[model])
        }
        facts: dict[str, Any] = {"dataset_type": kind, "dataset_type_because": why, "models": rates or None}
        remarks = [Remark("type", "ok", f"{kind}: {why}")] if self.pairs else []
        always = [m for m, rate in rates.items() if rate["win_rate"] >= _ALWAYS and rate["pairs"] >= _ENOUGH]
        if always:
            model = always[0]
            says = f"{model} wins {rates[model]['win_rate']:.0%} of {rates[model]['pairs']:,} pairs with other models"
            fix = "a model learns whose answer it is, not what is good in it; pair within one source, or leave it out"
            remarks.append(Remark("sources", "warning", says, fix))
        elif rates:
            remarks.append(Remark("sources", "ok", f"none of {len(rates):,} models always wins"))
        return Report(facts, remarks)

    def type(self) -> tuple[str, str]:
        """The type, and why."""
        if not self.pairs:
            return "no pairs", "there is nothing to compare"
        if self.named < _NEARLY_ALL * self.pairs:
            source, because = "unknown source", "the data does not say which model wrote what"
        else:
            part = self.same / self.named
            source = "SS" if part >= _NEARLY_ALL else "DS" if part <= 1 - _NEARLY_ALL else "mixed"
            because = f"{part:.0%} of the pairs are of one source"
        label, labelled = self._label(source)
        return f"{source} {label}", f"{because}; {labelled}"

    def _label(self, source: str) -> tuple[str, str]:
        if source == "DS" and self.against.total() >= _FEWEST:
            steady = sum(
                max(n, self.against[b, a]) for (a, b), n in self.against.items() if a < b or not self.against[b, a]
            )
            if steady >= _FIXED * sum(self.against.values()):
                return "Fix", "of two models the same one always wins"
        if self.human:
            return "human", "votes or several raters"
        at, shares = self.grades.table()
        if len(at) > 20 and float(shares[at % 0.5 != 0].sum()) >= 0.5:
            return "RM", "grades of a reward model or judge, by their decimals"
        return "unknown label", "who labelled it is not said"
