"""Standard streams that cannot end the program: not by a closed pipe, a full disk or letters that a terminal lacks."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fmprobe.errors import InputError


class _Lasting(io.FileIO):
    """Standard output or standard error. After the first write that fails, everything written is discarded."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            return super().write(view) or 0
        except OSError as error:
            self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # so that nothing else that writes there fails either
            os.close(nowhere)
            return len(view)


class Streams:
    """The standard streams of a program that outlasts them."""

    def __init__(self) -> None:
        self.raw: dict[str, _Lasting] = {}

    def check(self) -> None:
        """Check that standard output took everything. It does not count if the reader of a pipe has left.

        Raises:
            InputError: it did not.
        """
        if sys.stdout is not None:
            sys.stdout.flush()
        error = self.raw["stdout"].error if "stdout" in self.raw else None
        if error is not None and error.errno != errno.EPIPE:
            raise InputError(
                f"cannot write to standard output ({error.strerror}): the output is not complete; read the results in "
                "the folder of the run"
            )


@contextmanager
def lasting_streams() -> Iterator[Streams]:
    """A part in which nothing that is printed, by whatever library, can end the program.

    A stream that is closed accepts everything and shows nothing. Characters that the terminal's encoding lacks are
    shown by numbers, as in \\xfc. Streams that are not files of the system, such as those of tests, are left alone.
    """
    kept = sys.stdout, sys.stderr
    streams = Streams()
    for name in ("stdout", "stderr"):
        setattr(sys, name, _replaced(name, streams))
    try:
        yield streams
    finally:
        for name, stream in zip(("stdout", "stderr"), kept, strict=True):
            mine = getattr(sys, name)
            if mine is not stream and mine is not None:
                mine.flush()
            setattr(sys, name, stream)


def _replaced(name: str, streams: Streams) -> Any:
    """A lasting stream in place of a standard stream."""
    stream = getattr(sys, name)
    if stream is None:  # the stream was closed before the program began
        return open(os.devnull, "w", encoding="utf-8")
    try:
        stream.flush()
        number = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream
    raw = streams.raw[name] = _Lasting(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=name == "stderr" or raw.isatty(),
        write_through=name == "stderr",
    )
