"""N responses per prompt, drawn from a policy as it was trained: its template, its separator, its end token."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from marginkit.config import EncodingConfig, ModelConfig, RunConfig
from marginkit.data import checks
from marginkit.data.checks import RowRefused
from marginkit.data.encoding import Encoder
from marginkit.data.prompts import distinct_prompts, merge_same, read_prompts
from marginkit.data.sources import Source
from marginkit.decoding import Drawn, Draws, draw
from marginkit.drafts import Draft, DraftedResponse
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.models.loading import load_model, load_tokenizer, model_limit, prepare_padding
from marginkit.policies import Policy, open_policy, settings_of
from marginkit.progress import progress
from marginkit.records import Group, Response, Turn
from marginkit.scoring import choose_precision
from marginkit.vllm_engine import check_installed, draw_with_vllm

if TYPE_CHECKING:
    from marginkit.run import Run

log = logging.getLogger("marginkit")

ENGINES = ("transformers", "vllm")
MOST_NEW_TOKENS = 512
"""Default of max_new_tokens, where the model has room for twice as many."""

_VLLM_TYPES = {"auto": "bfloat16", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
TOO_LONG = "prompt leaves no room for max_new_tokens"
NOTHING, TOO_FEW = "no usable response", "fewer than two different responses"


@dataclass(frozen=True, slots=True)
class Samples:
    """What was drawn.

    Args:
        groups: prompts with their different responses; `dropped` counts the rows left out, by reason.
        facts: responses drawn, merged, empty, unreadable (a NUL character), cut (how many, and where), tokens.
    """

    groups: Groups
    facts: Mapping[str, Any]


def sample(
    policy: Run | str | Path,
    prompts: Groups | Source,
    *,
    n: int = 5,
    temperature: float = 0.8,
    top_p: float = 0.95,
    max_new_tokens: int | None = None,
    seed: int = 0,
    with_given: bool = False,
    drop_cut: bool = False,
    engine: str = "transformers",
    batch_tokens: int = 16384,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    draft: str | Path | None = None,
) -> Groups:
    """Draw n responses to each prompt from a policy.

    response ~ softmax(logits / temperature) cut to its nucleus, token by token, until an end token or max_new_tokens.
    Prompts are put exactly as training put them; each prompt is asked once, and responses that say the same are merged.
    The draws belong to (seed, prompt): other prompts beside it, its place in the file and the number of responses do
    not matter. How rows share a batch matters through the rounding of the logits alone: in float32 where a draw falls
    within a rounding of the border between two tokens, which is rare; in bfloat16 now and then.

    Args:
        policy: a run, its directory, or any saved causal model (a folder or hub name).
        prompts: groups, or what `read_groups` reads, or rows of `prompt` alone; given responses are left out.
        n: responses a prompt.
        temperature: of the softmax; 0 is greedy and needs n=1.
        top_p: probability that the nucleus holds.
        max_new_tokens: tokens a response may have; default 512, or half of what the model takes if that is less.
        seed: another seed gives other draws.
        with_given: keep the responses that the prompts came with, in front of the drawn ones, ungraded.
        drop_cut: leave out responses that did not end by themselves; training would teach them an end.
        engine: transformers, or vllm where that is installed.
        batch_tokens: rows x (prompt + new tokens) of a batch (transformers).
        overrides: of the policy's configuration, e.g. `encoding.chat_template=chatml` for a model that is no run.
        draft: a file that keeps what is drawn, batch by batch; there again, it is continued, then removed.

    Returns:
        Groups of different responses, ungraded. `dropped` counts the prompts left out: "repeated prompt", "prompt
        leaves no room for max_new_tokens", "no usable response" (all empty or cut), "fewer than two different
        responses" (of several).

    Raises:
        BadInput: no such policy or prompts, a value out of range, a chat without a template.
        RunFailed: out of memory, or probabilities that are not finite.

    Example: `sample("runs/sft-1", "prompts.jsonl", n=5, seed=1)`
    """
    drawn = draw_samples(
        open_policy(policy, overrides),
        prompts if isinstance(prompts, Groups) else read_prompts(prompts),
        Draws(n, temperature, top_p, MOST_NEW_TOKENS if max_new_tokens is None else max_new_tokens, seed),
        shorten=max_new_tokens is None,
        with_given=with_given,
        drop_cut=drop_cut,
        engine=engine,
        batch_tokens=batch_tokens,
        draft=draft,
    )
    return drawn.groups


def draw_samples(
    policy: Policy,
    prompts: Groups,
    draws: Draws,
    *,
    shorten: bool = True,
    with_given: bool = False,
    drop_cut: bool = False,
    engine: str = "transformers",
    batch_tokens: int = 16384,
    draft: str | Path | None = None,
    keep_draft: bool = False,
) -> Samples:
    """`sample`, with an account of what was drawn.

    Args:
        policy: who answers.
        prompts: groups.
        draws: how.
        shorten: let fewer new tokens do where the model has no room for twice as many.
        with_given: as in `sample`.
        drop_cut: as in `sample`.
        engine: as in `sample`.
        batch_tokens: as in `sample`.
        draft: as in `sample`.
        keep_draft: leave the draft there, for a caller that keeps the result first.

    Raises:
        BadInput: as in `sample`.
    """
    if engine not in ENGINES:
        raise BadInput(f"engine={engine!r}: the engines are {', '.join(ENGINES)}")
    if engine == "vllm":
        check_installed()
    asked = distinct_prompts(prompts, with_given=with_given)
    source = _Engine(policy, draws, engine, batch_tokens, shorten)
    identity = {
        "policy": policy.fingerprint,
        "prompts": asked.fingerprint(),
        "engine": engine,
        "encoding": policy.config.encoding.model_dump(mode="json"),
    } | {name: getattr(source.draws, name) for name in Draws.__slots__}
    put = source.put(asked)
    with Draft(draft, identity) as kept:
        source.draw_missing(put, kept)
        groups, facts = _grouped(asked, kept.found, policy.name, drop_cut=drop_cut)
        if not keep_draft:
            kept.remove()
    if not len(groups):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in groups.dropped.items())
        raise BadInput(f"{policy.name}: no prompt has a usable answer ({reasons})")
    return Samples(groups, {"policy": policy.fingerprint, "max_new_tokens": source.draws.max_new_tokens} | facts)


class _Engine:
    """A policy with what it takes to put prompts to it."""

    def __init__(self, policy: Policy, draws: Draws, engine: str, batch_tokens: int, shorten: bool) -> None:
        held, config = policy.held, policy.config
        self.engine, self.batch_tokens = engine, batch_tokens
        self.tokenizer = load_tokenizer(
            str(held.tokenizer or held.path), revision=held.revision, trust_remote_code=held.trust_remote_code
        )
        prepare_padding(self.tokenizer, "policy")
        if engine == "vllm":  # which must be the first to touch the device
            self.held = held.model_copy(update={"dtype": held.dtype or _VLLM_TYPES[config.train.precision]})
            about = settings_of(held)
        else:
            about = self.model = _load(config, held, self.tokenizer)
            self.held = held
        most = model_limit(about, self.tokenizer)
        self.limit = min(config.encoding.max_length or most, most)
        if shorten and draws.max_new_tokens > self.limit // 2:
            draws = replace(draws, max_new_tokens=max(1, self.limit // 2))
        self.draws, self.encoding = draws, config.encoding
        ends = getattr(about.generation_config, "eos_token_id", None)
        self.stop = {self.tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends or ())} - {None}

    def put(self, asked: Groups) -> dict[int, list[int]]:
        """The tokens of each prompt as training puts it, by its place; those that leave no room are missing."""
        room = self.limit - self.draws.max_new_tokens
        if room < 2:
            raise BadInput(
                f"max_new_tokens={self.draws.max_new_tokens}: prompt and response have {self.limit} tokens together, "
                "which leaves no room for a prompt; lower it"
            )
        encoder = _encoder(self.encoding, self.tokenizer, room)
        standing = asked.map(lambda group: replace(group, responses=(_as_response(group, "x", None),)))
        with progress(len(asked), "encode prompts") as bar:
            encoded, report = encoder.encode(standing, bar)
        if report.cut_prompts:
            log.info("%d prompts are cut on the left (encoding.on_overflow)", report.cut_prompts)
        special, put = set(self.tokenizer.all_special_ids), {}
        for group in encoded:
            put[group.row] = list(group.prompt_ids)
            # what closes a turn in the policy's template closes it here
            self.stop |= set(next(([token] for token in reversed(group.response_ids[0]) if token in special), []))
        return put

    def draw_missing(self, put: Mapping[int, list[int]], kept: Draft) -> None:
        """Draw what the draft lacks, and add it batch by batch."""
        for at in set(kept.found) - set(put):
            del kept.found[at]
        places = [at for at in sorted(put) if at not in kept.found]
        if kept.found and kept.path is not None:
            log.info("%s: %d of %d prompts were drawn before", kept.path, len(kept.found), len(put))
        if not places:
            return
        began, tokens = time.perf_counter(), 0
        with progress(len(put), "draw responses") as bar:
            bar(len(kept.found))
            for members, made in self._draw([put[at] for at in places]):
                drafted = [[self._written(one) for one in responses] for responses in made]
                kept.add((places[at], responses) for at, responses in zip(members, drafted, strict=True))
                tokens += sum(response.tokens for responses in drafted for response in responses)
                bar.say(f"{tokens / (time.perf_counter() - began):.0f} tokens/s")
                bar(len(members))
        seconds = time.perf_counter() - began
        log.info(
            "drew %d x %d responses: %d tokens, %.0f a second", len(places), self.draws.n, tokens, tokens / seconds
        )

    def _draw(self, prompts: list[list[int]]) -> Iterator[tuple[list[int], list[list[Drawn]]]]:
        if self.engine == "vllm":
            return draw_with_vllm(self.held, prompts, self.draws, stop=self.stop, limit=self.limit)
        pad_id = self.tokenizer.pad_token_id
        return draw(self.model, prompts, self.draws, stop=self.stop, pad_id=pad_id, batch_tokens=self.batch_tokens)

    def _written(self, one: Drawn) -> DraftedResponse:
        text = self.tokenizer.decode(one.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return DraftedResponse(text, one.ended, len(one.ids) + one.ended)


def _load(config: RunConfig, held: ModelConfig, tokenizer: Any) -> Any:
    """The policy on its device, in the type it computes in: nothing is trained, so there are no master weights."""
    state = PartialState(cpu=config.train.use_cpu)
    if state.num_processes > 1:
        raise BadInput("sample draws in one process; for several GPUs use --engine vllm, or one --split on each")
    precision = choose_precision(config, state)
    if held.dtype is None and precision.autocast is not None:
        held = held.model_copy(update={"dtype": str(precision.autocast).removeprefix("torch.")})
    model: Any = load_model(held, "policy", tokenizer, trainable=False)
    return model if held.quantization is not None else model.to(precision.device)


def _encoder(config: EncodingConfig, tokenizer: Any, room: int) -> Encoder:
    overflow = "cut_prompt_left" if config.on_overflow == "cut_prompt_left" else "drop"
    return Encoder(tokenizer, **config.model_dump() | {"max_length": room, "on_overflow": overflow})


def _as_response(group: Group, text: str, model: str | None) -> Response:
    """A text as the group's responses are: plain beside a plain prompt, a turn beside turns."""
    return Response(text if isinstance(group.prompt, str) else (Turn("assistant", text),), model=model)


def _grouped(
    asked: Groups, found: Mapping[int, Sequence[DraftedResponse]], name: str, *, drop_cut: bool
) -> tuple[Groups, dict[str, Any]]:
    """The different usable responses of every prompt, and the account of the others."""
    dropped = Counter(asked.dropped)
    facts = Counter(drawn=0, empty=0, unreadable=0, merged=0, cut=0, tokens=0)
    where: dict[str, list[int]] = {}

    def groups() -> Iterator[Group]:
        for at, group in enumerate(asked):
            if at not in found:
                dropped[TOO_LONG] += 1
                continue
            drawn = found[at]
            facts.update(drawn=len(drawn), tokens=sum(one.tokens for one in drawn))
            facts.update(cut=sum(not one.ended for one in drawn))
            refused = [_refused(one.text) for one in drawn]
            facts.update(why for why in refused if why is not None)
            usable = [one for one, why in zip(drawn, refused, strict=True) if not why and (one.ended or not drop_cut)]
            responses = merge_same([*group.responses, *(_as_response(group, one.text, name) for one in usable)])
            facts["merged"] += len(group.responses) + len(usable) - len(responses)
            if not usable or (len(responses) == 1 and len(drawn) > 1):
                dropped[TOO_FEW if usable else NOTHING] += 1
                continue
            cut = {one.text for one in usable if not one.ended}
            if cut:
                where[group.id] = [k for k, response in enumerate(responses) if response.text in cut]
            yield replace(group, responses=responses)

    made = Groups.from_iterable(groups())
    made.dropped = {reason: count for reason, count in dropped.items() if count}
    return made, dict(facts) | {"cut_responses": where}


def _refused(text: str) -> str | None:
    """Why no reader would take this response from a file: empty or unreadable; None where one would."""
    try:
        checks.answer(checks.content(text, "response"), "response")
    except RowRefused as refused:
        return "empty" if refused.reason == "empty response" else "unreadable"
    return None
