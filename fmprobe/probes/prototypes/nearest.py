"""Attractors of a latent map without a decoder, shown by the images whose latents are nearest to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.pictures import save_frames

IMAGES = 256  # procedural images among which the nearest are looked for
BESIDE = 4  # images for each attractor
SHOWN = 16  # attractors, the largest first
FILE = "nearest.png"


@dataclass(frozen=True)
class Nearest:
    """The images of a set whose latents are nearest to attractors.

    Attributes:
        pictures: images `(m, k, C, H, W)`, the nearest of each attractor first. They are not decoded.
        images: their numbers in the set `(m, k)`.
        distances: ||E(x) - a|| over the typical distance of two images of the set, `(m, k)`.
        count: number of images in the set.
        words: what the images are.
    """

    pictures: Tensor
    images: Tensor
    distances: Tensor
    count: int
    words: str

    def to_dict(self) -> dict[str, Any]:
        """The key `nearest_images` of `results.json`."""
        about = {"file": FILE, "set": self.words, "count": self.count}
        return {**about, "images": self.images.tolist(), "distances": self.distances.tolist()}

    def save(self, folder: Path) -> None:
        """Write `nearest.png`: one row per attractor, the nearest image on the left."""
        save_frames(self.pictures, folder / FILE)


@torch.no_grad()
def nearest_images(
    model: Autoencoder, latents: Tensor, images: Tensor | None = None, batch_size: int = 32
) -> Nearest | None:
    """Find the images whose latents are nearest to each of `latents`, by the Euclidean distance.

    Args:
        model: a model that encodes images and has no decoder.
        latents: attractors `(m, *latent_shape)`, the largest basin first; the first `SHOWN` are taken.
        images: the set, `(n, C, H, W)` in [0, 1]; by default `IMAGES` procedural images that no surrogate was
            trained on.
        batch_size: largest number of images in one call of the model.

    Returns:
        The images. None where the model has a decoder, there are no latents, or no images are given and the model does
        not take square images of one or three channels.
    """
    from fmprobe.images import as_pixels
    from fmprobe.surrogates.data import HELD_OUT_FIRST, procedural, takes_procedural

    if model.has_decoder or not len(latents):
        return None
    words = "images given by the caller"
    if images is None:
        if not takes_procedural(model):
            return None
        images = as_pixels(procedural(model, IMAGES, HELD_OUT_FIRST, "all", 0))
        words = "procedural images that the surrogate was not trained on"
    codes = model.encode(images, batch_size).flatten(1).double().cpu()
    chosen = latents[:SHOWN].flatten(1).double().cpu()
    distances, places = torch.cdist(chosen, codes).topk(min(BESIDE, len(images)), dim=1, largest=False)
    typical = float(torch.pdist(codes).median()) if len(codes) > 1 else 1.0
    return Nearest(images[places].cpu(), places, distances / (typical or 1.0), len(images), words)
