r"""Conversations written as one text: paragraphs of Human: and Assistant:, or HelpSteer's <extra_id_1> markers."""

from __future__ import annotations

from typing import Any

_MARKER = "\n<extra_id_1>"
_ROLES = {"User": "user", "Assistant": "assistant"}


def transcript(text: str) -> list[dict[str, Any]]:
    r"""The turns of a text that begins with a Human: paragraph.

    Example:
        >>> transcript("\n\nHuman: Hi\n\nAssistant: Hello!")
        [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}]
    """
    messages = []
    for part in text.split("\n\nHuman:")[1:]:
        said, *answers = part.split("\n\nAssistant:")
        messages.append({"role": "user", "content": said.strip()})
        messages += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return messages


def asked(text: str) -> list[dict[str, Any]]:
    r"""The same for a prompt: the Assistant: at its end, to which nothing is said yet, is no turn.

    Example:
        >>> asked("\n\nHuman: Hi\n\nAssistant: ")
        [{'role': 'user', 'content': 'Hi'}]
    """
    messages = transcript(text)
    if len(messages) > 1 and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def marked(text: str) -> str | list[dict[str, Any]]:
    r"""The turns of a prompt with <extra_id_1> markers; a text without them, or with other roles, stays as it is.

    Example:
        >>> len(marked("Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nName a fruit."))
        3
    """
    first, *others = text.split(_MARKER)
    messages = [{"role": "user", "content": first}]
    for part in others:
        role, line, said = part.partition("\n")
        if role not in _ROLES or not line:
            return text
        messages.append({"role": _ROLES[role], "content": said})
    return messages if others else text
