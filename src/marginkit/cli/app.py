"""The application that the commands register with, and the options that several of them share."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="marginkit",
    help="Train policies and reward models on graded feedback, and measure whether their confidence is right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", "-c", metavar="NAME=MEANING", help="Rename a column, or say margin=logits; repeatable."),
]
MappingFile = Annotated[
    str | None,
    typer.Option(metavar="FILE.yaml", help="Which field is what, in a YAML file (docs/data.md); or a dialect's name."),
]
