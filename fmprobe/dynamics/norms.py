"""Euclidean norms at any scale."""

import torch
from torch import Tensor

BLOCK = 2**17  # numbers held in float64 at a time: few, so that they fit into the processor's cache
SAFE = (1e-14, 1e18)  # between these norms, the squares that matter neither overflow nor underflow in float32


def norms(rows: Tensor) -> Tensor:
    """Euclidean norms of the rows of `(n, d)`, float64 `(n,)`, without overflow or underflow on the way.

    The norm of a row that is not finite is inf or nan. Squares of float32 fit into float64. Rows of float64 are scaled
    by a power of two, which rounds nothing.
    """
    if not len(rows):
        return rows.new_zeros(0, dtype=torch.float64)
    if rows.dtype != torch.float64:
        blocks = rows.split(max(1, BLOCK // max(1, rows.shape[1])))
        return torch.cat([torch.linalg.vector_norm(block.double(), dim=1) for block in blocks])
    scale = power_of_two(torch.maximum(rows.amax(1), -rows.amin(1)))
    return torch.linalg.vector_norm(rows / scale[:, None], dim=1) * scale


def quick_norms(rows: Tensor) -> Tensor:
    """`norms` to the rounding of the rows' own dtype, for use at every step of an orbit.

    On the CPU, float64 is used only for the few rows, if any, that need it. On an accelerator, looking for such rows
    would stop the device, and float64 is as quick.
    """
    if rows.dtype != torch.float32 or rows.device.type != "cpu" or not len(rows):
        return norms(rows)
    found = torch.linalg.vector_norm(rows, dim=1).double()
    low, high = found.aminmax()
    if not (float(low) > SAFE[0] and float(high) < SAFE[1]):  # nan fails both comparisons
        odd = ~((found > SAFE[0]) & (found < SAFE[1]))
        found[odd] = norms(rows[odd])
    return found


def power_of_two(peaks: Tensor) -> Tensor:
    """A power of two about as large as each of the peaks, float64, so that dividing by it rounds nothing.

    It lies between 2^-1000 and 2^1000, so that its reciprocal is finite too. It is 1 for a peak of 0 and for one that
    is not finite.
    """
    exponents = torch.frexp(torch.where(peaks.isfinite(), peaks, 0).double()).exponent.clamp(-1000, 1000)
    return torch.ldexp(torch.ones_like(peaks, dtype=torch.float64), exponents)
