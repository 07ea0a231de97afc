"""Characters and markup that have no place in a text: control characters, broken encodings, chat templates."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from marginkit.data.survey.remarks import Level, Remark, Report, Worst, share
from marginkit.data.survey.seen import Seen
from marginkit.records import content_text

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
_BROKEN = re.compile("\ufffd|â€[™œ\x9d“]")
_MARKUP = re.compile(
    r"<\|[a-z_]{2,20}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<extra_id_\d>|\n\n(?:Human|Assistant):"
)
_MANY = 0.01


class Texts:
    """Rows with control or direction-override characters, with a broken encoding, with the markup of a chat template.

    Control: C0 but tab and line ends, DEL, and Unicode's embeddings, overrides and isolates of direction. Broken: the
    replacement character, or the remains of a typographic quote read in the wrong encoding. Markup: `<|...|>`,
    `[INST]`, `<start_of_turn>`, `<extra_id_1>`, a line `Human:` or `Assistant:`: where a template is applied to it
    again, a turn ends that was never meant to.
    """

    def __init__(self) -> None:
        self.groups = 0
        self.control = self.broken = 0
        self.markup: Counter[str] = Counter()
        self.marked = 0
        self.worst = Worst(5)

    def see(self, seen: Seen) -> None:
        """Take one group."""
        self.groups += 1
        texts = [content_text(seen.group.prompt), *seen.texts]
        self._one("control", _CONTROL, texts, seen)
        self._one("broken", _BROKEN, texts, seen)
        marks = {found.strip() for text in texts for found in _MARKUP.findall(text)}
        self.marked += bool(marks)
        if len(self.markup) < 1000:
            self.markup.update(marks)

    def _one(self, name: str, pattern: re.Pattern[str], texts: list[str], seen: Seen) -> None:
        hit = next((found.group() for text in texts if (found := pattern.search(text))), None)
        if hit is not None:
            setattr(self, name, getattr(self, name) + 1)
            what = "a control character" if name == "control" else "a broken encoding"
            codes = " ".join(f"U+{ord(character):04X}" for character in hit)
            self.worst.offer(1.0, seen.row, seen.group.id, f"{what} ({codes})")

    def report(self) -> Report:
        """Figures and remarks."""
        common = dict(self.markup.most_common(5))
        facts: dict[str, Any] = {
            "control_characters": self.control,
            "broken_encodings": self.broken,
            "chat_markup": {"rows": self.marked, "most": common} if self.marked else None,
        }
        remarks = []
        for count, what, fix in (
            (self.control, "hold control or direction-override characters", "invisible to readers, not to models"),
            (self.broken, "hold broken encodings", "read the original again as UTF-8"),
        ):
            if count:
                level: Level = "warning" if count > _MANY * self.groups else "note"
                remarks.append(Remark("texts", level, f"{share(count, self.groups)} rows {what}", fix))
        if self.marked:
            level = "warning" if self.marked > _MANY * self.groups else "note"
            says = f"{share(self.marked, self.groups)} rows hold chat markup ({', '.join(list(common)[:3])})"
            fix = "a template is applied in training: store turns, not markup"
            remarks.append(Remark("texts", level, says, fix))
        return Report(
            facts, remarks or [Remark("texts", "ok", "no control characters, no chat markup")], self.worst.rows()
        )
