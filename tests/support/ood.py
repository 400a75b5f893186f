"""The comparison of out-of-distribution scores, as `fmprobe ood` makes it, on images in memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import fmprobe
from fmprobe.probes.ood.probe import Sets, compare_scores, fit_detector
from support.maps import linear

SIDE = 3
CONTRACTION = linear(*(0.2 + 0.05 * i for i in range(SIDE * SIDE)))


def draw_images(n: int, seed: int = 0) -> Tensor:
    """Grey images of the size that `contraction` takes."""
    return torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def contraction(watch: Callable[[str, int], None] = lambda what, n: None) -> fmprobe.Autoencoder:
    """D only reshapes, and E contracts to 0; `watch` is told how many images are encoded and latents decoded."""

    def encode(x: Tensor) -> Tensor:
        watch("encoded", len(x))
        return CONTRACTION(x.flatten(1))

    def decode(z: Tensor) -> Tensor:
        watch("decoded", len(z))
        return z.reshape(-1, 1, SIDE, SIDE)

    return fmprobe.from_functions(encode, decode, image_shape=(1, SIDE, SIDE), latent_shape=(SIDE * SIDE,))


def compare(
    model: fmprobe.Autoencoder,
    images: Tensor,
    ood: Mapping[str, Tensor],
    *,
    controls: bool = True,
    bootstrap: int = 20,
    **settings: Any,
) -> dict[str, Any]:
    """Split, fit, score and compare with seed 0; gives what `results.json` keeps under `ood`."""
    sets = Sets.split(images, ood, controls, seed=0)
    detector = fit_detector(model, sets, 0.95, settings)
    found = {name: detector.examine(pictures) for name, pictures in sets.examined.items()}
    return compare_scores(detector, sets, found, bootstrap).to_dict()
