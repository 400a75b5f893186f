"""Preprocessing: what a checkpoint does to an image before its encoder sees it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Preprocessing:
    """Pixel mean and deviation a channel, the native side in pixels, and how an image is brought to a side.

    `resize(image, side)` makes of an upright RGB image a float tensor `(C, side, side)` in `[0, 1]`, by the model
    library's own code, which `how` describes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    resize: "Callable[[Image, int], Tensor]"
    how: dict[str, Any] = field(default_factory=dict)

    def normalise(self, images: Tensor) -> Tensor:
        mean, std = self._statistics(images)
        return (images - mean) / std

    def denormalise(self, pixels: Tensor) -> Tensor:
        mean, std = self._statistics(pixels)
        return pixels * std + mean

    def at(self, side: int) -> "Callable[[Image], Tensor]":
        """`resize` at one side, for `Autoencoder(prepare=…)`."""
        return lambda image: self.resize(image, side)

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "size": self.size, **self.how}

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(v, dtype=like.dtype, device=like.device).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        return mean, std
