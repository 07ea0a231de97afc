"""Where the numbers of every response come from: the data, score tables, a model, or a cross-fitted head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from marginkit.data.distances import Tokenize
from marginkit.data.signals import Nested, Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups

OWN = ("grade", "utility")


def collect_signals(
    groups: Groups,
    *,
    rewards: Sequence[str] = (),
    crossfit: str | None = None,
    policy: str | None = None,
    reference: str | None = None,
    bare: bool = False,
    store: str | Path = "store",
    seed: int = 0,
) -> Signals:
    """Collect what pairing and selection read of every response.

    Args:
        groups: the groups.
        rewards: `grade` or `utility` (the data's own), score tables (a folder of `marginkit score`, or a
            responses.parquet), a run or a saved reward model. Several are an ensemble. Default: the data's own.
        crossfit: an embedder (`hash`, `minilm`, a folder): rewards of a head on its embeddings, trained on the data's
            own labels, always by a head that never saw the cluster it judges.
        policy: score tables, a run or a saved causal model: log-probabilities and lengths in tokens.
        reference: likewise, of another policy: the one before tuning.
        bare: also the policy's log-probabilities without the prompt.
        store: folder of the score store.
        seed: of the folds.

    Raises:
        BadInput: no such table or model, a table that does not cover the groups, or two sources of one number.

    Example:
        >>> from marginkit.records import Group, Response
        >>> groups = Groups.from_iterable([Group("a", "?", (Response("x", grade=2.0), Response("y", grade=1.0)))])
        >>> collect_signals(groups).reward.tolist()
        [2.0, 1.0]
    """
    facts: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    own = [name for name in rewards if name in OWN]
    if own and (len(rewards) > 1 or crossfit is not None):
        raise BadInput(f"--reward {own[0]}: is the data's own; it does not go with other rewards")
    if rewards and crossfit is not None:
        raise BadInput("--reward and --crossfit: two sources of the reward; give one")
    if own:
        columns["grades"] = own[0]
    elif rewards:
        columns["rewards"] = [_rewards(name, groups) for name in rewards]
        facts["reward"] = list(rewards)
    elif crossfit is not None:
        columns["rewards"] = [_crossfit(crossfit, groups, store, seed)]
        facts["reward"] = f"cross-fitted on the data's own labels ({crossfit})"
    if policy is not None:
        columns |= _policy(policy, groups, bare, store, facts)
    elif bare:
        raise BadInput("log-probabilities without the prompt need --policy RUN or MODEL")
    if reference is not None:
        columns["ref_logp"] = _reference(reference, groups, store, facts)
    return Signals.of(groups, facts=facts, **columns)


def policy_tokenizer(policy: str | None, tokenizer: str | None = None) -> Tokenize | None:
    """How responses become tokens: the named tokenizer, else the policy's; None (words) where there is neither.

    Args:
        policy: a run or a saved model; score tables have no tokenizer.
        tokenizer: a folder, a tokenizer.json or a hub name.
    """
    if tokenizer is None:
        if policy is None or _tables_at(policy) is not None:
            return None
        from marginkit.policies import open_policy

        held = open_policy(policy).held
        tokenizer = str(held.tokenizer or held.path)
    from marginkit.models.loading import load_tokenizer  # imports torch

    found = load_tokenizer(tokenizer)

    def tokenize(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = found(texts, add_special_tokens=False)["input_ids"]
        return ids

    return tokenize


def _tables_at(name: str) -> Path | None:
    """The responses.parquet behind a name, if it is one of score tables."""
    path = Path(name)
    if path.suffix == ".parquet":
        if not path.is_file():
            raise BadInput(f"{name}: no such file")
        return path
    found = path / "responses.parquet"
    return found if found.is_file() else None


def _rewards(name: str, groups: Groups) -> Nested:
    tables = _tables_at(name)
    if tables is not None:
        return join(groups, pq.read_table(tables), "reward", str(tables))
    from marginkit.run import score  # imports torch

    return join(groups, score(name, groups).responses, "reward", name)


def _crossfit(embedder: str, groups: Groups, store: str | Path, seed: int) -> Nested:
    from marginkit.crossfit import crossfit
    from marginkit.embedders import open_embedder

    return cast(Nested, crossfit(groups, embedder=open_embedder(embedder, store=store), seed=seed))


def _policy(name: str, groups: Groups, bare: bool, store: str | Path, facts: dict[str, Any]) -> dict[str, Any]:
    tables = _tables_at(name)
    if tables is not None:
        if bare:
            raise BadInput(
                f"--policy {name}: score tables have no log-probabilities without the prompt; name the model"
            )
        table = pq.read_table(tables)
        facts["policy"] = name
        columns: dict[str, Any] = {column: join(groups, table, column, str(tables)) for column in ("logp", "length")}
        if table["ref_logp"].null_count < table.num_rows:
            columns["ref_logp"] = join(groups, table, "ref_logp", str(tables))
            facts["reference"] = f"{name}, ref_logp"
        return columns
    from marginkit.policy_scores import policy_scores  # imports torch

    found = policy_scores(name, groups, bare=bare, store=store)
    facts["policy"] = found.facts
    made: dict[str, Any] = {"logp": found.logp, "length": found.length}
    return made | ({"bare_logp": found.bare_logp} if bare else {})


def _reference(name: str, groups: Groups, store: str | Path, facts: dict[str, Any]) -> Nested:
    tables = _tables_at(name)
    if tables is not None:
        facts["reference"] = name
        return join(groups, pq.read_table(tables), "logp", str(tables))
    from marginkit.policy_scores import policy_scores  # imports torch

    found = policy_scores(name, groups, store=store)
    facts["reference"] = found.facts
    return found.logp


def join(groups: Groups, responses: pa.Table, column: str, name: str) -> Nested:
    """A column of a score table by group id and response index, [group][response].

    Args:
        groups: the groups.
        responses: a table in `tables.RESPONSES_SCHEMA`; it may cover more than the groups.
        column: its name.
        name: of the table, for the message.

    Raises:
        BadInput: the table has no such column, lacks responses of the groups, or was made of other texts.
    """
    needed = {"group", "response", "chars", column}
    if not needed <= set(responses.column_names):
        raise BadInput(f"{name}: has no column {', '.join(sorted(needed - set(responses.column_names)))}")
    if responses[column].null_count == responses.num_rows:
        hint = " (only a policy has it)" if column in ("logp", "ref_logp") else ""
        raise BadInput(f"{name}: its column {column} is empty{hint}")
    keys = zip(responses["group"].to_pylist(), responses["response"].to_pylist(), strict=True)
    values = zip(responses[column].to_pylist(), responses["chars"].to_pylist(), strict=True)
    known = dict(zip(keys, values, strict=True))
    if len(known) < responses.num_rows:
        raise BadInput(
            f"{name}: {responses.num_rows - len(known)} rows name a group and response that is there already"
        )
    made: list[list[float | None]] = []
    missing = groups_missing = other_text = total = 0
    for group in groups:
        found = [known.get((group.id, at)) for at in range(len(group.responses))]
        absent = sum(one is None or one[0] is None for one in found)
        missing += absent
        groups_missing += absent > 0
        total += len(found)
        for response, one in zip(group.responses, found, strict=True):
            other_text += one is not None and one[1] is not None and one[1] != len(response.text)
        made.append([None if one is None else one[0] for one in found])
    if missing:
        raise BadInput(
            f"{name}: has no {column} of {missing} of {total} responses, in {groups_missing} of {len(groups)} groups; "
            "score this data again, or leave those groups out"
        )
    if other_text:
        raise BadInput(
            f"{name}: {other_text} of {total} responses have another length than the text that was scored; the table "
            "is of other data, score this data again"
        )
    return made
