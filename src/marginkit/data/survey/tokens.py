"""What a tokenizer makes of the data: lengths, what a limit cuts off, how prompt and response are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marginkit.data.encoded import EncodedGroup
from marginkit.data.encoding import Encoder
from marginkit.data.pairing import pairs_of
from marginkit.data.survey.lengths import longer, words_on_longer
from marginkit.data.survey.nearness import digest64
from marginkit.data.survey.remarks import Level, Remark, Report, Worst, share
from marginkit.data.survey.sketches import ClusterShare, Values
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Estimate, Group

ENCODED = 20_000  # groups; more are sampled evenly
_ENDLESS = 1_000_000
_MANY = 0.01


class Tokens:
    """Lengths in tokens, and what a limit of `max_length` tokens would do to the responses.

    over: prompt + response do not fit. end lost: cut behind the limit, so that the response never ends. identical: the
    two responses of a pair differ, but not in what the limit leaves of them. A template for which the prompt is not a
    prefix of prompt + response is named with the first token that differs.

    Args:
        tokenizer: a transformers tokenizer.
        max_length: prompt + response tokens; the tokenizer's own limit if None.
        chat_template: a file, `chatml`, or None for the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None, chat_template: str | None = None) -> None:
        own = getattr(tokenizer, "model_max_length", None)
        self.tokenizer = tokenizer
        self.max_length = max_length or (own if own and own < _ENDLESS else None)
        self.chat_template = chat_template
        self.prompt, self.response, self.whole = Values(), Values(), Values()
        self.longer = ClusterShare()
        self.groups = self.responses = self.pairs = 0
        self.over_groups = self.over = self.identical = self.special = self.two_starts = 0
        self.worst = Worst()

    def survey(self, groups: Groups, progress: Callable[[int], None] | None = None) -> Report:
        """Encode the groups (evenly sampled beyond 20,000) and say what came of it."""
        step = -(-len(groups) // ENCODED) or 1
        sample = groups[::step] if step > 1 else groups
        try:
            encoder = self._encoder("common_prefix")
            encoded, made = encoder.encode(sample, progress)
        except BadInput as error:
            return Report({"tokens": {"refused": str(error)}}, [Remark("tokens", "problem", *_in_two(str(error)))])
        special = frozenset(self.tokenizer.all_special_ids)
        for at, (group, tokens) in enumerate(zip(sample, encoded, strict=True)):
            self._see(at * step, group, tokens, special)
        chat = self.tokenizer.chat_template is not None
        mismatch = self._mismatch(sample) if made.boundary_merged else None
        found = self.longer.estimate()
        facts: dict[str, Any] = {
            "groups": self.groups,
            "sampled": step > 1,
            "prompt": self.prompt.percentiles(),
            "response": self.response.percentiles(),
            "prompt_and_longest_response": self.whole.percentiles(),
            "max_length": self.max_length,
            "groups_over_max_length": self.over_groups if self.max_length else None,
            "responses_end_lost": self.over if self.max_length else None,
            "pairs_identical_after_truncation": self.identical if self.max_length else None,
            "responses_without_end": made.eos_added if chat else None,
            "prompts_not_a_prefix": made.boundary_merged,
            "template_starts_twice": self._starts_twice() or self.two_starts > 0,
            "responses_with_special_tokens": self.special,
            "longer_wins": None if found is None else found.to_json(),
        }
        remarks = [
            self._about_length(step, found),
            *self._about_limit(),
            *self._about_joining(made.eos_added, mismatch, chat),
        ]
        return Report({"tokens": facts}, remarks, self.worst.rows())

    def _encoder(self, boundary: str) -> Encoder:
        return Encoder(
            self.tokenizer, max_length=1 << 40, on_overflow="drop", boundary=boundary, chat_template=self.chat_template
        )

    def _see(self, row: int, group: Group, tokens: EncodedGroup, special: frozenset[int]) -> None:
        self.groups += 1
        self.responses += len(tokens.response_ids)
        self.prompt.add(float(len(tokens.prompt_ids)))
        self.whole.add(float(tokens.length))
        start = self.tokenizer.bos_token_id
        self.two_starts += start is not None and tokens.prompt_ids[:2] == [start, start]
        for ids in tokens.response_ids:
            self.response.add(float(len(ids)))
            self.special += any(token in special for token in ids[:-3])
        room = None if self.max_length is None else max(0, self.max_length - len(tokens.prompt_ids))
        if room is not None:
            self.over += sum(len(ids) > room for ids in tokens.response_ids)
            self.over_groups += tokens.length > (self.max_length or 0)
        for pair in pairs_of(group):
            left, right = tokens.response_ids[pair.chosen], tokens.response_ids[pair.rejected]
            self.pairs += 1
            if room is not None and left != right and left[:room] == right[:room]:
                self.identical += 1
                self.worst.offer(float(tokens.length), row, group.id, f"the two responses agree up to {room} tokens")
            if not pair.tie:
                self.longer.add(longer(len(left), len(right)), digest64(group.cluster or group.id))

    def _mismatch(self, sample: Groups) -> str:
        """The first row whose prompt is no prefix, in the encoder's words."""
        try:
            self._encoder("prefix").encode(sample)
        except BadInput as error:
            return str(error)
        return ""

    def _starts_twice(self) -> bool:
        """Whether template and tokenizer both put a start token in front."""
        start = self.tokenizer.bos_token_id
        if self.tokenizer.chat_template is None or start is None:
            return False
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        return bool(self.tokenizer(text)["input_ids"][:2] == [start, start])

    # -- remarks

    def _about_length(self, step: int, found: Estimate | None) -> Remark:
        drawn = f" (of {self.groups:,} groups, every {step}th)" if step > 1 else ""
        says = (
            f"prompt {self.prompt.quantile(0.5):,.0f}, response {self.response.quantile(0.5):,.0f} tokens (medians); "
            f"95% of the groups are within {self.whole.quantile(0.95):,.0f}, the longest {self.whole.high:,.0f}{drawn}"
        )
        return Remark("tokens", "ok", says if found is None else f"{says}; {words_on_longer(found, 'tokens')}")

    def _about_limit(self) -> list[Remark]:
        if self.max_length is None:
            return []
        if not self.over:
            return [Remark("limit", "ok", f"all responses fit into {self.max_length:,} tokens with their prompt")]
        level: Level = "warning" if self.over_groups > _MANY * self.groups else "note"
        says = (
            f"{share(self.over_groups, self.groups)} groups are longer than {self.max_length:,} tokens; cut there, "
            f"{share(self.over, self.responses)} responses lose their end"
        )
        remarks = [
            Remark("limit", level, says, "marginkit drops them and says so; other trainers cut: raise the limit")
        ]
        if self.identical:
            says = f"{share(self.identical, self.pairs)} pairs are identical after such a cut"
            remarks.append(Remark("limit", "warning", says, "nothing is left to prefer; raise the limit or drop them"))
        return remarks

    def _about_joining(self, unended: int, mismatch: str | None, chat: bool) -> list[Remark]:
        remarks = []
        if mismatch:
            remarks.append(Remark("template", "problem", *_in_two(mismatch)))
        if self._starts_twice() or self.two_starts:
            says = "the text starts with two start tokens where the rendered template is tokenized as it is"
            fix = "marginkit adds none to a template's; elsewhere use add_special_tokens=False"
            remarks.append(Remark("template", "warning" if self.two_starts else "note", says, fix))
        if chat and unended:
            says = f"the template does not end {share(unended, self.responses)} responses with an end token"
            fix = "marginkit adds it; a model trained without never stops"
            remarks.append(Remark("template", "note", says, fix))
        if self.special > _MANY * self.responses:
            says = f"{share(self.special, self.responses)} responses hold special tokens of this tokenizer"
            remarks.append(Remark("template", "warning", says, "already templated? store turns, not markup"))
        return remarks or [Remark("template", "ok", "prompt and response are joined as the model continues text")]


def _in_two(message: str) -> tuple[str, str]:
    """A message of the encoder as what is wrong and the way out."""
    says, _, fix = message.rpartition("; ")
    return (says, fix) if says else (message, "")
