"""SIGTERM and Ctrl-C: a long command stops where nothing is lost, and says how to continue."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):  # like KeyboardInterrupt, so that no `except Exception` swallows it
    """The process was asked to stop. `kept` says what the next run need not do again."""

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    @property
    def exit_code(self) -> int:
        """The exit code as shells report it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        kept = f"{self.kept}; " if self.kept else ""
        return f"stopped by {signal.Signals(self.number).name}: {kept}run the same command again to continue"


_waiting = False  # whether a signal waits for its section to end
_pending: int | None = None


def listen() -> None:
    """From now on SIGTERM and SIGINT raise `Stopped`; inside a `section`, they do so at its end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_signal)


def ignore() -> None:
    """From now on neither signal has an effect, because the process is about to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def section() -> Iterator[None]:
    """A part that must not be torn. A first signal waits until `pending` is asked or the part ends; a second does not
    wait.
    """
    global _waiting
    _waiting = True
    try:
        yield
    finally:
        _waiting = False
    if _pending is not None:
        raise Stopped(_pending)


def pending() -> int | None:
    """The signal that arrived in a section, if one did."""
    return _pending


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _pending
    if _waiting and _pending is None:
        _pending = number
        return
    raise Stopped(_pending or number)
