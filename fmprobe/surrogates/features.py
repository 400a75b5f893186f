"""Features of a frozen encoder, computed once an image and read again in every epoch."""

from collections.abc import Callable

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError

CONSTANT = 1e-4  # a channel that varies less than this share of the typical one counts as constant


class Features:
    """Tokens `(n, N, D)` of n images, standardised by one mean and deviation a channel when they are read.

    `mean` and `std`, float32 `(D,)`, are the statistics of all tokens of all images in the encoder's native units.
    Stored in half precision relative to the first block's statistics, so that neither a channel's offset nor its scale
    costs accuracy. Reading goes through `features[rows]` alone: the store may be any array that indexes by rows.
    """

    def __init__(self, store: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, std: Tensor) -> None:
        self._store, self._scale, self._shift = store, scale, shift  # standardised = store * scale + shift
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return self._store.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Standardised tokens, float32 `(len(rows), N, D)` on the CPU."""
        return self._store[rows].float() * self._scale + self._shift


def compute_features(
    model: Autoencoder,
    images: Tensor,
    batch_size: int = 32,
    *,
    disturb: Callable[[Tensor, int], Tensor] = lambda pixels, first: pixels,
    advance: Callable[[int], object] = lambda count: None,
) -> Features:
    """The encoder's tokens of `images` `(n, C, H, W)`, float in `[0, 1]` or bytes, in batches, without gradients.

    `disturb` gets each batch of pixels with the index of its first image and returns what the encoder sees; `advance`
    is told the size of each finished batch. Raises InputError where the latents are not finite, or are the same for
    every image and token, since no statistics can be taken from them.
    """
    store = torch.empty((len(images), *model.latent_shape), dtype=torch.float16)
    mean0 = std0 = torch.empty(0)
    total = squares = torch.zeros(model.latent_shape[-1], dtype=torch.float64)
    for first in range(0, len(images), batch_size):
        block = encode_native(model, disturb(as_pixels(images[first : first + batch_size]), first))
        if first == 0:
            mean0, std0 = block.mean(dim=(0, 1)), _at_least(block.std(dim=(0, 1), correction=0))
        relative = (block - mean0) / std0
        store[first : first + len(block)] = relative.clamp(-6e4, 6e4)  # half precision ends at 65504
        total = total + relative.double().sum(dim=(0, 1))
        squares = squares + relative.double().square().sum(dim=(0, 1))
        advance(len(block))
    count = store.shape[0] * store.shape[1]
    mean_r = total / count
    std_r = (squares / count - mean_r.square()).clamp(min=0).sqrt()
    if not std_r.any():
        raise InputError(f"{model.name} gives the same latents for every image: no statistics can be taken from them")
    mean, std = mean0.double() + std0.double() * mean_r, _at_least(std_r * std0)
    scale, shift = std0.double() / std, (mean0.double() - mean) / std
    return Features(store, scale.float(), shift.float(), mean.float(), std.float())


def encode_native(model: Autoencoder, images: Tensor) -> Tensor:
    """The encoder's own latents of a block of images, float32 on the CPU. Raises InputError where not finite."""
    with torch.no_grad():
        latents = model.encode(as_pixels(images).to(model.device)).float().cpu()
    if not latents.isfinite().all():
        raise InputError(f"{model.name} gives latents that are not finite: try dtype float32")
    return latents


def as_pixels(images: Tensor) -> Tensor:
    """Float images in `[0, 1]` of floats or bytes."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _at_least(std: Tensor) -> Tensor:
    """Deviations with those of constant channels raised, so that dividing by them does not magnify rounding."""
    typical = std.median()
    return std.clamp(min=float(typical) * CONSTANT) if typical > 0 else torch.where(std > 0, std, 1.0)
