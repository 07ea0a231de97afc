"""marginkit sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marginkit.cli.app import Columns, Json, MappingFile, app
from marginkit.cli.rendering import assignments, fail, say, say_json, table


@app.command(
    epilog="Example:  marginkit sample runs/sft-1 prompts.jsonl -n 5 --reward runs/mmpo_rm-1 --out round1.jsonl"
)
def sample(
    policy: Annotated[str, typer.Argument(help="A run directory, or a saved model (folder or hub name).")],
    prompts: Annotated[str, typer.Argument(help="Any readable file; rows of `prompt` alone too.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="e.g. encoding.chat_template=chatml")
    ] = None,
    out: Annotated[Path, typer.Option(help="The .jsonl file to make.")] = Path("samples.jsonl"),
    n: Annotated[int, typer.Option("-n", "--n", help="Responses a prompt.")] = 5,
    temperature: Annotated[float, typer.Option(help="Of the softmax; 0 is greedy, with -n 1.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Probability that the nucleus holds.")] = 0.95,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a response; default 512, or half of what the model takes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other draws.")] = 0,
    reward: Annotated[str | None, typer.Option(help="Run of a reward model that grades the responses.")] = None,
    reward_recipe: Annotated[
        str | None, typer.Option(help="How to read a reward model that is no run, e.g. bt.")
    ] = None,
    reward_as: Annotated[
        str, typer.Option(help="auto | grade | utility: auto fills the utility where rewards are logits.")
    ] = "auto",
    how: Annotated[
        str | None, typer.Option(help="How graded responses are paired (see `pair`); default best_worst.")
    ] = None,
    keep_ties: Annotated[bool, typer.Option("--keep-ties", help="Keep prompts whose pairs are all tied.")] = False,
    with_given: Annotated[
        bool, typer.Option("--with-given", help="Keep the responses that the prompts came with.")
    ] = False,
    drop_cut: Annotated[
        bool, typer.Option("--drop-cut", help="Leave out responses that did not end by themselves.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Draw for this split only.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read at most so many rows.")] = None,
    engine: Annotated[str, typer.Option(help="transformers | vllm")] = "transformers",
    batch_tokens: Annotated[
        int, typer.Option(help="Rows x (prompt + new tokens) of a batch; lower it when memory runs out.")
    ] = 16384,
    column: Columns = None,
    mapping: MappingFile = None,
    as_json: Json = False,
) -> None:
    """Draw responses from a policy; with --reward grade and pair them, for the next round to train on.

    What is drawn lies in OUT.draft.jsonl until all is done: the same command goes on after an interruption.
    """
    from marginkit.self_play import sample_dataset

    try:
        manifest, before = sample_dataset(
            policy,
            prompts,
            out,
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            reward=reward,
            reward_recipe=reward_recipe,
            reward_as=reward_as,  # type: ignore[arg-type] # checked there, with a message
            how=how,
            keep_ties=keep_ties,
            with_given=with_given,
            drop_cut=drop_cut,
            split=split,
            columns=assignments(column),
            mapping=mapping,
            limit=limit,
            engine=engine,
            batch_tokens=batch_tokens,
            overrides=overrides or (),
        )
    except KeyboardInterrupt:
        fail(f"interrupted; the same command goes on from {out.with_suffix('.draft.jsonl')}", 130)
    facts = {name: value for name, value in manifest["facts"].items() if name != "cut_responses"}
    if as_json:
        kept = {name: manifest[name] for name in ("groups", "pairs", "dropped")}
        say_json({"out": str(out), "there_before": before} | kept | {"facts": facts})
        return
    rows = [("prompts kept", str(manifest["groups"])), ("pairs", str(manifest["pairs"]))]
    rows += [(f"dropped: {reason}", str(count)) for reason, count in manifest["dropped"].items()]
    rows += [(f"responses {name}", str(facts[name])) for name in ("drawn", "merged", "empty", "unreadable", "cut")]
    table(f"{out}: {'was there before' if before else 'made'}", ("", ""), rows)
    if facts["cut"]:
        say(
            f"responses cut at {facts['max_new_tokens']} tokens: {facts['cut']}; training would end them there, so "
            "raise --max-new-tokens, or leave them out with --drop-cut (the manifest names them)"
        )
    graded = f", graded by {reward} in {facts['graded_in']}" if reward is not None else ", ungraded"
    say(f"{out}: {manifest['groups']} prompts{graded}")
