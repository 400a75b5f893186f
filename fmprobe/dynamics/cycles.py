"""A second look at confirmed cycles: their least period, and whether they hold against a small disturbance."""

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.norms import norms
from fmprobe.dynamics.working import Criterion, WorkingBatch
from fmprobe.seeding import torch_generator

DISTURBANCE = 1e-4  # of the cycle's amplitude


def examine_cycles(
    f: Function, batch: WorkingBatch, shape: torch.Size, criterion: Criterion
) -> tuple[Tensor, Tensor, int]:
    """Least periods `(B,)`, whether each cycle repels `(B,)`, and the rows of f it took.

    A multiple of the period can be confirmed first, while the orbit is still closing in. And an orbit of a chaotic map
    closes exactly, sooner or later, in arithmetic of finite precision; what tells it from a cycle of f is that a
    disturbance grows along it. It has one direction, so that a verdict does not depend on who else is examined. `f`
    bounds its calls by itself.
    """
    rules, longest = criterion.rules, int(batch.period.max())
    generator = torch_generator(0, "cycles: disturbance")
    direction = torch.randn(1, criterion.dimension, generator=generator)
    direction = (direction / norms(direction)).to(batch.latents)
    size = DISTURBANCE * batch.amplitude
    here, beside = batch.latents, batch.latents + size[:, None].to(direction) * direction
    least, spread = batch.period.clone(), torch.zeros_like(batch.norm)
    for step in range(1, 2 * longest + 1):
        both = f(torch.cat([here, beside]).reshape(-1, *shape)).reshape(2 * len(here), -1)
        here, beside = both.chunk(2)
        gap = norms(here - batch.latents)
        near = criterion.of(gap, batch.norm, batch.peak) < batch.tol
        near &= (gap < rules.return_share * batch.amplitude) & (batch.period % step == 0) & (step > 1)
        least = torch.where(near & (step < least), step, least)
        distance = norms(here - beside)
        spread = torch.where(2 * batch.period == step, distance, spread)
    repels = ~(spread <= rules.cycle_growth * size)  # not finite: repels
    return least, repels, 4 * longest * len(here)
