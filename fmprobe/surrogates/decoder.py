"""Base class of the kinds that paint images from the latents of an encoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.surrogates.artefact import Surrogate
from fmprobe.surrogates.features import Features, channels_of, channelwise, encode_native, in_blocks

SPACE = "standardised by the mean and deviation a channel of the surrogate's training features"

WORDS = """Surrogate decoder

A {architecture} ({parameters:,} parameters) from standardised latents {latent_shape} to images {image_shape}. With it
the latent map f(z) = E(D(z)) of an encoder without a decoder exists. What f does is this decoder's doing as much as the
encoder's.
"""


class ImageDecoder(Surrogate):
    """Standardised latents `(B, *latent_shape)` to images `(B, C, H, W)`.

    Attributes:
        latent_mean: Mean of each channel of the encoder's native latents, `(D,)`.
        latent_std: Standard deviation of each channel, `(D,)`.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, latent_shape: Sequence[int], image_shape: Sequence[int], info: dict[str, Any] | None) -> None:
        super().__init__()
        self.latent_shape, self.image_shape, self.info = tuple(latent_shape), tuple(image_shape), dict(info or {})
        self.register_buffer("latent_mean", torch.zeros(channels_of(self.latent_shape)))
        self.register_buffer("latent_std", torch.ones(channels_of(self.latent_shape)))

    def take_statistics(self, features: Features) -> None:
        """Standardise by the statistics of these features from now on."""
        self.latent_mean.copy_(features.mean)
        self.latent_std.copy_(features.std)

    def standardise(self, native: Tensor) -> Tensor:
        """The encoder's own latents, in the space that this decoder reads."""
        mean, std = (channelwise(one, self.latent_shape) for one in (self.latent_mean, self.latent_std))
        return (native - mean) / std

    def read(self, native: Tensor) -> Tensor:
        """What this decoder takes, of the encoder's own latents."""
        return self.standardise(native)

    def paint(self, native: Tensor) -> Tensor:
        """Images `(n, C, H, W)` of the encoder's own latents, in blocks, on the CPU."""
        return in_blocks(lambda z: self(self.read(z.to(self.latent_mean.device))), native)

    def attach(self, model: Autoencoder) -> Autoencoder:
        """Latents standardised by this decoder's statistics, images decoded by it."""
        return model.derived(
            encode=lambda images: self.read(model.encode_unchecked(images)), decode=self, **self.describe()
        )

    def errors(self, model: Autoencoder, images: Tensor) -> dict[str, float]:
        """L1 error of D(E(x)), and the relative feature error ||E(D(z)) - z|| / ||z||, in the mean over images."""
        native = encode_native(model, images)
        decoded = self.paint(native)
        before, again = (self.standardise(z.to(model.device)).cpu() for z in (native, encode_native(model, decoded)))
        return {"l1": float((decoded - images).abs().mean()), "feature_error": relative_error(again, before)}

    @property
    def space(self) -> str:
        return SPACE

    @property
    def words(self) -> str:
        decoder = self.describe()["decoder"]
        shapes = {"latent_shape": self.latent_shape, "image_shape": self.image_shape}
        return WORDS.format(architecture=decoder["architecture"], parameters=decoder["parameters"], **shapes)


def relative_error(again: Tensor, before: Tensor) -> float:
    """||again - before|| / ||before||, in the mean over rows."""
    return float(((again - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).mean())
