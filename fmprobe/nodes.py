"""Nodes of a cluster without a common file system: what their processes write into a folder comes to the main process's
folder, and they see what that holds, through the store of the launch.

A process of another node asks, a few megabytes at a time, and a thread of the main process answers. So nothing piles up
in the store, and the main process need not pause. Where all processes see one folder, none of this begins.
"""

import json
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from fmprobe import files
from fmprobe.digests import file_digest
from fmprobe.errors import InputError, WriteError
from fmprobe.sharing import PATIENCE, PIECE, Team, team

LATE = 5.0  # seconds after which a network file system shows a new file
SOON = 0.002  # seconds between two looks while files are on their way
GRACE = 2.0  # seconds for which an answer is waited for although another process has failed

_reached: dict[Path, "_Mirror | None"] = {}  # folders that are common; None where this process sees the main one's
_served: dict[str, tuple[Path, Sequence[str]]] = {}  # folders of the main process by token, and what they leave out


@contextmanager
def reached(folder: Path, *, scratch: bool = False, left_out: Sequence[str] = ()) -> Iterator[Path]:
    """A part in which what lies below a folder is common to all processes, as if they were on one file system.

    All processes come here, after the main process has made the folder. What one of them writes by `fmprobe.files` is
    in the main process's folder at once, and all see what that holds after each barrier.

    Args:
        folder: the folder, by the name that each process has for it.
        scratch: whether a process that does not see the main process's folder gets an empty one, which is deleted in
            the end, rather than one of the same name.
        left_out: patterns of names, of files and of folders, that processes of other nodes need not see.

    Yields:
        Where this process has the folder.
    """
    crew = team()
    if crew.size == 1 or any(folder.absolute().is_relative_to(known) for known in _reached):
        yield folder
        return
    token, alone, apart = _met(crew, folder, folder, left_out)
    with ExitStack() as stack:
        path = folder
        if alone and scratch:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fmprobe-")))
        mirror = _Mirror(crew, token, path.absolute()) if alone else None
        _reached[path.absolute()] = mirror
        stack.callback(_reached.pop, path.absolute())
        if mirror is not None:
            files.placed.append(mirror.deliver)
            stack.callback(files.placed.remove, mirror.deliver)
            crew.passed.append(mirror.refresh)
            stack.callback(crew.passed.remove, mirror.refresh)
            mirror.refresh()
        yield path
    if apart:
        crew.barrier()  # the main process stays until nobody asks any more


def is_apart(path: Path) -> bool:
    """Whether a path lies in a folder that this process has of its own, because it does not see the main process's."""
    return _mirror_of(path) is not None


def append(path: Path, content: bytes, *, flush: bool = False) -> None:
    """Add whole lines to a file, as `files.append` does; to that of the main process, wherever this process is."""
    mirror = _mirror_of(path)
    if mirror is None:
        files.append(path, content, flush=flush)
    else:
        mirror.ask("append", content, path=mirror.name(path), flush=flush)


def level(folder: Path) -> None:
    """Make a folder hold in every process what it holds in the main process, for what lies beside a run.

    All processes come here. On a node that has something else under this name, that is replaced.

    Raises:
        InputError: the folder cannot be written on this node.
    """
    crew = team()
    if crew.size == 1:
        return
    wanted, unlike = crew.told(lambda: _contents(folder)), crew.counter()
    unlike(int(_contents(folder) != wanted))
    crew.barrier()
    if not unlike(0):
        return
    token, alone, _ = _met(crew, folder.parent, folder)
    if alone:
        shutil.rmtree(folder, ignore_errors=True)
    crew.barrier()
    if alone and wanted:
        with suppress(OSError):  # another process of this node may have put the same there
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as scratch:
                _Mirror(crew, token, Path(scratch).absolute() / "new").refresh()
                (Path(scratch) / "new").rename(folder)
    crew.barrier()
    if not _soon(lambda: _contents(folder) == wanted):
        raise InputError(f"{folder} is not what the main process has there: delete it, or make its folder writable")


class _Mirror:
    """A folder of a process that does not see the main process's, which is kept like that one.

    Args:
        crew: the processes.
        token: what the main process calls its folder.
        path: this process's folder.
    """

    def __init__(self, crew: Team, token: str, path: Path) -> None:
        self.crew, self.token, self.path = crew, token, path
        self._known: dict[str, list[int]] = {}  # files that are here as they are there, and their marks

    def name(self, path: Path) -> str:
        """What both sides call a file of the folder."""
        return path.absolute().relative_to(self.path).as_posix()

    def refresh(self) -> None:
        """Bring whatever has changed in the main process's folder."""
        changed = True
        while changed:  # a folder that is written to while it is listed may show a later file and not an earlier one
            there, _ = self.ask("list")
            for name in self._known.keys() - there.keys():
                (self.path / name).unlink(missing_ok=True)
                del self._known[name]
            changed = [name for name, mark in there.items() if self._known.get(name) != mark]
            for name in changed:
                self._bring(name)

    def _bring(self, name: str) -> None:
        target = self.path / name
        partial = _partial(target, self.crew.rank)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            mark, at = None, 0
            with partial.open("wb") as file:
                while mark is None or at < mark[1]:
                    now, content = self.ask("read", path=name, at=at)
                    if now is None:  # it is gone
                        return
                    if mark not in (None, now):  # it has been written anew
                        mark, at = None, 0
                        file.truncate(0)
                        file.seek(0)
                        continue
                    mark, at = now, at + file.write(content)
            os.utime(partial, ns=(mark[0], mark[0]))  # so that it counts as unchanged should this be the same folder
            partial.replace(target)
            self._known[name] = mark
        except OSError as error:
            raise error if isinstance(error, InputError) else WriteError(target, error) from error
        finally:
            partial.unlink(missing_ok=True)

    def deliver(self, path: Path) -> None:
        """Bring a file of this folder to the main process's."""
        if not path.absolute().is_relative_to(self.path) or _is_hidden(name := self.name(path)):
            return
        size, at, mark = path.stat().st_size, 0, None
        with path.open("rb") as file:
            while mark is None:
                content = file.read(PIECE)
                mark, _ = self.ask("write", content, path=name, at=at, last=at + len(content) >= size)
                at += len(content)
        self._known[name] = mark

    def ask(self, do: str, content: bytes = b"", **how: Any) -> tuple[Any, bytes]:
        """Ask the main process to do something in its folder; returns what it says, and a part of a file.

        Raises:
            InputError: it cannot.
            Abandoned: another process met an error.
        """
        store = self.crew.store
        number, began = store.add("asked", 1), time.monotonic()
        store.set(f"asked/{number}", _packed({"do": do, "folder": self.token, "rank": self.crew.rank, **how}, content))
        while not store.check([f"answered/{number}"]):
            time.sleep(SOON)
            if time.monotonic() - began > GRACE:
                self.crew.check()
        said, content = _unpacked(store.get(f"answered/{number}"))
        store.delete_key(f"answered/{number}")
        if "error" in said:
            raise InputError(said["error"])
        return said["said"], content


def _mirror_of(path: Path) -> _Mirror | None:
    return next((one for home, one in _reached.items() if path.absolute().is_relative_to(home)), None)


def _met(crew: Team, folder: Path, served: Path, left_out: Sequence[str] = ()) -> tuple[str, bool, bool]:
    """Find out which processes see a folder of the main process. If some do not, it gives them what they ask for.

    Args:
        crew: the processes.
        folder: the folder that they look into.
        served: the folder that others may ask for.
        left_out: what is not listed of it.

    Returns:
        What others call the folder that is served; whether this process does not see the main one's folder; and
        whether any process does not.
    """
    token = crew.told(lambda: _marked(folder))
    _served[token] = served.absolute(), left_out
    alone = not crew.is_main and not _soon(lambda: _shows(folder, token))
    apart = crew.counter()
    apart(int(alone))
    crew.barrier()
    if crew.is_main:
        (folder / token).unlink(missing_ok=True)
        if apart(0):
            _thread(crew)
    return token, alone, apart(0) > 0


def _marked(folder: Path) -> str:
    """The name of a new file in a folder, which no other folder holds. Where a kill leaves it, a run tidies it away."""
    name = f".{secrets.token_hex(8)}.tmp"
    files.write_atomically(folder / name, lambda temporary: temporary.write_bytes(b""))
    return name


def _shows(folder: Path, name: str) -> bool:
    """Whether a folder shows a file. A listing is asked for, since a network may keep in mind that a name is absent."""
    with suppress(OSError):
        return name in os.listdir(folder)
    return False


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether something is so within the time that a network file system may take to show it."""
    until = time.monotonic() + LATE
    while not (so := condition()) and time.monotonic() < until:
        time.sleep(PATIENCE)
    return so


@cache
def _thread(crew: Team) -> threading.Thread:
    """The thread of the main process that gives other processes what its folders hold, and takes what they write."""
    thread = threading.Thread(target=_answer_all, args=(crew,))
    thread.start()
    return thread


def _answer_all(crew: Team) -> None:
    """Answer whatever is asked, until the main thread ends."""
    store, number, pause = crew.store, 1, PATIENCE
    while threading.main_thread().is_alive():
        if not store.check([f"asked/{number}"]):
            time.sleep(pause)
            pause = min(2 * pause, PATIENCE)
            continue
        asked, content = _unpacked(store.get(f"asked/{number}"))
        store.delete_key(f"asked/{number}")
        try:
            said, content = _answer(asked, content)
            answer = _packed({"said": said}, content)
        except Exception as error:  # of whatever kind: the process that asked waits, and ends all of them with it
            answer = _packed({"error": str(error)})
        store.set(f"answered/{number}", answer)
        number, pause = number + 1, SOON


def _answer(asked: Mapping[str, Any], content: bytes) -> tuple[Any, bytes]:
    """Do what a process of another node asks; returns what it is told, and a part of a file."""
    home, left_out = _served[asked["folder"]]
    path = home / asked.get("path", "")
    if asked["do"] == "list":
        return _listed(home, left_out), b""
    if asked["do"] == "read":
        try:
            with path.open("rb") as file:
                file.seek(asked["at"])
                return _mark(os.fstat(file.fileno())), file.read(PIECE)
        except FileNotFoundError:
            return None, b""
    if asked["do"] == "append":
        return files.append(path, content, flush=asked["flush"]), b""
    partial = _partial(path, asked["rank"])
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab" if asked["at"] else "wb") as file:
            file.write(content)
    except OSError as error:
        raise WriteError(path, error) from error
    if not asked["last"]:
        return None, b""
    files.write_atomically(path, partial.replace)
    return _mark(path.stat()), b""


def _listed(home: Path, left_out: Sequence[str] = ()) -> dict[str, list[int]]:
    """The files of a folder that others see, with their marks."""
    found = {}
    for path in home.rglob("*"):
        name = path.relative_to(home).as_posix()
        if not (_is_hidden(name) or any(fnmatch(part, one) for part in name.split("/") for one in left_out)):
            with suppress(FileNotFoundError):  # it has gone since
                found |= {name: _mark(path.stat())} if path.is_file() else {}
    return found


def _contents(folder: Path) -> dict[str, str]:
    """The digest of each file of a folder; empty where there is none."""
    return {name: file_digest(folder / name) for name in sorted(_listed(folder))}


def _mark(status: os.stat_result) -> list[int]:
    return [status.st_mtime_ns, status.st_size]


def _partial(path: Path, rank: int) -> Path:
    """Where a file from another node grows until it is whole. Where a kill leaves it, a run tidies it away."""
    return path.with_name(f".{path.name}.{rank}.tmp")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _packed(head: Mapping[str, Any], content: bytes = b"") -> bytes:
    return json.dumps(head).encode() + b"\n" + content


def _unpacked(value: bytes) -> tuple[dict[str, Any], bytes]:
    head, _, content = value.partition(b"\n")
    return json.loads(head), content
