"""docs/add_a_method.md is executed: every block as it stands, in the order of the page."""

import doctest
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marginkit import registry
from marginkit.assembly import build_loss
from marginkit.cli import main
from marginkit.core import objectives
from marginkit.registry import Recipe, load_recipe, read_yaml, recipe_names

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
OURS = "src/marginkit/"  # blocks that are to become part of the package


def file_of(block: str) -> str | None:
    """The file that a block says it is."""
    found = re.match(r"# (\S+\.(?:py|yaml))\n", block)
    return found.group(1) if found else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's own files, and a checkout's tests under the name the page uses."""
    path = tmp_path_factory.mktemp("page")
    for kind, block in BLOCKS:
        name = file_of(block)
        if kind == "python" and name is not None and not name.startswith(OURS):
            (path / name).write_text(block, encoding="utf-8")
    (path / "tests").symlink_to(ROOT / "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


def commands() -> list[tuple[str, str]]:
    """Command and what the page says that it answers."""
    found: list[tuple[str, str]] = []
    for kind, block in BLOCKS:
        if kind == "console":
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, _, answer = part.partition("\n")
                found.append((line, answer.strip()))
    return found


def test_the_page_has_every_kind_of_block() -> None:
    """What the tests below run is there."""
    files = [name for _, block in BLOCKS if (name := file_of(block))]
    assert {"mine.py", "capped.py", "recent.py", "wrong.py", "test_mine.py"} <= set(files)
    assert sum(name.startswith(OURS) for name in files) == 2
    assert sum(bool(answer) for _, answer in commands()) == 2
    assert {kind for kind, _ in BLOCKS} == {"python", "console", "yaml"}


def test_the_commands_do_what_the_page_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order; a command without an answer succeeds, one with an answer is refused in those words, exit code 2."""
    for line, answer in commands():
        words = line.split()
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
            continue
        monkeypatch.setattr(sys, "argv", [*words, "train.use_cpu=true"])
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        said = capsys.readouterr().err.strip().splitlines()
        assert code == (2 if answer else 0), f"{line}: {said[-3:]}"
        assert not answer or said[-1] == answer
    assert (folder / "runs" / "cubic").is_dir()


def test_the_sessions_say_what_the_page_says(folder: Path) -> None:
    """Blocks with >>> are doctests."""
    sessions = [block for kind, block in BLOCKS if kind == "python" and ">>> " in block and file_of(block) is None]
    assert len(sessions) == 2
    for block in sessions:
        test = doctest.DocTestParser().get_doctest(block, {}, "add_a_method.md", "add_a_method.md", 0)
        assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


@pytest.fixture
def cubic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """The page's function in its module, and its recipe in a copy of the catalogue."""
    [function] = [block for kind, block in BLOCKS if kind == "python" and (file_of(block) or "").startswith(OURS)]
    [recipe] = [block for kind, block in BLOCKS if kind == "yaml"]
    names = dict(vars(objectives))
    exec(compile(function, "objectives.py", "exec"), names)
    monkeypatch.setattr(objectives, "cubic", names["cubic"], raising=False)
    shutil.copytree(registry.RECIPES, tmp_path / "recipes")
    (tmp_path / "recipes" / "cubic.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.setattr(registry, "RECIPES", tmp_path / "recipes")
    cached = (recipe_names, load_recipe, registry.known_functions, registry.known_part)
    for function_ in cached:
        function_.cache_clear()
    yield names["cubic"]
    monkeypatch.undo()
    for function_ in cached:
        function_.cache_clear()


def test_the_recipe_of_the_page_enters_the_catalogue(cubic: Callable[..., Any]) -> None:
    """It loads, agrees with its function, has a docstring of the asked form, and makes a loss."""
    spec = load_recipe("cubic")
    text = inspect.getdoc(cubic)
    assert text is not None
    for word in ("Args:", "Returns:", "Raises:", "Example:\n    >>> ", "Source: "):
        assert word in text
    test = doctest.DocTestParser().get_doctest(text, vars(objectives).copy(), "cubic", None, None)
    assert doctest.DocTestRunner().run(test).failed == 0
    assert build_loss(spec, {}).objective_options == {"room": 1.0}
    assert Recipe.model_validate(read_yaml(registry.RECIPES / "cubic.yaml")) == spec


def test_the_recipe_of_the_page_gets_its_section_and_picture(
    cubic: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make docs` takes it."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import methods_page  # type: ignore[import-not-found]

    assert methods_page.main([load_recipe("cubic")], tmp_path) == 0
    assert "### cubic" in (tmp_path / "methods.md").read_text()
    assert (tmp_path / "methods" / "cubic.svg").is_file()
