"""The survey of a file, topic by topic, on rows whose answers are worked out by hand; and real files where they are."""

import json
import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marginkit.data.checks import Finding, Findings
from marginkit.data.grades import suggest_gamma
from marginkit.data.pairing import make_pairs
from marginkit.data.sources import read_groups
from marginkit.data.splits import leakage
from marginkit.data.summary import Survey, summarise
from marginkit.data.survey.cleaning import check_removals, clean
from marginkit.data.survey.known import known_prompts, prompt_digests
from marginkit.data.survey.reading import about_reading
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Comparison, Group, Pair, Response, Turn

VERBS = ("open", "close", "paint", "lift", "find", "wash", "sell", "draw", "turn", "move")
THINGS = ("gate", "river", "basket", "ladder", "window", "garden", "engine", "letter", "candle", "market")


def sentence(draw: random.Random, words: int = 12) -> str:
    return " ".join(draw.choice(VERBS if n % 2 else THINGS) + str(draw.randint(10, 99)) for n in range(words))


def good_rows(count: int = 200) -> list[dict[str, Any]]:
    """Graded pairs with nothing wrong: lengths say nothing, prompts differ, splits are clean."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        good = draw.randint(3, 10)
        rows.append(
            {
                "prompt": f"{number}: {sentence(draw)}?",
                "chosen": sentence(draw, draw.randint(8, 30)),
                "rejected": sentence(draw, draw.randint(8, 30)),
                "score_chosen": good,
                "score_rejected": draw.randint(1, good - 1),
                "split": "test" if number % 5 == 0 else "train",
            }
        )
    return rows


def surveyed(groups: Iterable[Group], **options: Any) -> Survey:
    return summarise(Groups.from_iterable(groups), **options)


def said(survey: Survey, topic: str) -> list[tuple[str, str]]:
    return [(remark.level, remark.says) for remark in survey.remarks if remark.topic == topic]


def pair(name: str, prompt: str, chosen: str = "Yes, of course.", rejected: str = "No.", **rest: Any) -> Group:
    grades = rest.pop("grades", (None, None))
    models = rest.pop("models", (None, None))
    responses = (
        Response(chosen, grade=grades[0], model=models[0]),
        Response(rejected, grade=grades[1], model=models[1]),
    )
    return Group(name, prompt, responses, pairs=(rest.pop("pair", Pair(0, 1)),), **rest)


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def test_a_good_file_has_no_warning_and_its_figures_are_those_of_the_other_functions() -> None:
    """No note either; gamma, splits and clusters are the numbers that training uses."""
    groups, findings = read_groups(good_rows())
    survey = summarise(groups, findings=findings)
    assert [remark for remark in survey.remarks if remark.level != "ok"] == []
    assert survey.verdict() == "nothing wrong"
    assert survey.facts["gamma_for_75_percent"] == pytest.approx(suggest_gamma(make_pairs(groups)))
    assert survey.facts["prompts_in_several_splits"] == leakage(groups) == 0
    assert survey.facts["splits"] == {"test": 40, "train": 160}
    assert survey.facts["clusters"] == len(set(groups.column("cluster")))
    assert not any(marks.any() for marks in survey.marks.values())
    json.dumps(survey.to_json(), allow_nan=False)


def test_no_rows_and_no_pairs_are_surveyed_too() -> None:
    """Nothing divides by nothing."""
    assert surveyed([]).facts["groups"] == 0
    survey = surveyed([Group("a", "Name a fruit.", (Response("Apple."),))])
    assert survey.facts["pairs"] == 0
    assert said(survey, "evidence") == [("note", "no pair of responses, so nothing to prefer")]


def test_the_gravest_remark_decides_the_verdict() -> None:
    """All grades equal is a problem; a problem outweighs every warning."""
    survey = surveyed(pair(str(n), f"{n}?", grades=(3.0, 3.0)) for n in range(30))
    assert survey.level == "problem"
    assert survey.verdict().endswith("do not train on it as it is")
    assert survey.remarks[0].level == "problem"


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False)),
        max_size=25,
    )
)
def test_any_finite_grades_give_plain_json(grades: list[tuple[float, float]]) -> None:
    """1e308 and 5e-324 are grades too: no traceback, and nothing that JSON has no form for."""
    survey = surveyed(pair(str(n), f"{n}?", grades=both) for n, both in enumerate(grades))
    json.dumps(survey.to_json(), allow_nan=False)


# ---------------------------------------------------------------------------------------------------------------------
# Evidence


def test_disagreement_counts_every_kind_of_evidence_against_the_label() -> None:
    """Of four judged pairs, grades and votes contradict one each; the largest contradiction is listed first."""
    survey = surveyed(
        [
            pair("fine", "a?", grades=(5.0, 2.0)),
            pair("grades", "b?", grades=(1.0, 4.0)),
            pair("votes", "c?", grades=(5.0, 2.0), pair=Pair(0, 1, votes=(1.0, 3.0, 0.0))),
            pair("prob", "d?", pair=Pair(0, 1, prob=0.9)),
            pair("none", "e?"),
        ]
    )
    assert survey.facts["label_disagreement"] == 2 / 4
    assert [row.id for row in survey.worst if "against its label" in row.reason] == ["grades", "votes"]
    assert said(survey, "labels")[0][0] == "warning"


def test_longer_wins_by_hand() -> None:
    """Longer, shorter, equal, and a tie that is left out: (1 + 0 + 1/2) / 3."""
    survey = surveyed(
        [
            pair("a", "a?", "long answer", "no"),
            pair("b", "b?", "no", "long answer"),
            pair("c", "c?", "yes", "nay"),
            pair("d", "d?", "long answer", "no", pair=Pair(0, 1, tie=True)),
        ]
    )
    assert survey.facts["longer_wins"] == 0.5
    assert survey.facts["longer_wins_interval"]["n"] == 3
    assert survey.facts["ties"] == 1


def test_outliers_are_those_far_from_the_median() -> None:
    """199 grades of 1 to 5 and one 500: found, listed, and removed when asked for."""
    groups = [pair(str(n), f"{n}?", grades=(4.0 + n % 2, 1.0 + n % 3)) for n in range(99)]
    groups.append(pair("slip", "slip?", grades=(500.0, 2.0)))
    survey = surveyed(groups)
    assert survey.facts["outliers"]["count"] == 1
    assert said(survey, "outliers")[0][0] == "warning"
    assert [row.id for row in survey.worst if "median" in row.reason] == ["slip"]
    kept = clean(Groups.from_iterable(groups), survey.marks, survey.facts["outliers"], ["outliers"])
    assert len(kept) == 99
    assert list(kept.dropped.values()) == [1]


def test_sources_on_different_scales_are_named() -> None:
    """One source grades 1 to 5, the other 60 to 100."""
    groups = [pair(str(n), f"{n}?", grades=(5.0, 1.0 + n % 4), source="small") for n in range(30)]
    groups += [pair(f"b{n}", f"b{n}?", grades=(100.0, 60.0 + n), source="large") for n in range(30)]
    assert said(surveyed(groups), "scales") == [
        ("warning", "95% of small's grades are up to 5, 95% of large's from 62")
    ]
    assert said(surveyed(groups[:30]), "scales") == []


def test_saturation_by_hand() -> None:
    """Of ten probabilities six are beyond .01/.99, four of them beyond .001/.999."""
    probs = [1.0, 0.9999, 0.0001, 0.9995, 0.995, 0.005, 0.5, 0.6, 0.7, 0.989]
    survey = surveyed(pair(str(n), f"{n}?", pair=Pair(0, 1, prob=p)) for n, p in enumerate(probs))
    assert survey.facts["saturation"]["probabilities"] == {"n": 10, "beyond_.001": 0.4, "beyond_.01": 0.6}
    assert said(survey, "saturation")[0][0] == "warning"


def test_targets_that_saturate_under_the_suggested_gamma() -> None:
    """Gaps 1, 1, 1, 8: gamma = ln 3, and 8 ln 3 = 8.8 is beyond ln 99 = 4.6, so one of four."""
    survey = surveyed(pair(str(n), f"{n}?", grades=(1.0 + gap, 1.0)) for n, gap in enumerate((1, 1, 1, 8)))
    assert survey.facts["gamma_for_75_percent"] == pytest.approx(math.log(3))
    assert survey.facts["saturation"]["targets_beyond_.99"] == 0.25


# ---------------------------------------------------------------------------------------------------------------------
# Duplicates and leaks


def test_rows_that_repeat_and_rows_labelled_both_ways() -> None:
    """Case and punctuation aside, b and e repeat a; c prefers the other one; all three go from a cleaned copy."""
    groups = [
        pair("a", "Name a fruit.", "An apple, of course.", "Carrot"),
        pair("b", "name a FRUIT", "an apple of course", "carrot!"),
        pair("c", "Name a fruit.", "Carrot", "An apple, of course."),
        pair("d", "Name a tree.", "An oak, of course.", "Carrot"),
        pair("e", "Name a fruit:", "AN APPLE OF COURSE", "(carrot)"),
    ]
    survey = surveyed(groups)
    assert (survey.facts["rows_again"], survey.facts["rows_labelled_both_ways"]) == (3, 1)
    assert survey.marks["duplicates"].tolist() == [False, True, True, False, True]
    kept = clean(Groups.from_iterable(groups), survey.marks, None, [])
    assert [group.id for group in kept] == ["a", "d"]
    assert sum(kept.dropped.values()) == 3


def test_nearly_identical_responses_with_a_large_gap_come_first() -> None:
    """One character of forty differs in b (gap 4) and a (gap 1), none but the case in c."""
    text = "the quick brown fox jumps over the dog x"
    survey = surveyed(
        [
            pair("a", "a?", text, text[:-1] + "y", grades=(3.0, 2.0)),
            pair("b", "b?", text, text[:-1] + "y", grades=(5.0, 1.0)),
            pair("c", "c?", text, text.upper(), grades=(2.0, 2.0)),
            pair("d", "d?", text, "something else", grades=(5.0, 1.0)),
        ]
    )
    assert survey.facts["near_identical_pairs"] == 3
    assert survey.marks["near_responses"].tolist() == [True, True, True, False]
    assert [row.id for row in survey.worst if "two responses" in row.reason] == ["b", "a", "c"]


def test_a_constant_answer_that_always_wins_is_found_and_one_that_loses_is_not() -> None:
    """A poisoned source: one text wins under 40 prompts."""
    draw = random.Random(1)
    groups = [pair(str(n), f"{n} {sentence(draw)}", "Trust me!", sentence(draw)) for n in range(40)]
    groups += [pair(f"x{n}", f"x{n} {sentence(draw)}", sentence(draw), "I cannot help.") for n in range(40)]
    survey = surveyed(groups)
    (found,) = survey.facts["constant_answers"]
    assert (found["text"], found["prompts"], found["win_rate"]) == ("Trust me!", 40, 1.0)
    assert said(survey, "constant")[0][0] == "warning"


def test_leaks_and_near_leaks_by_hand() -> None:
    """Sixty prompts; one is in both splits, one nearly; training loses those rows, the test split none."""
    draw = random.Random(2)
    prompts = [sentence(draw, 20) for _ in range(60)]
    groups = [pair(str(n), text, sentence(draw), sentence(draw), split="train") for n, text in enumerate(prompts)]
    groups.append(pair("same", prompts[5].upper() + "!", sentence(draw), sentence(draw), split="test"))
    groups.append(pair("near", prompts[9] + " please", sentence(draw), sentence(draw), split="test"))
    survey = surveyed(groups)
    assert survey.facts["prompts_in_several_splits"] == 1
    assert survey.facts["prompts_nearly_in_several_splits"] == 2  # both near-duplicates of the pair
    assert [n for n, marked in enumerate(survey.marks["leaks"]) if marked] == [5, 9]
    assert survey.marks["near_prompts"].tolist() == [False] * 61 + [True]
    assert [level for level, _ in said(survey, "leakage")] == ["problem", "warning"]


def test_few_prompts_are_judged_by_their_clusters() -> None:
    """One question over all pairs is no leak where the responses do not meet across splits."""
    rows = [
        {
            "prompt": "Which is funnier?",
            "chosen": f"joke {n}",
            "rejected": f"pun {n}",
            "split": ("train", "test")[n % 2],
        }
        for n in range(30)
    ]
    groups, _ = read_groups(rows)
    assert summarise(groups).facts["prompts_in_several_splits"] == leakage(groups) == 0
    rows.append({"prompt": "Which is funnier?", "chosen": "joke 1", "rejected": "pun 2", "split": "train"})
    groups, _ = read_groups(rows)
    assert summarise(groups).facts["prompts_in_several_splits"] == leakage(groups) == 1


def test_another_file_is_searched_for_the_same_prompts() -> None:
    """`against` counts equal and near prompts, and marks the rows."""
    draw = random.Random(3)
    prompts = [sentence(draw, 20) for _ in range(10)]
    groups = [pair(str(n), text, sentence(draw), sentence(draw)) for n, text in enumerate(prompts)]
    other = Groups.from_iterable([pair("a", prompts[2].title()), pair("b", prompts[7] + " now")])
    survey = surveyed(groups, against={"bench.jsonl": other})
    assert survey.facts["against"] == {"bench.jsonl": {"prompts": 1, "near": 1}}
    assert [n for n, marked in enumerate(survey.marks["against"]) if marked] == [2, 7]


def test_known_prompts_are_hashes_of_the_benchmarks_and_nothing_else() -> None:
    """Coverage is stated; a prompt is found by all its words or by its last user turn."""
    benchmarks, holders = known_prompts()
    alpaca = next(benchmark for benchmark in benchmarks if benchmark.name == "AlpacaEval")
    assert alpaca.coverage() == "452 distinct prompts of its 805 rows are known"
    assert sum(benchmark.held for benchmark in benchmarks) > 3000
    assert all(isinstance(digest, int) for digest in holders)
    asked = "What are the names of the months?"
    chat = (Turn("system", "Be brief."), Turn("user", asked))
    assert prompt_digests(asked) < prompt_digests(chat)
    assert len(prompt_digests((Turn("system", "Be brief."), Turn("user", "And then?")))) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Who wrote and who judged


@pytest.mark.parametrize(
    ("models", "grades", "votes", "expected"),
    [
        (("m", "m"), "decimal", None, "SS RM"),
        (("m", "n"), "decimal", None, "DS RM"),
        (("m", "n"), "whole", None, "DS unknown label"),
        (("m", "n"), None, (3.0, 2.0, 0.0), "DS human"),
        (("best", "worst"), "decimal", None, "DS Fix"),
        ((None, None), "decimal", None, "unknown source RM"),
        ((None, None), None, None, "unknown source unknown label"),
    ],
)
def test_the_type_of_a_data_set(models: Any, grades: Any, votes: Any, expected: str) -> None:
    """Source x label; `fixed` only where the same model always wins."""
    draw = random.Random(4)
    groups = []
    for n in range(60):
        good = draw.uniform(0, 1) if grades == "decimal" else float(draw.randint(3, 5))
        found = (None, None) if grades is None else (good + 1, good)
        order = models if models == ("best", "worst") or n % 2 else tuple(reversed(models))
        groups.append(pair(str(n), f"{n}?", grades=found, models=order, pair=Pair(0, 1, votes=votes)))
    assert surveyed(groups).facts["dataset_type"] == expected


def test_win_rates_count_pairs_of_different_models() -> None:
    """A beats b twice, b beats c once, a against a does not count; nobody here has enough pairs to be suspected."""
    survey = surveyed(
        [
            pair("1", "1?", models=("a", "b")),
            pair("2", "2?", models=("a", "b")),
            pair("3", "3?", models=("b", "c")),
            pair("4", "4?", models=("a", "a")),
        ]
    )
    rates = {name: rate["win_rate"] for name, rate in survey.facts["models"].items()}
    assert rates == {"a": 1.0, "b": 1 / 3, "c": 0.0}
    always = [pair(f"z{n}", f"z{n}?", models=("a", "b" if n % 2 else "c")) for n in range(60)]
    assert said(surveyed(always), "sources")[0][0] == "warning"


def test_strange_characters_and_markup() -> None:
    """A direction override, a broken quote and a template's markers; tabs and line ends are fine."""
    survey = surveyed(
        [
            pair("bidi", "a?", "safe \u202e txt"),
            pair("broken", "b?", "donâ€™t"),
            pair("markup", "<|im_start|>user\nc?<|im_end|>"),
            pair("fine", "d?", "a\tb\r\nc"),
        ]
    )
    facts = survey.facts
    assert (facts["control_characters"], facts["broken_encodings"], facts["chat_markup"]["rows"]) == (1, 1, 1)
    assert {row.id for row in survey.worst if "U+" in row.reason} == {"bidi", "broken"}


# ---------------------------------------------------------------------------------------------------------------------
# Reading and cleaning


def test_what_the_reader_refused_is_part_of_the_verdict() -> None:
    """A few refused rows warn, above 5% they are a problem; ties left out on request are neither."""
    ledger = Findings("a.jsonl", "pair", read=100, kept=98)
    ledger.add(Finding("a.jsonl:3", "empty response", "chosen is empty", "remove the row"))
    ledger.add(Finding("a.jsonl:4", "contradiction", "margin is -2", "swap them"))
    assert [(remark.topic, remark.level) for remark in about_reading(ledger)] == [
        ("rows", "warning"),
        ("labels", "warning"),
    ]
    for line in range(5, 12):
        ledger.add(Finding(f"a.jsonl:{line}", "empty response", "chosen is empty", "remove the row"))
    assert about_reading(ledger)[0].level == "problem"
    ties = Findings("a.jsonl", "pair", read=2, kept=1, dropped={"tie": 1})
    assert about_reading(ties) == []


def test_removals_are_named() -> None:
    """A misspelt one gets the nearest."""
    assert check_removals(["leaks", "known"]) == ["duplicates", "leaks", "known"]
    with pytest.raises(BadInput, match="did you mean leaks"):
        check_removals(["leeks"])


def test_comparisons_are_pairs_too() -> None:
    """Votes between responses of a group give its pairs."""
    responses = (Response("one two three"), Response("two"), Response("three"))
    votes = (Comparison(0, 1, 3, 1), Comparison(1, 2, 2, 2))
    survey = surveyed([Group("a", "?", responses, comparisons=votes)])
    assert (survey.facts["pairs"], survey.facts["ties"]) == (2, 1)
    assert survey.facts["votes"]["pairs"] == 2
