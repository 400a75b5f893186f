"""The trajectory score: how far an image's orbit passes from the attractors of the training images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.dynamics.calls import apart
from fmprobe.dynamics.distances import Dissimilarity, directions, euclidean, typical_size
from fmprobe.dynamics.iterate import MEASURES, iterate
from fmprobe.dynamics.merging import THRESHOLDS, single_linkage
from fmprobe.dynamics.orbits import Orbits, Status
from fmprobe.dynamics.protocols import FOUNDATION
from fmprobe.errors import InputError

DISTANCES = ("euclidean", "cosine", "standardised")
AGGREGATES = ("mean", "first", "last", "max", "length", "steps")
LARGEST = torch.finfo(torch.float32).max  # the score of an orbit that diverged
CONSTANT = 1e-4  # a dimension that varies less than this share of the typical one counts as constant
MOST = 2**31  # steps, or rows of a batch
STABILITY_CAP = 16  # attractors whose Jacobian is examined
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrajectorySettings:
    """What decides a trajectory score.

    `steps`: the length of a trajectory that is scored. None counts each orbit's points up to its end, T exactly T steps
    of every orbit, a converged one staying where it is. `max_steps`: how long the search for the fit images' attractors
    goes on, whatever `steps` is, and an orbit that is scored where `steps` is None.
    `distance`: "euclidean", "cosine" (1 - cos), or "standardised" (Euclidean, each dimension divided by its deviation
    over the fit images). `aggregate` of the distances: "mean", "first", "last", "max"; or of the trajectory
    alone: "length", the path's, or "steps". `tol`, `measure`, `batch_size` as in `iterate`; `merge` and `threshold` as
    in `find_attractors`.
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
        """The most steps an orbit takes that is scored."""
        return self.steps or self.max_steps


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Reference:
    """What distances are taken to: `points` `(m, *latent_shape)`, and in `facts` what they are and how they were found.

    `deviation` `(d,)`: of each latent dimension over the fit images, constant dimensions raised.
    """

    points: Tensor
    deviation: Tensor
    facts: dict[str, Any]


def find_reference(f: Map, latents: Tensor, settings: TrajectorySettings, progress: bool | None = None) -> Reference:
    """The attractors that the fit images' latents `(n, *latent_shape)` end in (Fumero et al., ICLR 2026, sec. 4).

    Where fewer than half of them end in a known attractor, their ends after the last step stand for these, and
    `facts["kind"]` says so. Raises InputError where every orbit diverges.
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
    settled = in_basin >= 0.5
    ends = orbits.ends[finite]
    facts = {
        "kind": "attractors" if settled else f"ends after {settings.max_steps} steps",
        "points": len(found) if settled else len(ends),
        "images": n,
        "converged_share": float(orbits.converged.double().mean()),
        "in_an_attractor_share": in_basin,
        "distinct_ends": len(found) if settled else _distinct(ends, latents, found),
        "merge": {key: found.merge[key] for key in ("measure", "threshold")},
        "orbits": orbits.to_dict(),
    }
    return Reference(found.latents if settled else ends, _deviation(latents), facts)


def _deviation(latents: Tensor) -> Tensor:
    """Of each dimension over the rows, those of constant dimensions raised so that dividing magnifies no rounding."""
    std = latents.flatten(1).double().std(0, correction=0)
    typical = float(std.median())
    return (std.clamp(min=typical * CONSTANT) if typical > 0 else torch.where(std > 0, std, 1.0)).to(latents)


def _distinct(ends: Tensor, latents: Tensor, found: AttractorSet) -> int:
    scale = typical_size(float(latents.double().square().mean()))
    points = Dissimilarity(ends.flatten(1), found.merge["measure"], scale)
    return single_linkage(points).count(found.merge["threshold"])


class Nearest:
    """Distance of latents `(B, *latent_shape)` to the nearest reference point, `(B,)`, exact near zero."""

    def __init__(self, reference: Reference, distance: str) -> None:
        self.distance, self.deviation = distance, reference.deviation
        self.points = self._prepare(reference.points)

    def __call__(self, latents: Tensor) -> Tensor:
        nearest = euclidean(self._prepare(latents), self.points).amin(1)
        return nearest.square() / 2 if self.distance == "cosine" else nearest

    def _prepare(self, latents: Tensor) -> Tensor:
        rows = latents.flatten(1).to(self.deviation)
        if self.distance == "standardised":
            return rows / self.deviation
        return directions(rows) if self.distance == "cosine" else rows


class _Passage:
    """An observer of `iterate`: what the score needs of each trajectory, kept up as its points pass by."""

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


def follow(f: Map, latents: Tensor, nearest: Nearest, settings: TrajectorySettings) -> dict[str, Tensor]:
    """The trajectories of `latents` `(n, *latent_shape)` in figures, float64 `(n,)` on the CPU; none is stored.

    `mean` is the published score, 1/N sum_i d(z_i, A) over the points of the trajectory, z_0 included (Fumero et al.,
    ICLR 2026, sec. 4, fig. 5). `first`, `last`, `max`: of the same distances. `length`: of the path.
    `steps`: to its end. `residual`: ||f(z_0) - z_0||.
    `rate`: mean change of the logarithm of the step. `moved`: ||z_end - z_0||. `status`.
    Where an orbit diverged, all but `first` and `rate` are the largest float32; `first` too where its start is not
    finite.
    """
    with torch.no_grad():
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
    n_steps = (ended_after - 1).clamp(min=1)  # the steps that are counted on stand still
    tiny = math.sqrt(torch.finfo(torch.float32).tiny)
    rate = (passage.last_step.clamp(min=tiny).log() - passage.first_step.clamp(min=tiny).log()) / n_steps
    figures = {
        "mean": passage.total / (passage.steps + 1),
        "last": passage.last,
        "max": passage.largest,
        "length": passage.length,
        "steps": ended_after.double(),  # one that left soon did not settle soon
        "residual": passage.first_step,
        "moved": torch.linalg.vector_norm((orbits.ends - latents).flatten(1).double(), dim=1),
    }
    diverged = orbits.status == Status.DIVERGED
    figures = {name: torch.where(diverged, LARGEST, _bounded(value)) for name, value in figures.items()}
    figures |= {"first": _bounded(passage.first), "rate": rate.nan_to_num(0, 0, 0)}
    return {name: value.cpu() for name, value in figures.items()} | {"status": orbits.status.cpu()}


def _count_to(steps: int, f: Map, orbits: Orbits, passage: _Passage, batch_size: int) -> None:
    """Let every orbit count exactly `steps`: one at a fixed point stays there, a cycle goes on round."""
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


def _bounded(values: Tensor) -> Tensor:
    return values.nan_to_num(LARGEST, LARGEST, LARGEST).clamp(max=LARGEST)
