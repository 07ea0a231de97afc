"""The page of one run: what it comes to first, then everything behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from marginkit.evaluation.compare import WORDS, p_words, verdict
from marginkit.evaluation.diagnosis import Diagnosis
from marginkit.evaluation.metrics import FEW, Evaluation
from marginkit.records import Estimate
from marginkit.reporting.blocks import Block, Chart, Forest, Level, Page, Prose, Section, Verdict
from marginkit.reporting.judged import (
    against_length,
    calibration_section,
    gaps_section,
    mistakes_section,
    numbers_section,
    slices_section,
)
from marginkit.reporting.measured import benchmarks_section
from marginkit.reporting.runs import RunRecord
from marginkit.reporting.trained import (
    cost_section,
    curves_section,
    data_section,
    repeat_section,
    settings_section,
)

_SAID_ELSEWHERE = ("chance", "twin")  # by the page's verdicts on accuracy and on the twin


def run_page(record: RunRecord, diagnoses: Sequence[Diagnosis] = ()) -> Page:
    """The page of one run, or of one folder of tables.

    Args:
        record: what lies on disk.
        diagnoses: what training shows, the gravest first.

    Returns:
        A page. What is not there is named with the reason.
    """
    sections = [numbers_section(record), calibration_section(record), gaps_section(record), slices_section(record)]
    twin, twin_verdict = _twin(record)
    if twin is not None:
        sections.insert(1, twin)
    if record.benchmarks:
        sections.append(benchmarks_section([record]))
    sections.append(curves_section(record))
    signs = [Verdict(one.level, one.says, one.advice) for one in diagnoses if one.topic not in _SAID_ELSEWHERE]
    if signs:
        sections[-1] = Section(sections[-1].title, [*signs, *sections[-1].blocks], sections[-1].anchor)
    sections += [mistakes_section(record), data_section(record), settings_section(record)]
    sections += [cost_section(record), repeat_section(record)]
    verdicts = [*_judged_verdicts(record), *([twin_verdict] if twin_verdict else [])]
    grave = [one for one in signs if one.level in ("bad", "warning")]
    return Page(_title(record), _lead(record), [*verdicts, *grave[:3]], sections, footer())


def footer() -> str:
    """When a page was made, by what."""
    from marginkit import __version__

    return f"Made by marginkit {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."


def _title(record: RunRecord) -> str:
    return f"{record.name}: {record.recipe}" if record.recipe and record.recipe not in record.name else record.name


def _lead(record: RunRecord) -> str:
    parts = []
    if record.recipe:
        trained = record.splits.get("train")
        on = f" on {trained['pairs']:,} pairs of {trained['groups']:,} prompts" if trained else ""
        parts.append(f"Trained with {record.recipe}{on}.")
    if record.pairs is not None:
        found = record.evaluation
        clusters = found["accuracy"].clusters if found is not None and "accuracy" in found else 0
        parts.append(
            f"Judged on {len(record.pairs):,} held-out pairs{f' of {clusters:,} prompts' if clusters else ''}."
        )
    if record.config and not record.finished:
        parts.append("The run has not come to its end.")
    return " ".join(parts) or "Scores of responses, without pairs."


def _judged_verdicts(record: RunRecord) -> list[Verdict]:
    """Is it better than length, and is its confidence right?"""
    found = record.evaluation
    if found is None and not record.finished:
        said = "The run has not come to its end, and nothing has been judged yet."
        return [Verdict("note", said, "the same command again: it goes on where it stopped, unless it still runs")]
    if found is None:
        return [Verdict("note", "Nothing was judged, so nothing is known of how good it is.", _no_split(record))]
    if record.pairs is None:
        nats = found.get("nll_per_token")
        said = f"{nats} nats a token on held-out text." if nats is not None else "There are no pairs to judge."
        return [Verdict("note", said)]
    return [one for one in (_by_length(record, found), _by_calibration(found)) if one is not None]


def _no_split(record: RunRecord) -> str | None:
    return None if not record.config else "give data.test=FILE, or a split column; or `marginkit evaluate --model RUN`"


def _by_length(record: RunRecord, found: Evaluation) -> Verdict | None:
    accuracy = found["accuracy"]
    if not accuracy.n:
        return Verdict("note", "Every held-out pair is a tie: there is no accuracy.")
    told = f"accuracy {accuracy}"
    if accuracy.n < FEW:
        return Verdict("note", f"{told[0].upper()}{told[1:]}: {accuracy.n} pairs are too few to say how good it is.")
    difference = against_length(record.columns)
    if difference is None:
        level: Level = "good" if accuracy.low > 0.5 else "warning"
        chance = "above" if accuracy.low > 0.5 else "not distinguishable from"
        return Verdict(level, f"{told[0].upper()}{told[1:]} on {accuracy.n:,} pairs: {chance} a coin.")
    length = found["length_baseline"].value
    beside = f"the longer response is right in {length:.3f}, difference {_signed(difference)}"
    if difference.low > 0:
        return Verdict("good", f"Better than length: {told} on {accuracy.n:,} pairs; {beside}.")
    worse = "Worse than length" if difference.high < 0 else "Not distinguishable from length"
    advice = (
        "more or cleaner data, a stronger model, or more steps; `marginkit check` on the file says how far length goes"
    )
    return Verdict(
        "bad" if difference.high < 0 else "warning", f"{worse}: {told} on {accuracy.n:,} pairs; {beside}.", advice
    )


def _by_calibration(found: Evaluation) -> Verdict | None:
    told = found.verdict
    if "ece" not in found or "calibrated" not in told:
        return None
    if told["calibrated"] is None:
        return Verdict("note", f"{found['ece'].n} labelled pairs are too few to say whether its confidence is right.")
    ece, temperature = found["ece"], found["temperature"]
    beside = f"ECE {ece.value:.3f}, where a calibrated model would show up to {told['floor']:.3f}"
    if told["calibrated"]:
        return Verdict("good", f"Its confidence is right, as far as {ece.n:,} pairs can tell: {beside}.")
    clear = not math.isnan(temperature.low) and not temperature.low <= 1 <= temperature.high
    sure = "too sure" if temperature.value > 1 else "not sure enough"
    how = f"It is {sure}" if clear else "Its confidence is not right"
    after = found.get("ece_at_temperature")
    left = f" (ECE {after.value:.3f} then)" if after is not None else ""
    advice = f"divide its rewards by {temperature.value:.2f}{left}" if clear else None
    if clear and temperature.value > 1:
        advice = f"{advice}; or stop earlier, or train to soft targets (mmpo, mmpo_rm)"
    return Verdict("warning", f"{how}: {beside}; best temperature {temperature}.", advice)


def _signed(found: Estimate) -> str:
    interval = "" if math.isnan(found.low) else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{interval}"


def _twin(record: RunRecord) -> tuple[Section | None, Verdict | None]:
    """This run against its hard-label twin."""
    twin = record.control
    if twin is None:
        return None, None
    title, anchor = "Against its hard-label twin", "twin"
    found = record.against_twin
    if found is None or isinstance(found, str):
        return Section(title, [Prose(f"They are not compared: {found}.")], anchor), None
    said = verdict(found, names=(record.recipe, twin.recipe))
    rows = [(WORDS[name], one) for name, one in found.items()]
    chart = Chart(
        Forest(rows, f"{record.recipe} - {twin.recipe}"),
        f"{record.recipe} - {twin.recipe} on the same pairs. Left is better for this run, except in accuracy.",
        said,
    )
    blocks: list[Block] = [Prose(f"{twin.recipe} from the same start on the same data in the same order."), chart]
    test = found.mcnemar
    if test is not None:
        blocks.append(
            Prose(
                f"Of the pairs that only one of them orders rightly, {test.only_first:,} are this run's and "
                f"{test.only_second:,} the twin's (McNemar, mid-p {p_words(test.mid_p)})."
            )
        )
    nll = found.get("nll")
    better = nll is not None and nll.high < 0
    worse = nll is not None and nll.low > 0
    level: Level = "good" if better else "warning" if worse else "note"
    return Section(title, blocks, anchor), Verdict(level, said)
