"""The methods page: current, complete, its pictures true; and the build says what a recipe leaves out."""

import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import marginkit as mk
from marginkit.assembly import build_loss
from marginkit.config import resolve
from marginkit.listing import GAMMA, command, declared, in_python, needs_of, required, starter
from marginkit.registry import PARTS, Option, PartSpec, Recipe, load_function, load_recipe, recipe_names

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    """docs/methods_page.py."""
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("methods_page")
    sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def drawn(pages: ModuleType) -> dict[str, Any]:
    """The numbers of every picture, computed now."""
    found: dict[str, Any] = pages.pictures([load_recipe(name) for name in recipe_names()])
    return found


def test_the_page_is_current(pages: ModuleType, drawn: dict[str, Any]) -> None:
    """docs/methods.md is what `make docs` would write now."""
    written = pages.page([load_recipe(name) for name in recipe_names()], drawn)
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == written, "run make docs"


def test_every_recipe_has_a_picture_and_none_is_left_over() -> None:
    """One file a recipe, small, with a title and a description, and text as text."""
    files = {path.stem: path for path in (DOCS / "methods").iterdir()}
    assert set(files) == set(recipe_names())
    for name, path in files.items():
        text = path.read_text(encoding="utf-8")
        assert len(text) < 40_000
        root = ElementTree.fromstring(text)
        assert root.get("role") == "img"
        children = [child.tag.rpartition("}")[2] for child in root]
        assert children[:2] == ["title", "desc"]
        assert (root[0].text or "").startswith(f"{name}: ")
        assert "<text" in text
        assert "dc:date" not in text


@pytest.mark.parametrize("name", recipe_names())
def test_the_numbers_of_a_picture_are_current(name: str, drawn: dict[str, Any]) -> None:
    """The nine gaps, losses and slopes of every curve in the file are those that the code computes now."""
    numbers_in = sys.modules["methods_drawing"].numbers_in
    stored = numbers_in((DOCS / "methods" / f"{name}.svg").read_text(encoding="utf-8"))
    now = numbers_in(f"<desc>{drawn[name].desc}</desc>")
    assert stored.keys() == now.keys()
    for curve, columns in now.items():
        assert columns.keys() == stored[curve].keys() == {"gap", "loss", "slope"}
        for column, values in columns.items():
            size = max(map(abs, values))
            assert len(values) == 9
            assert values == pytest.approx(stored[curve][column], rel=2e-3, abs=1e-4 * size), f"{curve}: {column}"


def test_a_picture_shows_the_loss_that_trains(drawn: dict[str, Any]) -> None:
    """By hand: DPO's is -log sigmoid, its slope -sigmoid(-gap); MMPO is least where its label says."""
    [curve] = drawn["dpo"].curves
    for gap, loss, slope in zip(curve.gap, curve.loss, curve.slope, strict=True):
        assert loss == pytest.approx(math.log1p(math.exp(-gap)), abs=1e-7)
        assert slope == pytest.approx(-1 / (1 + math.exp(gap)), abs=1e-7)
    curve = next(curve for curve in drawn["mmpo"].curves if curve.label == "grade gap 3")
    least = curve.gap[min(range(len(curve.gap)), key=curve.loss.__getitem__)]
    assert least == pytest.approx(3 * GAMMA, abs=0.1)


def test_the_same_numbers_give_the_same_file(pages: ModuleType, drawn: dict[str, Any]) -> None:
    """No date, no random ids."""
    svg = sys.modules["methods_drawing"].svg
    assert svg(drawn["mmpo"]) == svg(drawn["mmpo"])


# ------------------------------------------------------------------------------------------------ what stops the build


def doctored(**changes: Any) -> Recipe:
    """MMPO with something changed."""
    return load_recipe("mmpo").model_copy(update=changes)


def with_option(**changes: Any) -> Recipe:
    """MMPO whose beta says something else."""
    spec = load_recipe("mmpo")
    beta: Option = spec.reward.options["beta"].model_copy(update=changes)
    return doctored(reward=spec.reward.model_copy(update={"options": {"beta": beta}}))


LOOKS_AROUND = '''"""Mine."""
from marginkit.core.parts import objective, reward, target
from marginkit.core.tensors import Rewards, Target

@target(needs={"length"}, makes={"margin"})
def by_length(labels, gap, population, scores):
    return Target.of(gap, margin=scores.length[:, 0])

@reward(needs={"logp"})
def halved(scores):
    return Rewards(scores.logp / 2)

@objective(uses={"margin"})
def broken(rewards, target):
    return (rewards.gap - target.margin) / 0.0
'''


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        (doctored(summary=""), "a summary"),
        (doctored(formula=" "), "a formula"),
        (doctored(paper=load_recipe("mmpo").paper.model_copy(update={"title": ""})), "the title of its paper"),
        (doctored(published=""), "what was published"),
        (with_option(help=""), "help of reward.beta"),
        (with_option(source=""), "source of reward.beta"),
    ],
    ids=["summary", "formula", "paper", "published", "help", "source"],
)
def test_a_recipe_that_leaves_something_out_stops_the_build(
    spec: Recipe, missing: str, pages: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, one line with the recipe and what is missing, nothing written."""
    assert pages.main([load_recipe("dpo"), spec], tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("docs: recipe mmpo: ")
    assert missing in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "function", "reason"),
    [
        ("target", "by_length", "target by_length reads more than the label"),
        ("reward", "halved", "reward halved is not in _scores_of"),
        ("objective", "broken", "the loss or its slope is not finite"),
    ],
)
def test_a_recipe_that_cannot_be_drawn_stops_the_build(
    part: str, function: str, reason: str, pages: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture is not left out in silence."""
    (tmp_path / "mine.py").write_text(LOOKS_AROUND)
    own = PartSpec(function=f"{tmp_path / 'mine.py'}:{function}")
    spec = load_recipe("dpo").model_copy(update={"name": "odd", "published": "nowhere", part: own})
    assert pages.main([spec], tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("docs: recipe odd: its picture cannot be drawn: ")
    assert reason in said
    assert said.count("\n") == 1


def test_a_complete_catalogue_is_written_and_stale_pictures_go(pages: ModuleType, tmp_path: Path) -> None:
    """The page, a picture a recipe, and none of one that is gone."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "gone.svg").write_text("<svg/>")
    assert pages.main([load_recipe("dpo"), load_recipe("bt")], tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "methods").iterdir()) == ["bt.svg", "dpo.svg"]
    assert "### dpo" in (tmp_path / "methods.md").read_text()


# ------------------------------------------------------------------------------------------------------ the words


def test_the_commands_of_the_page_are_understood() -> None:
    """Every `marginkit train` line names a recipe, keys and options that exist."""
    lines = re.findall(r"^marginkit train (.*)$", (DOCS / "methods.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(lines) > len(recipe_names())
    for line in lines:
        name, *overrides = line.split()
        config = resolve(name, overrides)
        build_loss(config.spec, config.options())


def test_the_python_of_the_page_runs() -> None:
    """Every line that makes a loss makes one."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "methods.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) > len(recipe_names())
    for block in blocks:
        names: dict[str, Any] = {"mk": mk}
        exec(compile(block, "methods.md", "exec"), names)
        assert callable(names["loss"])


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_recipe_needs_is_read_as_it_is_declared(name: str) -> None:
    """`marginkit list` reads declarations without importing them: they are those of the functions, and of the loss."""
    spec = load_recipe(name)
    needs: set[str] = set()
    for part in PARTS:
        own = getattr(spec, part)
        if own is None:
            continue
        found, said = load_function(own.function).part, declared(own.function)
        needs |= found.needs
        for word, value in said.items():
            actual = getattr(found, word)
            assert (actual.__name__ if word == "population_of" else actual) == value, f"{own.function}: {word}"
    loss = build_loss(spec, {"target": dict.fromkeys(required(spec), GAMMA)})
    assert needs_of(spec) == needs | loss.needs


@pytest.mark.parametrize("name", recipe_names())
def test_the_file_to_start_from_is_the_recipe(name: str, tmp_path: Path) -> None:
    """`--yaml` resolves as it stands, to the recipe's own defaults: words like `none` and open options included."""
    path = tmp_path / "start.yaml"
    path.write_text(starter(load_recipe(name)), encoding="utf-8")
    config, plain = resolve(path), resolve(name)
    assert config.train.model_copy(update={"prompts_per_step": None}) == plain.train
    given = {"target": dict.fromkeys(required(config.spec), GAMMA)}
    mine = {part: {**options, **given.get(part, {})} for part, options in config.options().items()}
    left, right = build_loss(config.spec, mine), build_loss(plain.spec, given)
    for part in PARTS:
        assert getattr(left, f"{part}_options") == getattr(right, f"{part}_options")
    assert (left.sft_weight, left.sft_per) == (right.sft_weight, right.sft_per)


def test_a_word_that_yaml_takes_for_something_else_is_quoted(tmp_path: Path) -> None:
    """`no`, `null` and `1e-4` as choices stay words."""
    words = ("no", "null", "1e-4")
    options = {f"o{n}": Option(type="str", default=word, choices=words, help="h") for n, word in enumerate(words)}
    spec = doctored(target=PartSpec(function="marginkit.core.targets:none", options=options))
    (tmp_path / "start.yaml").write_text(starter(spec), encoding="utf-8")
    from marginkit.registry import read_yaml

    assert read_yaml(tmp_path / "start.yaml")["target"] == {f"o{n}": word for n, word in enumerate(words)}


def test_the_line_in_python_and_the_command_make_the_same_loss() -> None:
    """Both name the options under the paper's names, with the defaults."""
    for name in recipe_names():
        spec = load_recipe(name)
        names: dict[str, Any] = {"mk": mk}
        exec(in_python(spec), names)
        config = resolve(name, command(spec).split()[3:])
        assert repr(names["loss"]) == repr(build_loss(config.spec, config.options()))


def test_a_slope_is_the_derivative_where_the_target_stands_still(drawn: dict[str, Any]) -> None:
    """Against finite differences of the drawn losses."""
    for name in ("bt_margin", "rpo_squared", "nca", "orpo", "sft"):
        for curve in drawn[name].curves:
            gap, loss, slope = (torch.tensor(values) for values in (curve.gap, curve.loss, curve.slope))
            middle = (loss[2:] - loss[:-2]) / (gap[2:] - gap[:-2])
            assert torch.allclose(middle, slope[1:-1], atol=0.02 * float(slope.abs().max()))


# ------------------------------------------------------------------------------------------------ `marginkit list`


def listed(*words: str) -> str:
    """What `marginkit list ...` prints, in a process of its own that must not load torch or matplotlib."""
    program = (
        "import sys\nfrom marginkit.cli import main\n"
        f"sys.argv = ['marginkit', 'list', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    assert not leave.code, leave.code\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_the_list_marks_what_rests_on_reconstruction() -> None:
    """One line a recipe, with one word where something was reconstructed."""
    lines = {line.split()[0]: line for line in listed().splitlines() if line.strip()}
    for name in recipe_names():
        assert ("reconstructed" in lines[name]) == bool(load_recipe(name).reconstructed)


@pytest.mark.parametrize("name", ["madpo", "regression", "sft"])
def test_a_recipe_in_the_terminal_says_it_all(name: str) -> None:
    """Formula, needs, paper, what was published, reconstructed and done otherwise, its command, every option."""
    spec, said = load_recipe(name), listed(name)
    for words in (spec.formula, spec.paper.title, spec.published, *spec.reconstructed, *spec.deviations, command(spec)):
        assert words in said
    for option, (part, _) in spec.options().items():
        assert f"{part}.{option}" in said
    assert ("model.reward_model" in said) == (name == "madpo")


def test_the_list_as_json_is_the_catalogue() -> None:
    """Every recipe as its file has it, and what it needs."""
    found = json.loads(listed("--json"))
    assert sorted(found) == list(recipe_names())
    assert found["madpo"]["needs"] == ["logp", "ref_logp", "rm_head"]
    assert Recipe.model_validate({key: value for key, value in found["ipo"].items() if key != "needs"}) == load_recipe(
        "ipo"
    )
