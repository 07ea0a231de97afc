"""Imports point one way: the arrows of the design, read from the source, and torch kept out of what must start fast."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

import marginkit

ROOT = Path(marginkit.__file__).parent

# Package or module -> what of marginkit it may import, at module level or inside functions. The longest name counts.
# A name stands for everything under it. `if TYPE_CHECKING:` is free: it is gone at run time.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "progress": set(),
    "records": {"errors"},
    "group_columns": {"records"},
    "groups": {"group_columns", "records", "errors"},
    "tables": {"errors"},
    "core": {"core", "errors"},
    "registry": {"errors"},
    "assembly": {"registry", "core", "errors"},
    "config": {"config_sections", "errors", "registry"},
    "config_sections": set(),
    "store": {"errors"},
    "batching": {"errors", "data.encoded"},
    "kitchen": {"errors"},
    "world": {"kitchen", "records", "groups", "tables", "errors"},
    "data": {"data", "records", "groups", "tables", "errors"},
    "evaluation": {"evaluation", "records", "groups", "tables", "errors"},
    "reporting": {"reporting", "evaluation", "records", "groups", "tables", "errors"},
    "models": {"models", "core", "records", "groups", "tables", "errors", "data.encoded", "config", "registry"},
    "sufficiency": {"data", "records", "groups", "registry", "assembly", "core", "config", "errors"},
    "preparing": {"data", "records", "groups", "config", "control", "sufficiency", "errors", "progress"},
    "requirements": {"assembly", "config", "control", "embedding_run", "errors", "neighbours", "reward_scores"},
    "arguments": {"batching", "config", "data.encoded", "errors"},
    "control": {"assembly", "config", "registry", "errors"},
    "gap_measure": {"core", "data.encoded", "errors", "models.packing"},
    "mistaken_texts": {"evaluation", "groups", "records", "rundir", "tables"},
    "neighbours": {"core", "models.packing", "errors"},
    "rundir": {"data", "records", "groups", "tables", "registry", "config", "errors", "preparing"},
}
MODELS_AND_DATA = {
    "core",
    "models",
    "data",
    "store",
    "records",
    "groups",
    "tables",
    "registry",
    "config",
    "errors",
    "batching",
    "progress",
}
ALLOWED["decoding"] = {"errors", "models"}
ALLOWED["drafts"] = {"errors"}
ALLOWED["vllm_engine"] = {"config", "decoding", "errors"}
ALLOWED["policies"] = {"config", "errors", "store"}
ALLOWED["generate"] = MODELS_AND_DATA | {"decoding", "drafts", "policies", "scoring", "vllm_engine"}
ALLOWED["passes"] = {"batching", "core", "data.encoded", "models"}
ALLOWED["scoring"] = MODELS_AND_DATA | {"passes"}
ALLOWED["cost"] = {"data.encoded", "models", "scoring"}
ALLOWED["speed"] = set()
ALLOWED["steps"] = {"batching", "data.encoded"}
ALLOWED["training"] = MODELS_AND_DATA | {"callbacks", "cost", "gap_measure", "metering", "neighbours"}
ALLOWED["training"] |= {"passes", "speed", "steps"}
ALLOWED["memory"] = MODELS_AND_DATA | {"scoring"}
FORECAST = {"benchmark_watch", "embedding_run", "gamma_run", "preparing", "requirements", "setup"}
ALLOWED["dry_run"] = MODELS_AND_DATA | FORECAST | {"cost", "memory", "passes", "scoring"}
ALLOWED["setup"] = MODELS_AND_DATA | {"arguments", "assembly", "cost", "preparing", "scoring"}
ALLOWED["frozen_scores"] = MODELS_AND_DATA | {"scoring"}
ALLOWED["reference"] = MODELS_AND_DATA | {"scoring", "frozen_scores"}
ALLOWED["reward_scores"] = ALLOWED["reference"] | {"embedding_model"}
ALLOWED["embedding"] = MODELS_AND_DATA | {"scoring", "frozen_scores"}
ALLOWED["embedders"] = MODELS_AND_DATA | {"scoring"}
ALLOWED["embedding_features"] = MODELS_AND_DATA | {"embedders"}
ALLOWED["embedding_heads"] = MODELS_AND_DATA | {"embedding_features", "metering"}
ALLOWED["embedding_model"] = MODELS_AND_DATA | {"embedders", "embedding_features", "embedding_heads"}
ALLOWED["embedding_run"] = ALLOWED["embedding_model"] | {
    "assembly",
    "embedding_model",
    "preparing",
    "rundir",
    "scoring",
}
ALLOWED["crossfit"] = ALLOWED["embedding_model"] | {"assembly", "evaluation.calibrators"}
ALLOWED["gamma_fits"] = set()
ALLOWED["gamma"] = {"data.grades", "gamma_fits", "records", "errors"}
ALLOWED["gamma_trained"] = ALLOWED["crossfit"] | {"crossfit", "gamma"}
ALLOWED["gamma_run"] = ALLOWED["gamma_trained"] | {"embedding_run", "gamma_trained", "preparing", "rundir"}
ALLOWED["metering"] = {"core", "models", "evaluation.calibration"}  # calibration is numpy
ALLOWED["callbacks"] = {"gap_measure", "progress"}
ALLOWED["demo_result"] = {"kitchen", "records"}
ALLOWED["listing"] = {"registry"}
ALLOWED["card"] = {"config", "errors", "evaluation.compare", "records"}
ALLOWED["judges"] = {"judges", "registry", "data", "store", "records", "groups", "config", "errors", "progress"}
ALLOWED["run_scores"] = ALLOWED["embedding_run"] | {"embedding_run", "preparing", "reference", "scoring", "setup"}
ALLOWED["benchmarking"] = ALLOWED["run_scores"] | {"evaluation", "run_scores"}
ALLOWED["benchmark_watch"] = ALLOWED["benchmarking"] | {"benchmarking"}
ALLOWED["policy_scores"] = MODELS_AND_DATA | {"frozen_scores", "policies", "scoring"}
ALLOWED["signals"] = {"crossfit", "data", "embedders", "errors", "groups", "models", "policies", "policy_scores", "run"}
ALLOWED["reward_grading"] = ALLOWED["signals"] | {"evaluation.calibrators", "signals"}
ALLOWED["grading"] = ALLOWED["reward_grading"] | {"gamma_run", "judges", "reward_grading"}
ALLOWED["run"] = set(ALLOWED) - {"__init__"}
ALLOWED["demo"] = ALLOWED["run"] | {"run", "demo"}
ALLOWED["self_play"] = ALLOWED["run"] | {"run"}
ALLOWED["cli"] = {""}  # anything
ALLOWED["__main__"] = {"cli"}

# Only inside functions: the catalogue must be readable without torch.
LAZY: dict[str, set[str]] = {"assembly": {"core"}}

HEAVY = {"torch", "transformers", "accelerate", "peft", "datasets"}

# Third-party packages that a module may not import at all.
FORBIDDEN: dict[str, set[str]] = {
    "errors": HEAVY,
    "records": HEAVY,
    "groups": HEAVY,
    "group_columns": HEAVY,
    "tables": HEAVY,
    "data": {"torch", "accelerate", "peft"},
    "evaluation": HEAVY,
    "reporting": HEAVY,
    "world": HEAVY,
    "kitchen": HEAVY,
    "judges": HEAVY,
    "core": HEAVY - {"torch"} | {"numpy", "pyarrow", "pydantic", "omegaconf"},
}

# ... or not at module level.
FORBIDDEN_AT_START: dict[str, set[str]] = {
    name: HEAVY for name in ("__init__", "__main__", "registry", "assembly", "config", "config_sections", "cli")
}


@dataclass(frozen=True)
class Import:
    """One imported name, as `a.b.c`; `lazy` if it stands inside a function."""

    name: str
    lazy: bool
    line: int


def module_name(path: Path) -> str:
    """`data.checks` for data/checks.py, `data` for data/__init__.py, `__init__` for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(source: str, package: str = "marginkit") -> Iterator[Import]:
    """Every import that runs; `package` is where a relative import starts."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.orelse:
                yield from walk(child, lazy)
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            place = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(f"{place}.{alias.name}", lazy, node.lineno) for alias in node.names)
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(source), False)


def covers(allowed: set[str], name: str) -> bool:
    """Whether a name is one of the allowed ones or lies under one."""
    return any(entry in ("", name) or name.startswith(f"{entry}.") for entry in allowed)


def row_of(module: str, table: dict[str, set[str]]) -> set[str] | None:
    """The row for a module: that of the longest name which covers it."""
    names = [entry for entry in table if covers({entry}, module)]
    return table[max(names, key=len)] if names else None


def violations(module: str, source: str, package: str = "marginkit") -> list[str]:
    """What a module imports against the tables, one line each."""
    allowed, lazy_only = row_of(module, ALLOWED), row_of(module, LAZY) or set()
    never, not_at_start = row_of(module, FORBIDDEN) or set(), row_of(module, FORBIDDEN_AT_START) or set()
    if allowed is None:
        return [f"{module}: no row in ALLOWED; decide where it stands"]
    found = []
    for one in imports_of(source, package):
        top, _, rest = one.name.partition(".")
        if top == "marginkit":
            if not covers(allowed, rest) and one.name != "marginkit.__version__":
                found.append(f"{module}:{one.line} imports {one.name}")
            elif covers(lazy_only, rest) and not one.lazy:
                found.append(f"{module}:{one.line} imports {one.name} at module level")
        elif top in never or (top in not_at_start and not one.lazy):
            found.append(f"{module}:{one.line} imports {one.name}")
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    """No module imports against the arrows, nor what it must do without."""
    package = ".".join(["marginkit", *path.relative_to(ROOT).parent.parts])
    assert violations(module_name(path), path.read_text(encoding="utf-8"), package) == []


def test_the_modules_are_found() -> None:
    """The test above cannot be empty."""
    names = {module_name(path) for path in FILES}
    assert {
        "__init__",
        "errors",
        "records",
        "registry",
        "assembly",
        "core",
        "core.parts",
        "core.tensors",
        "data",
    } <= names


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.rewards", "from marginkit.records import Pair"),
        ("core.rewards", "def f():\n    import marginkit.models.loading"),
        ("core.rewards", "from ..registry import recipe"),
        ("core.loss", "import numpy"),
        ("records", "from marginkit.core.tensors import Labels"),
        ("records", "import torch"),
        ("errors", "from marginkit import records"),
        ("registry", "from marginkit.core.loss import Loss"),
        ("registry", "def f():\n    from marginkit.core.loss import Loss"),
        ("registry", "from marginkit.assembly import recipe"),
        ("assembly", "from marginkit.core.loss import Loss"),
        ("assembly", "from marginkit.config import resolve"),
        ("assembly", "import torch"),
        ("core.loss", "def f():\n    from marginkit.assembly import compose"),
        ("neighbours", "from marginkit.training import MarginTrainer"),
        ("control", "from marginkit.run import train"),
        ("registry", "from marginkit.data import sources"),
        ("registry", "import torch"),
        ("config", "def f():\n    from marginkit.core import loss"),
        ("config", "from transformers import TrainingArguments"),
        ("data.encoded", "def f():\n    import torch"),
        ("data.sources", "import marginkit.core"),
        ("evaluation.metrics", "def f():\n    from torch import Tensor"),
        ("evaluation.metrics", "from marginkit.data.grades import utilities"),
        ("evaluation.metrics", "from marginkit.reporting import page"),
        ("models.scorer", "from marginkit.data.sources import read_groups"),
        ("models.scorer", "from marginkit.training import train"),
        ("store", "from marginkit.records import Group"),
        ("scoring", "from marginkit.training import Trainer"),
        ("run", "from marginkit.cli import main"),
        ("run", "from marginkit import demo"),
        ("training", "from marginkit.run import train"),
        ("demo", "from marginkit.cli import main"),
        ("cli", "import torch"),
        ("core.x", "if TYPE_CHECKING:\n    pass\nelse:\n    import marginkit.run"),
        ("utils", "import math"),
    ],
)
def test_an_import_against_the_arrows_is_seen(module: str, source: str) -> None:
    """The rule works: each of these is reported."""
    package = ".".join(["marginkit", *module.split(".")[:-1]])
    assert len(violations(module, source, package)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "core.rewards",
            "import torch\nfrom marginkit.core.parts import reward\nfrom marginkit.errors import BadInput",
        ),
        ("core.rewards", "from .tensors import Rewards"),
        ("core.rewards", "if TYPE_CHECKING:\n    from marginkit.records import Pair"),
        ("assembly", "from marginkit.registry import load_recipe\ndef f():\n    from marginkit.core.loss import Loss"),
        ("assembly", "if TYPE_CHECKING:\n    from marginkit.core.loss import Loss"),
        ("models.packing", "from marginkit.data.encoded import EncodedGroup"),
        ("data.encoded", "def f():\n    from transformers import AutoTokenizer"),
        ("cli", "def f():\n    import torch\n    from marginkit import demo"),
        ("cli", "from marginkit import __version__"),
        ("demo", "from marginkit.run import train"),
    ],
)
def test_an_import_along_the_arrows_is_free(module: str, source: str) -> None:
    """And these are not."""
    package = ".".join(["marginkit", *module.split(".")[:-1]])
    assert violations(module, source, package) == []


def test_no_module_without_torch_loads_it_by_way_of_another() -> None:
    """Records, catalogue, data and evaluation start without torch, whatever their dependencies do."""
    names = [
        f"marginkit.{module}" if module != "__init__" else "marginkit"
        for module in map(module_name, FILES)
        if (row_of(module, FORBIDDEN) or set()) >= {"torch"} or row_of(module, FORBIDDEN_AT_START)
        if module != "__main__"
    ]
    assert len(names) >= 5
    assert all(find_spec(name) is not None for name in names)
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
