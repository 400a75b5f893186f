"""Statistics of the path of a trajectory, which need no attractor."""

import math
from functools import partial

import torch
from torch import Tensor

from fmprobe.dynamics.orbits import Status
from fmprobe.probes.ood.score import Needs, Statistic, Trajectories

TINY = math.sqrt(torch.finfo(torch.float32).tiny)


def mean_log_change(t: Trajectories) -> Tensor:
    """The mean change of the logarithm of the step norm from one step to the next; 0 where it is not finite."""
    changes = (t.steps - 1).clamp(min=1)  # steps counted after the end stand still
    change = t.last_step.clamp(min=TINY).log() - t.first_step.clamp(min=TINY).log()
    return (change / changes).nan_to_num(0, 0, 0)


def settled(t: Trajectories) -> Tensor:
    """1 where the orbit settled, that is, converged to a fixed point; else 0."""
    return (t.status == Status.CONVERGED).double()


_of = partial(Statistic, needs=Needs.ORBIT)

LENGTH = _of(name="length", group="part", two_sided=True, in_profile=4, log="first", of=lambda t: t.bounded(t.length))
# Steps until the orbit ended. An orbit that soon diverged did not settle soon: it gets the largest float.
STEPS = _of(name="steps", group="part", two_sided=True, in_profile=6, of=lambda t: t.bounded(t.steps.double()))
# ||f(z_0) - z_0||
RESIDUAL = _of(name="residual", group="baseline", two_sided=True, in_joined=1, of=lambda t: t.bounded(t.first_step))
# ||z_T - z_0||
MOVED = _of(name="moved", group="inner", in_profile=5, log="first", of=lambda t: t.bounded(t.moved))
RATE = _of(name="rate", group="inner", in_profile=7, log=None, of=mean_log_change)
SETTLED = _of(name="settled", group="inner", in_profile=8, log=None, of=settled)

SCORES = (LENGTH, STEPS, RESIDUAL, MOVED, RATE, SETTLED)
