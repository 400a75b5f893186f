"""The readings of a search, within a bounded time: an exponent a start, and the set that orbits move on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmprobe.attractors import AttractorSet
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.readings import read_orbits
from fmprobe.probes.prototypes.limit_set import ORBITS, limit_set
from fmprobe.runs.plan import FEWEST_STEPS, Plan

SECONDS, SECONDS_OF_SET = 20.0, 8.0  # what readings and the set may take on a CPU, about
SECONDS_ACCELERATED = 60.0  # what readings may take on an accelerator, about
STEPS_ACCELERATED, CAP_ACCELERATED = 200, 64
JVP_COST, DECODED_COST = 3.0, 1.5  # a step with one tangent, and a step that is decoded too, in evaluations of f
# Few rungs, since the measured cost of f varies a little from run to run, and the sentence on a run should not.
CAPS, LADDER = (2, 4, 8, 16), (FEWEST_STEPS, 30, 45, 70, 100)
WITH_BURN_IN = 1.5  # steps that are taken for each that is averaged over
FEW_STARTS = 4  # number of starts that are preferred to more steps than the fewest
LEAST_SET = (2, 16)  # orbits and steps, at least, by which a set is described
SET_STEPS = 64


@dataclass(frozen=True)
class Effort:
    """How much is measured of a search, by what f costs.

    Attributes:
        cap: largest number of orbits whose exponent is measured.
        steps: number of steps that an exponent is averaged over.
        orbits: largest number of orbits by which a set is described.
        set_steps: number of steps that these are followed for.
    """

    cap: int
    steps: int
    orbits: int
    set_steps: int


def effort(seconds_per_row: float, device: torch.device) -> Effort:
    """What fits into the time that readings may take, from the plan's cost of f, so that a resumed run reads alike.

    Args:
        seconds_per_row: cost of f, in seconds per latent.
        device: the device of the model.
    """
    cost = max(seconds_per_row, 1e-9)
    if device.type != "cpu":
        affordable = int(SECONDS_ACCELERATED / (JVP_COST * cost * STEPS_ACCELERATED * WITH_BURN_IN))
        return Effort(min(CAP_ACCELERATED, max(FEW_STARTS, affordable)), STEPS_ACCELERATED, ORBITS, SET_STEPS)
    rows = SECONDS / (JVP_COST * cost * WITH_BURN_IN)  # of steps that are averaged over, of all starts together
    cap = _highest(CAPS, min(FEW_STARTS, rows / FEWEST_STEPS), rows / (2 * FEWEST_STEPS))
    steps = _highest(LADDER, rows / cap)
    rows = SECONDS_OF_SET / (DECODED_COST * cost)
    orbits = min(ORBITS, max(LEAST_SET[0], int(rows / SET_STEPS)))
    return Effort(cap, steps, orbits, min(SET_STEPS, max(LEAST_SET[1], int(rows / orbits))))


def _highest(rungs: tuple[int, ...], *most: float) -> int:
    """The highest rung that one of some limits allows, and at least the lowest."""
    return max((rung for rung in rungs if rung <= max(most)), default=rungs[0])


def read_search(model: Autoencoder, attractors: AttractorSet, plan: Plan, folder: Path) -> dict[str, Any]:
    """Read the orbits of a search, and save the pictures of the set that they move on.

    Args:
        model: the model.
        attractors: what the search found.
        plan: the plan of the search.
        folder: the folder of the run.

    Returns:
        The keys `exponent` and, where orbits do not settle, `set`, which belong below `orbits.noise` in `results.json`.
    """
    much = effort(plan.seconds_per_row, model.device)
    readings = read_orbits(
        model, attractors, cap=much.cap, steps=much.steps, batch_size=plan.batch_size, seed=plan.seed
    )
    found = limit_set(
        model, attractors.orbits, readings, most=much.orbits, steps=much.set_steps, batch_size=plan.batch_size
    )
    if found is None:
        return {"exponent": readings.to_dict()}
    found.save(folder)
    return {"exponent": readings.to_dict(), "set": found.to_dict()}
