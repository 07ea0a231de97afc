"""A command as its user meets it, in this process."""

from __future__ import annotations

import sys

import pytest

from marginkit.cli import main


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    monkeypatch.setattr(sys, "argv", ["marginkit", *words])
    code = 0
    try:
        main()
    except SystemExit as leave:
        code = int(leave.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err
