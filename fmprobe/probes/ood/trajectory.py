"""Trajectories and what their points are compared with: the attractors that the fit images' trajectories end in."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.distances import Dissimilarity, directions, euclidean, typical_size
from fmprobe.dynamics.iterate import MEASURES, iterate
from fmprobe.dynamics.merging import THRESHOLDS, single_linkage
from fmprobe.dynamics.orbits import Orbits, Status
from fmprobe.dynamics.protocols import FOUNDATION
from fmprobe.errors import InputError
from fmprobe.probes.ood.score import Trajectories
from fmprobe.probes.ood.table import AGGREGATES

DISTANCES = ("euclidean", "cosine", "standardised")
CONSTANT = 1e-4  # a dimension whose deviation is below this share of the typical one counts as constant
MOST = 2**31  # an upper bound of steps and of rows in a batch
STABILITY_CAP = 16  # number of attractors whose Jacobian is examined


@dataclass(frozen=True)
class TrajectorySettings:
    """Settings of the trajectories and of the score that is made of them.

    Attributes:
        steps: How many steps of each scored trajectory count; a converged orbit stays where it is. None counts each
            orbit up to its end.
        distance: "euclidean", "cosine" (1 - cos), or "standardised": Euclidean, each latent dimension divided by its
            standard deviation over the fit images.
        aggregate: The statistic that is the score "trajectory": "mean", "first", "last" or "max" of the distances to
            the nearest attractor, "length" of the path, number of "steps", or another of `table.AGGREGATES`.
        tol: Tolerance on the step, as in `iterate`.
        measure: How the step is measured, as in `iterate`.
        max_steps: Step limit of the search for attractors; of scored trajectories too, where `steps` is None.
        batch_size: Number of latents that are iterated together.
        merge: How ends are merged to attractors, as in `find_attractors`.
        threshold: `merge_threshold` of `find_attractors`.

    Raises:
        InputError: A setting has a value that is not allowed.
    """

    steps: int | None = None
    distance: str = "euclidean"
    aggregate: str = "mean"
    tol: float = FOUNDATION.tol
    measure: str = FOUNDATION.measure
    max_steps: int = FOUNDATION.max_steps
    batch_size: int = 32
    merge: str = "relative"
    threshold: float | None = None

    def __post_init__(self) -> None:
        choices = {"distance": DISTANCES, "aggregate": AGGREGATES, "measure": MEASURES, "merge": tuple(THRESHOLDS)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"unknown {name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("steps", "max_steps", "batch_size"):
            value: Any = getattr(self, name)
            if value is None and name == "steps":
                continue
            if not _is_number(value) or not 1 <= value < MOST or value % 1:
                raise InputError(f"{name} must be a whole number and at least 1, got {value!r}")
            object.__setattr__(self, name, int(value))
        for name in ("tol", "threshold"):
            value: Any = getattr(self, name)
            if not (value is None and name == "threshold") and not (_is_number(value) and value >= 0):
                raise InputError(f"{name} must be a number and not negative or nan, got {value!r}")

    @property
    def horizon(self) -> int:
        """Step limit of a scored trajectory."""
        return self.steps or self.max_steps


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Reference:
    """The points that distances are taken to.

    Attributes:
        points: Attractors, or ends that stand for them, `(m, *latent_shape)`.
        deviation: Standard deviation of each latent dimension over the fit images, `(d,)`; that of nearly constant
            dimensions is raised.
        facts: JSON-ready: what the points are ("kind"), and how they were found.
    """

    points: Tensor
    deviation: Tensor
    facts: dict[str, Any]


def find_reference(
    f: Function, latents: Tensor, settings: TrajectorySettings, progress: bool | None = None
) -> Reference:
    """Find the attractors that the fit images' trajectories end in (Fumero et al., ICLR 2026, sec. 4).

    Where fewer than half of the trajectories end in a known attractor, the points reached at the step limit are taken
    instead, and `facts["kind"]` says so.

    Args:
        f: The latent map.
        latents: Latents of the fit images, `(n, *latent_shape)`.
        settings: How to iterate and merge.
        progress: Whether to show a progress bar; None shows one on a terminal, and lines elsewhere.

    Raises:
        InputError: Every orbit diverges.
    """
    found = find_attractors(
        f,
        starts=latents,
        tol=settings.tol,
        measure=settings.measure,
        max_steps=settings.max_steps,
        batch_size=settings.batch_size,
        merge=settings.merge,
        merge_threshold=settings.threshold,
        stability_cap=STABILITY_CAP,
        progress=progress,
    )
    orbits, n = found.orbits, len(latents)
    finite = (orbits.status != Status.DIVERGED) & orbits.ends.flatten(1).isfinite().all(1)
    if not bool(finite.any()):
        raise InputError(f"the orbits of all {n} fit images diverge: there is nothing to measure distances to")
    in_basin = int((found.labels >= 0).sum()) / n
    most_in_basins = in_basin >= 0.5
    ends = orbits.ends[finite]
    facts = {
        "kind": "attractors" if most_in_basins else f"ends after {settings.max_steps} steps",
        "points": len(found) if most_in_basins else len(ends),
        "images": n,
        "converged_share": float(orbits.converged.double().mean()),
        "in_an_attractor_share": in_basin,
        "distinct_ends": len(found) if most_in_basins else _distinct(ends, latents, found),
        "merge": {key: found.merge[key] for key in ("measure", "threshold")},
        "orbits": orbits.to_dict(),
    }
    return Reference(found.latents if most_in_basins else ends, _deviation(latents), facts)


def _deviation(latents: Tensor) -> Tensor:
    """Standard deviation of each dimension over the rows, `(d,)`; raised where division would magnify rounding."""
    std = latents.flatten(1).double().std(0, correction=0)
    typical = float(std.median())
    return (std.clamp(min=typical * CONSTANT) if typical > 0 else torch.where(std > 0, std, 1.0)).to(latents)


def _distinct(ends: Tensor, latents: Tensor, found: AttractorSet) -> int:
    """How many ends differ by more than the threshold that attractors are merged at."""
    scale = typical_size(float(latents.double().square().mean()))
    points = Dissimilarity(ends.flatten(1), found.merge["measure"], scale)
    return single_linkage(points).count(found.merge["threshold"])


class Nearest:
    """Distance from latents to the nearest reference point, exact near zero.

    Args:
        reference: The points.
        distance: "euclidean", "cosine" or "standardised".
    """

    def __init__(self, reference: Reference, distance: str) -> None:
        self.distance, self.deviation = distance, reference.deviation
        self.points = self._prepare(reference.points)

    def __call__(self, latents: Tensor) -> Tensor:
        """Distances `(B,)` of latents `(B, *latent_shape)`."""
        nearest = euclidean(self._prepare(latents), self.points).amin(1)
        return nearest.square() / 2 if self.distance == "cosine" else nearest

    def _prepare(self, latents: Tensor) -> Tensor:
        rows = latents.flatten(1).to(self.deviation)
        if self.distance == "standardised":
            return rows / self.deviation
        return directions(rows) if self.distance == "cosine" else rows


class _Passage:
    """An observer of `iterate` that keeps the statistics of each trajectory while its points pass by."""

    def __init__(self, starts: Tensor, nearest: Nearest, batch_size: int) -> None:
        self.nearest = nearest
        self.first = torch.cat([nearest(block) for block in starts.split(batch_size)]).double()
        self.last, self.largest, self.total = self.first.clone(), self.first.clone(), self.first.clone()
        self.steps = torch.zeros(len(starts), dtype=torch.long, device=starts.device)
        self.length, self.first_step, self.last_step = (torch.zeros_like(self.first) for _ in range(3))

    def __call__(self, indices: Tensor, before: Tensor, after: Tensor) -> None:
        distance = self.nearest(after).double()
        step = torch.linalg.vector_norm((after - before).flatten(1), dim=1).double()
        self.first_step[indices] = torch.where(self.steps[indices] == 0, step, self.first_step[indices])
        self.last_step[indices] = step
        self.length[indices] += step
        self.steps[indices] += 1
        self.last[indices] = distance
        self.total[indices] += distance
        self.largest[indices] = torch.maximum(self.largest[indices], distance)


@torch.no_grad()
def follow(f: Function, latents: Tensor, nearest: Nearest, settings: TrajectorySettings) -> Trajectories:
    """Follow the trajectories from latents and keep their statistics; no trajectory is stored.

    Args:
        f: The latent map.
        latents: The first points z_0, `(n, *latent_shape)`.
        nearest: The distance of a point to the attractors.
        settings: How orbits are iterated, and how many steps of each are counted.
    """
    passage = _Passage(latents, nearest, settings.batch_size)
    orbits = iterate(
        f,
        latents,
        tol=settings.tol,
        measure=settings.measure,
        max_steps=settings.horizon,
        batch_size=settings.batch_size,
        observer=passage,
        progress=False,
    )
    ended_after = passage.steps.clone()
    if settings.steps is not None:
        _count_to(settings.steps, f, orbits, passage, settings.batch_size)
    return Trajectories(
        first=passage.first,
        last=passage.last,
        largest=passage.largest,
        total=passage.total,
        counted=passage.steps,
        steps=ended_after,
        first_step=passage.first_step,
        last_step=passage.last_step,
        length=passage.length,
        moved=torch.linalg.vector_norm((orbits.ends - latents).flatten(1).double(), dim=1),
        status=orbits.status,
    )


def _count_to(steps: int, f: Function, orbits: Orbits, passage: _Passage, batch_size: int) -> None:
    """Count exactly `steps` of every orbit: an orbit at a fixed point stays there, a cycle goes round."""
    left = steps - passage.steps
    rest = orbits.converged & (left > 0)
    passage.total[rest] += left[rest] * passage.last[rest]
    passage.steps[rest] = steps
    f = apart(f, batch_size)
    going = ((orbits.status != Status.CONVERGED) & (orbits.status != Status.DIVERGED) & (left > 0)).nonzero()[:, 0]
    for rows in going.split(batch_size):
        latents = orbits.ends[rows]
        while len(rows):
            after = f(latents).detach()
            passage(rows, latents, after)
            more = passage.steps[rows] < steps
            rows, latents = rows[more], after[more]
