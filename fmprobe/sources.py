"""Sources of images, `SOURCE[:split][#column]`: a hub data set, a folder, parquet or .npz as a list of pictures."""

import os
import warnings
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from fmprobe.errors import InputError, SourceError
from fmprobe.pixels import SUFFIXES, Picture, from_array, from_file, printable

SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "val"), "val": ("val", "validation")}
SPLIT_FORM = "SOURCE[:split][#column]"
STREAMING = "streaming:"  # before a data set of the hub of which only what is asked for is downloaded
FOLDERS = "folders"  # names the classes of a folder of images: those of its subfolders
ENCODED = ("string", "large_string", "binary", "large_binary")  # values that can be paths or files of images
SHARDS = 16  # files of a streamed data set that images are taken from, at most
JUNK = {"thumbs.db", "desktop.ini", "__macosx"}  # left in folders by operating systems, beside names with a leading dot


@dataclass(frozen=True)
class Source:
    """A parsed source.

    Attributes:
        name: the data set, folder or file.
        split: the split, or the key of an .npz file; None for the default.
        column: the column; None for the default.
    """

    name: str
    split: str | None = None
    column: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Parse the text of a source. Split and column are what follows a name that exists.

        A name may itself hold both signs, and a drive its colon.
        """
        before, colon, after = text.rpartition(":")
        if _exists(text):
            return cls(text)
        if colon and "/" not in after and "\\" not in after and _exists(before):
            split, mark, column = after.partition("#")
            return cls(before, _named(text, split), _named(text, column) if mark else None)
        rest, mark, column = text.rpartition("#")
        rest, column = (rest, _named(text, column)) if mark else (text, None)
        name, colon, split = rest.rpartition(":")
        if not colon or _exists(rest) or "/" in split or "\\" in split:
            return cls(_named(text, rest), None, column)
        return cls(_named(text, name), _named(text, split), column)


@dataclass(frozen=True)
class Pictures:
    """The pictures of a source, in order.

    Attributes:
        count: number of pictures.
        label: gives the name of picture i.
        decode: decodes picture i.
        classes: gives the class of every picture by the name of what holds them; None where nothing does.
    """

    count: int
    label: Callable[[int], str]
    decode: Callable[[int], Picture]
    classes: Callable[[str], Sequence[Any]] | None = None


def find_pictures(text: "str | Path | Sequence[str | Path]", n: int | None = None) -> Pictures:
    """Find the pictures of a source, without decoding any of them.

    Args:
        text: a source, as `fmprobe.images` describes it; or the paths of image files.
        n: how many pictures a streamed source has; it needs it, and others do without.

    Raises:
        InputError: the source cannot be read or holds no images; the message names it.
    """
    if not isinstance(text, str | Path):
        return _of_files([Path(path) for path in text], "the list of paths")
    local = isinstance(text, Path) or Path(text).suffix.lower() in SUFFIXES  # no data set of the hub is meant
    text = str(text)
    if is_streamed(text):
        return _of_stream(Source.parse(text.removeprefix(STREAMING)), n)
    if not _exists(text) and (files := _matching(text)):
        return _of_files(files, text)
    if not _exists(text) and local:
        raise InputError(f"{_said(text)} does not exist: expected an image, or a source of images")
    source = Source.parse(text)
    path = Path(source.name)
    if text == "procedural":
        raise InputError("procedural images are made and not kept: name a data set, a folder, parquet or .npz")
    if source.name == "procedural":
        raise InputError(f"{text}: procedural images have neither split nor column, write only procedural")
    if path.suffix.lower() == ".npz" and not _is_folder(path):
        found = _of_arrays(source)
    elif _is_folder(path):
        found = _of_folder(path, source)
    elif local and path.suffix.lower() in SUFFIXES:
        found = _of_files([path], text)
    elif path.suffix.lower() == ".parquet" or not _exists(source.name):
        found = _of_dataset(source, local=_exists(source.name))
    else:
        raise InputError(f"{_said(path)} is no image source: expected a folder, an image, a .parquet or an .npz file")
    if not found.count:
        raise InputError(_nothing(text))
    return found


def is_streamed(source: object) -> bool:
    """Whether a source is a data set of the hub that is streamed."""
    return isinstance(source, str) and source.startswith(STREAMING) and not _exists(source)


def _of_files(files: list[Path], text: str) -> Pictures:
    """The pictures of image files."""
    for path in files:
        if not path.is_file():
            raise InputError(f"{_said(path)}, of {_said(text)}, is no file: expected an image")
    return Pictures(len(files), lambda i: _said(files[i]), lambda i: from_file(files[i]))


def _matching(pattern: str) -> list[Path]:
    """The image files that a pattern with *, ? or [] matches, in order; ** matches folders within folders.

    A file that links lead to by several ways is taken once.
    """
    if not set(pattern) & set("*?["):
        return []
    found = sorted(path for path in map(Path, glob(pattern, recursive=True)) if not path.is_dir())
    files = [path for path in found if path.suffix.lower() in SUFFIXES]
    if files:
        _warn_of(pattern, [path for path in found if path.suffix.lower() not in SUFFIXES])
    once: dict[tuple[str, str], Path] = {}
    for path in files:
        once.setdefault((os.path.realpath(path.parent), path.name), path)
    return list(once.values())


def _warn_of(name: object, others: list[Path]) -> None:
    """Warn of files that are left out because they are no images."""
    if others:
        what = "1 file is no image and was" if len(others) == 1 else f"{len(others)} files are no images and were"
        warnings.warn(f"{_said(name)}: {what} left out, such as {_said(others[0])}", stacklevel=3)


def _nothing(text: object) -> str:
    return f"{_said(text)} holds no images: expected a data set, a folder of images, parquet or .npz"


def _said(name: object) -> str:
    return printable(name)


def _named(text: str, part: str) -> str:
    """Check a part of a source that a sign announces; raise InputError if it is empty."""
    if not part:
        raise InputError(f"{_said(repr(text))} is no image source: expected {SPLIT_FORM}")
    return part


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # the name is too long for a path or holds a zero byte
        return False


def _is_folder(path: Path) -> bool:
    return _exists(str(path)) and path.is_dir()


@dataclass
class _Listing:
    """What lies below a folder: images and parquet files by name, other files, and links to folders already read."""

    images: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    twice: list[Path] = field(default_factory=list)


def _of_folder(folder: Path, source: Source) -> Pictures:
    """The pictures of a folder of images or of parquet files."""
    listing = _listing(folder)
    if source.split is None:
        _check_one_split(folder, listing)
    tables = [path for path in listing.tables if path.name.lower() != "metadata.parquet"]  # a file of ImageFolder
    if tables and listing.images:
        raise InputError(
            f"{_said(folder)} holds images, such as {_said(listing.images[0])}, and parquet files, such as "
            f"{_said(tables[0])}: name the files or the subfolder that you mean"
        )
    if tables:
        return _of_dataset(source, local=True)
    if source.column is not None:
        raise InputError(
            f"{_said(folder)} is a folder of images and has no column {_said(repr(source.column))}: leave out what "
            "follows #"
        )
    if source.split is not None:
        folder = _part(folder, source.split)
        listing = _listing(folder)
    files, others = listing.images, [*listing.others, *listing.tables]
    if not files and others:
        raise InputError(f"{_nothing(folder)}; none of its {len(others)} files is an image, such as {_said(others[0])}")
    _warn_of(folder, others)
    if listing.twice:
        said = f"{len(listing.twice)} links to folders that are read already were left out"
        warnings.warn(f"{_said(folder)}: {said}, such as {_said(listing.twice[0])}", stacklevel=2)

    def classes(name: str) -> list[str]:
        if name != FOLDERS:
            raise InputError(f"{_said(folder)} is a folder of images: its classes are {FOLDERS!r}, not {_said(name)}")
        return [str(path.parent.relative_to(folder)) for path in files]

    return Pictures(len(files), lambda i: _said(files[i]), lambda i: from_file(files[i]), classes)


def _splits(folder: Path) -> dict[str, Path]:
    """The subfolders that a split can name, including those in `data/`. If both levels have a name, the upper one is
    taken.
    """
    levels = [level for level in (folder / "data", folder) if level.is_dir()]
    found = {entry.name: entry for level in levels for entry in sorted(level.iterdir()) if not _is_junk(entry.name)}
    return {name: entry for name, entry in found.items() if entry.is_dir()}


def _check_one_split(folder: Path, listing: _Listing) -> None:
    """Refuse a folder of several splits if none is named, because that would mix training and test images."""
    if not listing.images:
        return
    there = sorted(name for name in _splits(folder) if name.lower() in SPLITS)
    if len(there) > 1:
        raise InputError(
            f"{_said(folder)} has the splits {', '.join(map(_said, there))}, which must not be mixed: name one, as in "
            f"{_said(folder)}:{_said(there[0])}"
        )


def _part(folder: Path, split: str) -> Path:
    """The subfolder that a split names, as in the ImageFolder convention: `train` or `data/train`."""
    there = _splits(folder)
    found = next((name for name in SPLITS.get(split, (split,)) if name in there), None)
    if found is None:
        names = ", ".join(_said(name) for name in sorted(there)) or "none, since it has no subfolders"
        raise InputError(f"{_said(folder)} has no split {_said(repr(split))}: expected one of {names}")
    return there[found]


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def _listing(folder: Path) -> _Listing:
    """List everything below a folder except what systems leave there. Links are followed, and no folder is read twice.

    A link that has an image's name but leads nowhere counts as an image, which cannot be read. InputError is raised if
    a folder must not be listed.
    """

    def refuse(error: OSError) -> None:
        reason = error.strerror or str(error)
        raise InputError(f"{_said(error.filename)} cannot be listed ({reason}): permit it, or move the folder away")

    found, seen = _Listing(), set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(root)) in seen:
            found.twice.append(Path(root))
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        for path in (Path(root, name) for name in names if not _is_junk(name)):
            regular = path.is_file() or not path.exists()
            kind = path.suffix.lower() if regular else ""  # opening a pipe would block for ever
            kinds = {".parquet": found.tables}
            (found.images if kind in SUFFIXES else kinds.get(kind, found.others)).append(path)
    for paths in (found.images, found.tables, found.others):
        paths.sort()
    return found


def _of_arrays(source: Source) -> Pictures:
    """The pictures of an array in an .npz file."""
    name = _said(source.name)
    if source.column is not None:
        raise InputError(f"{name} is an .npz file and has no column {_said(repr(source.column))}: leave it out")
    if not Path(source.name).is_file():
        raise InputError(f"{name} does not exist: expected an .npz file")
    try:
        with np.load(source.name, allow_pickle=False) as arrays:
            keys = list(arrays)
            # One after the other, because those that are not meant may be large.
            held = ((key, arrays[key]) for key in keys if source.split in (None, key))
            key, array = next((one for one in held if source.split or one[1].ndim >= 3), (source.split or "", None))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        reason = printable(error)
        raise InputError(f"{name} cannot be read as .npz ({reason}): expected arrays saved by numpy") from error
    if array is None:
        there = ", ".join(map(_said, keys)) or "none"
        raise InputError(f"{name} has no images {_said(repr(key))}: expected a key after a colon, of {there}")
    rows = _rows(f"{name}:{_said(key)}", array)
    return Pictures(
        len(rows),
        lambda i: f"{name}:{_said(key)}[{i}]",
        lambda i: from_array(rows[i]),
        partial(_classes_of_arrays, source.name, keys),
    )


def _classes_of_arrays(path: str, keys: list[str], key: str) -> list[Any]:
    """The array of an .npz file that holds a class for each image."""
    if key not in keys:
        raise InputError(f"{_said(path)} has no classes {_said(repr(key))}: name one of {', '.join(map(_said, keys))}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = arrays[key]
    except ValueError:  # of an array of objects, which could run code
        found = np.empty(0, dtype=object)
    if found.ndim != 1 or found.dtype.kind not in "biuUS":
        held = f"{found.dtype} {found.shape}"
        raise InputError(f"{_said(path)}:{_said(key)} is {held}: expected a number or a name for each image")
    return found.tolist()


def _rows(name: str, array: np.ndarray) -> np.ndarray:
    """Check images `(n, h, w)` or `(n, h, w, 1 or 3)` and return them with their channels last.

    InputError is raised for another shape or dtype.
    """
    first, last = (array.shape[1] in (1, 3), array.shape[3] in (1, 3)) if array.ndim == 4 else (False, False)
    if first and last and array.shape[1] == array.shape[3] and max(array.shape[1:]) > 1:
        raise InputError(f"{name} has shape {array.shape}, and its channels may be first or last: use larger images")
    if first and not last:
        array = array.transpose(0, 2, 3, 1)
    if not (array.ndim == 3 or first or last) or 0 in array.shape[1:]:
        raise InputError(f"{name} has shape {array.shape}: expected images (n, h, w) or (n, h, w, 3)")
    if array.dtype not in (bool, np.uint8, np.uint16) and array.dtype.kind != "f":
        raise InputError(f"{name} is {array.dtype}: expected uint8, uint16 or bool, or floats in [0, 1]")
    if array.dtype.kind == "f" and array.size and not (array.min() >= 0 and array.max() <= 1):  # nan fails as well
        span = f"in {array.min():g} to {array.max():g}"
        raise InputError(f"{name} is {array.dtype} {span}: expected uint8, uint16 or bool, or floats in [0, 1]")
    return array


def _of_dataset(source: Source, local: bool) -> Pictures:
    """The pictures of a data set: of the hub, of parquet files, or of a folder that `datasets` reads."""
    data = _loaded(source, local)
    name, (split, column, encoded) = _said(source.name), _column_of(source, data)

    def classes(key: str) -> list[Any]:
        there = data[split].column_names
        if key not in there:
            raise InputError(f"{name} has no column {_said(repr(key))} of classes: name one of {', '.join(there)}")
        found = data[split].select_columns([key])[:][key]
        if not all(isinstance(value, int | str) for value in found):
            raise InputError(
                f"{name}#{_said(key)} holds {data[split].features[key]}: expected a number or a name for each image"
            )
        return found

    return Pictures(len(encoded), lambda i: f"{name}:{split}[{i}]", lambda i: _cell(encoded[i][column]), classes)


def _of_stream(source: Source, n: int | None) -> Pictures:
    """The first pictures of files of a hub data set, which are spread evenly over all its files."""
    name = _said(source.name)
    if n is None:
        raise InputError(f"{name} is streamed and may be endless: say how many images, with --images or n")
    if _exists(source.name) or Path(source.name).suffix.lower() in (*SUFFIXES, ".npz", ".parquet"):
        raise InputError(f"{name} is no data set of the hub, and only these are streamed: leave {STREAMING!r} out")
    split, column, encoded = _column_of(source, _loaded(source, local=False, streaming=True))
    return Pictures(n, lambda i: f"{name}:{split}[streamed {i}]", _Streamed(encoded, name, column, n))


class _Streamed:
    """Decodes picture i of n, which are downloaded while they are asked for in order.

    Args:
        data: the streamed data set, of one column.
        name: what it is called in messages.
        column: the column.
        n: how many pictures there are. Each of at most `SHARDS` files gives as many of its first.
    """

    def __init__(self, data: Any, name: str, column: str, n: int) -> None:
        self.data, self.name, self.column = data, name, column
        count = min(data.num_shards, SHARDS, n)
        self.shards = [i * data.num_shards // count for i in range(count)]
        self.bounds = [i * n // count for i in range(count + 1)]
        self.at: tuple[int, int] = (-1, 0)  # the file that is open, and which of its pictures comes next
        self.rows: Iterator[Any] = iter(())

    def __call__(self, place: int) -> Picture:
        part = bisect_right(self.bounds, place) - 1
        row = place - self.bounds[part]
        cell = None
        try:
            if self.at[0] != part or self.at[1] > row:
                shard = self.data.shard(self.data.num_shards, self.shards[part])
                self.at, self.rows = (part, 0), iter(shard)
            while self.at[1] <= row:
                cell = next(self.rows, None)
                self.at = (part, self.at[1] + 1)
        except Exception as error:  # the library and the connection raise many kinds here
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SourceError(
                f"{self.name} cannot be streamed ({printable(reason[:200])}): check the connection"
            ) from error
        if cell is None:
            raise SourceError(
                f"{self.name} has a file of {row} images, and more of each were asked for: ask for fewer, or leave "
                f"{STREAMING!r} out"
            )
        return _cell(cell[self.column])


def _column_of(source: Source, data: Any) -> tuple[str, str, Any]:
    """The split that a source means, the name of its column of images, and the data of that column, still encoded."""
    import datasets

    name, splits = _said(source.name), list(data)
    split = source.split or splits[0]
    if split not in splits:
        raise InputError(f"{name} has no split {_said(repr(split))}: expected one of {', '.join(splits)}")
    data = data[split]
    images = [column for column, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if source.column is None and not images:
        raise InputError(f"{name} has no column of images: name one of {', '.join(data.column_names)} after #")
    column = images[0] if source.column is None else source.column
    if column not in data.column_names:
        there = ", ".join(data.column_names)
        raise InputError(f"{name} has no image column {_said(repr(column))}: name one of {there} after #")
    kind = data.features[column]
    try:
        if isinstance(kind, datasets.Value) and kind.dtype not in ENCODED:  # a stream would notice only when it is read
            raise TypeError(kind.dtype)
        encoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # the library and pyarrow raise many kinds here
        kind = printable(str(kind)[:100])
        raise InputError(f"{name}#{_said(column)} holds {kind}, not images: name another column after #") from error
    return split, column, encoded


def _loaded(source: Source, local: bool, streaming: bool = False) -> Any:
    """Load the splits of a data set by name."""
    import datasets

    name = source.name
    logging = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are reported below
    try:
        if local and Path(name).is_file():
            import pyarrow.dataset

            # By default the whole file would be in memory while it is converted.
            in_parts = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
            return datasets.load_dataset("parquet", data_files=_literal(name), fragment_scan_options=in_parts)
        return datasets.load_dataset(name, streaming=streaming)
    except Exception as error:  # the library raises many kinds here
        what = "cannot be read" if local else "is no folder or file here, and the hub gave no such data set"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "check the name" if local else "check the name, and the connection if the name is right"
        raise InputError(f"{_said(name)} {what} ({printable(reason[:200])}): {remedy}") from error
    finally:
        datasets.logging.set_verbosity(logging)


def _literal(name: str) -> str:
    """A path written so that it matches only itself where patterns are accepted."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _cell(cell: Any) -> Picture:
    """An image as a data set keeps it, as bytes or as the path of a file."""
    if not isinstance(cell, dict) or (cell.get("bytes") is None and cell.get("path") is None):
        raise ValueError("its cell is empty")
    return from_file(cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]))
