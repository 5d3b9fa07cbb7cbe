"""Calls the command line: :func:`call`."""

from __future__ import annotations

from typing import Any

import pytest

from fatnn_rs import cli


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error of ``fatnn``."""
    try:
        code: Any = cli.main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    captured = capsys.readouterr()
    return int(code or 0), captured.out, captured.err
