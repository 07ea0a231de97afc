"""The survey of real files, where they are: the figures that their own page states."""

from functools import cache
from pathlib import Path

import pytest

from marginkit.data.sources import read_groups
from marginkit.data.summary import Survey, summarise

SHARED = Path(__file__).parents[3] / "shared" / "data"


@cache
def surveyed(name: str) -> Survey:
    """The survey of one file, made once for all tests."""
    if not (SHARED / f"{name}.jsonl").is_file():
        pytest.skip(f"{name}.jsonl is not on this machine")
    return summarise(read_groups(SHARED / f"{name}.jsonl")[0])


def said(survey: Survey, topic: str) -> list[tuple[str, str]]:
    return [(remark.level, remark.says) for remark in survey.remarks if remark.topic == topic]


@pytest.mark.parametrize(
    ("name", "longer", "ties"),
    [
        ("alpacaeval_graded", 0.80, 21),
        ("tulu2_bon_graded", 0.60, 53),
        ("arenabench_graded", 0.65, 1681),
        ("ultrafeedback_pairs", 0.54, 115),
        ("feedbackqa_human_graded", 0.59, 525),
        ("fgrlhf_human_graded", 0.51, None),  # its comparisons, not its win shares, make the pairs
        ("ukpconvarg_pairs", 0.73, None),  # three rows are there twice
        ("polite_pairs_demo", 0.52, 0),
        ("eval_llmbar", 0.27, 0),
        ("eval_biasbench", 0.26, 0),
        ("eval_hh_harmless", 0.46, 0),
    ],
)
def test_length_and_ties_of_real_files(name: str, longer: float, ties: int | None) -> None:
    """The shares of their page, to its two digits and one more for what the reader left out."""
    facts = surveyed(name).facts
    assert facts["longer_wins"] == pytest.approx(longer, abs=0.011)
    assert ties is None or facts["ties"] == ties


def test_benchmarks_that_share_prompts() -> None:
    """38 of the 80 EvalBiasBench prompts are LLMBar prompts; each file is recognised as itself."""
    survey = surveyed("eval_biasbench")
    assert survey.facts["known_benchmarks"]["LLMBar"]["prompts"] == 38
    assert survey.facts["known_benchmarks"]["EvalBiasBench"]["rows"] == 80
    assert ("note", "nearly every prompt is one of EvalBiasBench") in said(survey, "benchmarks")


def test_the_winner_of_every_pair_is_found_out() -> None:
    """Human solutions of GSM8K never lose: a source that a model can recognise."""
    survey = surveyed("gsm8k_solutions_graded")
    assert any("human_ground_truth wins 100%" in says for _, says in said(survey, "sources"))


def test_judge_probabilities_saturate() -> None:
    """Most of the judge's grades in AlpacaEval are beyond .01/.99."""
    found = surveyed("alpacaeval_graded").facts["saturation"]["grades_as_probabilities"]
    assert found["beyond_.01"] > 0.7
    assert found["beyond_.001"] > 0.6
