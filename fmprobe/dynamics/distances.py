"""Distances that are exact where points nearly coincide."""

import math

import torch
from torch import Tensor

MEASURES = ("relative", "cosine")
CANDIDATES = 4  # that are compared exactly, after a quick look at all
BLOCK = 2**24  # numbers of a block of distances


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances between the rows of `(n, d)` and `(m, d)`, `(n, m)`, by differences.

    The expansion |a|^2 - 2ab + |b|^2, quicker for many rows, loses all digits of a distance that is small against the
    norms, which is where merging decides.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(points: Tensor, others: Tensor, measure: str = "euclidean") -> tuple[Tensor, Tensor]:
    """Of each row of `(n, d)` the distance to its nearest row of `(m, d)`, and which that is: `(n,)` each.

    `measure`: "euclidean", or "cosine" (1 - cos, which is 1 where either row is zero). Exact also where points nearly
    coincide, in memory that does not grow with n. Raises ValueError where there is nothing to be near to.
    """
    if not len(others):
        raise ValueError("nearest: there are no points to be near to")
    if measure not in ("euclidean", "cosine"):
        raise ValueError(f"unknown measure {measure!r}: expected euclidean or cosine")
    if measure == "cosine":
        points, others = _units(points), _units(others)
    rows = max(1, min(BLOCK // len(others), BLOCK // (CANDIDATES * points.shape[1])))
    centre = others.mean(0)
    found = [_nearest(block, others, others - centre, centre, measure) for block in points.split(rows)]
    return torch.cat([distance for distance, _ in found]), torch.cat([index for _, index in found])


def _nearest(points: Tensor, others: Tensor, centred: Tensor, centre: Tensor, measure: str) -> tuple[Tensor, Tensor]:
    # Products rank quickly but lose the digits of small distances, so the first few are measured by differences.
    quick = centred.square().sum(1) / 2 - (points - centre) @ centred.T
    blank = (others == 0).all(1)
    if measure == "cosine":  # to a unit vector 1/2 from a zero row, whose cosine is to be 0
        quick = quick + blank / 2
    candidates = quick.topk(min(CANDIDATES, len(others)), largest=False).indices.sort(1).values
    exact = torch.linalg.vector_norm(others[candidates] - points[:, None], dim=2)
    if measure == "cosine":
        zero = (points == 0).all(1)[:, None] | blank[candidates]
        exact = torch.where(zero, 1.0, exact.square() / 2)
    distance, place = exact.min(1)
    return distance, candidates.gather(1, place[:, None])[:, 0]


def chamfer(a: Tensor, b: Tensor, measure: str = "cosine") -> float:
    """Symmetric Chamfer distance of two sets `(n, d)` and `(m, d)`: half the sum of both mean nearest distances.

    `measure` as in `nearest`; with "cosine", 1 - chamfer is the similarity of Fumero et al., ICLR 2026, fig. 3.
    """
    return float((nearest(a, b, measure)[0].mean() + nearest(b, a, measure)[0].mean()) / 2)


def _units(points: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(points, dim=1, keepdim=True)
    return points / norms.clamp(min=torch.finfo(norms.dtype).tiny)


class Dissimilarity:
    """Distance of latents as merging sees it, for `points` `(n, d)`.

    "relative": |a - b| / max(|a|, |b|, sqrt(d) * scale), `scale` being the latents' typical size, because attractors
    may lie at the origin of standardised latents. "cosine": 1 - cos(a, b).
    """

    def __init__(self, points: Tensor, measure: str, scale: float) -> None:
        norms = torch.linalg.vector_norm(points, dim=1)
        self.measure = measure
        if measure == "relative":
            self.points, self.norms = points, norms.clamp(min=math.sqrt(points.shape[1]) * scale)
        elif measure == "cosine":
            self.points, self.norms = points / norms.clamp(min=torch.finfo(norms.dtype).tiny)[:, None], norms
        else:
            raise ValueError(f"unknown merge measure {measure!r}: expected one of {', '.join(MEASURES)}")

    def from_row(self, row: int) -> Tensor:
        """From one point to all, `(n,)`."""
        distance = euclidean(self.points[row : row + 1], self.points)[0]
        if self.measure == "relative":
            return distance / torch.maximum(self.norms, self.norms[row])
        return distance.square() / 2  # of unit vectors: 1 - cos, exact near zero

    def as_distance(self, threshold: float) -> Tensor:
        """The Euclidean distance that `threshold` means at each point, `(n,)`."""
        return self.norms * (threshold if self.measure == "relative" else math.sqrt(2 * threshold))
