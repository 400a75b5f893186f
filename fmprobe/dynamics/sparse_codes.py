"""What Orthogonal Matching Pursuit gives back: the atoms of each target, and its fit at every number of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 1 << 25  # bytes of gathered atoms: few, so that they stay near the processor
REFINEMENTS = 3  # of coefficients, against the atoms themselves


@dataclass(frozen=True)
class Codes:
    """Greedy codes of B targets, nested: the first k atoms of a code are the code of k atoms.

    `indices` `(B, n_atoms)`: atoms in the order in which they were chosen, -1 past `n_selected` `(B,)`. `factors`
    `(B, K, K)`: Cholesky factors of the chosen unit atoms' products, the identity past `n_selected`; K is at most
    `n_atoms`. `dictionary` and `targets` as given, `atom_norms` and `target_norms` their norms.
    """

    indices: Tensor
    n_selected: Tensor
    factors: Tensor
    dictionary: Tensor
    targets: Tensor
    atom_norms: Tensor
    target_norms: Tensor

    @property
    def coefficients(self) -> Tensor:
        """Of all chosen atoms, `(B, n_atoms)`, for atoms as given; 0 past `n_selected`."""
        return self.coefficients_at(self.indices.shape[1])

    def coefficients_at(self, k: int) -> Tensor:
        """Of the least-squares fit by the first `k` atoms of each code, `(B, k)`. Raises ValueError for k < 1."""
        if not 1 <= k <= self.indices.shape[1]:
            raise ValueError(f"codes of 1 to {self.indices.shape[1]} atoms are known, not of {k}")
        with torch.no_grad():
            return torch.cat([self._fit(rows, k)[0] for rows in self._blocks(k)])

    def reconstruct(self, k: int) -> Tensor:
        """Best fit of each target by the first `k` of its atoms, or by all it has if fewer, `(B, d)`.

        Raises ValueError for k below 1 or above `n_atoms`.
        """
        if not 1 <= k <= self.indices.shape[1]:
            raise ValueError(f"codes of 1 to {self.indices.shape[1]} atoms are known, not of {k}")
        with torch.no_grad():
            return torch.cat([self._fit(rows, k)[1] for rows in self._blocks(k)])

    def _blocks(self, k: int) -> list[slice]:
        size = max(1, AT_ONCE // (self.dictionary.element_size() * k * self.dictionary.shape[1]))
        return [slice(first, first + size) for first in range(0, max(1, len(self.indices)), size)]

    def _fit(self, rows: slice, k: int) -> tuple[Tensor, Tensor]:
        """Coefficients and reconstructions of some targets."""
        width = min(k, self.factors.shape[1])
        chosen = self.indices[rows, :width]
        norms = torch.where(chosen >= 0, self.atom_norms[chosen], torch.inf)
        atoms = self.dictionary[chosen]
        scale = self.target_norms[rows, None]
        target = self.targets[rows] / torch.where(scale > 0, scale, 1)
        factor = self.factors[rows, :width, :width].double()
        code = torch.zeros(len(target), width, dtype=torch.float64, device=target.device)
        fit, residual = torch.zeros_like(target), target
        for _ in range(REFINEMENTS):
            # The factor stems from rounded products: solving for what is left of the target mends that.
            right = torch.bmm(atoms, residual[:, :, None])[:, :, 0] / norms  # zero past n_selected
            code += torch.cholesky_solve(right[:, :, None].double(), factor)[:, :, 0]
            fit = torch.bmm((code.to(target) / norms)[:, None, :], atoms)[:, 0]
            residual = target - fit
        coefficients = self.targets.new_zeros(len(target), k)
        coefficients[:, :width] = (code.to(target) / norms) * scale
        return coefficients, fit * scale
