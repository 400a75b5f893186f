"""Orthogonal Matching Pursuit for many targets at once: windows of steps on a few atoms, verified on all."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fmprobe.dynamics.sparse_codes import Codes

BUDGET = 1 << 30  # bytes of working memory
WINDOW, CANDIDATES = 24, 128  # steps taken before all atoms are looked at again, on that many atoms
BLOCK, NEAR = 8, 1 << 27  # targets that advance together on a CPU: this many, or more while they fill so few bytes
STOP = 16  # units of rounding: a target whose largest correlation is under this share of its norm is explained
DEPENDENT = 100  # units of rounding: an atom is in the span of those chosen if its squared distance is below


def orthogonal_matching_pursuit(
    dictionary: Tensor, targets: Tensor, n_atoms: int, *, memory_budget: int = BUDGET
) -> Codes:
    """Sparse codes of `targets` `(B, d)` in the atoms `dictionary` `(N, d)`, of 1 to `n_atoms` atoms in one pass.

    Each step takes the atom most correlated with what is left of the target, then fits all chosen atoms anew (Pati et
    al. 1993; Cholesky form: Rubinstein et al. 2008). Atoms count by their direction; coefficients are for atoms and
    targets as given. Float64 if either is, else float32. A zero atom is never chosen, nor one that lies in the span of
    those chosen, as duplicates do; where none is left, or nothing of the target is, the path ends early and
    `n_selected` says so. `memory_budget`: bytes of working memory beyond arguments and result (default 1 GiB); it
    bounds how many targets advance together, and the result does not depend on it beyond rounding. The result holds
    `n_atoms` squared values a target: where that is too much, pass targets in parts.

    Raises ValueError for shapes, numbers or settings that make no sense, MemoryError where one target exceeds the
    budget.
    """
    _check(dictionary, targets, n_atoms)
    dtype = torch.promote_types(torch.promote_types(dictionary.dtype, targets.dtype), torch.float32)
    with torch.no_grad():
        dictionary, targets = dictionary.detach().to(dtype), targets.detach().to(dtype)
        depth = min(n_atoms, *dictionary.shape)
        plan = _Plan.make(dictionary, len(targets), depth, memory_budget)
        atoms = _Atoms(dictionary, plan.with_gram)
        indices = torch.full((len(targets), n_atoms), -1, dtype=torch.long, device=targets.device)
        factors = torch.eye(depth, dtype=dtype, device=targets.device).repeat(len(targets), 1, 1)
        scales = _norms(targets)
        for first in range(0, len(targets), plan.group):
            rows = slice(first, first + plan.group)
            correlations = atoms.products(_over(targets[rows], scales[rows]))
            _pursue(atoms, correlations, indices[rows, :depth], factors[rows], plan)
    return Codes(indices, (indices >= 0).sum(1), factors, dictionary, targets, atoms.norms, scales)


def _check(dictionary: Tensor, targets: Tensor, n_atoms: int) -> None:
    for name, rows in (("dictionary", dictionary), ("targets", targets)):
        if rows.ndim != 2 or 0 in rows.shape[1:]:
            raise ValueError(f"{name} has shape {tuple(rows.shape)}: expected two dimensions, one row a vector")
        if not rows.is_floating_point() or not bool(rows.isfinite().all()):
            raise ValueError(f"{name} holds values that are no finite real numbers: leave those rows out")
    if dictionary.shape[1] != targets.shape[1]:
        raise ValueError(f"atoms have {dictionary.shape[1]} dimensions and targets {targets.shape[1]}")
    if dictionary.device != targets.device:
        raise ValueError(f"the dictionary is on {dictionary.device} and the targets are on {targets.device}")
    if n_atoms < 1 or not len(dictionary):
        raise ValueError(f"cannot choose {n_atoms} of {len(dictionary)} atoms: expected at least 1 of both")


@dataclass(frozen=True)
class _Plan:
    """How the work is cut: `workers` threads take blocks of `block` targets out of groups of `group`."""

    with_gram: bool
    workers: int
    block: int
    group: int

    @classmethod
    def make(cls, dictionary: Tensor, n_targets: int, depth: int, budget: int) -> "_Plan":
        n, item = len(dictionary), dictionary.element_size()
        device = dictionary.device.type
        window, candidates = min(WINDOW, depth), min(CANDIDATES, n)
        # A target's projected atoms; its correlations, their scores and the open atoms; its candidates.
        one = item * ((depth + window) * n + 4 * n + candidates * (2 * candidates + depth)) + 2 * n
        scratch = 4 * item * window * n
        # Without the products of all atoms, those of each atom chosen are computed: worth it for few targets.
        gram = item * n * n
        with_gram = n_targets * depth >= n and 2 * gram + scratch + one <= budget
        left = budget - (2 * gram if with_gram else item * candidates * dictionary.shape[1])
        if left < one + scratch:
            need = budget - left + one + scratch
            raise MemoryError(f"{depth} of {n} atoms need {need:,} bytes for one target, the budget is {budget:,}")
        # Small steps do not share out over threads, targets do.
        workers = min(torch.get_num_threads() if device == "cpu" else 1, left // (one + scratch), max(1, n_targets))
        # A tenth of what is left is for correlations that wait for their block.
        # The more advance together, the fewer calls; on a CPU only as long as their memory stays near it.
        most = max(BLOCK, NEAR // one) if device == "cpu" else n_targets
        block = max(1, min(most, -(-n_targets // workers), (left * 9 // 10 // workers - scratch) // one))
        return cls(with_gram, workers, block, max(workers * block, left // 10 // (item * n)))


class _Atoms:
    """The unit-norm atoms, never copied: products with them, by way of all their products where these are kept."""

    def __init__(self, dictionary: Tensor, with_gram: bool) -> None:
        self.dictionary, self.norms = dictionary, _norms(dictionary)
        self.gram = self._products_of_all() if with_gram else None

    def products(self, vectors: Tensor) -> Tensor:
        """`(B, d)` with all atoms, `(B, N)`."""
        return _over((vectors @ self.dictionary.T).T, self.norms).T.contiguous()

    def rows(self, chosen: Tensor, out: Tensor) -> None:
        """Products of the chosen atoms `(m,)` with all, `(m, N)`, into `out`."""
        if self.gram is None:
            out.copy_(self.products(self._unit(chosen)))
        else:
            torch.index_select(self.gram, 0, chosen, out=out)

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
        gram = self.dictionary.new_empty(n, n)
        for first in range(0, n, 512):  # the lower triangle is computed, the upper copied
            rows = slice(first, min(first + 512, n))
            part = _over((self._unit(rows) @ self.dictionary[: rows.stop].T).T, self.norms[: rows.stop])
            gram[: rows.stop, rows] = part
            gram[rows, : rows.stop] = part.T
        return gram


def _pursue(atoms: _Atoms, correlations: Tensor, indices: Tensor, factors: Tensor, plan: _Plan) -> None:
    """Fill `indices` `(B, K)` and `factors` `(B, K, K)`, block by block, each worker with a store of its own."""
    blocks = [slice(first, min(first + plan.block, len(indices))) for first in range(0, len(indices), plan.block)]

    def work(mine: list[slice]) -> None:
        if plan.workers > 1:
            torch.set_num_threads(1)  # of this thread
        store = correlations.new_empty(plan.block, indices.shape[1] + WINDOW, len(atoms.norms))
        with torch.no_grad():
            for rows in mine:
                _Block(atoms, correlations[rows], indices[rows], factors[rows], store).run()

    if plan.workers == 1:
        return work(blocks)
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(plan.workers) as pool:
            list(pool.map(work, [blocks[i :: plan.workers] for i in range(plan.workers)]))
    finally:
        torch.set_num_threads(threads)
    return None


class _Block:
    """A block of targets on their way.

    With L the Cholesky factor of the chosen atoms' products, `store[b, :k]` is L^-1 times their products with all
    atoms: row j holds every atom's part along the j-th direction, and column i of an atom i that is chosen next is its
    row of L. One step of one target needs one new row, made from all earlier ones: reading them is what the plain
    method spends its time on. Here a window of steps is taken on a few candidates first, on their products minus what
    the chosen atoms explain of them; then its rows are made together, the correlations of all atoms follow, and the
    steps are kept up to the first at which an atom that was no candidate would have been taken.
    """

    def __init__(self, atoms: _Atoms, correlations: Tensor, indices: Tensor, factors: Tensor, store: Tensor) -> None:
        self.atoms, self.store = atoms, store
        self.correlations, self.indices, self.factors = correlations, indices, factors
        self.scratch = store.new_empty(2, WINDOW, store.shape[2])
        self.open = atoms.usable.repeat(len(indices), 1)
        self.taken = [0] * len(indices)
        self.left = correlations.new_ones(len(indices), 1)  # squared norms of what is left of the targets
        rounding = torch.finfo(correlations.dtype).eps
        self.stop, self.dependent = STOP * rounding, DEPENDENT * rounding

    def run(self) -> None:
        depth = self.indices.shape[1]
        while True:
            score, candidates = self._scores().topk(min(CANDIDATES, self.open.shape[1]), dim=1)
            unexplained = (score[:, 0] > self.stop).tolist()
            going = [b for b, k in enumerate(self.taken) if k < depth and unexplained[b]]
            if not going:
                break
            self._advance(going, candidates[going])
        for b, k in enumerate(self.taken):
            self.factors[b, :k, :k] = self.store[b, :k].index_select(1, self.indices[b, :k]).T.tril()

    def _scores(self) -> Tensor:
        return torch.where(self.open, self.correlations.abs(), 0)

    def _advance(self, going: list[int], candidates: Tensor) -> None:
        """One window of each target that is not done."""
        size = candidates.shape[1]
        explained = self.correlations.new_empty(len(going), size, size)
        parts = []
        for row, b in enumerate(going):
            part = self.store[b, : self.taken[b]].index_select(1, candidates[row])
            torch.mm(part.T, part, out=explained[row])
            parts.append(part)
        rows = torch.tensor(going, device=candidates.device)[:, None]
        correlations, pairs = self.correlations[rows, candidates], self.atoms.pairs(candidates)
        rest, left = 1 - explained.diagonal(dim1=1, dim2=2), self.left[rows[:, 0]]
        fresh = self.open[rows, candidates] & (rest > self.dependent)
        # No atom explains more than there is: one that seems to has a remainder that is lost in rounding.
        fresh &= correlations.square() <= (rest + self.dependent) * (left + self.dependent)
        self.open[rows, candidates] = fresh
        steps = min(WINDOW, self.indices.shape[1], size)
        window = _Window.take(pairs, explained, correlations, fresh, left, steps, self.stop, self.dependent)
        chosen = candidates.gather(1, window.places)
        for row, (b, count) in enumerate(zip(going, window.counts, strict=True)):
            count = min(count, self.indices.shape[1] - self.taken[b])
            if count:
                along = parts[row].index_select(1, window.places[row, :count])
                self._extend(b, chosen[row, :count], along, window.factors[row], window.heights[row])

    def _extend(self, b: int, chosen: Tensor, along: Tensor, factor: Tensor, heights: Tensor) -> None:
        """Rows of the chosen atoms for all atoms, and the steps that hold for all: the first always does."""
        k, count = self.taken[b], len(chosen)
        rows, made, before = self.store[b, k : k + count], self.scratch[0, :count], self.scratch[1, :count]
        self.atoms.rows(chosen, out=rows)
        inverse = factor[:count, :count]
        rows.copy_(torch.mm(torch.cat([-inverse @ along.T, inverse], 1), self.store[b, : k + count], out=made))
        heights = heights[:count]
        # Correlations of all atoms before each step.
        torch.addmm(self.correlations[b], heights.expand(count, count).tril(-1), rows, alpha=-1, out=before)
        holds = before.gather(1, chosen[:, None])[:, 0].abs() >= torch.abs(before, out=made).amax(1)
        held = holds.tolist()
        kept = next((j for j in range(1, count) if not held[j]), count)
        self.correlations[b] = before[kept - 1].addcmul_(rows[kept - 1], heights[kept - 1], value=-1)
        self.indices[b, k : k + kept] = chosen[:kept]
        self.open[b, chosen[:kept]] = False
        self.left[b] -= heights[:kept].square().sum()
        self.taken[b] += kept


@dataclass(frozen=True)
class _Window:
    """Steps on candidates: `places` `(B, m)` among them, `counts` of steps that were possible, `heights` `(B, m)` of
    the target along each new direction, and the inverse Cholesky `factors` `(B, m, m)` of the chosen atoms' remains.
    """

    places: Tensor
    counts: list[int]
    heights: Tensor
    factors: Tensor

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
        places, heights, rows = [], [], []
        live = torch.ones(len(explained), 1, dtype=torch.bool, device=explained.device)
        counts = torch.zeros(len(explained), 1, dtype=torch.long, device=explained.device)
        share = explained.diagonal(dim1=1, dim2=2)
        for _ in range(steps):
            score, place = torch.where(fresh, correlations.abs(), 0).max(1, keepdim=True)
            live = live & (score > stop)
            row = pairs(place) - _row(explained, place)
            # The product with itself is 1; what was computed of it decided whether the atom is fresh.
            scale = torch.where(live, 1 - share.gather(1, place), 1).sqrt()
            row = torch.where(live, row / scale, 0).scatter(1, place, torch.where(live, scale, 0))
            height = correlations.gather(1, place) / scale
            # As before the first step, but not stricter, so that the first is always taken.
            live = live & (height.square() <= (1 + 2 * dependent / scale.square()) * (left + 2 * dependent))
            height, row = torch.where(live, height, 0), torch.where(live, row, 0)
            left = left - height.square()
            correlations = correlations.addcmul(row, height, value=-1)
            explained.baddbmm_(row[:, :, None], row[:, None, :])
            fresh = (fresh & (1 - share > dependent)).scatter(1, place, False)
            counts += live
            places.append(place)
            heights.append(height)
            rows.append(row)
        chosen = torch.cat(places, 1)
        factors = torch.stack(rows, 1).gather(2, chosen[:, None, :].expand(-1, steps, -1)).mT.tril()
        idle = factors.diagonal(dim1=1, dim2=2) == 0
        factors = factors + torch.diag_embed(idle.to(factors))
        unit = torch.eye(steps, dtype=factors.dtype, device=factors.device)
        inverse = torch.linalg.solve_triangular(factors, unit.expand_as(factors), upper=False)
        return cls(chosen, counts[:, 0].tolist(), torch.cat(heights, 1), inverse)


def _row(matrices: Tensor, place: Tensor) -> Tensor:
    """The row at a place `(B, 1)` of each matrix `(B, M, M)`, `(B, M)`."""
    return matrices.gather(1, place[:, :, None].expand(-1, 1, matrices.shape[2]))[:, 0]


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norms that neither overflow nor vanish on the way; 0 where a reciprocal would not be finite."""
    peak = rows.abs().amax(1)
    peak = torch.where(peak > 1 / torch.finfo(rows.dtype).max, peak, 0)
    return peak * torch.linalg.vector_norm(_over(rows, peak), dim=1)


def _over(rows: Tensor, norms: Tensor) -> Tensor:
    """Rows divided by their norms, zero where these are."""
    return rows * torch.where(norms > 0, 1 / norms, 0)[:, None]
