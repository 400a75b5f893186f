"""The latent vector field V(z) = f(z) - z on a plane through latent space, and its basins of attraction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.fields import Plane, field_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class VectorField:
    """V on a square grid of a plane, row i at `ticks[i]` along the second direction, column j along the first.

    `arrows` `(g, g, 2)`: V projected on the plane. `norms` `(g, g)`: of the full V, inf where f is not finite.
    `outside` `(g, g)`: the share of |V|^2 that the projection loses, nan where V is zero or not finite. `basins`
    `(g, g)`: index of the attractor that the orbit of each grid point ends in, -1 for none; None if not asked for.
    `attractors`: where those orbits end, or the set that was given; None where there is neither.
    """

    plane: Plane
    ticks: Tensor
    arrows: Tensor
    norms: Tensor
    outside: Tensor
    basins: Tensor | None
    attractors: AttractorSet | None

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` keeps and the plot draws; values that are not finite become None."""
        found, outside = self.attractors, self.outside[self.outside == self.outside].double()
        points = self.ticks.new_zeros(0, 2) if found is None else self.plane.coordinates(found.latents)
        return {
            "plane": self.plane.label,
            "extent": self.plane.extent,
            "latent_shape": list(self.plane.origin.shape),
            "ticks": _listed(self.ticks),
            "arrows": _listed(self.arrows),
            "norms": _listed(self.norms),
            "outside": {
                "median": float(outside.median()) if len(outside) else None,
                "max": float(outside.max()) if len(outside) else None,
            },
            "basins": None if self.basins is None else self.basins.tolist(),
            "attractors": _listed(points),
            "orbits": None if self.basins is None or found is None else found.orbits.to_dict(),
        }

    def plot(self) -> "Figure":
        """Arrows coloured by norm, basins shaded, attractors marked (Fumero et al., ICLR 2026, fig. 1, 3a)."""
        from fmprobe.report.fields import plot_field

        return plot_field(self.to_dict())

    def _repr_html_(self) -> str:
        from fmprobe.report.show import html_of

        warning = None if self.attractors is None else self.attractors.warning
        return html_of({"field": self.to_dict()}, self.plot(), [warning] if warning else ())


def vector_field(
    model: Any,
    plane: Plane | Literal["attractors", "components"] | None = None,
    *,
    points: Tensor | None = None,
    attractors: AttractorSet | None = None,
    resolution: int = 25,
    basins: bool = True,
    seed: int = 0,
    batch_size: int = 256,
    **settings: Any,
) -> VectorField:
    """The latent vector field on a plane (Fumero et al., ICLR 2026, eq. 4, fig. 1, 3a).

    `model`: an Autoencoder; or any f on a batch of latents, with a `Plane`. `plane`: a `Plane`; "attractors", through
    the three largest of `attractors`; "components", the first two principal components of `points` `(n,
    *latent_shape)`. By default the latent space itself where it has two dimensions, else the plane through the largest
    `attractors` (found from N(0, I) under `seed` where none are given), with starts in place of those that are
    missing. `resolution`: grid points a side. `basins`: iterate every grid point to its end. `settings` (`tol`,
    `measure`, `max_steps`, `merge`, …) go to `find_attractors`.

    Raises ValueError where there is no such plane, or for settings that make no sense.
    """
    f: Function = getattr(model, "latent_map", model)
    check_counts(2, resolution=resolution)
    check_counts(batch_size=batch_size)
    search = {"batch_size": batch_size, "progress": False, **settings}
    if not isinstance(plane, Plane):
        plane, attractors = _choose(model, plane, points, attractors, seed, search)
    ticks = torch.linspace(-plane.extent, plane.extent, resolution, dtype=plane.origin.dtype)
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    grid = plane.at(torch.stack([columns, rows], -1).reshape(-1, 2))
    steps = field_at(f, grid, batch_size).flatten(1)
    arrows = steps @ plane.directions.flatten(1).T
    norms = torch.linalg.vector_norm(steps, dim=1)
    # By the remainder, since a difference of nearly equal norms would be rounding.
    rest = torch.linalg.vector_norm(steps - arrows @ plane.directions.flatten(1), dim=1)
    labels = None
    if basins:
        attractors = find_attractors(model, starts=grid, **search)
        labels = attractors.labels.reshape(resolution, resolution).cpu()
    square = (resolution, resolution)
    return VectorField(
        plane=plane,
        ticks=ticks,
        arrows=arrows.reshape(*square, 2).cpu(),
        norms=norms.nan_to_num(nan=torch.inf).reshape(square).cpu(),
        outside=(rest / norms).square().reshape(square).cpu(),
        basins=labels,
        attractors=attractors,
    )


def _choose(
    model: Any, plane: str | None, points: Tensor | None, attractors: AttractorSet | None, seed: int, search: Any
) -> tuple[Plane, AttractorSet | None]:
    """The plane asked for by name, or the default one, and the attractors that it was laid through."""
    if plane == "components":
        if points is None:
            raise ValueError('plane "components" needs points of shape (n, *latent_shape)')
        return Plane.principal(points), attractors
    if plane not in (None, "attractors"):
        raise ValueError(f'unknown plane {plane!r}: expected a Plane, "attractors" or "components"')
    if not hasattr(model, "sample_latents"):
        raise ValueError("a bare f does not say what its latents are: pass a Plane")
    starts = model.sample_latents(3, seed=seed)
    if plane is None and starts[0].numel() == 2:
        return Plane.axes(starts), attractors
    if attractors is None:
        attractors = find_attractors(model, seed=seed, **search)
    largest = attractors.latents[:3].to(starts)
    if plane == "attractors" and len(largest) < 3:
        raise ValueError(f'plane "attractors" needs three attractors, there are {len(largest)}: leave plane out')
    label = f"through {len(largest)} attractor{'s' * (len(largest) != 1)}"
    label += f" and {3 - len(largest)} N(0, I) start{'s' * (len(largest) != 2)}" * (len(largest) < 3)
    return Plane.through(torch.cat([largest, starts[: 3 - len(largest)]]), label), attractors


def _listed(values: Tensor) -> Sequence[Any]:
    """Nested lists rounded to four digits, None where not finite."""
    if values.ndim > 1:
        return [_listed(row) for row in values]
    return [float(f"{v:.4g}") if v == v and abs(v) != float("inf") else None for v in values.tolist()]
