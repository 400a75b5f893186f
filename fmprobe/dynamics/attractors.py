"""Attractors: the distinct fixed points that orbits end in, their basins and their stability."""

import warnings
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.cover import Points
from fmprobe.dynamics.distances import Dissimilarity
from fmprobe.dynamics.floor import rounding_floor
from fmprobe.dynamics.jacobian import (
    NotDifferentiableError,
    distance_to_fixed_point,
    spectral_norm,
    spectral_radius,
)
from fmprobe.dynamics.merging import SWEEPS, THRESHOLDS, merge_ends, single_linkage
from fmprobe.dynamics.orbits import Orbits
from fmprobe.dynamics.paging import forget
from fmprobe.dynamics.polish import METHODS, anderson
from fmprobe.dynamics.settling import iterate_on

AT_ONCE = 1024  # number of ends in memory at a time, where they are read from disk
MARGIN = 1e-3  # accuracy of a known spectral radius: a fixed point is unstable if its radius exceeds 1 by more


@dataclass(frozen=True)
class Attractors:
    """The m distinct fixed points that n starts lead to, ordered by size of basin, then by lowest start.

    Attributes:
        latents: `(m, *latent_shape)`; for each attractor the end with the smallest error.
        labels: `(n,)`; the attractor that each start belongs to. It is -1 where the orbit did not converge, did not
            converge closely enough to say where it ends, or ended at no attractor.
        sizes: `(m,)`; number of starts in each basin.
        errors: `(m,)`; estimated distance to the exact fixed point. It comes from the Jacobian where that was examined
            and determines it, else from the rate at which the steps shrink.
        spectral_radius: `(m,)`; of the Jacobian. It is nan where the Jacobian was not examined or the value is not
            certain.
        spectral_norm: `(m,)`; of the Jacobian, nan in the same cases.
        orbits: the orbits of all starts.
        merge: the measure, the threshold, the number of attractors at a sweep of thresholds, and that number under the
            other measures.
        unresolved: number of starts that met the tolerance but whose error stays above half the merge distance.
        unstable: number of fixed points that were left out because they repel.
        polished: number of attractors that polishing took nearer to their fixed point.
        examined: number of attractors whose Jacobian was examined; they come first. It is None for a set that was saved
            by a version that did not record it.
    """

    latents: Tensor
    labels: Tensor
    sizes: Tensor
    errors: Tensor
    spectral_radius: Tensor
    spectral_norm: Tensor
    orbits: Orbits
    merge: dict[str, Any]
    unresolved: int
    unstable: int = 0
    polished: int = 0
    examined: int | None = None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def count(self) -> int | None:
        """Number of attractors; None where every start that met the tolerance is unresolved."""
        return None if self.unresolved and not len(self) else len(self)

    @property
    def stability_unknown(self) -> int:
        """Number of attractors that were examined and whose spectral radius is still not known."""
        return int(self.spectral_radius[: self.examined or 0].isnan().sum())

    def to_dict(self) -> dict[str, Any]:
        """The summary that `results.json` keeps. Numbers that are not finite become None."""
        return {
            "count": self.count,
            "unresolved": self.unresolved,
            "unstable": self.unstable,
            "polished": self.polished,
            "examined": self.examined,
            "stability_unknown": self.stability_unknown,
            "sizes": self.sizes.tolist(),
            "merge": self.merge,
            "spectral_radius": _listed(self.spectral_radius),
            "spectral_norm": _listed(self.spectral_norm),
            "errors": _listed(self.errors),
        }


def attractors_of(
    f: Function,
    orbits: Orbits,
    scale: float,
    *,
    merge: str = "relative",
    threshold: float | None = None,
    stability_cap: int = 64,
    polish: str | None = None,
    device: torch.device | None = None,
) -> Attractors:
    """Find the attractors that orbits ended in.

    The orbits are taken over: where an orbit is continued, its end is overwritten. Their tensors may be memory-mapped
    and may lie on another device than f.

    Args:
        f: the map, on a batch of latents.
        orbits: the orbits, all iterated under one tolerance and one limit of steps.
        scale: the `typical_size` of the starts.
        merge: measure by which two ends are compared, "relative" or "cosine".
        threshold: distance within which two ends are one attractor; by default that of the measure.
        stability_cap: largest number of Jacobians examined at a time.
        polish: "anderson" polishes the attractors that were examined.
        device: the device of f; by default that of the ends.

    Raises:
        ValueError: a setting makes no sense.
    """
    check_settings(merge, threshold, stability_cap, polish)
    threshold = THRESHOLDS[merge] if threshold is None else threshold
    search = _Search(f, orbits, scale, merge, threshold, stability_cap, device or orbits.ends.device)
    return search.run(polish is not None)


def check_settings(merge: str, threshold: float | None, stability_cap: int, polish: str | None) -> None:
    """Check the settings of the merging.

    Raises:
        ValueError: a setting makes no sense.
    """
    check_counts(0, stability_cap=stability_cap)
    if threshold is not None and not (isinstance(threshold, Real) and threshold >= 0):
        raise ValueError(f"merge_threshold must be a number that is not negative, got {threshold!r}")
    if polish is not None and polish not in METHODS:
        raise ValueError(f"unknown polish {polish!r}: expected one of {', '.join(METHODS)}")
    if merge not in THRESHOLDS:
        raise ValueError(f"unknown merge {merge!r}: expected one of {', '.join(THRESHOLDS)}")


@dataclass(frozen=True)
class _Found:
    """The groups of settled ends in one round, and what was found at one member of each group."""

    members: Tensor  # starts whose ends are known closely enough to be merged
    components: Tensor  # the group of each member
    sweep: dict[str, int]
    chosen: Tensor  # for each group the start that represents it
    errors: Tensor
    radius: Tensor
    norm: Tensor
    examined: int  # so many of the chosen, the first, had their Jacobian examined


class _Search:
    """Turns orbits into attractors: it continues orbits, merges their ends and examines one member of each group.

    It starts over where the Jacobian refutes an error that was estimated from the steps.
    """

    def __init__(
        self,
        f: Function,
        orbits: Orbits,
        scale: float,
        merge: str,
        threshold: float,
        cap: int,
        device: torch.device,
    ) -> None:
        self.f = apart(f, orbits.protocol["batch_size"])  # Jacobians and rounding floors call f on no larger batches
        self.orbits, self.scale, self.device = orbits, scale, device
        self.merge, self.threshold, self.cap = merge, threshold, cap
        self.differentiable = True

    def run(self, polish: bool) -> Attractors:
        found = self._round()
        for _ in range(3):  # each round reduces the errors that were refuted, or gives up on them
            repels = found.radius > 1 + MARGIN
            refuted = (found.errors > self._allowed()[found.chosen]) | repels
            if not refuted.any():
                break
            # An error found at one member may be hidden at every member of its basin, so all of them get it. An orbit
            # that was only passing by a saddle then leaves it.
            errors = self.orbits.errors.clone()
            hidden = torch.where(refuted, torch.where(repels, torch.inf, found.errors), 0.0)[found.components]
            errors[found.members] = torch.maximum(errors[found.members], hidden)
            self.orbits = replace(self.orbits, errors=errors)
            found = self._round()
        result = self._result(found)
        return self._polished(result) if polish and len(result) and self.differentiable else result

    def _round(self) -> _Found:
        self._iterate_on()
        members = (self.orbits.converged & (self.orbits.errors <= self._allowed())).nonzero()[:, 0]
        points = Points(self.orbits.ends, members, self.merge, self.scale)
        components, sweep = merge_ends(points, self.threshold, SWEEPS[self.merge])
        chosen = self._representatives(members, components)
        return _Found(members, components, sweep, chosen, *self._examine(chosen))

    def _iterate_on(self) -> None:
        """Follow ends whose error is too large, while that reduces it: an end on its way to zero may be allowed less
        where it arrives than where it was.
        """
        taken = -1
        while int(self.orbits.steps.sum()) > taken:
            taken = int(self.orbits.steps.sum())
            self.orbits = iterate_on(self.f, self.orbits, self._allowed() / 2, self.device)
            if not bool((self.orbits.converged & (self.orbits.errors > self._allowed())).any()):
                break

    def _allowed(self) -> Tensor:
        """Half the merge distance at each end."""
        halves = []
        for block in self.orbits.ends.flatten(1).split(AT_ONCE):
            halves.append(Dissimilarity(block, self.merge, self.scale).as_distance(self.threshold) / 2)
            forget(block)
        return torch.cat(halves)

    def _representatives(self, members: Tensor, components: Tensor) -> Tensor:
        """For each group the member with the smallest error; among equals it is the lowest start."""
        errors = self.orbits.errors[members].tolist()
        best: dict[int, int] = {}
        for place, component in enumerate(components.tolist()):
            if component not in best or errors[place] < errors[best[component]]:
                best[component] = place
        return members[[best[component] for component in range(len(best))]]

    def _examine(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Errors, spectral radii and norms at the chosen ends, and how many of these ends, the first, were examined."""
        errors = self.orbits.errors[chosen].clone()
        values = (errors, torch.full_like(errors, torch.nan), torch.full_like(errors, torch.nan))
        first = chosen[: self.cap]
        if not len(first) or not self.differentiable:
            return *values, 0
        examined = self._linearise(self.orbits.ends[first].to(self.device), *values)
        if bool((errors[: self.cap] > self._allowed()[first]).any()):
            errors[self.cap :] = torch.fmax(errors[self.cap :], errors[: self.cap].nanmedian())
        return *values, examined

    def _linearise(self, latents: Tensor, errors: Tensor, radius: Tensor, norm: Tensor) -> int:
        """Overwrite the first errors, radii and norms by those of the Jacobian; return how many ends were examined."""
        m, examined = len(latents), 0
        try:
            radii = spectral_radius(self.f, latents)
            radius[:m], examined = radii.to(radius), m
            norm[:m] = spectral_norm(self.f, latents).to(norm)
            computed = self._distance(latents, radii).to(errors)
            errors[:m] = torch.where(computed.isnan(), errors[:m], computed)
        except NotDifferentiableError as error:
            warnings.warn(f"the stability of the attractors is not known: {error}", stacklevel=7)
            self.differentiable = False
        return examined

    def _distance(self, latents: Tensor, radii: Tensor) -> Tensor:
        """Distance to the exact fixed points of f, including the rounding of f; nan where it is not known."""
        floor, evaluations = rounding_floor(self.f, latents)
        self.orbits = replace(self.orbits, check_evaluations=self.orbits.check_evaluations + evaluations)
        return distance_to_fixed_point(self.f, latents, radii, noise=floor)

    def _under_other_measures(self, chosen: Tensor) -> dict[str, dict[str, float]]:
        """Count how many attractors are distinct under the measures that were not asked for."""
        counts = {}
        for measure, threshold in THRESHOLDS.items():
            if measure != self.merge:
                points = Dissimilarity(self.orbits.ends[chosen].flatten(1), measure, self.scale)
                counts[measure] = {"threshold": threshold, "count": single_linkage(points).count(threshold)}
        return counts

    def _result(self, found: _Found) -> Attractors:
        # If a basin is still refuted after the last round, all its starts are unresolved.
        settled = found.errors <= self._allowed()[found.chosen]
        repels = settled & (found.radius > 1 + MARGIN)
        keep = settled & ~repels
        number = torch.where(keep, keep.cumsum(0) - 1, -1)
        labels = torch.full((len(self.orbits),), -1, dtype=torch.long, device=keep.device)
        labels[found.members] = number[found.components]
        return Attractors(
            latents=self.orbits.ends[found.chosen[keep]],
            labels=labels,
            sizes=torch.bincount(labels[labels >= 0], minlength=int(keep.sum())),
            errors=found.errors[keep],
            spectral_radius=found.radius[keep],
            spectral_norm=found.norm[keep],
            orbits=self.orbits,
            merge={
                "measure": self.merge,
                "threshold": self.threshold,
                "scale": self.scale,
                "sweep": found.sweep,
                "also": self._under_other_measures(found.chosen[keep]),
            },
            unresolved=int(self.orbits.converged.sum()) - int(settled[found.components].sum()),
            unstable=int(repels.sum()),
            examined=int(keep[: found.examined].sum()),
        )

    def _polished(self, result: Attractors) -> Attractors:
        """Polish the attractors: take them nearer to their fixed points, as long as they stay the same attractors."""
        before, latents, errors = result.latents, result.latents.clone(), result.errors.clone()
        # Only the Jacobian can tell that a latent lies nearer to the same fixed point.
        for rows in torch.arange(result.examined or 0, device=before.device).split(AT_ONCE):
            old = before[rows].to(self.device)
            new, _ = anderson(self.f, old)
            radius = spectral_radius(self.f, new)
            error = self._distance(new, radius).to(errors)
            moved = torch.linalg.vector_norm((new - old).flatten(1), dim=1).to(errors)
            # The fixed point lies within the error of both latents, so they differ by at most the sum of the errors.
            same = (moved <= 2 * (errors[rows] + error)) & ~(radius.to(errors) > 1 + MARGIN)
            better = same & (error < errors[rows])
            latents[rows[better]] = new.to(before)[better]
            errors[rows[better]] = error[better]
        polished = int((errors < result.errors).sum())
        return replace(result, latents=latents, errors=errors, polished=polished, orbits=self.orbits)


def _listed(values: Tensor) -> list[float | None]:
    return [None if value != value or abs(value) == float("inf") else value for value in values.double().tolist()]
