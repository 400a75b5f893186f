"""A film of a few orbits, decoded at chosen steps on the way from noise to where they end."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.calls import apart
from fmprobe.dynamics.orbits import Status
from fmprobe.probes.weights.dictionaries import check_seed_of

STARTS = 6  # number of starts that are shown
AMONG = 32  # they are taken from so many, the first
STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Film:
    """Decoded trajectories of a few starts.

    Attributes:
        frames: images `(starts, steps, C, H, W)`, not clamped. An orbit that has ended stays at its end.
        starts: numbers of the starts.
        steps: steps that the frames show; one more frame, the last, shows each orbit's end.
        ended: the step at which each orbit ended.
        status: how it ended, by name.
    """

    frames: Tensor
    starts: list[int]
    steps: list[int]
    ended: list[int]
    status: list[str]

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` keeps: everything but the frames."""
        return {name: getattr(self, name) for name in ("starts", "steps", "ended", "status")}


def film(model: Autoencoder, attractors: AttractorSet, seed: int = 0, batch_size: int = STARTS) -> Film | None:
    """Iterate a few of the N(0, I) starts of `attractors` again and decode them.

    Among the first starts, one of every status is taken before a second of any.

    Args:
        model: the model.
        attractors: what its search found.
        seed: seed of the search's starts.
        batch_size: largest number of rows in one call of the model.

    Returns:
        The film; None where the model has no images or there are no starts.

    Raises:
        InputError: the starts were drawn by another seed.
    """
    check_seed_of(attractors, seed)
    orbits = attractors.orbits
    if not model.has_decoder or not model.image_shape or not len(orbits):
        return None
    chosen = _varied(orbits.status[:AMONG].tolist())
    ended = orbits.steps[chosen]
    steps = [step for step in STEPS if step < int(ended.max())] or [0]
    ends = orbits.ends[chosen].to(model.device)
    latents = model.sample_latents(min(AMONG, len(orbits)), seed=seed)[chosen]
    still = ended.to(model.device).reshape(-1, *[1] * (latents.ndim - 1))
    f, frames = apart(model.latent_map, batch_size), []

    def paint(latents: Tensor) -> None:
        frames.append(model.decode(latents, batch_size).cpu())

    with torch.no_grad():
        for step in range(steps[-1] + 1):
            if step:
                latents = f(latents)
            if step in steps:
                paint(torch.where(still > step, latents, ends))
        paint(ends)
    status = [Status(value).name.lower() for value in orbits.status[chosen].tolist()]
    return Film(torch.stack(frames, dim=1), chosen, steps, ended.tolist(), status)


def _varied(status: list[int]) -> list[int]:
    """Places of up to STARTS values: the first of each kind, then the second of each, in the order of the places."""
    rank = [status[:place].count(value) for place, value in enumerate(status)]
    return sorted(sorted(range(len(status)), key=lambda place: (rank[place], place))[:STARTS])
