"""How results look: tables and lines on stdout, or one JSON object; errors are one line on stderr."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NoReturn

from marginkit.errors import BadInput

if TYPE_CHECKING:
    import typer

    from marginkit.evaluation.metrics import Evaluation


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; texts are shown as they are, never as markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_header=any(columns), show_edge=False, pad_edge=False)
    for name in columns:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(Text(title, style="bold"))
    console.print(drawn)
    console.print()


def show_evaluation(title: str, evaluation: Evaluation) -> None:
    """Print an evaluation as a table."""
    from marginkit.evaluation.compare import rows

    table(title, ("", "value [95%]", ""), rows(evaluation))


def say(words: str) -> None:
    """Print one line."""
    sys.stdout.write(words + "\n")


def say_json(content: Any) -> None:
    """Print one JSON object."""
    sys.stdout.write(json.dumps(content, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def command_line(context: typer.Context) -> str:
    """The command as it can be given again: what differs from its defaults; absolute paths by their last part."""
    words = ["marginkit", *(context.command_path.split()[1:])]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value in (parameter.default, None, [], ()) or parameter.name == "html":
            continue
        option = [] if parameter.param_type_name == "argument" else [max(parameter.opts, key=len)]
        if value is True:
            words += option
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            text = str(one)
            words += [*option, PurePath(text).name if PurePath(text).is_absolute() else text]
    return shlex.join(words)


def assignments(items: Sequence[str] | None) -> dict[str, str]:
    """What `--column NAME=MEANING` says.

    Raises:
        BadInput: an item has no `=`.
    """
    made: dict[str, str] = {}
    for item in items or []:
        name, sign, meaning = item.partition("=")
        if not sign or not name or not meaning:
            raise BadInput(f"--column {item}: write NAME=MEANING, e.g. --column my_score=score_chosen")
        made[name] = meaning
    return made


def fail(error: object, code: int) -> NoReturn:
    """Print an error and leave."""
    sys.stderr.write(f"marginkit: {error}\n")
    raise SystemExit(code)
