"""Krylov spaces of many linear maps at once, and what they make certain about the largest eigenvalue of each."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fmprobe.dynamics.norms import norms
from fmprobe.seeding import torch_generator

Product = Callable[[Tensor], Tensor]  # rows of vectors (m, d) to rows of products (m, d)
CAPACITY = 64  # basis vectors at a time
KEPT = 32  # of them, by a restart; even, so that no complex pair has to be split
DOUBT = 1e-2  # probability that the first vector has next to nothing of the eigenvector that counts
EXHAUSTED = 16  # units of rounding of a product that, left beside the known space, are no direction
ROUNDING = 4  # units of rounding that a product is off, in its norm; sqrt(d) / 2 where that is less
UNLUCKY = 3  # times as little as is typical the first vector may have of the eigenvector that is found
POINTS = 33  # of the upper half of a circle


class Spectrum(NamedTuple):
    """Of H_k, on the CPU: eigenvalues `(m, k)`, eigenvectors of norm 1 as columns, their inverse, infinite where there
    is none, and by how much, as a norm, each column of its relation to A may fail, `(m, k)`.
    """

    values: Tensor
    vectors: Tensor
    inverse: Tensor
    rounding: Tensor

    def rows(self, chosen: Tensor) -> "Spectrum":
        return Spectrum(*(part[chosen] for part in self))


class Krylov:
    """Orthonormal bases of the Krylov spaces of `m` maps A (Arnoldi 1951), Gram-Schmidt done twice.

    `basis` `(m, K+1, d)` in the products' dtype and `matrix` `(m, K+1, K)` in float64, of which the first `k` columns
    are valid: A V_k = V_k H_k + h v_{k+1} e_k^T. With P the polynomial whose zeros are the eigenvalues of H_k and those
    that restarts left out, h is what makes `log_norm` `(m,)` the logarithm of ||P(A) v|| for the first vector v. A row
    whose space is exhausted goes on with zeros. A row whose products are not finite is `finite` no more. `defect`
    `(m,)`: by how much, as a norm, the relation fails through restarts and through what is dropped of an exhausted
    space. `before_restarts`: the spectrum as it was at the first restart. `typical`: ||A v||.
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
        return self.k == self.matrix.shape[2]

    @property
    def whole(self) -> bool:
        """Whether the space is all of the space, where none was exhausted before."""
        return self.k == self.basis.shape[2]

    def extend(self, product: Product) -> None:
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
        # What is left of an invariant subspace is rounding, and must not become a direction; nor is there a direction
        # beyond the whole space.
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
        parts = vectors.mT[rows, chosen]  # each a unit vector, pairs one after the other
        second = (values[rows, chosen].imag < 0)[..., None]
        kept = torch.linalg.qr(torch.where(second, parts.imag, parts.real).mT)[0].to(small)
        reduced = kept.mT @ small @ kept
        # Where eigenvectors are nearly parallel, their span is not known as well as the products are.
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
        """The chosen rows, copied."""
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
        values, vectors = torch.linalg.eig(self.small())
        inverse, failed = torch.linalg.inv_ex(vectors)
        inverse[(failed != 0) | ~inverse.isfinite().all((1, 2))] = math.inf
        # A product is off by its own rounding, or by that of what cancels in it, which v as a random vector shows.
        products = torch.linalg.vector_norm(self.matrix[:, : self.k + 1, : self.k], dim=1)
        unit = min(ROUNDING, math.sqrt(self.basis.shape[2]) / 2) * torch.finfo(self.basis.dtype).eps
        rounding = unit * torch.maximum(products, self.typical[:, None]) + self.defect[:, None]
        return Spectrum(values, vectors, inverse, rounding.cpu())

    def log_level(self) -> Tensor:
        """Every eigenvalue z of A has log |P(z)| below this, `(m,)`, with probability 1 - DOUBT for the largest one.

        w^H A = z w^H gives |P(z)| |w^H v| = |w^H P(A) v| <= ||P(A) v|| for a left eigenvector w of norm 1, however far
        from normal A is; and a random v of norm 1 has |w^H v| below DOUBT / sqrt(d) with probability DOUBT at most.
        """
        return (self.log_norm + 0.5 * math.log(self.basis.shape[2]) - math.log(DOUBT)).cpu()


def radius_of(krylov: Krylov, tol: float) -> tuple[Tensor, Tensor]:
    """Spectral radius of each map `(m,)`, and whether it is certain to `tol` of itself, `(m,)` bool.

    Of the eigenvalues of H_k one must be an eigenvalue of A (`_found`), and none of A may be larger (`_excluded`).
    Where H_k is the whole of A but for rounding, that must not move the largest one so far (`_stays`).
    """
    spectrum = krylov.spectrum()
    first = krylov.before_restarts or spectrum
    largest = torch.where(_found(krylov, spectrum, first, tol), spectrum.values.abs(), -1.0).amax(1)
    certain = (largest > 0) & _excluded(krylov, spectrum, first, largest * (1 + tol))
    if krylov.whole:
        largest = torch.where(certain, largest, spectrum.values.abs().amax(1))
        certain[~certain] = _stays(krylov.small()[~certain], spectrum.rows(~certain), largest[~certain], tol)
    null = ~krylov.small().any(2).any(1)  # A v = 0 for a random v
    certain = (certain | null) & krylov.finite.cpu()
    return largest.clamp(min=0).to(krylov.log_norm), certain.to(krylov.finite.device)


def _found(krylov: Krylov, spectrum: Spectrum, first: Spectrum, tol: float) -> Tensor:
    """Which of the eigenvalues of H_k, `(m, k)`, are within `tol` of one of A, bool.

    Its residual, and the rounding of the products, times its condition number must be below the tolerance, and |P| at
    that distance from it above the level under which the eigenvalues of A lie. The condition number is that in H_k, or
    what the first vector tells: of an eigenvector x and left eigenvector w of norm 1 it has (w^H v) / (w^H x), and
    w^H v is about 1 / sqrt(d).
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
    # A condition number holds for errors below the distance of the eigenvalue to others, unless these are as good.
    distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return (error <= slack) & ((error <= distance.amin(2) / 4) | (error <= slack / 100)) & apart


def _excluded(krylov: Krylov, spectrum: Spectrum, first: Spectrum, outer: Tensor) -> Tensor:
    """Whether no eigenvalue of A has a modulus of `outer` `(m,)` or more, `(m,)` bool.

    For an eigenvalue z and a left eigenvector w of norm 1 the relation gives w^H v = [w^H P(A) v] / P(z) + w^H E r(z),
    with E its failure through rounding and r(z) = (z - H_k)^{-1} e_1: so z is none where neither term can be as large
    as w^H v is. Of both terms the moduli are largest on the circle, by the maximum principle, where no zero of P is
    beyond it. Rounding has no more of w than random vectors have. It matters before the first restart: later ones
    begin with vectors that have less of what is to be excluded.
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
    """Whether no rounding E of H_k moves its spectral radius by `tol` of itself, `(m,)` bool, also if it is defective.

    No eigenvalue of H_k + t E, 0 <= t <= 1, lies on a circle where ||(z - H_k)^{-1}|| ||E|| < 1: so on either side of
    it H_k + E has as many as H_k. Between the angles that are tried the norm is largest near eigenvalues.
    """
    k, rounding = small.shape[1], torch.linalg.vector_norm(spectrum.rounding, dim=1)
    used = small.diagonal(-1, 1, 2).ne(0).all(1)  # the space of a row that was exhausted before is not the whole one
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
    """Spectral norm of each map J `(m,)` from the spaces of J^T J, and whether it is certain to `tol` of itself.

    The largest eigenvalue of H_k is below that of J^T J always, and P there tells how far at most.
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
    """The same random unit vector for each row, `(m, d)`."""
    generator = torch_generator(0, "jacobian: first vector")
    start = torch.randn(1, like.shape[-1], generator=generator)
    return (start / torch.linalg.vector_norm(start)).expand(m, -1).to(like)


def _unit(vectors: Tensor, norm: Tensor) -> Tensor:
    """Vectors of norm 1, 0 where the norm is; divided in float64, so that no norm is too small."""
    return torch.where(norm[:, None] > 0, vectors / norm[:, None], 0.0).to(vectors.dtype)


def _closed_under_conjugation(values: Tensor, count: int) -> Tensor:
    """Places of `count` values, an even number, of largest modulus, with every one its complex conjugate."""
    chosen: list[int] = []
    # Of a pair the one with positive imaginary part comes first in what LAPACK gives, and its conjugate next to it.
    for place in values.abs().sort(descending=True, stable=True).indices.tolist():
        imaginary = float(values[place].imag)
        unit = [place, place + 1] if imaginary > 0 else [place]
        if imaginary >= 0 and len(chosen) + len(unit) <= count:
            chosen += unit
    return torch.tensor(chosen)
