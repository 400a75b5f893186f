"""Statistics of the images alone, which need no model: what a detector that looks at latents has to beat."""

import io
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fmprobe.probes.ood.score import Bank, Encoded, Needs, Statistic

LEVEL = 1 / 255  # the distance of two values of a byte


def complexity(seen: Encoded) -> Tensor:
    """Bits a number of an image that PNG compresses without loss (Serrà et al., ICLR 2020, sec. 3)."""
    pictures = (seen.images.double() * 255).round().byte().cpu().numpy()
    return torch.tensor([8 * _png_size(picture) / picture.size for picture in pictures], dtype=torch.float64)


def _png_size(image: np.ndarray) -> int:
    """Bytes of a PNG of an image `(C, H, W)`; the channels of one that is not RGB stand below one another."""
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image.reshape(-1, image.shape[-1])
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.tell()


def detail(seen: Encoded) -> Tensor:
    """The mean square of an image minus its mean over 3 x 3 pixels: how much of it lies in high frequencies.

    The mean square of the rounding to bytes is added, so that rounding alone is not taken for detail.
    """
    images = seen.images.double()
    smooth = avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return (images - smooth).flatten(1).square().mean(1) + LEVEL**2 / 12


def saturation(seen: Encoded) -> Tensor:
    """The difference between the largest and the smallest channel of a pixel, averaged, plus one level of a byte."""
    images = seen.images.double()
    return (images.amax(1) - images.amin(1)).flatten(1).mean(1) + LEVEL


@dataclass(frozen=True, kw_only=True)
class OfPictures(Statistic):
    """A statistic that only pictures `(C, H, W)` have."""

    def exists(self, bank: Bank) -> bool:
        return bank.pictures


_of = partial(OfPictures, group="image", needs=Needs.LATENT, two_sided=True)

SCORES = (
    _of(name="complexity", in_joined=4, of=complexity),
    _of(name="detail", in_joined=5, of=detail),
    _of(name="saturation", in_joined=6, of=saturation),
)
