"""Groups paired by DCRM: the best of N^2 of every prompt, with what was measured on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from marginkit.data.best_of_n2 import Best, Job, best_pairs
from marginkit.data.dcrm import DcrmOptions, logp_places, scale_of, set_score
from marginkit.data.distances import Tokenize, ids_as_bytes
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups, batched
from marginkit.records import Group, Pair

NO_PAIR = "no pair as dcrm wants it"


class Paired(Groups):
    """Groups with the pairs that dcrm made, and what it measured.

    Args:
        facts: means of the terms, the set's DCRM, the settings.
    """

    facts: Mapping[str, Any]


def dcrm_pairs(
    groups: Groups,
    signals: Signals,
    options: Mapping[str, Any],
    tokenize: Tokenize | None = None,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Paired:
    """The pair of highest DCRM of every group; the formula is as recalled, see `data.dcrm`.

    Args:
        groups: groups with responses.
        signals: their rewards, and log-probabilities unless `distance` leaves them out.
        options: see `DcrmOptions`.
        tokenize: texts to token ids; words are compared where there is none.
        workers: processes.
        progress: called with the number of groups as they are done.

    Returns:
        Groups of one pair each, and `facts`. Left out and counted: "one response only", "no evidence to pair on" (fewer
        than two responses with a reward and a log-probability), "all ties", "no pair as dcrm wants it" (every gap below
        min_gap, nobody of the strong or weak model, or a negative DCRM).

    Raises:
        BadInput: bad options, log-probabilities missing, or no reward at all.
    """
    wanted = DcrmOptions.of(options)
    places = logp_places(wanted, signals.logp, signals.length)
    reward = signals.reward
    if np.isnan(reward).all():
        raise BadInput(
            "dcrm: no response has a grade or a utility; name a reward model with --reward, or grade the data first"
        )
    scale = scale_of(wanted, reward, signals.starts)
    dropped = Counter(groups.dropped)
    kept: list[Best] = []

    def jobs() -> Iterator[Job]:
        number = 0
        for batch in batched(groups, 256):
            texts = _texts(batch, wanted, tokenize)
            for group, own in zip(batch, texts, strict=True):
                rows = signals.rows(number)
                number += 1
                strong, weak = _sides(group, wanted)
                place = None if places is None else tuple(places[rows].tolist())
                yield Job(own, tuple(reward[rows].tolist()), place, tokenize is None, strong, weak)

    def paired() -> Iterator[tuple[Pair, ...] | None]:
        found = best_pairs(jobs(), wanted, scale, workers=workers)
        for number, best in enumerate(found):
            if progress is not None:
                progress(1)
            if best is None or (best.dcrm < 0 and not wanted.keep_negative):
                rows = signals.rows(number)
                known = reward[rows] if places is None else np.where(np.isnan(places[rows]), np.nan, reward[rows])
                dropped[_why_not(known)] += 1
                yield None
                continue
            kept.append(best)
            gap = best.gap if signals.external else None
            yield (Pair(best.chosen, best.rejected, target_gap=gap),)

    whole = groups.with_pairs(paired())
    counted = {reason: count for reason, count in dropped.items() if count}
    made = Paired(whole._table, counted, whole._keep)
    made.facts = _facts(kept, wanted, scale, tokenize is None)
    return made


def _texts(batch: list[Group], options: DcrmOptions, tokenize: Tokenize | None) -> list[tuple[str | bytes, ...]]:
    """The responses of each group as the search takes them; one call of the tokenizer for all of them."""
    if not options.edits:
        return [() for _ in batch]
    if tokenize is None:
        return [tuple(response.text for response in group.responses) for group in batch]
    ids = iter(tokenize([response.text for group in batch for response in group.responses]))
    return [tuple(ids_as_bytes(next(ids)) for _ in group.responses) for group in batch]


def _sides(group: Group, options: DcrmOptions) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    if options.strong is None:
        return None, None

    def by(model: str | None) -> tuple[int, ...]:
        return tuple(at for at, response in enumerate(group.responses) if response.model == model)

    return by(options.strong), by(options.weak)


def _why_not(known: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    if len(known) < 2:
        return "one response only"
    there = known[~np.isnan(known)]
    if len(there) < 2:
        return "no evidence to pair on"
    return "all ties" if there.min() == there.max() else NO_PAIR


def _facts(kept: list[Best], options: DcrmOptions, scale: float, words: bool) -> dict[str, Any]:
    gap = np.array([best.gap for best in kept]) / scale
    edit = np.array([best.edit for best in kept])
    shift = np.array([best.logp_gap for best in kept])
    return {
        "dcrm": options.to_json(),
        "compared": "words" if words else "tokens",
        "reward_scale": scale,
        "mean_e_D": float(edit.mean()) if kept else None,
        "mean_p_D": float(shift.mean()) if kept and options.logps else None,
        "mean_r_D_scaled": float(gap.mean()) if kept else None,
        "set_dcrm": set_score(gap, edit, shift, options) if kept else None,
    }
