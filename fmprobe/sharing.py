"""Processes that share the work of a command. torchrun or accelerate launches them, and they agree through shared
counters.

They draw work from the counters, so that none idles, and leave what they found in the run folder, which all of them
see (on nodes without a common file system through `nodes`). The main process gathers it, and decides for all what is
there already. They exchange nothing else, so a group of one is not a special case.
"""

import json
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

PATIENCE = 0.05  # seconds between two looks at what another process has done
FAREWELL = 5.0  # seconds that the main process waits for the others to leave
PIECE = 2**22  # bytes in one value of the store, which takes no more than 8 MiB


class Abandoned(Exception):
    """Another process met an error and has reported it."""


def launched() -> int:
    """Number of processes that were launched together. This imports nothing heavy."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process prints and writes the results. This imports nothing heavy."""
    return int(os.environ.get("RANK", "0")) == 0


class Team:
    """The processes of one launch. All of them must make counters and reach barriers in the same order.

    Args:
        store: the store of torch.distributed that they share.
        rank: rank of this process; the main process has rank 0.
        size: number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.is_main = rank == 0
        self.passed: list[Callable[[], object]] = []  # are called by `refresh`, so at each barrier
        self._by_itself = False
        self._numbers = count()

    def counter(self) -> Callable[[int], int]:
        """Make a shared counter that starts at 0. It adds an amount and returns its value; who adds draws that much
        work.
        """
        name = f"counter/{next(self._numbers)}"
        return lambda amount: self.store.add(name, amount)

    def barrier(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until every process has come here.

        Args:
            meanwhile: called between two looks.

        Raises:
            Abandoned: another process met an error.
        """
        self._check_not_by_itself()
        arrived = self.counter()
        arrived(1)
        while arrived(0) < self.size:
            self.check()
            meanwhile()
            time.sleep(PATIENCE)
        self.refresh()

    def refresh(self) -> None:
        """See what the main process has in its folder by now; on a common file system that takes nothing."""
        for call in self.passed:
            call()

    def told(self, make: Callable[[], Any]) -> Any:
        """What the main process makes, in every process: a value that JSON holds.

        Raises:
            Abandoned: another process met an error.
        """
        if self.size == 1:
            return make()
        self._check_not_by_itself()
        key = f"told/{next(self._numbers)}"
        if self.is_main:
            value = make()
            text = json.dumps(value).encode()
            pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
            for i, piece in enumerate(pieces):
                self.store.set(f"{key}/{i}", piece)
            self.store.set(key, str(len(pieces)))
            return value
        while not self.store.check([key]):
            self.check()
            time.sleep(PATIENCE)
        names = [f"{key}/{i}" for i in range(int(self.store.get(key)))]
        text = b"".join(self.store.get(name) for name in names)
        if self.store.add(f"{key}/read", 1) == self.size - 1:
            for name in (*names, key, f"{key}/read"):
                self.store.delete_key(name)
        return json.loads(text)

    @contextmanager
    def by_itself(self) -> Iterator[None]:
        """A part that this process goes through while others do something else. To wait for them in it is an error,
        since they would never come.
        """
        self._by_itself = True
        try:
            yield
        finally:
            self._by_itself = False

    def _check_not_by_itself(self) -> None:
        if self._by_itself and self.size > 1:
            raise RuntimeError("a process waits for the others where each is by itself: as in a sweep, without in_turn")

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A part that the main process goes through before the others. It must hold neither counters nor barriers."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def check(self) -> None:
        """Check that no other process has failed.

        Raises:
            Abandoned: another process met an error.
        """
        if self.size > 1 and self.store.check(["failed"]):
            raise Abandoned

    def fail(self) -> bool:
        """Tell the others that this process cannot go on. Return whether it is the first to fail and should say why."""
        mine = str(self.rank)
        return self.store.compare_set("failed", "", mine) == mine.encode()

    def leave(self) -> None:
        """Leave the team. The main process, which may hold the store, waits a little until the others have left."""
        left, until = self.store.add("left", 1), time.monotonic() + FAREWELL
        while self.is_main and left < self.size and time.monotonic() < until:
            time.sleep(PATIENCE)
            left = self.store.add("left", 0)


def take_device() -> None:
    """Make "cuda" mean a different accelerator in each process of a launch."""
    import torch

    if launched() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@cache
def team() -> Team:
    """The processes of this launch; a team of one if it is not shared."""
    distributed: Any = import_module("torch.distributed")
    if launched() == 1:
        return Team(distributed.HashStore(), 0, 1)
    take_device()
    # This is the store that a process group would use. Several users may share it.
    store, rank, size = next(distributed.rendezvous("env://"))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Team(distributed.PrefixStore(f"fmprobe/{restart}", store), rank, size)


@contextmanager
def quiet_unless_main() -> Iterator[None]:
    """Print nothing in this part unless this is the main process. Errors that leave the part are still shown."""
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
    """Run a part in which the processes of a launch behave as one program.

    Only the main process prints, and it continues if nobody reads its output. The exit code is 2 for bad input, or if
    standard output did not take everything, with one line on stderr. It is 130 or 143 if a signal stopped the program.
    Any other fault shows its traceback. If one process fails, the others end as soon as they notice, and one of them
    says why.
    """
    with lasting_streams() as streams, _ended_together(streams):
        yield


@contextmanager
def _ended_together(streams: Streams) -> Iterator[None]:
    """Turn an error in this part into an exit code, and decide which process says why."""
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
            ignore()  # a launcher sends signals to the others as soon as one has ended
            team().leave()


def _check_working_folder() -> None:
    """Raise InputError if the working folder is gone, since no path can be found in it."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the working folder has been deleted: change to another and run the command again") from error


def _give_up(line: str = "") -> None:
    """Say why, unless another process gave up before, and let the others end too."""
    ignore()
    first = launched() == 1 or team().fail()
    if line and first:
        print(f"fmprobe: {line}", file=sys.stderr)


@contextmanager
def alone() -> Iterator[None]:
    """Run a program that is not shared: the main process of a launch goes through it as if it were the only one.

    The other processes end here, at once. So the processes must not have met before.
    """
    if not is_main():
        raise SystemExit(0)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    with together():
        yield
