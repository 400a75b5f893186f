"""Distances that are exact where points nearly coincide, at any scale."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.norms import norms, power_of_two

MEASURES = ("relative", "cosine")
BLOCK = 2**22  # numbers of a block of points
DISTANCES = 2**21  # numbers of a block of distances
NEAR = 2**18  # numbers that are subtracted together: few, so that they stay near the processor


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances between the rows of `(n, d)` and `(m, d)`, float64 `(n, m)`, by differences.

    The expansion |a|^2 - 2ab + |b|^2, quicker for many rows, loses all digits of a distance that is small against the
    norms, which is where merging decides. In float64 no square of a float32 overflows or vanishes; float64 is scaled
    by a power of two.
    """
    if len(a) > len(b):
        return euclidean(b, a).T
    scale = 1.0
    if torch.float64 in (a.dtype, b.dtype) and len(a):
        scale = power_of_two(torch.stack([rows.abs().amax().double() for rows in (a, b)]).amax())
    a = a.double() / scale
    blocks = b.split(max(1, NEAR // max(1, b.shape[1])))
    no_products = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(a, some.double() / scale, compute_mode=no_products) for some in blocks], 1) * scale


def nearest(points: Tensor, others: Tensor, measure: str = "euclidean") -> tuple[Tensor, Tensor]:
    """Of each row of `(n, d)` the distance to its nearest row of `(m, d)`, and which that is: `(n,)` each.

    `measure`: "euclidean", or "cosine" (1 - cos, which is 1 where either row is zero). Exact: what differences in
    float64 give, the lowest index among equals, at any scale and where points nearly coincide; in memory that grows
    neither with n nor with m beyond a few numbers a row. Rows that are not finite are near to nothing: of such a point
    the distance is nan and the index -1. Distances have the type of the points, at least float32.

    Raises ValueError where there is nothing to be near to, or for shapes that do not fit.
    """
    if measure not in ("euclidean", "cosine"):
        raise ValueError(f"unknown measure {measure!r}: expected euclidean or cosine")
    if points.ndim != 2 or points.shape[1:] != others.shape[1:] or not points.shape[1]:
        shapes = f"{tuple(points.shape)} and {tuple(others.shape)}"
        raise ValueError(f"nearest: expected points (n, d) and (m, d) of one dimension, got {shapes}")
    if not len(others):
        raise ValueError("nearest: there are no points to be near to")
    dtype = torch.promote_types(torch.promote_types(points.dtype, others.dtype), torch.float32)
    with torch.no_grad():
        distance, index = _nearest(points.detach(), others.detach(), measure == "cosine")
    return torch.where(index >= 0, distance, torch.nan).to(dtype), index


def _nearest(points: Tensor, others: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    size = max(1, BLOCK // points.shape[1])
    own, theirs = (torch.cat([norms(block) for block in rows.split(size)]) for rows in (points, others))
    known = torch.cat([own, theirs])
    scale = power_of_two(torch.where(known.isfinite(), known, 0).amax())
    best = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    index = torch.full_like(best, -1, dtype=torch.long)
    for first in range(0, len(others), size):
        rows = slice(first, first + size)
        there = _Others.of(_prepared(others[rows], theirs[rows], scale, cosine), theirs[rows], cosine)
        at_once = max(1, min(size, DISTANCES // len(there.rows)))
        for place in range(0, len(points), at_once):
            rows = slice(place, place + at_once)
            here = _prepared(points[rows], own[rows], scale, cosine)
            values, which = there.nearest_to(here, best[rows], own[rows])
            closer = values < best[rows]  # not equal: the lowest index has it
            best[rows] = torch.where(closer, values, best[rows])
            index[rows] = torch.where(closer, which + first, index[rows])
    if not cosine:
        return best * scale, index
    usable = theirs.isfinite()  # and all of them are as far from a zero row
    index[own == 0] = usable.long().argmax() if bool(usable.any()) else -1
    return torch.where(own == 0, 1.0, best), index


def _prepared(rows: Tensor, norm: Tensor, scale: Tensor, cosine: bool) -> Tensor:
    """Rows in float64, of length 1 or 0 for cosine, else in units of `scale`; zero where they are not finite."""
    sound = norm.isfinite()
    by = torch.where(sound & (norm > 0), norm, 1) if cosine else scale.expand_as(norm)
    return torch.where(sound[:, None], rows, 0).double() / by[:, None]


@dataclass(frozen=True)
class _Others:
    """A block of prepared rows `(m, d)` that are compared with points.

    A squared distance from products is off by at most `slack` of the squared norms: what is farther than the nearest
    by more than that is not. The few rows that remain are compared by differences.
    """

    rows: Tensor
    usable: Tensor  # finite
    blank: Tensor  # zero, which cosine has at a distance of 1
    cosine: bool
    centre: Tensor
    squares: Tensor  # squared norms, less the centre
    factors: Tensor  # (d + 2, m), for squared distances less their slack by one product
    slack: float

    @classmethod
    def of(cls, rows: Tensor, norm: Tensor, cosine: bool) -> "_Others":
        slack = 4 * (rows.shape[1] + 4) * torch.finfo(torch.float64).eps
        centre = rows.mean(0)
        centred = rows - centre
        squares = centred.square().sum(1)
        factors = torch.cat([centred, torch.ones_like(squares)[:, None], squares[:, None] * (1 - slack)], 1).T
        return cls(rows, norm.isfinite(), (norm == 0) & cosine, cosine, centre, squares, factors, slack)

    def nearest_to(self, points: Tensor, best: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Of prepared points the smallest value, inf where none can be below `best`, and the first row that has it."""
        point, row = self._candidates(points, best, norm)
        values = torch.full_like(best, torch.inf)
        which = torch.zeros_like(best, dtype=torch.long)
        if not len(point):
            return values, which
        pairs = max(1, NEAR // points.shape[1])
        exact = [self._exact(points[i], j) for i, j in zip(point.split(pairs), row.split(pairs), strict=True)]
        exact = torch.cat(exact)
        values.scatter_reduce_(0, point, exact, "amin")
        first = exact == values[point]
        which.scatter_reduce_(0, point[first], row[first], "amin", include_self=False)
        return values, which

    def _candidates(self, points: Tensor, best: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of a point and a row, by point, that hold the nearest row of every point."""
        points = points - self.centre
        squares = points.square().sum(1, keepdim=True)
        low = torch.cat([-2 * points, squares * (1 - self.slack), torch.ones_like(squares)], 1) @ self.factors
        low[:, self.blank] = 2.0
        low[:, ~self.usable] = torch.inf
        least, at = low.min(1)
        bound = least + 2 * self.slack * (squares[:, 0] + self.squares[at])
        bound = torch.minimum(bound, (2 * best if self.cosine else best.square()) * (1 + self.slack))
        asked = norm.isfinite() & least.isfinite() & ~((norm == 0) & self.cosine)
        bound = torch.where(asked, bound + torch.finfo(torch.float64).tiny, -torch.inf)
        row, column = (low <= bound[:, None]).nonzero(as_tuple=True)
        return row, column

    def _exact(self, points: Tensor, rows: Tensor) -> Tensor:
        """What is compared, by differences: Euclidean distances, or 1 - cos."""
        change = self.rows[rows] - points
        if self.cosine:  # half the squared distance of unit vectors, without the cancellation of 1 - cos
            return torch.where(self.blank[rows], 1.0, change.square().sum(1) / 2)
        return norms(change)


def chamfer(a: Tensor, b: Tensor, measure: str = "cosine") -> float:
    """Symmetric Chamfer distance of two sets `(n, d)` and `(m, d)`: half the sum of both mean nearest distances.

    `measure` as in `nearest`; with "cosine", 1 - chamfer is the similarity of Fumero et al., ICLR 2026, fig. 3.
    """
    return float((nearest(a, b, measure)[0].double().mean() + nearest(b, a, measure)[0].double().mean()) / 2)


def directions(rows: Tensor) -> Tensor:
    """Rows `(n, d)` as points `(n, d + 1)`, float64, whose squared Euclidean distances are 2 (1 - cos).

    The last coordinate is 1 for a zero row, else 0: a zero row has a cosine of 0 with all but another zero row.
    """
    norm = norms(rows)[:, None]
    return torch.cat([rows.double() / torch.where(norm > 0, norm, 1), (norm == 0).double()], 1)


def typical_size(mean_square: float) -> float:
    """The size of latents' coordinates, from the mean of their squares, to the nearest power of two; 1 for none.

    So coarse that it is the same for some of the starts of a search as for all: what becomes of one start must not
    depend on which others were drawn with it.
    """
    return 2.0 ** round(math.log2(mean_square) / 2) if 0 < mean_square < math.inf else 1.0


class Dissimilarity:
    """Distance of latents as merging sees it, for `points` `(n, d)`.

    "relative": |a - b| / max(|a|, |b|, sqrt(d) * scale), `scale` being their `typical_size`, because attractors may lie
    at the origin of standardised latents. "cosine": 1 - cos(a, b), as `directions` has it.
    """

    def __init__(self, points: Tensor, measure: str, scale: float) -> None:
        self.measure, self.norms = measure, norms(points)
        if measure == "relative":
            least = math.sqrt(points.shape[1]) * scale
            self.points, self.norms = points, self.norms.clamp(min=max(least, torch.finfo(torch.float64).tiny))
        elif measure == "cosine":
            self.points = directions(points)
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
