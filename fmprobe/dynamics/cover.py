"""Exact single linkage of more points than can be compared pair by pair: points are grouped around leaders first.

All points of a group lie within half the threshold of its leader, so they are linked. Two groups are linked if their
leaders are. If the leaders are farther apart than the threshold plus both radii, the groups are not linked. In between,
the closest pair of members decides. Ends of one attractor scatter by less than half the threshold, so there are about
as many groups as attractors.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.distances import Dissimilarity, euclidean
from fmprobe.dynamics.paging import forget

BLOCK = 256  # points read at a time
SLACK = 1e-3  # largest relative error of a distance by rounding


class Points:
    """Some rows of a tensor that may lie on disk, read in blocks, under a measure of `Dissimilarity`.

    Args:
        ends: All rows, `(n, *latent_shape)`.
        members: Indices of the rows that are the points.
        measure: "relative" or "cosine".
        scale: The `typical_size` of the rows' coordinates.
    """

    def __init__(self, ends: Tensor, members: Tensor, measure: str, scale: float) -> None:
        self.ends, self.members, self.measure, self.scale = ends.flatten(1), members, measure, scale

    def __len__(self) -> int:
        return len(self.members)

    def at(self, places: Tensor) -> Dissimilarity:
        """A copy of the points at some places among the members."""
        rows = self.ends[self.members[places]]
        forget(self.ends)
        return Dissimilarity(rows, self.measure, self.scale)

    def reach(self, threshold: float) -> float:
        """The threshold as a Euclidean distance, in units of `sizes`."""
        return threshold if self.measure == "relative" else math.sqrt(2 * threshold)

    def sizes(self, points: Dissimilarity) -> Tensor:
        """What distances are relative to: the norms, or 1 for cosine, which puts all points on the unit sphere."""
        return points.norms if self.measure == "relative" else torch.ones_like(points.norms)


@dataclass(frozen=True)
class Cover:
    """Groups of n points.

    Attributes:
        leaders: The point that each group was built around, `(m,)`.
        group: Group of each point, `(n,)`.
        away: Euclidean distance of each point from the leader of its group, `(n,)`.
        radius: The largest such distance in each group, `(m,)`.
        size: The largest of the points' `sizes` in each group, `(m,)`.
    """

    leaders: Tensor
    group: Tensor
    away: Tensor
    radius: Tensor
    size: Tensor


def cover(points: Points, reach: float, most: float = math.inf) -> Cover | None:
    """Groups of points within `reach` of a leader, or None if there are more than `most` groups.

    The first point that is in no group becomes the next leader.
    """
    n, device, dtype = len(points), points.ends.device, torch.float64
    group = torch.full((n,), -1, dtype=torch.long, device=device)
    away, size = torch.zeros(n, dtype=dtype, device=device), torch.zeros(n, dtype=dtype, device=device)
    leaders: list[int] = []
    for places in torch.arange(n, device=device).split(BLOCK):
        block = points.at(places)
        size[places] = points.sizes(block)
        known = torch.tensor(leaders, dtype=torch.long, device=device)
        group[places], away[places] = _nearest(points, block, known, reach)
        while bool((free := group[places] < 0).any()):
            first = int(free.nonzero()[0, 0])
            if len(leaders) == most:
                return None
            distance = euclidean(block.points[first : first + 1], block.points)[0]
            near = free & (distance < reach * torch.maximum(size[places], size[places][first]))
            near[first] = True
            group[places[near]], away[places[near]] = len(leaders), distance[near]
            leaders.append(int(places[first]))
    m = len(leaders)
    zeros = torch.zeros(m, dtype=dtype, device=device)
    radius, largest = zeros.scatter_reduce(0, group, away, "amax"), zeros.scatter_reduce(0, group, size, "amax")
    return Cover(torch.tensor(leaders, dtype=torch.long, device=device), group, away, radius, largest)


def _nearest(points: Points, block: Dissimilarity, leaders: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Of each point of a block the group of its nearest leader, -1 where none is in reach, and the distance to it."""
    sizes = points.sizes(block)
    group = torch.full_like(sizes, -1, dtype=torch.long)
    best, away = torch.full_like(sizes, reach), torch.zeros_like(sizes)
    for first, part in enumerate(leaders.split(4 * BLOCK) if len(leaders) else ()):
        others = points.at(part)
        distance = euclidean(block.points, others.points)
        relative = distance / torch.maximum(sizes[:, None], points.sizes(others)[None])
        nearest, which = relative.min(1)
        closer = nearest < best
        best = torch.where(closer, nearest, best)
        away = torch.where(closer, distance.gather(1, which[:, None])[:, 0], away)
        group = torch.where(closer, which + first * 4 * BLOCK, group)
    return group, away


def link_groups(points: Points, groups: Cover, of_leader: Tensor, reach: float) -> Tensor:
    """Component of each group, `(m,)`: components of leaders are joined where members of their groups are in reach.

    The labels are joined at once rather than by scipy at the end: groups of one component need no comparison.
    """
    component = of_leader.clone()
    leaders = points.at(groups.leaders)
    for i in range(len(component)):
        distance = euclidean(leaders.points[i : i + 1], leaders.points)[0]
        limit = reach * torch.maximum(groups.size, groups.size[i])
        apart = distance * (1 - SLACK) - groups.radius - groups.radius[i]
        for j in ((apart < limit) & (component != component[i])).nonzero()[:, 0].tolist():
            if component[j] != component[i] and _meet(points, groups, i, j, float(distance[j]), float(limit[j]), reach):
                component[component == component[j]] = component[i].clone()
    return component


def _meet(points: Points, groups: Cover, i: int, j: int, distance: float, limit: float, reach: float) -> bool:
    """Whether a point of one group is in reach of a point of another."""
    gap = distance * (1 - SLACK) - limit  # the two points' distances from their leaders must add up to this
    ours = ((groups.group == i) & (groups.away >= gap - groups.radius[j])).nonzero()[:, 0]
    theirs = ((groups.group == j) & (groups.away >= gap - groups.radius[i])).nonzero()[:, 0]
    for some in ours.split(BLOCK):
        a = points.at(some)
        for others in theirs.split(BLOCK):
            b = points.at(others)
            sizes = torch.maximum(points.sizes(a)[:, None], points.sizes(b)[None])
            if bool((euclidean(a.points, b.points) < reach * sizes).any()):
                return True
    return False
