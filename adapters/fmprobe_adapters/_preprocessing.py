"""Preprocessing: what a checkpoint does to an image before its encoder sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fmprobe.errors import InputError
from fmprobe.seeding import generator

if TYPE_CHECKING:
    from PIL.Image import Image

Sides = tuple[int, int]  # height and width in pixels
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # modes of pictures by their number of channels
CLOSE = 1e-4  # rounding of float32, relative to the largest value: a library may scale and normalise in one operation


@dataclass(frozen=True)
class Preprocessing:
    """Pixel statistics, the native image size, and how an image is brought to another size.

    Attributes:
        mean: mean of pixels in [0, 1], one value or one per channel.
        std: standard deviation of pixels in [0, 1], one value or one per channel.
        native: height and width that the library resizes and crops to; None if they depend on the picture.
        resize: `resize(image, sides)` turns an upright RGB or grey image into a float tensor `(C, *sides)` in `[0, 1]`,
            by the model library's own code.
        how: description of `resize` for a provenance.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    native: Sides | None
    resize: "Callable[[Image, Sides], Tensor]"
    how: dict[str, Any] = field(default_factory=dict)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise pixels in [0, 1]."""
        mean, std = self._statistics(images)
        return (images - mean) / std

    def denormalise(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels back into pixels in [0, 1]."""
        mean, std = self._statistics(pixels)
        return pixels * std + mean

    def at(self, sides: Sides) -> "Callable[[Image], Tensor]":
        """`resize` to fixed sides, for `Autoencoder(prepare=…)`."""
        return partial(_resized_to, sides, self.resize)

    def check_values(
        self, name: str, channels: int, whole: "Callable[[Image], Tensor]", pixels: "Callable[[Image], Tensor]"
    ) -> None:
        """Check that normalising `pixels` gives what the library's `whole` preprocessing gives.

        So a step that is not known here, such as padding after the normalisation, is refused instead of being left out.

        Raises:
            InputError: it does not.
        """
        if channels not in MODES:
            return
        image = noise_picture(90, 61, channels)
        theirs, ours = whole(image), self.normalise(pixels(image))
        if theirs.shape != ours.shape or not bool(
            ((theirs - ours).abs() <= CLOSE * theirs.abs().amax().clamp(min=1)).all()
        ):
            raise InputError(
                f"{name}: its preprocessing, by {self.how.get('by')}, takes steps that fmprobe does not know: pass a "
                "processor that only resizes, crops, rescales and normalises"
            )

    def to_dict(self) -> dict[str, Any]:
        """The preprocessing as a provenance keeps it."""
        return {"mean": self.mean, "std": self.std, "size": as_json(self.native), **self.how}

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(v, dtype=like.dtype, device=like.device).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        return mean, std


def _resized_to(sides: Sides, resize: "Callable[[Image, Sides], Tensor]", image: "Image") -> Tensor:
    return resize(image, sides)


def check_channels(mean: Sequence[float], std: Sequence[float], channels: int, name: str) -> None:
    """Check that there is one statistic, or one for each channel.

    Raises:
        InputError: there is another number of them.
    """
    for what, values in (("means", mean), ("deviations", std)):
        if len(values) not in (1, channels):
            raise InputError(
                f"the images of {name} have {channels} channels, and its preprocessing states {len(values)} {what}: "
                "state one, or one per channel"
            )


def noise_picture(width: int, height: int, channels: int) -> "Image":
    """A fixed picture of noise, to see what a library does to pictures; `channels` is a key of MODES."""
    from PIL import Image

    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = generator(0, 0, "adapters: noise picture").integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, MODES[channels])


def sides_of(size: Any, name: str, what: str) -> Sides:
    """Height and width of a size that a config gives as one number or two.

    Raises:
        InputError: it gives something else.
    """
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
        raise InputError(f"the config of {name} gives {what} {size!r}: expected one whole number, or height and width")
    return pair[0], pair[1]


def in_words(sides: Sides) -> str:
    """Sides as a message shows them: "32 px", or "32 x 64 px"."""
    return f"{sides[0]} px" if sides[0] == sides[1] else f"{sides[0]} x {sides[1]} px"


def as_json(sides: Sides | None) -> int | list[int] | None:
    """Sides as a provenance keeps them: one number for a square."""
    return sides and (sides[0] if sides[0] == sides[1] else list(sides))
