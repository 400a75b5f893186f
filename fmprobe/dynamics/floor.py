"""The rounding floor of f: how much of f(z) is rounding noise."""

import math

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.norms import norms
from fmprobe.seeding import torch_generator

FINE, COARSE = 2.0**-13, 2.0**-8  # spacings relative to the latent: below and at the resolution of bfloat16
ORDER = 4  # order of the differences: high enough that a smooth f leaves next to nothing
COORDINATES = 128  # least number of roundings that are pooled for one latent


def rounding_floor(f: Function, latents: Tensor, batch_size: int = 256) -> tuple[Tensor, int]:
    """Estimate the rounding noise of f at each latent.

    Fourth differences of f along short random lines vanish for a smooth f and leave its noise (Moré and Wild 2011,
    "Estimating computational noise", sec. 4). They are taken at two spacings. At the coarse spacing even bfloat16
    rounds differently at every point, but a kink of f shows there too. From the coarse to the fine spacing a kink
    shrinks in proportion to the spacing or faster, and rounding shrinks at most by its square root. So the coarse value
    counts only if the fine value has shrunk as slowly as rounding does.

    Args:
        f: the map, on a batch of latents.
        latents: the latents `(n, *latent_shape)`.
        batch_size: largest number of latents in one call of f.

    Returns:
        The standard deviation of the noise at each latent, as a norm `(n,)`, infinite where f is not finite; and the
            number of rows of f that were computed.
    """
    if not len(latents):
        return latents.new_zeros(0), 0
    n, d, f = len(latents), latents[0].numel(), apart(f, batch_size)
    lines = min(COORDINATES, math.ceil(COORDINATES / d))
    generator = torch_generator(0, "floor: lines")
    # A fixed point in rounded arithmetic lies in the middle of a rounding cell, so the lines start beside it.
    origins = torch.randn(lines, *latents.shape[1:], generator=generator).to(latents)
    directions = torch.randn(lines, *latents.shape[1:], generator=generator).to(latents)
    scale = (norms(latents.reshape(n, -1)) / math.sqrt(d)).to(latents).reshape(n, *[1] * directions.ndim)
    offsets = torch.arange(ORDER + 1).to(latents).reshape(-1, *[1] * (directions.ndim))
    signs = torch.tensor([(-1.0) ** k * math.comb(ORDER, k) for k in range(ORDER + 1)], dtype=torch.float64)
    unit = math.comb(2 * ORDER, ORDER)  # variance of the difference of unit noise

    def noise(spacing: float) -> Tensor:
        # The axes are: latent, point on the line, line, coordinates.
        shifts = COARSE * origins + spacing * offsets * directions
        points = latents[:, None, None] + scale[:, None] * shifts
        values = f(points.reshape(-1, *latents.shape[1:])).reshape(n, ORDER + 1, lines, d).double()
        difference = torch.einsum("k,nkld->nld", signs.to(values.device), values)
        return norms(difference.reshape(n, -1)) / math.sqrt(lines * unit)

    with torch.no_grad():
        fine, coarse = noise(FINE), noise(COARSE)
    kept = (FINE / COARSE) ** 0.75  # an exponent halfway between that of rounding, 0.5, and that of a kink, 1
    floor = torch.where(fine >= kept * coarse, torch.maximum(fine, coarse), fine)
    return floor.nan_to_num(nan=math.inf, posinf=math.inf).to(latents.dtype), 2 * n * lines * (ORDER + 1)
