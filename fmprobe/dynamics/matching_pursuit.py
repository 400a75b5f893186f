"""Orthogonal Matching Pursuit of many targets at once, in its Cholesky form."""

import torch
from torch import Tensor

from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.norms import quick_norms
from fmprobe.dynamics.sparse_codes import Codes

BUDGET = 1 << 30  # bytes of working memory
ROWS = 1 << 26  # bytes of rows of the targets that advance together on a CPU: more or fewer made it slower
MOST = 256  # targets that advance together elsewhere
STOP = 16  # units of rounding: a target is explained if its largest correlation is below this share of its norm
DEPENDENT = 100  # units of rounding: an atom lies in the span of the chosen ones if its squared distance is below
EXCESS = 1000  # units of rounding: by so much may an atom seem to explain more than there is, since errors add up


def orthogonal_matching_pursuit(
    dictionary: Tensor, targets: Tensor, n_atoms: int, *, memory_budget: int = BUDGET
) -> Codes:
    """Sparse codes of `targets` in the atoms of `dictionary`, for 1 to `n_atoms` atoms in one pass.

    Each step chooses the atom most correlated with the residual, then fits all chosen atoms anew (Pati et al. 1993;
    Cholesky form: Rubinstein et al. 2008). Atoms count by their direction; coefficients are for atoms and targets as
    given. A zero atom is never chosen, nor is one in the span of those chosen, such as a duplicate. A path ends early
    where no atom is left or the target is explained. A vector whose norm is too small for its type to be divided by
    counts as zero.

    Args:
        dictionary: Atoms, `(N, d)`.
        targets: Vectors to code, `(B, d)`.
        n_atoms: The largest number of atoms of a code. The result holds `n_atoms` squared values a target: where that
            is too much, pass targets in parts.
        memory_budget: Bytes of working memory beyond arguments and result (default 1 GiB). It bounds how many targets
            advance together. The result does not depend on it beyond rounding.

    Returns:
        The codes, in float64 if either argument is, else in float32.

    Raises:
        ValueError: Shapes, numbers or settings make no sense.
        MemoryError: One target exceeds the budget.
    """
    _check(dictionary, targets, n_atoms)
    n_atoms = int(n_atoms)
    dtype = torch.promote_types(torch.promote_types(dictionary.dtype, targets.dtype), torch.float32)
    with torch.no_grad():
        # Copied, since the codes are read after the caller may have changed them.
        dictionary, targets = (rows.detach().to(dtype, copy=True).contiguous() for rows in (dictionary, targets))
        depth = min(n_atoms, *dictionary.shape)
        with_gram, block = _plan(dictionary, len(targets), depth, memory_budget)
        atoms = UnitAtoms(dictionary, with_gram)
        indices = torch.full((len(targets), n_atoms), -1, dtype=torch.long, device=targets.device)
        factors = torch.eye(depth, dtype=dtype, device=targets.device).repeat(len(targets), 1, 1)
        scales = _norms(targets)
        store = dictionary.new_empty(block, depth, len(dictionary))
        for first in range(0, len(targets), block):
            rows = slice(first, first + block)
            correlations = atoms.products(_over(targets[rows], scales[rows]))
            _follow(atoms, correlations, indices[rows, :depth], factors[rows], store[: len(correlations)])
    return Codes(indices, (indices >= 0).sum(1), factors, dictionary, targets, atoms.norms, scales)


def _check(dictionary: Tensor, targets: Tensor, n_atoms: int) -> None:
    for name, rows in (("dictionary", dictionary), ("targets", targets)):
        if not isinstance(rows, Tensor):
            raise ValueError(f"{name} must be a tensor, one row a vector, got a {type(rows).__name__}")
        if rows.ndim != 2 or 0 in rows.shape[1:]:
            raise ValueError(f"{name} has shape {tuple(rows.shape)}: expected two dimensions, one row a vector")
        if rows.is_meta:
            raise ValueError(f"{name} is on the device meta, which holds no values: move it to another")
        if not rows.is_floating_point() or (len(rows) and not torch.stack(rows.aminmax()).isfinite().all()):
            raise ValueError(f"{name} holds values that are no finite real numbers: leave those rows out")
    if dictionary.shape[1] != targets.shape[1]:
        raise ValueError(f"atoms have {dictionary.shape[1]} dimensions and targets {targets.shape[1]}")
    if dictionary.device != targets.device:
        raise ValueError(f"the dictionary is on {dictionary.device} and the targets are on {targets.device}")
    check_counts(0, n_atoms=n_atoms)
    if n_atoms < 1 or not len(dictionary):
        raise ValueError(f"cannot choose {n_atoms} of {len(dictionary)} atoms: expected at least 1 of both")


def _plan(dictionary: Tensor, n_targets: int, depth: int, budget: int) -> tuple[bool, int]:
    """Whether the products of all atoms are kept, and how many targets advance together, for a memory budget."""
    n, d = dictionary.shape
    item = dictionary.element_size()
    # A target's rows; its correlations, what is explained of each atom and scratch for both; the open atoms.
    one = item * (depth + 10) * n + 4 * n
    gram = item * n * n
    # For few steps, the products of each chosen atom are cheaper than those of all atoms. Few targets read all atoms at
    # each step, which takes as long as the arithmetic of 32.
    with_gram = max(n_targets, 32) * depth >= n and 2 * gram + one <= budget
    one += 0 if with_gram else 2 * item * d
    left = budget - (2 * gram if with_gram else 0)
    if left < one:
        need = budget - left + one
        raise MemoryError(f"{depth} of {n} atoms need {need:,} bytes for one target, the budget is {budget:,}")
    most = max(1, ROWS // one) if with_gram and dictionary.device.type == "cpu" else MOST
    return with_gram, max(1, min(n_targets, most, MOST, left // one))


class UnitAtoms:
    """Products with the unit-norm atoms, which are never copied.

    Args:
        dictionary: The atoms as given, `(N, d)`.
        with_gram: Whether the products of all atoms are computed once and kept.
    """

    def __init__(self, dictionary: Tensor, with_gram: bool) -> None:
        self.dictionary, self.norms = dictionary, _norms(dictionary)
        self.gram = self._products_of_all() if with_gram else None

    def products(self, vectors: Tensor) -> Tensor:
        """Products of vectors `(B, d)` with all atoms, `(B, N)`."""
        return _over((vectors @ self.dictionary.T).T, self.norms).T.contiguous()

    def rows(self, chosen: Tensor, out: Tensor) -> None:
        """Write the products of the chosen atoms `(B,)` with all atoms into `out` `(B, N)`."""
        if self.gram is None:
            torch.matmul(self._unit(chosen), self.dictionary.T, out=out).mul_(_reciprocals(self.norms))
        else:
            torch.index_select(self.gram, 0, chosen, out=out)

    def _unit(self, chosen: Tensor | slice) -> Tensor:
        return _over(self.dictionary[chosen], self.norms[chosen])

    def _products_of_all(self) -> Tensor:
        n = len(self.dictionary)
        gram, scales = self.dictionary.new_empty(n, n), _reciprocals(self.norms)
        for first in range(0, n, 256):  # the lower triangle is computed, the upper copied
            rows = slice(first, min(first + 256, n))
            products = self._unit(rows) @ self.dictionary[: rows.stop].T
            torch.mul(products, scales[: rows.stop], out=gram[rows, : rows.stop])
            gram[:first, rows] = gram[rows, :first].T
        return gram


def _follow(atoms: UnitAtoms, correlations: Tensor, indices: Tensor, factors: Tensor, store: Tensor) -> None:
    """The greedy paths of a block of targets.

    With L the Cholesky factor of the chosen atoms' products, `store[b, :k]` is L^-1 times their products with all
    atoms: row j holds every atom's part along the j-th direction, and column i of an atom i that is chosen next is its
    row of L. Each step adds one row, made from all earlier ones. To read these takes most of the time.

    Args:
        atoms: The dictionary.
        correlations: Products of the unit targets with all atoms, `(B, N)`. They become those with the residuals.
        indices: -1, filled with the chosen atoms, `(B, K)`.
        factors: Identities, filled with the Cholesky factors, `(B, K, K)`.
        store: Memory for the projected atoms, `(B, K, N)`.
    """
    share = torch.zeros_like(correlations)  # how much of each atom's squared norm of 1 the chosen ones explain
    left = correlations.new_ones(len(correlations), 1)  # squared norms of the residuals
    usable = (atoms.norms > 0).repeat(len(correlations), 1)
    live = torch.ones_like(usable[:, :1])
    row = torch.empty_like(correlations)
    stop, dependent, excess = (_rounding(share, units) for units in (STOP, DEPENDENT, EXCESS))
    for k in range(indices.shape[1]):
        # No atom explains more than there is: one that seems to has a remainder that is lost in rounding.
        remains = 1 - share
        usable &= (remains > dependent) & (correlations.square() <= (remains + excess) * (left + excess))
        score, best = torch.where(usable, correlations.abs(), 0).max(1, keepdim=True)
        live = live & (score > stop)
        if not live.any():
            break
        scale = torch.where(live, remains.gather(1, best), 1).sqrt()
        height = torch.where(live, correlations.gather(1, best) / scale, 0)
        along = torch.where(live, store[:, :k].take_along_dim(best[:, None], 2)[:, :, 0], 0)
        atoms.rows(best[:, 0], row)
        torch.baddbmm(row[:, None], along[:, None], store[:, :k], alpha=-1, out=store[:, k : k + 1])
        made = store[:, k].div_(scale).scatter_(1, best, scale)
        correlations.addcmul_(made, height, value=-1)
        share.addcmul_(made, made)
        left -= height.square()
        usable.scatter_(1, best, False)
        indices[:, k] = torch.where(live, best, -1)[:, 0]
        factors[:, k, :k], factors[:, k, k] = along, scale[:, 0]


def _rounding(values: Tensor, units: int) -> float:
    """So many units of rounding of the values' type."""
    return units * torch.finfo(values.dtype).eps


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norms in the rows' type, 0 where a reciprocal would not be finite."""
    norms = torch.cat([quick_norms(some) for some in rows.split(256)]).to(rows.dtype)  # in blocks, to save memory
    return torch.where(norms > 1 / torch.finfo(rows.dtype).max, norms, 0)


def _over(rows: Tensor, norms: Tensor) -> Tensor:
    """Rows divided by their norms, zero where these are."""
    return rows * _reciprocals(norms)[:, None]


def _reciprocals(norms: Tensor) -> Tensor:
    """Zero where the norm is."""
    return torch.where(norms > 0, 1 / norms, 0)
