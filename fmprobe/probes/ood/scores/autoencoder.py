"""Baselines of any autoencoder, which need no fit images: the latent's norm and the reconstruction error."""

import torch
from torch import Tensor

from fmprobe.probes.ood.score import Encoded, Needs, Statistic


def norm(seen: Encoded) -> Tensor:
    """||E(x)||."""
    return torch.linalg.vector_norm(seen.latents.flatten(1).double(), dim=1)


def reconstruction_error(seen: Encoded) -> Tensor:
    """The mean squared error between x and D(E(x)), over pixels and channels."""
    difference = seen.decoded.float() - seen.images.to(seen.decoded.device).float()
    return difference.flatten(1).double().square().mean(1)


SCORES = (
    Statistic(name="latent norm", group="baseline", needs=Needs.LATENT, two_sided=True, of=norm),
    Statistic(
        name="reconstruction error",
        group="baseline",
        needs=Needs.DECODED,
        two_sided=True,
        in_joined=7,
        of=reconstruction_error,
    ),
)
