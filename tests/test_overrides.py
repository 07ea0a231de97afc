"""Parts of a recipe put in place by a user: another function by its name, what it shares, the SFT term, the seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import marginkit as mk
from marginkit.assembly import build_loss
from marginkit.core import objectives, targets
from marginkit.errors import BadInput
from marginkit.registry import load_recipe, offered, recipe_names


def message_of(call: Callable[[], object]) -> str:
    """The one line that a refusal says."""
    with pytest.raises(BadInput) as refusal:
        call()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_part_is_replaced_by_a_short_name_of_the_catalogue() -> None:
    """With the function's own parameters, checked as the catalogue has them; defaults are the function's."""
    made = build_loss(load_recipe("dpo"), {"target": {"name": "constant_margin", "margin": 0.5}})
    assert made.target is targets.constant_margin
    assert made.target_options == {"margin": 0.5}
    assert build_loss(load_recipe("dpo"), {"objective": {"name": "hinge"}}).objective is objectives.hinge
    same = build_loss(load_recipe("mmpo"), {"target": {"name": "soft_label", "gamma": 0.3}})
    assert same.target_options == {"gamma": 0.3}
    message = message_of(lambda: build_loss(load_recipe("dpo"), {"target": {"name": "constant_prob", "eps": 0.7}}))
    assert message == "target.eps: must be >= 0 and < 0.5, got 0.7"
    message = message_of(lambda: build_loss(load_recipe("dpo"), {"target": {"name": "constant_margin"}}))
    assert message == "target.margin: marginkit.core.targets:constant_margin needs it, and it was not given"
    message = message_of(lambda: build_loss(load_recipe("mmpo"), {"objective": {"name": "hinge"}}))
    assert message == "target soft_label makes a soft label, which objective hinge does not read"


def test_a_part_that_shares_an_option_finds_it_in_any_recipe() -> None:
    """The beta of AMaPO is that of the reward, unless the user says otherwise."""
    made = build_loss(load_recipe("simpo"), {"target": {"name": "amapo"}, "reward": {"beta": 2.5}})
    assert made.target_options == {"beta": 2.5}
    made = build_loss(load_recipe("simpo"), {"target": {"name": "amapo", "beta": 1.5}, "reward": {"beta": 2.5}})
    assert made.target_options == {"beta": 1.5}


def test_a_shared_option_that_is_not_there_is_refused() -> None:
    """It names what is missing and where it would come from."""
    message = message_of(lambda: build_loss(load_recipe("amapo"), {"reward": {"name": "log_odds"}}))
    assert message == (
        "target.beta: marginkit.core.adaptive:amapo takes the beta of the reward, but none is given to "
        "marginkit.core.rewards:log_odds; give reward.beta if it has one, or target.beta"
    )
    given = {"reward": {"name": "log_odds"}, "target": {"name": "amapo", "beta": 1.0}}
    assert build_loss(load_recipe("orpo"), given).target_options == {"beta": 1.0}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"reward": {"name": "head"}}, "recipe dpo trains a policy, which has no `head`; its parts need it"),
        (
            "bt",
            {"reward": {"name": "implicit", "beta": 0.1}},
            "recipe bt trains a reward model, which has no `logp`; its parts need it",
        ),
        (
            "dpo",
            {"target": {"name": "aplot", "eps": 0.1, "semantic": 0.1}},
            "recipe dpo trains a policy, which has no `head`; its parts need it",
        ),
        (
            "bt",
            {"target": {"name": "wpo_weight", "clamp": True}},
            "recipe bt trains a reward model, which has no `log_collision`; its parts need it",
        ),
        (
            "sft",
            {"objective": {"name": "nll"}, "reward": {"name": "implicit", "beta": 0.1}},
            "objective nll needs log-probabilities: use reward logp, not implicit",
        ),
        (
            "bt",
            {"objective": {"name": "nca"}},
            "objective nca looks at each reward by itself, but the zero of reward head means nothing; "
            "use an anchored reward (implicit, implicit_mean) or an objective on the gap",
        ),
    ],
)
def test_parts_that_do_not_fit_the_model_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    """One line, by the recipe's name."""
    assert message_of(lambda: build_loss(load_recipe(name), options)) == message


POLICIES = [name for name in recipe_names() if load_recipe(name).kind == "policy"]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_recipe_takes_an_sft_term(name: str) -> None:
    """Through `mk.recipe` and as `objective.sft_weight`, under the recipe's own word where it has one."""
    spec = load_recipe(name)
    own = {parameter: option for option in spec.objective.options if (parameter := spec.objective.parameter(option))}
    for parameter, value in (("sft_weight", 0.7), ("sft_per", "sequence")):
        if parameter in spec.objective.fixed:
            with pytest.raises(BadInput, match="no such option"):
                mk.recipe(name, **{parameter: value})
            continue
        option = own.get(parameter, parameter)
        assert option in offered(spec, "objective")
        assert getattr(mk.recipe(name, **{option: value}), parameter) == value
        assert getattr(build_loss(spec, {"objective": {option: value}}), parameter) == value


def test_an_sft_term_stays_when_the_objective_is_replaced() -> None:
    """The loss adds it, not the function."""
    made = build_loss(load_recipe("dpo"), {"objective": {"name": "hinge", "sft_weight": 0.5, "sft_per": "sequence"}})
    assert (made.sft_weight, made.sft_per, made.objective_options) == (0.5, "sequence", {})


@pytest.mark.parametrize(
    ("name", "objective", "message"),
    [
        ("dpo", {"sft_weight": -1.0}, "objective.sft_weight: must be >= 0, got -1.0"),
        (
            "dpo",
            {"sft_per": "tokens"},
            "objective.sft_per: must be token | sequence, got 'tokens'; did you mean token?",
        ),
        ("bt", {"sft_weight": 1.0}, "objective.sft_weight: recipe bt has no such option (known: none)"),
        ("sft", {"sft_weight": 1.0}, "objective.sft_weight: recipe sft has no such option (known: none)"),
        (
            "bt",
            {"name": "hinge", "sft_weight": 1.0},
            "objective.sft_weight: a reward model has no log-probabilities to train",
        ),
        ("slic", {"sft_weight": 1.0}, "objective.sft_weight: recipe slic has no such option (known: objective.lam)"),
    ],
)
def test_an_sft_term_out_of_place_is_refused(name: str, objective: dict[str, Any], message: str) -> None:
    """Exact text."""
    assert message_of(lambda: build_loss(load_recipe(name), {"objective": objective})) == message


@pytest.mark.parametrize("name", recipe_names())
def test_the_seed_of_all_chance_is_the_callers(name: str) -> None:
    """Through the public surface and through the run's own way."""
    assert mk.recipe(name, seed=3).seed == 3
    assert build_loss(load_recipe(name), {}, seed=3).memory.seed == 3


def test_a_share_is_found_by_what_it_means() -> None:
    """IPO's tau is the beta of its reward, under whatever name a reward put in place has it; or the user gives it."""
    other = build_loss(load_recipe("ipo"), {"reward": {"name": "implicit_mean", "beta": 2.0}})
    assert other.target_options == {"tau": 2.0}
    assert build_loss(load_recipe("dpo"), {"target": {"name": "regularised"}}).target_options == {"tau": 0.1}
    assert build_loss(load_recipe("sppo"), {"target": {"name": "kto_zero"}}).target_options["beta"] == 1.0
    given = {"reward": {"name": "log_odds"}, "target": {"beta": 3.0}}
    assert build_loss(load_recipe("amapo"), given).target_options["beta"] == 3.0


@pytest.mark.parametrize(("name", "weight", "per"), [("orpo", 1.0, "token"), ("slic", 0.1, "sequence")])
def test_another_objective_keeps_the_sft_term_of_the_recipe(name: str, weight: float, per: str) -> None:
    """The term belongs to the recipe; only the loss of the pair is replaced."""
    loss = build_loss(load_recipe(name), {"objective": {"name": "squared"}})
    assert (loss.sft_weight, loss.sft_per) == (weight, per)
    without = build_loss(load_recipe(name), {"objective": {"name": "squared", "sft_weight": 0.0}})
    assert without.sft_weight == 0.0


def test_compose_holds_options_to_their_ranges() -> None:
    """As the catalogue does for recipes."""
    for options in ({"beta": -0.1, "eps": 0.1}, {"beta": 0.1, "eps": 0.7}):
        assert "must be" in message_of(
            lambda given=options: mk.compose("implicit", "constant_prob", "logistic", **given)
        )
    with pytest.raises(BadInput, match="sft_per must be token"):
        mk.compose("implicit", "none", "logistic", beta=0.1, sft_weight=1.0, sft_per="sequences")
    with pytest.raises(BadInput, match="sft_weight must be >= 0"):
        mk.compose("implicit", "none", "logistic", beta=0.1, sft_weight=-1.0)


def test_compose_does_not_guess_which_of_two_is_meant() -> None:
    """A beta of the reward and another of the objective are two things; the one that AMaPO shares is one."""
    message = message_of(lambda: mk.compose("implicit", "none", "calibrated", beta=0.001, kappa=0.5))
    assert message.startswith("compose(beta=...): reward implicit and objective calibrated both have it")
    own = mk.compose("implicit", "none", "calibrated", beta=1.0, kappa=0.5, objective_options={"beta": 0.001})
    recipe = mk.recipe("cal_dpo", beta=0.001, kappa=0.5)
    logp, ref = torch.tensor([[-40.0, -66.0]]), torch.tensor([[-42.0, -60.0]])
    scores = mk.PairScores(logp=logp, ref_logp=ref)
    assert own(scores).item() == recipe(scores).item()
    assert mk.compose("per_token", "amapo", "logistic", beta=2.0).target_options["beta"] == 2.0


def test_a_tie_is_a_bool() -> None:
    """~1 is -2, which counts: an integer tie would be trained as a win."""
    with pytest.raises(BadInput, match=r"PairScores.tie is torch.int64, expected torch.bool"):
        mk.PairScores(head=torch.zeros(2, 2), tie=torch.tensor([0, 1]))


def test_an_option_of_a_users_own_function_is_held_to_its_annotation(tmp_path: Path) -> None:
    """One line, before anything is loaded; not a TypeError in the first step."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from marginkit.core.parts import objective\n\n@objective()\n"
        "def mine(rewards, target, *, room: float = 1.0, name: str | None = None):\n    return room - rewards.gap\n"
    )
    message = message_of(lambda: build_loss(load_recipe("dpo"), {"objective": {"name": f"{path}:mine", "room": "abc"}}))
    assert message == f"objective.room: {path}:mine takes float, got 'abc'"
    assert message_of(lambda: build_loss(load_recipe("dpo"), {"objective": {"name": f"{path}:mine", "name_": 1}}))
    assert build_loss(load_recipe("dpo"), {"objective": {"name": f"{path}:mine", "room": 2}}).objective_options == {
        "room": 2
    }


def test_compose_shares_what_a_run_shares() -> None:
    """IPO by hand: its target knows the reward's beta as tau."""
    assert mk.compose("implicit", "regularised", "squared", beta=0.3).target_options == {"tau": 0.3}
