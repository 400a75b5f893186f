"""fmprobe cache: what is kept on disk so that it is not computed again, its size, and removing it."""

import contextlib
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.errors import InputError

KINDS = ("decoders", "features", "fits")  # fits that were cut off, which go on when they are asked for again
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SHORT = 12  # characters of a key that are shown

Remove = Annotated[
    list[str] | None,
    typer.Option(
        "--remove", metavar="KEY", help="Remove an entry by its key, or all. Repeatable.", rich_help_panel="Removal"
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        "--max-size",
        metavar="SIZE",
        help="Remove what was used longest ago until SIZE is left, as in 2GB.",
        rich_help_panel="Removal",
    ),
]


@dataclass(frozen=True)
class Entry:
    """One thing that is kept.

    Attributes:
        path: Its folder or file.
        model: The model that it is of; empty where that is not recorded.
        images: Number of images whose features it holds; None for anything else.
        size: Bytes on disk.
        used: When it was written or last used, in seconds since 1970.
    """

    path: Path
    model: str
    images: int | None
    size: int
    used: float

    @property
    def row(self) -> dict[str, Any]:
        """The entry as `--json` prints it."""
        used = datetime.fromtimestamp(self.used).isoformat(" ", "minutes")
        kind = self.path.parent.name.removesuffix("s")
        return {"key": self.path.name, "kind": kind, "model": self.model, "bytes": self.size, "used": used}

    @property
    def about(self) -> str:
        """The model, and the number of images whose features are kept."""
        return ", ".join(filter(None, [self.model, "" if self.images is None else f"{self.images:,} images"]))


def cache(remove: Remove = None, max_size: MaxSize = None) -> list[dict[str, Any]]:
    """List what is kept for later runs, and remove what you name. It is all computed again when it is needed.

    Decoders that were fitted and features of the images that they are fitted on lie in `$XDG_CACHE_HOME/fmprobe`, by
    default in `~/.cache/fmprobe`. Models and data sets of the hub are kept by its own client: see `hf cache`.

    Example: fmprobe cache --max-size 2GB
    """
    limit = None if max_size is None else _bytes(max_size)
    entries = _entries()
    gone = _named(entries, remove or [])
    left = [entry for entry in entries if entry not in gone]
    while limit is not None and left and sum(entry.size for entry in left) > limit:
        gone.append(left.pop())
    for entry in gone:
        _delete(entry.path)
        typer.echo(f"removed {entry.path.name[:SHORT]}, {_said(entry.size)}")
    rows = [(e.path.name[:SHORT], e.row["kind"], _said(e.size), e.row["used"], e.about) for e in left]
    rows = [("key", "kind", "size", "last used", "of"), *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    typer.echo(f"{len(left)} kept, {_said(sum(entry.size for entry in left))}, in {_folder()}")
    return [entry.row for entry in left]


def _folder() -> Path:
    from fmprobe.surrogates.features import cache_folder

    return cache_folder("")


def _entries() -> list[Entry]:
    """Everything that is kept, the latest used first."""
    folders = [folder for kind in KINDS if (folder := _folder() / kind).is_dir()]
    found = [_entry(path) for folder in folders for path in folder.iterdir()]
    return sorted(found, key=lambda entry: (-entry.used, entry.path.name))


def _entry(path: Path) -> Entry:
    from fmprobe.files import read_json
    from fmprobe.surrogates.features import read_meta

    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    model, images = "", None
    with contextlib.suppress(InputError, LookupError, TypeError, ValueError, OSError):
        if path.parent.name == "features":
            meta = read_meta(path)
            model, images = meta.get("model", ""), meta["n"]
        else:
            model = read_json(path / "config.json")["info"]["model"]
    return Entry(path, str(model), images, sum(file.stat().st_size for file in files), path.stat().st_mtime)


def _named(entries: list[Entry], keys: list[str]) -> list[Entry]:
    """The entries whose keys begin with one of these, or all. Raises InputError where a key names not one."""
    found = []
    for key in keys:
        matching = entries if key == "all" else [entry for entry in entries if entry.path.name.startswith(key)]
        if key != "all" and len(matching) != 1:
            raise InputError(f"--remove {key}: expected all, or the key of one entry that `fmprobe cache` lists")
        found += [entry for entry in matching if entry not in found]
    return found


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be removed ({error.strerror or error}): permit it") from error


def _bytes(text: str) -> int:
    """A size such as 500MB or 2GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    if match is None or match[2] not in UNITS:
        raise InputError(f"--max-size {text}: expected a number of bytes, or a size such as 500MB or 2GB")
    return int(float(match[1]) * UNITS[match[2]])


def _said(size: int) -> str:
    unit = next(unit for unit in ("TB", "GB", "MB", "KB", "B") if size >= UNITS[unit] or unit == "B")
    return f"{size / UNITS[unit]:.3g} {unit}"
