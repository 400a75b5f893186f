"""Any image source as a tensor: a hub data set, a folder, parquet, .npz, or procedural images.

A source is written `SOURCE[:split][#column]`; for an .npz file `FILE.npz:key`.
"""

import contextlib
import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from fmprobe.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".jp2",
    ".avif",
    ".bmp",
    ".webp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
PARTS = {"train": ("train",), "test": ("test",), "validation": ("validation", "val"), "val": ("val", "validation")}


@dataclass(frozen=True)
class Source:
    """A parsed source: `name` of the data set, folder or file, with the split (or key) and column asked for."""

    name: str
    split: str | None = None
    column: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Source":
        rest, _, column = text.partition("#")
        name, colon, split = rest.rpartition(":")
        if not colon or Path(rest).exists() or "/" in split or "\\" in split:
            name, split = rest, ""
        if not name:
            raise InputError(f"{text!r} is no image source: expected SOURCE[:split][#column]")
        return cls(name, split or None, column or None)


def load_images(
    source: str,
    n: int | None = None,
    *,
    image_shape: tuple[int, int, int],
    seed: int = 0,
    prepare: "Callable[[Image.Image], Tensor] | None" = None,
    skip_damaged: bool = False,
) -> "Tensor":
    """The first `n` images (all by default) of a source, float32 `(n, *image_shape)` in [0, 1].

    Grey, alpha, palette, CMYK and 16-bit images become RGB, or grey where `image_shape` has one channel; EXIF
    orientation is applied. `prepare` then makes the tensor, as a model's own processor does; by default the short side
    is resized to fit (bicubic, antialiased) and the centre cropped. "procedural" needs `n`, and `seed` is its seed.
    Raises InputError, naming the thing, where the source or an image of it cannot be read; with `skip_damaged` such an
    image is left out, and a warning says how many were.
    """
    import torch

    blocks = stream_images(source, n, image_shape=image_shape, seed=seed, prepare=prepare, skip_damaged=skip_damaged)
    return torch.cat(list(blocks))


def stream_images(
    source: str,
    n: int | None = None,
    *,
    image_shape: tuple[int, int, int],
    block: int = 64,
    seed: int = 0,
    prepare: "Callable[[Image.Image], Tensor] | None" = None,
    skip_damaged: bool = False,
) -> "Iterator[Tensor]":
    """As `load_images`, in blocks of at most `block` images, so that memory does not grow with their number."""
    import torch

    if n is not None and n < 1:
        raise InputError(f"cannot take {n} images from {source}: expected at least 1")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(f"image_shape {tuple(image_shape)}: expected (C, H, W), each at least 1")
    if source == "procedural":
        yield from _procedural(n, image_shape, block, seed)
        return
    rows, damaged, count = [], [], 0
    for label, picture in _pictures(Source.parse(source)):
        if n is not None and count == n:
            break
        try:
            rows.append(_read(label, picture, image_shape, prepare))
        except InputError:
            if not skip_damaged:
                raise
            damaged.append(label)
            continue
        count += 1
        if len(rows) == block:
            yield torch.stack(rows)
            rows = []
    if damaged:
        warnings.warn(f"{len(damaged)} damaged images of {source} left out, such as {damaged[0]}", stacklevel=2)
    if not count:
        raise InputError(f"{source} holds no images: expected a data set, a folder of images, parquet or .npz")
    if n is not None and count < n:
        raise InputError(f"{source} holds {count} images, {n} were asked for")
    if rows:
        yield torch.stack(rows)


def open_images(
    source: str, *, image_shape: tuple[int, int, int], prepare: "Callable[[Image.Image], Tensor] | None" = None
) -> "list[tuple[str, Callable[[], Tensor]]]":
    """Every image of a source, in order: what it is called, and a function that reads it as `load_images` would.

    The function raises InputError where that image cannot be read. Raises InputError where the source cannot be.
    """
    found = [
        (label, partial(_read, label, picture, image_shape, prepare))
        for label, picture in _pictures(Source.parse(source))
    ]
    if not found:
        raise InputError(f"{source} holds no images: expected a data set, a folder of images, parquet or .npz")
    return found


def sample_images(
    source: str,
    n: int | None,
    *,
    image_shape: tuple[int, int, int],
    seed: int = 0,
    prepare: "Callable[[Image.Image], Tensor] | None" = None,
) -> "Tensor":
    """At most `n` images spread evenly over a source, since sources are often sorted by class; all where n is None.

    Otherwise as `load_images`.
    """
    import torch

    if source == "procedural":
        return load_images(source, n, image_shape=image_shape, seed=seed)
    found = open_images(source, image_shape=image_shape, prepare=prepare)
    count = len(found) if n is None else min(n, len(found))
    return torch.stack([found[i * len(found) // count][1]() for i in range(count)])


SMALL_SETS = {  # image shape, training and test part: of a folder such as the recipes', and on the hub
    "mnist": ((1, 28, 28), "mnist.npz:x_{part}", "ylecun/mnist:{part}"),
    "fashion_mnist": ((1, 28, 28), "fashion_mnist.npz:x_{part}", "zalando-datasets/fashion_mnist:{part}"),
    "cifar10": ((3, 32, 32), "cifar10:{part}", "uoft-cs/cifar10:{part}"),
}


def load_small_set(
    name: str, folder: str | Path | None = None, n_train: int | None = None, n_test: int | None = None
) -> "tuple[Tensor, Tensor]":
    """Training and test images of a small data set, the first `n_train` and `n_test`, all where None.

    `name`: mnist, fashion_mnist or cifar10, in `folder` as files of that name, else on the hub; or digits, the 8x8 ones
    of scikit-learn enlarged to 28x28, 1,437 to train and 360 to test in random order. Raises InputError for another
    name, or as `load_images`.
    """
    if name == "digits":
        return _digits(n_train, n_test)
    if name not in SMALL_SETS:
        raise InputError(f"unknown data set {name!r}: expected one of digits, {', '.join(SMALL_SETS)}")
    shape, local, hub = SMALL_SETS[name]
    source = hub if folder is None else f"{folder}/{local}"
    train = load_images(source.format(part="train"), n_train, image_shape=shape)
    return train, load_images(source.format(part="test"), n_test, image_shape=shape)


def _digits(n_train: int | None, n_test: int | None) -> "tuple[Tensor, Tensor]":
    import torch
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits(return_X_y=True)[0].reshape(-1, 1, 8, 8) / 16).float()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(pixels[order], size=28, mode="bilinear").clamp(0, 1)
    train, test = large[:1437], large[1437:]
    for part, n in ((train, n_train), (test, n_test)):
        if n is not None and not 1 <= n <= len(part):
            raise InputError(f"digits has {len(train)} training and {len(test)} test images, {n} were asked for")
    return train[:n_train], test[:n_test]


def _read(
    label: str,
    picture: "Callable[[], Image.Image]",
    shape: tuple[int, int, int],
    prepare: "Callable[[Image.Image], Tensor] | None",
) -> "Tensor":
    try:
        return _tensor(picture(), shape, prepare)
    except MemoryError:
        raise
    except Exception as error:  # of damaged files PIL raises nearly every kind
        raise InputError(f"{label} cannot be read as an image ({error}): mend or remove it") from error


def _procedural(n: int | None, image_shape: tuple[int, int, int], block: int, seed: int) -> "Iterator[Tensor]":
    from fmprobe.surrogates.procedural import procedural_images

    if n is None or image_shape[1] != image_shape[2]:
        raise InputError("procedural images are square and endless: say how many with n")
    for first in range(0, n, block):
        images = procedural_images(min(block, n - first), image_shape[1], seed, first=first)
        yield images if image_shape[0] == 3 else images.mean(1, keepdim=True)


def _pictures(source: Source) -> Iterator[tuple[str, "Callable[[], Image.Image]"]]:
    """Labelled images in order, opened and decoded no sooner than they are needed."""
    path = Path(source.name)
    if path.suffix == ".npz":
        yield from _from_arrays(source)
    elif path.suffix == ".parquet" or (path.is_dir() and any(path.glob("**/*.parquet"))):
        yield from _from_dataset(source, local=True)
    elif path.is_dir():
        yield from ((str(file), partial(Image.open, file)) for file in _files(_part(path, source)))
    elif path.exists():
        raise InputError(f"{path} is no image source: expected a folder, a .parquet or an .npz file")
    else:
        yield from _from_dataset(source, local=False)


def _part(folder: Path, source: Source) -> Path:
    """The subfolder that a split names, as in the ImageFolder convention: `train`, or `data/train`."""
    if source.column is not None:
        raise InputError(
            f"{folder} is a folder of images and has no column {source.column!r}: leave out what follows #"
        )
    if source.split is None:
        return folder
    places = [folder / level / name for level in ("", "data") for name in PARTS.get(source.split, (source.split,))]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        levels = [level for level in (folder, folder / "data") if level.is_dir()]
        there = sorted({entry.name for level in levels for entry in level.iterdir() if entry.is_dir()})
        raise InputError(f"{folder} has no split {source.split!r}: expected one of {', '.join(there) or 'none'}")
    return found


def _files(folder: Path) -> list[Path]:
    """Image files below a folder, in order of their paths; links are followed, a loop of links once.

    Hidden files are left out, among them the `._NAME.png` that macOS leaves beside a picture.
    """
    files, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found = (Path(root, name) for name in names if not name.startswith("."))
        files += [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(files)


def _from_arrays(source: Source) -> Iterator[tuple[str, "Callable[[], Image.Image]"]]:
    if not Path(source.name).is_file():
        raise InputError(f"{source.name} does not exist: expected an .npz file")
    try:
        with np.load(source.name, allow_pickle=False) as arrays:
            held = {key: arrays[key] for key in arrays if source.split in (None, key)}
            keys = list(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{source.name} cannot be read as .npz ({error}): expected arrays saved by numpy") from error
    key = source.split or next((k for k, array in held.items() if array.ndim >= 3), "")
    if key not in held:
        raise InputError(f"{source.name} has no images {key!r}: expected a key after a colon, of {', '.join(keys)}")
    array = held[key]
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise InputError(f"{source.name}:{key} has shape {array.shape}: expected images (n, h, w) or (n, h, w, 3)")
    if array.dtype != np.uint8:
        if not (np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1):
            raise InputError(f"{source.name}:{key} is {array.dtype}: expected uint8, or floats in [0, 1]")
        array = np.round(array * 255).astype(np.uint8)
    for i, image in enumerate(array):
        yield f"{source.name}:{key}[{i}]", partial(Image.fromarray, image.squeeze())


def _from_dataset(source: Source, local: bool) -> Iterator[tuple[str, "Callable[[], Image.Image]"]]:
    import datasets

    name = source.name
    logging = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is said below
    try:
        data: Any = datasets.load_dataset("parquet", data_files=name) if name.endswith(".parquet") else None
        data = datasets.load_dataset(name) if data is None else data
    except Exception as error:  # the library raises many kinds here
        what = "cannot be read" if local else "is no folder or file here, and the hub gave no such data set"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "check the name" if local else "check the name, and the connection where it is right"
        raise InputError(f"{name} {what} ({reason[:200]}): {remedy}") from error
    finally:
        datasets.logging.set_verbosity(logging)
    splits = list(data)
    split = source.split or splits[0]
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}: expected one of {', '.join(splits)}")
    data = data[split]
    column = source.column or next((c for c, kind in data.features.items() if isinstance(kind, datasets.Image)), "")
    if column not in data.column_names:
        raise InputError(f"{name} has no image column {column!r}: name one of {', '.join(data.column_names)} after #")
    encoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    for i in range(len(encoded)):
        yield f"{name}:{split}[{i}]", partial(_decode, encoded, i, column)


def _decode(data: Any, row: int, column: str) -> Image.Image:
    """An image as a data set keeps it: its bytes, or the path of its file."""
    cell = data[row][column]
    return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])


def _tensor(
    image: Image.Image, shape: tuple[int, int, int], prepare: "Callable[[Image.Image], Tensor] | None"
) -> "Tensor":
    """One image as float32 `shape`: upright, in RGB or grey, resized and cropped by `prepare` or else to fit."""
    import torch

    channels, height, width = shape
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata leave the pixels as they are
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails as well
            raise ValueError(f"its floats lie in {values.min():g} to {values.max():g}, expected 0 to 1")
        image = Image.fromarray(np.round(values * 255).astype(np.uint8))
    if image.mode.startswith("I"):  # 16 bits and more: PIL's own conversion clips instead of scaling
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray(np.round(values * (255 / max(65535.0, values.max()))).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if prepare is not None:
        return prepare(image).float()
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)
