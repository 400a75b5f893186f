"""Kind "linear": ridge regression in closed form from each place of the latents to the pixels there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.surrogates.bodies import patch_grid
from fmprobe.surrogates.decoder import ImageDecoder
from fmprobe.surrogates.features import AT_ONCE, Features, channels_of
from fmprobe.surrogates.settings import Settings, kind_of, number

FINEST = 16  # most pixels a side that a place paints; a larger part of the image is interpolated from these


@dataclass(frozen=True)
class LinearSettings(Settings):
    """Settings of a linear decoder.

    Attributes:
        ridge: Weight of the squared norm of the linear map, relative to the variance of a latent channel.
    """

    kind: str = kind_of("linear")
    ridge: float = number(0.1, positive=True)


class LinearDecoder(ImageDecoder):
    """Standardised latents `(B, *latent_shape)` to images `(B, C, H, H)`, which may leave `[0, 1]`.

    One linear map, the same at every place, paints the pixels of a patch token `(D,)`, of a cell of a map or, from a
    vector, of the whole image. Tokens before the patches are not read. Memory does not grow with the number of places.

    Args:
        latent_shape: Shape of the encoder's latents, without the batch.
        image_shape: Shape of its images `(C, H, H)`.
        info: What `Surrogate.info` begins with.

    Raises:
        InputError: If the shapes do not go together.
    """

    kind = "linear"
    settings_type = LinearSettings

    def __init__(
        self, latent_shape: Sequence[int], image_shape: Sequence[int], info: dict[str, Any] | None = None
    ) -> None:
        super().__init__(latent_shape, image_shape, info)
        self.prefix, self.grid, self.side = _layout(latent_shape, image_shape)
        pixels = image_shape[0] * self.side**2
        self.weight = nn.Parameter(torch.zeros(channels_of(self.latent_shape), pixels))
        self.bias = nn.Parameter(torch.zeros(pixels))

    def forward(self, latents: Tensor) -> Tensor:
        """Images `(B, C, H, H)` of standardised latents."""
        pixels = self._places(latents) @ self.weight + self.bias
        images = F.pixel_shuffle(pixels.unflatten(1, self.grid).movedim(-1, 1), self.side)
        if images.shape[1:] == self.image_shape:
            return images
        return F.interpolate(images, size=self.image_shape[1:], mode="bilinear")

    @classmethod
    def defaults(cls, device: torch.device) -> dict[str, Any]:
        """Clean images: noise would add to the ridge. An accelerator affords more of them."""
        return {"pixel_noise": 0.0, **({"n_images": 6000} if device.type == "cuda" else {})}

    @classmethod
    def check(cls, model: Autoencoder, settings: LinearSettings) -> None:
        """Raise InputError where the shapes of a model do not suit a decoder."""
        _layout(model.latent_shape, model.image_shape)

    @classmethod
    def fit(
        cls, model: Autoencoder, settings: LinearSettings, features: Features, held_out: Tensor, **how: Any
    ) -> tuple[Self, list[dict[str, Any]]]:
        """Minimise mean ||x W + b - y||^2 + ridge ||W||^2 over the places x of all latents and their pixels y."""
        decoder = cls(model.latent_shape, model.image_shape)
        decoder.take_statistics(features)
        inputs = len(decoder.weight) + 1  # a column of ones has the bias as its weights
        gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        cross = torch.zeros(inputs, len(decoder.bias), dtype=torch.float64)
        count = 0
        for rows in torch.arange(len(features)).split(AT_ONCE):
            y = decoder._pixels(features.images(rows)).flatten(0, 1).double()
            for draw in range(features.draws):
                x = F.pad(decoder._places(features.latents(rows, draw)).flatten(0, 1).double(), (0, 1), value=1.0)
                gram, cross, count = gram.addmm(x.T, x), cross.addmm(x.T, y), count + len(x)
        penalty = torch.full((inputs,), settings.ridge, dtype=torch.float64)
        penalty[-1] = 0
        solved = torch.linalg.solve(gram / count + penalty.diag(), cross / count)
        decoder.requires_grad_(False)
        decoder.weight.copy_(solved[:-1])
        decoder.bias.copy_(solved[-1])
        return decoder.eval().to(model.device), []

    def about(self) -> dict[str, Any]:
        height, width = self.grid
        return {"architecture": f"linear map at {height} x {width} places, {self.side} x {self.side} pixels each"}

    def config(self) -> dict[str, Any]:
        return {"latent_shape": list(self.latent_shape), "image_shape": list(self.image_shape), "info": self.info}

    def _places(self, latents: Tensor) -> Tensor:
        """Latents `(B, places, D)`, row by row."""
        if len(self.latent_shape) == 3:
            return latents.flatten(2).movedim(1, -1)
        return latents[:, self.prefix :] if len(self.latent_shape) == 2 else latents[:, None]

    def _pixels(self, images: Tensor) -> Tensor:
        """The pixels of each place `(B, places, C * side**2)`, of images at the resolution that is painted."""
        height, width = self.grid
        painted = F.interpolate(images, size=(height * self.side, width * self.side), mode="area")
        return F.pixel_unshuffle(painted, self.side).flatten(2).movedim(1, -1)


def _layout(latent_shape: Sequence[int], image_shape: Sequence[int]) -> tuple[int, tuple[int, int], int]:
    """Tokens before the patches, places in height and width, and pixels a side of a place; InputError if none."""
    if len(image_shape) != 3 or image_shape[1] != image_shape[2]:
        raise InputError(f"a linear decoder paints square images (C, H, H), got {tuple(image_shape)}")
    if len(latent_shape) not in (1, 2, 3):
        raise InputError(
            f"a linear decoder takes tokens (N, D), a map (C, h, w) or a vector (D,), got latents {tuple(latent_shape)}"
        )
    prefix, grid = 0, (1, 1)
    if len(latent_shape) == 2:
        prefix, side, _ = patch_grid(latent_shape, image_shape)
        grid = side, side
    elif len(latent_shape) == 3:
        grid = latent_shape[1], latent_shape[2]
    return prefix, grid, min(math.ceil(image_shape[1] / min(grid)), FINEST)
