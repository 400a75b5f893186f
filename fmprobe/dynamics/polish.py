"""Polishing: fixed points that are known closely, taken to the rounding floor of f by Anderson acceleration."""

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.norms import norms, power_of_two

DEPTH = 5  # steps that a combination is taken over
STEPS = 40
METHODS = ("anderson",)


def anderson(f: Function, latents: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Where Anderson acceleration (1965) leads from each latent `(m, *latent_shape)`, and the residual norms `(m,)`.

    Each row by itself, by calls of f on at most `batch_size` rows, type II, of depth 5; of the points on the way the
    one with the smallest ||f(z) - z||, the latent itself included, so that a row never gets worse. It may leave for
    another fixed point: the caller must see to that.
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
            # A row that has run off starts again where it was best.
            lost = ~(size <= 1e3 * smallest) | ~here.isfinite().all(1)
            here = torch.where(lost[:, None], best, here)
    return best.reshape(shape), smallest.to(latents.dtype)


def _combined(points: Tensor, steps: Tensor) -> Tensor:
    """The affine combination of points `(m, k, d)` whose combined step is smallest, moved on by that step.

    A row where one of them is not finite takes its last step alone, since no other row must learn of it.
    """
    if points.shape[1] == 1:
        return points[:, 0] + steps[:, 0]
    sound = (steps.isfinite() & points.isfinite()).all(2).all(1)[:, None, None]
    changes, moves = (torch.where(sound, rows.diff(dim=1), 0) for rows in (steps, points))
    # The weights are free of the scale of the steps, whose squares may be too large or too small.
    scale = power_of_two(changes.abs().amax((1, 2)))[:, None]
    units, last = changes / scale[..., None], torch.where(sound[..., 0], steps[:, -1], 0) / scale
    gram = units @ units.mT
    trace = torch.diagonal(gram, dim1=1, dim2=2).sum(1)[:, None, None]
    ridge = torch.where(trace > 0, 1e-12 * trace, 1) * torch.eye(gram.shape[1]).to(gram)
    weights = torch.linalg.lstsq(gram + ridge, units @ last[..., None]).solution
    return points[:, -1] + steps[:, -1] - ((moves + changes).mT @ weights)[..., 0]
