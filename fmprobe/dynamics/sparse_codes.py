"""What Orthogonal Matching Pursuit gives back: the atoms of each target, and its fit at every number of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 1 << 23  # bytes of gathered atoms: few, so that they stay near the processor
REFINEMENTS = 2  # of coefficients, against the atoms themselves
INSIDE = 500  # units of rounding: what may be left of a target in the span of its atoms


@dataclass(frozen=True)
class Codes:
    """Greedy codes of B targets, nested: the first k atoms of a code are the code of k atoms.

    `indices` `(B, n_atoms)`: atoms in the order in which they were chosen, -1 past `n_selected` `(B,)`. `factors`
    `(B, K, K)`: Cholesky factors of the chosen unit atoms' products, the identity past `n_selected`; K is at most
    `n_atoms`. `dictionary` and `targets`, copied, `atom_norms` and `target_norms` their norms.
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
        """Of the least-squares fit by the first `k` atoms of each code, `(B, k)`.

        Raises ValueError for k below 1 or above `n_atoms`, or where they are too large or too small for their type.
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
        """Best fit of each target by the first `k` of its atoms, or by all it has if fewer, `(B, d)`.

        Raises ValueError for k below 1 or above `n_atoms`.
        """
        return self._fits(k)[1]

    def _fits(self, k: int) -> tuple[Tensor, Tensor]:
        """Coefficients, float64 `(B, k)`, and fits `(B, d)`, in blocks that share the memory of the gathered atoms."""
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
        """Coefficients and reconstructions of some targets by their atoms `(b, k, d)`."""
        width = chosen.shape[1]
        norms = torch.where(chosen >= 0, self.atom_norms[chosen], torch.inf)  # no part for those past n_selected
        scale = self.target_norms[rows, None]
        target = self.targets[rows] / torch.where(scale > 0, scale, 1)
        factor = self.factors[rows, :width, :width].double()
        code = torch.zeros(chosen.shape, dtype=torch.float64, device=target.device)
        fit, residual = torch.zeros_like(target), target
        for _ in range(REFINEMENTS):
            # The factor stems from rounded products: solving for what is left of the target mends that.
            right = torch.bmm(residual[:, None, :], atoms.mT)[:, 0] / norms
            code += torch.cholesky_solve(right[:, :, None].double(), factor)[:, :, 0]
            fit = torch.bmm((code.to(target) / norms)[:, None, :], atoms)[:, 0]
            residual = target - fit
        # What is left must have no part in the span of the atoms: where it has, they are too nearly dependent.
        right = (torch.bmm(residual[:, None, :], atoms.mT)[:, 0] / norms).double()
        inside = torch.linalg.solve_triangular(factor, right[:, :, None], upper=False)[:, :, 0].norm(dim=1)
        for b in (~(inside <= INSIDE * torch.finfo(target.dtype).eps)).nonzero()[:, 0].tolist():
            n = int((chosen[b] >= 0).sum())
            units = atoms[b, :n].double() / norms[b, :n, None]
            code[b, :n], fit[b] = _least_squares(units, target[b].double())
        return code / norms.double() * scale.double(), fit * scale


def _least_squares(atoms: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and fit of a target by atoms `(n, d)` that may be dependent to rounding."""
    q, r = torch.linalg.qr(atoms.T)
    code = torch.linalg.pinv(r, rtol=len(atoms) * torch.finfo(r.dtype).eps) @ (q.T @ target)
    return code, atoms.T @ code
