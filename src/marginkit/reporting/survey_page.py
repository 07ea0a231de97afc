"""The page of a survey: what is in graded data and what is wrong with it, the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marginkit.records import Estimate
from marginkit.reporting.blocks import (
    Bars,
    Block,
    Cell,
    Chart,
    Code,
    Facts,
    Fold,
    Histogram,
    Level,
    Page,
    Prose,
    Section,
    Table,
    Verdict,
)
from marginkit.reporting.numbers import number
from marginkit.reporting.run_page import footer
from marginkit.reporting.survey_words import figures_of, kept_of, named_counts, sizes
from marginkit.reporting.texts import brief

MOST_ROWS = 60
"""Rows of a table whose length the data decides."""
_LEVELS: Mapping[str, Level] = {"problem": "bad", "warning": "warning", "note": "note", "ok": "good"}
_PERCENTILES = ("p5", "p25", "p50", "p75", "p95", "p99", "max")
_OWN_PLACE = ("histogram", "gap_histogram", "models", "scale_by_source", "ratings", "longer_wins_interval", "tokens")


def survey_page(found: Mapping[str, Any], command: str = "") -> Page:
    """The page of one `marginkit check`.

    Args:
        found: what `check --json` prints: the ledger of the reading and the survey as plain values.
        command: that made it.

    Returns:
        A page: verdict, ledger, remarks with their ways out, figures, rows to look at, how to repeat it.
    """
    facts = found["summary"]
    told = [_verdict(one) for one in found["remarks"] if one["level"] in ("problem", "warning")]
    first = Verdict(_LEVELS[found["verdict"]["level"]], _sentence(found["verdict"]["says"]))
    sections = [_read(found), _remarks(found["remarks"])]
    sections += [_grades(facts), _raters(facts), _lengths(facts), _models(facts), _rows(found)]
    sections += [_figures(facts), *([_repeat(command)] if command else [])]
    lead = f"{found['dialect']} rows, {kept_of(found['read'], found['kept'])}: {', '.join(sizes(facts))}."
    title = f"{brief(found['file'], 120)}: what is in it"
    return Page(title, lead, [first, *told], [one for one in sections if one.blocks], footer())


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith(('.', '!', '?')) else '.'}"


def _verdict(remark: Mapping[str, str]) -> Verdict:
    words = "; ".join(brief(part, 600) for part in (remark["says"], remark["fix"]) if part)
    return Verdict(_LEVELS[remark["level"]], _sentence(f"{remark['topic']}: {words}"))


def _read(found: Mapping[str, Any]) -> Section:
    """The ledger: read = kept + dropped, each reason with its rows."""
    facts, read = found["summary"], found["read"]
    rows: list[Sequence[Cell]] = [
        ("read", f"{read:,}", ""),
        ("kept", f"{found['kept']:,}", _share(found["kept"], read)),
    ]
    for what in ("dropped", "warned"):
        rows += [
            (f"{what}: {brief(reason)}", f"{count:,}", _share(count, read)) for reason, count in found[what].items()
        ]
    told = [("recognised", found["recognised"]), ("notes", "; ".join(found["notes"]))]
    if facts["splits"]:
        told.append(("splits", named_counts(facts["splits"], 12)))
    if facts["evidence"]:
        told.append(("evidence", named_counts(facts["evidence"], 12)))
    told += [("type", f"{facts['dataset_type']}: {facts['dataset_type_because']}")]
    caption = "Every row that was read is kept or dropped; rows that were kept with a remark are counted as warned"
    blocks: list[Block] = [
        Facts([(name, brief(value, 1200)) for name, value in told if value]),
        Table(("rows", "count", "share"), rows, caption, (1, 2)),
    ]
    findings = [
        (brief(one["place"]), brief(one["rule"], 600), brief(one["fix"], 600)) for one in found.get("findings", ())
    ]
    if findings:
        table = Table(("place", "what is wrong", "way out"), findings, "The first 20 of every reason")
        blocks.append(Fold(f"The rows behind these counts ({len(findings):,})", [table]))
    return Section("What was read", blocks, "read")


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if of else "-"


def _remarks(remarks: Sequence[Mapping[str, str]]) -> Section:
    """Notes in the open, what is in order on demand; problems and warnings stand in the verdict."""
    notes = [_verdict(one) for one in remarks if one["level"] == "note"]
    fine = [(brief(one["topic"]), brief(one["says"], 600)) for one in remarks if one["level"] == "ok"]
    blocks: list[Block] = [*notes]
    if fine:
        blocks.append(Fold(f"In order ({len(fine)})", [Facts(fine)]))
    return Section("Good to know", blocks, "remarks")


def _grades(facts: Mapping[str, Any]) -> Section:
    blocks: list[Block] = []
    for name, caption, unit in (
        ("histogram", "Grades", "grade (dataset units)"),
        ("gap_histogram", "Grade gaps of pairs that are no ties", "grade gap (dataset units)"),
    ):
        if facts.get(name):
            blocks.append(_bars(facts[name], caption, unit))
    scale, gamma = facts["grades"], facts["gamma_for_75_percent"]
    rows = []
    if scale is not None:
        rows.append(("scale", f"{number(scale['low'])} to {number(scale['high'])}"))
        rows.append(("different grades", number(scale["distinct"])))
        rows.append(("responses without a grade", f"{scale['missing']:.1%}"))
    if gamma is not None:
        rows.append(
            ("gamma to begin with", f"{number(gamma)} logits a grade put the median gap at a probability of .75")
        )
    if rows:
        blocks.append(Facts(rows))
    sources = facts.get("scale_by_source") or {}
    if sources:
        shown = sorted(sources.items(), key=lambda item: -item[1]["n"])
        table = [
            (brief(name), *(number(own[key]) for key in ("n", "median", "low", "high")))
            for name, own in shown[:MOST_ROWS]
        ]
        caption = f"Grades by source{_of_many(len(shown), 'most grades')}"
        blocks.append(Table(("source", "grades", "median", "lowest", "highest"), table, caption, (1, 2, 3, 4)))
    return Section("Grades", blocks)


def _of_many(there: int, by: str) -> str:
    return f": the {MOST_ROWS} of {there:,} with the {by}" if there > MOST_ROWS else ""


def _bars(bars: Sequence[Mapping[str, float]], caption: str, unit: str) -> Chart:
    """Shares as bars, one a value, or as a histogram where the values are many."""
    alt = "; ".join(f"{_from_to(bar)}: {bar['share']:.1%}" for bar in bars)
    shares = [bar["share"] for bar in bars]
    if all(bar["low"] == bar["high"] for bar in bars):
        return Chart(
            Bars([number(bar["low"]) for bar in bars], shares, y_label="share"), f"{caption}, one bar a value", alt
        )
    edges = [bars[0]["low"], *(bar["high"] for bar in bars)]
    return Chart(Histogram(edges, shares, unit, "share"), f"{caption}, in {len(bars)} equal steps", alt)


def _from_to(bar: Mapping[str, float]) -> str:
    same = bar["low"] == bar["high"]
    return number(bar["low"]) if same else f"{number(bar['low'])} to {number(bar['high'])}"


def _raters(facts: Mapping[str, Any]) -> Section:
    blocks: list[Block] = []
    if facts["ratings"]:
        names = ("units", "ratings", "alpha_interval", "alpha_ordinal", "noise_variance")
        rows = [(brief(aspect), *(number(own[key]) for key in names)) for aspect, own in facts["ratings"].items()]
        heads = ("aspect", "responses", "ratings", "alpha", "alpha, ordinal", "noise variance")
        caption = "Krippendorff's alpha over responses with several ratings: 1 is agreement, 0 is chance"
        blocks.append(Table(heads, rows, caption, (1, 2, 3, 4, 5)))
    votes = facts["votes"]
    if votes:
        words = {
            "pairs": "pairs with votes",
            "votes_per_pair": "votes a pair",
            "majority_share": "the majority holds",
            "unanimous": "unanimous pairs",
            "two_voters_agree": "two voters agree",
        }
        blocks.append(Facts([(words[name], number(votes[name])) for name in words]))
    return Section("Agreement of raters", blocks, "raters")


def _lengths(facts: Mapping[str, Any]) -> Section:
    tokens = facts.get("tokens") or {}
    rows = [
        (what, *(number(own[key]) for key in _PERCENTILES))
        for what, own in (
            ("prompt, characters", facts["prompt_characters"]),
            ("response, characters", facts["response_characters"]),
            ("prompt, tokens", tokens.get("prompt")),
            ("response, tokens", tokens.get("response")),
            ("prompt + longest response, tokens", tokens.get("prompt_and_longest_response")),
        )
        if own
    ]
    blocks: list[Block] = []
    if rows:
        heads = ("", "5%", "25%", "median", "75%", "95%", "99%", "longest")
        blocks.append(Table(heads, rows, "Lengths, by percentiles", tuple(range(1, len(heads)))))
    longer = [
        (f"the longer response wins, in {unit}", Estimate.from_json(own))
        for unit, own in (("characters", facts["longer_wins_interval"]), ("tokens", tokens.get("longer_wins")))
        if own
    ]
    if longer:
        caption = "How far mere length goes: the share of untied pairs whose better response is longer"
        blocks.append(Table(("", "share [95%]"), longer, caption, (1,)))
    rest = [(name.replace("_", " "), value) for name, value in figures_of(tokens, _IN_TABLES)]
    if rest:
        blocks.append(Facts([(name, brief(value, 600)) for name, value in rest]))
    return Section("Lengths", blocks)


_IN_TABLES = ("prompt", "response", "prompt_and_longest_response", "longer_wins")


def _models(facts: Mapping[str, Any]) -> Section:
    models = facts["models"]
    if not models:
        return Section("Who wrote what", [], "models")
    shown = sorted(models.items(), key=lambda item: -item[1]["pairs"])
    rows = [(brief(name), f"{own['win_rate']:.2f}", f"{own['pairs']:,}") for name, own in shown[:MOST_ROWS]]
    caption = f"Wins over pairs of different models{_of_many(len(shown), 'most pairs')}"
    return Section("Who wrote what", [Table(("model", "wins", "pairs"), rows, caption, (1, 2))], "models")


def _rows(found: Mapping[str, Any]) -> Section:
    rows = [(f"{one['row'] + 1:,}", brief(one["id"]), brief(one["reason"], 600)) for one in found["worst"]]
    if not rows:
        return Section("Rows to look at", [Prose("No row stands out.")], "rows")
    caption = "The worst of every kind; a row is counted among those that were kept"
    return Section("Rows to look at", [Table(("row", "id", "why"), rows, caption, (0,))], "rows")


def _figures(facts: Mapping[str, Any]) -> Section:
    rows = [(brief(name), brief(value, 600)) for name, value in figures_of(facts, _OWN_PLACE)]
    return Section(
        "All figures", [Fold(f"{len(rows)} figures", [Table(("", "value"), rows, "As --json gives them")])], "figures"
    )


def _repeat(command: str) -> Section:
    return Section("How to repeat it", [Code(command, "The command; paths are shortened to their names")], "repeat")
