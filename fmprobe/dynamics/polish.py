"""Polishing: approximate fixed points are taken to the rounding floor of f by Anderson acceleration."""

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.norms import norms, power_of_two

DEPTH = 5  # number of steps that a combination is taken over
STEPS = 40
METHODS = ("anderson",)


def anderson(f: Function, latents: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Run Anderson acceleration (1965) from each latent, type II with depth 5, each row by itself.

    For each row the result is the point on the way with the smallest ||f(z) - z||, the latent itself included. So no
    row gets worse. A row may leave for another fixed point, which the caller must check.

    Args:
        f: the map, on a batch of latents.
        latents: the latents `(m, *latent_shape)`.
        batch_size: largest number of latents in one call of f.

    Returns:
        The points `(m, *latent_shape)` and their residual norms `(m,)`.
    """
    m, shape, f = len(latents), latents.shape, apart(f, batch_size)
    here = latents.flatten(1)
    best, smallest = here.clone(), torch.full((m,), torch.inf, dtype=torch.float64, device=here.device)
    points, steps = [], []
    with torch.no_grad():
        for _ in range(STEPS if m else 0):
            step = (f(here.reshape(shape)).flatten(1) - here).double()
            size = norms(step).nan_to_num(nan=torch.inf)
            better = size < smallest
            best, smallest = torch.where(better[:, None], here, best), torch.where(better, size, smallest)
            points, steps = [*points[-DEPTH:], here.double()], [*steps[-DEPTH:], step]
            here = _combined(torch.stack(points, 1), torch.stack(steps, 1)).to(here.dtype)
            # A row that has run away restarts from its best point.
            lost = ~(size <= 1e3 * smallest) | ~here.isfinite().all(1)
            here = torch.where(lost[:, None], best, here)
    return best.reshape(shape), smallest.to(latents.dtype)


def _combined(points: Tensor, steps: Tensor) -> Tensor:
    """Find the affine combination of points `(m, k, d)` whose combined step is smallest, and move it on by that step.

    Where a row has a point or step that is not finite, it takes its last step alone. Other rows are not affected.
    """
    if points.shape[1] == 1:
        return points[:, 0] + steps[:, 0]
    sound = (steps.isfinite() & points.isfinite()).all(2).all(1)[:, None, None]
    changes, moves = (torch.where(sound, rows.diff(dim=1), 0) for rows in (steps, points))
    # The weights do not depend on the scale of the steps, whose squares might overflow or underflow.
    scale = power_of_two(changes.abs().amax((1, 2)))[:, None]
    units, last = changes / scale[..., None], torch.where(sound[..., 0], steps[:, -1], 0) / scale
    gram = units @ units.mT
    trace = torch.diagonal(gram, dim1=1, dim2=2).sum(1)[:, None, None]
    ridge = torch.where(trace > 0, 1e-12 * trace, 1) * torch.eye(gram.shape[1]).to(gram)
    weights = torch.linalg.lstsq(gram + ridge, units @ last[..., None]).solution
    return points[:, -1] + steps[:, -1] - ((moves + changes).mT @ weights)[..., 0]
