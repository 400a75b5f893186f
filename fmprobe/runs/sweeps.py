"""Sweeps: results of named conditions, which processes share, which are kept on disk and can be resumed."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fmprobe.errors import InputError, WriteError
from fmprobe.files import read_json, write_json
from fmprobe.nodes import is_apart, reached
from fmprobe.runs.folder import RunFolder
from fmprobe.sharing import PATIENCE, team

LONGEST = 120  # largest number of characters of a file's name before its suffix

Work = Callable[[str, dict[str, Any]], Any]


def sweep(
    work: Work,
    conditions: Mapping[str, Mapping[str, Any]],
    folder: Path,
    within: Path | None = None,
    *,
    in_turn: bool = False,
) -> Iterator[tuple[str, Any]]:
    """Yield the name and result of every condition, in order, each as soon as it is there.

    The processes of one launch draw conditions from a shared counter. All of them must come here, and take every
    result. A result that is there with the same settings is not computed again.

    Args:
        work: `work(name, settings)` computes one result from its settings alone, a value that JSON holds; nan and
            infinity are allowed. It must not wait for other processes, unless `in_turn`.
        conditions: the settings by name, as JSON holds them, that decide the results.
        folder: folder that keeps each result in a file of its own.
        within: folder around it, if `work` leaves files there too.
        in_turn: whether all processes compute each result together, for work that is itself shared, such as a fit. The
            main process's result is kept.

    Raises:
        InputError: the processes came with different conditions, another run is at work in the folder, or it cannot be
            written.
        Abandoned: another process met an error.
    """
    crew = team()
    wanted = {name: json.loads(_text(settings)) for name, settings in conditions.items()}
    with _guarded(folder) if crew.is_main else nullcontext(), reached(within or folder):
        missing = crew.told(lambda: [name for name in wanted if not kept(folder, name, wanted[name])])
        for name in missing if is_apart(folder) else ():  # a node may hold results of an earlier launch
            file_of(folder, name).unlink(missing_ok=True)
        draw, total = crew.counter(), crew.counter()
        mark = int.from_bytes(sha256(_text(list(wanted.items())).encode()).digest()[:4])
        total(mark)
        crew.barrier()
        if total(0) != crew.size * mark:  # the processes would wait for each other for ever
            raise InputError("processes of one launch came to a sweep with different conditions: launch them alike")
        drawn = 0
        for name in wanted:
            if in_turn and name in missing:
                _compute(work, name, wanted[name], folder if crew.is_main else None)
                crew.barrier()
            while not (found := kept(folder, name, wanted[name])):
                if drawn < len(missing) and (drawn := draw(1)) <= len(missing):
                    mine = missing[drawn - 1]
                    with crew.by_itself():
                        _compute(work, mine, wanted[mine], folder)
                else:
                    crew.check()
                    time.sleep(PATIENCE)
                    crew.refresh()
            yield name, found["result"]


def _compute(work: Work, name: str, settings: dict[str, Any], folder: Path | None) -> None:
    """Compute a result, and keep it in the folder if there is one."""
    began = time.process_time()
    result = work(name, deepcopy(settings))  # a copy, since `work` may change its argument
    cost = {"processor_seconds": round(time.process_time() - began, 1)}
    if folder is not None:
        write_json(file_of(folder, name), {"settings": settings, "result": result, **cost}, exact=True)


def file_of(folder: Path, name: str) -> Path:
    """The file of a condition's result. Characters that a file name may not hold are written as in a URL."""
    safe = quote(name, safe=" ,=+()")
    safe = safe.replace(".", "%2E", 1) if safe.startswith(".") else safe
    if len(safe) > LONGEST:
        safe = f"{safe[: LONGEST - 17]}-{sha256(name.encode()).hexdigest()[:16]}"
    return folder / f"{safe}.json"


def results_in(folder: Path) -> list[dict[str, Any]]:
    """The content of every condition's file in a folder, by name: `settings`, `result` and `processor_seconds`."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if {"settings", "result"} <= content.keys():
            found.append(content)
    return found


def kept(folder: Path, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a condition's file in the folder; empty if it is missing, damaged or of other settings."""
    try:
        content = read_json(file_of(folder, name))
    except InputError:
        return {}
    same = "result" in content and _text(content.get("settings")) == _text(settings)
    return content if same else {}


def _text(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True, allow_nan=False, default=str)


def _guarded(folder: Path) -> AbstractContextManager[None]:
    """Lock the folder while the launch works in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from error
    return RunFolder(folder).locked()
