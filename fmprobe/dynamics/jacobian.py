"""The Jacobian J_f without forming it: spectral radius, spectral norm and distance to the fixed point."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.forward import forward_product
from fmprobe.dynamics.krylov import CAPACITY, Krylov, first_vectors, norm_of, radius_of
from fmprobe.dynamics.norms import norms, power_of_two
from fmprobe.seeding import torch_generator

MEMORY = 2**28  # bytes of Krylov vectors at a time
PRODUCTS = 4 * CAPACITY  # products with J, or J^T J, spent on one latent before its value counts as unknown
CUT = "f cuts the gradient: look for a no_grad or a detach inside it and remove it"
COMMUTATOR = 4  # how far from normal J may be, in units of the tolerance over d


class NotDifferentiableError(RuntimeError):
    """Autograd cannot differentiate f."""


class Linearisation:
    """J_f at each of a batch of latents `(m, *latent_shape)`, as products with flat vectors `(m, d)`.

    f is evaluated once for `values`. A product v J is one backward pass through the graph of that evaluation. A product
    J v evaluates f anew, in forward mode. Where an operator of f has no forward mode, J v is obtained from backward
    passes through the first graph instead.

    Raises:
        NotDifferentiableError: autograd cannot differentiate f.
    """

    def __init__(self, f: Function, latents: Tensor) -> None:
        self.f, self.shape = apart(f), latents.shape
        self.unit = torch.ones(len(latents), 1, dtype=torch.float64, device=latents.device)
        self.latents = latents.detach().clone().requires_grad_()
        try:
            # The fused attention kernels have neither forward mode nor double backward on the CPU.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                self.values = self.f(self.latents)
        except RuntimeError as error:
            raise NotDifferentiableError(f"f cannot be differentiated: {error}") from error
        if not self.values.requires_grad:
            raise NotDifferentiableError(CUT)
        self._dual: tuple[Tensor, Tensor] | None = None
        self._forward_mode = True

    def rows(self, chosen: Tensor) -> "Linearisation":
        """The linearisation at the chosen latents alone, for which f is evaluated again."""
        part = Linearisation(self.f, self.latents.detach()[chosen])
        part.unit = self.unit[chosen]
        return part

    def vjp(self, vectors: Tensor) -> Tensor:
        """Products v J, row by row."""
        cotangent = vectors.reshape(self.shape).to(self.values.dtype)
        (product,) = torch.autograd.grad(self.values, self.latents, cotangent, retain_graph=True, allow_unused=True)
        if product is None:  # the values depend on the parameters of f, but not on the latents
            raise NotDifferentiableError(CUT)
        return product.reshape(vectors.shape)

    def jvp(self, vectors: Tensor) -> Tensor:
        """Products J v, row by row: in forward mode, or by differentiating the backward pass where an operator of f
        lacks it.
        """
        if self._forward_mode:
            try:
                with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # torch warns when it loads its forward-mode rules
                    point, tangent = self.latents.detach(), vectors.reshape(self.shape)
                    product = forward_product(self.f, point, tangent)[1]
                return product.detach().to(vectors.dtype).reshape(vectors.shape)
            except (RuntimeError, NotImplementedError):
                self._forward_mode = False
        return self._twice_backward(vectors)

    def gram(self, vectors: Tensor) -> Tensor:
        """Products J^T J v / unit^2, row by row. `unit` `(m, 1)` is 1 at first."""
        return _scaled(self.vjp(_scaled(self.jvp(vectors), self.unit)), self.unit)

    def _twice_backward(self, vectors: Tensor) -> Tensor:
        try:
            if self._dual is None:
                # The map u -> u J is linear in u, so its transpose applied to v is J v, for any u.
                dummy = torch.zeros_like(self.values, requires_grad=True)
                with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                    (back,) = torch.autograd.grad(self.values, self.latents, dummy, create_graph=True)
                self._dual = dummy, back
            dummy, back = self._dual
            (product,) = torch.autograd.grad(back, dummy, vectors.reshape(self.shape), retain_graph=True)
        except RuntimeError as error:
            raise NotDifferentiableError(f"f can be differentiated neither forward nor twice: {error}") from error
        return product.to(vectors.dtype).reshape(vectors.shape)


def spectral_radius(f: Function, latents: Tensor, tol: float = 1e-3, batch_size: int = 256) -> Tensor:
    """Largest modulus of the eigenvalues of J_f at each latent, `(m,)`; nan where it is not known.

    A fixed point is an attractor if it is below 1 (Fumero et al., ICLR 2026, def. 2).

    It is found by Arnoldi iteration in backward mode, which suffices because J and its transpose have the same
    eigenvalues. The iteration keeps 64 vectors, restarts, and ends after 256 products. A value counts as known when an
    eigenvalue has been found and larger ones have been excluded (`krylov.radius_of`). It is then within `tol` of the
    radius, relatively. This holds as far as products with J are exact in the dtype of the latents, and except with the
    probability, 1 in 100, that a random vector misses the eigenvector.

    Where J commutes with its transpose, as far as 8 products show, the radius equals the spectral norm. So it is known
    for rotations, permutations and symmetric maps, however crowded their spectrum is. It stays unknown for maps that
    are far from normal and whose largest eigenvalues are defective or crowded, and for rows where f is not finite.

    Args:
        f: the map, on a batch of latents.
        latents: the latents `(m, *latent_shape)`.
        tol: relative tolerance.
        batch_size: largest number of latents in one call of f.

    Raises:
        NotDifferentiableError: autograd cannot differentiate f.
        ValueError: the batch size is below 1.
    """
    return _in_blocks(f, latents, batch_size, lambda line: _radii(line, tol).to(latents.dtype))


def spectral_norm(f: Function, latents: Tensor, tol: float = 1e-3, batch_size: int = 256) -> Tensor:
    """Largest singular value of J_f at each latent, `(m,)`; nan where it is not known.

    Where it is below 1, f is a local contraction (Fumero et al., ICLR 2026, def. 3).

    It is found by Lanczos iteration on J^T J, which keeps 64 vectors, restarts, and ends after 256 products. Apart from
    rounding, a value is never above the norm. It is below the norm by more than `tol`, relatively, only with the
    probability, 1 in 100, that a random vector misses the singular vector (`krylov.norm_of`).

    Args:
        f: the map, on a batch of latents.
        latents: the latents `(m, *latent_shape)`.
        tol: relative tolerance.
        batch_size: largest number of latents in one call of f.

    Raises:
        NotDifferentiableError: autograd cannot differentiate f.
        ValueError: the batch size is below 1.
    """
    return _in_blocks(f, latents, batch_size, lambda line: _norms(line, tol).to(latents.dtype))


def distance_to_fixed_point(
    f: Function,
    latents: Tensor,
    radius: Tensor,
    tol: float = 1e-6,
    noise: Tensor | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Norm of Newton's correction (I - J)^{-1} (f(z) - z), `(m,)`; nan where it is not known.

    Unlike the rate of the steps, it sees slow modes hidden under fast ones, and non-normal maps. It is found by GMRES
    (Saad and Schultz 1986), which restarts until the residual of its solution is at most `tol` of f(z) - z, or until
    256 products have been taken.

    That residual and the `noise` in f(z) are added to the distance, each times the gain of (I - J)^{-1}. The gain is
    1/(1 - radius); where the radius is nan or not below 1, it is what GMRES finds for a random direction. The distance
    is nan where no gain is found, and where the residual is above `tol` and contributes more than a tenth of the
    correction.

    Args:
        f: the map, on a batch of latents.
        latents: the latents `(m, *latent_shape)`.
        radius: the spectral radii `(m,)`.
        tol: tolerance of GMRES, relative to f(z) - z.
        noise: norm of the noise in f(z), `(m,)`; by default none.
        batch_size: largest number of latents in one call of f.

    Raises:
        NotDifferentiableError: autograd cannot differentiate f.
        ValueError: the batch size is below 1.
    """

    def distance(line: Linearisation, radius: Tensor, noise: Tensor) -> Tensor:
        residual = _flat(line.values) - _flat(line.latents)
        gain = _gain(line, radius.double())
        length, left, solved = _solve(line, residual, tol, gain)
        return torch.where(solved, length + (left + noise.double()) * gain, torch.nan).to(latents.dtype)

    noise = torch.zeros_like(radius) if noise is None else noise
    return _in_blocks(f, latents, batch_size, distance, radius, noise)


def _radii(line: Linearisation, tol: float) -> Tensor:
    """Spectral radii `(m,)`; for rows that take longer, J is first tested for being normal."""
    search = _Search(line, Linearisation.vjp, radius_of, tol)
    search.run(CAPACITY)
    unknown = search.waiting()
    if len(unknown):
        normal = unknown[_commutes(line.rows(unknown), tol)]
        if len(normal):
            search.settle(normal, _norms(line.rows(normal), tol))
    return search.run(PRODUCTS)


def _norms(line: Linearisation, tol: float) -> Tensor:
    """Spectral norms `(m,)`."""
    # For a very large or small J, J^T J may not fit into the dtype. So J is measured in units of its first product.
    line.unit = power_of_two(norms(line.jvp(first_vectors(line.shape[0], _flat(line.latents)))))[:, None]
    return _Search(line, Linearisation.gram, norm_of, tol).run(PRODUCTS) * line.unit[:, 0]


class _Search:
    """Searches for one value of each map of a linearisation, by products with the maps.

    `read` takes the values from the Krylov spaces and tells which are certain. Each row is independent of the others
    and leaves the search when it is done.
    """

    def __init__(
        self,
        line: Linearisation,
        product: Callable[[Linearisation, Tensor], Tensor],
        read: Callable[[Krylov, float], tuple[Tensor, Tensor]],
        tol: float,
    ) -> None:
        m = line.shape[0]
        self.line, self.product, self.read, self.tol = line, product, read, tol
        self.krylov = Krylov(first_vectors(m, _flat(line.latents)))
        self.places = torch.arange(m, device=line.latents.device)  # indices of the rows that are still in the search
        self.open = torch.ones_like(self.places, dtype=torch.bool)
        self.values = torch.full((m,), torch.nan, dtype=torch.float64, device=line.latents.device)
        self.products, self.due = 0, 2

    def run(self, products: int) -> Tensor:
        """Continue the search up to a total of `products`; return the values `(m,)`, nan where they are not known."""
        while self.products < products and bool(self.open.any()):
            self._drop_what_is_done()
            if self.krylov.full:
                self.krylov.restart()
                self.due = self.krylov.k + self.krylov.k // 2
            self.krylov.extend(lambda vectors: self.product(self.line, vectors))
            self.products += 1
            if self.krylov.k >= self.due or self.krylov.full or self.products == products:
                self._read()
        return self.values

    def waiting(self) -> Tensor:
        """Indices of the rows whose value may still become known by more products."""
        return self.places[self.open]

    def settle(self, places: Tensor, values: Tensor) -> None:
        """Set the values of some rows that are known otherwise, and stop their search."""
        self.values[places] = values
        self.open &= ~torch.isin(self.places, places)

    def _read(self) -> None:
        self.due = self.krylov.k + max(2, self.krylov.k // 5)
        values, certain = self.read(self.krylov, self.tol)
        new = self.open & certain
        self.values[self.places[new]] = values[new]
        exhausted = self.krylov.log_norm.isinf()  # more products would not change anything
        self.open &= ~certain & ~exhausted & self.krylov.finite

    def _drop_what_is_done(self) -> None:
        rows = self.open.nonzero()[:, 0]
        if 0 < len(rows) <= len(self.open) // 2:
            self.line, self.krylov = self.line.rows(rows), self.krylov.rows(rows)
            self.places, self.open = self.places[rows], self.open[rows]


def _commutes(line: Linearisation, tol: float) -> Tensor:
    """Whether each J commutes with its transpose, `(m,)` bool, as far as products with two random vectors show.

    For a random v of norm 1, ||(J^T J - J J^T) v|| is on average ||J^T J - J J^T||_F / sqrt(d). Consider weighted
    shifts whose radius is below their norm by tol. The hardest to detect have weights that vary once along a cycle of
    length d; for them the test gives 6.9 tol / d.
    """
    m, d = line.shape[0], _flat(line.latents).shape[1]
    passed = torch.ones(m, dtype=torch.bool, device=line.latents.device)
    for v in torch.randn(2, d, generator=torch_generator(0, "jacobian: commutator")):
        v = (v / torch.linalg.vector_norm(v)).expand(m, -1).to(_flat(line.latents))
        ahead, back = line.jvp(v), line.vjp(v)
        unit = power_of_two(torch.maximum(norms(ahead), norms(back)))[:, None]
        one, other = line.vjp(_scaled(ahead, unit)), line.jvp(_scaled(back, unit))
        passed &= norms(one.double() - other) <= COMMUTATOR * tol / d * torch.maximum(norms(one), norms(other))
    return passed


def _gain(line: Linearisation, radius: Tensor) -> Tensor:
    """By how much (I - J)^{-1} enlarges vectors, `(m,)`; see `distance_to_fixed_point`."""
    gain = 1 / (1 - radius).clamp(min=torch.finfo(line.latents.dtype).eps)
    rows = (~(radius < 1)).nonzero()[:, 0]
    if len(rows):
        some = line.rows(rows)
        unknown = torch.full_like(gain[rows], torch.inf)
        length, _, solved = _solve(some, first_vectors(len(rows), _flat(some.latents)), 1e-2, unknown)
        gain[rows] = torch.where(solved, length, torch.nan)
    return gain


def _solve(line: Linearisation, target: Tensor, tol: float, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Apply (I - J)^{-1} to each row of `target` `(m, d)`, and return norms alone.

    These are the norms of the solutions and of their residuals, float64 `(m,)`. A third tensor tells whether a residual
    is at most `tol` of its target or, times the `gain` `(m,)`, at most a tenth of the solution.
    """
    size, solution = norms(target), torch.zeros_like(target, dtype=torch.float64)
    residual, left, solved = target, size, size == 0
    for _ in range(PRODUCTS // CAPACITY):
        solution = solution + _gmres(line, torch.where(solved[:, None], 0.0, residual), tol * size)
        rounded = solution.to(target.dtype)
        residual = (target.double() - (rounded.double() - line.jvp(rounded))).to(target.dtype)
        left = norms(residual)
        solved = (left <= tol * size) | (left * gain <= 0.1 * norms(solution))
        if bool((solved | ~left.isfinite()).all()):
            break
    return norms(solution), left, solved


def _gmres(line: Linearisation, target: Tensor, enough: Tensor) -> Tensor:
    """Apply (I - J)^{-1} to each row of `target` `(m, d)`, float64, with one Krylov space.

    A row is done when its residual is at most `enough` `(m,)` or when its space is full.
    """
    krylov = Krylov(target)
    size, steps = norms(target), krylov.matrix.shape[2]
    found = torch.zeros(len(target), steps, dtype=torch.float64, device=target.device)
    going, due = size > enough, 1
    for k in range(1, steps + 1):
        krylov.extend(lambda vectors: vectors - line.jvp(vectors))
        if k < due and not krylov.full:
            continue
        due = k + max(1, k // 5)
        solution, left = _least_squares(krylov.matrix[:, : k + 1, :k], size)
        found[:, :k] = torch.where(going[:, None], solution, found[:, :k])
        going &= (left > enough) & krylov.finite
        if not bool(going.any()):
            break
    found[~krylov.finite] = torch.nan
    solution = torch.zeros_like(target, dtype=torch.float64)
    for weights, vectors in zip(found.mT, krylov.basis.unbind(1), strict=False):  # the last basis vector has no weight
        solution += weights[:, None] * vectors
    return solution


def _least_squares(hessenberg: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the small least-squares problem of GMRES: the solution `(m, k)` and the norm of its residual `(m,)`."""
    target = torch.zeros(hessenberg.shape[:2], dtype=hessenberg.dtype, device=hessenberg.device)
    target[:, 0] = size
    solution = torch.einsum("mkj,mj->mk", torch.linalg.pinv(hessenberg), target)
    left = target - torch.einsum("mjk,mk->mj", hessenberg, solution)
    return solution, torch.linalg.vector_norm(left, dim=1)


def _scaled(vectors: Tensor, units: Tensor) -> Tensor:
    """Vectors `(m, d)`, each divided by a power of two, `(m, 1)`."""
    return (vectors / units).to(vectors.dtype)


def _flat(latents: Tensor) -> Tensor:
    return latents.detach().flatten(1)


def _in_blocks(f: Function, latents: Tensor, batch_size: int, read: Callable[..., Tensor], *more: Tensor) -> Tensor:
    """Apply `read` to linearisations of f at latents `(m, *latent_shape)`, in blocks that fit into memory; `(m,)`."""
    check_counts(batch_size=batch_size)
    d = latents[0].numel() if len(latents) else 1
    rows = max(1, MEMORY // (latents.element_size() * d * (min(CAPACITY, d) + 1)))
    rows = min(rows, apart(f, batch_size).batch_size or rows)
    blocks: list[Any] = [
        read(Linearisation(f, latents[i : i + rows]), *(tensor[i : i + rows] for tensor in more))
        for i in range(0, len(latents), rows)
    ]
    return torch.cat(blocks) if blocks else latents.new_zeros(0)
