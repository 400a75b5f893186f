"""Processes that share a command's work: launched by torchrun or accelerate, agreeing through a store of counters.

They draw work from shared counters, so that none idles, and leave what they found in the run folder, which all of them
see; the main process gathers it. Nothing else passes between them, so a group of one is no special case.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import count
from typing import Any

from fmprobe.errors import InputError
from fmprobe.stopping import Stopped, ignore
from fmprobe.streams import Streams, lasting_streams

PATIENCE = 0.05  # seconds between looks at what another process has done
FAREWELL = 5.0  # seconds that the main process waits for the others to leave


class Abandoned(Exception):
    """Another process met an error, which it has reported."""


def launched() -> int:
    """How many processes were launched together; imports nothing heavy."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process prints and writes the results; imports nothing heavy."""
    return int(os.environ.get("RANK", "0")) == 0


class Team:
    """The processes of one launch. `rank` of this one, `size` of all; the main one has rank 0.

    All of them must make counters and come to barriers in the same order.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.is_main = rank == 0
        self._numbers = count()

    def counter(self) -> Callable[[int], int]:
        """A shared counter, from 0: add to it and get its value. Whoever adds draws that much of the work."""
        name = f"counter/{next(self._numbers)}"
        return lambda amount: self.store.add(name, amount)

    def barrier(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until every process has come here. Raises Abandoned where one met an error."""
        arrived = self.counter()
        arrived(1)
        while arrived(0) < self.size:
            self.check()
            meanwhile()
            time.sleep(PATIENCE)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A part, without counters or barriers, that the main process goes through before the others."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def check(self) -> None:
        """Raises Abandoned where another process met an error."""
        if self.size > 1 and self.store.check(["failed"]):
            raise Abandoned

    def fail(self) -> bool:
        """Tell the others that this process cannot go on; whether it is the first to say so, and should say why."""
        mine = str(self.rank)
        return self.store.compare_set("failed", "", mine) == mine.encode()

    def leave(self) -> None:
        """The last word of a process. The main one, which may hold the store, waits a little for the others'."""
        left, until = self.store.add("left", 1), time.monotonic() + FAREWELL
        while self.is_main and left < self.size and time.monotonic() < until:
            time.sleep(PATIENCE)
            left = self.store.add("left", 0)


def take_device() -> None:
    """Let "cuda" mean an accelerator of its own to each process of a launch."""
    import torch

    if launched() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@cache
def team() -> Team:
    """This launch's processes; alone, where nothing launched several."""
    distributed: Any = import_module("torch.distributed")
    if launched() == 1:
        return Team(distributed.HashStore(), 0, 1)
    take_device()
    # The store that a process group would be set up with; several may share it.
    store, rank, size = next(distributed.rendezvous("env://"))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Team(distributed.PrefixStore(f"fmprobe/{restart}", store), rank, size)


@contextmanager
def quiet_unless_main() -> Iterator[None]:
    """What the other processes print goes nowhere; their faults, which leave this part, are shown."""
    if is_main():
        yield
        return
    kept = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = kept


@contextmanager
def together() -> Iterator[None]:
    """What the processes of a launch go through as one program; with one process, that program.

    The main process alone prints, and goes on where nobody reads it. Exit 2: bad input, or a standard output that took
    not everything, one line on stderr; 130, 143: stopped; else a fault, with its traceback. Where one process fails,
    the others end as soon as they look, and one of them says why.
    """
    with lasting_streams() as streams, _ended_together(streams):
        yield


@contextmanager
def _ended_together(streams: Streams) -> Iterator[None]:
    """What an error in this part means for the launch: who says why, and the exit code."""
    try:
        with quiet_unless_main():
            try:
                _check_working_folder()
                yield
            except SystemExit as end:
                if not end.code:
                    streams.check()
                raise
            streams.check()
    except InputError as error:
        _give_up(str(error))
        raise SystemExit(2) from None
    except Abandoned:
        raise SystemExit(2) from None
    except Stopped as stopped:
        if is_main():
            _give_up(str(stopped))
        raise SystemExit(stopped.exit_code) from None
    except Exception as error:
        try:
            _check_working_folder()
        except InputError as why:
            _give_up(str(why))
            raise SystemExit(2) from error
        _give_up()
        raise
    finally:
        if launched() > 1 and "torch" in sys.modules:
            ignore()  # a launcher ends the others as soon as one has gone
            team().leave()


def _check_working_folder() -> None:
    """Raise InputError where the working folder is gone, in which no path can be found."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the working folder has been deleted: change to another and run the command again") from error


def _give_up(line: str = "") -> None:
    """Print why, unless another process gave up before, and let the others end too."""
    ignore()
    first = launched() == 1 or team().fail()
    if line and first:
        print(f"fmprobe: {line}", file=sys.stderr)


@contextmanager
def alone() -> Iterator[None]:
    """For a program that is not shared: of a launch's processes the main one goes through it, as if by itself.

    The others end here, at once; so nothing may have let the processes meet before.
    """
    if not is_main():
        raise SystemExit(0)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    with together():
        yield
