"""The distance from the points of a trajectory to the nearest attractor (Fumero et al., ICLR 2026, sec. 4)."""

from functools import partial

from fmprobe.probes.ood.score import Needs, Statistic, bounded

_part = partial(Statistic, group="part", two_sided=True, log="first")

# The published score: 1/N sum_i d(z_i, A) over the points of the trajectory, z_0 included (sec. 4, fig. 5).
MEAN = _part(
    name="mean", needs=Needs.ORBIT, in_profile=2, in_joined=0, of=lambda t: t.bounded(t.total / (t.counted + 1))
)
# What is left of it without a trajectory. It exists for an orbit that diverged from a finite start.
FIRST = _part(name="first", needs=Needs.FIRST_POINT, in_profile=0, of=lambda t: bounded(t.first))
LAST = _part(name="last", needs=Needs.ORBIT, in_profile=1, of=lambda t: t.bounded(t.last))
MAX = _part(name="max", needs=Needs.ORBIT, in_profile=3, of=lambda t: t.bounded(t.largest))

SCORES = (MEAN, FIRST, LAST, MAX)
