"""Surrogates that are fitted in a moment, and the encoder that most of them are fitted to."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder
from fmprobe.surrogates import data, fit
from fmprobe.surrogates.bodies import SIZES
from fmprobe.surrogates.fit import FitSettings, fit_decoder

QUICK = FitSettings(size="tiny", n_images=32, steps=5, batch_size=8, contraction=0.0)


def narrow() -> Iterator[None]:
    """A fixture under which the smallest decoder has a twentieth of its weights, and is judged by few images."""
    with (
        mock.patch.dict(SIZES, tiny=(1, 64)),
        mock.patch.object(data, "HELD_OUT", 16),
        mock.patch.object(fit, "HELD_OUT", 16),
    ):
        yield


def quick(model: Any, images: Any = None, kind: str = "pixel", **changes: Any) -> Any:
    settings = {
        "size": "tiny",
        "n_images": 32,
        "steps": 5,
        "batch_size": 8,
        "contraction": 0.0,
        "progress": False,
        **changes,
    }
    if images is not None and "n_images" not in changes:
        del settings["n_images"]
    return fit_decoder(model, images, kind, **settings)


def tiny_encoder(side: int = 16, patch: int = 4, width: int = 24, seed: int = 0, **provenance: Any) -> Autoencoder:
    """Patches under a fixed random projection, each channel with an offset and a scale of its own."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3 * patch**2, width, generator=g) / patch
    scale, shift = torch.logspace(-3, 3, width), 50 * torch.randn(width, generator=g)

    def encode(images: torch.Tensor) -> torch.Tensor:
        patches = F.unfold(images, patch, stride=patch).transpose(1, 2)
        return torch.tanh(patches @ matrix) * scale + shift

    return Autoencoder(
        encode,
        None,
        image_shape=(3, side, side),
        latent_shape=((side // patch) ** 2, width),
        provenance={"model": "tiny", "fingerprint": f"tiny-{seed}", "decoder": None, **provenance},
    )
