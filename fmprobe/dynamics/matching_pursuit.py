"""Orthogonal Matching Pursuit of many targets at once: several steps on a few atoms, then verified on all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.norms import quick_norms
from fmprobe.dynamics.sparse_codes import Codes

BUDGET = 1 << 30  # bytes of working memory
# Windows pay off for long paths. The plain algorithm took 1.2 to 1.3 times as long for 256 of 4096 atoms, 1.8 for 512
# and 2.1 for 1024, and 0.4 to 0.9 for short paths (one thread; recipes/benchmark_omp.py --plain).
WINDOW, CANDIDATES = 24, 128  # steps taken before all atoms are looked at again, and atoms among which they are taken
MOST = 256  # targets that advance together
STOP = 16  # units of rounding: a target is explained if its largest correlation is below this share of its norm
DEPENDENT = 100  # units of rounding: an atom lies in the span of the chosen ones if its squared distance is below


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
        store = dictionary.new_empty(block, depth + min(WINDOW, depth), len(dictionary))
        for first in range(0, len(targets), block):
            rows = slice(first, first + block)
            correlations = atoms.products(_over(targets[rows], scales[rows]))
            _Block(atoms, correlations, indices[rows, :depth], factors[rows], store[: len(correlations)]).run()
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
    item, window, candidates = dictionary.element_size(), min(WINDOW, depth), min(CANDIDATES, n)
    # A target's projected atoms, its window's and scratch for these; its correlations, their scores and the open atoms;
    # its candidates.
    one = item * ((depth + 4 * window + 4) * n + candidates * (2 * candidates + depth)) + 2 * n
    # For few targets, the products of each chosen atom are cheaper than those of all atoms.
    gram = item * n * n
    with_gram = n_targets * depth >= n and 2 * gram + one <= budget
    left = budget - (2 * gram if with_gram else item * candidates * d)
    one += 0 if with_gram else 2 * item * window * d
    if left < one:
        need = budget - left + one
        raise MemoryError(f"{depth} of {n} atoms need {need:,} bytes for one target, the budget is {budget:,}")
    # Blocks take half of what is left at most: fresh memory costs more than many targets at once gain.
    return with_gram, max(1, min(n_targets, MOST, left // 2 // one))


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
        """Write the products of the chosen atoms `(B, m)` with all atoms into `out` `(B, m, N)`."""
        chosen, out = chosen.flatten(), out.flatten(0, 1)
        if self.gram is None:
            torch.matmul(self._unit(chosen), self.dictionary.T, out=out).mul_(_reciprocals(self.norms))
        else:
            torch.index_select(self.gram, 0, chosen, out=out)

    def pairs(self, candidates: Tensor) -> Function:
        """A function that gives the products of one candidate of each target with all M, `(B, M)`.

        Args:
            candidates: Atoms, `(B, M)`. The function takes the place of one in each row, `(B, 1)`.
        """
        if (gram := self.gram) is not None:
            return lambda place: gram[candidates.gather(1, place), candidates]
        units = (self._unit(row) for row in candidates)
        products = torch.stack([unit @ unit.T for unit in units])
        return lambda place: products.take_along_dim(place[:, :, None], 1)[:, 0]

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


class _Block:
    """The greedy paths of a block of targets.

    With L the Cholesky factor of the chosen atoms' products, `store[b, :k]` is L^-1 times their products with all
    atoms: row j holds every atom's part along the j-th direction, and column i of an atom i that is chosen next is its
    row of L. Each step adds one row, made from all earlier ones; to read these takes most of a step's time. So a window
    of steps is taken on a few candidates first. Then its rows are made together, the correlations of all atoms follow,
    and the steps are kept up to the first at which an atom outside the candidates correlates more.

    Targets of any number k of atoms advance together, since rows from k on are zero as far as any is read.

    Args:
        atoms: The dictionary.
        correlations: Products of the unit targets with all atoms, `(B, N)`.
        indices: Filled with the chosen atoms, `(B, K)`.
        factors: Filled with their Cholesky factors, `(B, K, K)`.
        store: Memory for the projected atoms, `(B, K + window, N)`.
    """

    def __init__(self, atoms: UnitAtoms, correlations: Tensor, indices: Tensor, factors: Tensor, store: Tensor) -> None:
        self.atoms, self.correlations, self.store = atoms, correlations, store
        self.indices, self.factors = indices, factors
        self.rows = torch.arange(len(indices), device=indices.device)  # the targets of the block that still advance
        self.window = store.shape[1] - indices.shape[1]
        self.open = (atoms.norms > 0).repeat(len(indices), 1)
        self.taken = torch.zeros_like(indices[:, 0])
        self.left = correlations.new_ones(len(indices), 1)  # squared norms of the residuals
        self.scratch = store.new_empty(2, len(indices) * self.window, store.shape[2])

    def run(self) -> None:
        """Fill the indices and factors."""
        depth = self.indices.shape[1]
        while len(self.rows):
            scores = torch.where(self.open, self.correlations.abs(), 0)
            score, candidates = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
            going = (score[:, 0] > _rounding(score, STOP)) & (self.taken < depth)
            if 2 * int(going.sum()) <= len(going):  # targets that are done cost as much as the others
                self._finish(~going)
                for name in ("rows", "correlations", "store", "open", "taken", "left"):
                    setattr(self, name, getattr(self, name)[going])
            else:
                self._advance(candidates)

    def _finish(self, done: Tensor) -> None:
        """Write the factors of the targets that are done."""
        places = torch.stack([done.nonzero()[:, 0], self.rows[done], self.taken[done]], 1)
        for b, row, k in places.tolist():
            self.factors[row, :k, :k] = self.store[b, :k].index_select(1, self.indices[row, :k]).T.tril()

    def _advance(self, candidates: Tensor) -> None:
        """Take one window of steps among the candidates `(B, M)`."""
        least, deepest = (int(taken) for taken in self.taken.aminmax())
        steps = min(self.indices.shape[1] - least, self.window, candidates.shape[1])
        parts = _columns(self.store[:, :deepest], candidates)
        explained = parts.mT @ parts
        share = explained.diagonal(dim1=1, dim2=2)
        correlations = self.correlations.gather(1, candidates)
        dependent = _rounding(share, DEPENDENT)
        fresh = self.open.gather(1, candidates) & (1 - share > dependent)
        # No atom explains more than there is: one that seems to has a remainder that is lost in rounding.
        fresh &= correlations.square() <= (1 - share + dependent) * (self.left + dependent)
        self.open.scatter_(1, candidates, fresh)
        window = _Window.take(self.atoms.pairs(candidates), explained, correlations, fresh, self.left, steps)
        weights = -window.inverse @ _columns(parts, window.places).mT
        self._extend(deepest, window, candidates.gather(1, window.places), weights)

    def _extend(self, deepest: int, window: "_Window", chosen: Tensor, weights: Tensor) -> None:
        """Make the rows of the chosen atoms, and keep the steps that hold for all atoms: the first always does."""
        steps, heights = chosen.shape[1], window.heights
        made, before = self.scratch[:, : chosen.numel()].unflatten(1, (-1, steps))
        self.atoms.rows(chosen, before)
        torch.bmm(window.inverse, before, out=made).baddbmm_(weights, self.store[:, :deepest])
        # Correlations of all atoms before each step.
        now = self.correlations[:, None]
        torch.baddbmm(now, heights[:, None].expand(-1, steps, -1).tril(-1), made, alpha=-1, out=before)
        largest = torch.maximum(before.amax(2), -before.amin(2))
        kept = before.gather(2, chosen[:, :, None])[:, :, 0].abs() >= largest
        kept[:, 0] = True
        possible = torch.minimum(window.counts, self.indices.shape[1] - self.taken)
        kept &= torch.arange(steps, device=chosen.device) < possible[:, None]
        kept = kept.cumprod(1).bool()
        now.baddbmm_((heights * kept)[:, None], made, alpha=-1)
        for b, (k, count) in enumerate(torch.stack([self.taken, kept.sum(1)], 1).tolist()):
            self.store[b, k : k + count] = made[b, :count]
            self.store[b, k + count : deepest + steps] = 0
        target, step = kept.nonzero(as_tuple=True)
        self.indices[self.rows[target], self.taken[target] + step] = chosen[target, step]
        self.open[target, chosen[target, step]] = False
        self.left -= (heights.square() * kept).sum(1, keepdim=True)
        self.taken += kept.sum(1)


@dataclass(frozen=True)
class _Window:
    """Steps on the candidates alone.

    Attributes:
        places: The chosen atoms' places among the candidates, `(B, m)`.
        counts: Number of steps that were possible, `(B,)`.
        heights: The targets' coordinates along the new directions, `(B, m)`.
        inverse: Inverse of the Cholesky factor of the chosen atoms' remaining products, `(B, m, m)`.
    """

    places: Tensor
    counts: Tensor
    heights: Tensor
    inverse: Tensor

    @classmethod
    def take(
        cls,
        pairs: Function,
        explained: Tensor,
        correlations: Tensor,
        fresh: Tensor,
        left: Tensor,
        steps: int,
    ) -> "_Window":
        """Plain Orthogonal Matching Pursuit among M candidates of each of B targets.

        Args:
            pairs: See `UnitAtoms.pairs`.
            explained: What the chosen atoms explain of the candidates' products, `(B, M, M)`.
            correlations: Products with the residuals, `(B, M)`.
            fresh: Which candidates may be chosen, `(B, M)`.
            left: Squared norms of the residuals, `(B, 1)`.
            steps: Number of steps m.
        """
        places, heights = [], []
        directions = explained.new_zeros(len(explained), steps, explained.shape[2])
        share = explained.diagonal(dim1=1, dim2=2)
        live = torch.ones_like(fresh[:, :1])
        counts = torch.zeros_like(live, dtype=torch.long)
        stop, dependent = _rounding(share, STOP), _rounding(share, DEPENDENT)
        for step in range(steps):
            score, place = torch.where(fresh, correlations.abs(), 0).max(1, keepdim=True)
            live = live & (score > stop)
            # The product with itself is 1; what was computed of it decided whether the atom is fresh.
            scale = torch.where(live, 1 - share.gather(1, place), 1).sqrt()
            height = correlations.gather(1, place) / scale
            # As before the first step, but not stricter, so that the first is always taken.
            live = live & (height.square() <= (1 + 2 * dependent / scale.square()) * (left + 2 * dependent))
            height = torch.where(live, height, 0)
            row = pairs(place) - explained.take_along_dim(place[:, :, None], 1)[:, 0]
            earlier = directions[:, :step]
            row = torch.baddbmm(row[:, None], _columns(earlier, place).mT, earlier, alpha=-1)[:, 0] / scale
            row = directions[:, step] = torch.where(live, row.scatter(1, place, scale), 0)
            left = left - height.square()
            correlations = correlations.addcmul(row, height, value=-1)
            share = share.addcmul(row, row)
            fresh = (fresh & (1 - share > dependent)).scatter(1, place, False)
            counts += live
            places.append(place)
            heights.append(height)
        chosen = torch.cat(places, 1)
        factors = _columns(directions, chosen).mT.tril()
        factors += torch.diag_embed((factors.diagonal(dim1=1, dim2=2) == 0).to(factors))  # 1 where no step was taken
        unit = torch.eye(steps, dtype=factors.dtype, device=factors.device)
        inverse = torch.linalg.solve_triangular(factors, unit.expand_as(factors), upper=False)
        return cls(chosen, counts[:, 0], torch.cat(heights, 1), inverse)


def _columns(matrices: Tensor, places: Tensor) -> Tensor:
    """Columns `(B, m)` of each matrix `(B, k, N)`, `(B, k, m)`."""
    return matrices.gather(2, places[:, None].expand(-1, matrices.shape[1], -1))


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
