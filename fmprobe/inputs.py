"""Whatever people hand in as images, as batches that a model takes: one function for every door of the library."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmprobe.batches import check_images, in_words
from fmprobe.errors import InputError
from fmprobe.images import as_pixels, stream_images
from fmprobe.pixels import Picture, Prepare, from_array, from_file, from_image, printable, read

# What `batches_of` takes. Anything may be iterated over, so that a type checker cannot say more.
ImagesLike = Tensor | np.ndarray | Image.Image | str | Path | Mapping[str, Any] | Iterable[Any]

KEYS = ("pixel_values", "image", "images", "img")  # of images in the dicts that data sets and processors give
DTYPES = ("bool", "uint8", "uint16", "float16", "float32", "float64")  # of arrays that are pictures
EXPECTED = (
    "expected a tensor, an array, a Pillow image, a path, a list of these, a data set with a column of images, or "
    "a DataLoader"
)


def batches_of(
    images: Any,
    shape: tuple[int, ...],
    *,
    prepare: Prepare | None = None,
    name: str | None = None,
    any_range: bool = False,
    what: str = "images",
    block: int = 64,
) -> Iterator[Tensor]:
    """Images of any kind as floats in `[0, 1]`, in batches of at most `block`, so that memory stays flat.

    A tensor or an array of the model's own shape is taken as it is, and bytes are divided by 255. Everything else is a
    picture, which is resized and cropped by `prepare`, or else to fit, as `fmprobe.load_images` does:

    - a Pillow image, a path or a source (`fmprobe.images`), an array `(H, W)` or `(H, W, C)`, or a tensor
      `(C, H, W)` where there is a `prepare`; or several in a list, or in an array or a tensor with one dimension
      more;
    - a data set of `datasets`, by its first column of images;
    - a DataLoader, a data set of torch, or an iterator, of pictures or of batches. Labels beside them are left out, and
      of a dict the entry "pixel_values", "image", "images" or "img" is taken.

    Args:
        images: the images.
        shape: shape of an image that the model takes.
        prepare: makes the tensor of a picture, as the model's own processor does.
        name: the model, for messages.
        any_range: whether values of tensors may leave `[0, 1]`.
        what: what the images are called in messages.
        block: largest number of images in a batch.

    Raises:
        InputError: something is no image, is ambiguous, or leaves `[0, 1]`.
    """
    take = _Taker(tuple(shape), prepare, name, any_range, what, block)
    pictures: list[Tensor] = []
    for found in take.parts(images):
        if found.ndim == len(take.shape):
            pictures.append(found)
            if len(pictures) < block:
                continue
        if pictures and (found.ndim > len(take.shape) or len(pictures) == block):
            yield torch.stack(pictures)
            pictures = []
        if found.ndim > len(take.shape):
            yield from (as_pixels(part) for part in found.split(block) if len(part))
    if pictures:
        yield torch.stack(pictures)


@dataclass(frozen=True)
class Transform:
    """Makes the image of a picture that a model takes; the processes of a DataLoader can be given it.

    Attributes:
        image_shape: shape of the image.
        prepare: as `batches_of` takes it.
    """

    image_shape: tuple[int, ...]
    prepare: Prepare | None = None

    def __call__(self, picture: Any) -> Tensor:
        """The image `image_shape` of a Pillow image, a path or an array.

        Raises:
            InputError: the picture cannot be read, or it is several.
        """
        batches = list(batches_of([picture], self.image_shape, prepare=self.prepare, what="picture"))
        if (n := sum(map(len, batches))) != 1:
            raise InputError(f"picture: expected one, got {n}: pass them one by one, or all of them to `encode`")
        return batches[0][0]


class _Taker:
    """What the functions below need to know of the model that takes the images."""

    def __init__(
        self, shape: tuple[int, ...], prepare: Prepare | None, name: str | None, any_range: bool, what: str, block: int
    ) -> None:
        self.shape, self.prepare, self.name, self.any_range = shape, prepare, name, any_range
        self.what, self.block = what, block

    def parts(self, images: Any) -> Iterator[Tensor]:
        """Single images `shape`, and batches `(n, *shape)`, in order."""
        if isinstance(images, str | Path):
            yield from stream_images(images, block=self.block, image_shape=self._pictured(), prepare=self.prepare)
        elif isinstance(images, Tensor | np.ndarray | Image.Image | Mapping):
            yield from self._batch(images, self.what)
        elif (column := _column(images)) is not None:
            for i, row in enumerate(images):  # whose columns may be others after a transform
                label = f"{self.what} [{i}]"
                yield self._picture(row[column if column in row else _key(row, label)], label)
        elif isinstance(images, list | tuple) and (batch := _unlabelled(images)) is not images:
            yield from self.parts(batch)
        elif hasattr(images, "__len__") and hasattr(images, "__getitem__"):
            for i in range(len(images)):  # a data set of torch need not end an iteration by itself
                yield from self._batch(_unlabelled(images[i]), f"{self.what} [{i}]")
        elif isinstance(images, Iterable):
            for i, item in enumerate(images):
                yield from self._batch(_unlabelled(item), f"{self.what} [{i}]")
        else:
            raise InputError(f"{self.what}: an object of type {type(images).__name__} is no image; {EXPECTED}")

    def _batch(self, item: Any, label: str) -> Iterator[Tensor]:
        """One item: an image or a batch of images."""
        if isinstance(item, Mapping):
            item = item[_key(item, label)]
        if isinstance(item, list | tuple):
            for i, one in enumerate(item):
                yield self._picture(one, f"{label} [{i}]")
        elif isinstance(item, Tensor | np.ndarray):
            yield from self._array(item, label)
        else:
            yield self._picture(item, label)

    def _array(self, values: Tensor | np.ndarray, label: str) -> Iterator[Tensor]:
        """A tensor or an array: of the model's own shape, or pictures."""
        rank = len(self.shape)
        if isinstance(values, np.ndarray) and str(values.dtype) not in DTYPES:
            raise InputError(
                f"{label} is an array of {values.dtype}: expected uint8, uint16, bool, or floats in [0, 1]"
            )
        if values.ndim in (rank, rank + 1) and tuple(values.shape[-rank:]) == self.shape:
            given = values if isinstance(values, Tensor) else _as_tensor(values)
            self._check(as_pixels(given[:1]) if given.dtype == torch.uint8 and given.ndim > rank else as_pixels(given))
            given = given.float() if given.is_floating_point() and not self.any_range else given
            yield given if given.ndim > rank else as_pixels(given)
            return
        rows = self._rows_of(values) if isinstance(values, Tensor) else _channels_last(values, label)
        for i, row in enumerate(rows):
            yield self._read(partial(from_array, row), f"{label} [{i}]" if len(rows) > 1 else label)

    def _rows_of(self, values: Tensor) -> np.ndarray:
        """Pictures `(n, H, W, C)` of a tensor `(C, H, W)` or `(n, C, H, W)` of another size, for a processor."""
        if self.prepare is None or values.ndim not in (3, 4) or values.shape[-3] not in (1, 3):
            self._check(values)  # it says what is wrong
        pixels = as_pixels(values)
        batch = pixels if values.ndim == 4 else pixels[None]
        check_images(batch, tuple(batch.shape[1:]), self.name, what=self.what)
        return batch.detach().movedim(1, -1).cpu().float().numpy()

    def _picture(self, item: Any, label: str) -> Tensor:
        """One image."""
        if isinstance(item, Image.Image):
            return self._read(lambda: from_image(item), label)
        if isinstance(item, str | Path):
            return self._read(lambda: from_file(Path(item)), printable(item))
        if isinstance(item, Mapping) and ("bytes" in item or "path" in item):  # as `datasets` keeps a file
            return self._read(lambda: from_file(item.get("bytes") or Path(item["path"])), label)
        if not isinstance(item, Tensor | np.ndarray):
            raise InputError(f"{label}: an object of type {type(item).__name__} is no image; {EXPECTED}")
        found = list(self._array(item, label))
        if len(found) != 1 or found[0].ndim != len(self.shape):
            raise InputError(f"{label} has shape {tuple(item.shape)}: expected one image in each place of a list")
        return found[0]

    def _read(self, picture: Callable[[], Picture], label: str) -> Tensor:
        found = read(label, picture, self._pictured(), self.prepare)
        if tuple(found.shape) != self.shape:
            raise InputError(f"{label} became {tuple(found.shape)}: {self.name} takes ({in_words(self.shape)})")
        return found

    def _check(self, values: Tensor) -> None:
        """Raise InputError for a tensor, of one image or several, that the model does not take."""
        one = tuple(values.shape) == self.shape
        check_images(values[None] if one else values, self.shape, self.name, any_range=self.any_range, what=self.what)

    def _pictured(self) -> tuple[int, int, int]:
        """The shape of the images, where it is one that pictures have."""
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise InputError(f"{self.name or 'the model'} takes no pictures but tensors ({in_words(self.shape)})")
        return self.shape[0], self.shape[1], self.shape[2]


def _channels_last(values: np.ndarray, label: str) -> np.ndarray:
    """Pictures `(n, H, W)` or `(n, H, W, C)` of an array that holds one or several, with channels first, last or none.

    Raises InputError for another shape, and where it is not clear which dimension holds the channels.
    """
    shape, rank = values.shape, values.ndim
    first = rank in (3, 4) and shape[-3] in (1, 3)
    last = rank in (3, 4) and shape[-1] in (1, 3)
    if rank == 3 and shape[0] == 3 and not last:
        raise InputError(
            f"{label} has shape {shape}, one image in colour or three in grey: pass (H, W, 3) or (n, H, W, 1), "
            "or a tensor (3, H, W)"
        )
    if first and last:
        raise InputError(f"{label} has shape {shape}, and its channels may be first or last: pass a Pillow image")
    if 0 in shape[-2:] or rank not in (2, 3, 4) or (rank == 4 and not first and not last):
        raise InputError(f"{label} has shape {shape}: expected an image (H, W) or (H, W, 3), or several")
    if first:
        values = np.moveaxis(values, -3, -1)
    return values if rank == 4 or (rank == 3 and not first and not last) else values[None]


def _as_tensor(values: np.ndarray) -> Tensor:
    """Bytes, or floats in `[0, 1]`, of an array."""
    if values.dtype == np.uint16:
        values = values / np.float32(65535)
    return torch.from_numpy(np.ascontiguousarray(values if values.dtype == np.uint8 else values.astype(np.float32)))


def _unlabelled(item: Any) -> Any:
    """The images of a record, without the labels behind them.

    A record is a tuple, or a list that begins with a batch, as a DataLoader makes it. Any other list is one of images,
    so that nothing in it is left out.
    """
    if not isinstance(item, list | tuple) or not item:
        return item
    first, *others = item
    batch = isinstance(first, list | tuple | Mapping) or (isinstance(first, Tensor | np.ndarray) and first.ndim > 3)
    if not others:  # a DataLoader makes a list of one batch from a TensorDataset of images alone
        return first if isinstance(first, Tensor | np.ndarray) and batch else item
    labelled = isinstance(item, tuple) or batch
    return first if labelled and not any(_is_image(one, first) for one in others) else item


def _is_image(item: Any, first: Any) -> bool:
    """Whether an item beside a first one is an image too. None is no label but an image that is missing.

    An array of a lower rank than the first is a label, such as a map of classes, and so is text behind what is no path.
    """
    if item is None or isinstance(item, Image.Image):
        return True
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim >= 2 and item.ndim >= getattr(first, "ndim", 0)
    if isinstance(item, str | Path):
        return isinstance(first, str | Path)
    if isinstance(item, list | tuple):
        inside = first[0] if isinstance(first, list | tuple) and first else first
        return any(_is_image(one, inside) for one in item)
    return isinstance(item, Mapping) and isinstance(first, Mapping)


def _key(item: Mapping[str, Any], label: str) -> str:
    """The key of the images in a dict."""
    found = next((key for key in KEYS if key in item), None)
    if found is None:
        there = ", ".join(printable(key) for key in item) or "nothing"
        raise InputError(f"{label} is a dict of {there}: expected its images under one of {', '.join(KEYS)}")
    return found


def _column(images: Any) -> str | None:
    """The first column of images of a data set of `datasets`; None for anything else, and where it is not known."""
    features, names = (getattr(images, what, None) for what in ("features", "column_names"))
    if not hasattr(images, "select_columns") or (features is None and names is None):
        return None
    found = [name for name, kind in (features or {}).items() if type(kind).__name__ == "Image"]
    found += [name for name in KEYS if name in (names or ())]
    if not found:
        there = ", ".join(names or ()) or "none that are known"
        raise InputError(f"the data set has no column of images, but {there}: name a source SOURCE#column")
    return found[0]
