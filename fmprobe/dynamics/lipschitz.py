"""By how much f stretches distances: pairs of points, locally and far apart, and the Jacobian along orbits."""

from collections.abc import Collection

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.jacobian import spectral_norm, spectral_radius
from fmprobe.seeding import normal_rows

DISTANCE = 1e-2  # of the pairs of a local Lipschitz estimate, relative to the norm of the point
DIRECTIONS = 4  # pairs a point


def local_lipschitz(f: Function, latents: Tensor, *, seed: int = 0, batch_size: int = 32) -> Tensor:
    """Largest ||f(z + e) - f(z)|| / ||e|| over a few random e, `(m,)`, on the CPU; nan where f is not finite.

    e has 1% of the norm of z, or of sqrt(d) where that is more. Random directions seldom meet the steepest one, so this
    is a lower bound of the local Lipschitz constant.
    """
    flat = latents.flatten(1)
    d = flat.shape[1]
    length = DISTANCE * torch.linalg.vector_norm(flat, dim=1).clamp(min=d**0.5)
    ratios = []
    with torch.no_grad():
        f = apart(f, batch_size)
        values = f(latents)
        for i in range(DIRECTIONS):
            rows = normal_rows(len(flat), d, seed, "contraction: noise", first=i * len(flat))
            noise = torch.from_numpy(rows).to(flat)
            moved = flat + noise * (length / torch.linalg.vector_norm(noise, dim=1))[:, None]
            changed = f(moved.reshape(latents.shape))
            ratios.append(_stretch(changed - values, moved - flat))
    return torch.stack(ratios).amax(0)


def pairwise_lipschitz(f: Function, latents: Tensor, batch_size: int = 32) -> Tensor:
    """||f(a) - f(b)|| / ||a - b|| of successive pairs of latents, `(m // 2,)`, on the CPU; nan where not finite."""
    with torch.no_grad():
        after = apart(f, batch_size)(latents)
    pairs = len(latents) // 2 * 2
    return _stretch(after[:pairs:2] - after[1:pairs:2], latents[:pairs:2] - latents[1:pairs:2])


def jacobian_sizes(f: Function, latents: Tensor, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Spectral norm and radius of J_f at latents `(m, *latent_shape)`, each `(m,)` on the CPU; nan where not finite.

    Raises:
        NotDifferentiableError: f has no derivative that autograd can give.
    """
    finite = latents.flatten(1).isfinite().all(1)
    found = []
    for size in (spectral_norm, spectral_radius):
        values = torch.full((len(latents),), torch.nan)
        parts = [size(f, block) for block in latents[finite].split(batch_size) if len(block)]
        if parts:
            values[finite.cpu()] = torch.cat(parts).cpu().float()
        found.append(values)
    return found[0], found[1]


def latents_at(f: Function, starts: Tensor, steps: Collection[int], batch_size: int = 32) -> list[Tensor]:
    """The latents of all orbits at some steps, in ascending order, each `(n, *latent_shape)`."""
    f, latents, found = apart(f, batch_size), starts, []
    with torch.no_grad():
        for step in range(max(steps) + 1):
            if step in steps:
                found.append(latents)
            if step < max(steps):
                latents = f(latents)
    return found


def _stretch(after: Tensor, before: Tensor) -> Tensor:
    ratio = torch.linalg.vector_norm(after.flatten(1), dim=1) / torch.linalg.vector_norm(before.flatten(1), dim=1)
    return torch.where(ratio.isfinite(), ratio, torch.nan).cpu()
