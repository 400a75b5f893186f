"""Sparse codes of Orthogonal Matching Pursuit: the atoms of each target, and its fit by any number of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 1 << 23  # bytes of gathered atoms: few, so that they fit into the processor's cache
REFINEMENTS = 2  # solutions for the coefficients, each of what the one before left of the target
INSIDE = 500  # units of rounding: largest part of a residual that may lie in the span of the atoms


@dataclass(frozen=True)
class Codes:
    """Greedy codes of B targets in N atoms. They are nested: the first k atoms of a code are the code of k atoms.

    Attributes:
        indices: Atoms in the order in which they were chosen, `(B, n_atoms)`, -1 past `n_selected`.
        n_selected: Number of atoms chosen for each target, `(B,)`.
        factors: Cholesky factors of the products of the chosen unit atoms, `(B, K, K)` with K at most `n_atoms`, the
            identity past `n_selected`.
        dictionary: A copy of the atoms, `(N, d)`.
        targets: A copy of the targets, `(B, d)`.
        atom_norms: Norms of the atoms, `(N,)`.
        target_norms: Norms of the targets, `(B,)`.
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
        """Coefficients of all chosen atoms, as given, `(B, n_atoms)`; 0 past `n_selected`."""
        return self.coefficients_at(self.indices.shape[1])

    def coefficients_at(self, k: int) -> Tensor:
        """Coefficients of the least-squares fit by the first `k` atoms of each code, `(B, k)`.

        Raises:
            ValueError: k is below 1 or above `n_atoms`, or coefficients are too large or too small for their type.
        """
        wide = self._fits(k)[0]
        coefficients = wide.to(self.targets.dtype)
        rounding = torch.finfo(coefficients.dtype).eps * wide.abs().amax(1, keepdim=True)
        if not bool((coefficients.isfinite() & ((coefficients != 0) | (wide.abs() <= rounding))).all()):
            raise ValueError(
                f"coefficients do not fit into {self.targets.dtype}, so far apart are the scales of atoms and targets: "
                "scale the dictionary, or pass float64"
            )
        return coefficients

    def reconstruct(self, k: int) -> Tensor:
        """Least-squares fit of each target by the first `k` of its atoms, or by all if it has fewer, `(B, d)`.

        Raises:
            ValueError: k is below 1 or above `n_atoms`.
        """
        return self._fits(k)[1]

    def _fits(self, k: int) -> tuple[Tensor, Tensor]:
        """Coefficients, float64 `(B, k)`, and fits `(B, d)`. All blocks share the memory of the gathered atoms."""
        if isinstance(k, bool) or k not in range(1, self.indices.shape[1] + 1):
            raise ValueError(f"codes of 1 to {self.indices.shape[1]} atoms are known, not of {k}")
        k = int(k)
        width, d = min(k, self.factors.shape[1]), self.dictionary.shape[1]
        size = min(max(1, AT_ONCE // (self.dictionary.element_size() * width * d)), max(1, len(self.indices)))
        gathered = self.dictionary.new_empty(size * width, d)
        coefficients = torch.zeros(len(self.indices), k, dtype=torch.float64, device=self.targets.device)
        fits = torch.empty_like(self.targets)
        with torch.no_grad():
            for first in range(0, len(self.indices), size):
                rows = slice(first, first + size)
                chosen = self.indices[rows, :width]
                flat = chosen.clamp(min=0).flatten()
                atoms = torch.index_select(self.dictionary, 0, flat, out=gathered[: len(flat)])
                code, fits[rows] = self._fit(rows, chosen, atoms.reshape(*chosen.shape, d))
                coefficients[rows, :width] = code
        return coefficients, fits

    def _fit(self, rows: slice, chosen: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and fits of some targets by their atoms `(b, k, d)`."""
        width = chosen.shape[1]
        norms = torch.where(
            chosen >= 0, self.atom_norms[chosen], torch.inf
        )  # inf past n_selected, so that the part is 0
        scale = self.target_norms[rows, None]
        target = self.targets[rows] / torch.where(scale > 0, scale, 1)
        factor = self.factors[rows, :width, :width].double()
        code = torch.zeros(chosen.shape, dtype=torch.float64, device=target.device)
        fit, residual = torch.zeros_like(target), target
        for _ in range(REFINEMENTS):
            # The factor stems from rounded products; solving again for the residual corrects the error.
            right = torch.bmm(residual[:, None, :], atoms.mT)[:, 0] / norms
            code += torch.cholesky_solve(right[:, :, None].double(), factor)[:, :, 0]
            fit = torch.bmm((code.to(target) / norms)[:, None, :], atoms)[:, 0]
            residual = target - fit
        # Where the residual still has a part in the span of the atoms, these are too nearly dependent for the factor.
        right = (torch.bmm(residual[:, None, :], atoms.mT)[:, 0] / norms).double()
        inside = torch.linalg.solve_triangular(factor, right[:, :, None], upper=False)[:, :, 0].norm(dim=1)
        for b in (~(inside <= INSIDE * torch.finfo(target.dtype).eps)).nonzero()[:, 0].tolist():
            n = int((chosen[b] >= 0).sum())
            units = atoms[b, :n].double() / norms[b, :n, None]
            code[b, :n], fit[b] = _least_squares(units, target[b].double())
        return code / norms.double() * scale.double(), fit * scale


def _least_squares(atoms: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and fit of a target by atoms `(n, d)` that may be dependent up to rounding."""
    q, r = torch.linalg.qr(atoms.T)
    code = torch.linalg.pinv(r, rtol=len(atoms) * torch.finfo(r.dtype).eps) @ (q.T @ target)
    return code, atoms.T @ code
