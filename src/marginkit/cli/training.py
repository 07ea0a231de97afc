"""marginkit train."""

from __future__ import annotations

from typing import Annotated

import typer

from marginkit.cli.app import Json, app
from marginkit.cli.rendering import fail, say, say_json, show_evaluation, table
from marginkit.progress import is_first


@app.command(
    epilog="Example:  marginkit train mmpo model.path=Qwen/Qwen3-0.6B data.train=ratings.jsonl target.gamma=0.5 "
    "train.control=dpo"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe (see `marginkit list`) or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell tokens, time and memory of the run; train and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a policy or a reward model and judge it on held-out data.

    Started again with the same `out=`, an interrupted run goes on where it was. For several processes:
    accelerate launch -m marginkit train ...
    """
    from marginkit.config import resolve

    config = resolve(recipe, overrides or [])
    if dry_run:
        from marginkit.dry_run import dry_run as forecast

        found = forecast(config)
        if as_json:
            say_json(found.to_json())
        else:
            table(f"{config.recipe}: what this run will be (nothing was trained)", ("", ""), found.in_words())
        return
    from marginkit.run import train as run_train  # imports torch and transformers: seconds

    try:
        run = run_train(config)
    except KeyboardInterrupt:
        where = config.out or f"the new folder runs/{config.recipe}-N"
        fail(f"interrupted; the same command with out={where} goes on from the last checkpoint", 130)
    if not is_first():
        return
    if as_json:
        say_json(run.to_json())
        return
    if run.metrics is not None:
        show_evaluation(f"{config.recipe} on held-out data", run.metrics)
    if run.control is not None and run.control.metrics is not None:
        from marginkit.evaluation.compare import verdict

        show_evaluation(f"control: {run.control.config.recipe}, same start, data and steps", run.control.metrics)
        say(verdict(run.differences, names=(config.recipe, run.control.config.recipe)))
    for one in [one for one in run.diagnosis if one.level in ("bad", "warning")][:3]:
        say(f"- {one.says}{f' Try: {one.advice}' if one.advice else ''}")
    say(f"model: {run.checkpoint}   run: {run.path}   {run.seconds:.0f} s")
    if run.page is not None:
        say(f"page: {run.page}")
