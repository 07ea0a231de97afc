"""gamma, the logits that one grade is worth, from evidence in the data: raters who agree or not, votes, human labels.

P(i is better than j) = sigmoid(gamma * (grade of i - grade of j)). No model is asked here; see `gamma_trained` for data
that has ratings and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.data.grades import pair_evidence
from marginkit.errors import BadInput
from marginkit.gamma_fits import Array, fit_slope, fit_with_ties
from marginkit.records import Content, Group, Response, content_text

_Row = tuple[float, float, float, str]

FEWEST = 50
"""Pairs below which a source of evidence says nothing."""
FEW_CLUSTERS = 20
"""Fewer clusters than these, and the interval is over pairs."""
_REPEATS = 200
_C2 = (16 * math.sqrt(3) / (15 * math.pi)) ** 2  # a logistic curve averaged over normal noise of variance v in its
# argument is near a logistic curve whose slope is divided by sqrt(1 + _C2 v)


@dataclass(frozen=True, slots=True)
class Gamma:
    """A gamma and where it comes from.

    Args:
        value: logits per dataset unit.
        low: lower end of the 95% bootstrap interval over clusters.
        high: upper end.
        source: raters, votes, labels, order or training.
        pairs: that it rests on.
        clusters: that they are in; 0 if they are too few and the interval is over pairs.
        how: the source in words.
        details: what was fitted on the way.
    """

    value: float
    low: float
    high: float
    source: str
    pairs: int
    clusters: int
    how: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def noticeable(self) -> float:
        """The just noticeable difference, ln(3) / gamma: the grade gap at which the better one is picked 3 times in 4.

        Example:
            >>> round(Gamma(0.5, 0.4, 0.6, "votes", 100, 50, "votes").noticeable, 3)
            2.197
        """
        return math.log(3) / self.value

    @property
    def sentence(self) -> str:
        """All of it in words."""
        return (
            f"gamma = {self.value:.3g} [{self.low:.3g}, {self.high:.3g}] logits per grade, from {self.how} "
            f"({self.pairs} pairs): the just noticeable difference is {self.noticeable:.3g}, the grade gap at which "
            "the better answer is picked three times in four"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, the sentence included; an end of the interval that is infinite is None."""
        ends = {name: end if math.isfinite(end) else None for name, end in (("low", self.low), ("high", self.high))}
        return asdict(self) | ends | {"noticeable": self.noticeable, "sentence": self.sentence}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Gamma:
        """What `to_json` gave."""
        held = {name: content[name] for name in cls.__slots__}
        ends = {"low": -math.inf, "high": math.inf}
        return cls(**held | {name: end for name, end in ends.items() if held[name] is None})


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered at which grade gap: one row a judgement.

    Args:
        gap: [N] dataset units.
        share: [N] how often the first was preferred, in [0, 1]; a tie counts 1/2.
        weight: [N] how many answers a row stands for.
        cluster: [N] which are not independent.
    """

    gap: Array
    share: Array
    weight: Array
    cluster: npt.NDArray[np.str_]


def from_raters(groups: Iterable[Group], seed: int = 0) -> Gamma | None:
    """Agreement of raters: does each rater prefer what the others grade higher, and how surely at which gap?

    Each rater of a pair is held out once; his preference is fitted on the mean gap of the n - 1 others
    (`fit_with_ties`). The grade of the data is the mean of all n, which is more reliable: with the variances of true
    gaps T and of a rater's noise E, reliability r(m) = T / (T + E / m), the slope g(m) that goes with m raters obeys
    g(m) = r(m) s / sqrt(1 + c^2 s^2 T (1 - r(m))) for one s, c = 16 sqrt(3) / (15 pi); from g(n - 1) follows g(n).
    Where pairs have different numbers of raters, their harmonic means count, as it is the noise that averages; n is
    that of the ratings a grade is made of, those of raters who left the other response out among them.

    Args:
        groups: paired groups whose responses have ratings; raters are told apart by name, or by place where none is
            named. Ratings of an aspect count for their rater by their mean.
        seed: of the bootstrap.

    Returns:
        None where fewer than 50 pairs have two raters in common, or none of them sees a difference.
    """
    gaps: list[Array] = []
    graded: list[float] = []
    raters: list[float] = []
    cluster: list[str] = []
    for group in groups:
        rated = [_by_rater(response) for response in group.responses]
        for pair in group.pairs:
            one, other = rated[pair.chosen], rated[pair.rejected]
            shared = sorted(one.keys() & other.keys(), key=str)
            gap = pair_evidence(group, pair).grade_gap
            if len(shared) >= 2 and gap is not None:
                gaps.append(np.array([one[name] - other[name] for name in shared]))
                graded.append(gap)
                raters.append(2 / (1 / len(one) + 1 / len(other)))
                cluster.append(_cluster(group))
    if len(gaps) < FEWEST:
        return None
    count, given = np.array([len(gap) for gap in gaps], np.float64), np.array(raters)
    whole, grade = np.array([gap.mean() for gap in gaps]), np.array(graded)
    others = np.concatenate([(gap.sum() - gap) / (len(gap) - 1) for gap in gaps])
    answer = np.sign(np.concatenate(gaps))
    weight = np.concatenate([np.full(len(gap), 1 / len(gap)) for gap in gaps])
    noise = np.array([gap.var(ddof=1) for gap in gaps])
    owner = np.repeat(np.arange(len(gaps)), count.astype(int))
    alike, kind = np.unique(np.stack([others.round(9), answer]), axis=1, return_inverse=True)  # few, and quickly fitted

    def fitted(times: Array) -> tuple[float, dict[str, float]]:
        many = times * (count - 1)
        error = float((many * noise).sum() / many.sum())
        few, both, every = (float(times.sum() / (times / number).sum()) for number in (count - 1, count, given))
        true = float((times * (whole**2 - error / count)).sum() / times.sum())
        many_of_each = np.bincount(kind, weight * times[owner], alike.shape[1]).astype(np.float64)
        held, threshold = fit_with_ties(alike[0], alike[1], many_of_each)
        unit = float((times * whole * grade).sum() / max((times * whole**2).sum(), 1e-12))  # 1: grades are the means
        unit *= (true + error / both) / (true + error / every)  # of all ratings, not of those of shared raters alone
        facts = {"raters": every, "held_out": held, "tie_threshold": threshold, "noise": error, "signal": true}
        facts["grades_a_rating"] = unit
        known = true > 0 and unit > 0
        return (_with_more_raters(held, few, every, true, error) / unit if known else math.nan), facts

    value, facts = fitted(np.ones(len(gaps)))
    if not math.isfinite(value):
        return None
    place, clusters = resampled(cluster)
    low, high = _interval(lambda times: fitted(times)[0], place, seed)
    how = f"the agreement of raters ({facts['raters']:.2g} a response)"
    return Gamma(value, low, high, "raters", len(gaps), clusters, how, facts)


def _with_more_raters(held: float, fewer: float, more: float, true: float, error: float) -> float:
    """The slope on the mean of more raters from that on the mean of fewer; see `from_raters`."""
    few, all_of_them = (true / (true + error / number) for number in (fewer, more))
    rest = few**2 - held**2 * _C2 * true * (1 - few)
    if not math.isfinite(held) or rest <= 0:  # more noise than the approximation bears
        return held * all_of_them / few
    slope = held / math.sqrt(rest)
    return all_of_them * slope / math.sqrt(1 + _C2 * slope**2 * true * (1 - all_of_them))


def _by_rater(response: Response) -> dict[str | int, float]:
    """Rater -> his rating; the mean over aspects where he rated several."""
    named: dict[str | int, list[float]] = {}
    plain = [rating for rating in response.ratings if rating.rater is not None or rating.aspect is None]
    for place, rating in enumerate(plain):
        named.setdefault(place if rating.rater is None else rating.rater, []).append(rating.value)
    return {name: float(np.mean(values)) for name, values in named.items()}


def from_votes(groups: Iterable[Group], seed: int = 0) -> Gamma | None:
    """Votes on pairs that are graded as well: a weighted logistic fit of the share of votes on the grade gap.

    Args:
        groups: paired groups.
        seed: of the bootstrap.

    Returns:
        None where fewer than 50 pairs have both, or no vote goes against a grade.
    """
    rows: list[_Row] = []
    for group in groups:
        for pair in group.pairs:
            found = pair_evidence(group, pair)
            if pair.votes is not None and found.prob is not None and found.grade_gap:
                rows.append((found.grade_gap, found.prob, float(sum(pair.votes)), _cluster(group)))
    return _from_answers(rows, "votes", "votes on graded pairs", seed)


def from_order(groups: Iterable[Group], seed: int = 0) -> Gamma | None:
    """Pairs whose order was given by somebody else than the grades: a logistic fit of the order on the grade gap.

    The order must not have been read off the grades: some pairs have to go against them, so the data is read with
    `contradiction=keep`.

    Args:
        groups: groups with given pairs.
        seed: of the bootstrap.

    Returns:
        None where fewer than 50 pairs have a grade gap and an order, or no order goes against the grades.
    """
    rows: list[_Row] = []
    for group in groups:
        for pair in group.pairs:
            found = pair_evidence(group, pair)
            if found.grade_gap and not pair.tie and found.prob is None:
                rows.append((found.grade_gap, 1.0, 1.0, _cluster(group)))
    return _from_answers(rows, "order", "the given order of pairs, some of which contradicts the grades", seed)


def from_labels(groups: Iterable[Group], labels: Iterable[Group], seed: int = 0) -> Gamma | None:
    """Human labels of the same responses: a logistic fit of the label on the grade gap.

    Args:
        groups: graded groups.
        labels: groups with pairs, whose prompts and responses have the same words as in `groups`.
        seed: of the bootstrap.

    Returns:
        None where no label goes against a grade.

    Raises:
        BadInput: fewer than 50 labelled pairs are found among the graded ones.
    """
    grades: dict[tuple[str, str], float] = {}
    for group in groups:
        for response in group.responses:
            if response.grade is not None:
                grades[_words(group.prompt), response.text] = response.grade
    rows: list[_Row] = []
    read = 0
    for group in labels:
        for pair in group.pairs:
            read += 1
            both = [grades.get((_words(group.prompt), group.responses[at].text)) for at in (pair.chosen, pair.rejected)]
            if both[0] is None or both[1] is None:
                continue
            found = pair_evidence(group, pair)
            share = 0.5 if pair.tie else 1.0 if found.prob is None else found.prob
            rows.append((both[0] - both[1], share, float(sum(pair.votes)) if pair.votes else 1.0, _cluster(group)))
    if len(rows) < FEWEST:
        raise BadInput(
            f"data.labels: {len(rows)} of {read} labelled pairs are among the graded training data (prompt and "
            f"responses word for word), and {FEWEST} are needed; label more of them, or leave data.labels out"
        )
    return _from_answers(rows, "labels", f"human labels ({len(rows)} of {read} found among the graded pairs)", seed)


def _words(prompt: Content) -> str:
    return content_text(prompt).strip()


def _cluster(group: Group) -> str:
    return group.id if group.cluster is None else group.cluster


def _from_answers(rows: Sequence[_Row], source: str, how: str, seed: int) -> Gamma | None:
    answers = Answers(*(np.array(column) for column in zip(*rows, strict=True))) if rows else None
    if answers is None or int((answers.gap != 0).sum()) < FEWEST:
        return None
    value = fit_slope(answers.gap, answers.share, answers.weight)
    if not math.isfinite(value):
        return None

    def fitted(times: Array) -> float:
        return fit_slope(answers.gap, answers.share, answers.weight * times)

    place, clusters = resampled(answers.cluster.tolist())
    low, high = _interval(fitted, place, seed)
    return Gamma(value, low, high, source, len(rows), clusters, how)


def resampled(cluster: Sequence[str]) -> tuple[npt.NDArray[np.int64], int]:
    """What a bootstrap draws: the clusters, or the pairs themselves where clusters are too few to be drawn from.

    Args:
        cluster: of each pair.

    Returns:
        [N] which of the drawn units a pair belongs to, and how many clusters these are; 0 if they are pairs.

    Example:
        >>> resampled(["a", "a", "b"])
        (array([0, 1, 2]), 0)
    """
    names, place = np.unique(cluster, return_inverse=True)
    few = len(names) < FEW_CLUSTERS
    return (np.arange(len(cluster)), 0) if few else (place, len(names))


def _interval(fitted: Callable[[Array], float], place: npt.NDArray[np.int64], seed: int) -> tuple[float, float]:
    """The 95% interval over resampled clusters, see `resampled`; `fitted` takes how often each pair counts."""
    size = int(place.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = [fitted(rng.multinomial(size, np.full(size, 1 / size))[place].astype(np.float64)) for _ in range(_REPEATS)]
    low, high = np.nanquantile(drawn, [0.025, 0.975], method="nearest")
    return float(low), float(high)
