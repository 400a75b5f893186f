"""Merging of ends that are the same attractor: single linkage, exact and independent of order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.cover import Cover, Points, cover, link_groups
from fmprobe.dynamics.distances import Dissimilarity

# For "cosine" the paper's threshold: equal if cos > 0.99 (Fumero et al., ICLR 2026, sec. 4).
THRESHOLDS = {"relative": 1e-2, "cosine": 1e-2}
SWEEPS = {
    "relative": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "cosine": (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
}

PAIRS = 2.0**35  # coordinates of pairs of points that are compared within seconds


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
        return numbered(torch.tensor([root(i) for i in range(self.n)], dtype=torch.long))


def numbered(component: Tensor) -> Tensor:
    """Components `(n,)` numbered by size (largest first), then by lowest point."""
    _, place, sizes = component.unique(return_inverse=True, return_counts=True)
    n = len(component)
    points = torch.arange(n, device=component.device)
    lowest = torch.full_like(sizes, n).scatter_reduce(0, place, points, "amin")
    order = (sizes * -(n + 1) + lowest).argsort()
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))[place]


def merge_ends(
    points: Points, threshold: float, sweep: Sequence[float], pairs: float = PAIRS
) -> tuple[Tensor, dict[str, int]]:
    """Component of each point under single linkage at a threshold, `(n,)`, and how many there are at others.

    Exact. Where more than `pairs` coordinates of pairs would have to be compared, points are grouped first; of the
    thresholds of `sweep`, those under which even the groups are too many are then left out.
    """
    n, d = len(points), points.ends.shape[1]
    if n * n * d <= pairs:
        linkage = single_linkage(points.at(torch.arange(n, device=points.members.device)))
        return linkage.components(threshold).to(points.members.device), {str(t): linkage.count(t) for t in sweep}
    whole = cover(points, points.reach(threshold) / 2)
    assert whole is not None
    counts = {}
    for value in sorted(sweep, reverse=True):
        # What links a group at the threshold links it at a larger one; a smaller one needs groups of its own.
        groups = whole if value >= threshold else cover(points, points.reach(value) / 2, max(1.0, pairs / (n * d)))
        if groups is None:
            break
        counts[str(value)] = len(_linked(points, groups, value).unique())
    return numbered(_linked(points, whole, threshold)[whole.group]), {
        str(t): counts[str(t)] for t in sweep if str(t) in counts
    }


def _linked(points: Points, groups: Cover, threshold: float) -> Tensor:
    of_leader = single_linkage(points.at(groups.leaders)).components(threshold).to(groups.leaders.device)
    return link_groups(points, groups, of_leader, points.reach(threshold))


def single_linkage(dissimilarity: Dissimilarity) -> Linkage:
    """Prim's minimum spanning tree: n rows of distances, O(n) memory."""
    n = len(dissimilarity.points)
    if n < 2:
        return Linkage(n, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0))
    device = dissimilarity.points.device
    height = torch.full((n,), torch.inf, device=device, dtype=torch.float64)
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
