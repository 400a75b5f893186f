"""Networks from standardised latents to an image: a transformer for tokens, convolutions for a map or a vector."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmprobe.errors import InputError

SIZES = {"tiny": (2, 192), "small": (4, 256), "base": (8, 512), "large": (12, 768)}  # layers, width
HEAD_WIDTH = 64
SEED_GRID = 4  # side of the map that a vector is unfolded to
MOST_PREFIX = 16  # most tokens before the patches


def make_body(latent_shape: Sequence[int], image_shape: Sequence[int], size: str) -> nn.Module:
    """Make the network from latents `(N, D)`, `(C, h, w)` or `(D,)` to values `(B, C, H, W)` before the last sigmoid.

    Args:
        latent_shape: Shape of the latents, without the batch.
        image_shape: Shape of the images `(C, H, H)`.
        size: Number of layers and width, a name in `SIZES`.

    Raises:
        InputError: If the size is not in `SIZES`, or the shapes do not go together.
    """
    if size not in SIZES:
        raise InputError(f"unknown decoder size {size!r}: expected one of {', '.join(SIZES)}")
    if len(image_shape) != 3 or image_shape[1] != image_shape[2]:
        raise InputError(f"a pixel decoder paints square images (C, H, H), got {tuple(image_shape)}")
    if len(latent_shape) == 2:
        return TokenBody(latent_shape, image_shape, *SIZES[size])
    if len(latent_shape) == 3:
        return MapBody(latent_shape, image_shape, *SIZES[size])
    if len(latent_shape) == 1:
        return VectorBody(latent_shape[0], image_shape, *SIZES[size])
    raise InputError(
        f"a pixel decoder takes tokens (N, D), a map (C, h, w) or a vector (D,), got latents {tuple(latent_shape)}"
    )


class TokenBody(nn.Module):
    """A transformer that paints one patch from each patch token; tokens before the patches are attended to."""

    positions: Tensor

    def __init__(self, latent_shape: Sequence[int], image_shape: Sequence[int], layers: int, width: int) -> None:
        super().__init__()
        self.prefix, self.grid, self.patch = patch_grid(latent_shape, image_shape)
        self.channels = image_shape[0]
        self.register_buffer("positions", _sincos(self.grid, width), persistent=False)
        self.embed = nn.Linear(latent_shape[1], width)
        self.before = nn.Parameter(0.02 * torch.randn(self.prefix, width)) if self.prefix else None
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_pixels = nn.Linear(width, self.channels * self.patch**2)
        _start_grey(self.to_pixels)

    def forward(self, latents: Tensor) -> Tensor:
        places = self.positions if self.before is None else torch.cat([self.before, self.positions])
        x = self.embed(latents) + places
        for block in self.blocks:
            x = block(x)
        patches = self.to_pixels(self.norm(x[:, self.prefix :]))
        g, p, c = self.grid, self.patch, self.channels
        image = patches.reshape(len(x), g, g, c, p, p).permute(0, 3, 1, 4, 2, 5)
        return image.reshape(len(x), c, g * p, g * p)


class MapBody(nn.Module):
    """Convolutions on a feature map, doubled in side until the image's is reached."""

    def __init__(self, latent_shape: Sequence[int], image_shape: Sequence[int], layers: int, width: int) -> None:
        super().__init__()
        channels, height, map_width = latent_shape
        self.side = image_shape[1]
        doublings = max(math.ceil(math.log2(self.side / max(height, map_width))), 0)
        widths = [max(width >> i, 16) for i in range(doublings + 1)]
        self.start = nn.Sequential(nn.Conv2d(channels, width, 1), *(_Residual(width) for _ in range(layers)))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), _Residual(b)) for a, b in pairwise(widths)
        )
        self.norm = _ChannelNorm(widths[-1])
        self.to_pixels = nn.Conv2d(widths[-1], image_shape[0], 3, padding=1)
        _start_grey(self.to_pixels)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.start(latents)
        for stage in self.stages:
            # The last doubling may overshoot a side that is no power of two times the map's.
            x = stage(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if x.shape[-1] != self.side or x.shape[-2] != self.side:
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear")
        return self.to_pixels(F.gelu(self.norm(x)))


class VectorBody(nn.Module):
    """One vector unfolded to a small map by a linear layer, then painted as a map."""

    def __init__(self, channels: int, image_shape: Sequence[int], layers: int, width: int) -> None:
        super().__init__()
        self.unfold = nn.Linear(channels, width * SEED_GRID**2)
        self.paint = MapBody((width, SEED_GRID, SEED_GRID), image_shape, layers, width)

    def forward(self, latents: Tensor) -> Tensor:
        return self.paint(self.unfold(latents).reshape(len(latents), -1, SEED_GRID, SEED_GRID))


class _Block(nn.Module):
    """A pre-norm transformer block.

    timm's `Block` computes the same, but names and orders its weights differently. Saved decoders, their fingerprints
    and the state of interrupted fits go by the names and the order here.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = x + self.out(mixed)
        return x + self.shrink(F.gelu(self.grow(self.norm2(x))))


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of a map, so that a map's mean is kept."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class _Residual(nn.Module):
    """A pre-norm residual block of two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _ChannelNorm(width), _ChannelNorm(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # the identity at first

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.norm2(self.conv1(F.gelu(self.norm1(x))))))


def patch_grid(latent_shape: Sequence[int], image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Divide an image among tokens `(N, D)`.

    Returns:
        The number of tokens before the patches, of patches a side, and of pixels a side of a patch.

    Raises:
        InputError: If the patches form no square grid that divides the image.
    """
    n, side = latent_shape[0], image_shape[1]
    grid = math.isqrt(n)
    prefix = n - grid**2
    if grid == 0 or prefix > MOST_PREFIX:
        raise InputError(
            f"a pixel decoder takes a square grid of tokens and at most {MOST_PREFIX} more, got {n} tokens"
        )
    if side % grid:
        raise InputError(f"a grid of {grid} x {grid} tokens does not divide images of {side} x {side} pixels")
    return prefix, grid, side // grid


def _start_grey(layer: nn.Linear | nn.Conv2d) -> None:
    """Small weights: a sigmoid that starts saturated learns slowly."""
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _sincos(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine embedding `(grid**2, width)` (Vaswani et al. 2017, one half of the width for each axis).

    timm's table is computed in float32: at 32 x 32 it differs by 2e-6, which saved decoders would notice.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid**2, width).float()
