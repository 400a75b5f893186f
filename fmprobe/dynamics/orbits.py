"""What the engine gives back: a status for every start, and the rules by which it was given."""

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Status(IntEnum):
    """How an orbit ended, decided for each latent alone."""

    CONVERGED = 0
    CYCLE = 1
    SLOW = 2
    WANDERING = 3
    DIVERGED = 4

    @property
    def meaning(self) -> str:
        """One sentence: what it says and what to do about it."""
        return _MEANING[self]


_MEANING = {
    Status.CONVERGED: "the step fell below the tolerance: a fixed point, as near as its error estimate says",
    Status.CYCLE: "a periodic orbit of period 2 or more, confirmed over two further periods; not an attractor point",
    Status.SLOW: "out of steps while the step was still falling: allow more steps",
    Status.WANDERING: "bounded, the step not falling: chaotic or quasi-periodic; more steps will not help",
    Status.DIVERGED: "not finite, or its norm grew beyond the stated factor",
}


@dataclass(frozen=True)
class Rules:
    """Thresholds of the engine's verdicts; every run records them in its protocol.

    The rate rho is taken over `rate_window` successive steps. SLOW: the step fell on `fall_share` of the last
    `fall_window` steps to a new low of the orbit's second half, or the medians of its third and last quarters lie over
    `fall_sigmas` robust standard errors of `fall_blocks` block medians apart. CYCLE: successive returns stay under the
    tolerance and under `return_share` of the step, and their extrapolated sum under `drift_share` of the largest step
    in the cycle; a cycle from which a small disturbance has grown by `cycle_growth` two periods later is a chaotic
    orbit that rounding closed, and WANDERING. DIVERGED: the norm exceeds `divergence_factor` times the larger of the
    start's norm and sqrt(d). Jitter of at most `floor_factor` times the measured rounding floor of f counts as
    converged to that floor; it is looked for where the step is under `floor_share` of the latent's norm.
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
    """The orbits of n starts, row i belonging to start i.

    `ends` `(n, *latent_shape)`: the last finite latent. `steps` `(n,)`: evaluations of f along the orbit. `residuals`
    `(n,)`: the last step in the chosen measure, inf where it was not finite or is too large for their type.
    `status` `(n,)`: values of `Status`.
    `errors` `(n,)`: estimated Euclidean distance to the fixed point for CONVERGED (inf where the rate is not known or
    does not contract), nan otherwise. `periods` `(n,)`: of cycles, 0 otherwise. `evaluations`: rows of f computed along
    orbits, of which `surplus` belonged to orbits that had ended; `check_evaluations`: further rows, spent on measuring
    rounding floors and on examining cycles. `trajectories`: one `(steps + 1, *latent_shape)` tensor a start, if asked
    for.
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
        """Number of starts by status name, zeros included."""
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
    """Everything that decided a status, JSON-ready; None for what each start had a value of its own of."""
    return {
        "measure": measure,
        "tol": tol,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "rules": asdict(rules),
        "torch": torch.__version__,
    }
