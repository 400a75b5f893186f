"""The set that orbits move on where they do not settle: its dimension, its mean picture, and a film along it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.calls import apart
from fmprobe.dynamics.dimension import effective_dimensions
from fmprobe.dynamics.orbits import Orbits, Status
from fmprobe.dynamics.readings import Readings, Regime, finite
from fmprobe.pictures import save_frames
from fmprobe.probes.prototypes.film import STEPS

ORBITS = 8  # number of orbits that are followed on
FILMED = 2  # of these so many, the first, are filmed
LARGEST = 2**24  # numbers in all the latents that are kept
PICTURES, FILM = "set.png", "set-film.png"


@dataclass(frozen=True)
class LimitSet:
    """What a few orbits that do not settle were seen to move on, after the search.

    Attributes:
        starts: numbers of the starts whose orbits were followed on.
        steps: number of steps from the end of each; with the end there is one point more.
        within: effective dimension of the points along each orbit.
        pooled: effective dimension of the points of all orbits together.
        mean: mean of the decoded pictures, of all orbits and then of each one filmed, `(rows, C, H, W)`; None without
            pictures.
        deviation: their standard deviations, of the same shape.
        variation: root mean square, over pixels and orbits, of how a pixel deviates from its mean along an orbit.
        frames: the films `(orbits, stops, C, H, W)`, not clamped.
        filmed: numbers of the starts that are filmed.
        stops: the steps that are shown.
    """

    starts: list[int]
    steps: int
    within: list[float]
    pooled: float
    mean: Tensor | None = None
    deviation: Tensor | None = None
    variation: float = math.nan
    frames: Tensor | None = None
    filmed: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` keeps: everything but the pictures. Numbers that are not finite become None."""
        known = [value for value in self.within if math.isfinite(value)]
        median = float(torch.tensor(known, dtype=torch.float64).quantile(0.5)) if known else None
        pooled = self.pooled if math.isfinite(self.pooled) else None
        found: dict[str, Any] = {
            "starts": self.starts,
            "steps": self.steps,
            "dimension": {"within": median, "pooled": pooled},
        }
        if self.mean is not None:
            found["pictures"] = {"file": PICTURES, "rows": len(self.mean), "variation": finite(self.variation)}
        if self.frames is not None:
            found["film"] = {"file": FILM, "starts": list(self.filmed), "steps": list(self.stops)}
        return found

    def save(self, folder: Path) -> None:
        """Write the mean pictures beside twice their deviations, `set.png`, and the film, `set-film.png`."""
        if self.mean is not None and self.deviation is not None:
            save_frames(torch.stack([self.mean, 2 * self.deviation], 1), folder / PICTURES)
        if self.frames is not None:
            save_frames(self.frames, folder / FILM)


def limit_set(
    model: Autoencoder,
    orbits: Orbits,
    readings: Readings,
    *,
    most: int = ORBITS,
    steps: int = STEPS[-1],
    batch_size: int = ORBITS,
) -> LimitSet | None:
    """Follow the first orbits that are chaotic, quasi-periodic or still wandering on from their ends.

    Args:
        model: the model.
        orbits: the orbits of a search.
        readings: their readings.
        most: largest number of orbits that are followed.
        steps: number of steps that each is followed for.
        batch_size: largest number of rows in one call of the model.

    Returns:
        What was seen; None where there is no such orbit, or none that stays finite.
    """
    regimes, status = readings.regimes, orbits.status.cpu()
    moving = (regimes == Regime.CHAOTIC) | (regimes == Regime.QUASI_PERIODIC)
    moving |= (regimes == Regime.NOT_MEASURED) & (status == Status.WANDERING)
    room = max(1, LARGEST // ((steps + 1) * math.prod(model.latent_shape)))
    chosen = moving.nonzero()[: min(most, room), 0]
    if not len(chosen):
        return None
    ends = orbits.ends[chosen.to(orbits.ends.device)].to(model.device)
    album = _Album(len(chosen), steps) if model.has_decoder and model.image_shape else None
    points = _followed(model, ends, steps, batch_size, album)
    kept = points.flatten(1).isfinite().all(1)
    if not kept.any():
        return None
    within, pooled = effective_dimensions(list(points[kept]))
    starts = chosen[kept].tolist()
    return LimitSet(starts, steps, within, pooled, **(album.pages(kept, chosen) if album else {}))


def _followed(model: Autoencoder, latents: Tensor, steps: int, batch_size: int, album: "_Album | None") -> Tensor:
    """The points of orbits from their ends on `(orbits, steps + 1, *latent_shape)`; the album gets their pictures."""
    f, points = apart(model.latent_map, batch_size), []
    with torch.no_grad():
        for step in range(steps + 1):
            latents = f(latents) if step else latents
            points.append(latents.cpu())
            if album is not None:
                album.add(step, model.decode(latents, batch_size).cpu())
    return torch.stack(points, 1)


class _Album:
    """Sums over the pictures along each orbit, and the frames of the first orbits.

    Args:
        orbits: number of orbits.
        steps: number of steps that they are followed for.
    """

    def __init__(self, orbits: int, steps: int) -> None:
        self.count, self.orbits = steps + 1, orbits
        self.stops = (*(stop for stop in STEPS if stop < steps), steps)
        self.frames: list[Tensor] = []
        self.first, self.sums, self.squares = torch.zeros(0), torch.zeros(0), torch.zeros(0)

    def add(self, step: int, images: Tensor) -> None:
        """Add the pictures of a step, one an orbit."""
        if step == 0:
            self.first, zeros = images.double(), torch.zeros_like(images, dtype=torch.float64)
            self.sums, self.squares = zeros, zeros.clone()
        moved = images.double() - self.first  # the variance of small differences would drown in that of large sums
        self.sums += moved
        self.squares += moved.square()
        if step in self.stops:
            self.frames.append(images[:FILMED])

    def pages(self, kept: Tensor, starts: Tensor) -> dict[str, Any]:
        """The fields of `LimitSet` that are pictures, of the orbits that are kept."""
        moved = self.sums[kept] / self.count
        means = self.first[kept] + moved
        variances = (self.squares[kept] / self.count - moved.square()).clamp(min=0)
        mean = means.mean(0, keepdim=True)
        whole = (variances + (means - mean).square()).mean(0, keepdim=True)  # the law of total variance
        filmed = kept[:FILMED]
        rows = int(filmed.sum()) if len(means) > 1 else 0  # a single orbit is all orbits
        pages: dict[str, Any] = {
            "mean": torch.cat([mean, means[:rows]]).float(),
            "deviation": torch.cat([whole, variances[:rows]]).sqrt().float(),
            "variation": float(variances.mean().sqrt()),
        }
        if not filmed.any():
            return pages
        frames = torch.stack(self.frames, 1)[filmed]
        return {**pages, "frames": frames, "filmed": tuple(starts[:FILMED][filmed].tolist()), "stops": self.stops}
