"""Steps that orbits take to come near their attractor, measured and estimated from the Jacobian there."""

from typing import Any

import torch
from torch import Tensor

from fmprobe.dynamics.attractors import Attractors

FEWEST = 3  # points of a correlation


class Approach:
    """An observer of `iterate` that keeps the first step at which each orbit is within `eps` of its attractor.

    Attributes:
        initial: Euclidean distance of each start from its attractor, float64 `(n,)`; inf where it has none.
        steps: that step, `(n,)`; 0 for a start within `eps`, -1 for an orbit that has not come within it.
    """

    def __init__(self, starts: Tensor, found: Attractors, eps: float) -> None:
        self.found, self.eps = found, eps
        every = torch.arange(len(starts), device=starts.device)
        self.initial = self._distance(every, starts)
        self._taken = torch.zeros_like(every)
        self.steps = torch.where(self.initial <= eps, 0, -1)

    def __call__(self, indices: Tensor, before: Tensor, after: Tensor) -> None:
        self._taken[indices] += 1
        first = (self.steps[indices] < 0) & (self._distance(indices, after) <= self.eps)
        self.steps[indices[first]] = self._taken[indices[first]]

    def _distance(self, indices: Tensor, latents: Tensor) -> Tensor:
        labels = self.found.labels[indices]
        distance = torch.full((len(indices),), torch.inf, dtype=torch.float64, device=latents.device)
        ends = self.found.latents[labels[labels >= 0]]
        distance[labels >= 0] = torch.linalg.vector_norm((latents[labels >= 0] - ends).flatten(1).double(), dim=1)
        return distance

    def against(self, rho: Tensor) -> tuple[dict[str, Any], dict[str, int]]:
        """The measured steps beside log(eps / ||z_0 - z*||) / log(rho) (Fumero et al., ICLR 2026, prop. A.9).

        Args:
            rho: rate of each attractor, `(m,)`.

        Returns:
            `measured` and `estimated` steps of the starts that have an estimate, the median of their ratio and their
            correlations; and the number of starts without an estimate, by reason.
        """
        rates = self._rates(rho)
        left, counts = torch.ones_like(rates, dtype=torch.bool), {}
        for reason, mask in self._reasons(rates).items():
            counts[reason] = int((left & mask).sum())
            left = left & ~mask
        measured = self.steps[left].double()
        estimated = (self.eps / self.initial[left]).log() / rates[left].log()
        ratio = float((measured / estimated).quantile(0.5)) if len(measured) else None
        points = {"measured": measured.long().tolist(), "estimated": estimated.tolist(), "median_ratio": ratio}
        return points | _correlations(measured, estimated), counts

    def _rates(self, rho: Tensor) -> Tensor:
        """The rate of each start's attractor, float64 `(n,)`; nan where it has none."""
        labels = self.found.labels
        rates = torch.full(labels.shape, torch.nan, dtype=torch.float64, device=labels.device)
        rates[labels >= 0] = rho[labels[labels >= 0]].double()
        return rates

    def _reasons(self, rates: Tensor) -> dict[str, Tensor]:
        """Why a start has no estimate: the first reason that holds counts."""
        reached = self.found.labels >= 0
        known = torch.zeros_like(reached)
        known[reached] = (self.found.errors <= self.eps / 10)[self.found.labels[reached]]
        return {
            "no attractor": ~reached,
            "attractor not known to a tenth of eps": reached & ~known,
            "rho not known or zero": ~(rates > 0),
            "rho 1 or more": rates >= 1,
            "started within eps": self.steps == 0,
            "did not come within eps": self.steps < 0,
        }


def _correlations(a: Tensor, b: Tensor) -> dict[str, float | None]:
    from scipy.stats import pearsonr, spearmanr

    if len(a) < FEWEST or float(a.std()) == 0 or float(b.std()) == 0:
        return {"pearson": None, "spearman": None}
    x, y = a.cpu().numpy(), b.cpu().numpy()
    found: list[Any] = [pearsonr(x, y), spearmanr(x, y)]
    return {"pearson": float(found[0].statistic), "spearman": float(found[1].statistic)}
