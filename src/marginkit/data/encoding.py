"""Groups become tokens: prompt ids once, the ids of each response, the columns of the pairs. No torch.

Plain text is joined at a token boundary, as it is when a model continues a prompt: ids(prompt + separator) +
ids(response) + EOS. Chat goes through the template: a response is whole(prompt + response) minus prompt, compared
token by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from marginkit.data.encoded import EncodedGroup, EncodedGroups, EncodingReport, encode_labels
from marginkit.errors import BadInput
from marginkit.groups import batched
from marginkit.records import Content, Group, Turn, content_text

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Encoder:
    """Turns groups into tokens with one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        max_length: prompt + response tokens; the model's own limit if None is known to the caller.
        on_overflow: error (above `overflow_limit`, else drop), drop, or cut_prompt_left.
        overflow_limit: share of groups.
        boundary: prefix or common_prefix.
        chat_template: a file, `chatml`, or None for the tokenizer's own.
        separator: between prompt and response where both are plain text.

    Raises:
        BadInput: the template file is missing, or the tokenizer has no end token.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        on_overflow: str = "error",
        overflow_limit: float = 0.01,
        boundary: str = "prefix",
        chat_template: str | None = None,
        separator: str = "\n",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.on_overflow = on_overflow
        self.overflow_limit = overflow_limit
        self.boundary = boundary
        self.separator = separator
        if chat_template == "chatml":
            tokenizer.chat_template = CHATML
        elif chat_template is not None:
            if not Path(chat_template).is_file():
                raise BadInput(f"encoding.chat_template: no file {chat_template}; give a Jinja file or `chatml`")
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise BadInput(f"tokenizer {tokenizer.name_or_path!r} has neither an EOS nor a SEP token; set one")
        self.end_id: int = end
        self._special = frozenset(tokenizer.all_special_ids)
        self._start = [token for token in tokenizer("a")["input_ids"][:1] if token in self._special]
        self._newline = self._tokenize(["\n"])[0]

    def encode(
        self, groups: Iterable[Group], progress: Callable[[int], None] | None = None
    ) -> tuple[EncodedGroups, EncodingReport]:
        """Encode groups; over-long ones are counted and treated as `on_overflow` says.

        Raises:
            BadInput: a template that cannot be used, or too many over-long groups.
        """
        report = EncodingReport(max_length=self.max_length)
        lengths: list[int] = []
        encoded = EncodedGroups.from_iterable(self._encode_all(groups, report, lengths, progress))
        report.kept = len(encoded)
        if lengths:
            report.longest = max(lengths)
            report.p95 = sorted(lengths)[max(0, math.ceil(0.95 * len(lengths)) - 1)]
        too_long = report.dropped.get("longer than max_length", 0)
        if self.on_overflow == "error" and too_long > self.overflow_limit * report.groups:
            raise BadInput(
                f"{too_long} of {report.groups} groups ({too_long / report.groups:.1%}) are longer than "
                f"max_length={self.max_length} tokens (95% are within {report.p95}, the longest is {report.longest}); "
                "raise encoding.max_length, or choose encoding.on_overflow=drop | cut_prompt_left"
            )
        return encoded, report

    # -- one batch of groups: render, tokenize all texts at once, assemble

    def _encode_all(
        self,
        groups: Iterable[Group],
        report: EncodingReport,
        lengths: list[int],
        progress: Callable[[int], None] | None,
    ) -> Iterator[EncodedGroup]:
        row = 0
        for batch in batched(groups, 256):
            for group, (prompt, responses) in zip(batch, self._tokens(batch, report), strict=True):
                report.groups += 1
                encoded = self._assemble(row, group, prompt, responses, report, lengths)
                row += 1
                if encoded is not None:
                    yield encoded
            if progress is not None:
                progress(len(batch))

    def _assemble(
        self,
        row: int,
        group: Group,
        prompt: list[int],
        responses: list[list[int]],
        report: EncodingReport,
        lengths: list[int],
    ) -> EncodedGroup | None:
        longest = max(map(len, responses))
        lengths.append(len(prompt) + longest)
        if len(prompt) + longest > self.max_length:
            room = self.max_length - longest
            head = 1 if prompt and prompt[0] in self._special else 0  # a BOS or CLS stays in front
            if self.on_overflow != "cut_prompt_left" or room <= head:
                reason = (
                    "longer than max_length" if self.on_overflow != "cut_prompt_left" else "response fills max_length"
                )
                report.dropped[reason] = report.dropped.get(reason, 0) + 1
                return None
            prompt = prompt[:head] + prompt[len(prompt) - (room - head) :]
            report.cut_prompts += 1
        report.prompt_tokens += len(prompt)
        report.response_tokens += sum(map(len, responses))
        return replace(encode_labels(row, group), prompt_ids=prompt, response_ids=responses)

    def _tokens(self, groups: list[Group], report: EncodingReport) -> Iterator[tuple[list[int], list[list[int]]]]:
        chat = [self._is_chat(group) for group in groups]
        texts: list[str] = []  # one flat list for the tokenizer: per group its prompt, then its responses
        for group, is_chat in zip(groups, chat, strict=True):
            texts.extend(self._render_chat(group) if is_chat else self._render_plain(group))
        ids = self._tokenize(texts)
        position = 0
        for group, is_chat in zip(groups, chat, strict=True):
            own = ids[position : position + len(group.responses) + 1]
            position += len(own)
            yield self._split_chat(group, own, report) if is_chat else self._join_plain(group, own, report)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    # -- plain text

    def _render_plain(self, group: Group) -> list[str]:
        prompt = content_text(group.prompt)
        # A continuation is tokenized after a newline, which is then taken off: no tokenizer may put a space in front.
        return [prompt + self.separator if prompt else "", *("\n" + content_text(r.turns) for r in group.responses)]

    def _join_plain(
        self, group: Group, ids: list[list[int]], report: EncodingReport
    ) -> tuple[list[int], list[list[int]]]:
        prompt = self._with_start(ids[0])
        responses = []
        for response, body in zip(group.responses, ids[1:], strict=True):
            if body[: len(self._newline)] == self._newline:
                body = body[len(self._newline) :]
            else:  # the newline merged with the response's own first characters
                body = self._tokenize([content_text(response.turns)])[0]
            if body[-1:] != [self.end_id]:
                body = [*body, self.end_id]
                report.eos_added += 1
            responses.append(body)
        return prompt, responses

    def _with_start(self, prompt: list[int]) -> list[int]:
        """The prompt behind the token its tokenizer starts every text with (BOS, CLS); never empty."""
        if prompt[: len(self._start)] != self._start:
            prompt = [*self._start, *prompt]
        if not prompt:  # the first response token needs something to be predicted from
            bos = self.tokenizer.bos_token_id
            prompt = [self.end_id if bos is None else bos]
        return prompt

    # -- chat

    def _is_chat(self, group: Group) -> bool:
        if self.tokenizer.chat_template is not None:
            return group.prompt != ""
        turns = [] if isinstance(group.prompt, str) else list(group.prompt)
        simple = len(turns) <= 1 and all(turn.role == "user" and not turn.tool_calls for turn in turns)
        if not simple or group.tools or any(_has_calls(response.turns) for response in group.responses):
            raise BadInput(
                f"group {group.id}: the prompt is a chat and tokenizer {self.tokenizer.name_or_path!r} has no chat "
                "template; set encoding.chat_template=chatml (evaluate: --chat-template chatml) or give a template file"
            )
        return False

    def _render_chat(self, group: Group) -> list[str]:
        prompt = [Turn("user", group.prompt)] if isinstance(group.prompt, str) else list(group.prompt)
        texts = [self._apply(group, prompt, generation=True)]
        for response in group.responses:
            turns = [Turn("assistant", response.turns)] if isinstance(response.turns, str) else list(response.turns)
            texts.append(self._apply(group, prompt + turns, generation=False))
        return texts

    def _apply(self, group: Group, turns: list[Turn], *, generation: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                [_message(turn) for turn in turns],
                tools=None if group.tools is None else [dict(tool) for tool in group.tools],
                tokenize=False,
                add_generation_prompt=generation,
            )
        except TemplateError as error:
            raise BadInput(
                f"group {group.id}: the chat template refuses it ({error}); "
                "change the rows, or give another template with encoding.chat_template"
            ) from None
        return text

    def _split_chat(
        self, group: Group, ids: list[list[int]], report: EncodingReport
    ) -> tuple[list[int], list[list[int]]]:
        prompt, wholes = ids[0], ids[1:]
        shared = min(_common_prefix(prompt, whole) for whole in wholes)
        if shared < len(prompt):
            if self.boundary == "prefix":
                whole = next(whole for whole in wholes if _common_prefix(prompt, whole) == shared)
                was = self.tokenizer.decode(prompt[shared : shared + 1])
                now = self.tokenizer.decode(whole[shared : shared + 1])
                raise BadInput(
                    f"group {group.id}: the chat template does not keep the prompt as it was: token {shared} is "
                    f"{was!r} in the prompt and {now!r} in prompt + response; encoding.boundary=common_prefix "
                    "counts all from there as response"
                )
            report.boundary_merged += 1
        responses = []
        for whole in wholes:
            body = whole[shared:]
            if not self._ends(body):
                body = [*body, self.end_id]
                report.eos_added += 1
            responses.append(body)
        return self._with_start(prompt[:shared]) if shared == 0 else prompt[:shared], responses

    def _ends(self, body: list[int]) -> bool:
        """Whether a special token closes the response; white space may follow it, as it does in ChatML."""
        for token in reversed(body[-3:]):
            if token in self._special:
                return True
            if self.tokenizer.decode([token]).strip():
                return False
        return False


def _has_calls(content: Content) -> bool:
    return not isinstance(content, str) and (len(content) > 1 or any(turn.tool_calls for turn in content))


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls is not None:
        message["tool_calls"] = [dict(call) for call in turn.tool_calls]
    if turn.name is not None:
        message["name"] = turn.name
    return message


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
