"""A command of fmprobe in a process of its own, whose memory is free when it ends and whose faults end it alone."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from fmprobe.errors import WriteError

PROGRAM = (sys.executable, "-m", "fmprobe")
EVERY = 30.0  # seconds between two lines that say how far a command is
PATIENCE = 120.0  # seconds that a command may take to stop where nothing is lost


def run_child(words: Sequence[str], log: Path) -> str | None:
    """Run `fmprobe` with these words, and wait for its end; return why it failed in one line, None if it did not.

    A signal that stops this process stops the child where nothing is lost.

    Args:
        words: the words of the command.
        log: a file that takes what it prints.
    """
    began = time.monotonic()
    try:
        out = log.open("w", encoding="utf-8")
    except OSError as error:
        raise WriteError(log, error) from error
    with out:
        # In a session of its own it gets no Ctrl-C of the terminal, since two signals would stop it at once.
        child = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while (code := _ended(child)) is None:
                typer.echo(f"  {time.monotonic() - began:.0f} s: {last_line(log)}")
        finally:
            _stop(child)
    if code == 0:
        return None
    if code < 0:
        why = ", as it does where memory runs out" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{why}"
    return last_line(log) or f"its process ended with exit code {code}"


def _ended(child: "subprocess.Popen[bytes]") -> int | None:
    """The exit code; None if the child is still at work after a while."""
    try:
        return child.wait(EVERY)
    except subprocess.TimeoutExpired:
        return None


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End a child that is still at work."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(PATIENCE)
    finally:  # also where another signal comes meanwhile
        child.kill()


def last_line(log: Path) -> str:
    """The last line that a command printed, without its name. A progress bar draws many lines over one another."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("fmprobe: ") if lines else ""
