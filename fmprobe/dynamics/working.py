"""The working batch of the engine: the orbits in progress, one row each, advanced together and judged separately."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fmprobe.dynamics.norms import norms, quick_norms
from fmprobe.dynamics.orbits import Rules, Status

RUNNING = -1
OUT_OF_STEPS = -2  # becomes SLOW or WANDERING when the orbit leaves the batch
HISTORY = 4096  # number of steps kept of an orbit; longer runs keep every k-th
RECENT = 10  # number of last steps by which a gradual approach is told from a chance landing


@dataclass(frozen=True)
class Criterion:
    """What ends an orbit: the measure of a step, and the rules.

    Attributes:
        measure: measure of a step.
        samples: largest number of steps that are kept of an orbit.
        dimension: number of values of a latent.
        resolution: relative resolution of the latents' arithmetic.
        rules: thresholds of the verdicts.
    """

    measure: str
    samples: int
    dimension: int
    resolution: float
    rules: Rules

    @classmethod
    def make(cls, latents: Tensor, measure: str, max_steps: int, rules: Rules) -> "Criterion":
        """The criterion for latents `(n, d)` that take at most `max_steps`."""
        return cls(measure, min(max_steps, HISTORY), latents.shape[1], torch.finfo(latents.dtype).eps, rules)

    def of(self, distance: Tensor, norm: Tensor, peak: Tensor) -> Tensor:
        """Size of a step in the chosen measure.

        Args:
            distance: norm of the step.
            norm: norm of the latent that it left.
            peak: largest norm on the orbit.
        """
        if self.measure == "squared":
            return distance.square()
        if self.measure == "rms":
            return distance / math.sqrt(self.dimension)
        # At an attractor in the origin the norm vanishes together with the step. So it is bounded from below.
        return distance / torch.maximum(norm, peak * self.resolution).clamp(min=torch.finfo(norm.dtype).tiny)


@dataclass
class WorkingBatch:
    """Rows of orbits in progress. Every field has the row as its first axis.

    Everything but the latents is kept in float64 or in whole numbers. The square of a float32 fits into float64, so the
    verdict on an orbit does not depend on its scale.

    Cycles are found by Brent's method (1980). An anchor is kept from a step that is a power of two, and every latent is
    compared with it, so memory does not grow with the period. A return near the anchor makes a candidate period, which
    is confirmed over two more returns. (Brent's own test is an exact return, which a converging orbit never shows.)
    """

    index: Tensor  # the start that the orbit belongs to
    born: Tensor  # number of calls of f before its first
    latents: Tensor  # (B, d), the last finite latents
    tol: Tensor
    budget: Tensor  # number of steps that it may take
    outcome: Tensor  # RUNNING, OUT_OF_STEPS or a Status
    steps: Tensor
    step: Tensor  # norm of the last step
    residual: Tensor  # size of the last step in the chosen measure
    norm: Tensor
    peak: Tensor  # largest norm on the orbit
    limit: Tensor  # norm beyond which the orbit has diverged
    unmoved: Tensor  # share of the coordinates that the step at which an orbit converged left exactly as they were
    history: Tensor  # (B, samples), logs of the steps
    recent: Tensor  # (B, RECENT), logs of the last steps, the newest last
    was_small: Tensor  # whether the last step was below tol
    anchor: Tensor  # (B, d)
    age: Tensor  # number of steps since the anchor
    window: Tensor  # age at which the anchor moves on
    youngest: Tensor  # shortest period still to be tried; shorter ones were rejected from this anchor
    period: Tensor
    returns: Tensor  # number of returns of the candidate period that have held; 0 means that none is pending
    gap: Tensor  # distance of the last return
    ratio: Tensor  # largest ratio of successive returns
    amplitude: Tensor  # largest step since the candidate

    @classmethod
    def start(
        cls, latents: Tensor, index: Tensor, tol: Tensor, budget: Tensor, criterion: Criterion, born: int = 0
    ) -> "WorkingBatch":
        """Fresh rows at `latents` `(B, d)`, after `born` calls of f. A start that is not finite has diverged."""
        n = len(latents)
        norm = norms(latents)
        zeros = torch.zeros_like(norm)
        count = torch.zeros(n, dtype=torch.long, device=latents.device)
        outcome = torch.where(norm.isfinite(), RUNNING, int(Status.DIVERGED))
        return cls(
            index=index.clone(),
            born=count + born,
            latents=latents.clone(),
            tol=tol.double(),
            budget=budget.clone(),
            outcome=outcome,
            steps=count.clone(),
            step=zeros + math.inf,
            residual=zeros + math.inf,
            norm=norm,
            peak=norm.clone(),
            limit=criterion.rules.divergence_factor * norm.clamp(min=math.sqrt(criterion.dimension)),
            unmoved=zeros.clone(),
            history=norm.new_zeros(n, criterion.samples),
            recent=norm.new_full((n, RECENT), math.inf),
            was_small=torch.zeros_like(norm, dtype=torch.bool),
            anchor=latents.clone(),
            age=count.clone(),
            window=count + 2,
            youngest=count + 2,
            period=count.clone(),
            returns=count.clone(),
            gap=zeros.clone(),
            ratio=zeros.clone(),
            amplitude=zeros.clone(),
        )

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, chosen: Tensor) -> "WorkingBatch":
        """A copy of the chosen rows."""
        return WorkingBatch(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def put(self, rows: Tensor, fresh: "WorkingBatch") -> None:
        """Overwrite `rows` with fresh ones."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(fresh, field.name)

    def advance(self, after: Tensor, criterion: Criterion, scratch: Tensor) -> None:
        """Take the values of f `(B, d)` as the next latents. Rows that have ended stay as they are.

        `scratch` `(B, d)` is overwritten, because fresh memory for every difference would cost more than the
        arithmetic.
        """
        active = self.outcome == RUNNING
        change = torch.sub(after, self.latents, out=scratch)
        step, norm = quick_norms(change), quick_norms(after)
        finite = norm.isfinite()
        # The difference of two finite latents may overflow. The sum of their norms bounds it.
        step = torch.where(finite & ~step.isfinite(), norm + self.norm, step)
        moved = active & finite
        residual = criterion.of(step, self.norm, torch.maximum(self.peak, norm))
        self.steps += active
        if self._may_hold(~moved):
            self._record(step, moved)
            self.residual = torch.where(moved, residual, torch.where(active, math.inf, self.residual))
            self.step = torch.where(moved, step, torch.where(active, math.inf, self.step))
            self.norm = torch.where(moved, norm, self.norm)
        else:
            self._record(step, None)
            self.residual, self.step, self.norm = residual, step, norm
        self.peak = torch.maximum(self.peak, torch.where(moved, norm, 0.0))

        diverged = active & (~finite | (norm > self.limit))
        small, settled = residual < self.tol, step == 0
        if self._may_hold(small):
            settled |= small & (self._approached() | self._stayed())
        converged = moved & ~diverged & settled
        if self._may_hold(converged):
            moving = change.bool().sum(1) / criterion.dimension  # a third of the time of count_nonzero
            self.unmoved = torch.where(converged, 1 - moving.double(), self.unmoved)
        cycle = self._seek_cycle(after, moved & ~diverged & ~converged, criterion, scratch)
        self.was_small = torch.where(active, small, self.was_small)
        spent = active & (self.steps >= self.budget)
        torch.where(moved[:, None], after, self.latents, out=self.latents)
        if not self._may_hold(spent | cycle | converged | diverged):
            return
        # A later line overrules an earlier one: an orbit that meets a criterion on its last step has met it.
        for mask, outcome in (
            (spent, OUT_OF_STEPS),
            (cycle, Status.CYCLE),
            (converged, Status.CONVERGED),
            (diverged, Status.DIVERGED),
        ):
            self.outcome = torch.where(mask, int(outcome), self.outcome)

    def _may_hold(self, mask: Tensor) -> bool:
        """Whether a mask may hold for some row. On an accelerator it always may: to look would mean to wait.

        What is left out where it does not hold would leave every row as it is. At most steps nothing happens, and with
        small maps these operations would take longer than f.
        """
        return self.latents.device.type != "cpu" or bool(mask.any())

    @property
    def stride(self) -> Tensor:
        """Number of steps between samples of the history, `(B,)`, by the budget of each row."""
        return (self.budget + HISTORY - 1) // HISTORY

    def last_sample(self) -> Tensor:
        """Index `(B,)` into `history` of the last step taken."""
        return ((self.steps - 1) // self.stride).clamp(min=0)

    def _record(self, step: Tensor, moved: Tensor | None) -> None:
        """Record the step of the rows that moved; None for all of them."""
        at, logs = self.last_sample()[:, None], step.log()[:, None]
        recent = torch.cat([self.recent[:, 1:], logs], dim=1)
        if moved is not None:
            logs = torch.where(moved[:, None], logs, self.history.gather(1, at))
            recent = torch.where(moved[:, None], recent, self.recent)
        self.history.scatter_(1, at, logs)
        self.recent = recent

    def _approached(self) -> Tensor:
        """Tell whether the last step belongs to a gradual approach, rather than to a chance landing near a fixed point.

        A chaotic orbit lands near its unstable fixed points now and then, coming from steps as large as any. In an
        approach, the step before was about the lowest in its window. And the fall of the last step, in logarithms, is
        at most twice the largest earlier fall (Newton's rate) plus 1.
        """
        before, fall = self.recent[:, :-1], self.recent[:, -2] - self.recent[:, -1]
        falls = (before[:, :-1] - before[:, 1:]).nan_to_num(nan=0.0, posinf=0.0)
        low = before[:, -1] <= before[:, :-1].amin(1) + 1
        return (self.steps > 2) & low & (fall > 0) & (fall <= 2 * falls.amax(1) + 1)

    def _stayed(self) -> Tensor:
        """Tell whether the step was small before and did not grow. Near an unstable fixed point it would grow."""
        return (self.recent[:, -1] <= self.recent[:, -2]) & self.was_small

    def _seek_cycle(self, after: Tensor, active: Tensor, criterion: Criterion, scratch: Tensor) -> Tensor:
        """Do one step of Brent's search; return whether a cycle is confirmed."""
        rules = criterion.rules
        self.age += active
        gap = quick_norms(torch.sub(after, self.anchor, out=scratch))
        near = (criterion.of(gap, self.norm, self.peak) < self.tol) & (gap < rules.return_share * self.step)
        pending = active & (self.returns > 0)
        candidate = active & ~pending & near & (self.age >= self.youngest)
        expired = active & ~pending & ~candidate & (self.age >= self.window)
        if not self._may_hold(pending | candidate | expired):
            return torch.zeros_like(active)

        self.amplitude = torch.where(pending, torch.maximum(self.amplitude, self.step), self.amplitude)
        due = pending & (self.age == self.period)
        held = due & near
        growth = (gap / self.gap).nan_to_num(nan=0.0, posinf=math.inf)  # 0/0 stands for an exact return
        self.ratio = torch.where(held, torch.maximum(self.ratio, growth), self.ratio)
        confirmed = held & (self.returns == 2) & self._drift_is_small(gap, criterion)
        failed = due & ~confirmed & (~near | (self.returns == 2))

        self.period = torch.where(candidate, self.age, self.period)
        self.youngest = torch.where(failed, self.period + 1, torch.where(expired, 2, self.youngest))
        self.window = torch.where(expired, 2 * self.window, self.window)
        self.amplitude = torch.where(candidate, self.step, self.amplitude)
        self.ratio = torch.where(candidate, 0.0, self.ratio)
        self.gap = torch.where(candidate | held, gap, self.gap)
        self.returns = torch.where(failed, 0, torch.where(candidate, 1, self.returns + held))
        moved_on = candidate | due | expired
        torch.where(moved_on[:, None], after, self.anchor, out=self.anchor)
        self.age = torch.where(moved_on, 0, self.age)
        return confirmed

    def _drift_is_small(self, gap: Tensor, criterion: Criterion) -> Tensor:
        """Tell whether the returns, extrapolated geometrically, move the orbit by little compared with its amplitude.

        Three equal returns of a quasi-periodic orbit, or of a slow flip, would add up without bound. Returns that are
        rounding alone are ignored.
        """
        drift = gap * self.ratio / (1 - self.ratio)
        drift = torch.where(self.ratio < 1, drift, math.inf)
        rounding = gap <= 32 * criterion.resolution * self.norm
        return rounding | (drift <= criterion.rules.drift_share * self.amplitude)
