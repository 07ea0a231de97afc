"""Every example in a docstring runs and shows what it says."""

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest
import torch

import marginkit
from marginkit.core import adaptive, anchored, objectives, rewards, scored, targets, transport
from marginkit.core.parts import Part

MODULES = [
    "marginkit",
    *(
        found.name
        for found in pkgutil.walk_packages(marginkit.__path__, "marginkit.")
        if not found.name.endswith("__main__")
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch at hand where the module itself has it, in an empty folder."""
    module = importlib.import_module(name)
    monkeypatch.chdir(str(tmp_path))
    names = {"torch": torch} if hasattr(module, "torch") or name.startswith("marginkit.core") else {}
    outcome = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert outcome.failed == 0


DECLARING = [adaptive, anchored, objectives, rewards, scored, targets, transport]


@pytest.mark.parametrize("module", DECLARING, ids=lambda m: m.__name__)
def test_the_examples_of_declared_functions_are_found(module: ModuleType) -> None:
    """A decorator that hid the docstring would pass the test above with nothing run."""
    found = {test.name.rpartition(".")[2] for test in doctest.DocTestFinder().find(module) if test.examples}
    declared = {
        name
        for name, value in vars(module).items()
        if isinstance(getattr(value, "part", None), Part) and value.__module__ == module.__name__
    }
    assert declared
    assert declared <= found
