"""The loop of the engine: a working batch that takes new starts and gives up orbits as they end."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function, apart
from fmprobe.dynamics.cycles import examine_cycles
from fmprobe.dynamics.floor import rounding_floor
from fmprobe.dynamics.orbits import Status
from fmprobe.dynamics.verdicts import distance_left, still_falling
from fmprobe.dynamics.working import OUT_OF_STEPS, RUNNING, Criterion, WorkingBatch

RESOLVED = 32  # a step of so many units of the latents' resolution shows that f is computed about as finely
Observer = Callable[[Tensor, Tensor, Tensor], None]
# Gives at most so many starts: index (k,), latents (k, d), tol (k,), largest number of steps (k,).
Take = Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Ended:
    """Orbits that have just ended, k rows in no particular order.

    The fields that are not listed here are rows of `Orbits`.

    Attributes:
        index: `(k,)`; the starts that the orbits belong to.
        evaluations: `(k,)`; rows of f that were computed for each orbit, its steps and the surplus.
        check_evaluations: further rows of f, computed for the verdicts on all of them.
    """

    index: Tensor
    ends: Tensor
    steps: Tensor
    residuals: Tensor
    status: Tensor
    errors: Tensor
    periods: Tensor
    evaluations: Tensor
    check_evaluations: int


class Engine:
    """One run of the engine: the loop, the refilling of the working batch, and the verdicts."""

    def __init__(
        self,
        f: Function,
        shape: torch.Size,
        criterion: Criterion,
        batch_size: int,
        observers: list[Observer],
        check_every: int,
    ) -> None:
        self.f, self.shape, self.criterion = apart(f, batch_size), shape, criterion
        self.batch_size, self.observers, self.check_every = batch_size, observers, check_every
        self.calls = 0

    def go(self, take: Take, keep: Callable[[Ended], None], looked: Callable[[], None]) -> None:
        """Follow every start that `take` gives.

        Args:
            take: gives at most so many further starts. If it gives fewer than asked for, it is asked again when more
                orbits have ended.
            keep: gets the orbits that have ended.
            looked: is called each time ended orbits have been looked for.
        """
        batch = self._fresh(take, self.batch_size)
        scratch = torch.empty_like(batch.latents)
        while len(batch):
            after = self._evaluate(batch)
            batch.advance(after, self.criterion, scratch[: len(batch)])
            self.calls += 1
            if self.calls % self.check_every:
                continue
            done = batch.outcome != RUNNING
            rows = done.nonzero()[:, 0]
            if len(rows):
                keep(self._retire(batch.rows(rows)))
                fresh = self._fresh(take, len(rows))
                batch.put(rows[: len(fresh)], fresh)
                done[rows[: len(fresh)]] = False
                batch = batch.rows((~done).nonzero()[:, 0]) if len(fresh) < len(rows) else batch
            looked()

    def _fresh(self, take: Take, count: int) -> WorkingBatch:
        index, latents, tol, budget = take(count)
        return WorkingBatch.start(latents, index, tol, budget, self.criterion, self.calls)

    def _evaluate(self, batch: WorkingBatch) -> Tensor:
        before = batch.latents.reshape(len(batch), *self.shape)
        after = self.f(before).detach()
        if self.observers:
            rows = (batch.outcome == RUNNING).nonzero()[:, 0]
            for observer in self.observers:
                observer(batch.index[rows], before[rows], after[rows])
        return after.reshape(len(batch), -1)

    def _retire(self, batch: WorkingBatch) -> Ended:
        """Judge the orbits that have ended."""
        status, errors, check_evaluations = self._judge(batch)
        return Ended(
            index=batch.index,
            ends=batch.latents.reshape(len(batch), *self.shape),
            steps=batch.steps,
            residuals=batch.residual.to(batch.latents.dtype),
            status=status,
            errors=errors.to(batch.latents.dtype),
            periods=torch.where(status == Status.CYCLE, batch.period, 0),
            evaluations=self.calls - batch.born,
            check_evaluations=check_evaluations,
        )

    def _judge(self, batch: WorkingBatch) -> tuple[Tensor, Tensor, int]:
        """Return the statuses, the errors, and the number of rows of f that they took."""
        taken = 0
        rules, criterion = self.criterion.rules, self.criterion
        status, last = batch.outcome.clone(), batch.last_sample()
        spent = status == OUT_OF_STEPS
        if spent.any():
            falling = still_falling(batch.history[spent], last[spent], criterion.resolution, rules)
            status[spent] = torch.where(falling, int(Status.SLOW), int(Status.WANDERING))

        # Rounding shows as coordinates that stand still, or as jitter that further steps do not remove.
        amplitude = torch.where(status == Status.CYCLE, batch.amplitude, batch.recent.median(1).values.exp())
        small = amplitude < rules.floor_share * batch.norm
        standing, fine = (status == Status.CONVERGED) & (batch.unmoved >= 0.25), self._steps_are_fine(batch)
        floor = torch.where(standing & fine, rules.floor_factor * criterion.resolution * batch.norm, 0.0)
        suspect = standing & ~fine
        suspect |= ((status == Status.CYCLE) | spent) & small
        rows = suspect.nonzero()[:, 0]
        if len(rows):
            latents = batch.latents[rows].reshape(-1, *self.shape)
            measured, evaluations = rounding_floor(self.f, latents, self.batch_size)
            floor[rows] = measured.double()
            taken += evaluations
        at_floor = suspect & (status != Status.CONVERGED) & (amplitude <= rules.floor_factor * floor)
        status[at_floor] = int(Status.CONVERGED)
        rows = (status == Status.CYCLE).nonzero()[:, 0]
        if len(rows):
            cycling = batch.rows(rows)
            batch.period[rows], repels, evaluations = examine_cycles(self.f, cycling, self.shape, criterion)
            status[rows[repels]] = int(Status.WANDERING)
            taken += evaluations
        return status, self._errors(batch, status, floor, last), taken

    def _steps_are_fine(self, batch: WorkingBatch) -> Tensor:
        """Tell which orbits were seen to move by as little as the latents' own resolution, `(R,)` bool.

        Then coordinates that stand still show the rounding of the latents, and no coarser one inside f. Where the last
        step is exactly zero, the size that it would have had is extrapolated from the two steps before.
        """
        previous, earlier = batch.recent[:, -2].exp(), batch.recent[:, -3].exp()
        due = torch.where(batch.steps > 2, previous * (previous / earlier), math.inf)
        step = torch.where(batch.step > 0, batch.step, due)
        return step <= RESOLVED * self.criterion.resolution * batch.norm

    def _errors(self, batch: WorkingBatch, status: Tensor, floor: Tensor, last: Tensor) -> Tensor:
        """Estimate the distance to the fixed point from the steps that remain and from the rounding in each."""
        rules = self.criterion.rules
        samples = torch.arange(batch.history.shape[1], device=last.device)
        times = torch.minimum((samples + 1) * batch.stride[:, None], batch.steps[:, None])
        # The rate can be read off the steps above the rounding floor only; those below it are noise.
        noise = (rules.floor_factor * floor).log()[:, None]
        above = (batch.history > noise) & (samples <= last[:, None]) & batch.history.isfinite()
        seen = torch.where(above, samples, 0).amax(1)
        left = distance_left(batch.history, seen, times, rules)
        step = torch.where(batch.step > floor, batch.step, 0.0)
        errors = step * left + floor * (1 + left)
        # An orbit may meet a fixed point exactly, before its steps show a rate. The error is then the rounding of f,
        # provided that this is small, as in full precision.
        exact = (batch.step == 0) & left.isinf() & (floor <= 1e-5 * batch.norm)
        errors = torch.where(exact, floor, errors)
        return torch.where(status == Status.CONVERGED, errors.nan_to_num(nan=torch.inf, posinf=torch.inf), torch.nan)
