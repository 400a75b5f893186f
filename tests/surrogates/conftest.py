import pytest
import torch
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder


def tiny_encoder(side: int = 16, patch: int = 4, width: int = 24, seed: int = 0, **provenance) -> Autoencoder:
    """Patches under a fixed random projection, each channel with an offset and a scale of its own."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3 * patch**2, width, generator=g) / patch
    scale, shift = torch.logspace(-3, 3, width), 50 * torch.randn(width, generator=g)

    def encode(images):
        patches = F.unfold(images, patch, stride=patch).transpose(1, 2)
        return torch.tanh(patches @ matrix) * scale + shift

    return Autoencoder(
        encode,
        None,
        image_shape=(3, side, side),
        latent_shape=((side // patch) ** 2, width),
        provenance={"model": "tiny", "fingerprint": f"tiny-{seed}", "decoder": None, **provenance},
    )


@pytest.fixture
def encoder():
    return tiny_encoder()


@pytest.fixture
def make_encoder():
    return tiny_encoder
