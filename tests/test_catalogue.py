"""The catalogue is data: recipes, functions and signatures say the same, and a typo is answered in one line."""

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch

import marginkit as mk
from marginkit.assembly import build_loss
from marginkit.core import (
    adaptive,
    anchored,
    composition,
    evidence,
    loss,
    memory,
    objectives,
    parts,
    rewards,
    scored,
    targets,
    tensors,
    transport,
)
from marginkit.core.parts import Part
from marginkit.core.tensors import PairScores
from marginkit.errors import BadInput
from marginkit.registry import (
    PARTS,
    RECIPES,
    SFT_OPTIONS,
    Option,
    Recipe,
    did_you_mean,
    function_digest,
    load_function,
    load_recipe,
    read_yaml,
    recipe_names,
)

MODULES = (rewards, targets, scored, adaptive, transport, objectives, anchored)
SFT = set(SFT_OPTIONS)

# Recipe -> reward, target, objective, and the options under the paper's names: what the catalogue promises.
CATALOGUE: dict[str, tuple[str, str | None, str, str]] = {
    "sft": ("logp", None, "nll", ""),
    "dpo": ("implicit", "none", "logistic", "beta"),
    "mmpo": ("implicit", "soft_label", "logistic", "beta gamma"),
    "cdpo": ("implicit", "constant_prob", "logistic", "beta eps"),
    "rdpo": ("implicit", "none", "robust_logistic", "beta eps"),
    "odpo": ("implicit", "log_grade_margin", "logistic", "beta alpha form outside"),
    "rpo_squared": ("implicit", "matched_gap", "squared", "beta eta"),
    "rpo_forward_kl": ("implicit", "matched_gap", "kl_forward", "beta eta"),
    "rpo_backward_kl": ("implicit", "matched_gap", "kl_backward", "beta eta"),
    "ipo": ("implicit", "regularised", "squared", "tau"),
    "ipo_mean": ("implicit_mean", "regularised", "squared", "tau"),
    "slic": ("logp", "constant_margin", "hinge", "delta lam"),
    "rso_hinge": ("implicit", "constant_margin", "hinge", "beta"),
    "simpo": ("per_token", "constant_margin", "logistic", "beta gamma"),
    "gamma_simpo": ("per_token", "gamma_po", "logistic", "beta gamma tau pool solver"),
    "gamma_dpo": ("implicit", "gamma_po", "logistic", "beta gamma tau pool solver"),
    "amapo": ("per_token", "amapo", "logistic", "beta form"),
    "madpo": ("implicit", "madpo_weight", "logistic", "beta c_max c_min tau lam branch"),
    "bpo": ("implicit", "none", "balanced", "beta alpha f"),
    "repo": ("per_token", "token_margin", "hinge", "gamma gamma_end"),
    "repo_plus": ("per_token", "token_margin", "clipped_logistic", "beta gamma"),
    "cal_dpo": ("implicit", "none", "calibrated", "beta kappa"),
    "beta_dpo": ("implicit", "beta_scale", "logistic", "beta a rho ema"),
    "alpha_dpo": ("per_token", "alpha_margin", "logistic", "beta gamma alpha ema"),
    "r_dpo": ("implicit", "length_margin", "logistic", "beta alpha sign"),
    "wpo": ("implicit", "wpo_weight", "logistic", "beta clamp"),
    "dpop": ("implicit", "none", "dpop", "beta lam"),
    "nca": ("implicit", "none", "nca", "beta"),
    "bco": ("implicit", "none", "bco", "beta"),
    "apo_zero": ("implicit", "none", "apo_zero", "beta"),
    "sppo": ("implicit", "none", "sppo", "eta"),
    "kto_pair": ("implicit", "kto_zero", "kto", "beta lam_d lam_u z0"),
    "orpo": ("log_odds", "constant_weight", "logistic", "lam"),
    "cpo": ("logp", "none", "logistic", "beta lam sft_per"),
    "bt": ("head", "none", "logistic", ""),
    "bt_margin": ("head", "grade_margin", "logistic", "scale"),
    "mmpo_rm": ("head", "soft_label", "logistic", "gamma"),
    "bt_scaled": ("head", "grade_weight", "logistic", "scale"),
    "bt_smooth": ("head", "constant_prob", "logistic", "eps"),
    "bt_focal": ("head", "none", "focal", "gamma"),
    "bt_centered": ("head", "none", "centred_logistic", "c"),
    "aplot": ("head", "aplot", "logistic", "eps semantic norm"),
    "regression": ("head", "grade_value", "value_squared", "scale"),
}


def declared() -> list[tuple[str, str, Callable[..., Any]]]:
    """(kind, `module:function`, function) of everything that the core declares."""
    return [
        (value.part.kind, f"{module.__name__}:{name}", value)
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(getattr(value, "part", None), Part) and value.__module__ == module.__name__
    ]


def used() -> list[Any]:
    """Every part of every recipe."""
    return [
        pytest.param(load_recipe(name), part, id=f"{name}-{part}")
        for name in recipe_names()
        for part in PARTS
        if getattr(load_recipe(name), part) is not None
    ]


def keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a function: its keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


# ------------------------------------------------------------------------------- catalogue == functions == signatures


def test_every_file_of_the_catalogue_is_a_recipe_of_its_own_name() -> None:
    """No file is left over, and each is found by the name that it states."""
    files = sorted(path.name for path in RECIPES.iterdir() if path.name != "__pycache__")
    assert files == [f"{name}.yaml" for name in recipe_names()]
    for name in recipe_names():
        assert load_recipe(name).name == name


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) | set(recipe_names())))
def test_the_catalogue_is_exactly_what_this_version_promises(name: str) -> None:
    """Every recipe, its three functions, and its options under the paper's names."""
    spec = load_recipe(name)
    found = [getattr(spec, part) and getattr(spec, part).function.rpartition(":")[2] for part in PARTS]
    assert (*found, set(spec.options())) == (*CATALOGUE[name][:3], set(CATALOGUE[name][3].split()))
    kind = "sft" if name == "sft" else "reward_model" if CATALOGUE[name][0] == "head" else "policy"
    assert spec.kind == kind


@pytest.mark.parametrize(("spec", "part"), used())
def test_a_part_names_a_function_declared_as_that_part(spec: Recipe, part: str) -> None:
    """The function exists and its decorator says the same."""
    function = load_function(getattr(spec, part).function)
    assert function.part.kind == part
    assert callable(function)


def pseudo(spec: Recipe, part: str) -> set[str]:
    """Parameters that no function has: the SFT term, which the loss itself adds."""
    return SFT if spec.kind == "policy" and part == "objective" else set()


@pytest.mark.parametrize(("spec", "part"), used())
def test_options_fixed_and_shared_are_the_keyword_only_parameters_of_the_function(spec: Recipe, part: str) -> None:
    """No option that nothing reads, no parameter that nobody can set, none set twice."""
    own = getattr(spec, part)
    parameters = keyword_only(load_function(own.function))
    named = [own.parameter(option) for option in own.options] + [*own.fixed, *own.shares]
    assert sorted(named) == sorted(set(named))
    assert set(named) - pseudo(spec, part) == set(parameters)
    for option, found in own.options.items():
        assert found.parameter != option, f"{spec.name}: parameter repeats the name of {option}"


@pytest.mark.parametrize(("spec", "part"), used())
def test_the_type_of_an_option_is_that_of_its_parameter(spec: Recipe, part: str) -> None:
    """Choices are the Literal's, in its order; what may be left open may be None; fixed values fit too."""
    own = getattr(spec, part)
    parameters = keyword_only(load_function(own.function))
    for option, found in own.options.items():
        if own.parameter(option) in pseudo(spec, part):
            assert found.type == SFT_OPTIONS[own.parameter(option)].type
            assert found.choices == SFT_OPTIONS[own.parameter(option)].choices
            continue
        annotation = parameters[own.parameter(option)].annotation
        if found.choices:
            assert get_args(annotation) == found.choices
        else:
            kinds = get_args(annotation) or (annotation,)
            assert kinds[0].__name__ == found.type
            assert (type(None) in kinds) == (found.default is None), f"{spec.name}.{option}"
    for parameter, value in own.fixed.items():
        if parameter not in pseudo(spec, part):
            annotation = parameters[parameter].annotation
            assert type(value) in (get_args(annotation) or (annotation,)), f"{spec.name}: fixed {parameter}={value!r}"


@pytest.mark.parametrize(("spec", "part"), used())
def test_what_a_part_shares_is_an_option_of_another_part(spec: Recipe, part: str) -> None:
    """`part.option`, under the paper's name."""
    for source in getattr(spec, part).shares.values():
        other, _, option = source.partition(".")
        assert other != part
        assert option in getattr(spec, other).options


@pytest.mark.parametrize(("spec", "part"), used())
def test_an_option_without_a_default_has_one_in_the_signature(spec: Recipe, part: str) -> None:
    """Left out, it must still be possible to call the function, which then says what is missing."""
    own = getattr(spec, part)
    parameters = keyword_only(load_function(own.function))
    for name, option in own.options.items():
        if option.default is None:
            assert parameters[own.parameter(name)].default is None, f"{own.function} needs {name}"


@pytest.mark.parametrize(("spec", "part"), used())
def test_defaults_are_in_range_and_options_say_what_they_are(spec: Recipe, part: str) -> None:
    """A default passes its own check unchanged; help, unit and source are there."""
    for name, option in getattr(spec, part).options.items():
        assert option.check(name, option.default) == option.default
        assert option.help
        assert option.source
        assert option.unit or option.type in ("bool", "str"), f"{spec.name}.{name} has no unit"


@pytest.mark.parametrize("name", recipe_names())
def test_option_names_are_unique_across_the_parts_of_a_recipe(name: str) -> None:
    """Otherwise `mk.recipe(name, option=...)` would set only one of two."""
    spec = load_recipe(name)
    names = [option for part in PARTS if (own := getattr(spec, part)) is not None for option in own.options]
    assert sorted(names) == sorted(set(names))
    assert set(spec.options()) == set(names)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_with_its_defaults(name: str) -> None:
    """Through the public surface: options by the functions' own names, what is fixed, and what is shared."""
    spec = load_recipe(name)
    built = mk.recipe(name)
    assert built.name == name
    assert built.seed == 0
    for part in PARTS:
        own = getattr(spec, part)
        wanted: dict[str, Any] = {}
        if own is not None:
            wanted = {own.parameter(option): found.default for option, found in own.options.items()} | own.fixed
            for parameter, source in own.shares.items():
                other, _, option = source.partition(".")
                wanted[parameter] = getattr(spec, other).options[option].default
            assert getattr(built, part) is load_function(own.function) or own.function.startswith("/")
        assert built.sft_weight == wanted.pop("sft_weight", 0.0) or part != "objective"
        assert built.sft_per == wanted.pop("sft_per", "token") or part != "objective"
        assert getattr(built, f"{part}_options") == wanted


@pytest.mark.parametrize("name", recipe_names())
def test_every_option_reaches_the_function_that_it_belongs_to(name: str) -> None:
    """Another value under the paper's name arrives under the function's, in every part that shares it."""
    spec = load_recipe(name)
    for option, (part, found) in spec.options().items():
        own = getattr(spec, part)
        value: Any
        if found.type == "bool":
            value = not found.default
        elif found.choices:
            value = next(choice for choice in found.choices if choice != found.default)
        elif found.type == "int":
            value = found.default + 1
        else:
            value = 0.3 if found.default is None else 0.9 * found.default if found.default else 0.1
        built = mk.recipe(name, **{option: value})
        parameter = own.parameter(option)
        got = getattr(built, parameter) if parameter in SFT else getattr(built, f"{part}_options")[parameter]
        assert got == value
        for other in PARTS:
            shared = getattr(spec, other)
            for word, source in {} if shared is None else shared.shares.items():
                if source == f"{part}.{option}":
                    assert getattr(built, f"{other}_options")[word] == value


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_where_it_comes_from(name: str) -> None:
    """A summary, a formula, a paper and its published result; version 1 or later."""
    spec = load_recipe(name)
    assert spec.summary
    assert spec.formula
    assert spec.paper.title
    assert spec.published
    assert spec.version >= 1
    assert all(line.strip() for line in (*spec.reconstructed, *spec.deviations))
    assert (spec.target is None) == (spec.kind == "sft")


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_function_calls_reconstructed_its_recipe_does_too(name: str) -> None:
    """A reader of `marginkit list` meets the same caution as a reader of the docstring."""
    spec = load_recipe(name)
    marked = [
        own.function
        for part in PARTS
        if (own := getattr(spec, part)) is not None
        and "reconstructed" in str(inspect.getdoc(load_function(own.function)))
    ]
    assert spec.reconstructed or not marked, f"{marked} say reconstructed"


def test_every_declared_function_is_used_by_a_recipe() -> None:
    """Catalogue == functions: what no recipe names, no user finds."""
    named = {
        getattr(load_recipe(name), part).function
        for name in recipe_names()
        for part in PARTS
        if getattr(load_recipe(name), part)
    }
    assert {target for _, target, _ in declared()} == named


def test_training_settings_of_recipes_are_arguments_of_the_installed_trainer() -> None:
    """A renamed TrainingArguments field is seen here, not in a run; read from its source, without importing it."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    [arguments] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"]
    fields = {
        node.target.id
        for node in arguments.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert "learning_rate" in fields
    for name in recipe_names():
        assert set(load_recipe(name).train) <= fields, name


# ---------------------------------------------------------------------------------------------------- docstrings


@pytest.mark.parametrize(("kind", "function"), [pytest.param(kind, fn, id=target) for kind, target, fn in declared()])
def test_a_declared_function_explains_itself(kind: str, function: Callable[..., Any]) -> None:
    """One line, the formula, Args for every parameter, Returns, an example and the source."""
    text = inspect.getdoc(function)
    assert text is not None
    for section in ("Args:", "Returns:", "Example:\n    >>> ", "Source: "):
        assert section in text, f"{function.__name__} has no {section.strip()}"
    arguments = text.split("Args:")[1].split("Returns:")[0]
    for name in inspect.signature(function).parameters:
        assert f"\n    {name}: " in arguments, f"{function.__name__} does not explain {name}"
    if kind == "reward":
        assert "r = " in text.splitlines()[0], f"{function.__name__}: the formula"


CORE = [*MODULES, composition, evidence, loss, memory, parts, tensors]


@pytest.mark.parametrize("module", CORE, ids=lambda m: m.__name__)
def test_everything_public_in_the_core_has_a_docstring(module: ModuleType) -> None:
    """Functions, classes and their public methods."""
    for name, value in vars(module).items():
        is_ours = getattr(value, "__module__", None) == module.__name__
        if name.startswith("_") or not is_ours or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        assert inspect.getdoc(value), f"{module.__name__}.{name}"
        for method, member in vars(value).items() if inspect.isclass(value) else ():
            if not method.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(value, method)), f"{module.__name__}.{name}.{method}"


# ------------------------------------------------------------------------------------------------------- messages


def message_of(call: Callable[[], object]) -> str:
    """The one line that a refusal says."""
    with pytest.raises(BadInput) as refusal:
        call()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mppo", "; did you mean mmpo?"),
        ("DPO2", ""),
        ("bt_margins", "; did you mean bt_margin?"),
        ("mmpo-rm", "; did you mean mmpo_rm?"),
        ("", ""),
        ("../recipes/dpo", ""),
    ],
)
def test_an_unknown_recipe_is_answered_with_the_nearest(name: str, hint: str) -> None:
    """Exact text; a path is no name."""
    expected = f"recipe {name!r} is not in the catalogue{hint} (known: {', '.join(recipe_names())})"
    assert message_of(lambda: mk.recipe(name)) == expected
    assert message_of(lambda: load_recipe(name)) == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mmpo", {"gama": 0.3}, "mmpo(gama=...): no such option; did you mean gamma? (known: beta, gamma)"),
        ("mmpo", {"alpha": 0.3}, "mmpo(alpha=...): no such option (known: beta, gamma)"),
        ("bt", {"beta": 0.3}, "bt(beta=...): no such option (known: none)"),
        ("dpo", {"gamma": 0.3}, "dpo(gamma=...): no such option (known: beta)"),
        ("mmpo", {"gamma": -1}, "target.gamma: must be >= 0, got -1"),
        ("dpo", {"beta": 0}, "reward.beta: must be > 0, got 0"),
        ("cdpo", {"eps": 0.5}, "target.eps: must be >= 0 and < 0.5, got 0.5"),
        ("mmpo", {"gamma": "high"}, "target.gamma: must be float (>= 0), got 'high'"),
        ("mmpo", {"gamma": True}, "target.gamma: must be float (>= 0), got True"),
        ("dpo", {"beta": [0.1]}, "reward.beta: must be float (> 0), got [0.1]"),
    ],
)
def test_a_wrong_option_is_named_with_its_range(name: str, options: dict[str, Any], message: str) -> None:
    """Exact text: the place, the rule and the value."""
    assert message_of(lambda: mk.recipe(name, **options)) == message


@pytest.mark.parametrize("value", [None, float("inf"), float("nan")])
def test_an_option_that_cannot_be_computed_with_is_refused_before_the_run(value: float | None) -> None:
    """None where there is a default, infinity and NaN would only fail in the first forward pass, or as a NaN loss."""
    assert message_of(lambda: mk.recipe("dpo", beta=value)).startswith("reward.beta: must be ")


def test_an_option_without_a_default_may_be_left_open() -> None:
    """gamma=None says that the data has evidence in logits."""
    assert mk.recipe("mmpo", gamma=None).target_options == {"gamma": None}
    assert mk.recipe("mmpo").target_options == {"gamma": None}


@pytest.mark.parametrize(
    ("option", "value", "checked"),
    [
        (Option(type="float", help="h"), 1, 1.0),
        (Option(type="int", help="h"), 2.0, 2),
        (Option(type="bool", help="h"), False, False),
        (Option(type="str", help="h", choices=("a", "b")), "b", "b"),
        (Option(type="float", help="h", le=1.0), 1.0, 1.0),
    ],
)
def test_an_option_gives_back_the_value_in_its_type(option: Option, value: Any, checked: Any) -> None:
    """A whole number is a float where a float is wanted, and the other way round."""
    found = option.check("x", value)
    assert found == checked
    assert type(found) is type(checked)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (Option(type="int", help="h", ge=1), 2.5, "x: must be int (>= 1), got 2.5"),
        (Option(type="int", help="h", ge=1), float("inf"), "x: must be int (>= 1), got inf"),
        (Option(type="int", help="h"), float("nan"), "x: must be int (any), got nan"),
        (Option(type="bool", help="h"), 1, "x: must be bool (any), got 1"),
        (Option(type="float", help="h", gt=0, le=1), 1.5, "x: must be > 0 and <= 1, got 1.5"),
        (
            Option(type="str", help="h", choices=("logistic", "hinge")),
            "hinges",
            "x: must be logistic | hinge, got 'hinges'; did you mean hinge?",
        ),
        (Option(type="str", help="h", choices=("a", "b")), 1, "x: must be str (a | b), got 1"),
    ],
)
def test_every_type_of_option_refuses_in_words(option: Option, value: Any, message: str) -> None:
    """Never a TypeError or an OverflowError."""
    assert message_of(lambda: option.check("x", value)) == message


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        (
            "target",
            {"gama": 1.0},
            "target.gama: recipe mmpo has no such option; did you mean gamma? (known: target.gamma)",
        ),
        (
            "objective",
            {"beta": 1.0},
            "objective.beta: recipe mmpo has no such option (known: objective.sft_weight, objective.sft_per)",
        ),
        (
            "target",
            {"name": "marginkit.core.objectives:logistic"},
            "target.name: marginkit.core.objectives:logistic is not declared with @target(...)",
        ),
        (
            "target",
            {"name": "marginkit.core.targets:soft_prob"},
            "target.name: marginkit.core.targets:soft_prob is not declared with @target(...)",
        ),
        (
            "target",
            {"name": "soft_labl"},
            "target.name=soft_labl: no target of that name; did you mean soft_label? (known: "
            f"{', '.join(sorted({found[1] for found in CATALOGUE.values() if found[1]}))}; "
            "your own: path/file.py:function)",
        ),
        (
            "objective",
            {"name": "soft_label"},
            "objective.name=soft_label: no objective of that name (known: "
            f"{', '.join(sorted({found[2] for found in CATALOGUE.values()}))}; your own: path/file.py:function)",
        ),
        (
            "target",
            {"function": "marginkit.core.targets:none"},
            "target.function: recipe mmpo has no such option (known: target.gamma)",
        ),
    ],
)
def test_an_option_under_the_wrong_part_is_refused(part: str, options: dict[str, Any], message: str) -> None:
    """As the configuration names it."""
    assert message_of(lambda: build_loss(load_recipe("mmpo"), {part: options})) == message


def test_a_part_that_a_recipe_does_not_have_takes_no_options() -> None:
    """SFT has no target."""
    message = message_of(lambda: build_loss(load_recipe("sft"), {"target": {"gamma": 0.3}}))
    assert message == "target.gamma: recipe sft has no target"


def test_did_you_mean_is_silent_where_nothing_is_near() -> None:
    """No guess is better than a wild one."""
    assert did_you_mean("mppo", ["dpo", "mmpo"]) == "; did you mean mmpo?"
    assert did_you_mean("zebra", ["dpo", "mmpo"]) == ""
    assert did_you_mean("zebra", []) == ""


# ----------------------------------------------------------------------------------------- a user's own functions

HINGE = '''"""Mine."""
import torch
from marginkit.core.parts import objective

@objective(uses={"margin"}, smooth=False)
def hinge(rewards, target, *, delta=1.0):
    return torch.relu(delta + target.margin - rewards.gap)

def undeclared(rewards, target):
    return rewards.gap
'''


def test_a_function_in_a_file_takes_the_place_of_a_part(tmp_path: Path) -> None:
    """`path/file.py:fn` with options of its own."""
    path = tmp_path / "mine.py"
    path.write_text(HINGE)
    scores = PairScores(head=torch.tensor([[0.5, 0.0], [3.0, 0.0]]))
    own = build_loss(load_recipe("bt"), {"objective": {"name": f"{path}:hinge", "delta": 2.0}})
    assert own(scores).tolist() == [1.5, 0.0]
    default = build_loss(load_recipe("bt"), {"objective": {"name": f"{path}:hinge"}})
    assert default(scores).tolist() == [0.5, 0.0]


def test_a_function_in_a_package_takes_the_place_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mypkg.mine:fn`."""
    (tmp_path / "its_package").mkdir()
    (tmp_path / "its_package" / "__init__.py").write_text("")
    (tmp_path / "its_package" / "mine.py").write_text(HINGE)
    monkeypatch.syspath_prepend(tmp_path)
    own = build_loss(load_recipe("bt"), {"objective": {"name": "its_package.mine:hinge"}})
    assert own(PairScores(head=torch.tensor([[0.5, 0.0]]))).tolist() == [0.5]
    assert function_digest("its_package.mine:hinge") == hashlib.sha256(HINGE.encode()).hexdigest()[:16]
    for name in ("its_package", "its_package.mine"):
        sys.modules.pop(name)


def test_the_digest_of_a_function_is_that_of_its_file(tmp_path: Path) -> None:
    """It changes with the file; marginkit's own functions have the version instead."""
    path = tmp_path / "mine.py"
    path.write_text(HINGE)
    before = function_digest(f"{path}:hinge")
    assert before == hashlib.sha256(HINGE.encode()).hexdigest()[:16]
    path.write_text(HINGE.replace("1.0", "1.1"))
    assert function_digest(f"{path}:hinge") not in (None, before)
    assert function_digest("marginkit.core.objectives:logistic") is None


def test_a_file_is_read_afresh_and_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    """a/mine.py and b/mine.py are different functions."""
    for folder, delta in (("a", "1.0"), ("b", "7.0")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(HINGE.replace("1.0", delta))
    found = [keyword_only(load_function(f"{tmp_path / folder / 'mine.py'}:hinge"))["delta"].default for folder in "ab"]
    assert found == [1.0, 7.0]


def test_a_function_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    """The decorator is named."""
    path = tmp_path / "mine.py"
    path.write_text(HINGE)
    message = message_of(lambda: build_loss(load_recipe("bt"), {"objective": {"name": f"{path}:undeclared"}}))
    assert message == f"objective.name: {path}:undeclared is not declared with @objective(...)"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nowhere.py:fn", "function 'nowhere.py:fn': no file nowhere.py"),
        ("hinge", "function 'hinge': write it as package.module:name or path/file.py:name"),
        ("mine.py:", "function 'mine.py:': write it as package.module:name or path/file.py:name"),
        (
            "marginkit.core.objectives:logistc",
            "function 'marginkit.core.objectives:logistc': marginkit.core.objectives has no logistc; "
            "did you mean logistic?",
        ),
        (
            "no_package.mine:fn",
            "function 'no_package.mine:fn': cannot import no_package.mine (No module named 'no_package')",
        ),
    ],
)
def test_a_function_that_is_not_there_is_refused(function: str, message: str) -> None:
    """No such file, module or name."""
    assert message_of(lambda: load_function(function)) == message


@pytest.mark.parametrize("content", ["def f(: pass\n", "x = undefined\n", "import no_such_module\n"])
def test_a_file_that_does_not_run_is_refused_by_its_path(tmp_path: Path, content: str) -> None:
    """A slip in the user's file is bad input, not a traceback of ours."""
    path = tmp_path / "mine.py"
    path.write_text(content)
    assert message_of(lambda: load_function(f"{path}:f")).startswith(f"function '{path}:f': cannot import {path} (")


def test_a_users_file_may_define_a_dataclass(tmp_path: Path) -> None:
    """Dataclasses look their module up by name while it loads."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Setting:\n    delta: float = 1.0\n\ndef f():\n    return Setting().delta\n"
    )
    assert load_function(f"{path}:f")() == 1.0


@pytest.mark.parametrize("options", [{"epz": 0.1}, {}])
def test_wrong_options_of_a_function_put_in_place_are_refused(options: dict[str, float]) -> None:
    """An option that the function does not have, or one that it needs: known from its signature before any pass."""
    given = {"target": {"name": "marginkit.core.targets:constant_prob"} | options}
    assert message_of(lambda: build_loss(load_recipe("dpo"), given)).startswith("target.")


# ----------------------------------------------------------------------------------------------------- YAML files


def test_a_number_with_an_exponent_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4 as text."""
    path = tmp_path / "run.yaml"
    path.write_text("a: 1e-4\nb: 5.0e-7\nc: off\n")
    assert read_yaml(path)["a"] == 1e-4
    assert read_yaml(path)["b"] == 5e-7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\n", "not readable YAML"),
        (b"- 1\n- 2\n", "expected a mapping of keys, got list"),
        (b"\xff\xfe\x00", "not readable YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_its_path(tmp_path: Path, content: bytes, message: str) -> None:
    """One line, with the path."""
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    found = message_of(lambda: read_yaml(path))
    assert found.startswith(f"{path}:")
    assert message in found


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    """Not a traceback."""
    assert message_of(lambda: read_yaml(tmp_path / "no.yaml")).startswith(f"{tmp_path / 'no.yaml'}: not readable YAML")
