"""What a surrogate decoder makes of images that it was not trained on, to be looked at."""

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.surrogates.data import HELD_OUT_FIRST, procedural
from fmprobe.surrogates.features import as_pixels

IMAGES = 8


def painted(model: Autoencoder, batch_size: int = IMAGES) -> Tensor | None:
    """Procedural images and below them D(E(x)), `(2, IMAGES, C, H, W)`.

    None where the model's decoder is no surrogate, or shows no images of one or three channels.
    """
    decoder = model.provenance.get("decoder") or {}
    if decoder.get("kind") != "surrogate" or not model.has_decoder or model.image_shape[0] not in (1, 3):
        return None
    images = as_pixels(procedural(model, IMAGES, HELD_OUT_FIRST, "all", 0))
    with torch.no_grad():
        below = [model.decode(model.encode(part)).cpu() for part in images.split(batch_size)]
    return torch.stack([images, torch.cat(below)])
