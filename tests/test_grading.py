"""mk.grade: every way from groups to targets, what training makes of them, and the real files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import marginkit as mk
from marginkit import grading
from marginkit.data.grades import pair_evidence
from marginkit.data.pairing import make_pairs
from marginkit.data.rating_graders import gamma_of_true_grades
from marginkit.errors import BadInput
from marginkit.grading import GRADERS, Grading, grade_and_report
from marginkit.groups import Groups
from marginkit.records import Comparison, Group, Pair, Rating, Response

SHARED = Path(__file__).parents[2] / "shared" / "data"
TINY = [
    *("model.path=fresh", "model.fresh.layers=1", "model.fresh.hidden=16", "model.fresh.heads=2"),
    *("model.fresh.vocab=300", "train.use_cpu=true", "train.save_strategy=no", "train.learning_rate=1e-3"),
]


def one(*responses, **rest):
    return Groups.from_iterable([Group("a", "Name a fruit.", tuple(responses), **rest)])


def graded(*values):
    return tuple(Response(f"answer {at}", grade=value) for at, value in enumerate(values))


def rated(text, *ratings, grade=None):
    made = tuple(Rating(*r) if isinstance(r, tuple) else Rating(None, r) for r in ratings)
    values = [rating.value for rating in made]
    return Response(text, grade=float(np.mean(values)) if grade is None and values else grade, ratings=made)


def utilities(groups):
    return [response.utility for group in groups for response in group.responses]


def real(name):
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here: real data is not part of the repository")
    return path


# -- Ratings


def test_ratings_are_gamma_times_the_grade_and_gamma_is_said_in_grades():
    made = grade_and_report(one(*graded(4.0, 1.0, None)), "ratings", options={"gamma": 0.5})
    assert utilities(made.groups) == [2.0, 0.5, None]
    assert made.report["not graded"] == {"no grade": 1}
    assert made.report["fitted"]["just noticeable difference"] == pytest.approx(math.log(3) / 0.5)


def test_without_gamma_ratings_are_refused_with_one_to_start_from():
    with pytest.raises(BadInput, match=r"needs gamma, logits per unit of the linear map; gamma=0\.549 puts the"):
        mk.grade(one(*graded(4.0, 2.0)), "ratings")


def test_up_votes_need_no_gamma():
    made = mk.grade(one(*graded(340.0, 170.0, -3.0)), "ratings", map="log", prior=0)
    a, b, c = utilities(made)
    assert a - b == pytest.approx(math.log(2))
    assert c == 0.0


def test_one_map_for_each_source_puts_scales_side_by_side():
    groups = Groups.from_iterable(
        [
            Group("a", "?", graded(1.0, 3.0, 5.0), source="five"),
            Group("b", "?", graded(20.0, 60.0, 100.0), source="hundred"),
        ]
    )
    made = utilities(mk.grade(groups, "ratings", map="zscore", by="source", gamma=1.0))
    assert made[:3] == pytest.approx(made[3:])
    assert utilities(mk.grade(groups, "ratings", map="zscore", gamma=1.0))[:3] != pytest.approx(made[3:])


def test_one_map_for_each_rater_removes_severity():
    """A severe and a mild rater who agree on the order: their z-scores are equal."""
    responses = [rated(f"{v}", ("severe", v), ("mild", v + 4.0)) for v in (1.0, 2.0, 6.0)]
    groups = one(*responses, rated("unnamed", 3.0), Response("none"))
    made = grade_and_report(groups, "ratings", options={"map": "zscore", "by": "rater", "gamma": 2.0})
    z = (np.array([1.0, 2.0, 6.0]) - 3) / np.std([1.0, 2.0, 6.0])
    assert utilities(made.groups)[:3] == pytest.approx(2 * z)
    assert made.report["not graded"] == {"a rating without a name of its rater": 1, "no ratings": 1}
    maps = made.report["fitted"]["maps"]
    assert maps["mild"]["center"] == pytest.approx(maps["severe"]["center"] + 4)


def test_named_weights_of_aspects():
    full = {"helpfulness": 4.0, "correctness": 3.0, "coherence": 4.0, "complexity": 2.0, "verbosity": 1.0}
    groups = one(Response("x", aspects=full), Response("y", aspects={"helpfulness": 4.0}))
    made = grade_and_report(groups, "ratings", options={"weights": "helpsteer2_70b", "gamma": 1.0})
    assert utilities(made.groups) == [pytest.approx(0.65 * 4 + 0.8 * 3 + 0.45 * 4 + 0.55 * 2 - 0.4), None]
    assert made.report["not graded"] == {"an aspect is missing": 1}
    with pytest.raises(BadInput, match="or one of helpsteer2_70b, helpsteer2_340b"):
        mk.grade(groups, "ratings", weights="helpsteer3", gamma=1.0)


# -- Raters


def test_a_grade_of_few_raters_is_nearer_to_one_half():
    few = [rated("x", 4.0, 5.0), rated("y", 2.0, 3.0)]
    many = [rated("x", *[4.0, 5.0] * 20), rated("y", *[2.0, 3.0] * 20)]
    for gamma in (None, 1.0):
        p_few, p_many = (
            mk.grade(one(*both), "raters", prior="flat", gamma=gamma)[0].pairs[0].prob for both in (few, many)
        )
        assert 0.5 < p_few < p_many
        if gamma:
            assert p_many < 1 / (1 + math.exp(-2 * gamma)) < 1
    even = mk.grade(one(rated("x", 1.0, 3.0), rated("y", 1.0, 3.0)), "raters")[0].pairs[0]
    assert (even.prob, even.tie) == (0.5, True)


def test_by_hand_with_a_flat_prior():
    groups = one(rated("x", 4.0, 6.0), rated("y", 1.0, 2.0, 6.0))
    s2 = (2 + 14) / 3  # within: (1 + 1) + (4 + 1 + 9), over 1 + 2
    expected = norm.cdf(2.0 / math.sqrt(s2 * (1 / 2 + 1 / 3)))
    assert mk.grade(groups, "raters", prior="flat")[0].pairs[0].prob == pytest.approx(expected)


def test_raters_who_rated_both_are_compared_with_themselves():
    """Severity differs by 6 between the raters, their differences by 0.2: the pair is as good as certain."""
    better = rated("x", ("a", 1.1), ("b", 7.0), ("c", 4.2))
    worse = rated("y", ("a", 0.2), ("b", 5.9), ("c", 3.2))
    shared = grade_and_report(one(better, worse), "raters", options={"prior": "flat"})
    assert shared.groups[0].pairs[0].prob > 0.999
    assert shared.report["fitted"]["pairs by rater's differences"] == 1
    others = rated("y", ("d", 0.2), ("e", 5.9), ("f", 3.2))
    apart = grade_and_report(one(better, others), "raters", options={"prior": "flat"})
    assert apart.groups[0].pairs[0].prob < 0.75
    assert apart.report["fitted"]["pairs by rater's differences"] == 0


def test_differences_of_shared_raters_are_shrunk_by_their_own_spread():
    """By hand: differences 1 and 3: variance 2, spread 2^2 - 2 / 2 = 3, weight 2 * 3 / (2 * 3 + 2) = 3/4."""
    groups = one(rated("x", ("a", 3.0), ("b", 6.0)), rated("y", ("a", 2.0), ("b", 3.0)))
    made = grade_and_report(groups, "raters")
    assert made.report["fitted"]["variance of true differences"] == pytest.approx(3.0)
    assert made.groups[0].pairs[0].prob == pytest.approx(norm.cdf(0.75 * 2 / math.sqrt(3 * 0.25)))


def test_severe_raters_do_not_hide_how_far_apart_grades_are():
    """Severity is shared by the responses of a prompt: however large, prob is as often right as it says."""
    rng = np.random.default_rng(0)

    def world(severity):
        for at in range(150):
            true, rater = rng.normal(size=3), severity * rng.normal(size=3)
            said = true[:, None] + rater + 0.8 * rng.normal(size=(3, 3))
            yield true, [rated(f"{at} {k}", *zip("abc", own.tolist(), strict=True)) for k, own in enumerate(said)]

    for severity, how in ((0.0, "all"), (3.0, "all"), (3.0, "best_worst")):
        rows = list(world(severity))
        groups = Groups.from_iterable(Group(f"g{at}", "?", tuple(own)) for at, (_, own) in enumerate(rows))
        made = grade_and_report(make_pairs(groups, how), "raters")
        assert made.report["fitted"]["variance of true differences"] == pytest.approx(2.0, abs=0.4)
        made = made.groups
        right = [t[p.chosen] > t[p.rejected] for (t, _), g in zip(rows, made, strict=True) for p in g.pairs]
        said = [pair.prob for group in made for pair in group.pairs]
        assert np.mean(said) == pytest.approx(np.mean(right), abs=0.04)
        assert np.mean(said) > 0.8


@pytest.mark.parametrize("how", ["ratings", "raters"])
def test_a_gamma_from_raters_gives_the_share_of_fresh_raters_and_counts_their_noise_once(how):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(500, 2))
    said = true[..., None] + rng.normal(size=(500, 2, 2))
    groups = Groups.from_iterable(
        Group(f"g{at}", "?", tuple(rated(f"{at} {k}", *row) for k, row in enumerate(own.tolist())))
        for at, own in enumerate(said)
    )
    made = mk.grade(groups, how, gamma="auto")
    fresh, target = [], []
    for (one, other), group in zip(true, made, strict=True):
        gap = pair_evidence(group, group.pairs[0]) if group.pairs else None
        if gap is None:
            target.append(group.responses[0].utility - group.responses[1].utility)
        else:
            sign = 1 if group.pairs[0].chosen == 0 else -1
            target.append(sign * math.log(gap.prob / (1 - gap.prob)))
        fresh.append(norm.cdf((one - other) / math.sqrt(2)))
    target, fresh = np.array(target), np.array(fresh)

    def loss(times):
        return float(np.mean(np.logaddexp(0, times * target) - fresh * times * target))

    best = min(np.linspace(0.4, 2.5, 106), key=loss)
    assert best == pytest.approx(1.0, abs=0.2)


def test_a_gamma_that_holds_for_noisy_grades_is_no_gamma_of_true_ones():
    """Noise as large as the signal: the slope on true grades is larger; too steep a slope has none."""
    groups = one(rated("x", ("a", 3.0), ("b", 6.0)), rated("y", ("a", 2.0), ("b", 3.0)))  # spread 3, error 2 / 2
    assert gamma_of_true_grades(groups, 0.5) == pytest.approx(0.5 / math.sqrt(0.75**2 - math.pi / 8 * 0.25 * 3 / 4))
    with pytest.raises(BadInput, match="gamma=2 goes with the grades as they are"):
        gamma_of_true_grades(groups, 2.0)


def test_an_aspect_that_no_rating_has_is_named():
    with pytest.raises(BadInput, match="aspect=wit: no rating has it; the ratings have no aspects"):
        mk.grade(one(rated("x", 1.0, 2.0), rated("y", 1.0, 3.0)), "raters", aspect="wit")


def test_prompts_without_a_pair_are_counted_where_pairs_are_graded():
    two = [rated("x", 4.0, 5.0), rated("y", 2.0, 3.0)]
    groups = Groups.from_iterable([Group("a", "?", tuple(two), pairs=(Pair(0, 1),)), Group("b", "Why?", tuple(two))])
    assert grade_and_report(groups, "raters").report["not graded"] == {"prompts without a pair": 1}


@pytest.mark.parametrize("how", ["votes", "judge_probs"])
def test_a_file_without_the_evidence_is_refused(how):
    with pytest.raises(BadInput, match=rf"how={how}: nothing could be graded \(no .*: 1\)"):
        mk.grade(one(Response("x"), Response("y"), pairs=(Pair(0, 1),)), how)


@pytest.mark.parametrize("policy", ["keep", "drop", "trust_label", "trust_grade"])
def test_a_tie_has_no_label_that_a_grade_could_go_against(policy):
    both = (Response("x", grade=1.0), Response("y", grade=3.0))
    groups = one(*both, pairs=(Pair(0, 1, prob=0.5, tie=True),))
    made = grade_and_report(groups, "ratings", disagreement=policy, options={"gamma": 1.0})
    assert made.groups[0].pairs == (Pair(1, 0),)
    assert made.report["after"]["agrees with the label"] is None


def test_counts_below_one_are_counted_and_grades_that_are_no_counts_refused():
    made = grade_and_report(one(*graded(-2.0, 0.0, 7.0)), "ratings", options={"map": "log"})
    assert made.report["fitted"]["maps"]["all"]["raised"] == 2
    with pytest.raises(BadInput, match="map=log is for counts of up-votes, and no grade is above 1"):
        mk.grade(one(*graded(-2.0, -1.0)), "ratings", map="log")


def test_ratings_are_not_taken_for_preferences():
    with pytest.raises(BadInput, match=r"probability is 4, outside \[0, 1\].*or a rating \(how=ratings\)"):
        mk.grade(one(*graded(4.0, 2.0)), "judge_probs")


# -- Votes and rankings


def test_votes_of_pairs_and_of_comparisons():
    pairs = mk.grade(one(Response("x"), Response("y"), pairs=(Pair(1, 0, votes=(3.0, 1.0, 2.0)),)), "votes")
    compared = mk.grade(one(Response("x"), Response("y"), comparisons=(Comparison(0, 1, 1, 3, 2),)), "votes")
    for group in (pairs[0], compared[0]):
        assert group.pairs == (Pair(1, 0, target_gap=pytest.approx(math.log(4.5 / 2.5))),)
        assert group.comparisons == ()
    with pytest.raises(BadInput, match="infinite: set a prior"):
        mk.grade(one(Response("x"), Response("y"), comparisons=(Comparison(0, 1, 0, 3),)), "votes", prior_for=0, prior_against=0)  # fmt: skip  # noqa: E501


def test_a_label_beside_comparisons_is_graded_by_their_votes():
    asked = (Comparison(0, 1, 1, 3, 2), Comparison(1, 0, 2, 1), Comparison(0, 2, 9, 0))
    made = mk.grade(one(*map(Response, "xyz"), comparisons=asked, pairs=(Pair(0, 1), Pair(1, 2))), "votes")
    assert made[0].pairs == (Pair(0, 1, target_gap=pytest.approx(math.log(3.5 / 6.5))), Pair(1, 2))
    assert made[0].comparisons == (Comparison(0, 2, 9, 0),)


def test_ranks_of_votes_of_orders_of_labels_and_of_probabilities_agree_in_order():
    texts = tuple(map(Response, "xyz"))
    voted = one(*texts, comparisons=(Comparison(0, 1, 4, 1), Comparison(1, 2, 4, 1), Comparison(0, 2, 5, 0)))
    ordered = one(*graded(-1.0, -2.0, -3.0))
    labelled = one(*texts, pairs=(Pair(0, 1), Pair(1, 2), Pair(0, 2)))
    likely = one(*texts, pairs=(Pair(0, 1, prob=0.8), Pair(1, 2, target_gap=1.0), Pair(0, 2, prob=0.95)))
    for groups, how, options in [
        (voted, "ranks", {}),
        (ordered, "ranks", {}),
        (labelled, "ranks", {"evidence": "labels"}),
        (likely, "pairwise", {}),
    ]:
        a, b, c = utilities(mk.grade(groups, how, **options))
        assert a > b > c
        assert a + b + c == pytest.approx(0, abs=1e-9)


def test_a_probability_is_hardly_shrunk_by_its_fit():
    both = (Response("x"), Response("y"))
    x, y = utilities(mk.grade(one(*both, pairs=(Pair(0, 1, prob=0.9),)), "pairwise"))
    assert 1 / (1 + math.exp(y - x)) == pytest.approx(0.9, abs=0.02)


def test_a_fit_is_not_fitted_again():
    """Utilities are what a fit gives, not evidence for another, which would shrink them once more."""
    both = (Response("x"), Response("y"))
    made = mk.grade(one(*both, pairs=(Pair(0, 1, votes=(3.0, 1.0, 0.0)),)), "ranks")
    for how in ("ranks", "pairwise"):
        with pytest.raises(BadInput, match="no prompt has any"):
            mk.grade(made, how)


def test_consistent_probabilities_come_back_as_they_are():
    u = np.array([1.2, 0.1, -1.3])
    pairs = tuple(Pair(i, j, prob=float(1 / (1 + np.exp(u[j] - u[i])))) for i in range(3) for j in range(3) if i < j)
    assert utilities(mk.grade(one(*map(Response, "xyz"), pairs=pairs), "pairwise", l2=1e-9)) == pytest.approx(
        u, abs=1e-6
    )


def test_what_no_chain_of_comparisons_connects_is_left_or_anchored():
    texts = tuple(map(Response, "vwxyz"))
    groups = one(*texts, comparisons=(Comparison(0, 1, 3, 1), Comparison(2, 3, 3, 1)))
    with pytest.raises(BadInput, match=r"could be graded \(never compared: 1, not connected by comparisons: 4\)"):
        mk.grade(groups, "ranks")
    beside = Group("b", "Why?", texts[:2], comparisons=(Comparison(0, 1, 3, 1),))
    left = grade_and_report(Groups.from_iterable([*groups, beside]), "ranks")
    assert utilities(left.groups)[:5] == [None] * 5
    assert left.report["not graded"] == {"never compared": 1, "not connected by comparisons": 4}
    assert left.groups[0].comparisons == groups[0].comparisons  # still there: nothing stands in their place
    anchored = utilities(mk.grade(groups, "ranks", disconnected="anchor"))
    assert anchored[:2] == pytest.approx(anchored[2:4])
    assert anchored[4] is None


def test_one_utility_for_each_model_with_intervals_and_a_refusal_across_islands():
    def battle(at, a, b, wins_a, wins_b):
        answers = (Response(f"{at} 0", model=a), Response(f"{at} 1", model=b))
        return Group(str(at), "?", answers, comparisons=(Comparison(0, 1, wins_a, wins_b),))

    groups = Groups.from_iterable([battle(0, "big", "small", 30, 10), battle(1, "small", "big", 10, 30)])
    made = grade_and_report(groups, "ranks", options={"over": "model", "l2": 1e-6, "bootstrap": 50})
    models = made.report["fitted"]["models"]
    assert models["big"]["elo"] - models["small"]["elo"] == pytest.approx(190.85, abs=0.01)
    assert models["big"]["low"] < models["big"]["utility"] < models["big"]["high"]
    assert utilities(made.groups)[0] == utilities(made.groups)[3] == models["big"]["utility"]
    islands = Groups.from_iterable([battle(0, "a", "b", 3, 1), battle(1, "c", "d", 3, 1)])
    with pytest.raises(BadInput, match=r"2 parts without a common scale \(one of each: a, c\)"):
        mk.grade(islands, "ranks", over="model")
    anchored = grade_and_report(islands, "ranks", options={"over": "model", "disconnected": "anchor"})
    assert anchored.report["fitted"]["parts"]["parts"] == 2
    with pytest.raises(BadInput, match="between two named models"):
        mk.grade(one(Response("x"), Response("y"), comparisons=(Comparison(0, 1, 1, 0),)), "ranks", over="model")


# -- Judges


def test_both_orders_of_a_judge_cancel_and_one_order_is_corrected_by_the_others():
    def p(x):
        return 1 / (1 + math.exp(-x))

    def asked(at, m, orders, b=0.7):
        c = [Comparison(0, 1, p(m + b), 1 - p(m + b), order="0,1")] if "ij" in orders else []
        c += [Comparison(1, 0, p(-m + b), 1 - p(-m + b), order="1,0")] if "ji" in orders else []
        return Group(str(at), "?", (Response("x"), Response("y")), comparisons=tuple(c))

    groups = Groups.from_iterable([asked(0, 1.0, ("ij", "ji")), asked(1, 2.0, ("ij",)), asked(2, -1.5, ("ji",))])
    made = grade_and_report(groups, "judge_probs")
    for group, m in zip(made.groups, (1.0, 2.0, -1.5), strict=True):
        [pair] = group.pairs
        assert (pair.target_gap if pair.chosen == 0 else -pair.target_gap) == pytest.approx(m, abs=1e-6)
    assert made.report["fitted"]["liking for the first place"] == pytest.approx(0.7)
    assert made.report["fitted"]["pairs by evidence"] == {"both orders": 1, "one order": 2}
    wrong = one(Response("x"), Response("y"), comparisons=(Comparison(0, 1, 0.9, 0.1, order="AB"),))
    with pytest.raises(BadInput, match="order 'AB': name the two in the order they were shown"):
        mk.grade(wrong, "judge_probs")


def test_grades_against_a_reference_on_either_scale():
    prob = utilities(mk.grade(one(*graded(0.8, 0.5, 1.0)), "judge_probs", clip=0.01))
    preference = utilities(mk.grade(one(*graded(1.8, 1.5, 2.0)), "judge_probs", clip=0.01))
    assert prob == pytest.approx([math.log(4), 0.0, math.log(99)])
    assert preference == pytest.approx(prob)
    with pytest.raises(BadInput, match=r"outside \[0, 1\]"):
        mk.grade(one(*graded(8.0, 0.5)), "judge_probs")


# -- Similarity


class Letters:
    """Counts of letters as vectors."""

    def embed(self, texts):
        return np.array([[text.count(letter) for letter in "abcd"] for text in texts], dtype=np.float32)


def test_similarity_is_unsigned_and_takes_the_direction_from_the_label():
    same, near, far = ("ab", "ba"), ("aab", "ab"), ("a", "b")
    pairs = [
        Group(str(n), "?", tuple(map(Response, two)), pairs=(Pair(1, 0),)) for n, two in enumerate((same, near, far))
    ]
    made = grade_and_report(Groups.from_iterable(pairs), "similarity", options={"embedder": Letters(), "gamma": 2.0})
    gaps = [group.pairs[0].target_gap for group in made.groups]
    cosine = (2 * 1 + 1 * 1) / math.sqrt(5 * 2)
    assert gaps == pytest.approx([0.0, 2 * (1 - cosine), 2.0], abs=1e-6)
    assert made.report["fitted"]["signed"] is False
    assert made.report["options"]["embedder"] == "Letters"
    ranked = mk.grade(Groups.from_iterable(pairs), "similarity", embedder=Letters(), map="quantile")
    assert [g.pairs[0].target_gap for g in ranked] == pytest.approx(
        [math.log((1 + q) / (1 - q)) for q in (1 / 6, 0.5, 5 / 6)]
    )
    with pytest.raises(BadInput, match=r"needs gamma, .*; gamma=\d.* puts the median distance at 75%"):
        mk.grade(Groups.from_iterable(pairs), "similarity", embedder=Letters())
    with pytest.raises(BadInput, match="has no pair: label pairs first"):
        mk.grade(one(*graded(1.0, 2.0)), "similarity", embedder=Letters(), gamma=1.0)


# -- Rewards


def table_of(groups, rewards, folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(group.id, at, len(r.text)) for group in groups for at, r in enumerate(group.responses)]
    table = pa.table(
        {
            "group": [row[0] for row in rows],
            "response": pa.array([row[1] for row in rows], pa.int32()),
            "chars": pa.array([row[2] for row in rows], pa.int32()),
            "reward": rewards,
        }
    )
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "responses.parquet")
    return str(folder)


def test_rewards_of_a_table_are_divided_by_the_temperature_that_fits_the_labels(tmp_path):
    """Three of four right at a gap of 2: T = 2 / log 3."""
    groups = Groups.from_iterable(
        Group(str(n), "?", (Response("x"), Response("y")), pairs=(Pair(*((0, 1) if n % 4 else (1, 0))),))
        for n in range(8)
    )
    tables = table_of(groups, [1.0, -1.0] * 8, tmp_path / "scores")
    made = grade_and_report(groups, "reward", options={"reward": tables})
    assert utilities(made.groups)[:2] == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert made.report["fitted"]["right"] == 0.75
    assert made.report["after"]["agrees with the label"] == 0.75
    assert utilities(mk.grade(groups, "reward", reward=tables, temperature=2))[:2] == [0.5, -0.5]
    easy = Groups.from_iterable(
        Group(str(n), "?", (Response("x"), Response("y")), pairs=(Pair(0, 1),)) for n in range(8)
    )
    with pytest.raises(BadInput, match="all of them are ordered rightly"):
        mk.grade(easy, "reward", reward=tables)
    with pytest.raises(BadInput, match="needs reward: a run"):
        mk.grade(easy, "reward")


def test_the_temperature_is_fitted_on_the_training_split_alone(tmp_path):
    groups = Groups.from_iterable(
        Group(str(n), "?", (Response("x"), Response("y")), pairs=(Pair(*((0, 1) if n % 4 else (1, 0))),), split=split)
        for n, split in enumerate(["train"] * 4 + ["test"] * 4)
    )
    tables = table_of(groups, [1.0, -1.0] * 8, tmp_path / "scores")
    assert grade_and_report(groups, "reward", options={"reward": tables}).report["fitted"]["fitted on"] == 4


def test_crossfit_grades_what_has_no_grade():
    groups = Groups.from_iterable(
        Group(
            str(n),
            f"Question {n}?",
            (Response(f"a full and good answer {n}"), Response(f"no idea {n}")),
            pairs=(Pair(*((0, 1) if n % 5 else (1, 0))),),
        )
        for n in range(60)
    )
    made = grade_and_report(groups, "crossfit", options={"embedder": "hash"})
    found = np.array(utilities(made.groups)).reshape(-1, 2)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-9)
    assert 0.7 < made.report["after"]["agrees with the label"] < 0.9  # the wrong fifth is not learned
    assert (found[:, 0] > found[:, 1]).mean() > 0.9


# -- The verb


def test_given_takes_what_training_would_take():
    pair = one(Response("x", utility=9.0), Response("y", utility=1.0), pairs=(Pair(0, 1, votes=(3.0, 1.0, 0.0)),))
    made = mk.grade(pair, "given")
    assert made[0].pairs == (Pair(0, 1, prob=0.75),)
    mixed = Group("b", "?", (Response("x"), Response("y")), pairs=(Pair(0, 1, target_gap=2.0), Pair(1, 0, prob=0.5)))
    made = mk.grade(Groups.from_iterable([mixed]), "given")
    assert made[0].pairs == (Pair(0, 1, target_gap=2.0), Pair(1, 0, target_gap=0.0, tie=True))
    only = one(Response("x", utility=9.0), Response("y", utility=1.0))
    assert utilities(mk.grade(only, "given")) == [9.0, 1.0]
    with pytest.raises(BadInput, match="neither a utility nor"):
        mk.grade(one(*graded(1.0, 2.0)), "given")


def test_grade_then_debias_is_the_same_as_both_at_once():
    rng = np.random.default_rng(0)
    groups = Groups.from_iterable(
        Group(str(n), "?", tuple(Response("x" * int(k), grade=float(k) + rng.normal()) for k in rng.integers(5, 60, 3)))
        for n in range(20)
    )
    at_once = utilities(mk.grade(groups, "ratings", gamma=0.2, debias=["length:log=false"]))
    after = utilities(mk.grade(mk.grade(groups, "ratings", gamma=0.2), "given", debias=["length:log=false"]))
    assert at_once == pytest.approx(after)


def test_pairs_that_grading_makes_are_in_the_order_of_the_grade():
    """The longer answer has the higher mean; freed of length it is the worse one, and nobody labelled the pair."""
    groups = Groups.from_iterable(
        Group(str(n), "?", (rated("x" * 400, 3.0, 4.0), rated("x" * (10 + n), 2.9, 3.9))) for n in range(5)
    )
    made = grade_and_report(groups, "raters", options={"gamma": 1.0}, debias=["length_tanh:phi=1"])
    assert {(pair.chosen, pair.rejected) for group in made.groups for pair in group.pairs} == {(1, 0)}
    assert all(pair.target_gap > 0 for group in made.groups for pair in group.pairs)
    assert made.report["after"]["agrees with the label"] is None


def test_a_way_that_writes_its_evidence_itself(monkeypatch):
    def mine(groups, *, size=1.0):
        return Grading(groups.map(lambda group: group), {"fitted": {"size": size}})

    monkeypatch.setitem(GRADERS, "mine", mine)
    monkeypatch.setattr(grading, "WRITE_THEMSELVES", {"mine"})
    made = grade_and_report(one(*graded(1.0, 2.0)), "mine", options={"size": 2})
    assert made.report["fitted"] == {"size": 2.0}
    assert made.report["after"]["responses"] == 2
    with pytest.raises(BadInput, match="debias the file that it makes, with how=given"):
        grade_and_report(one(*graded(1.0, 2.0)), "mine", debias=["length"])


def test_gamma_auto_is_what_the_evidence_speaks_for():
    """Raters of the built-in world, who say how many logits a grade is worth."""
    from marginkit.world import make_world

    groups = make_world("high", prompts=60, demonstrations=1, dev=1, test=1).graded
    made = grade_and_report(groups, "ratings", options={"gamma": "auto"})
    gamma = made.report["options"]["gamma"]
    assert 0.3 < gamma < 3
    assert "from the agreement of raters" in made.report["fitted"]["gamma from"]
    grades = [response.grade for group in groups for response in group.responses]
    assert utilities(made.groups) == pytest.approx([gamma * grade for grade in grades])
    with pytest.raises(BadInput, match="gamma=auto is chosen per grade"):
        mk.grade(groups, "ratings", gamma="auto", map="zscore")


@pytest.mark.parametrize(
    ("how", "options", "debias"),
    [
        ("ratings", {"gamma": "much"}, []),
        ("ratings", {"gamma": True}, []),
        ("raters", {"gamma": [1]}, []),
        ("ratings", {"gamma": -1.0}, []),
        ("ratings", {"gamma": 1.0, "weights": 5}, []),
        ("ratings", {"gamma": 1.0, "weights": {"a": "b"}}, []),
        ("ratings", {"gamma": 1.0, "map": 3}, []),
        ("ratings", {"gamma": 1.0, "by": "model"}, []),
        ("raters", {"prior": "none"}, []),
        ("raters", {}, ["length_tanh:phi=much"]),
        ("ranks", {"l2": "much"}, []),
        ("ranks", {"evidence": "elo"}, []),
        ("judge_probs", {"clip": 2}, []),
    ],
)
def test_an_option_out_of_range_or_of_another_kind_is_bad_input(how, options, debias):
    groups = one(rated("x", 0.5, 0.25), rated("longer", 0.25, 0.0))
    with pytest.raises(BadInput):
        grade_and_report(groups, how, options=options, debias=debias)


def test_unknown_ways_options_and_biases_are_named():
    groups = one(*graded(1.0, 2.0))
    with pytest.raises(BadInput, match="how='rating': the ways to grade are votes, ratings"):
        mk.grade(groups, "rating")
    with pytest.raises(BadInput, match="how=ratings: unknown option gama; did you mean gamma"):
        mk.grade(groups, "ratings", gama=1.0)
    with pytest.raises(BadInput, match="write NAME or NAME:OPTION=VALUE"):
        mk.grade(groups, "ratings", gamma=1.0, debias=["length:log"])


# -- What training makes of it


def test_votes_that_were_regraded_do_not_speak_any_more():
    """The label the loss sees is the grade, not the votes that the source still has."""
    from tests.tiny import tokenizer

    from marginkit.data.encoding import Encoder

    groups = one(*graded(4.0, 1.0), pairs=(Pair(0, 1, votes=(1.0, 4.0, 0.0)),))
    made = mk.grade(groups, "ratings", gamma=0.5)
    encoded, _ = Encoder(tokenizer(), max_length=64).encode(made)
    [row] = list(encoded)
    assert row.utility == [2.0, 0.5]
    assert np.isnan(row.prob).all()
    assert np.isnan(row.target_gap).all()


@pytest.mark.parametrize("how", ["ratings", "raters"])
def test_a_graded_file_trains_without_gamma(how, tmp_path, monkeypatch):
    """From ratings to a file to a run: the target in the score tables is the grade that was written."""
    monkeypatch.chdir(tmp_path)
    groups = Groups.from_iterable(
        Group(
            str(n),
            f"Question {n}?",
            (rated(f"A full answer {n}.", 4.0, 5.0), rated(f"No idea {n}.", 1.0 + n % 3, 2.0)),
            split=("train", "train", "dev", "test")[n % 4],
        )
        for n in range(24)
    )
    with pytest.raises(BadInput, match=r"target\.gamma is missing"):
        mk.train("mmpo_rm", [*TINY, "train.max_steps=2"], train=groups)
    mk.write_groups(mk.grade(groups, how, gamma=0.5), "graded.jsonl")
    run = mk.train("mmpo_rm", [*TINY, "data.train=graded.jsonl", "train.max_steps=2", "out=run"])
    again, _ = mk.read_groups("graded.jsonl")
    pairs = mk.score(run, mk.make_pairs(again, "all")).pairs.to_pylist()
    for row in pairs:
        group = next(group for group in again if group.id == row["group"])
        if how == "ratings":
            u = [group.responses[row[side]].utility for side in ("chosen", "rejected")]
            assert row["target_gap"] == pytest.approx(u[0] - u[1], abs=1e-5)
        else:
            assert row["label_prob"] == pytest.approx(group.pairs[0].prob)
    with pytest.raises(BadInput, match="needs no gamma"):
        mk.train("mmpo_rm", [*TINY, "data.train=graded.jsonl", "train.max_steps=2", "target.gamma=1", "out=other"])


# -- The real files


def test_the_fit_to_real_votes_is_the_ridge_fit_that_comes_with_them():
    groups, _ = mk.read_groups(real("ukpconvarg_votes"))
    made = utilities(mk.grade(groups, "ranks"))
    stored = [response.grade for group in groups for response in group.responses]
    assert np.corrcoef(made, stored)[0, 1] > 0.95


def test_the_fit_to_human_comparisons_goes_with_the_share_of_wins():
    groups, _ = mk.read_groups(real("fgrlhf_human_graded"))
    made = grade_and_report(groups, "ranks")
    stored = [response.grade for group in groups for response in group.responses]
    assert np.corrcoef(utilities(made.groups), stored)[0, 1] > 0.95
    assert made.report["superseded"] == {"comparisons": 3000}


def test_alpaca_eval_logits_are_those_of_its_annotations():
    path = real("alpacaeval_graded")
    groups, _ = mk.read_groups(path)
    made = utilities(mk.grade(groups, "judge_probs", clip=1e-5))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    stored = np.clip([response["logit"] for row in rows for response in row["responses"]], -11.5, 11.5)
    assert np.abs(np.array(made) - stored).max() < 0.05


def test_real_raters_are_half_noise():
    groups, _ = mk.read_groups(real("feedbackqa_human_graded"))
    made = grade_and_report(groups, "raters", options={"gamma": 1.0})
    assert 0.3 < made.report["fitted"]["noise"]["reliability"] < 0.7
    plain = grade_and_report(groups, "ratings", options={"gamma": 1.0})
    assert made.report["after"]["gap"][2] < plain.report["after"]["gap"][2]
