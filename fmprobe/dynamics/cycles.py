"""A second look at confirmed cycles: their least period, and whether they hold against a small disturbance."""

from collections.abc import Callable

import torch
from torch import Tensor

from fmprobe.dynamics.working import Criterion, WorkingBatch

DISTURBANCE = 1e-4  # of the cycle's amplitude


def examine_cycles(
    f: Callable[[Tensor], Tensor], batch: WorkingBatch, shape: torch.Size, criterion: Criterion
) -> tuple[Tensor, Tensor, int]:
    """Least periods `(B,)`, whether each cycle repels `(B,)`, and the rows of f it took.

    A multiple of the period can be confirmed first, while the orbit is still closing in. And an orbit of a chaotic map
    closes exactly, sooner or later, in arithmetic of finite precision; what tells it from a cycle of f is that a
    disturbance grows along it.
    """
    rules, longest = criterion.rules, int(batch.period.max())
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
    direction /= torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    size = (DISTURBANCE * batch.amplitude)[:, None]
    here, beside = batch.latents, batch.latents + size * direction
    least, spread = batch.period.clone(), torch.zeros_like(batch.norm)
    for step in range(1, 2 * longest + 1):
        both = f(torch.cat([here, beside]).reshape(-1, *shape)).to(here.dtype).reshape(2 * len(here), -1)
        here, beside = both.chunk(2)
        gap = torch.linalg.vector_norm(here - batch.latents, dim=1)
        near = criterion.of(gap, batch.norm, batch.peak) < batch.tol
        near &= (gap < rules.return_share * batch.amplitude) & (batch.period % step == 0) & (step > 1)
        least = torch.where(near & (step < least), step, least)
        distance = torch.linalg.vector_norm(here - beside, dim=1)
        spread = torch.where(2 * batch.period == step, distance, spread)
    repels = ~(spread <= rules.cycle_growth * size[:, 0])  # not finite: repels
    return least, repels, 4 * longest * len(here)
