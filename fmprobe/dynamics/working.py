"""The working batch of the engine: orbits in flight, one row each, advanced together and judged apart."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fmprobe.dynamics.norms import norms, quick_norms
from fmprobe.dynamics.orbits import Rules, Status

RUNNING = -1
OUT_OF_STEPS = -2  # told apart into SLOW and WANDERING when the orbit leaves the batch
HISTORY = 4096  # samples of the step kept for an orbit; longer runs keep every k-th
RECENT = 10  # last steps that tell a gradual approach from a chance landing


@dataclass(frozen=True)
class Criterion:
    """What ends an orbit: the measure of a step and the rules.

    `samples`: how many of its steps are kept at most. `resolution`: of the latents' arithmetic, relative.
    """

    measure: str
    samples: int
    dimension: int
    resolution: float
    rules: Rules

    @classmethod
    def make(cls, latents: Tensor, measure: str, max_steps: int, rules: Rules) -> "Criterion":
        """For latents `(n, d)` that take `max_steps` at most."""
        return cls(measure, min(max_steps, HISTORY), latents.shape[1], torch.finfo(latents.dtype).eps, rules)

    def of(self, distance: Tensor, norm: Tensor, peak: Tensor) -> Tensor:
        """A step's size in the chosen measure; `norm` of the latent it left, `peak` the largest on its orbit."""
        if self.measure == "squared":
            return distance.square()
        if self.measure == "rms":
            return distance / math.sqrt(self.dimension)
        # At an attractor in the origin the norm vanishes with the step: it is floored at the orbit's resolution.
        return distance / torch.maximum(norm, peak * self.resolution).clamp(min=torch.finfo(norm.dtype).tiny)


@dataclass
class WorkingBatch:
    """Rows of orbits in flight; every field has the row as its first axis.

    All but the latents is kept in float64 (or whole numbers): the square of a float32 fits into it, so that what an
    orbit is called does not depend on its scale.

    Cycles are looked for by Brent's method (1980): an anchor is kept from a step that is a power of two, and every
    latent is compared with it, so memory does not grow with the period. A return near the anchor becomes a candidate
    period, confirmed over two more (Brent's own test is an exact return, which a converging orbit never shows).
    """

    index: Tensor  # which start
    born: Tensor  # calls of f before its first
    latents: Tensor  # (B, d), the last finite ones
    tol: Tensor
    budget: Tensor  # steps that it may take
    outcome: Tensor  # RUNNING, OUT_OF_STEPS or a Status
    steps: Tensor
    step: Tensor  # norm of the last step
    residual: Tensor  # the same in the chosen measure
    norm: Tensor
    peak: Tensor  # largest norm on the orbit
    limit: Tensor  # norm beyond which it has diverged
    unmoved: Tensor  # share of the coordinates that the last step left exactly as they were
    history: Tensor  # (B, samples), log of the step
    recent: Tensor  # (B, RECENT), log of the last steps, the newest last
    was_small: Tensor  # whether the last step was below tol
    anchor: Tensor  # (B, d)
    age: Tensor  # steps since the anchor
    window: Tensor  # age at which the anchor moves on
    youngest: Tensor  # shorter periods were tried from this anchor and rejected
    period: Tensor
    returns: Tensor  # how many returns of the candidate period have held, 0 = none pending
    gap: Tensor  # distance of the last return
    ratio: Tensor  # largest ratio of successive returns
    amplitude: Tensor  # largest step since the candidate

    @classmethod
    def start(
        cls, latents: Tensor, index: Tensor, tol: Tensor, budget: Tensor, criterion: Criterion, born: int = 0
    ) -> "WorkingBatch":
        """Fresh rows at `latents` `(B, d)`, after `born` calls of f; a start that is not finite has diverged."""
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
        """The chosen rows, copied."""
        return WorkingBatch(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def put(self, rows: Tensor, fresh: "WorkingBatch") -> None:
        """Overwrite `rows` by fresh ones."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(fresh, field.name)

    def advance(self, after: Tensor, criterion: Criterion, scratch: Tensor) -> None:
        """Take f's values `(B, d)` as the next latents; rows that have ended stay as they are.

        `scratch` `(B, d)` is overwritten: fresh memory for every difference would cost more than the arithmetic.
        """
        active = self.outcome == RUNNING
        change = torch.sub(after, self.latents, out=scratch)
        step, norm = quick_norms(change), quick_norms(after)
        finite = norm.isfinite()
        # The difference of two finite latents may overflow: their norms bound it.
        step = torch.where(finite & ~step.isfinite(), norm + self.norm, step)
        moved = active & finite
        residual = criterion.of(step, self.norm, torch.maximum(self.peak, norm))
        self.steps += active
        self._record(step, moved)
        self.residual = torch.where(moved, residual, torch.where(active, math.inf, self.residual))
        self.step = torch.where(moved, step, torch.where(active, math.inf, self.step))
        moving = change.bool().sum(1) / criterion.dimension  # a third of the time of count_nonzero
        self.unmoved = torch.where(moved, 1 - moving.double(), self.unmoved)
        self.norm = torch.where(moved, norm, self.norm)
        self.peak = torch.where(moved, torch.maximum(self.peak, norm), self.peak)

        diverged = active & (~finite | (norm > self.limit))
        settled = (step == 0) | ((residual < self.tol) & (self._approached() | self._stayed()))
        converged = moved & ~diverged & settled
        cycle = self._seek_cycle(after, moved & ~diverged & ~converged, criterion, scratch)
        self.was_small = torch.where(active, residual < self.tol, self.was_small)
        spent = active & (self.steps >= self.budget)
        torch.where(moved[:, None], after, self.latents, out=self.latents)
        # The later line wins: an orbit that meets a criterion on its last step has met it.
        for mask, outcome in (
            (spent, OUT_OF_STEPS),
            (cycle, Status.CYCLE),
            (converged, Status.CONVERGED),
            (diverged, Status.DIVERGED),
        ):
            self.outcome = torch.where(mask, int(outcome), self.outcome)

    @property
    def stride(self) -> Tensor:
        """Steps between samples of the history, `(B,)`: by each row's own budget."""
        return (self.budget + HISTORY - 1) // HISTORY

    def last_sample(self) -> Tensor:
        """Index into `history` of the last step taken, `(B,)`."""
        return ((self.steps - 1) // self.stride).clamp(min=0)

    def _record(self, step: Tensor, active: Tensor) -> None:
        at, logs = self.last_sample()[:, None], step.log()[:, None]
        self.history.scatter_(1, at, torch.where(active[:, None], logs, self.history.gather(1, at)))
        self.recent = torch.where(active[:, None], torch.cat([self.recent[:, 1:], logs], dim=1), self.recent)

    def _approached(self) -> Tensor:
        """Whether the last step is one of a fall, rather than a chance landing near a fixed point.

        A chaotic orbit lands near its unstable fixed points now and then, out of steps as large as any. In an
        approach the step before was about the lowest of its time, and the last fell at most twice as far (Newton's
        rate) as some step before, and a factor e.
        """
        before, fall = self.recent[:, :-1], self.recent[:, -2] - self.recent[:, -1]
        falls = (before[:, :-1] - before[:, 1:]).nan_to_num(nan=0.0, posinf=0.0)
        low = before[:, -1] <= before[:, :-1].amin(1) + 1
        return (self.steps > 2) & low & (fall > 0) & (fall <= 2 * falls.amax(1) + 1)

    def _stayed(self) -> Tensor:
        """Whether the step, small already, did not grow: near an unstable fixed point it would."""
        return (self.recent[:, -1] <= self.recent[:, -2]) & self.was_small

    def _seek_cycle(self, after: Tensor, active: Tensor, criterion: Criterion, scratch: Tensor) -> Tensor:
        """One step of Brent's search; true where a cycle is confirmed."""
        rules = criterion.rules
        self.age += active
        gap = quick_norms(torch.sub(after, self.anchor, out=scratch))
        near = (criterion.of(gap, self.norm, self.peak) < self.tol) & (gap < rules.return_share * self.step)
        pending = active & (self.returns > 0)
        self.amplitude = torch.where(pending, torch.maximum(self.amplitude, self.step), self.amplitude)

        candidate = active & ~pending & near & (self.age >= self.youngest)
        due = pending & (self.age == self.period)
        held = due & near
        growth = (gap / self.gap).nan_to_num(nan=0.0, posinf=math.inf)  # 0/0: an exact return
        self.ratio = torch.where(held, torch.maximum(self.ratio, growth), self.ratio)
        confirmed = held & (self.returns == 2) & self._drift_is_small(gap, criterion)
        failed = due & ~confirmed & (~near | (self.returns == 2))
        expired = active & ~pending & ~candidate & (self.age >= self.window)

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
        """Whether the returns, carried on geometrically, move the orbit by little against its own amplitude.

        Three equal returns of a quasi-periodic orbit, or of a slow flip, add up without bound; returns that are
        rounding alone do not count.
        """
        drift = gap * self.ratio / (1 - self.ratio)
        drift = torch.where(self.ratio < 1, drift, math.inf)
        rounding = gap <= 32 * criterion.resolution * self.norm
        return rounding | (drift <= criterion.rules.drift_share * self.amplitude)
