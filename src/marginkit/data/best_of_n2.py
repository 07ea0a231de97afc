"""Best-of-N^2 pairing: of all pairs of N responses to a prompt the one of highest DCRM; formula as recalled.

DCRM is antisymmetric, so only N (N - 1) / 2 pairs need a distance, and most of those need none: with a best score s so
far a pair is useful only if its denominator is below (sigmoid(r_D) - 1/2) / s, which bounds its edit distance. Pairs
are taken in the order of what they could reach at best, the difference of their lengths being the least distance there
is. The search is exact. It runs over prompts in as many processes as it is given.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from marginkit.data.dcrm import DcrmOptions
from marginkit.data.distances import edit_distance, points_of, words_as_text
from marginkit.groups import batched

_JOBS_A_TASK = 256
_Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Job:
    """The responses to one prompt.

    Args:
        texts: one code point a token, or the same as UTF-32 bytes, which reach another process sooner; plain text where
            `words` says so; none where e_D is left out.
        reward: of each, NaN where absent.
        place: see `dcrm.logp_places`; None where p_D is left out.
        words: the texts are plain, and words are compared.
        strong: indices that may be chosen, None for all.
        weak: indices that may be rejected, None for all.
    """

    texts: tuple[str | bytes, ...]
    reward: tuple[float, ...]
    place: tuple[float, ...] | None = None
    words: bool = False
    strong: tuple[int, ...] | None = None
    weak: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Best:
    """The pair of highest DCRM of one prompt.

    Args:
        chosen: its index.
        rejected: its index.
        dcrm: the score.
        gap: r_D, not scaled.
        edit: e_D in the unit of the options.
        logp_gap: p_D likewise.
    """

    chosen: int
    rejected: int
    dcrm: float
    gap: float
    edit: float
    logp_gap: float


def best_pair(job: Job, options: DcrmOptions, scale: float = 1.0) -> Best | None:
    """The pair of highest DCRM; the first in the order (0, 1), (0, 2) ... of equal ones.

    Args:
        job: the responses.
        options: the choices, see `DcrmOptions`.
        scale: what r_D is divided by.

    Returns:
        The pair; None where no two responses differ in reward, or by less than `min_gap`.

    Example:
        >>> job = Job(("abcd", "abcx", "wxyz"), (1.0, 0.5, 0.0))
        >>> found = best_pair(job, DcrmOptions.of({"distance": "edit"}))
        >>> found.chosen, found.rejected, found.edit
        (0, 1, 1.0)
    """
    reward = np.array(job.reward)
    place = np.zeros(len(reward)) if job.place is None else np.array(job.place)
    usable = np.isfinite(reward) & np.isfinite(place)
    i, j = _candidates(job)
    gaps = reward[i] - reward[j]
    if options.strong is None:  # the better one is chosen
        i, j = np.where(gaps < 0, j, i), np.where(gaps < 0, i, j)
        gaps = np.abs(gaps)
    fits = usable[i] & usable[j] & (gaps != 0) & (np.abs(gaps) >= options.min_gap)
    i, j, gaps = i[fits], j[fits], gaps[fits]
    if not len(gaps):
        return None
    advantage = np.tanh(gaps / scale / 2) / 2
    shift = np.abs(place[i] - place[j])
    at, edit = _search(i, j, advantage, shift, _as_points(job, options), options)
    assert options.eps is not None
    score = float(advantage[at] / (edit + shift[at] + options.eps))
    return Best(int(i[at]), int(j[at]), score, float(gaps[at]), edit, float(shift[at]))


def _as_points(job: Job, options: DcrmOptions) -> Sequence[str] | None:
    if not options.edits:
        return None
    if job.words:
        return words_as_text(text for text in job.texts if isinstance(text, str))
    return [points_of(text) if isinstance(text, bytes) else text for text in job.texts]


def _search(
    i: _Indices,
    j: _Indices,
    advantage: npt.NDArray[np.float64],
    shift: npt.NDArray[np.float64],
    texts: Sequence[str] | None,
    options: DcrmOptions,
) -> tuple[int, float]:
    """The place of the best pair, and its e_D."""
    assert options.eps is not None
    if texts is None:
        return int(np.argmax(advantage / (shift + options.eps))), 0.0
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    longer = np.maximum(lengths[i], lengths[j])
    unit = np.maximum(longer, 1.0) if options.edit_unit == "normalised" else np.ones(len(i))
    least = np.abs(lengths[i] - lengths[j])
    # of a negative one the larger distance is the better
    bound = advantage / (np.where(advantage >= 0, least, longer) / unit + shift + options.eps)
    best, best_at, best_edit = -np.inf, -1, 0.0
    for at in np.argsort(-bound, kind="stable").tolist():
        if bound[at] < best:
            break
        cutoff = None
        if best > 0:  # one more than needed, so that rounding cannot hide an equal one
            cutoff = int((advantage[at] / best - shift[at] - options.eps) * unit[at]) + 1
            if cutoff < least[at]:
                continue
        distance = edit_distance(texts[i[at]], texts[j[at]], cutoff)
        if cutoff is not None and distance > cutoff:
            continue
        edit = distance / unit[at]
        score = advantage[at] / (edit + shift[at] + options.eps)
        if score > best or (score == best and at < best_at):
            best, best_at, best_edit = float(score), at, float(edit)
    return best_at, best_edit


def _candidates(job: Job) -> tuple[_Indices, _Indices]:
    if job.strong is None or job.weak is None:
        return _triangle(len(job.reward))
    pairs = [(i, j) for i in job.strong for j in job.weak if i != j]
    return np.array([i for i, _ in pairs], dtype=np.intp), np.array([j for _, j in pairs], dtype=np.intp)


@cache
def _triangle(count: int) -> tuple[_Indices, _Indices]:
    return np.triu_indices(count, 1)


def best_pairs(
    jobs: Iterable[Job], options: DcrmOptions, scale: float = 1.0, *, workers: int = 1
) -> Iterator[Best | None]:
    """The best pair of every prompt, in their order; prompts are shared among processes and never all held at once.

    Args:
        jobs: one a prompt.
        options: the choices.
        scale: what r_D is divided by.
        workers: processes; 1 works in this one.
    """
    if workers <= 1:
        for job in jobs:
            yield best_pair(job, options, scale)
        return
    # forked children would inherit the threads' locks of torch and tokenizers, but not their threads
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        ahead: deque[Future[list[Best | None]]] = deque()
        for task in batched(jobs, _JOBS_A_TASK):
            ahead.append(pool.submit(_best_of_each, task, options, scale))
            if len(ahead) > 4 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _best_of_each(jobs: list[Job], options: DcrmOptions, scale: float) -> list[Best | None]:
    return [best_pair(job, options, scale) for job in jobs]
