"""Pairs scored by DCRM, for selection; the formula is as recalled, see `data.dcrm`."""

from __future__ import annotations

from typing import Any

import numpy as np

from marginkit.data.candidates import Array, Candidates, Scored
from marginkit.data.dcrm import DcrmOptions, dcrm, logp_places, scale_of, set_score
from marginkit.data.distances import as_text, edit_distances
from marginkit.errors import BadInput

_PAIRS_AT_ONCE = 50_000


def by_dcrm(candidates: Candidates, **options: Any) -> Scored:
    """Select by DCRM, signed: a pair that the rewards order the other way round has a negative one.

    Args:
        candidates: the pairs.
        options: see `DcrmOptions`; `strong` and `weak` leave pairs of other models out.

    Raises:
        BadInput: bad options, or log-probabilities missing.
    """
    wanted = DcrmOptions.of(options)
    signals = candidates.signals
    places = logp_places(wanted, signals.logp, signals.length)
    gap = candidates.explicit
    own = "target gap" if signals.unit == "logits" else "grade gap"
    if candidates.explicit_by == "rewards" or (candidates.explicit_by == own and not np.isnan(signals.reward).all()):
        scale = scale_of(wanted, signals.reward, signals.starts)
    else:  # the data speaks of its pairs alone, or in another unit
        scale = _scale_of_gaps(wanted, gap)
    shift = np.zeros(len(candidates)) if places is None else np.abs(candidates.gap(places))
    edit = _edits(candidates, wanted) if wanted.edits else np.zeros(len(candidates))
    assert wanted.eps is not None
    score = dcrm(gap / scale, edit, shift, wanted.eps)
    with np.errstate(invalid="ignore"):
        small = np.abs(gap) < wanted.min_gap
    other = _other_models(candidates, wanted)
    left_out = {"pairs with a gap below min_gap": small, "pairs of other models": other & ~small}
    score = np.where(small | other, np.nan, score)
    there = np.isfinite(score)
    facts = {
        "dcrm": wanted.to_json(),
        "margin": candidates.explicit_by,
        "compared": "words" if candidates.tokenize is None else "tokens",
        "reward_scale": scale,
        "mean_e_D": float(edit[there].mean()) if there.any() and wanted.edits else None,
        "mean_p_D": float(shift[there].mean()) if there.any() and wanted.logps else None,
        "set_dcrm": set_score(gap[there] / scale, edit[there], shift[there], wanted) if there.any() else None,
    }
    return Scored(score, left_out, facts)


def _scale_of_gaps(options: DcrmOptions, gap: Array) -> float:
    if options.reward_scale != "std":
        return 1.0 if options.reward_scale == "raw" else float(options.reward_scale)
    scale = float(np.sqrt(np.nanmean(gap**2)))  # of both orders of each pair, whose mean is 0
    if not scale > 0:
        raise BadInput("dcrm: reward_scale=std, but no two responses to a prompt differ in reward")
    return scale


def _edits(candidates: Candidates, options: DcrmOptions) -> Array:
    """[P] e_D in the unit of the options; the texts of some groups at a time."""
    found = np.zeros(len(candidates))
    starts = candidates.signals.starts
    left: list[str] = []
    right: list[str] = []
    done = at = 0

    def measure() -> None:
        nonlocal done
        distance = edit_distances(left, right).astype(np.float64)
        if options.edit_unit == "normalised":
            longer = [max(len(one), len(other)) for one, other in zip(left, right, strict=True)]
            distance /= np.maximum(longer, 1)
        found[done : done + len(left)] = distance
        done += len(left)
        left.clear()
        right.clear()

    for number, group in enumerate(candidates.groups):
        if not group.pairs:
            continue
        texts = as_text([response.text for response in group.responses], candidates.tokenize)
        start = int(starts[number])
        for _ in group.pairs:
            left.append(texts[int(candidates.chosen[at]) - start])
            right.append(texts[int(candidates.rejected[at]) - start])
            at += 1
        if len(left) >= _PAIRS_AT_ONCE:
            measure()
    measure()
    return found


def _other_models(candidates: Candidates, options: DcrmOptions) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if options.strong is None:
        return np.zeros(len(candidates), dtype=np.bool_)
    wrote = [response.model for group in candidates.groups for response in group.responses]
    return np.array(
        [
            wrote[chosen] != options.strong or wrote[rejected] != options.weak
            for chosen, rejected in zip(candidates.chosen.tolist(), candidates.rejected.tolist(), strict=True)
        ],
        dtype=np.bool_,
    )
