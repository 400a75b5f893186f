"""`fmprobe atlas` in the tests' own process: each of its children is a call of the command line here."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.cli.atlas.child import last_line


class Children:
    """Runs commands as `run_child` does, and keeps their words."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []

    def __call__(self, words: Sequence[str], log: Path) -> str | None:
        self.words.append([*words])
        done = CliRunner().invoke(app, [*words])
        said = f"fmprobe: {done.exception}\n" if isinstance(done.exception, fmprobe.InputError) else ""
        log.write_text(done.output + said)
        return None if done.exit_code == 0 else last_line(log)


@contextmanager
def children_here() -> Any:
    """In this part an atlas has no processes of its own; gives what it ran."""
    here = Children()
    with mock.patch("fmprobe.cli.atlas.run_child", here):
        yield here
