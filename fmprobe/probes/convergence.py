"""Convergence: are the steps that an orbit takes those that the Jacobian at its attractor foretells?"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet, find_attractors, noise_starts
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.iterate import iterate
from fmprobe.errors import InputError
from fmprobe.probes.result import Result

FEWEST = 3  # points of a correlation


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
    near = _Approach(latents, found, eps)
    if bool(reached.any()):
        iterate(f, latents, observer=near, progress=False, **settings)
    rates = {"spectral_norm": found.spectral_norm, "spectral_radius": found.spectral_radius}
    estimates, left_out = {}, {}
    for name, rho in rates.items():
        estimates[name], left_out[name] = _against(near, found, rho, eps)
    made = Convergence(eps, len(latents), len(found), estimates, left_out, found.orbits.protocol)
    return made.about(model) if isinstance(model, Autoencoder) else made


class _Approach:
    """An observer of `iterate`: the first step at which each orbit is within eps of the attractor that it ends in."""

    def __init__(self, starts: Tensor, found: AttractorSet, eps: float) -> None:
        self.found, self.eps = found, eps
        every = torch.arange(len(starts), device=starts.device)
        self.initial = self._distance(every, starts)
        self.taken = torch.zeros(len(starts), dtype=torch.long, device=starts.device)
        self.steps = torch.where(self.initial <= eps, 0, -1)

    def __call__(self, indices: Tensor, before: Tensor, after: Tensor) -> None:
        self.taken[indices] += 1
        first = (self.steps[indices] < 0) & (self._distance(indices, after) <= self.eps)
        self.steps[indices[first]] = self.taken[indices[first]]

    def _distance(self, indices: Tensor, latents: Tensor) -> Tensor:
        labels = self.found.labels[indices]
        distance = torch.full((len(indices),), torch.inf, dtype=torch.float64, device=latents.device)
        ends = self.found.latents[labels[labels >= 0]]
        distance[labels >= 0] = torch.linalg.vector_norm((latents[labels >= 0] - ends).flatten(1).double(), dim=1)
        return distance


def _against(near: _Approach, found: AttractorSet, rho: Tensor, eps: float) -> tuple[dict[str, Any], dict[str, int]]:
    labels = found.labels
    reached = labels >= 0
    known = torch.zeros_like(reached)
    rates = torch.full(labels.shape, torch.nan, dtype=torch.float64, device=labels.device)
    rates[reached] = rho[labels[reached]].double()
    known[reached] = (found.errors <= eps / 10)[labels[reached]]
    reasons = {
        "no attractor": ~reached,
        "attractor not known to a tenth of eps": reached & ~known,
        "rho not known or zero": ~(rates > 0),
        "rho 1 or more": rates >= 1,
        "started within eps": near.steps == 0,
        "did not come within eps": near.steps < 0,
    }
    left, counts = torch.ones_like(reached), {}
    for name, mask in reasons.items():
        counts[name] = int((left & mask).sum())
        left = left & ~mask
    measured = near.steps[left].double()
    estimated = (eps / near.initial[left]).log() / rates[left].log()
    ratio = float((measured / estimated).median()) if len(measured) else None
    points = {"measured": measured.long().tolist(), "estimated": estimated.tolist(), "median_ratio": ratio}
    return points | _correlations(measured, estimated), counts


def _correlations(a: Tensor, b: Tensor) -> dict[str, float | None]:
    from scipy.stats import pearsonr, spearmanr

    if len(a) < FEWEST or float(a.std()) == 0 or float(b.std()) == 0:
        return {"pearson": None, "spearman": None}
    x, y = a.cpu().numpy(), b.cpu().numpy()
    found: list[Any] = [pearsonr(x, y), spearmanr(x, y)]
    return {"pearson": float(found[0].statistic), "spearman": float(found[1].statistic)}
