"""Iterating on where an orbit met the tolerance but may still be far from its fixed point."""

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from fmprobe.dynamics.iterate import iterate
from fmprobe.dynamics.jacobian import Function
from fmprobe.dynamics.orbits import Orbits, Status


def iterate_on(f: Function, orbits: Orbits, target: Tensor) -> Orbits:
    """The orbits, those CONVERGED with an error above `target` `(n,)` iterated on until it is below.

    Each goes on under a tolerance as much smaller as its error is too large. Nothing is spent on an orbit that, at its
    rate, cannot arrive within the protocol's `max_steps` in all. One that still meets the protocol's tolerance stays
    CONVERGED, whatever its error.
    """
    tol, measure, max_steps, batch_size = (orbits.protocol[k] for k in ("tol", "measure", "max_steps", "batch_size"))
    for _ in range(6):
        late = orbits.converged & (orbits.errors > target)
        rows = (late & (orbits.steps + _steps_needed(orbits, target, measure) <= max_steps)).nonzero()[:, 0]
        if not len(rows):
            break
        share = (target / orbits.errors).nan_to_num(nan=0.0)[rows].clamp(min=1e-3)
        tols = (orbits.residuals[rows] * (share**2 if measure == "squared" else share)).clamp(max=tol)
        budget = int((max_steps - orbits.steps[rows]).max())
        before = orbits.errors[rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a tolerance under the resolution is of our own making
            more = iterate(
                f,
                orbits.ends[rows],
                tol=tols,
                measure=measure,
                max_steps=budget,
                batch_size=batch_size,
                progress=False,
            )
        orbits = _joined(orbits, rows, more, tol)
        if not bool((orbits.errors[rows] < before).any()):
            break
    return orbits


def _steps_needed(orbits: Orbits, target: Tensor, measure: str) -> Tensor:
    """Steps to go at the present rate (Fumero et al., ICLR 2026, prop. A.9); 1 where the rate is not known."""
    step = orbits.residuals.double()
    if measure == "squared":
        step = step.sqrt()
    elif measure == "rms":
        step = step * math.sqrt(orbits.ends[0:1].numel())
    else:
        step = step * torch.linalg.vector_norm(orbits.ends.flatten(1), dim=1)
    errors = orbits.errors.double()
    rate = errors / (step + errors)  # error = step * rate / (1 - rate)
    needed = (target / errors).log() / rate.log()
    return needed.nan_to_num(nan=1.0, posinf=1.0, neginf=1.0).clamp(min=1.0)


def _joined(orbits: Orbits, rows: Tensor, more: Orbits, tol: float) -> Orbits:
    """`more` taken over into the rows it went on from."""
    fields = {}
    # What it became counts, unless it merely ran out of steps on the way to the smaller tolerance.
    status = torch.where(more.residuals < tol, int(Status.CONVERGED), more.status)
    errors = torch.where(more.converged, more.errors, torch.where(more.residuals < tol, orbits.errors[rows], torch.nan))
    for name, values in (
        ("ends", more.ends),
        ("steps", orbits.steps[rows] + more.steps),
        ("residuals", more.residuals),
        ("status", status),
        ("errors", errors),
        ("periods", torch.where(status == Status.CYCLE, more.periods, 0)),
    ):
        whole = getattr(orbits, name).clone()
        whole[rows] = values
        fields[name] = whole
    return replace(
        orbits,
        **fields,
        evaluations=orbits.evaluations + more.evaluations,
        surplus=orbits.surplus + more.surplus,
        check_evaluations=orbits.check_evaluations + more.check_evaluations,
    )
