"""Maps whose orbits are known exactly."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def draws(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def uniform(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, generator=torch.Generator().manual_seed(seed))


def linear(*eigenvalues: float) -> Map:
    diagonal = torch.tensor(eigenvalues)
    return lambda z: z * diagonal.to(z)


def double_well(z: Tensor) -> Tensor:
    """Each coordinate goes to -1 or +1 by its sign, at rate 0.8; 0 is unstable."""
    return z + 0.1 * (z - z**3)


def rotation(turns: float, modulus: float = 1.0) -> Map:
    angle = 2 * math.pi * turns
    matrix = modulus * torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    return lambda z: z @ matrix.to(z).T


def logistic(r: float) -> Map:
    return lambda z: r * z * (1 - z)


def intermittent(channel: float) -> Map:
    """Pomeau-Manneville, type I: long laminar passages through a channel of this width, then bursts."""
    return lambda z: (z + channel + z * z) % 1


def half_precision(d: int, modulus: float, seed: int = 0) -> tuple[Map, Tensor]:
    """An affine contraction computed in bfloat16, and the fixed point of the same coefficients in exact arithmetic."""
    g = torch.Generator().manual_seed(seed)
    matrix = (modulus * torch.linalg.qr(torch.randn(d, d, generator=g))[0]).bfloat16()
    shift = torch.randn(d, generator=g).bfloat16()
    exact = torch.linalg.solve(torch.eye(d, dtype=torch.float64) - matrix.double(), shift.double())
    return lambda z: (z.bfloat16() @ matrix.T + shift).float(), exact


class NoForwardMode(torch.autograd.Function):
    """An identity whose derivative is known backward only, as through many operators."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]
