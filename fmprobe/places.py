"""Names in place of paths: what is shared says nothing of where it lay on the machine that made it."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

ROOT = r"(?:~\w*)?/|[A-Za-z]:[\\/]|\\\\"  # what an absolute path begins with, on every system
WHOLE = re.compile(rf"(?P<before>[^/\\\s]*=)?(?:file://|local-dir:)?(?:{ROOT})(?![/\s])", re.ASCII)
BEFORE = r"(?<![\w.)\]/\\~<])"
# Within a sentence a path ends at the first space, unless it is known as a whole.
WITHIN = re.compile(rf"{BEFORE}(?:file://)?(?:{ROOT})(?![/\s])[^\s\"'`,;<>()|]*", re.ASCII)
COMMAND = "fmprobe "
SOURCE = re.compile(r"images of (.+?); every tenth of \d")  # how a surrogate says what it was fitted to


def is_place(text: str) -> bool:
    """Whether a text is an absolute path."""
    return WHOLE.match(text) is not None


def name_of(place: str) -> str:
    """The last part of a path, with the split and the column of a source of images."""
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1] or "."


def places_in(content: Any) -> Iterator[str]:
    """Every absolute path that is a whole text of JSON content, or a word of a command in it."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from places_in(key)
            yield from places_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from places_in(value)
    elif isinstance(content, str):
        named = SOURCE.search(content)
        for text in _words(content) or [named[1] if named else content]:
            if found := WHOLE.match(text):
                place = text.removeprefix(found["before"] or "")
                yield place
                yield place.partition("#")[0].rpartition(":")[0] or place  # a source without its split


def without_places(content: Any, known: Iterable[str] = ()) -> Any:
    """JSON content with the last part of a path in place of each absolute one, in keys too.

    Args:
        content: what JSON holds.
        known: paths as `places_in` finds them. They may stand within sentences, and two that end alike keep as many of
            their last parts as tell them apart. Other paths are told by their form.
    """
    names = names_of(set(known))

    def cleaned(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {cleaned(key): cleaned(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(item) for item in value]
        return _named(value, names) if isinstance(value, str) else value

    return cleaned(content)


def shown(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a run as a page and a terminal show them: `results.json` itself keeps every path."""
    return without_places(results, places_in(results))


def names_of(places: set[str]) -> dict[str, str]:
    """What each path is called: its last part, or as many as no other path ends with. The longest path comes first."""
    parts = {place: re.split(r"[/\\]+", place.rstrip("/\\")) for place in places}
    names = {}
    for place in sorted(places, key=len, reverse=True):
        mine, others = parts[place], [parts[other] for other in places if parts[other] != parts[place]]
        depth = next((n for n in range(1, len(mine)) if all(other[-n:] != mine[-n:] for other in others)), 0)
        names[place] = "/".join(mine[-depth:]) if depth > 1 else name_of(place)
    return names


def _named(text: str, names: Mapping[str, str]) -> str:
    if words := _words(text):
        return shlex.join(_named(word, names) for word in words)
    if found := WHOLE.match(text):
        before = found["before"] or ""
        return before + names.get(text.removeprefix(before), name_of(text))
    for place, name in names.items():  # which begins and ends where a path may, and not within a word or another path
        text = re.sub(rf"{BEFORE}{re.escape(place)}(?![\w-])", lambda found, name=name: name, text)
    return WITHIN.sub(lambda found: name_of(found[0]), text)


def _words(text: str) -> list[str]:
    """The words of a command of fmprobe; none for another text."""
    try:
        return shlex.split(text) if text.startswith(COMMAND) and "\n" not in text else []
    except ValueError:  # a quote without its end: no command
        return []
