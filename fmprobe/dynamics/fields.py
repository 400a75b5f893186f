"""The latent vector field V(z) = f(z) - z on a plane through latent space, its basins, and the cosine of two fields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fmprobe.dynamics.attractors import AttractorSet, find_attractors
from fmprobe.dynamics.calls import apart
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.jacobian import Function

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER_EXTENT = 8.0  # starts of the paper's figure 1 are drawn from U[-8, 8]
MARGIN = 1.5  # of a plane's extent over the points that it was laid through


@dataclass(frozen=True)
class Plane:
    """A plane in latent space: `origin` `(*latent_shape)` and two orthonormal `directions` `(2, *latent_shape)`.

    `extent`: half the side, in latent units, of the square around the origin that is looked at. `label`: how the plane
    was chosen. Raises ValueError for an extent that is not positive and finite, or shapes that do not fit.
    """

    origin: Tensor
    directions: Tensor
    extent: float
    label: str

    def __post_init__(self) -> None:
        if not 0 < self.extent < float("inf"):
            raise ValueError(f"the extent of a plane must be positive and finite, got {self.extent}")
        if self.directions.shape != (2, *self.origin.shape):
            expected, got = (2, *self.origin.shape), tuple(self.directions.shape)
            raise ValueError(f"directions of a plane have shape {got}: expected {expected}, as its origin has")

    @classmethod
    def spanned(cls, origin: Tensor, u: Tensor, v: Tensor, extent: float = PAPER_EXTENT, label: str = "") -> "Plane":
        """The plane at `origin` along u and v, orthonormalised (Gram-Schmidt, u's direction kept).

        Raises ValueError where u and v are parallel or zero.
        """
        if not u.shape == v.shape == origin.shape:
            shapes = ", ".join(str(tuple(x.shape)) for x in (origin, u, v))
            raise ValueError(f"origin, u and v of a plane must have one shape, got {shapes}")
        first, second = u.flatten().double(), v.flatten().double()
        first = first / first.norm()
        across = second - (second @ first) * first
        if not bool(across.norm() > 1e-6 * second.norm()):  # nan too, from a zero vector
            raise ValueError("two directions that are parallel or zero span no plane: choose others")
        directions = torch.stack([first, across / across.norm()]).to(origin.dtype)
        return cls(origin, directions.reshape(2, *origin.shape), extent, label or "two directions")

    @classmethod
    def axes(cls, starts: Tensor) -> "Plane":
        """The whole space of latents of two values, of which `starts` `(n, *latent_shape)` is an example."""
        shape = starts.shape[1:]
        directions = torch.eye(2, dtype=starts.dtype, device=starts.device).reshape(2, *shape)
        return cls(starts.new_zeros(shape), directions, PAPER_EXTENT, "the latent space itself")

    @classmethod
    def through(cls, points: Tensor, label: str = "three points") -> "Plane":
        """The plane through three points `(3, *latent_shape)`, with their centroid as origin.

        Raises ValueError where they lie on one line.
        """
        if len(points) != 3:
            raise ValueError(f"a plane needs three points, got {len(points)}")
        centre = points.mean(0)
        plane = cls.spanned(centre, points[1] - points[0], points[2] - points[0], label=label)
        return plane.around(points)

    @classmethod
    def principal(cls, points: Tensor, label: str = "principal components") -> "Plane":
        """The plane of the first two principal components of points `(n, *latent_shape)`, at their mean.

        Raises ValueError where they lie on one line or are not finite.
        """
        if not bool(points.isfinite().all()):
            raise ValueError("points that are not finite have no principal components: leave them out")
        centre = points.mean(0)
        centred = (points - centre).flatten(1).double()
        _, values, directions = torch.linalg.svd(centred, full_matrices=False)
        if len(values) < 2 or not bool(values[1] > 1e-6 * values[0]):
            raise ValueError(f"{len(points)} points on one line have no two principal components: give others")
        plane = cls(centre, directions[:2].to(points.dtype).reshape(2, *centre.shape), PAPER_EXTENT, label)
        return plane.around(points)

    def around(self, points: Tensor) -> "Plane":
        """The same plane, its extent chosen so that the points' projections lie well inside."""
        reach = float(self.coordinates(points).abs().max())
        return Plane(self.origin, self.directions, MARGIN * reach, self.label)

    def at(self, coordinates: Tensor) -> Tensor:
        """Latents `(n, *latent_shape)` at coordinates `(n, 2)`."""
        flat = coordinates.to(self.directions) @ self.directions.flatten(1)
        return self.origin + flat.reshape(-1, *self.origin.shape)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Coordinates `(n, 2)` of the latents' orthogonal projections."""
        return (latents - self.origin).flatten(1) @ self.directions.flatten(1).T


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
        from fmprobe.report.notebook import html_of

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


def field_at(f: Function, latents: Tensor, batch_size: int = 256) -> Tensor:
    """V(z) = f(z) - z at latents `(n, *latent_shape)`, in batches (Fumero et al., ICLR 2026, eq. 4)."""
    with torch.no_grad():
        return torch.cat([apart(f)(block) - block for block in latents.split(batch_size)])


def cosine_of(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the rows of two fields `(n, …)`, `(n,)`; nan where one of the two vanishes or is not finite."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    cosine = (a * b).sum(1) / lengths
    return torch.where(lengths > 0, cosine, torch.nan).clamp(-1, 1)


def field_cosine(f: Function, g: Function, latents: Tensor, batch_size: int = 256) -> Tensor:
    """Cosine of the fields of f and g at latents `(n, *latent_shape)` of one space, `(n,)`; as `cosine_of`."""
    return cosine_of(field_at(f, latents, batch_size), field_at(g, latents, batch_size))


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
