"""Signals: the numbers known of every response, flat in the order of the groups; pairing and selection read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.groups import Groups

Array = npt.NDArray[np.float64]
Nested = Sequence[Sequence[float | None]]
Unit = Literal["logits", "grades"]


@dataclass(frozen=True, slots=True)
class Signals:
    """Numbers about every response of some groups; NaN where one is absent, None where nobody was asked.

    Args:
        starts: [G + 1] where the responses of each group begin in the columns below.
        rewards: [M, R] by M judges of the responses; one judge unless they are an ensemble.
        unit: of the rewards: logits, or grades (dataset units).
        external: the rewards come from a model, not from the data's own grades; pairs made by them carry the gap.
        logp: [R] nats, summed over the response's tokens, under the policy.
        ref_logp: [R] nats, the same under another policy: the reference, or the policy before tuning.
        bare_logp: [R] nats, under the policy without the prompt.
        length: [R] response tokens of the policy.
        facts: where the numbers come from, for the manifest.
    """

    starts: npt.NDArray[np.int64]
    rewards: Array
    unit: Unit = "logits"
    external: bool = True
    logp: Array | None = None
    ref_logp: Array | None = None
    bare_logp: Array | None = None
    length: Array | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        groups: Groups,
        *,
        rewards: Sequence[Nested] = (),
        unit: Unit = "logits",
        logp: Nested | None = None,
        ref_logp: Nested | None = None,
        bare_logp: Nested | None = None,
        length: Nested | None = None,
        grades: Literal["auto", "grade", "utility"] = "auto",
        facts: Mapping[str, Any] | None = None,
    ) -> Signals:
        """From nested lists, [group][response]; without rewards, the data's own.

        The data's own are the utilities where every response has one, else the grades.

        Args:
            groups: the groups.
            rewards: one nested list a judge.
            unit: of those rewards.
            logp: see the class, as the next three.
            ref_logp: see above.
            bare_logp: see above.
            length: see above.
            grades: which of the data's own to read where no rewards are given.
            facts: where the numbers come from.

        Raises:
            BadInput: a list does not have the shape of the groups.

        Example:
            >>> from marginkit.records import Group, Response
            >>> groups = Groups.from_iterable([Group("a", "?", (Response("x", grade=2.0), Response("y")))])
            >>> Signals.of(groups).reward.tolist(), Signals.of(groups, rewards=[[[0.5, 1.0]]]).reward.tolist()
            ([2.0, nan], [0.5, 1.0])
        """
        sizes = [len(group.responses) for group in groups]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        told = dict(facts or {})
        if rewards:
            stacked = np.array([_flat(f"rewards[{m}]", one, sizes) for m, one in enumerate(rewards)])
        else:
            found, name = _own(groups, grades)
            stacked, unit = found[None], "logits" if name == "utility" else "grades"
            told.setdefault("reward", f"{name} in the data")
        columns = {"logp": logp, "ref_logp": ref_logp, "bare_logp": bare_logp, "length": length}
        flat = {name: None if one is None else _flat(name, one, sizes) for name, one in columns.items()}
        return cls(starts, stacked, unit, bool(rewards), facts=told, **flat)

    @property
    def reward(self) -> Array:
        """[R] the reward of the one judge.

        Raises:
            BadInput: there are several.
        """
        if len(self.rewards) > 1:
            raise BadInput(
                f"{len(self.rewards)} rewards are given: several are an ensemble, read by how=ensemble alone; name one"
            )
        only: Array = self.rewards[0]
        return only

    def rows(self, group: int) -> slice:
        """Where the responses of a group are in the columns."""
        return slice(int(self.starts[group]), int(self.starts[group + 1]))

    def take(self, responses: Sequence[int], sizes: Sequence[int]) -> Signals:
        """The signals of some responses.

        Args:
            responses: their places in the columns, in order.
            sizes: how many of them each group has.
        """
        at = np.array(responses, dtype=np.int64)
        names = ("logp", "ref_logp", "bare_logp", "length")
        columns: dict[str, Any] = {n: None if (own := getattr(self, n)) is None else own[at] for n in names}
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return replace(self, starts=starts, rewards=self.rewards[:, at], **columns)

    def check(self, groups: Groups) -> None:
        """Refuse signals of other groups.

        Raises:
            BadInput: the counts differ.
        """
        if len(groups) != len(self.starts) - 1:
            raise BadInput(f"signals of {len(self.starts) - 1} groups, but {len(groups)} groups are given")


def _flat(name: str, nested: Nested, sizes: Sequence[int]) -> Array:
    """One nested column, flat; None becomes NaN."""
    got = [len(row) for row in nested]
    if got != list(sizes):
        wrong = next(
            (at for at, (a, b) in enumerate(zip(got, sizes, strict=False)) if a != b), min(len(got), len(sizes))
        )
        raise BadInput(f"{name}: {len(got)} groups for {len(sizes)}, the first that does not fit is number {wrong}")
    return np.array([np.nan if value is None else value for row in nested for value in row], dtype=np.float64)


def _own(groups: Iterable[Any], which: str) -> tuple[Array, str]:
    utility, grade = [], []
    for group in groups:
        for response in group.responses:
            utility.append(np.nan if response.utility is None else response.utility)
            grade.append(np.nan if response.grade is None else response.grade)
    by_name = {"utility": np.array(utility, dtype=np.float64), "grade": np.array(grade, dtype=np.float64)}
    if which != "auto":
        if np.isnan(by_name[which]).all():
            raise BadInput(f"reward={which}: no response has a {which}; name another reward, or grade the data first")
        return by_name[which], which
    name = "utility" if len(utility) and not np.isnan(by_name["utility"]).any() else "grade"
    return by_name[name], name
