"""Euclidean norms at any scale."""

import torch
from torch import Tensor


def norms(rows: Tensor) -> Tensor:
    """Euclidean norms of `(n, d)`, float64 `(n,)`: they neither overflow nor vanish on the way; inf or nan where a row
    is not finite.

    The squares of float32 fit into float64. Rows of float64 are scaled by a power of two, which rounds nothing.
    """
    if rows.dtype != torch.float64:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    if not len(rows):
        return rows.new_zeros(0)
    scale = power_of_two(torch.maximum(rows.amax(1), -rows.amin(1)))
    return torch.linalg.vector_norm(rows / scale[:, None], dim=1) * scale


def power_of_two(peaks: Tensor) -> Tensor:
    """About as large as each of the peaks, float64, so that dividing by it rounds nothing; 1 where one is not finite.

    Between 2^-1000 and 2^1000, so that its reciprocal is finite too; 1 for a peak of 0.
    """
    exponents = torch.frexp(torch.where(peaks.isfinite(), peaks, 0).double()).exponent.clamp(-1000, 1000)
    return torch.ldexp(torch.ones_like(peaks, dtype=torch.float64), exponents)
