"""Distances that are exact where points nearly coincide."""

import math

import torch
from torch import Tensor

MEASURES = ("relative", "cosine")


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances between the rows of `(n, d)` and `(m, d)`, `(n, m)`, by differences.

    The expansion |a|^2 - 2ab + |b|^2, quicker for many rows, loses all digits of a distance that is small against the
    norms, which is where merging decides.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


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
