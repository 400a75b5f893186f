"""TAEF2, a real convolutional autoencoder, built from the description of its weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fmprobe


class Block(nn.Module):
    """ReLU(x + three convolutions of x), with x + pool(x) in place of x where `normed`."""

    def __init__(self, normed: bool = False) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        self.pool = None
        if normed:
            self.pool = nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Bound(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


def _stage(normed: bool) -> list[nn.Module]:
    return [Block(normed) for _ in range(3)]


def encoder() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), Block()]
    for normed in (False, False, True):
        layers += [nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False), *_stage(normed)]
    return nn.Sequential(*layers, nn.Conv2d(64, 32, 3, padding=1))


def decoder() -> nn.Sequential:
    layers: list[nn.Module] = [Bound(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    for normed in (True, False, False):
        layers += [*_stage(normed), nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Block(), nn.Conv2d(64, 3, 3, padding=1))


def load(folder: Path, side: int = 64) -> fmprobe.Autoencoder:
    parts = []
    for network, name in ((encoder(), "encoder"), (decoder(), "decoder")):
        network.load_state_dict(load_file(folder / f"{name}.safetensors"))
        parts.append(network.eval().requires_grad_(False))
    return fmprobe.from_functions(
        parts[0], parts[1], image_shape=(3, side, side), latent_shape=(32, side // 8, side // 8), name="taef2"
    )
