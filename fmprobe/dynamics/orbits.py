"""The result of the engine: a status for every start, and the rules by which it was given."""

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Status(IntEnum):
    """How an orbit ended. Each orbit is judged by itself."""

    CONVERGED = 0
    CYCLE = 1
    SLOW = 2
    WANDERING = 3
    DIVERGED = 4

    @property
    def meaning(self) -> str:
        """One sentence: what the status says and what to do about it."""
        return _MEANING[self]


_MEANING = {
    Status.CONVERGED: "the step fell below the tolerance: a fixed point, to within its estimated error",
    Status.CYCLE: "a periodic orbit of period 2 or more, confirmed over two further periods; not a fixed point",
    Status.SLOW: "out of steps while the step was still falling: allow more steps",
    Status.WANDERING: "bounded, but the step does not fall: chaotic or quasi-periodic; more steps will not help",
    Status.DIVERGED: "the latent is not finite, or its norm grew beyond the stated factor",
}


@dataclass(frozen=True)
class Rules:
    """Thresholds of the engine's verdicts. Every run records them in its protocol.

    An orbit that runs out of steps is SLOW if its step was still falling: on `fall_share` of the last `fall_window`
    steps it fell, down to a new low of the orbit's second half; or the medians of its third and last quarters differ by
    more than `fall_sigmas` robust standard errors; or every step of the last quarter is less than half of every step of
    the second. Otherwise the orbit is WANDERING. An orbit of few steps has fewer block medians, of two steps each, and
    needs a larger difference in proportion.

    An orbit is a CYCLE if its successive returns stay below the tolerance and below `return_share` of the step, and if
    their extrapolated sum stays below `drift_share` of the largest step in the cycle. If a small disturbance grows by
    `cycle_growth` within two periods, then the orbit is chaotic and was closed by rounding, so it is WANDERING.

    An orbit is DIVERGED if its norm exceeds `divergence_factor` times the larger of the start's norm and sqrt(d).

    Jitter of at most `floor_factor` times the measured rounding floor of f counts as converged to that floor. It is
    looked for where the step is below `floor_share` of the latent's norm.

    Attributes:
        rate_window: number of successive steps over which the rate rho is taken.
        fall_window: number of last steps that are looked at for a steady fall.
        fall_share: share of these steps that must be smaller than the step before.
        fall_blocks: largest number of block medians in a quarter, from which a standard error is estimated.
        fall_sigmas: number of robust standard errors between the medians of the two quarters.
        return_share: largest return of a cycle, relative to the step.
        drift_share: largest drift of a cycle, relative to its largest step.
        cycle_growth: growth of a disturbance beyond which a cycle repels.
        divergence_factor: growth of the norm beyond which an orbit has diverged.
        floor_factor: largest jitter that counts as converged, relative to the rounding floor.
        floor_share: largest step, relative to the latent's norm, for which the rounding floor is measured.
    """

    rate_window: int = 32
    fall_window: int = 64
    fall_share: float = 0.9
    fall_blocks: int = 16
    fall_sigmas: float = 4.0
    return_share: float = 0.1
    drift_share: float = 0.05
    cycle_growth: float = 2.0
    divergence_factor: float = 1e4
    floor_factor: float = 8.0
    floor_share: float = 0.05


@dataclass(frozen=True)
class Orbits:
    """The orbits of n starts; row i belongs to start i.

    Attributes:
        ends: `(n, *latent_shape)`; the last finite latent of each orbit.
        steps: `(n,)`; number of evaluations of f along the orbit.
        residuals: `(n,)`; size of the last step in the chosen measure. It is inf where the step was not finite or is
            too large for the dtype.
        status: `(n,)`; values of `Status`.
        errors: `(n,)`; estimated Euclidean distance to the fixed point for CONVERGED, else nan. It is inf where the
            rate is not known or does not contract.
        periods: `(n,)`; period of a cycle, 0 for other orbits.
        evaluations: number of rows of f computed along orbits.
        surplus: how many of these rows belonged to orbits that had already ended.
        check_evaluations: number of further rows, spent on measuring rounding floors and on examining cycles.
        protocol: everything that decided a status, as JSON holds it.
        trajectories: one `(steps + 1, *latent_shape)` tensor a start, if asked for.
    """

    ends: Tensor
    steps: Tensor
    residuals: Tensor
    status: Tensor
    errors: Tensor
    periods: Tensor
    evaluations: int
    surplus: int
    check_evaluations: int
    protocol: dict[str, Any]
    trajectories: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def converged(self) -> Tensor:
        """Mask `(n,)` of the starts whose status is CONVERGED."""
        return self.status == Status.CONVERGED

    def counts(self) -> dict[str, int]:
        """Number of starts by name of the status, zeros included."""
        return {status.name.lower(): int((self.status == status).sum()) for status in Status}

    def to_dict(self) -> dict[str, Any]:
        """The summary that `results.json` keeps: counts, and quantiles of the steps."""
        steps = self.steps.double()
        return {
            "starts": len(self),
            "status": self.counts(),
            "steps": {
                "median": float(steps.median()) if len(self) else None,
                "p90": float(steps.quantile(0.9)) if len(self) else None,
                "max": int(steps.max()) if len(self) else None,
            },
            "evaluations": self.evaluations,
            "surplus": self.surplus,
            "check_evaluations": self.check_evaluations,
        }


def protocol_of(
    measure: str, tol: float | None, max_steps: int | None, batch_size: int, rules: Rules
) -> dict[str, Any]:
    """Everything that decided a status, as JSON holds it. A setting that differs between starts is None."""
    return {
        "measure": measure,
        "tol": tol,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "rules": asdict(rules),
        "torch": torch.__version__,
    }
