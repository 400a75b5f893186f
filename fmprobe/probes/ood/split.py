"""Splits of images by their content, so that no image is in two parts."""

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from fmprobe.digests import digest
from fmprobe.errors import InputError
from fmprobe.images import as_pixels


def content_hashes(images: Tensor) -> list[str]:
    """A digest of the pixels of each image.

    Args:
        images: Images `(n, C, H, W)`, bytes or floats in [0, 1].
    """
    return [digest(as_pixels(image).float()) for image in images]


def pixels_of(images: Tensor) -> str:
    """One digest of the pixels of all images, which depends on their order."""
    return digest(content_hashes(images))


def labels_by_content(labels: Sequence[int] | np.ndarray, images: Tensor) -> dict[str, int]:
    """The label of each image by the digest of its pixels; of equal images the first one's.

    Raises:
        InputError: There is not one label, a whole number, for each image.
    """
    given = np.asarray(labels)
    if given.shape != (len(images),) or given.dtype.kind not in "iub":
        raise InputError(
            f"labels are an array {given.shape} of {given.dtype}: expected one whole number for each of {len(images)} "
            "fit images"
        )
    found: dict[str, int] = {}
    for name, label in zip(content_hashes(images), given.tolist(), strict=True):
        found.setdefault(name, int(label))
    return found


def check_classes(labels: Sequence[int] | np.ndarray) -> None:
    """Check that the classes of the fit images can be learned from.

    Raises:
        InputError: There is a single class, or there are fewer than two images a class on average, among which nothing
            varies within a class.
    """
    classes = len(np.unique(labels))
    if classes < 2 or len(labels) < 2 * classes:
        raise InputError(
            f"{len(labels)} fit images have {classes} class{'es' if classes > 1 else ''}: expected two or more, of two "
            "images or more each on average; or leave the labels out"
        )


def split_by_content(images: Tensor, shares: Sequence[float], seed: int = 0) -> tuple[list[Tensor], int]:
    """Split images into parts. The part of an image depends on its content, the seed and the set of images.

    Args:
        images: Images `(n, C, H, W)`; of equal images only the first is taken.
        shares: The ratio of the parts' sizes.
        seed: Random seed.

    Returns:
        The parts, and how many duplicates were dropped.

    Warns:
        UserWarning: There are duplicates.
    """
    first: dict[str, int] = {}
    for i, name in enumerate(content_hashes(images)):
        first.setdefault(digest(name, seed), i)
    dropped = len(images) - len(first)
    if dropped:
        warnings.warn(
            f"{dropped} of {len(images)} in-distribution images are duplicates and were dropped", stacklevel=2
        )
    order = [first[name] for name in sorted(first)]
    bounds = np.rint(np.cumsum([0, *shares]) / sum(shares) * len(order)).astype(int)
    return [images[order[a:b]] for a, b in pairwise(bounds)], dropped


def without(images: Tensor, others: Sequence[Tensor], name: str) -> tuple[Tensor, int]:
    """Drop the images that are also in-distribution images.

    Args:
        images: Images `(n, C, H, W)` of an out-of-distribution set.
        others: Sets of in-distribution images.
        name: The name of the set, for the warning.

    Returns:
        The images that are in none of `others`, and how many were dropped.

    Warns:
        UserWarning: Images were dropped.
    """
    known = {content for other in others for content in content_hashes(other)}
    kept = [i for i, content in enumerate(content_hashes(images)) if content not in known]
    dropped = len(images) - len(kept)
    if dropped:
        warnings.warn(f"{dropped} images of {name} are also in-distribution images and were dropped", stacklevel=2)
    return images[kept], dropped
