"""How results look: tables and lines on stdout, or one JSON object; errors are one line on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from marginkit.errors import BadInput

if TYPE_CHECKING:
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


def plain(value: Any) -> str:
    """A value of a summary in a table cell."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
