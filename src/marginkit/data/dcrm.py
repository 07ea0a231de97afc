"""DCRM, the distance-calibrated reward margin (Huang & Goyal 2025, arXiv 2506.14157); the formula as recalled.

    DCRM(x, y+, y-) = (sigmoid(r_D) - 1/2) / (e_D + p_D + eps)

r_D: reward margin; e_D: edit distance of the two responses in tokens; p_D: distance of their log-probabilities under
the model to be trained, before training. The paper's abstract was read, its formula was not: the form above, the units
and eps are as recalled, and every one of them is an option. `RECALLED` is what the product says of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.data.options import checked
from marginkit.errors import BadInput

Array = npt.NDArray[np.float64]

RECALLED = "DCRM (arXiv 2506.14157): formula, units and eps as recalled, not read in the paper"
FITS = {"raw": ("sum",), "normalised": ("mean", "prob")}


@dataclass(frozen=True, slots=True)
class DcrmOptions:
    """The choices that the recalled formula leaves open.

    Args:
        distance: both; edit (leave p_D out); logp (leave e_D out); none (reward alone: best against worst).
        edit_unit: raw (tokens), or normalised by the longer of the two, in [0, 1].
        logp_unit: p_D of summed log-probs (nats; with raw), of their mean per token (nats), or of the probabilities
            (both with normalised). Default: sum with raw, mean with normalised.
        eps: default 1 with raw, 1e-6 with normalised.
        reward_scale: r_D is divided by it: raw (1), std (of all r_D in the data), or a number. Near 0 only the sign of
            r_D is left, and with it the distance alone.
        min_gap: pairs with r_D below it (before scaling) are left out: noise-level margins of near-equal texts.
        strong: with `weak`, the label is fixed by who wrote: chosen is by this model.
        weak: and rejected by this one.
        keep_negative: with a fixed label, keep a pair whose best DCRM is below 0.
        aggregate: a data set's score: mean_of_ratios, or ratio_of_means.
    """

    distance: str = "both"
    edit_unit: str = "raw"
    logp_unit: str | None = None
    eps: float | None = None
    reward_scale: str | float = "raw"
    min_gap: float = 0.0
    strong: str | None = None
    weak: str | None = None
    keep_negative: bool = False
    aggregate: str = "mean_of_ratios"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> DcrmOptions:
        """Checked options with their defaults filled in.

        Raises:
            BadInput: an unknown option or value, a mix of units, or one end of a fixed label.

        Example:
            >>> DcrmOptions.of({"edit_unit": "normalised"}).logp_unit
            'mean'
        """
        made = cls(**checked("dcrm", cls, options))
        _one_of("distance", made.distance, ("both", "edit", "logp", "none"))
        _one_of("edit_unit", made.edit_unit, tuple(FITS))
        _one_of("aggregate", made.aggregate, ("mean_of_ratios", "ratio_of_means"))
        unit = made.logp_unit or FITS[made.edit_unit][0]
        _one_of("logp_unit", unit, ("sum", "mean", "prob"))
        if made.distance == "both" and unit not in FITS[made.edit_unit]:
            raise BadInput(
                f"dcrm: edit_unit={made.edit_unit} with logp_unit={unit} mixes units, so that the larger silently "
                f"decides; with {made.edit_unit} use logp_unit={' | '.join(FITS[made.edit_unit])}"
            )
        eps = made.eps if made.eps is not None else 1.0 if made.edit_unit == "raw" else 1e-6
        if not eps > 0 or not math.isfinite(eps):
            raise BadInput(f"dcrm: eps={made.eps}: must be above 0")
        scale = made.reward_scale
        if isinstance(scale, str):
            _one_of("reward_scale", scale, ("raw", "std"))
        elif not scale > 0:
            raise BadInput(f"dcrm: reward_scale={scale}: raw, std, or a number above 0")
        if not made.min_gap >= 0:
            raise BadInput(f"dcrm: min_gap={made.min_gap}: must be 0 or more")
        if (made.strong is None) != (made.weak is None):
            raise BadInput("dcrm: a fixed label needs both strong=MODEL and weak=MODEL")
        if made.keep_negative and made.strong is None:
            raise BadInput("dcrm: keep_negative concerns a fixed label; name strong=MODEL and weak=MODEL")
        return cls(**{name: getattr(made, name) for name in cls.__slots__} | {"logp_unit": unit, "eps": eps})

    @property
    def edits(self) -> bool:
        """Whether e_D is in the denominator."""
        return self.distance in ("both", "edit")

    @property
    def logps(self) -> bool:
        """Whether p_D is in the denominator."""
        return self.distance in ("both", "logp")

    def to_json(self) -> dict[str, Any]:
        """All of it, for the manifest."""
        return {name: getattr(self, name) for name in self.__slots__} | {"formula": RECALLED}


def dcrm(gap: npt.ArrayLike, edit: npt.ArrayLike, logp_gap: npt.ArrayLike, eps: float = 1.0) -> Array:
    """DCRM = (sigmoid(r_D) - 1/2) / (e_D + p_D + eps); formula as recalled, see the module.

    Args:
        gap: [P] r_D = reward(chosen) - reward(rejected), logits.
        edit: [P] e_D >= 0.
        logp_gap: [P] p_D >= 0.
        eps: > 0.

    Returns:
        [P], of the sign of r_D and at most 1 / (2 (e_D + p_D + eps)) in size.

    Example:
        >>> dcrm([0.0, 1.0, -1.0], 9.0, 0.0).round(4).tolist()
        [0.0, 0.0231, -0.0231]
    """
    advantage = np.tanh(np.asarray(gap, dtype=np.float64) / 2) / 2  # sigmoid - 1/2, without cancellation
    return np.asarray(advantage / (np.asarray(edit, dtype=np.float64) + np.asarray(logp_gap, dtype=np.float64) + eps))


def logp_places(options: DcrmOptions, logp: Array | None, length: Array | None) -> Array | None:
    """Where each response lies, so that p_D is the distance of two of them; None where p_D is left out.

    Args:
        options: the choices.
        logp: [R] nats, summed.
        length: [R] tokens; for the mean.

    Raises:
        BadInput: p_D is wanted and there are no log-probs, or no lengths.
    """
    if not options.logps:
        return None
    if logp is None:
        raise BadInput(
            "dcrm: p_D needs the log-probabilities of the policy before training: name it with --policy MODEL (or its "
            "score tables), or leave p_D out with --set distance=edit"
        )
    if options.logp_unit == "sum":
        return logp
    if options.logp_unit == "prob":
        return np.asarray(np.exp(logp))
    if length is None:
        raise BadInput("dcrm: logp_unit=mean needs the lengths in tokens, which score tables have")
    return np.asarray(logp / length)


def gap_std(rewards: Array, starts: npt.NDArray[np.int64]) -> float:
    """The standard deviation of r_D over all ordered pairs within the groups (their mean is 0).

    Args:
        rewards: [R] flat.
        starts: [G + 1] where each group begins.

    Example:
        >>> float(gap_std(np.array([0.0, 3.0]), np.array([0, 2])))
        3.0
    """
    total, count = 0.0, 0
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        own = rewards[start:stop]
        own = own[np.isfinite(own)] - (own[np.isfinite(own)].mean() if np.isfinite(own).any() else 0.0)
        total += len(own) * float((own**2).sum())  # sum over i < j of (r_i - r_j)^2, as own has mean 0
        count += len(own) * (len(own) - 1) // 2
    return math.sqrt(total / count) if count else 0.0


def scale_of(options: DcrmOptions, rewards: Array, starts: npt.NDArray[np.int64]) -> float:
    """What r_D is divided by.

    Raises:
        BadInput: reward_scale=std where all rewards of a prompt are equal everywhere.
    """
    if options.reward_scale == "std":
        found = gap_std(rewards, starts)
        if not found > 0:
            raise BadInput("dcrm: reward_scale=std, but no two responses to a prompt differ in reward")
        return found
    return 1.0 if options.reward_scale == "raw" else float(options.reward_scale)


def set_score(gap: Array, edit: Array, logp_gap: Array, options: DcrmOptions) -> float:
    """The DCRM of a data set: the mean over its pairs, or the ratio of the two means.

    Args:
        gap: [P] scaled r_D.
        edit: [P] e_D.
        logp_gap: [P] p_D.
        options: says which aggregate.

    Example:
        >>> options = DcrmOptions.of({"aggregate": "ratio_of_means", "distance": "edit"})
        >>> round(set_score(np.array([1.0, 1.0]), np.array([1.0, 3.0]), np.zeros(2), options), 4)
        0.077
    """
    if not len(gap):
        return math.nan
    assert options.eps is not None
    if options.aggregate == "mean_of_ratios":
        return float(dcrm(gap, edit, logp_gap, options.eps).mean())
    return float((np.tanh(gap / 2) / 2).mean() / (edit + logp_gap + options.eps).mean())


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInput(f"dcrm: {name}={value}: must be one of {', '.join(known)}")
