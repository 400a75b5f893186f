"""Iterating on where an orbit met the tolerance but may still be far from its fixed point."""

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.iterate import iterate
from fmprobe.dynamics.norms import norms
from fmprobe.dynamics.orbits import Orbits, Status
from fmprobe.dynamics.paging import forget

AT_ONCE = 1024  # orbits in memory together


def iterate_on(f: Function, orbits: Orbits, target: Tensor, device: torch.device) -> Orbits:
    """The orbits, those CONVERGED with an error above `target` `(n,)` iterated on until it is below, on `device`.

    Each goes on under a tolerance as much smaller as its error is too large; its end is overwritten. Nothing is spent
    on an orbit that, at its rate, cannot arrive within the protocol's `max_steps` in all, or whose last round did not
    make its error smaller. One that still meets the protocol's tolerance stays CONVERGED, whatever its error. What
    becomes of an orbit does not depend on the others. Raises ValueError where the protocol has no one `tol` and
    `max_steps`.
    """
    tol, measure, max_steps, batch_size = (orbits.protocol[k] for k in ("tol", "measure", "max_steps", "batch_size"))
    if tol is None or max_steps is None:
        raise ValueError("attractors are looked for under one tol and one max_steps: give a number, not one a start")
    helped = torch.ones_like(orbits.converged)
    for _ in range(6):
        late = helped & orbits.converged & (orbits.errors > target)
        rows = (late & (orbits.steps + _steps_needed(orbits, target, measure) <= max_steps)).nonzero()[:, 0]
        if not len(rows):
            break
        before = orbits.errors[rows]
        for some in rows.split(max(batch_size, AT_ONCE)):
            orbits = _joined(orbits, some, _further(f, orbits, some, target, device), tol)
            forget(orbits.ends)
        helped[rows] = orbits.errors[rows] < before
    return orbits


def _further(f: Function, orbits: Orbits, rows: Tensor, target: Tensor, device: torch.device) -> Orbits:
    """Some orbits from their ends on."""
    tol, measure, max_steps, batch_size = (orbits.protocol[k] for k in ("tol", "measure", "max_steps", "batch_size"))
    share = (target / orbits.errors).double().nan_to_num(nan=0.0)[rows].clamp(min=1e-3)
    tols = (orbits.residuals[rows].double() * (share**2 if measure == "squared" else share)).clamp(max=tol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a tolerance under the resolution is of our own making
        return iterate(
            f,
            orbits.ends[rows].to(device),
            tol=tols.to(device),
            measure=measure,
            max_steps=(max_steps - orbits.steps[rows]).to(device),
            batch_size=batch_size,
            progress=False,
        )


def _steps_needed(orbits: Orbits, target: Tensor, measure: str) -> Tensor:
    """Steps to go at the present rate (Fumero et al., ICLR 2026, prop. A.9); 1 where the rate is not known."""
    step = orbits.residuals.double()
    if measure == "squared":
        step = step.sqrt()
    elif measure == "rms":
        step = step * math.sqrt(orbits.ends[0:1].numel())
    else:
        blocks = orbits.ends.flatten(1).split(AT_ONCE)
        step = step * torch.cat([norms(block) for block in blocks])
        forget(orbits.ends)
    errors = orbits.errors.double()
    rate = errors / (step + errors)  # error = step * rate / (1 - rate)
    needed = (target / errors).log() / rate.log()
    return needed.nan_to_num(nan=1.0, posinf=1.0, neginf=1.0).clamp(min=1.0)


def _joined(orbits: Orbits, rows: Tensor, more: Orbits, tol: float) -> Orbits:
    """`more` taken over into the rows it went on from."""
    fields = {}
    moved = {name: getattr(more, name).to(orbits.steps.device) for name in ("steps", "residuals", "status", "errors")}
    # What it became counts, unless it merely ran out of steps on the way to the smaller tolerance.
    arrived = moved["residuals"] < tol
    status = torch.where(arrived, int(Status.CONVERGED), moved["status"])
    errors = torch.where(arrived, orbits.errors[rows], torch.nan)
    errors = torch.where(moved["status"] == Status.CONVERGED, moved["errors"], errors)
    periods = torch.where(status == Status.CYCLE, more.periods.to(status), 0)
    for name, values in (
        ("ends", more.ends),
        ("steps", orbits.steps[rows] + moved["steps"]),
        ("residuals", moved["residuals"]),
        ("status", status),
        ("errors", errors),
        ("periods", periods),
    ):
        whole = getattr(orbits, name)
        whole = whole if name == "ends" else whole.clone()  # the ends may be many, and on disk
        whole[rows] = values.to(whole)
        fields[name] = whole
    return replace(
        orbits,
        **fields,
        evaluations=orbits.evaluations + more.evaluations,
        surplus=orbits.surplus + more.surplus,
        check_evaluations=orbits.check_evaluations + more.check_evaluations,
    )
