"""The Jacobian J_f without forming it: spectral radius, spectral norm and distance to the fixed point."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmprobe.dynamics.calls import apart

Function = Callable[[Tensor], Tensor]
MEMORY = 2**28  # bytes of Krylov vectors at a time
MAX_ITERATIONS = 64
CUT = "f cuts the gradient: is there a no_grad or a detach inside?"


class NotDifferentiableError(RuntimeError):
    """f has no derivative that autograd can give."""


class Linearisation:
    """J_f at each of a batch of latents `(m, *latent_shape)`, as products with flat vectors `(m, d)`.

    f is evaluated once; every product is a pass through the graph it left.
    """

    def __init__(self, f: Function, latents: Tensor) -> None:
        self.f, self.shape = apart(f), latents.shape
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

    def vjp(self, vectors: Tensor) -> Tensor:
        """v J, row by row."""
        cotangent = vectors.reshape(self.shape).to(self.values.dtype)
        (product,) = torch.autograd.grad(self.values, self.latents, cotangent, retain_graph=True, allow_unused=True)
        if product is None:  # the values want a gradient of f's parameters alone
            raise NotDifferentiableError(CUT)
        return product.reshape(vectors.shape)

    def jvp(self, vectors: Tensor) -> Tensor:
        """J v, row by row: forward mode, or twice backward where an operator of f lacks it."""
        if self._forward_mode:
            try:
                with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # torch's own, on loading its forward-mode rules
                    point, tangent = self.latents.detach(), vectors.reshape(self.shape)
                    product = torch.func.jvp(self.f, (point,), (tangent,))[1]
                return product.detach().to(vectors.dtype).reshape(vectors.shape)
            except (RuntimeError, NotImplementedError):
                self._forward_mode = False
        return self._twice_backward(vectors)

    def _twice_backward(self, vectors: Tensor) -> Tensor:
        try:
            if self._dual is None:
                # u -> u J is linear in u, so its own derivative along v is J v, whatever u.
                dummy = torch.zeros_like(self.values, requires_grad=True)
                with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                    (back,) = torch.autograd.grad(self.values, self.latents, dummy, create_graph=True)
                self._dual = dummy, back
            dummy, back = self._dual
            (product,) = torch.autograd.grad(back, dummy, vectors.reshape(self.shape), retain_graph=True)
        except RuntimeError as error:
            raise NotDifferentiableError(f"f can be differentiated neither forward nor twice: {error}") from error
        return product.to(vectors.dtype).reshape(vectors.shape)


def spectral_radius(f: Function, latents: Tensor, tol: float = 1e-3) -> Tensor:
    """Largest modulus of the eigenvalues of J_f at each latent, `(m,)`, by Arnoldi iteration on backward mode.

    J and its transpose share their spectrum, so backward mode is enough. A fixed point is an attractor if it is below 1
    (Fumero et al., ICLR 2026, def. 2). Stops when no estimate changes by more than `tol`. Raises
    NotDifferentiableError.
    """
    return _in_blocks(f, latents, lambda line: _extreme(line.vjp, line, tol))


def spectral_norm(f: Function, latents: Tensor, tol: float = 1e-3) -> Tensor:
    """Largest singular value of J_f at each latent, `(m,)`, by Lanczos iteration on J^T J; below 1, f contracts there
    (Fumero et al., ICLR 2026, def. 3). Raises NotDifferentiableError.
    """

    def norm(line: Linearisation) -> Tensor:
        return _extreme(lambda v: line.vjp(line.jvp(v)), line, tol).clamp(min=0).sqrt()

    return _in_blocks(f, latents, norm)


def distance_to_fixed_point(f: Function, latents: Tensor, radius: Tensor, tol: float = 1e-6) -> Tensor:
    """Norm of Newton's correction (I - J)^{-1} (f(z) - z), `(m,)`, by GMRES (Saad and Schultz 1986).

    Unlike a rate of the steps it sees slow modes that hide under fast ones, and non-normal maps. What GMRES leaves
    unsolved is added, times 1/|1 - radius|. Raises NotDifferentiableError.
    """

    def distance(line: Linearisation, radius: Tensor) -> Tensor:
        residual = (line.values - line.latents).detach().reshape(len(radius), -1)
        size = torch.linalg.vector_norm(residual, dim=1).double()
        krylov = Krylov(lambda v: v - line.jvp(v), residual)
        correction = left = torch.zeros_like(size)
        for k in range(1, min(MAX_ITERATIONS, residual.shape[1]) + 1):
            krylov.extend()
            correction, left = _least_squares(krylov.hessenberg[:, : k + 1, :k], size)
            if bool((left <= tol * size).all()):
                break
        slack = (1 - radius.double()).abs().clamp(min=torch.finfo(latents.dtype).eps)
        return (correction + left / slack).to(latents.dtype)

    return _in_blocks(f, latents, distance, radius)


class Krylov:
    """Orthonormal Krylov bases of many rows at once (Arnoldi 1951), Gram-Schmidt done twice for float32's sake.

    `basis` `(m, K+1, d)` and `hessenberg` `(m, K+1, K)`, of which the first `k` columns are valid. A row whose space is
    exhausted goes on with zeros.
    """

    def __init__(self, apply: Function, start: Tensor) -> None:
        m, d = start.shape
        steps = min(MAX_ITERATIONS, d)
        self.apply, self.k = apply, 0
        self.basis = start.new_zeros(m, steps + 1, d)
        self.hessenberg = torch.zeros(m, steps + 1, steps, dtype=torch.float64, device=start.device)
        self.basis[:, 0] = _unit(start, torch.linalg.vector_norm(start, dim=1))

    def extend(self) -> None:
        known, vector = self.basis[:, : self.k + 1], self.apply(self.basis[:, self.k].contiguous())
        before = torch.linalg.vector_norm(vector, dim=1)
        for _ in range(2):
            along = torch.einsum("mkd,md->mk", known, vector)
            vector = vector - torch.einsum("mk,mkd->md", along, known)
            self.hessenberg[:, : self.k + 1, self.k] += along.double()
        norm = torch.linalg.vector_norm(vector, dim=1)
        # What is left of an invariant subspace is rounding, and must not become a direction.
        norm = torch.where(norm > 16 * torch.finfo(norm.dtype).eps * before, norm, 0.0)
        self.hessenberg[:, self.k + 1, self.k] = norm.double()
        self.basis[:, self.k + 1] = _unit(vector, norm)
        self.k += 1


def _extreme(apply: Function, line: Linearisation, tol: float) -> Tensor:
    """Largest modulus of the eigenvalues of a linear map at each row."""
    m, d = line.shape[0], line.shape[1:].numel()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, d, generator=generator).expand(m, d).to(line.latents.detach())
    krylov, estimate, steady = Krylov(apply, start), line.latents.new_zeros(m).double(), 0
    for k in range(1, min(MAX_ITERATIONS, d) + 1):
        krylov.extend()
        before, estimate = estimate, torch.linalg.eigvals(krylov.hessenberg[:, :k, :k]).abs().amax(1)
        steady = steady + 1 if bool(((estimate - before).abs() <= tol * estimate).all()) else 0
        if steady == 3:
            break
    return estimate.to(line.latents.dtype)


def _least_squares(hessenberg: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """GMRES's small problem: norms of the solution and of what it leaves, `(m,)` each."""
    target = torch.zeros(hessenberg.shape[:2], dtype=hessenberg.dtype, device=hessenberg.device)
    target[:, 0] = size
    solution = torch.einsum("mkj,mj->mk", torch.linalg.pinv(hessenberg), target)
    left = target - torch.einsum("mjk,mk->mj", hessenberg, solution)
    return torch.linalg.vector_norm(solution, dim=1), torch.linalg.vector_norm(left, dim=1)


def _unit(vectors: Tensor, norms: Tensor) -> Tensor:
    return torch.where(norms[:, None] > 0, vectors / norms[:, None], 0.0)


def _in_blocks(f: Function, latents: Tensor, read: Callable[..., Tensor], *more: Tensor) -> Tensor:
    d = latents[0].numel() if len(latents) else 1
    rows = max(1, MEMORY // (latents.element_size() * d * (min(MAX_ITERATIONS, d) + 1)))
    blocks = [
        read(Linearisation(f, latents[i : i + rows]), *(tensor[i : i + rows] for tensor in more))
        for i in range(0, len(latents), rows)
    ]
    return torch.cat(blocks) if blocks else latents.new_zeros(0)
