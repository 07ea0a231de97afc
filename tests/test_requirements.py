"""What a run refuses before anything is trained, and that nothing trained is ever thrown away."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from marginkit.config import RunConfig, resolve
from marginkit.control import twin_of
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Response
from marginkit.run import score, train

FRESH = (
    "model.path=fresh",
    *(f"model.fresh.{key}" for key in ("layers=1", "hidden=16", "heads=2", "vocab=300")),
    "train.use_cpu=true",
    "train.save_strategy=no",
    "train.max_steps=2",
    "train.prompts_per_step=4",
)


def start(recipe: str, groups: Groups, out: Path, *more: str) -> object:
    """A short run."""
    return train(recipe, [*FRESH, f"out={out}", *more], train=groups)


def changed(groups: Groups, change: Callable[[Group], Group]) -> Groups:
    """Every group changed."""
    return Groups.from_iterable(change(group) for group in groups)


def without_grades(split: str) -> Callable[[Group], Group]:
    """Takes the grades of a split away, and gives it pairs in the order of the responses."""

    def change(group: Group) -> Group:
        if group.split != split:
            return group
        bare = tuple(replace(response, grade=None) for response in group.responses)
        return replace(group, responses=bare, pairs=(tiny.Pair(0, 1),))

    return change


def equal_grades(group: Group) -> Group:
    """All responses as good as the first."""
    return replace(group, responses=tuple(replace(response, grade=2.0) for response in group.responses))


@pytest.mark.parametrize("recipe", ["bt_margin", "mmpo"])
def test_evaluation_data_without_evidence_is_refused_before_training(recipe: str, tmp_path: Path) -> None:
    """Not in the middle of it, at the first evaluation."""
    groups = changed(tiny.world(), without_grades("dev"))
    more = ["target.gamma=0.3"] if recipe == "mmpo" else []
    with pytest.raises(BadInput, match=r"^evaluation data \(data.eval_split=null leaves it out\): recipe "):
        start(recipe, groups, tmp_path / "out", "data.pairs=all", *more)
    assert not (tmp_path / "out").exists()


def test_data_of_ties_alone_is_no_data_for_a_hard_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Refused where all pairs are ties, counted where some are; a soft label trains on them."""
    with pytest.raises(BadInput, match=r"all \d+ pairs are ties, which recipe dpo leaves out: nothing to train on"):
        start("dpo", changed(tiny.world(), equal_grades), tmp_path / "dpo")
    with caplog.at_level(logging.INFO, logger="marginkit"):
        start("dpo", tiny.world(), tmp_path / "some")
    assert any("pairs are ties: recipe dpo leaves them out" in record.message for record in caplog.records)
    start("mmpo", changed(tiny.world(), equal_grades), tmp_path / "mmpo", "target.gamma=0.3")


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("odpo", r"train.control=odpo: recipe odpo needs a grade gap"),
        ("mmpo", r"train.control=mmpo: recipe mmpo needs to know how much better"),
    ],
)
def test_what_the_control_needs_is_asked_for_before_the_run(control: str, message: str, tmp_path: Path) -> None:
    """A run of hours does not end in a refusal of its twin."""
    groups = tiny.world()
    for split in ("train", "dev", "test"):
        groups = changed(groups, without_grades(split))
    with pytest.raises(BadInput, match=message):
        start("dpo", groups, tmp_path / "out", f"train.control={control}")
    assert not (tmp_path / "out").exists()


def test_a_regression_on_single_responses_is_trained_and_kept(tmp_path: Path) -> None:
    """There are no pairs to judge: said, not raised, and the model stays."""
    groups = Groups.from_iterable(
        Group(f"g{n}", f"question {n}", (Response(f"answer {n} of some words", grade=float(n % 5)),), split=split)
        for n, split in enumerate(["train"] * 12 + ["dev"] * 4 + ["test"] * 4)
    )
    run = train("regression", [*FRESH, f"out={tmp_path / 'out'}"], train=groups)
    assert run.metrics is None
    assert (run.checkpoint / "model.safetensors").is_file()
    assert score(run, groups).responses.num_rows == 20


def test_a_run_that_has_trained_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused afterwards."""
    import marginkit.run

    def refuse(*_: object) -> None:
        raise BadInput("too late")

    monkeypatch.setattr(marginkit.run, "_judge", refuse)
    with pytest.raises(BadInput, match="too late"):
        start("bt", tiny.world(), tmp_path / "out")
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_every_response_is_scored_with_pairs_or_without(tmp_path: Path) -> None:
    """New answers have no grades; a group of one response has no pair. Both have rewards."""
    run = train("bt", [*FRESH, f"out={tmp_path / 'out'}"], train=tiny.world())
    new = Groups.from_iterable(
        [
            Group("one", "question", (Response("alone"),)),
            Group("two", "question", (Response("good answer"), Response("another answer"))),
            Group("graded", "question", (Response("good", grade=3.0), Response("bad", grade=1.0))),
        ]
    )
    tables = score(run, new)
    assert tables.responses["group"].to_pylist() == ["one", "two", "two", "graded", "graded"]
    assert tables.pairs["group"].to_pylist() == ["graded"]
    assert score(run, new[:2]).responses.num_rows == 3


# --------------------------------------------------------------------------------------------------- the control


def twin(recipe: str, control: str, *more: str) -> RunConfig:
    """The configuration of a control."""
    return twin_of(resolve(recipe, ["model.path=x", f"train.control={control}", *more]), control, Path("c"))


def test_the_control_keeps_the_scale_of_the_reward_under_any_name() -> None:
    """IPO's tau is DPO's beta; a reward of another kind has its own scale."""
    assert twin("ipo", "dpo", "reward.tau=0.5").reward == {"beta": 0.5}
    assert twin("dpo", "ipo", "reward.beta=0.5").reward == {"tau": 0.5}
    assert twin("simpo", "dpo", "reward.beta=7").reward == {}
    assert twin("ipo", "dpo", "reward.name=implicit_mean", "reward.beta=3").reward == {
        "name": "marginkit.core.rewards:implicit_mean",
        "beta": 3,
    }


def test_the_control_keeps_the_sft_term_and_drops_what_it_does_not_read() -> None:
    """Otherwise the difference would be that of two things."""
    assert twin("simpo", "dpo", "objective.sft_weight=0.5").objective == {"sft_weight": 0.5}
    assert twin("dpo", "simpo", "model.reference=ref").model.reference is None
    assert twin("amapo", "simpo", "train.population=window").train.population is None


def test_the_hard_twin_of_a_composed_recipe_is_the_recipe_itself() -> None:
    """`simpo target.name=soft_label` is not simpo; plain simpo is its control."""
    composed = twin("simpo", "simpo", "target.name=soft_label", "target.gamma=0.5")
    assert (composed.recipe, composed.target) == ("simpo", {})
    with pytest.raises(BadInput, match="the recipe is its own control"):
        resolve("simpo", ["train.control=simpo"])


def test_keys_for_the_control_alone_are_accepted(tmp_path: Path) -> None:
    """A population for a control that looks at other pairs."""
    run = train(
        "simpo",
        [*FRESH, f"out={tmp_path / 'out'}", "train.control=amapo", "train.population=window"],
        train=tiny.world(),
    )
    assert run.control is not None
    assert run.control.config.train.population == "window"


@pytest.mark.parametrize(("recipe", "control"), [("dpo", "bt"), ("bt", "dpo"), ("dpo", "sft")])
def test_a_control_of_another_kind_is_refused_with_a_way_out_that_works(recipe: str, control: str) -> None:
    """Not with the recipe itself, which is refused next."""
    with pytest.raises(BadInput) as refusal:
        resolve(recipe, [f"train.control={control}"])
    assert str(refusal.value).endswith("; leave it out")


def test_the_best_checkpoint_needs_checkpoints_where_it_evaluates(tmp_path: Path) -> None:
    """In our words, with the key to set."""
    with pytest.raises(BadInput, match=r"train.load_best_model_at_end: needs train.save_strategy=steps"):
        start("bt", tiny.world(), tmp_path / "o", "train.load_best_model_at_end=true", "train.eval_strategy=steps")
