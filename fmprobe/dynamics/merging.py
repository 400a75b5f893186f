"""Merge the ends that are the same attractor by single linkage, exactly and in any order of the ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from fmprobe.dynamics.cover import Cover, Points, cover, link_groups
from fmprobe.dynamics.distances import Dissimilarity

# The threshold of "cosine" is the paper's: ends are equal if cos > 0.99 (Fumero et al., ICLR 2026, sec. 4).
THRESHOLDS = {"relative": 1e-2, "cosine": 1e-2}
SWEEPS = {
    "relative": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "cosine": (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
}

PAIRS = 2.0**35  # Up to this many coordinates, n * n * d, all pairs of points are compared.


@dataclass(frozen=True)
class Linkage:
    """A minimum spanning tree of n points.

    Without its edges of height `threshold` and above, the tree falls into the components of single linkage.

    Attributes:
        n: Number of points.
        edges: The two ends of each edge, `(n - 1, 2)`.
        heights: Dissimilarity along each edge, `(n - 1,)`.
    """

    n: int
    edges: Tensor
    heights: Tensor

    def count(self, threshold: float) -> int:
        """Number of components at a threshold."""
        return int(self.n > 0) + int((self.heights >= threshold).sum())

    def components(self, threshold: float) -> Tensor:
        """Component of each point, `(n,)`, numbered by size (largest first), then by lowest point."""
        kept = self.edges[self.heights < threshold].int().numpy()
        graph = coo_array((np.ones(len(kept)), (kept[:, 0], kept[:, 1])), shape=(self.n, self.n))
        return numbered(torch.from_numpy(connected_components(graph, directed=False)[1]))


def numbered(component: Tensor) -> Tensor:
    """Components `(n,)` numbered by size (largest first), then by lowest point."""
    _, lowest, place, sizes = np.unique(
        component.cpu().numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.lexsort((lowest, -sizes)).argsort()
    return torch.from_numpy(rank[place]).to(component.device)


def merge_ends(
    points: Points, threshold: float, sweep: Sequence[float], pairs: float = PAIRS
) -> tuple[Tensor, dict[str, int]]:
    """Components of the points under single linkage, exactly.

    Args:
        points: The n points, of dimension d.
        threshold: Points are linked if their dissimilarity is below it.
        sweep: Other thresholds, at which the components are counted.
        pairs: For n * n * d above this number, points are grouped before they are compared.

    Returns:
        The component of each point at `threshold`, `(n,)`, and the number of components at each threshold of `sweep`.
        A threshold so small that even the groups are too many to compare is left out of the numbers.
    """
    n, d = len(points), points.ends.shape[1]
    if n * n * d <= pairs:
        linkage = single_linkage(points.at(torch.arange(n, device=points.members.device)))
        return linkage.components(threshold).to(points.members.device), {str(t): linkage.count(t) for t in sweep}
    groups = cover(points, points.reach(threshold) / 2)
    assert groups is not None
    counts = {}
    for value in sorted(sweep, reverse=True):
        # Groups at the threshold serve larger values as well. A smaller value needs smaller groups.
        at_value = groups if value >= threshold else cover(points, points.reach(value) / 2, max(1.0, pairs / (n * d)))
        if at_value is None:
            break
        counts[str(value)] = len(_linked(points, at_value, value).unique())
    components = numbered(_linked(points, groups, threshold)[groups.group])
    return components, {str(t): counts[str(t)] for t in sweep if str(t) in counts}


def _linked(points: Points, groups: Cover, threshold: float) -> Tensor:
    """Component of each group, `(m,)`."""
    of_leader = single_linkage(points.at(groups.leaders)).components(threshold).to(groups.leaders.device)
    return link_groups(points, groups, of_leader, points.reach(threshold))


def single_linkage(dissimilarity: Dissimilarity) -> Linkage:
    """Minimum spanning tree of the points (Prim 1957), in memory that grows as their number."""
    # Scipy's minimum_spanning_tree needs the graph of all pairs (2 GiB for 16384 points) and drops edges of height 0,
    # which equal points have. Applied block by block, it took 24 s for 16384 points in 2 dimensions; this takes 5 s.
    n, device = len(dissimilarity.points), dissimilarity.points.device
    height = torch.full((n,), torch.inf, device=device, dtype=torch.float64)  # from the tree to each point outside
    nearest = torch.zeros(n, dtype=torch.long, device=device)  # which point of the tree is that near
    outside = torch.ones(n, dtype=torch.bool, device=device)
    edges, heights = nearest.new_zeros(max(n - 1, 0), 2), height.new_zeros(max(n - 1, 0))
    joined = 0
    for i in range(n - 1):
        outside[joined] = False
        distance = dissimilarity.from_row(joined)
        closer = outside & (distance < height)
        height, nearest = torch.where(closer, distance, height), torch.where(closer, joined, nearest)
        joined = int(torch.where(outside, height, torch.inf).argmin())
        edges[i, 0], edges[i, 1], heights[i] = nearest[joined], joined, height[joined]
    return Linkage(n, edges.cpu(), heights.cpu())
