"""Planes through latent space, and the latent vector field V(z) = f(z) - z on them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function, apart

PAPER_EXTENT = 8.0  # starts of the paper's figure 1 are drawn from U[-8, 8]
MARGIN = 1.5  # extent of a plane, relative to the farthest point that it is laid through


@dataclass(frozen=True)
class Plane:
    """A plane in latent space, and the square on it that is looked at.

    Attributes:
        origin: `(*latent_shape)`; centre of the square.
        directions: `(2, *latent_shape)`; two orthonormal directions that span the plane.
        extent: half the side of the square, in latent units.
        label: how the plane was chosen.

    Raises:
        ValueError: the extent is not positive and finite, or the shapes do not fit.
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
        """The plane at `origin` along u and v, which are orthonormalised by Gram-Schmidt. The direction of u is kept.

        Raises:
            ValueError: u and v are parallel or zero, or the shapes differ.
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
        """The whole latent space, if latents have two values. `starts` `(n, *latent_shape)` are examples of latents."""
        shape = starts.shape[1:]
        directions = torch.eye(2, dtype=starts.dtype, device=starts.device).reshape(2, *shape)
        return cls(starts.new_zeros(shape), directions, PAPER_EXTENT, "the latent space itself")

    @classmethod
    def through(cls, points: Tensor, label: str = "three points") -> "Plane":
        """The plane through three points `(3, *latent_shape)`. Its origin is their centroid.

        Raises:
            ValueError: the points lie on one line.
        """
        if len(points) != 3:
            raise ValueError(f"a plane needs three points, got {len(points)}")
        centre = points.mean(0)
        plane = cls.spanned(centre, points[1] - points[0], points[2] - points[0], label=label)
        return plane.around(points)

    @classmethod
    def principal(cls, points: Tensor, label: str = "principal components") -> "Plane":
        """The plane of the first two principal components of points `(n, *latent_shape)`. Its origin is their mean.

        Raises:
            ValueError: the points lie on one line or are not finite.
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
        """The same plane, with an extent that leaves a margin around the projections of the points."""
        reach = float(self.coordinates(points).abs().max())
        return Plane(self.origin, self.directions, MARGIN * reach, self.label)

    def at(self, coordinates: Tensor) -> Tensor:
        """Latents `(n, *latent_shape)` at the coordinates `(n, 2)`."""
        flat = coordinates.to(self.directions) @ self.directions.flatten(1)
        return self.origin + flat.reshape(-1, *self.origin.shape)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Coordinates `(n, 2)` of the orthogonal projections of latents `(n, *latent_shape)`."""
        return (latents - self.origin).flatten(1) @ self.directions.flatten(1).T


def field_at(f: Function, latents: Tensor, batch_size: int = 256) -> Tensor:
    """V(z) = f(z) - z at latents `(n, *latent_shape)`, computed in batches (Fumero et al., ICLR 2026, eq. 4)."""
    with torch.no_grad():
        return torch.cat([apart(f)(block) - block for block in latents.split(batch_size)])


def cosine_of(a: Tensor, b: Tensor) -> Tensor:
    """Cosine `(n,)` between the rows of two fields `(n, …)`; nan where one of the rows is zero or not finite."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    cosine = (a * b).sum(1) / lengths
    return torch.where(lengths > 0, cosine, torch.nan).clamp(-1, 1)
