"""Images of any source as tensors: a hub data set, a folder, files, parquet, .npz, or procedural images.

A source is written `SOURCE[:split][#column]`, and for an .npz file `FILE.npz:key`. It may also be one image file, or a
pattern such as `folder/*.png`. By default the first split of a data set, its first column of images, and the first key
that holds images are taken. A folder of images with several splits is refused unless one is named.

`streaming:ORG/NAME[:split][#column]` downloads no more of a hub data set than the images that are asked for: the first
ones of at most 16 of its files, which are spread evenly over all files.
"""

import warnings
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fmprobe.errors import InputError, SourceError
from fmprobe.pixels import SUFFIXES, Prepare, printable, read
from fmprobe.sources import STREAMING, Pictures, Source, find_pictures, is_streamed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder

Given = str | Path | Sequence[str | Path]  # a source, or the paths of image files

__all__ = [
    "SMALL_SETS",
    "SUFFIXES",
    "Source",
    "as_pixels",
    "count_images",
    "held_out",
    "load_images",
    "load_labels",
    "load_small_set",
    "open_images",
    "printable",
    "sample_images",
    "spread",
    "stream_images",
]


def as_pixels(images: "Tensor") -> "Tensor":
    """Float images in `[0, 1]` of images that are floats or bytes."""
    import torch

    return images.float() / 255 if images.dtype == torch.uint8 else images


def spread(total: int, n: int) -> list[int]:
    """`n` of `total` places, spread evenly and in order: place i is floor(i total / n).

    Sources are often sorted by class, so the first n would cover few classes.
    """
    return [i * total // n for i in range(n)]


def count_images(source: Given) -> int | None:
    """Number of images in a source, damaged ones included; None for "procedural" and for streamed ones, without end.

    Raises:
        InputError: the source cannot be read or holds no images.
    """
    return None if source == "procedural" or is_streamed(source) else find_pictures(source).count


def load_images(
    source: Given,
    n: int | None = None,
    *,
    image_shape: tuple[int, int, int],
    seed: int = 0,
    prepare: "Prepare | None" = None,
    skip_damaged: bool = False,
    streaming: bool = False,
) -> "Tensor":
    """Load `n` images spread evenly over a source, in order.

    Images become RGB, or grey if `image_shape` has one channel, and are turned upright by their EXIF orientation.
    Integers are scaled by the full range of their dtype, and floats must lie in [0, 1]; `fmprobe.pixels` gives the
    details for every kind of file. By default the short side is resized to fit (bicubic, antialiased) and the centre is
    cropped, at the full depth of the pixels.

    Args:
        source: the source, as `fmprobe.images` describes it, as text or as a path; or a list of the paths of images.
        n: number of images; by default all. "procedural" needs it, and gives the first images of `seed`.
        image_shape: `(C, H, W)`.
        seed: seed of procedural images.
        prepare: makes the tensor of a picture of 8 bits a channel in place of the default, as a model's own processor
            does.
        skip_damaged: whether damaged images are left out and counted in a warning. If `n` is given, each is replaced by
            a neighbour.
        streaming: whether no more of a hub data set is downloaded than `n` images, as if "streaming:" stood before it.

    Returns:
        Images `(n, *image_shape)`, float32 in [0, 1].

    Raises:
        InputError: the source, or one of its images, cannot be read, or it holds fewer than `n`. The message names the
            thing.
    """
    import torch

    if streaming and not is_streamed(source):
        source = f"{STREAMING}{source}"
    blocks = stream_images(source, n, image_shape=image_shape, seed=seed, prepare=prepare, skip_damaged=skip_damaged)
    return torch.cat(list(blocks))


def stream_images(
    source: Given,
    n: int | None = None,
    *,
    image_shape: tuple[int, int, int],
    block: int = 64,
    seed: int = 0,
    prepare: "Prepare | None" = None,
    skip_damaged: bool = False,
) -> "Iterator[Tensor]":
    """Load images as `load_images` does, in blocks of at most `block`, so that memory stays flat."""
    import torch

    if n is not None and (n < 1 or n % 1):
        raise InputError(f"cannot take {n} images from {source}: expected a whole number, and at least 1")
    n = n if n is None else int(n)
    _check_shape(image_shape)
    if source == "procedural":
        yield from _procedural(n, image_shape, block, seed)
        return
    found = find_pictures(source, n)
    if n is not None and n > found.count:
        raise InputError(f"{printable(source)} holds {found.count} images, {n} were asked for: ask for fewer")
    rows = []
    for image in _readable(source, found, n, image_shape, prepare, skip_damaged):
        rows.append(image)
        if len(rows) == block:
            yield torch.stack(rows)
            rows = []
    if rows:
        yield torch.stack(rows)


def _readable(
    source: Given,
    found: Pictures,
    n: int | None,
    shape: tuple[int, int, int],
    prepare: "Prepare | None",
    skip_damaged: bool,
) -> "Iterator[Tensor]":
    """The images that were drawn. With `skip_damaged`, the next image that was not drawn replaces a damaged one."""
    chosen = range(found.count) if n is None else spread(found.count, n)
    spare: list[int] | None = None
    damaged, count = [], 0
    for first in chosen:
        place: int | None = first
        while place is not None:
            try:
                image = read(found.label(place), partial(found.decode, place), shape, prepare)
            except InputError as error:
                if not skip_damaged or isinstance(error, SourceError):
                    raise
                damaged.append(found.label(place))
                spare = sorted(set(range(found.count)) - set(chosen)) if spare is None else spare
                place = spare.pop(min(bisect(spare, place), len(spare) - 1)) if spare else None
                continue
            count += 1
            yield image
            break
    if damaged:
        said = f"{len(damaged)} damaged images of {printable(source)} were left out, such as {damaged[0]}"
        warnings.warn(said, stacklevel=2)
    if not count:
        raise InputError(f"{printable(source)} holds no images that can be read: name another source")
    if n is not None and count < n:
        raise InputError(
            f"{printable(source)} holds {count} images that can be read, {n} were asked for: ask for fewer"
        )


@dataclass(frozen=True)
class Opened(Sequence["tuple[str, Callable[[], Tensor]]"]):
    """The images of a source in order: the name of each, and a function that reads it.

    Names and functions are made when they are asked for, so that memory does not grow with the number of images.

    Attributes:
        found: the pictures of the source.
        image_shape: as `load_images` takes it.
        prepare: as `load_images` takes it.
    """

    found: Pictures
    image_shape: tuple[int, int, int]
    prepare: "Prepare | None" = None

    def __len__(self) -> int:
        return self.found.count

    @overload
    def __getitem__(self, place: int) -> "tuple[str, Callable[[], Tensor]]": ...

    @overload
    def __getitem__(self, place: slice) -> "list[tuple[str, Callable[[], Tensor]]]": ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        i = range(len(self))[place]
        name = self.found.label(i)
        return name, partial(read, name, partial(self.found.decode, i), self.image_shape, self.prepare)


def open_images(source: str, *, image_shape: tuple[int, int, int], prepare: "Prepare | None" = None) -> Opened:
    """List every image of a source in order: its name, and a function that reads it as `load_images` does.

    A name that text cannot hold, since it is not UTF-8 or has a line break, is written by `printable`. The function
    raises InputError if its image cannot be read.

    Raises:
        InputError: the source cannot be read.
    """
    _check_shape(image_shape)
    return Opened(find_pictures(source), image_shape, prepare)


def sample_images(
    source: str,
    n: int | None,
    *,
    image_shape: tuple[int, int, int],
    seed: int = 0,
    prepare: "Prepare | None" = None,
) -> "Tensor":
    """Load at most `n` images of a source as `load_images` does: all of them if it holds fewer or n is None."""
    there = count_images(source) if n is not None else None
    n = n if there is None or n is None else min(n, there)
    return load_images(source, n, image_shape=image_shape, seed=seed, prepare=prepare)


def load_labels(source: str, labels: str, n: int | None = None) -> "np.ndarray":
    """The classes of the images that `load_images(source, n)` gives, as whole numbers `(n,)` from 0.

    Args:
        source: the source, of which every image can be read.
        labels: what holds the classes: a column of the data set, a key of the .npz file, or "folders" for the
            subfolders of a folder of images.
        n: number of images; by default all.

    Raises:
        InputError: the source has no such classes, not one for each image, or a single one; or fewer than n images.
    """
    import numpy as np

    found = None if source == "procedural" or is_streamed(source) else find_pictures(source)
    if n is not None and not (found is None or 1 <= n <= found.count):
        raise InputError(
            f"{printable(source)} holds {found.count} images, {n} were asked for: expected 1 to {found.count}"
        )
    if found is None or found.classes is None:
        raise InputError(f"{printable(source)} holds no classes of its images: leave {labels!r} out")
    held = found.classes(labels)
    if len(held) != found.count:
        raise InputError(
            f"{printable(source)} holds {found.count} images, and {labels!r} {len(held)} values: expected a class for "
            "each image"
        )
    names, classes = np.unique(np.asarray(held), return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"{labels!r} of {printable(source)} holds a single class: expected two or more, or leave it out"
        )
    return classes[spread(found.count, found.count if n is None else n)]


def held_out(model: "Autoencoder", source: str, n: int, n_atoms: int, seed: int) -> "tuple[Tensor, Tensor | None]":
    """Load n images of a source, and as many others as principal components need, up to n, if there are so many.

    Both sets are spread evenly over the source.

    Raises:
        InputError: the source holds fewer than n images, or one of them cannot be read.
    """
    there = count_images(source)
    more = next(k for k in (max(n, n_atoms), min(n, n_atoms), 0) if k == 0 or there is None or n + k <= there)
    images = model.load_images(source, n + more, seed=seed)
    shown = spread(n + more, n)
    others = sorted(set(range(n + more)) - set(shown))
    return images[shown], images[others] if more else None


def _check_shape(shape: tuple[int, int, int]) -> None:
    if len(shape) != 3 or min(shape) < 1 or shape[0] not in (1, 3):
        raise InputError(f"image_shape {tuple(shape)}: expected (C, H, W), each at least 1, and C 1 or 3")


SMALL_SETS = {  # image shape, source in a folder such as that of the recipes, and source on the hub
    "mnist": ((1, 28, 28), "mnist.npz:x_{part}", "ylecun/mnist:{part}"),
    "fashion_mnist": ((1, 28, 28), "fashion_mnist.npz:x_{part}", "zalando-datasets/fashion_mnist:{part}"),
    "cifar10": ((3, 32, 32), "cifar10:{part}", "uoft-cs/cifar10:{part}"),
}


def load_small_set(
    name: str, folder: str | Path | None = None, n_train: int | None = None, n_test: int | None = None
) -> "tuple[Tensor, Tensor]":
    """Load training and test images of a small data set: the first `n_train` and `n_test`, or all for None.

    These sets are in random order, so their first images cover every class.

    Args:
        name: mnist, fashion_mnist or cifar10; or digits, the 8x8 images of scikit-learn enlarged to 28x28, of which
            1,437 train and 360 test in random order.
        folder: folder that holds files of that name; by default the set comes from the hub.
        n_train: number of training images.
        n_test: number of test images.

    Raises:
        InputError: the name is unknown, or as `load_images`.
    """
    if name == "digits":
        return _digits(n_train, n_test)
    if name not in SMALL_SETS:
        raise InputError(f"unknown data set {name!r}: expected one of digits, {', '.join(SMALL_SETS)}")
    shape, local, hub = SMALL_SETS[name]
    source = hub if folder is None else f"{folder}/{local}"
    return _first(source.format(part="train"), n_train, shape), _first(source.format(part="test"), n_test, shape)


def _first(source: str, n: int | None, shape: tuple[int, int, int]) -> "Tensor":
    import torch

    found = open_images(source, image_shape=shape)
    if n is not None and not 1 <= n <= len(found):
        raise InputError(f"{source} holds {len(found)} images, {n} were asked for: expected 1 to {len(found)}")
    return torch.stack([picture() for _, picture in found[:n]])


def _digits(n_train: int | None, n_test: int | None) -> "tuple[Tensor, Tensor]":
    import torch
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits(return_X_y=True)[0].reshape(-1, 1, 8, 8) / 16).float()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(pixels[order], size=28, mode="bilinear").clamp(0, 1)
    train, test = large[:1437], large[1437:]
    for part, n in ((train, n_train), (test, n_test)):
        if n is not None and not 1 <= n <= len(part):
            raise InputError(
                f"digits has {len(train)} training and {len(test)} test images, {n} were asked for: ask for fewer"
            )
    return train[:n_train], test[:n_test]


def _procedural(n: int | None, image_shape: tuple[int, int, int], block: int, seed: int) -> "Iterator[Tensor]":
    from fmprobe.procedural import procedural_images

    if n is None or image_shape[1] != image_shape[2]:
        raise InputError(
            "procedural images are square and endless: say how many with n, and give an image_shape with H = W"
        )
    for first in range(0, n, block):
        images = procedural_images(min(block, n - first), image_shape[1], seed, first=first)
        yield images if image_shape[0] == 3 else images.mean(1, keepdim=True)
