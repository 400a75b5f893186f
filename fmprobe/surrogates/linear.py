"""Kind "linear": ridge regression in closed form from the surroundings of each place of the latents to its pixels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.surrogates.bodies import patch_grid
from fmprobe.surrogates.decoder import ImageDecoder
from fmprobe.surrogates.features import AT_ONCE, Features, channels_of, encode_native
from fmprobe.surrogates.settings import Settings, kind_of, number

FINEST = 16  # most pixels a side that a place paints; a larger part of the image is interpolated from these
MOST_INPUTS = 4096  # neighbours are not read where a place would have more inputs: time grows with their square
RIDGES = tuple(10.0**e for e in range(-4, 2))  # weights that the held-out images choose from


@dataclass(frozen=True)
class LinearSettings(Settings):
    """Settings of a linear decoder.

    Attributes:
        ridge: Weight of the squared norm of the linear map, relative to the variance of a latent channel. None takes
            the weight in `RIDGES` that paints held-out images best.
    """

    kind: str = kind_of("linear")
    ridge: float | None = number(None, positive=True, optional=True)


class LinearDecoder(ImageDecoder):
    """Standardised latents `(B, *latent_shape)` to images `(B, C, H, H)`, which may leave `[0, 1]`.

    One linear map, the same at every place, paints the pixels of a patch token `(D,)`, of a cell of a map or, from a
    vector, of the whole image. It reads the place, its four neighbours (at the border the place itself takes the part
    of a missing one), the mean over places, and tokens before the patches. Neighbours are left out where a place would
    have more than `MOST_INPUTS` inputs. Memory does not grow with the number of places.

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
        pixels, channels = image_shape[0] * self.side**2, channels_of(self.latent_shape)
        self.several = self.grid != (1, 1)
        inputs = 1 + self.several + self.prefix  # the place itself, the mean, and the tokens before the patches
        self.neighbours = self.several and (inputs + 4) * channels <= MOST_INPUTS
        inputs += 4 * self.neighbours
        self.weight = nn.Parameter(torch.zeros(inputs * channels, pixels))
        self.bias = nn.Parameter(torch.zeros(pixels))

    def forward(self, latents: Tensor) -> Tensor:
        """Images `(B, C, H, H)` of standardised latents."""
        pixels = self._inputs(latents) @ self.weight + self.bias
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
            y = decoder._pixels(features.images(rows)).flatten(0, 1)
            for draw in range(features.draws):
                x = F.pad(decoder._inputs(features.latents(rows, draw)).flatten(0, 1), (0, 1), value=1.0)
                # Sums over blocks are float64. Within a block float32 errs far below the smallest ridge.
                gram, cross, count = gram.add_(x.T @ x), cross.add_(x.T @ y), count + len(x)
        gram, cross = gram.div_(count), cross.div_(count)

        def solution(ridge: float) -> Tensor:
            penalty = torch.full((inputs,), ridge, dtype=torch.float64)
            penalty[-1] = 0
            return torch.linalg.solve(gram + penalty.diag(), cross)

        decoder.requires_grad_(False)
        ridge = settings.ridge or decoder._best(model, held_out, solution)
        decoder._take(solution(ridge))
        return decoder.eval().to(model.device), [{"ridge": ridge}]

    def _take(self, solved: Tensor) -> None:
        """Take weights `(inputs, pixels)` and, in the last row, the bias."""
        self.weight.copy_(solved[:-1])
        self.bias.copy_(solved[-1])

    def _best(self, model: Autoencoder, held_out: Tensor, solution: Callable[[float], Tensor]) -> float:
        """The weight in `RIDGES` with the smallest squared error on held-out images."""
        z, y = self.standardise(encode_native(model, held_out)), self._pixels(as_pixels(held_out))
        errors = {}
        for ridge in RIDGES:
            self._take(solution(ridge))
            errors[ridge] = float((self._inputs(z) @ self.weight + self.bias - y).square().mean())
        return min(errors, key=lambda ridge: errors[ridge])

    def about(self) -> dict[str, Any]:
        height, width = self.grid
        read = ", with neighbours" if self.neighbours else ""
        return {"architecture": f"linear map at {height} x {width} places{read}, {self.side} x {self.side} pixels each"}

    def config(self) -> dict[str, Any]:
        return {"latent_shape": list(self.latent_shape), "image_shape": list(self.image_shape), "info": self.info}

    def _inputs(self, latents: Tensor) -> Tensor:
        """What each place reads, `(B, places, inputs)`, row by row."""
        cells, before = self._cells(latents)
        height, width = self.grid
        read = [cells]
        if self.neighbours:
            wide = F.pad(cells, (1, 1, 1, 1), mode="replicate")
            read += [wide[:, :, i : i + height, j : j + width] for i, j in ((0, 1), (2, 1), (1, 0), (1, 2))]
        everywhere = [cells.mean((2, 3))] * self.several + list(before.unbind(1))
        read += [one[:, :, None, None].expand_as(cells) for one in everywhere]
        return torch.cat(read, 1).flatten(2).movedim(1, 2)

    def _cells(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """A map `(B, D, height, width)` of the places, and the tokens before them `(B, prefix, D)`."""
        if len(self.latent_shape) == 3:
            return latents, latents.new_zeros(len(latents), 0, 1)
        tokens = latents if len(self.latent_shape) == 2 else latents[:, None]
        before, places = tokens.split([self.prefix, tokens.shape[1] - self.prefix], 1)
        return places.movedim(1, 2).unflatten(2, self.grid), before

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
