"""The pairs worth training on: scored by a method, the best share kept, everything else counted by reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.data.candidates import Array, Candidates, Indices, Mask, Scored, candidates_of
from marginkit.data.confidence import by_confidence
from marginkit.data.dcrm import DcrmOptions
from marginkit.data.dcrm_scores import by_dcrm
from marginkit.data.distances import Tokenize
from marginkit.data.dual_margin import by_product, by_sum
from marginkit.data.ensemble import by_strength
from marginkit.data.ifd import by_ifd
from marginkit.data.margins import by_chance, by_explicit, by_implicit, by_threshold
from marginkit.data.options import checked, option_defaults
from marginkit.data.potential import by_potential
from marginkit.data.selection_facts import facts_of
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Pair

METHODS: Mapping[str, Callable[..., Scored]] = {
    "random": by_chance,
    "explicit": by_explicit,
    "implicit": by_implicit,
    "threshold": by_threshold,
    "dcrm": by_dcrm,
    "alignment": by_potential,
    "dual_add": by_sum,
    "dual_mul": by_product,
    "ifd": by_ifd,
    "ensemble": by_strength,
    "confidence": by_confidence,
}
WITHOUT_TOP = ("threshold", "ensemble", "confidence")
"""Methods that may keep all pairs they do not refuse."""
READ_POLICY = ("implicit", "dcrm", "alignment", "dual_add", "dual_mul", "ifd")
READ_REFERENCE = ("implicit", "alignment", "dual_add", "dual_mul")
NOT_SELECTED, NO_SCORE, NO_PAIR_LEFT = "pairs not selected", "pairs without a score", "prompts without a selected pair"


class Selected(Groups):
    """The groups and pairs that a selection kept, and the scores of all candidates.

    Args:
        scores: [P] of all candidates in their order; NaN where there is none.
        kept: [P] whether a candidate was kept.
        facts: settings, quantiles, lengths and what the method measured, for the manifest.
    """

    scores: Array
    kept: Mask
    facts: Mapping[str, Any]


def options_of(how: str) -> dict[str, Any]:
    """The options of a method with their defaults.

    Example:
        >>> options_of("threshold")
        {'min_gap': 0.0}
    """
    return option_defaults(_taker(how))


def check_options(how: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, if the method knows each of them; numbers may be strings, as on a command line.

    Raises:
        BadInput: an unknown method or option, or a value that cannot be.

    Example:
        >>> check_options("threshold", {"min_gap": "0.5"})
        {'min_gap': 0.5}
    """
    made = checked(how, _taker(how), options)
    if how == "dcrm":
        DcrmOptions.of(made)
    return made


def select(
    groups: Groups,
    how: str = "random",
    *,
    top: float | int | None = None,
    seed: int = 0,
    signals: Signals | None = None,
    tokenize: Tokenize | None = None,
    **options: Any,
) -> Selected:
    """Keep the pairs of highest score.

    K = floor(top * P) of the P pairs, or `top` of them; equal scores in the order of the pairs. A pair without a score
    (NaN) is never kept. Which methods there are and what they need: docs/selection.md.

    Args:
        groups: groups with pairs, see `make_pairs`.
        how: the method: random, explicit, implicit, threshold, dcrm, alignment, dual_add, dual_mul, ifd, ensemble or
            confidence.
        top: a share in (0, 1] (float), or a count (int); threshold, ensemble and confidence do without.
        seed: of everything random.
        signals: numbers of every response; default: the data's own utilities or grades.
        tokenize: texts to token ids, for dcrm; words are compared where there is none.
        options: of the method, see `options_of(how)`.

    Returns:
        Groups with their kept pairs. `dropped` counts "prompts without a selected pair" (groups), "pairs not selected",
        "pairs without a score" and what the method refuses by its own reasons; `scores`, `kept` and `facts` say more.

    Raises:
        BadInput: an unknown method or option, a `top` out of range, or signals that the method needs and does not get.

    Example:
        >>> from marginkit.records import Group, Response
        >>> graded = [(Response("x", grade=n), Response("y", grade=1)) for n in range(5)]
        >>> rows = [Group(str(n), "?", both, pairs=(Pair(0, 1),)) for n, both in enumerate(graded)]
        >>> kept = select(Groups.from_iterable(rows), how="explicit", top=0.4)
        >>> kept.column("id"), kept.dropped
        (['3', '4'], {'pairs not selected': 3, 'prompts without a selected pair': 3})
    """
    given = check_options(how, options)
    candidates = candidates_of(groups, signals or Signals.of(groups), seed=seed, tokenize=tokenize)
    wanted = _how_many(how, top, len(candidates))
    scored = METHODS[how](candidates, **given)
    kept = top_k(scored.score, wanted, scored.second)
    refused = {reason: mask for reason, mask in scored.left_out.items() if mask.any()}
    any_refused = np.zeros(len(candidates), dtype=np.bool_)
    for mask in refused.values():
        any_refused |= mask
    bare = ~np.isfinite(scored.score) & ~any_refused
    counts = Counter(groups.dropped)
    counts.update({reason: int(mask.sum()) for reason, mask in refused.items()})
    counts[NO_SCORE] += int(bare.sum())
    counts[NOT_SELECTED] += int((~kept & ~any_refused & ~bare).sum())
    rest = groups.with_pairs(_kept_pairs(groups, candidates, kept, scored, counts))
    made = Selected(rest._table, {reason: count for reason, count in counts.items() if count}, rest._keep)
    made.scores, made.kept = scored.score, kept
    settings = {"how": how, "top": top, "seed": seed, "options": options_of(how) | given}
    made.facts = facts_of(candidates, scored, kept, wanted) | settings
    return made


def top_k(score: Array, count: int, second: Array | None = None) -> Mask:
    """Which are the `count` largest scores; equal ones by `second`, then the first; NaN never.

    Args:
        score: [P].
        count: how many; fewer are kept where fewer are finite.
        second: [P] decides between equal scores.

    Returns:
        [P].

    Example:
        >>> top_k(np.array([1.0, np.nan, 3.0, 1.0]), 2).tolist()
        [True, False, True, False]
    """
    rest = np.zeros(len(score)) if second is None else np.where(np.isfinite(second), second, -np.inf)
    there = np.isfinite(score)
    order = np.lexsort((np.arange(len(score)), -rest, -np.where(there, score, -np.inf), ~there))
    kept: npt.NDArray[np.bool_] = np.zeros(len(score), dtype=np.bool_)
    kept[order[: min(count, int(there.sum()))]] = True
    return kept


def _how_many(how: str, top: float | int | None, candidates: int) -> int:
    if top is None:
        if how not in WITHOUT_TOP:
            raise BadInput(f"how={how}: say how much to keep with top, a share such as 0.4 or a count such as 2000")
        return candidates
    if isinstance(top, bool) or not ((isinstance(top, int) and top >= 1) or (isinstance(top, float) and 0 < top <= 1)):
        raise BadInput(f"top={top}: a share in (0, 1], e.g. 0.4, or a count of 1 or more")
    count = top if isinstance(top, int) else math.floor(top * candidates + 1e-9)
    if not 1 <= count <= candidates:
        raise BadInput(f"top={top} of {candidates} pairs keeps {count}; keep between 1 and all of them")
    return count


def _taker(how: str) -> Callable[..., Any]:
    if how not in METHODS:
        raise BadInput(f"how={how!r}: pairs are selected by {', '.join(METHODS)}")
    return DcrmOptions if how == "dcrm" else METHODS[how]


def _kept_pairs(
    groups: Groups, candidates: Candidates, kept: Mask, scored: Scored, counts: Counter[str]
) -> Iterator[list[Pair] | None]:
    changed = scored.changed or {}
    by_group: dict[int, list[int]] = {}
    numbers: Indices = np.flatnonzero(kept)
    for at in numbers.tolist():
        by_group.setdefault(int(candidates.group[at]), []).append(at)
    for number in range(len(groups)):
        own = by_group.get(number)
        counts[NO_PAIR_LEFT] += own is None
        yield None if own is None else [changed.get(at, candidates.pairs[at]) for at in own]
