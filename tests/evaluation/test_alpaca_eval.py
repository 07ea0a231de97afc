"""AlpacaEval: the rules on files worked out by hand, and the fit against AlpacaEval's own code."""

import csv
import json
import math
import random

import numpy as np
import pytest

from marginkit.errors import BadInput
from marginkit.evaluation import length_controlled as lc
from marginkit.evaluation.alpaca_eval import is_switched, read_annotations, score_alpaca_eval, weighted_preference
from marginkit.evaluation.logistic import fit_logistic


def _row(number, preference, one=10, two=12, **more):
    return {
        "instruction": f"q{number}",
        "output_1": "x" * one,
        "generator_1": "base",
        "output_2": "y" * two,
        "generator_2": "mine",
        "annotator": "judge",
        "preference": preference,
    } | more


def _file(folder, rows, name="annotations.json"):
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def test_the_order_is_switched_by_a_coin_that_lies_in_the_instruction():
    for instruction in ("", "Name a fruit.", "Fünf Bäume?\n"):
        coin = random.Random("is_switched_outputs" + instruction + "123").choices([False, True], k=1)[0]
        assert is_switched(instruction) is coin
    drawn = [is_switched(f"question {k}") for k in range(2000)]
    assert 900 < sum(drawn) < 1100
    assert is_switched("Name a fruit.") != is_switched("Name a fruit.", seed=4)


@pytest.mark.parametrize(
    ("first", "second", "switched", "preference"),
    [
        # two rows of AlpacaEval's public annotations of NullModel, both switched
        (math.exp(-0.010449888), math.exp(-4.6069846), True, 1.9900139974),
        (math.exp(-0.7781773), math.exp(-0.6152821), True, 1.4593660117),
        (1.0, 0.0, False, 1.0),
        (0.0, 0.3, False, 2.0),
        (0.3, 0.0, True, 2.0),
        (0.2, 0.2, False, 1.5),
    ],
)
def test_the_preference_is_read_from_two_probabilities(first, second, switched, preference):
    assert weighted_preference(first, second, switched) == pytest.approx(preference, abs=1e-9)


def test_without_either_token_there_is_no_preference():
    assert weighted_preference(0.0, 0.0) is None
    with pytest.raises(BadInput):
        weighted_preference(1.2, 0.0)


def test_the_rules_by_hand(tmp_path):
    """The rows are .9, .5 (a 0 of the first version), .25, .5, 1, and a null: 2 wins, 1 loss, 2 draws."""
    given = [1.9, 0, 1.25, None, 1.5, 2]
    path = _file(tmp_path, [_row(k, p, two=11 + k) for k, p in enumerate(given)])
    found = score_alpaca_eval(path)
    x = np.array([0.9, 0.5, 0.25, 0.5, 1.0])
    assert found.win_rate.value == pytest.approx(63.0)
    assert found.standard_error == pytest.approx(100 * math.sqrt(((x - 0.63) ** 2).sum() / 4 / 5))
    assert found.discrete_win_rate.value == pytest.approx(100 * (2 + 2 / 2) / 5)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total, found.nulls) == (2, 1, 2, 5, 1)
    assert found.avg_length == 13  # the mean is 13.5, cut
    assert found.missing == 799
    assert found.win_rate.low < 63 < found.win_rate.high
    json.dumps(found.to_json(), allow_nan=False)


def test_half_to_one_side_of_the_middle_is_a_win_or_a_loss(tmp_path):
    path = _file(tmp_path, [_row(0, 1.5 + 1e-9, two=9), _row(1, 1.5 - 1e-9, two=11), _row(2, 1.5)])
    found = score_alpaca_eval(path)
    assert (found.n_wins, found.n_wins_base, found.n_draws) == (1, 1, 1)


def _upstream_world(folder, seed=0, n=200):
    """The files on which AlpacaEval 0.6.6 itself (its glm_winrate.py, scikit-learn 1.9.1) was run."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    gamed = []
    for model in ("a", "b"):
        for i in range(n):
            length = rng.normal()
            p = 1 / (1 + np.exp(1.5 * np.tanh(length)))
            gamed.append([np.clip(p + rng.normal() * 0.2, 0, 1), i, length, difficulty[i], False, model])
    with (folder / "df_gamed.csv").open("w", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow(
            ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
        )
        writer.writerows([[repr(float(v)) if isinstance(v, float) else v for v in row] for row in gamed])
    one, two = rng.integers(50, 400, n), rng.integers(50, 700, n)
    length = (one - two) / np.std(one - two, ddof=1)
    x = 1 / (1 + np.exp(1.2 * np.tanh(length) - 0.8 * difficulty + 0.7))
    given = 1 + np.clip(x + rng.normal(size=n) * 0.25, 0, 1)
    preference = [None if i % 41 == 0 else 0 if i % 37 == 0 else float(v) for i, v in enumerate(given)]
    rows = [_row(i, p, int(one[i]), int(two[i])) for i, p in enumerate(preference)]
    return _file(folder, rows), folder / "df_gamed.csv", difficulty


def test_the_length_controlled_rate_is_that_of_alpaca_evals_own_code(tmp_path):
    annotations, gamed, _ = _upstream_world(tmp_path)
    found = score_alpaca_eval(annotations, gamed=gamed, unofficial=True)
    assert found.win_rate.value == pytest.approx(49.338436520258945, abs=1e-9)
    assert found.standard_error == pytest.approx(2.056255691652475, abs=1e-9)
    assert found.discrete_win_rate.value == pytest.approx(48.97435897435897, abs=1e-9)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (93, 97, 5, 195)
    controlled = found.length_controlled
    assert controlled.value == pytest.approx(38.19086807366081, abs=1e-6)
    assert controlled.standard_error == pytest.approx(0.7561502128810521, abs=1e-6)
    assert controlled.weights == pytest.approx(
        {"length": -1.0278597651302435, "difficulty": 0.49424524672920955, "model": -0.5158890051488859}, abs=1e-6
    )
    assert controlled.label == "LC-approx"
    assert "not its own" in controlled.says


@pytest.mark.parametrize(
    ("seed", "n", "upstream"),
    [
        (1, 12, 50.0),
        (2, 12, 23.36852106842728),
        (1, 20, 28.05927143204679),
        (3, 20, 48.25695628307599),
        (0, 30, 31.584502805621632),
        (2, 30, 37.17323767119424),
    ],
)
def test_the_penalty_is_chosen_as_by_alpaca_evals_own_code(tmp_path, seed, n, upstream):
    """Small files, on which other folds choose another penalty."""
    annotations, gamed, _ = _upstream_world(tmp_path, seed, n)
    found = score_alpaca_eval(annotations, gamed=gamed, unofficial=True).length_controlled
    assert found.value == pytest.approx(upstream, abs=1e-6)


def test_the_published_files_alone_make_it_exact(tmp_path, monkeypatch):
    import hashlib

    annotations, gamed, _ = _upstream_world(tmp_path)
    monkeypatch.setattr(lc, "GAMED_SHA256", hashlib.sha256(gamed.read_bytes()).hexdigest())
    controlled = score_alpaca_eval(annotations, gamed=gamed).length_controlled
    assert controlled.label == "LC"
    gamed.write_bytes(gamed.read_bytes() + b"\n")
    with pytest.raises(BadInput, match=r"sha256 is [0-9a-f]{12}.*--unofficial") as refused:
        score_alpaca_eval(annotations, gamed=gamed)
    assert "\n" not in str(refused.value)


def test_the_interval_by_refitting_is_wider_than_upstreams_error(tmp_path):
    annotations, gamed, _ = _upstream_world(tmp_path)
    controlled = score_alpaca_eval(annotations, gamed=gamed, unofficial=True, refits=40).length_controlled
    assert controlled.low < controlled.value < controlled.high
    assert controlled.high - controlled.low > 2 * 1.96 * controlled.standard_error


def test_approximations_say_what_they_are(tmp_path):
    annotations, _, difficulty = _upstream_world(tmp_path)
    table = tmp_path / "instruction_difficulty.csv"
    table.write_text(",d\n" + "".join(f"{i},{float(value)!r}\n" for i, value in enumerate(difficulty)))
    bare = score_alpaca_eval(annotations).length_controlled
    better = score_alpaca_eval(annotations, difficulty=table, unofficial=True).length_controlled
    assert bare.label == better.label == "LC-approx"
    assert "6.9 points" in bare.says
    assert ".8 points" in better.says
    assert set(bare.weights) == {"length", "model"}
    assert better.weights["length"] == pytest.approx(-1.2, abs=0.5)  # what the file was drawn with
    with pytest.raises(BadInput, match="sha256"):
        score_alpaca_eval(annotations, difficulty=table)


def test_difficulties_by_place_shift_where_rows_are_missing_and_by_instruction_do_not(tmp_path):
    annotations, gamed, _ = _upstream_world(tmp_path)
    rows = json.loads(annotations.read_text())
    everything = _file(tmp_path, rows, "all.json")
    fewer = _file(tmp_path, rows[3:], "fewer.json")
    by_place = score_alpaca_eval(fewer, gamed=gamed, unofficial=True).length_controlled
    joined = score_alpaca_eval(fewer, gamed=gamed, unofficial=True, instructions=everything).length_controlled
    whole = score_alpaca_eval(everything, gamed=gamed, unofficial=True).length_controlled
    assert joined.weights["difficulty"] == pytest.approx(whole.weights["difficulty"], abs=0.02)
    assert by_place.weights["difficulty"] < 0.2 < joined.weights["difficulty"]
    assert "joined on the instruction" in joined.says
    with pytest.raises(BadInput, match="instructions join difficulties"):
        score_alpaca_eval(fewer, instructions=everything)
    with pytest.raises(BadInput, match="row 1 has no difficulty"):
        score_alpaca_eval(fewer, gamed=gamed, unofficial=True, instructions=_file(tmp_path, rows[4:], "less.json"))


def test_the_baseline_itself_is_fifty_and_equal_lengths_leave_nothing_to_control(tmp_path):
    path = _file(tmp_path, [_row(k, 1.5, generator_1="mine") for k in range(3)])
    assert score_alpaca_eval(path).length_controlled.value == 50.0
    assert score_alpaca_eval(_file(tmp_path, [_row(k, 1.2) for k in range(3)])).length_controlled is None


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([_row(0, 2.5)], r":1 \(entry 1\): 'preference' is 2.5"),
        ([_row(0, 1.5), _row(1, "2")], r"entry 2\): 'preference' is a text"),
        ([_row(0, 1.5), _row(1, 1.5, generator_2="other")], r"entry 2\): 'generator_2' is 'other'"),
        ([_row(0, 1.5), _row(1, 1.5, annotator="other")], "'annotator' is 'other'"),
        ([{k: v for k, v in _row(0, 1.5).items() if k != "output_2"}], "has no 'output_2'"),
        ([_row(0, 1.5, output_1=None)], "'output_1' is null"),
        ([_row(0, None)], "no row has a preference"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, rows, says):
    with pytest.raises(BadInput, match=says):
        score_alpaca_eval(read_annotations(_file(tmp_path, rows)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n1,2\n", "lacks the columns"),
        ("preference,index,std_delta_len,instruction_difficulty\n0.5,0,x,1\n", ":2: std_delta_len is 'x'"),
        ("preference,index,std_delta_len,instruction_difficulty\n0.5,0,nan,1\n", ":2: std_delta_len is 'nan'"),
    ],
)
def test_gamed_rows_that_cannot_be_read(tmp_path, content, says):
    path = tmp_path / "df_gamed.csv"
    path.write_text(content)
    with pytest.raises(BadInput, match=says):
        lc.read_gamed(path, unofficial=True)
    with pytest.raises(BadInput, match="No such file"):
        lc.read_gamed(tmp_path / "none.csv")


def test_without_scikit_learn_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    annotations, gamed, _ = _upstream_world(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BadInput, match=r"marginkit\[alpaca\]"):
        score_alpaca_eval(annotations, gamed=gamed, unofficial=True)
    assert score_alpaca_eval(annotations).length_controlled is not None


def test_the_logistic_fit_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    x, share, weight = rng.normal(size=(300, 3)), rng.random(300), rng.random(300)
    oracle = LogisticRegression(C=1e10, fit_intercept=False, tol=1e-10, max_iter=1000)
    twice, importance = np.concatenate([x, x]), np.concatenate([weight * share, weight * (1 - share)])
    oracle.fit(twice, np.repeat([1, 0], 300), sample_weight=importance)
    assert fit_logistic(x, share, weight) == pytest.approx(oracle.coef_[0], abs=1e-4)
    with pytest.raises(BadInput):
        fit_logistic(x, share[:5])
    with pytest.raises(BadInput):
        fit_logistic(x, np.full(300, np.nan))
