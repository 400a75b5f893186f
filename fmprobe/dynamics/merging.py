"""Merging of ends that are the same attractor: single linkage, exact and independent of order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.distances import Dissimilarity

# For "cosine" the paper's threshold: equal if cos > 0.99 (Fumero et al., ICLR 2026, sec. 4).
THRESHOLDS = {"relative": 1e-2, "cosine": 1e-2}
SWEEPS = {
    "relative": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "cosine": (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
}


@dataclass(frozen=True)
class Linkage:
    """A minimum spanning tree of n points: `edges` `(n-1, 2)` and their `heights` `(n-1,)`.

    Cutting the edges of height `threshold` and above leaves the components of single linkage, at any threshold.
    """

    n: int
    edges: Tensor
    heights: Tensor

    def count(self, threshold: float) -> int:
        """Number of components at a threshold."""
        return int(self.n > 0) + int((self.heights >= threshold).sum())

    def components(self, threshold: float) -> Tensor:
        """Component of each point, `(n,)`, numbered by size (largest first), then by lowest point."""
        parent = list(range(self.n))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for (a, b), height in zip(self.edges.tolist(), self.heights.tolist(), strict=True):
            if height < threshold:
                a, b = root(a), root(b)
                parent[max(a, b)] = min(a, b)
        roots = [root(i) for i in range(self.n)]  # the lowest point of each component
        sizes = {r: roots.count(r) for r in set(roots)}
        number = {r: k for k, r in enumerate(sorted(sizes, key=lambda r: (-sizes[r], r)))}
        return torch.tensor([number[r] for r in roots], dtype=torch.long)


def single_linkage(dissimilarity: Dissimilarity) -> Linkage:
    """Prim's minimum spanning tree: n rows of distances, O(n) memory."""
    n = len(dissimilarity.points)
    if n < 2:
        return Linkage(n, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0))
    device = dissimilarity.points.device
    height = torch.full((n,), torch.inf, device=device, dtype=dissimilarity.points.dtype)
    nearest = torch.zeros(n, dtype=torch.long, device=device)
    outside = torch.ones(n, dtype=torch.bool, device=device)
    edges, heights, here = [], [], 0
    for _ in range(n - 1):
        outside[here] = False
        distance = dissimilarity.from_row(here)
        closer = outside & (distance < height)
        height, nearest = torch.where(closer, distance, height), torch.where(closer, here, nearest)
        joined = int(torch.where(outside, height, torch.inf).argmin())
        edges.append((int(nearest[joined]), joined))
        heights.append(height[joined])
        here = joined
    return Linkage(n, torch.tensor(edges), torch.stack(heights).cpu())
