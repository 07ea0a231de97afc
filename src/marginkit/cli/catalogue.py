"""marginkit list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from marginkit.cli.app import Json, app
from marginkit.cli.rendering import say, say_json, table
from marginkit.errors import BadInput

if TYPE_CHECKING:
    from marginkit.registry import Recipe


@app.command("list", epilog="Example:  marginkit list mmpo --yaml > mmpo.yaml")
def list_recipes(
    recipe: Annotated[str | None, typer.Argument(help="One recipe in full.")] = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="A YAML file to start from.")] = False,
    as_json: Json = False,
) -> None:
    """The catalogue: every recipe, its options, what it needs, its paper, and where it deviates."""
    from marginkit.listing import kind_of, needs_of, needs_short, parts_short, starter
    from marginkit.registry import load_recipe, recipe_names

    specs = [load_recipe(name) for name in ([recipe] if recipe is not None else recipe_names())]
    if as_yaml:
        if recipe is None:
            raise BadInput("--yaml: name the recipe, e.g. marginkit list mmpo --yaml")
        say(starter(specs[0]))
    elif as_json:
        say_json({s.name: s.model_dump(mode="json") | {"needs": sorted(needs_of(s))} for s in specs})
    elif recipe is None:
        rests = {True: "reconstructed", False: ""}
        rows = [(s.name, kind_of(s), parts_short(s), needs_short(s), rests[bool(s.reconstructed)]) for s in specs]
        table("recipes", ("name", "trains", "reward x target x objective", "needs, beside pairs", "rests on"), rows)
        say("marginkit list NAME: what it is, its options, what is reconstructed; with --yaml a file to start from")
    else:
        _one_recipe(specs[0])


def _one_recipe(spec: Recipe) -> None:
    from marginkit.listing import command, facts, first_command, in_python, kind_of, option_rows, parts_line

    say(f"{spec.name} ({kind_of(spec)}, version {spec.version}): {spec.summary}")
    lines = [("loss", spec.formula), ("parts", parts_line(spec)), *facts(spec)]
    commands = [words for words in (first_command(spec), command(spec)) if words is not None]
    lines += [*(("train", words) for words in commands), ("python", in_python(spec))]
    for topic, sentence in lines:
        say(f"{topic:<14} {sentence}")
    rows = list(option_rows(spec))
    if rows:
        say("")
        table("options", ("key", "default", "range", "unit", "meaning", "source"), rows)
