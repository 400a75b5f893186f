"""Continue orbits that met the tolerance while their estimated error is still too large."""

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

AT_ONCE = 1024  # number of orbits in memory at a time


def iterate_on(f: Function, orbits: Orbits, target: Tensor, device: torch.device) -> Orbits:
    """Continue the orbits that are CONVERGED with an error above `target`, until their error is below it.

    Each is continued under a smaller tolerance, in proportion to how much its error is too large, and its end is
    overwritten. No step is spent on an orbit that, at its rate, cannot arrive within the protocol's `max_steps` in all,
    nor on one whose error the last round did not reduce. An orbit that still meets the protocol's tolerance stays
    CONVERGED, whatever its error. What becomes of an orbit does not depend on the others.

    Args:
        f: the map, on a batch of latents.
        orbits: the orbits of n starts.
        target: error `(n,)` that each orbit should reach.
        device: the device of f.

    Raises:
        ValueError: the protocol does not have one `tol` and one `max_steps` for all starts.
    """
    tol, measure, max_steps, batch_size = (orbits.protocol[k] for k in ("tol", "measure", "max_steps", "batch_size"))
    if tol is None or max_steps is None:
        raise ValueError("attractors need one tol and one max_steps for all starts: give numbers, not tensors")
    helped = torch.ones_like(orbits.converged)
    for _ in range(6):
        late = helped & orbits.converged & (orbits.errors > target)
        rows = (late & (orbits.steps + _steps_needed(orbits, target, measure) <= max_steps)).nonzero()[:, 0]
        if not len(rows):
            break
        before = orbits.errors[rows]
        for some in rows.split(max(batch_size, AT_ONCE)):
            orbits = _written_back(orbits, some, _continued(f, orbits, some, target, device), tol)
            forget(orbits.ends)
        helped[rows] = orbits.errors[rows] < before
    return orbits


def _continued(f: Function, orbits: Orbits, rows: Tensor, target: Tensor, device: torch.device) -> Orbits:
    """Iterate some orbits on from their ends."""
    tol, measure, max_steps, batch_size = (orbits.protocol[k] for k in ("tol", "measure", "max_steps", "batch_size"))
    share = (target / orbits.errors).double().nan_to_num(nan=0.0)[rows].clamp(min=1e-3)
    tols = (orbits.residuals[rows].double() * (share**2 if measure == "squared" else share)).clamp(max=tol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # we chose the tolerance that lies under the resolution
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
    """Steps to the target at the present rate (Fumero et al., ICLR 2026, prop. A.9); 1 where it is not known."""
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


def _written_back(orbits: Orbits, rows: Tensor, more: Orbits, tol: float) -> Orbits:
    """The orbits, with the rows that were continued as `more` overwritten."""
    fields = {}
    moved = {name: getattr(more, name).to(orbits.steps.device) for name in ("steps", "residuals", "status", "errors")}
    # The new status counts, unless the orbit merely ran out of steps on the way to the smaller tolerance.
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
        whole = whole if name == "ends" else whole.clone()  # the ends may be many and lie on disk
        whole[rows] = values.to(whole)
        fields[name] = whole
    return replace(
        orbits,
        **fields,
        evaluations=orbits.evaluations + more.evaluations,
        surplus=orbits.surplus + more.surplus,
        check_evaluations=orbits.check_evaluations + more.check_evaluations,
    )
