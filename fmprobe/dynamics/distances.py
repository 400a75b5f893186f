"""Distances that are exact at any scale, also where points nearly coincide."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.norms import norms, power_of_two

MEASURES = ("relative", "cosine")
BLOCK = 2**22  # numbers in a block of points
DISTANCES = 2**21  # numbers in a block of distances
NEAR = 2**18  # numbers that are subtracted at a time: few, so that they fit into the processor's cache


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances between the rows of `(n, d)` and `(m, d)`, float64 `(n, m)`.

    They are computed from differences. The expansion |a|^2 - 2ab + |b|^2 is faster for many rows, but loses all digits
    of a distance that is small compared with the norms, and such distances decide the merging. In float64 no square of
    a float32 overflows or underflows. Rows of float64 are first scaled by a power of two.
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
    """Find the nearest of `others` for each of `points`.

    The result is exact: it equals what differences in float64 give, at any scale, also where points nearly coincide.
    Memory grows neither with n nor with m, beyond a few numbers a row.

    Args:
        points: rows `(n, d)`.
        others: rows `(m, d)`.
        measure: "euclidean", or "cosine" for 1 - cos, which is 1 where either row is zero.

    Returns:
        The distances `(n,)`, in the dtype of the points but at least float32, and the indices of the nearest rows
            `(n,)`. Among equals the lowest index is taken. Rows that are not finite are near to nothing: such a point
            has distance nan and index -1.

    Raises:
        ValueError: `others` is empty, or the shapes do not fit.
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
    """Compute `nearest` in blocks; index -1 marks points that are not finite."""
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
            closer = values < best[rows]  # not equal: among equals the lowest index stays
            best[rows] = torch.where(closer, values, best[rows])
            index[rows] = torch.where(closer, which + first, index[rows])
    if not cosine:
        return best * scale, index
    usable = theirs.isfinite()  # all of these have the same distance, 1, from a zero row
    index[own == 0] = usable.long().argmax() if bool(usable.any()) else -1
    return torch.where(own == 0, 1.0, best), index


def _prepared(rows: Tensor, norm: Tensor, scale: Tensor, cosine: bool) -> Tensor:
    """Rows in float64, of norm 1 for the cosine, else divided by `scale`. Rows that are not finite become zero."""
    sound = norm.isfinite()
    by = torch.where(sound & (norm > 0), norm, 1) if cosine else scale.expand_as(norm)
    return torch.where(sound[:, None], rows, 0).double() / by[:, None]


@dataclass(frozen=True)
class _Others:
    """A block of prepared rows `(m, d)` that points are compared with.

    Squared distances are first computed from products. Such a value is off by at most `slack` times the squared norms.
    A row whose value exceeds the smallest by more than that cannot be the nearest. The few rows that remain are
    compared by differences.
    """

    rows: Tensor
    usable: Tensor  # whether a row is finite
    blank: Tensor  # whether a row is zero, which has a cosine distance of 1
    cosine: bool
    centre: Tensor
    squares: Tensor  # squared norms after the centre is subtracted
    factors: Tensor  # (d + 2, m): one product with these gives squared distances minus their slack
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
        """Smallest value of each prepared point, inf if none can be below `best`, and the first row that has it."""
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
        """Pairs of a point and a row, ordered by point, that include the nearest row of every point."""
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
        """The Euclidean distances, or 1 - cos, computed by differences."""
        change = self.rows[rows] - points
        if self.cosine:  # half the squared distance of unit vectors avoids the cancellation in 1 - cos
            return torch.where(self.blank[rows], 1.0, change.square().sum(1) / 2)
        return norms(change)


def chamfer(a: Tensor, b: Tensor, measure: str = "cosine") -> float:
    """Symmetric Chamfer distance of two sets `(n, d)` and `(m, d)`: half the sum of both mean nearest distances.

    With measure "cosine", 1 - chamfer is the similarity of Fumero et al., ICLR 2026, fig. 3.

    Args:
        a: rows `(n, d)`.
        b: rows `(m, d)`.
        measure: as in `nearest`.
    """
    return float((nearest(a, b, measure)[0].double().mean() + nearest(b, a, measure)[0].double().mean()) / 2)


def directions(rows: Tensor) -> Tensor:
    """Turn rows `(n, d)` into points `(n, d + 1)`, float64, whose squared Euclidean distances are 2 (1 - cos).

    The last coordinate is 1 for a zero row, else 0. So a zero row has cosine 0 with every row except another zero row.
    """
    norm = norms(rows)[:, None]
    return torch.cat([rows.double() / torch.where(norm > 0, norm, 1), (norm == 0).double()], 1)


def typical_size(mean_square: float) -> float:
    """The typical size of the coordinates of latents: the root of `mean_square`, rounded to a power of two; 1 if there
    are none.

    The rounding makes the size the same for part of the starts of a search as for all of them. What becomes of one
    start must not depend on the other starts.
    """
    return 2.0 ** round(math.log2(mean_square) / 2) if 0 < mean_square < math.inf else 1.0


class Dissimilarity:
    """The distance of latents that merging uses.

    "relative" is |a - b| / max(|a|, |b|, sqrt(d) * scale). The last term is there because attractors may lie at the
    origin of standardised latents. "cosine" is 1 - cos(a, b), as in `directions`.

    Args:
        points: the latents `(n, d)`.
        measure: "relative" or "cosine".
        scale: the `typical_size` of the starts.

    Raises:
        ValueError: the measure is unknown.
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
        """Distances `(n,)` from one point to all points."""
        distance = euclidean(self.points[row : row + 1], self.points)[0]
        if self.measure == "relative":
            return distance / torch.maximum(self.norms, self.norms[row])
        return distance.square() / 2  # for unit vectors this is 1 - cos, and it is exact near zero

    def as_distance(self, threshold: float) -> Tensor:
        """The Euclidean distance `(n,)` that `threshold` corresponds to at each point."""
        return self.norms * (threshold if self.measure == "relative" else math.sqrt(2 * threshold))
