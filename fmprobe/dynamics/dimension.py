"""Effective dimension: over how many directions points are spread."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def effective_dimensions(orbits: Sequence[Tensor] | Tensor) -> tuple[list[float], float]:
    """The effective dimension of the points along each orbit, and that of the points of all orbits together.

    It is the participation ratio of the covariance's eigenvalues l_i, (sum l_i)^2 / sum l_i^2: the number of directions
    over which the variance is spread (Gao et al. 2017). With k points it is at most k - 1. It is nan where the points
    do not differ.

    Args:
        orbits: points of each orbit, each `(points, *latent_shape)`.
    """
    flat = [orbit.flatten(1).double() for orbit in orbits]
    return [_participation(orbit) for orbit in flat], _participation(torch.cat(flat)) if flat else math.nan


def _participation(points: Tensor) -> float:
    """The participation ratio of points `(k, d)`, by the smaller of their two matrices of products."""
    centred = points - points.mean(0)
    products = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
    # Both matrices have the covariance's eigenvalues up to a factor: their sum is the trace, that of their squares the
    # squared Frobenius norm.
    total, squares = float(products.trace()), float(products.square().sum())
    least = (torch.finfo(torch.float32).eps * float(torch.linalg.vector_norm(points))) ** 2
    return total**2 / squares if total > least else math.nan
