"""Results as a page shows them: without the folders of the machine that made them."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# An absolute path in a text. It ends at a blank, unless all of the text is the path.
WITHIN = re.compile(r"(?<![\w.~/:\\-])(?:/(?:[^\s/'\",;()]+/)+[^\s/'\",;()]*|[A-Za-z]:\\[^\s'\",;()]+)")
COMMAND = "command"  # the key whose text is words for a shell


def without_folders(results: dict[str, Any]) -> dict[str, Any]:
    """Results in which every absolute path is the end of it that tells it from the others, mostly its name.

    Relative paths and names of the hub stay as they are, and so does the file `results.json`.
    """
    paths = {path for text, key in _texts(results) for path in _paths(text, key)}
    short = {path: _shortest(path, paths) for path in paths}

    def shown(text: str, key: str) -> str:
        if key == COMMAND:
            return shlex.join(shown(word, "") for word in _words(text))
        for path in sorted(_paths(text, key), key=len, reverse=True):
            text = text.replace(path, short[path])
        return text

    return _each(results, shown)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of nested results, and the key that it lies under; keys are texts as well."""
    if isinstance(value, str):
        yield value, key
    elif isinstance(value, dict):
        for name, content in value.items():
            yield name, ""
            yield from _texts(content, name)
    elif isinstance(value, list):
        for content in value:
            yield from _texts(content, key)


def _each(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    if isinstance(value, str):
        return change(value, key)
    if isinstance(value, dict):
        return {change(name, ""): _each(content, change, name) for name, content in value.items()}
    return [_each(content, change, key) for content in value] if isinstance(value, list) else value


def _paths(text: str, key: str) -> list[str]:
    """The absolute paths in a text."""
    if key == COMMAND:
        return [path for word in _words(text) for path in _paths(word, "")]
    whole = text.partition("=")[2] if re.match(r"\w+=", text) else text  # as in NAME=SOURCE
    if _parts(whole) and "\n" not in whole and ". " not in whole and ", " not in whole:
        return [whole]
    return WITHIN.findall(text)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a command that a person changed
        return command.split()


def _parts(path: str) -> tuple[str, ...]:
    """The parts of an absolute path below its root; none for another text."""
    found = PurePosixPath(path) if path.startswith("/") else PureWindowsPath(path)
    return found.parts[1:] if found.is_absolute() and len(found.parts) > 1 else ()


def _shortest(path: str, paths: set[str]) -> str:
    """The last parts of a path, as many as no other path ends with."""
    parts = _parts(path)
    for n in range(1, len(parts)):
        if not any(other != path and _parts(other)[-n:] == parts[-n:] for other in paths):
            return "/".join(parts[-n:])
    return "/".join(parts)
