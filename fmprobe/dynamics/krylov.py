"""Krylov spaces of many linear maps at once, and what they prove about the largest eigenvalue of each map."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fmprobe.dynamics.norms import norms
from fmprobe.seeding import torch_generator

Product = Callable[[Tensor], Tensor]  # rows of vectors (m, d) to rows of products (m, d)
CAPACITY = 64  # number of basis vectors at a time
KEPT = 32  # number that a restart keeps; even, so that no complex pair has to be split
DOUBT = 1e-2  # probability that the first vector has next to no component along the eigenvector that counts
EXHAUSTED = 16  # a remainder of a product below so many units of rounding is no new direction
ROUNDING = 4  # error of a product in units of rounding of its norm; sqrt(d) / 2 where that is less
UNLUCKY = 3  # how many times smaller than typical the component along the eigenvector found may be
POINTS = 33  # number of points tried on the upper half of a circle


class Spectrum(NamedTuple):
    """The spectrum of H_k, on the CPU.

    Attributes:
        values: `(m, k)`; eigenvalues.
        vectors: `(m, k, k)`; eigenvectors of norm 1, as columns.
        inverse: `(m, k, k)`; inverse of the eigenvectors, infinite where there is none.
        rounding: `(m, k)`; bound on the norm by which each column of the relation of H_k to A may fail.
    """

    values: Tensor
    vectors: Tensor
    inverse: Tensor
    rounding: Tensor

    def rows(self, chosen: Tensor) -> "Spectrum":
        return Spectrum(*(part[chosen] for part in self))


class Krylov:
    """Orthonormal bases of the Krylov spaces of `m` maps A (Arnoldi 1951), with Gram-Schmidt done twice.

    The relation is A V_k = V_k H_k + h v_{k+1} e_k^T. A row whose space is exhausted continues with zeros.

    Attributes:
        basis: `(m, K+1, d)`; the basis vectors, in the dtype of the products.
        matrix: `(m, K+1, K)`, float64; H_k and h. The first `k` columns are valid.
        log_norm: `(m,)`; log ||P(A) v|| for the first vector v. P is the polynomial whose zeros are the eigenvalues of
            H_k and those that restarts left out.
        finite: `(m,)`; whether all products of a row have been finite.
        defect: `(m,)`; norm by which the relation fails because of restarts and of what is dropped of an exhausted
            space.
        typical: `(m,)`; ||A v||.
        before_restarts: the spectrum at the first restart.
    """

    def __init__(self, start: Tensor) -> None:
        m, d = start.shape
        capacity = min(CAPACITY, d)
        self.k = 0
        self.basis = start.new_zeros(m, capacity + 1, d)
        self.matrix = torch.zeros(m, capacity + 1, capacity, dtype=torch.float64, device=start.device)
        self.log_norm = torch.zeros(m, dtype=torch.float64, device=start.device)
        self.defect, self.typical = torch.zeros_like(self.log_norm), torch.zeros_like(self.log_norm)
        self.left_out = torch.zeros(m, 0, dtype=torch.complex128, device=start.device)
        self.before_restarts: Spectrum | None = None
        norm = norms(start)
        self.finite = norm.isfinite()
        self.basis[:, 0] = _unit(start, torch.where(self.finite, norm, 0.0))

    @property
    def full(self) -> bool:
        """Whether there is room for no further basis vector."""
        return self.k == self.matrix.shape[2]

    @property
    def whole(self) -> bool:
        """Whether the Krylov space is the whole space, unless it was exhausted before."""
        return self.k == self.basis.shape[2]

    def extend(self, product: Product) -> None:
        """Add a basis vector."""
        known, vector = self.basis[:, : self.k + 1], product(self.basis[:, self.k].contiguous())
        before = norms(vector)
        self.finite &= before.isfinite()
        self.typical = before if self.k == 0 else self.typical
        vector = torch.where(self.finite[:, None], vector, 0.0)
        for _ in range(2):
            along = torch.einsum("mkd,md->mk", known, vector)
            vector = vector - torch.einsum("mk,mkd->md", along, known)
            self.matrix[:, : self.k + 1, self.k] += along.double()
        norm = norms(vector)
        # In an invariant subspace only rounding is left of a product, and it must not become a direction. Beyond the
        # whole space there is no direction either.
        whole = self.k + 1 == vector.shape[1]
        dropped = (norm <= EXHAUSTED * torch.finfo(vector.dtype).eps * before) | whole
        self.defect += torch.where(dropped, norm, 0.0)
        norm = torch.where(dropped, 0.0, norm)
        self.matrix[:, self.k + 1, self.k] = norm
        self.log_norm += norm.log()
        self.basis[:, self.k + 1] = _unit(vector, norm)
        self.k += 1

    def restart(self) -> None:
        """Keep the space of the KEPT eigenvalues of largest modulus (thick restart; Stewart 2001, Krylov-Schur)."""
        small = self.matrix[:, : self.k, : self.k]
        spectrum = values, vectors, _, _ = self.spectrum()
        self.before_restarts = self.before_restarts or spectrum
        chosen = torch.stack([_closed_under_conjugation(row, KEPT) for row in values])
        rows = torch.arange(len(values))[:, None]
        others = torch.ones(values.shape, dtype=torch.bool).scatter_(1, chosen, False)
        dropped = values[others].reshape(len(values), -1)
        parts = vectors.mT[rows, chosen]  # each is a unit vector, and complex pairs are next to each other
        second = (values[rows, chosen].imag < 0)[..., None]
        kept = torch.linalg.qr(torch.where(second, parts.imag, parts.real).mT)[0].to(small)
        reduced = kept.mT @ small @ kept
        # The span of nearly parallel eigenvectors is known less well than the products are.
        self.defect += torch.linalg.matrix_norm(small @ kept - kept @ reduced)
        last = self.matrix[:, self.k, self.k - 1, None] * kept[:, -1]
        basis = torch.einsum("mkp,mkd->mpd", kept.to(self.basis), self.basis[:, : self.k])
        self.basis[:, KEPT] = self.basis[:, self.k]
        self.basis[:, :KEPT], self.basis[:, KEPT + 1 :] = basis, 0
        self.matrix.zero_()
        self.matrix[:, :KEPT, :KEPT], self.matrix[:, KEPT, :KEPT] = reduced, last
        self.left_out = torch.cat([self.left_out, dropped.to(self.left_out)], 1)
        self.k = KEPT

    def rows(self, chosen: Tensor) -> "Krylov":
        """A copy of the chosen rows."""
        part = object.__new__(Krylov)
        part.k = self.k
        for name in ("basis", "matrix", "log_norm", "defect", "typical", "left_out", "finite"):
            setattr(part, name, getattr(self, name)[chosen])
        part.before_restarts = self.before_restarts and self.before_restarts.rows(chosen.cpu())
        return part

    def small(self) -> Tensor:
        """H_k `(m, k, k)`, on the CPU."""
        return self.matrix[:, : self.k, : self.k].cpu()

    def spectrum(self) -> Spectrum:
        """The spectrum of H_k."""
        values, vectors = torch.linalg.eig(self.small())
        inverse, failed = torch.linalg.inv_ex(vectors)
        inverse[(failed != 0) | ~inverse.isfinite().all((1, 2))] = math.inf
        # A product is off by its own rounding, or by the rounding of terms that cancel in it. The product with v, a
        # random vector, shows how large these terms are.
        products = torch.linalg.vector_norm(self.matrix[:, : self.k + 1, : self.k], dim=1)
        unit = min(ROUNDING, math.sqrt(self.basis.shape[2]) / 2) * torch.finfo(self.basis.dtype).eps
        rounding = unit * torch.maximum(products, self.typical[:, None]) + self.defect[:, None]
        return Spectrum(values, vectors, inverse, rounding.cpu())

    def log_level(self) -> Tensor:
        """A bound `(m,)` below which log |P(z)| lies for every eigenvalue z of A.

        For a left eigenvector w of norm 1, w^H A = z w^H gives |P(z)| |w^H v| = |w^H P(A) v| <= ||P(A) v||, however far
        from normal A is. A random v of norm 1 has |w^H v| below DOUBT / sqrt(d) with probability at most DOUBT. So the
        bound holds for the largest eigenvalue with probability 1 - DOUBT.
        """
        return (self.log_norm + 0.5 * math.log(self.basis.shape[2]) - math.log(DOUBT)).cpu()


def radius_of(krylov: Krylov, tol: float) -> tuple[Tensor, Tensor]:
    """Spectral radius of each map `(m,)`, and whether it is certain to within a relative `tol`, `(m,)` bool.

    It is certain if the largest eigenvalue found is an eigenvalue of A (`_found`) and no eigenvalue of A is larger
    (`_excluded`). If H_k is the whole of A apart from rounding, it is also certain if rounding cannot move the largest
    eigenvalue that far (`_stays`).
    """
    spectrum = krylov.spectrum()
    first = krylov.before_restarts or spectrum
    largest = torch.where(_found(krylov, spectrum, first, tol), spectrum.values.abs(), -1.0).amax(1)
    certain = (largest > 0) & _excluded(krylov, spectrum, first, largest * (1 + tol))
    if krylov.whole:
        largest = torch.where(certain, largest, spectrum.values.abs().amax(1))
        certain[~certain] = _stays(krylov.small()[~certain], spectrum.rows(~certain), largest[~certain], tol)
    null = ~krylov.small().any(2).any(1)  # A v = 0 for a random v, so A is zero, so A is zero
    certain = (certain | null) & krylov.finite.cpu()
    return largest.clamp(min=0).to(krylov.log_norm), certain.to(krylov.finite.device)


def _found(krylov: Krylov, spectrum: Spectrum, first: Spectrum, tol: float) -> Tensor:
    """Tell which eigenvalues of H_k are within a relative `tol` of an eigenvalue of A, `(m, k)` bool.

    Two conditions must hold. First, the residual and the rounding of the products, times the condition number of the
    eigenvalue, must be below the tolerance. Second, |P| at that distance from the eigenvalue must be above the level
    under which the eigenvalues of A lie. The condition number is the larger of that in H_k and an estimate from the
    first vector: for an eigenvector x and a left eigenvector w of norm 1, the component of v along x is (w^H v) / (w^H
    x), and w^H v is about 1 / sqrt(d).
    """
    values, vectors, inverse, rounding = spectrum
    nearest = (values[:, :, None] - first.values[:, None]).abs().argmin(2)
    share = first.inverse[:, :, 0].abs().gather(1, nearest) * math.sqrt(krylov.basis.shape[2])
    condition = torch.maximum(torch.linalg.vector_norm(inverse, dim=2), UNLUCKY * share)
    residual = krylov.matrix[:, krylov.k, krylov.k - 1, None].cpu() * vectors[:, -1].abs()
    error = condition * (residual + torch.linalg.vector_norm(rounding[:, :, None] * vectors, dim=1))
    slack = tol * values.abs()
    distance = (values[:, :, None] - torch.cat([values, krylov.left_out.cpu()], 1)[:, None]).abs()
    apart = torch.maximum(distance, slack[:, :, None]).log().sum(2) > krylov.log_level()[:, None]
    # A condition number is valid for errors below the distance to the other eigenvalues, or if the error is tiny.
    distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return (error <= slack) & ((error <= distance.amin(2) / 4) | (error <= slack / 100)) & apart


def _excluded(krylov: Krylov, spectrum: Spectrum, first: Spectrum, outer: Tensor) -> Tensor:
    """Tell whether no eigenvalue of A has a modulus of at least `outer` `(m,)`; `(m,)` bool.

    For an eigenvalue z and a left eigenvector w of norm 1 the relation gives w^H v = [w^H P(A) v] / P(z) + w^H E r(z),
    where E is its failure through rounding and r(z) = (z - H_k)^{-1} e_1. So z is no eigenvalue if neither term can be
    as large as w^H v. By the maximum principle both terms have their largest modulus on the circle, provided that no
    zero of P lies beyond it. The component of rounding along w is taken to be that of a random vector. E matters before
    the first restart. Later cycles start with vectors that have a smaller component along what is to be excluded.
    """
    zeros = torch.cat([spectrum.values, krylov.left_out.cpu()], 1)
    holds = (zeros.abs() < outer[:, None]).all(1)
    even = torch.linspace(0, math.pi, POINTS).double().expand(len(zeros), -1)
    angles = torch.cat([zeros.angle(), first.values.angle(), even], 1)
    circle = torch.polar(outer.clamp(min=0)[:, None].expand_as(angles), angles)
    level, vectors = krylov.log_level()[:, None] + math.log(2), first.vectors * first.rounding[:, :, None]
    for part in circle.split(CAPACITY, dim=1):
        holds = holds & ((part[:, :, None] - zeros[:, None]).abs().log().sum(2) > level).all(1)
        failure = (first.inverse[:, None, :, 0] / (part[:, :, None] - first.values[:, None])) @ vectors.mT
        holds = holds & (torch.linalg.vector_norm(failure, dim=2) <= DOUBT).all(1)
    return holds


def _stays(small: Tensor, spectrum: Spectrum, largest: Tensor, tol: float) -> Tensor:
    """Tell whether no rounding E of H_k can move its spectral radius by a relative `tol`; `(m,)` bool.

    It also holds for a defective H_k. No eigenvalue of H_k + t E, 0 <= t <= 1, lies on a circle where ||(z -
    H_k)^{-1}|| ||E|| < 1. So H_k + E has as many eigenvalues on either side of the circle as H_k. Between the angles
    that are tried, the norm is largest near eigenvalues.
    """
    k, rounding = small.shape[1], torch.linalg.vector_norm(spectrum.rounding, dim=1)
    used = small.diagonal(-1, 1, 2).ne(0).all(1)  # the space of a row that was exhausted early is not the whole space
    holds = used & (largest > 0)
    even = torch.linspace(0, math.pi, POINTS).double().expand(len(small), -1)
    angles, unit = torch.cat([spectrum.values.angle(), even], 1), torch.eye(k, dtype=torch.complex128)
    for radius in (largest * (1 - tol), largest * (1 + tol)):
        circle = torch.polar(radius[:, None].expand_as(angles), angles)
        inverse, failed = torch.linalg.inv_ex(circle[:, :, None, None] * unit - small[:, None])
        near = torch.linalg.matrix_norm(inverse).nan_to_num(math.inf, math.inf) * rounding[:, None] >= 1
        holds &= ~(near | (failed != 0)).any(1)
    return holds


def norm_of(krylov: Krylov, tol: float) -> tuple[Tensor, Tensor]:
    """Spectral norm of each map J `(m,)` from the Krylov spaces of J^T J, and whether it is certain to a relative
    `tol`.

    The largest eigenvalue of H_k is never above that of J^T J, and P bounds how far below it can be.
    """
    small = krylov.small()
    values = torch.linalg.eigvalsh((small + small.mT) / 2)
    norm = values.amax(1).clamp(min=0).sqrt()
    zeros = torch.cat([values, krylov.left_out.cpu().real], 1)
    above = (norm * (1 + tol)).square()[:, None] - zeros
    certain = (above.clamp(min=0).log().sum(1) > krylov.log_level()) & (norm > 0) | ~small.any(2).any(1)
    certain &= krylov.finite.cpu()
    return norm.to(krylov.log_norm), certain.to(krylov.finite.device)


def first_vectors(m: int, like: Tensor) -> Tensor:
    """The same random unit vector for each of m rows, `(m, d)`."""
    generator = torch_generator(0, "jacobian: first vector")
    start = torch.randn(1, like.shape[-1], generator=generator)
    return (start / torch.linalg.vector_norm(start)).expand(m, -1).to(like)


def _unit(vectors: Tensor, norm: Tensor) -> Tensor:
    """Vectors of norm 1, or 0 where `norm` is 0. The division is done in float64, so that no norm is too small."""
    return torch.where(norm[:, None] > 0, vectors / norm[:, None], 0.0).to(vectors.dtype)


def _closed_under_conjugation(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` values of largest modulus, `count` even, each together with its complex conjugate."""
    chosen: list[int] = []
    # LAPACK gives a conjugate pair side by side, the value with positive imaginary part first.
    for place in values.abs().sort(descending=True, stable=True).indices.tolist():
        imaginary = float(values[place].imag)
        unit = [place, place + 1] if imaginary > 0 else [place]
        if imaginary >= 0 and len(chosen) + len(unit) <= count:
            chosen += unit
    return torch.tensor(chosen)
