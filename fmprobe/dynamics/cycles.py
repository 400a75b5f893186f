"""A second look at confirmed cycles: their least period, and whether a small disturbance grows along them."""

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.norms import norms
from fmprobe.dynamics.working import Criterion, WorkingBatch
from fmprobe.seeding import torch_generator

DISTURBANCE = 1e-4  # size of the disturbance, relative to the cycle's amplitude


def examine_cycles(
    f: Function, batch: WorkingBatch, shape: torch.Size, criterion: Criterion
) -> tuple[Tensor, Tensor, int]:
    """Find the least periods of confirmed cycles and tell which cycles repel.

    While an orbit is still closing in, a multiple of its period may be confirmed before the period itself. And in
    arithmetic of finite precision, the orbit of a chaotic map closes exactly sooner or later. It differs from a cycle
    of f in that a disturbance grows along it. All rows get a disturbance in the same direction, so that no verdict
    depends on which other cycles are examined.

    Args:
        f: the map. It bounds the size of its batches by itself.
        batch: orbits that ended in a cycle, B rows.
        shape: shape of one latent.
        criterion: what ended the orbits.

    Returns:
        The least periods `(B,)`, whether each cycle repels `(B,)`, and the number of rows of f that were computed.
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
    repels = ~(spread <= rules.cycle_growth * size)  # a spread that is not finite counts as repelling
    return least, repels, 4 * longest * len(here)
