"""The public surface: what `import marginkit as mk` offers, and what it costs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import marginkit as mk

SOURCE = Path(mk.__file__).read_text(encoding="utf-8")
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", mk.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """What is promised is there."""
    assert getattr(mk, name) is not None


@pytest.mark.parametrize("name", sorted(set(mk.__all__) - {"__version__"}))
def test_a_public_name_is_the_thing_in_its_module(name: str) -> None:
    """Resolved lazily, but one object, documented and under its own name."""
    found = getattr(mk, name)
    assert found.__name__ == name
    assert found.__doc__
    assert found.__module__.startswith("marginkit.")
    assert getattr(importlib.import_module(found.__module__), name) is found


def test_the_surface_holds_the_names_that_the_design_promises() -> None:
    """Names that do not change without a decision page."""
    promised = {
        "BadInput", "Comparison", "Estimate", "Group", "Groups", "Pair", "PairScores", "Rating", "Response",
        "RunFailed", "Scores", "SequenceScores", "Turn", "__version__", "compose", "evaluate", "make_pairs",
        "read_groups", "recipe", "score", "train", "write_groups",
    }  # fmt: skip
    assert promised <= set(mk.__all__)
    assert mk.__all__ == sorted(set(mk.__all__))
    assert set(dir(mk)) == set(mk.__all__)


def test_type_checkers_see_exactly_the_public_names() -> None:
    """The names under TYPE_CHECKING mirror the lazy table."""
    [block] = [
        node
        for node in ast.parse(SOURCE).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.asname: f"{line.module}.{alias.name}"
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    lazy = {name: f"marginkit.{module}.{name}" for name, module in mk._WHERE.items()}
    assert seen == lazy


def test_an_unknown_name_is_an_attribute_error() -> None:
    """In Python's own words, so that hasattr and completion work."""
    with pytest.raises(AttributeError, match="module 'marginkit' has no attribute 'recipes_of_mine'"):
        _ = mk.recipes_of_mine
    assert not hasattr(mk, "nothing")


def test_importing_marginkit_loads_no_torch() -> None:
    """Nor the catalogue, nor a recipe's options: only building a loss does."""
    code = (
        "import sys, marginkit as mk\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "mk.BadInput\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from marginkit.registry import load_recipe, recipe_names\n"
        "[load_recipe(name).options() for name in recipe_names()]\n"
        "try:\n    mk.recipe('mppo')\nexcept mk.BadInput:\n    pass\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    mk.compose('implicit', 'soft_lable', 'logistic', beta=0.1)\nexcept mk.BadInput:\n    pass\n"
        "mk.recipe('mmpo', gamma=0.3)\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_are_what_python_users_expect() -> None:
    """Bad input is a ValueError, a failed run a RuntimeError, and both are ours."""
    assert issubclass(mk.BadInput, ValueError)
    assert issubclass(mk.RunFailed, RuntimeError)
    assert mk.BadInput.__base__ is mk.RunFailed.__base__


def test_every_public_thing_has_a_docstring() -> None:
    """Modules, classes, functions and methods without a leading underscore say what they are."""
    bare = []
    for path in sorted((ROOT / "src" / "marginkit").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if ast.get_docstring(tree) is None:
            bare.append(path.name)
        for scope in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
            for node in scope.body:
                if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
                    continue
                if isinstance(scope, ast.ClassDef) and scope.name.startswith("_"):
                    continue
                if any("overload" in ast.unparse(mark) for mark in node.decorator_list):
                    continue
                if ast.get_docstring(node) is None:
                    bare.append(f"{path.name}:{node.lineno} {node.name}")
    assert bare == []
