"""Lyapunov exponents: how fast neighbouring orbits part, which has a value also where no orbit settles."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.checks import check_counts, check_seed, check_starts
from fmprobe.dynamics.forward import forward_product
from fmprobe.dynamics.norms import norms
from fmprobe.progress import progress_of
from fmprobe.seeding import normal_rows

JVP, TWINS = "jvp", "twin orbits"
AGREEMENT = 0.05  # largest median difference of J v from a difference quotient, relative to it, if autograd is right
ASKED = 8  # starts at which J v is compared with difference quotients
NEARER = 1 / 8  # distance of the twins of the second quotient, relative to that of the first
LEAST = 1e-3  # least length on which f is taken to vary, relative to the norm of a latent
Push = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # latents (b, …) and tangents (b, d, k) to those a step later


@dataclass(frozen=True)
class LyapunovExponents:
    """Lyapunov exponents of n orbits, in nats a step.

    Attributes:
        values: `(n, n_exponents)` float64, the largest first; nan where an orbit is not finite, -inf where J_f takes a
            direction to zero.
        standard_errors: their standard errors `(n, n_exponents)`, by the means of about sqrt(steps) batches of
            successive steps.
        growth: logarithms of the growth at each step, `(steps, n, n_exponents)`, whose means over the steps are
            `values`.
        method: "jvp", products with the Jacobian; or "twin orbits", differences of orbits close by.
        protocol: numbers of steps, and the seed.
    """

    values: Tensor
    standard_errors: Tensor
    growth: Tensor
    method: str
    protocol: dict[str, Any]

    @property
    def kaplan_yorke(self) -> Tensor:
        """Kaplan-Yorke dimension of each orbit's limit set, `(n,)` (Kaplan and Yorke 1979).

        It is j + (l_1 + … + l_j) / |l_{j+1}| for the largest j whose sum of exponents is not negative. It is nan where
        the sum of all exponents is not negative, since more exponents would be needed, and where they are nan.
        """
        sums = self.values.cumsum(1)
        ahead = (sums >= 0).long().cumprod(1).sum(1)
        known = (ahead < self.values.shape[1]) & self.values[:, 0].isfinite()
        last = ahead.clamp(max=self.values.shape[1] - 1)[:, None]
        before = torch.where(ahead > 0, sums.gather(1, (last - 1).clamp(min=0))[:, 0], 0.0)
        dimension = ahead + before / self.values.gather(1, last)[:, 0].abs()
        return torch.where(known, dimension, torch.nan)


def lyapunov_exponents(
    f: Any,
    starts: Tensor,
    n_exponents: int = 1,
    *,
    steps: int = 200,
    burn_in: int = 50,
    batch_size: int = 256,
    seed: int = 0,
    method: str | None = None,
    progress: bool | None = None,
) -> LyapunovExponents:
    """The largest Lyapunov exponents of the orbits of starts, by products with the Jacobian and QR.

    Tangent vectors are carried along each orbit by J_f, and made orthonormal again at every step. The mean logarithm of
    the diagonal of R is the exponent (Benettin et al. 1980; Shimada and Nagashima 1979). At a fixed point the largest
    exponent is the logarithm of the spectral radius. It is 0 on a torus, negative on a cycle that attracts, and
    positive where orbits are chaotic. An exponent of a finite orbit is an estimate: `standard_errors` says how certain
    it is.

    J v is obtained in forward mode. Where an operator of f lacks it, and where f cuts the gradient, so that J v is not
    what differences of f show, the tangents are differences of orbits that start close by and are pulled back to that
    distance at every step.

    Args:
        f: the map on a batch of latents, or a model with a latent map.
        starts: starts `(n, *latent_shape)`.
        n_exponents: number of exponents, at most the dimension of the latents.
        steps: number of steps that are averaged over.
        burn_in: number of steps before them, in which an orbit and its tangents approach their limit sets.
        batch_size: largest number of latents in one call of f.
        seed: seed of the first tangents; those of start i depend on the seed and i alone.
        method: "jvp" or "twin orbits"; by default products with the Jacobian where f has them. Twin orbits cost less
            where forward mode is slow, as on the attention of a CPU. They see the rounding of f as well.
        progress: whether to show a progress bar; None shows one on a terminal, and lines elsewhere.

    Raises:
        ValueError: the method is unknown, the starts or a number make no sense, f changes the shape, or there are more
            exponents than dimensions.
    """
    check_starts(starts)
    check_counts(4, steps=steps)
    check_counts(0, burn_in=burn_in)
    check_counts(n_exponents=n_exponents, batch_size=batch_size)
    check_seed(seed)
    if method not in (None, JVP, TWINS):
        raise ValueError(f"unknown method {method!r}: expected {JVP!r} or {TWINS!r}")
    d = starts.shape[1:].numel()
    if n_exponents > d:
        raise ValueError(f"n_exponents must be at most {d}, the dimension of the latents, got {n_exponents}")
    latent_map = apart(getattr(f, "latent_map", f), batch_size)
    growth = torch.empty(steps, len(starts), n_exponents, dtype=torch.float64)
    bar = progress_of("Lyapunov exponents", -(-len(starts) // batch_size) * (burn_in + steps), shown=progress)
    # The fused attention kernels have no forward mode on the CPU.
    attention = nullcontext() if method == TWINS else sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), attention, warnings.catch_warnings(), bar:
        warnings.simplefilter("ignore", FutureWarning)  # torch warns when it loads its forward-mode rules
        used = method or (JVP if _has_jvp(latent_map, starts[:ASKED], seed) else TWINS)
        for first in range(0, len(starts), batch_size):
            block = starts[first : first + batch_size]
            tangents = _drawn(block, n_exponents, seed, first)
            push = _by_jvp(latent_map) if used == JVP else _by_twins(latent_map, _lengths(latent_map, block))
            for t in range(burn_in + steps):
                block, grown, tangents = _step(push, block, tangents)
                if t >= burn_in:
                    growth[t - burn_in, first : first + len(block)] = grown.cpu()
                bar.update(1)
    values, errors = _means(growth)
    protocol = {"steps": steps, "burn_in": burn_in, "seed": seed}
    return LyapunovExponents(values, errors, growth, used, protocol)


def _drawn(block: Tensor, n_exponents: int, seed: int, first: int) -> Tensor:
    """Orthonormal tangents `(b, d, k)` of the starts from index `first` on."""
    b, d = block.flatten(1).shape
    drawn = normal_rows(b, d * n_exponents, seed, "lyapunov: tangents", first)
    return torch.linalg.qr(torch.from_numpy(drawn).reshape(b, d, n_exponents).to(block.device, torch.float64))[0]


def _by_jvp(f: Function) -> Push:
    """A step of f and of its derivative, in forward mode."""

    def push(latents: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        columns, value = [], latents
        for column in tangents.unbind(2):
            direction = column.to(latents.dtype).reshape(latents.shape)
            value, product = forward_product(f, latents, direction)
            columns.append(product.flatten(1).double())
        return value, torch.stack(columns, 2)

    return push


def _lengths(f: Function, starts: Tensor) -> Tensor:
    """The length on which f varies about each start, float64 `(n,)`: that of the first step.

    It says more than the norm of a latent, most of which may be an offset that f hardly changes.
    """
    flat = starts.flatten(1).double()
    sizes = norms(flat)
    first = norms(f(starts).flatten(1).double() - flat)
    sizes = torch.where(sizes > 0, sizes, flat.shape[1] ** 0.5)
    return torch.where(first.isfinite() & (first > 0), first, sizes)


def _by_twins(f: Function, lengths: Tensor, part: float = 1.0) -> Push:
    """A step of f, and of orbits close by whose differences stand for the derivative.

    Args:
        f: the map.
        lengths: the length on which f varies about each start.
        part: the twins' distance, as a part of the usual one. That balances the rounding of the latents, which grows
            with their norm, and the curvature of f, which is relative to its length.
    """

    def push(latents: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        flat = latents.flatten(1)
        size = norms(flat)
        # An orbit may have come to where all is smaller, or to the origin.
        length = torch.maximum(torch.minimum(lengths, size), torch.maximum(LEAST * size, LEAST**2 * lengths))
        distance = part * (torch.finfo(latents.dtype).eps * torch.maximum(size, length)).sqrt() * length.sqrt()
        distance = distance.to(flat)[:, None]
        twins = [(flat + distance * column.to(flat)).reshape(latents.shape) for column in tangents.unbind(2)]
        value, *after = f(torch.cat([latents, *twins])).split(len(latents))
        columns = [
            (moved - value).flatten(1).double() / distance.double() * _stretched(flat, twin, distance)
            for moved, twin in zip(after, twins, strict=True)
        ]
        return value, torch.stack(columns, 2)

    return push


def _stretched(flat: Tensor, twin: Tensor, distance: Tensor) -> Tensor:
    """By how much rounding shortened the distance of a twin, `(b, 1)`."""
    kept = torch.linalg.vector_norm((twin.flatten(1).double() - flat.double()), dim=1)[:, None]
    return torch.where(kept > 0, distance.double() / kept, 1.0)


def _has_jvp(f: Function, starts: Tensor, seed: int) -> bool:
    """Whether forward mode gives the derivative of f at some starts.

    It does not where difference quotients at two distances agree with each other and not with it. Quotients that
    disagree say nothing: the distance is too large for f there, or the rounding of f.
    """
    if not len(starts):
        return True
    lengths, tangents = _lengths(f, starts), _drawn(starts, 1, seed, 0)
    try:
        product = _by_jvp(f)(starts, tangents)[1]
    except (RuntimeError, NotImplementedError):
        return False
    far, near = (_by_twins(f, lengths, part)(starts, tangents)[1] for part in (1.0, NEARER))
    vanishing = torch.finfo(starts.dtype).eps ** 0.5

    def off(a: Tensor, b: Tensor) -> float:
        apart = torch.linalg.vector_norm(a - b, dim=1)
        # Where a direction vanishes, both are rounding.
        apart = torch.where(apart <= vanishing, 0.0, apart / torch.linalg.vector_norm(b, dim=1))
        known = apart[apart.isfinite()]
        return float(known.median()) if len(known) else 0.0

    return off(product, far) <= AGREEMENT or off(near, far) > AGREEMENT / 2


def _step(push: Push, latents: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents a step later, logarithms of the growth `(b, k)`, and the tangents, orthonormal again."""
    after, moved = push(latents, tangents)
    finite = after.flatten(1).isfinite().all(1) & moved.flatten(1).isfinite().all(1)
    moved = torch.where(finite[:, None, None], moved, tangents)
    q, r = torch.linalg.qr(moved)
    grown = r.diagonal(dim1=1, dim2=2).abs().log()
    # A row that is not finite stays so, and the others do not see it.
    after = torch.where(finite.reshape(-1, *[1] * (after.ndim - 1)), after, torch.nan)
    return after, torch.where(finite[:, None], grown, torch.nan), q


def _means(growth: Tensor) -> tuple[Tensor, Tensor]:
    """Means over steps and their standard errors, each `(n, k)`, by batch means (Flegal and Jones 2010).

    Growth at successive steps is correlated, so that the error of the mean is not the deviation over sqrt(steps).
    """
    batches = max(2, int(len(growth) ** 0.5))
    length = len(growth) // batches
    means = growth[-batches * length :].reshape(batches, length, *growth.shape[1:]).mean(1)
    return growth.mean(0), (means.var(0) / batches).sqrt() if means.numel() else growth.mean(0)
