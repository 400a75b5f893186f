"""Files that are never half-written: each is written beside its place, flushed to disk and then renamed."""

import contextlib
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fmprobe.errors import InputError, WriteError

RESULTS = "results.json"  # what a finished run found
SCHEMA = 1  # of results.json
READABLE = 0o644  # of files, before the umask

placed: list[Callable[[Path], object]] = []  # are called with each file that was written here, once it is whole


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it into place.

    Raises:
        WriteError: the disk is full or the folder cannot be written. Then `path` is as it was before.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, mode = _new_file(path)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # safetensors puts a private file in the place of the one that it was given
        temporary.replace(path)
        _sync_folder(path.parent)
        for call in placed:
            call(path)
    except OSError as error:
        raise error if isinstance(error, InputError) else WriteError(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def append(path: Path, content: bytes, *, flush: bool = False) -> None:
    """Add whole lines to a file, which several processes may do. What a kill cut short gets a line of its own.

    Args:
        path: the file.
        content: the lines.
        flush: whether they are flushed to disk.

    Raises:
        WriteError: the disk is full or the file cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, READABLE)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                content = b"\n" + content
            while content:  # one call, so that lines of several processes do not mix; a full disk takes a part
                content = content[os.write(handle, content) :]
            if flush:
                os.fsync(handle)
        finally:
            os.close(handle)
        for call in placed:
            call(path)
    except OSError as error:
        raise error if isinstance(error, InputError) else WriteError(path, error) from error


def _new_file(path: Path) -> tuple[Path, int]:
    """An empty file of a new name beside a path, and its mode: others may read it, unless the umask forbids it."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, READABLE)
    try:
        return temporary, stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def is_own(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, with links followed.

    The hub's client fetches a repository as links to a store beside them, and these files are the folder's own.
    """
    real, home = path.resolve(), folder.resolve()
    fetched = next((place for place in (home, *home.parents) if place.parent.name == "snapshots"), None)
    stores = [] if fetched is None else [fetched.parent.parent / "blobs"]
    return any(real.is_relative_to(place) for place in (home, *stores))


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any, *, exact: bool = False) -> None:
    """Write JSON in UTF-8, indented. JSON lacks nan and infinity, so they become null.

    `exact` keeps them, spelled as Python's own reader and writer do, for files that only fmprobe reads.
    """
    content = content if exact else finite(content)[0]
    text = json.dumps(content, indent=2, allow_nan=exact, default=plain) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def finite(content: Any) -> tuple[Any, int]:
    """Content as JSON can hold it, with None for numbers that are not finite; and how many such numbers there were."""
    count = 0

    def cleaned(value: Any) -> Any:
        nonlocal count
        if isinstance(value, Mapping):
            return {key: cleaned(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            count += 1
            return None
        return value

    return cleaned(content), count


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file is missing, unreadable or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: expected a file that fmprobe wrote") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): run the command again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: run the command again")
    return content


def plain(value: Any) -> Any:
    """Convert a value that `json` does not know."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
