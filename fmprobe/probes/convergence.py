"""Convergence: are the steps that an orbit takes those that the Jacobian at its attractor foretells?"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from fmprobe.attractors import find_attractors, noise_starts
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.approach import Approach
from fmprobe.dynamics.iterate import iterate
from fmprobe.errors import InputError
from fmprobe.probes.result import Result


@dataclass(frozen=True)
class Convergence(Result):
    """Measured against estimated steps to within `eps` of the attractor, over the starts that have an estimate.

    `estimates`: by "spectral_norm", the paper's rho = ||J_f(z*)||_sigma, and by "spectral_radius", the rate that holds
    in the end; each with the `measured` steps and the `estimated` ones a start, the correlations `pearson` and
    `spearman` (None where there are fewer than 3 points, or no spread), and `median_ratio`, measured over estimated.
    `left_out`: starts without an estimate, by reason. `eps`: Euclidean error.
    """

    key: ClassVar[str] = "convergence"
    eps: float
    starts: int
    attractors: int
    estimates: dict[str, dict[str, Any]]
    left_out: dict[str, dict[str, int]]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The key `convergence` of `results.json`."""
        return asdict(self)


def probe_convergence(
    model: Any,
    n: int | None = None,
    *,
    starts: Tensor | None = None,
    seed: int = 0,
    eps: float = 1e-2,
    tol: float = 1e-10,
    max_steps: int = 3000,
    batch_size: int = 256,
    **search: Any,
) -> Convergence:
    """Steps until ||z_t - z*|| <= eps against log(eps / ||z_0 - z*||) / log(rho) (Fumero et al., ICLR 2026, prop. A.9).

    `model`: an Autoencoder, or f itself where `starts` `(n, *latent_shape)` are given; else `n` draws of N(0, I) by
    `seed`. Attractors are found to `tol`, far below `eps`; `search`: further arguments of `find_attractors`. Raises
    InputError for an `eps` that is not positive and finite and an `n` that is not the number of `starts`, ValueError as
    `find_attractors` does.
    """
    if starts is not None and n not in (None, len(starts)):
        raise InputError(f"{len(starts)} starts are given, and n={n}: leave out one of them")
    if not 0 < eps < float("inf"):
        raise InputError(f"eps must be positive and finite, got {eps}")
    search = {"progress": False, "stability_cap": 256} | search
    settings: dict[str, Any] = {"tol": tol, "max_steps": max_steps, "batch_size": batch_size}
    if (measure := search.pop("measure", None)) is not None:
        settings["measure"] = measure  # of both searches below
    f = getattr(model, "latent_map", model)
    latents = noise_starts(model, 64 if n is None else n, seed) if starts is None else starts
    found = find_attractors(f, starts=latents, **settings, **search)
    reached = found.labels >= 0
    near = Approach(latents, found, eps)
    if bool(reached.any()):
        iterate(f, latents, observer=near, progress=False, **settings)
    rates = {"spectral_norm": found.spectral_norm, "spectral_radius": found.spectral_radius}
    estimates, left_out = {}, {}
    for name, rho in rates.items():
        estimates[name], left_out[name] = near.against(rho)
    made = Convergence(eps, len(latents), len(found), estimates, left_out, found.orbits.protocol)
    return made.about(model) if isinstance(model, Autoencoder) else made
