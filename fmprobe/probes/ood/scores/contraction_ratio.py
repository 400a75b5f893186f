"""The contraction ratio of a trajectory: its last step over its first, ||z_T - z_{T-1}|| / ||z_1 - z_0||."""

import torch
from torch import Tensor

from fmprobe.probes.ood.score import Needs, Statistic, Trajectories


def contraction_ratio(t: Trajectories) -> Tensor:
    """0 for a trajectory that starts at a fixed point; the largest float32 for one that diverged."""
    return t.bounded(t.last_step / t.first_step.clamp(min=torch.finfo(torch.float64).tiny))


SCORES = (Statistic(name="contraction ratio", group="part", needs=Needs.ORBIT, of=contraction_ratio),)
