"""Orthogonal Matching Pursuit for many targets at once: windows of steps on a few atoms, verified on all."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.sparse_codes import Codes

BUDGET = 1 << 30  # bytes of working memory
WINDOW, CANDIDATES = 24, 128  # steps taken before all atoms are looked at again, on that many atoms
MOST, NEAR = 256, 10 << 20  # targets that advance together; bytes of scratch that stay near a CPU
STOP = 16  # units of rounding: a target whose largest correlation is under this share of its norm is explained
DEPENDENT = 100  # units of rounding: an atom is in the span of those chosen if its squared distance is below


def orthogonal_matching_pursuit(
    dictionary: Tensor, targets: Tensor, n_atoms: int, *, memory_budget: int = BUDGET
) -> Codes:
    """Sparse codes of `targets` `(B, d)` in the atoms `dictionary` `(N, d)`, of 1 to `n_atoms` atoms in one pass.

    Each step takes the atom most correlated with what is left of the target, then fits all chosen atoms anew (Pati
    et al. 1993; Cholesky form: Rubinstein et al. 2008). Atoms count by their direction; coefficients are for atoms
    and targets as given. Float64 if either is, else float32. A zero atom is never chosen, nor one that lies in the
    span of those chosen, as duplicates do; where none is left, or nothing of the target is, the path ends early and
    `n_selected` says so. A vector whose norm is too small for its type to be divided by counts as zero.
    `memory_budget`: bytes of working memory beyond arguments and result (default 1 GiB); it bounds how many targets
    advance together, and the result does not depend on it beyond rounding. The result holds `n_atoms` squared
    values a target: where that is too much, pass targets in parts.

    Raises ValueError for shapes, numbers or settings that make no sense, MemoryError where one target exceeds the
    budget.
    """
    _check(dictionary, targets, n_atoms)
    n_atoms = int(n_atoms)
    dtype = torch.promote_types(torch.promote_types(dictionary.dtype, targets.dtype), torch.float32)
    with torch.no_grad():
        # Copied, since the codes are read after the caller may have changed them.
        dictionary, targets = (rows.detach().to(dtype, copy=True).contiguous() for rows in (dictionary, targets))
        depth = min(n_atoms, *dictionary.shape)
        plan = _Plan.make(dictionary, len(targets), depth, memory_budget)
        atoms = _Atoms(dictionary, plan.with_gram)
        indices = torch.full((len(targets), n_atoms), -1, dtype=torch.long, device=targets.device)
        factors = torch.eye(depth, dtype=dtype, device=targets.device).repeat(len(targets), 1, 1)
        scales = _norms(targets)
        store = dictionary.new_empty(plan.block, depth + min(WINDOW, depth), len(dictionary))
        for first in range(0, len(targets), plan.block):
            rows = slice(first, first + plan.block)
            correlations = atoms.products(_over(targets[rows], scales[rows]))
            place = store[: len(correlations)]
            _Block(atoms, correlations, indices[rows, :depth], factors[rows], place, plan.group).run()
    return Codes(indices, (indices >= 0).sum(1), factors, dictionary, targets, atoms.norms, scales)


def _check(dictionary: Tensor, targets: Tensor, n_atoms: int) -> None:
    for name, rows in (("dictionary", dictionary), ("targets", targets)):
        if not isinstance(rows, Tensor):
            raise ValueError(f"{name} must be a tensor, one row a vector, got a {type(rows).__name__}")
        if rows.ndim != 2 or 0 in rows.shape[1:]:
            raise ValueError(f"{name} has shape {tuple(rows.shape)}: expected two dimensions, one row a vector")
        if rows.is_meta:
            raise ValueError(f"{name} is on the device meta, which holds no values: move it to another")
        if not rows.is_floating_point() or not _all_finite(rows):
            raise ValueError(f"{name} holds values that are no finite real numbers: leave those rows out")
    if dictionary.shape[1] != targets.shape[1]:
        raise ValueError(f"atoms have {dictionary.shape[1]} dimensions and targets {targets.shape[1]}")
    if dictionary.device != targets.device:
        raise ValueError(f"the dictionary is on {dictionary.device} and the targets are on {targets.device}")
    check_counts(0, n_atoms=n_atoms)
    if n_atoms < 1 or not len(dictionary):
        raise ValueError(f"cannot choose {n_atoms} of {len(dictionary)} atoms: expected at least 1 of both")


@dataclass(frozen=True)
class _Plan:
    """How the work is cut: blocks of `block` targets, whose long rows are made `group` targets at a time."""

    with_gram: bool
    block: int
    group: int

    @classmethod
    def make(cls, dictionary: Tensor, n_targets: int, depth: int, budget: int) -> "_Plan":
        n, item = len(dictionary), dictionary.element_size()
        window, candidates = min(WINDOW, depth), min(CANDIDATES, n)
        # A target's projected atoms; its correlations, their scores and the open atoms; its candidates.
        one = item * ((depth + window) * n + 4 * n + candidates * (2 * candidates + depth)) + 2 * n
        scratch = 3 * item * window * n
        # Without the products of all atoms, those of each atom chosen are computed: worth it for few targets.
        gram = item * n * n
        with_gram = n_targets * depth >= n and 2 * gram + scratch + one <= budget
        left = budget - (2 * gram if with_gram else item * candidates * dictionary.shape[1])
        if left < one + scratch:
            need = budget - left + one + scratch
            raise MemoryError(f"{depth} of {n} atoms need {need:,} bytes for one target, the budget is {budget:,}")
        # Scratch takes a tenth of what is left, on a CPU no more than stays near it; blocks half of it at most, since
        # fresh memory costs more than many targets at once gain.
        most = min(left // 10, NEAR) if dictionary.device.type == "cpu" else left // 10
        group = max(1, min(n_targets, most // scratch))
        block = max(1, min(n_targets, MOST, left // 2 // one))
        return cls(with_gram, block, min(group, block))


class _Atoms:
    """The unit-norm atoms, never copied: products with them, by way of all their products where these are kept."""

    def __init__(self, dictionary: Tensor, with_gram: bool) -> None:
        self.dictionary, self.norms = dictionary, _norms(dictionary)
        self.gram = self._products_of_all() if with_gram else None

    def products(self, vectors: Tensor) -> Tensor:
        """`(B, d)` with all atoms, `(B, N)`."""
        return _over((vectors @ self.dictionary.T).T, self.norms).T.contiguous()

    def rows(self, chosen: Tensor, out: Tensor) -> None:
        """Products of the chosen atoms `(B, m)` with all, into `out` `(B * m, N)`."""
        if self.gram is None:
            torch.matmul(self._unit(chosen.flatten()), self.dictionary.T, out=out).mul_(_reciprocals(self.norms))
        else:
            torch.index_select(self.gram, 0, chosen.flatten(), out=out)

    def pairs(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        """The function from places `(B, 1)` in `candidates` `(B, M)` to the products of those with all, `(B, M)`."""
        if (gram := self.gram) is not None:
            return lambda place: gram[candidates.gather(1, place), candidates]
        units = (self._unit(row) for row in candidates)
        products = torch.stack([unit @ unit.T for unit in units])
        return lambda place: _row(products, place)

    @cached_property
    def usable(self) -> Tensor:
        return self.norms > 0

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
    """A block of targets on their way.

    With L the Cholesky factor of the chosen atoms' products, `store[b, :k]` is L^-1 times their products with all
    atoms: row j holds every atom's part along the j-th direction, and column i of an atom i that is chosen next is its
    row of L. One step of one target needs one new row, made from all earlier ones: reading them is what the plain
    method spends its time on. Here a window of steps is taken on a few candidates first, on their products minus what
    the chosen atoms explain of them; then its rows are made together, the correlations of all atoms follow, and the
    steps are kept up to the first at which an atom that was no candidate would have been taken.

    Targets advance together whatever their number k of atoms, since rows from k on are zero as far as any is read.
    """

    def __init__(
        self, atoms: _Atoms, correlations: Tensor, indices: Tensor, factors: Tensor, store: Tensor, group: int
    ) -> None:
        self.atoms, self.correlations, self.store = atoms, correlations, store
        self.indices, self.factors = indices, factors  # to be filled, `(B, K)` and `(B, K, K)`
        self.rows = torch.arange(len(indices), device=indices.device)  # of these, which are on their way
        self.window = store.shape[1] - indices.shape[1]
        self.group, self.scratch = group, store.new_empty(2, group * self.window, store.shape[2])
        self.open = atoms.usable.repeat(len(indices), 1)
        self.taken = torch.zeros_like(indices[:, 0])
        self.left = correlations.new_ones(len(indices), 1)  # squared norms of what is left of the targets
        rounding = torch.finfo(correlations.dtype).eps
        self.stop, self.dependent = STOP * rounding, DEPENDENT * rounding

    def run(self) -> None:
        """Fill the indices and factors."""
        depth = self.indices.shape[1]
        while len(self.rows):
            score, candidates = self._scores().topk(min(CANDIDATES, self.open.shape[1]), dim=1)
            going = (score[:, 0] > self.stop) & (self.taken < depth)
            if 2 * int(going.sum()) <= len(going):  # those that are done cost as much as the others
                self._finish(~going)
                self._narrow(going)
                candidates, going = candidates[going], going[going]
            if len(going):
                self._advance(going, candidates)

    def _finish(self, done: Tensor) -> None:
        """Give back the factors of some targets."""
        places = torch.stack([done.nonzero()[:, 0], self.rows[done], self.taken[done]], 1)
        for b, row, k in places.tolist():
            self.factors[row, :k, :k] = self.store[b, :k].index_select(1, self.indices[row, :k]).T.tril()

    def _narrow(self, kept: Tensor) -> None:
        """Go on with some targets alone."""
        for name in ("rows", "correlations", "store", "open", "taken", "left"):
            setattr(self, name, getattr(self, name)[kept])

    def _scores(self) -> Tensor:
        return torch.where(self.open, self.correlations.abs(), 0)

    def _advance(self, going: Tensor, candidates: Tensor) -> None:
        """One window of the targets that are `going` `(B,)`."""
        wanted = torch.where(going, self.indices.shape[1] - self.taken, 0)
        deepest, steps = (int(n) for n in torch.stack([self.taken.max(), wanted.max()]).tolist())
        steps = min(steps, self.window, candidates.shape[1])
        parts = _columns(self.store[:, :deepest], candidates)
        explained = parts.mT @ parts
        correlations = self.correlations.gather(1, candidates)
        rest = 1 - explained.diagonal(dim1=1, dim2=2)
        fresh = self.open.gather(1, candidates) & (rest > self.dependent)
        # No atom explains more than there is: one that seems to has a remainder that is lost in rounding.
        fresh &= correlations.square() <= (rest + self.dependent) * (self.left + self.dependent)
        self.open.scatter_(1, candidates, fresh)
        window = _Window.take(
            self.atoms.pairs(candidates), explained, correlations, fresh, self.left, steps, self.stop, self.dependent
        )
        along = _columns(parts, window.places)
        weights = -window.inverse @ along.mT
        self._extend(deepest, window, candidates.gather(1, window.places), weights, wanted)

    def _extend(self, deepest: int, window: "_Window", chosen: Tensor, weights: Tensor, wanted: Tensor) -> None:
        """Rows of the chosen atoms for all atoms, and the steps that hold for all: the first always does."""
        steps = chosen.shape[1]
        possible = torch.arange(steps, device=chosen.device) < torch.minimum(window.counts, wanted)[:, None]
        kept = torch.zeros_like(possible)
        for first in range(0, len(chosen), self.group):
            some = slice(first, first + self.group)
            made, before = self.scratch[:, : len(chosen[some]) * steps].unflatten(1, (-1, steps))
            self.atoms.rows(chosen[some], before.flatten(0, 1))
            torch.bmm(window.inverse[some], before, out=made).baddbmm_(weights[some], self.store[some, :deepest])
            # Correlations of all atoms before each step.
            heights = window.heights[some]
            now = self.correlations[some, None, :]
            earlier = heights[:, None, :].expand(-1, steps, -1).tril(-1)
            torch.baddbmm(now, earlier, made, alpha=-1, out=before)
            largest = torch.maximum(before.amax(2), -before.amin(2))
            holds = before.gather(2, chosen[some, :, None])[:, :, 0].abs() >= largest
            holds[:, 0] = True
            kept[some] = (holds & possible[some]).cumprod(1).bool()
            now.baddbmm_((heights * kept[some])[:, None, :], made, alpha=-1)
            self._store(first, made, deepest + steps, kept[some])
        target, step = kept.nonzero(as_tuple=True)
        self.indices[self.rows[target], self.taken[target] + step] = chosen[target, step]
        self.open[target, chosen[target, step]] = False
        self.left -= (window.heights.square() * kept).sum(1, keepdim=True)
        self.taken += kept.sum(1)

    def _store(self, first: int, made: Tensor, end: int, kept: Tensor) -> None:
        """Rows that hold go behind those that each target has, zeros from there to `end`."""
        taken = self.taken[first : first + len(made)]
        for b, (k, count) in enumerate(torch.stack([taken, kept.sum(1)], 1).tolist()):
            self.store[first + b, k : k + count] = made[b, :count]
            self.store[first + b, k + count : end] = 0


@dataclass(frozen=True)
class _Window:
    """Steps on candidates: `places` `(B, m)` among them, `counts` `(B,)` of steps that were possible, `heights`
    `(B, m)` of the target along each new direction, and the `inverse` `(B, m, m)` of the Cholesky factor of what
    remains of the chosen atoms.
    """

    places: Tensor
    counts: Tensor
    heights: Tensor
    inverse: Tensor

    @classmethod
    def take(
        cls,
        pairs: Callable[[Tensor], Tensor],
        explained: Tensor,
        correlations: Tensor,
        fresh: Tensor,
        left: Tensor,
        steps: int,
        stop: float,
        dependent: float,
    ) -> "_Window":
        """`explained` `(B, M, M)`: what chosen atoms explain of the candidates' products; which are
        `fresh`, so may be chosen; `left` `(B, 1)`: squared norms of what is left of the targets."""
        places, heights = [], []
        rows = explained.new_zeros(len(explained), steps, explained.shape[2])  # of the new directions
        live = torch.ones(len(explained), 1, dtype=torch.bool, device=explained.device)
        counts = torch.zeros(len(explained), 1, dtype=torch.long, device=explained.device)
        share = explained.diagonal(dim1=1, dim2=2).clone()
        for step in range(steps):
            score, place = torch.where(fresh, correlations.abs(), 0).max(1, keepdim=True)
            live = live & (score > stop)
            # The product with itself is 1; what was computed of it decided whether the atom is fresh.
            scale = torch.where(live, 1 - share.gather(1, place), 1).sqrt()
            height = correlations.gather(1, place) / scale
            # As before the first step, but not stricter, so that the first is always taken.
            live = live & (height.square() <= (1 + 2 * dependent / scale.square()) * (left + 2 * dependent))
            height = torch.where(live, height, 0)
            row, earlier = pairs(place) - _row(explained, place), rows[:, :step]
            row = torch.baddbmm(row[:, None], _columns(earlier, place).mT, earlier, alpha=-1)[:, 0] / scale
            row = torch.where(live, row.scatter(1, place, scale), 0)
            rows[:, step] = row
            left = left - height.square()
            correlations = correlations.addcmul(row, height, value=-1)
            share.addcmul_(row, row)
            fresh = (fresh & (1 - share > dependent)).scatter(1, place, False)
            counts += live
            places.append(place)
            heights.append(height)
        chosen = torch.cat(places, 1)
        factors = _columns(rows, chosen).mT.tril()
        idle = factors.diagonal(dim1=1, dim2=2) == 0
        factors = factors + torch.diag_embed(idle.to(factors))
        unit = torch.eye(steps, dtype=factors.dtype, device=factors.device)
        inverse = torch.linalg.solve_triangular(factors, unit.expand_as(factors), upper=False)
        return cls(chosen, counts[:, 0], torch.cat(heights, 1), inverse)


def _columns(matrices: Tensor, places: Tensor) -> Tensor:
    """Columns `(B, m)` of each matrix `(B, k, N)`, `(B, k, m)`."""
    return matrices.gather(2, places[:, None, :].expand(-1, matrices.shape[1], -1))


def _row(matrices: Tensor, place: Tensor) -> Tensor:
    """The row at a place `(B, 1)` of each matrix `(B, M, M)`, `(B, M)`."""
    return matrices.gather(1, place[:, :, None].expand(-1, 1, matrices.shape[2]))[:, 0]


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norms that neither overflow nor vanish on the way; 0 where a reciprocal would not be finite."""
    norms, numbers = torch.linalg.vector_norm(rows, dim=1), torch.finfo(rows.dtype)
    far = ~((norms > numbers.tiny**0.5 / numbers.eps) & norms.isfinite())
    peaks = rows[far].abs().amax(1)
    peaks = torch.where(peaks > 1 / numbers.max, peaks, 0)
    norms[far] = peaks * torch.linalg.vector_norm(_over(rows[far], peaks), dim=1)
    return norms


def _all_finite(rows: Tensor) -> bool:
    """Whether all values are finite: so they are where the norm is, which is looked at first since it is cheaper."""
    far = ~torch.linalg.vector_norm(rows, dim=1).isfinite()
    return bool(rows[far].isfinite().all())


def _over(rows: Tensor, norms: Tensor) -> Tensor:
    """Rows divided by their norms, zero where these are."""
    return rows * _reciprocals(norms)[:, None]


def _reciprocals(norms: Tensor) -> Tensor:
    """Zero where the norm is."""
    return torch.where(norms > 0, 1 / norms, 0)
