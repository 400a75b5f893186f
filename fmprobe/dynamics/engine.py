"""The engine's loop: a working batch that is refilled from a source of starts and gives up its orbits as they end."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fmprobe.dynamics.calls import apart
from fmprobe.dynamics.cycles import examine_cycles
from fmprobe.dynamics.floor import rounding_floor
from fmprobe.dynamics.orbits import Status
from fmprobe.dynamics.verdicts import distance_left, still_falling
from fmprobe.dynamics.working import OUT_OF_STEPS, RUNNING, Criterion, WorkingBatch

Map = Callable[[Tensor], Tensor]
Observer = Callable[[Tensor, Tensor, Tensor], None]
Take = Callable[[int], tuple[Tensor, Tensor, Tensor]]  # at most so many starts: index (k,), latents (k, d), tol (k,)


@dataclass(frozen=True)
class Ended:
    """Orbits that have just ended, k rows in no order: `index` says of which starts.

    The other fields are rows of `Orbits`; `evaluations` `(k,)`: rows of f computed for each, its steps and the surplus;
    `check_evaluations`: further rows, for the verdicts on all of them.
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
    """One run: the loop, the refilling of the working batch, and the verdicts."""

    def __init__(
        self,
        f: Map,
        shape: torch.Size,
        criterion: Criterion,
        batch_size: int,
        observers: list[Observer],
        check_every: int,
    ) -> None:
        self.f, self.shape, self.criterion = apart(f), shape, criterion
        self.batch_size, self.observers, self.check_every = batch_size, observers, check_every
        self.calls = 0

    def go(self, take: Take, keep: Callable[[Ended], None], looked: Callable[[], None]) -> None:
        """Follow every start that `take` gives; `keep` gets the orbits that ended; `looked` is called after each look.

        A take that gives fewer than asked for is taken up again when further orbits end.
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
        index, latents, tol = take(count)
        return WorkingBatch.start(latents, index, tol, self.criterion, self.calls)

    def _evaluate(self, batch: WorkingBatch) -> Tensor:
        before = batch.latents.reshape(len(batch), *self.shape)
        after = self.f(before)
        if not isinstance(after, Tensor):
            raise ValueError(f"f must give a tensor of the shape of its batch, got a {type(after).__name__}")
        if after.shape != before.shape:
            raise ValueError(
                f"f must keep the shape of its batch: it turned {tuple(before.shape)} into {tuple(after.shape)}"
            )
        after = after.detach().to(before.dtype)
        if self.observers:
            rows = (batch.outcome == RUNNING).nonzero()[:, 0]
            for observer in self.observers:
                observer(batch.index[rows], before[rows], after[rows])
        return after.reshape(len(batch), -1)

    def _retire(self, batch: WorkingBatch) -> Ended:
        """Orbits that have ended, judged."""
        status, errors, check_evaluations = self._judge(batch)
        return Ended(
            index=batch.index,
            ends=batch.latents.reshape(len(batch), *self.shape),
            steps=batch.steps,
            residuals=batch.residual,
            status=status,
            errors=errors.to(batch.latents.dtype),
            periods=torch.where(status == Status.CYCLE, batch.period, 0),
            evaluations=self.calls - batch.born,
            check_evaluations=check_evaluations,
        )

    def _judge(self, batch: WorkingBatch) -> tuple[Tensor, Tensor, int]:
        """Statuses, errors, and the rows of f that they took."""
        taken = 0
        rules, criterion = self.criterion.rules, self.criterion
        resolution = torch.finfo(batch.latents.dtype).eps
        status, last = batch.outcome.clone(), batch.last_sample(criterion)
        spent = status == OUT_OF_STEPS
        if spent.any():
            samples = int(last[spent].max())
            falling = still_falling(batch.history[spent], samples, resolution, rules)
            status[spent] = torch.where(falling, int(Status.SLOW), int(Status.WANDERING))

        # Rounding shows as coordinates that stand still, or as jitter that no further step removes.
        amplitude = torch.where(status == Status.CYCLE, batch.amplitude, batch.recent.median(1).values.exp())
        small = amplitude < rules.floor_share * batch.norm
        suspect = (status == Status.CONVERGED) & (batch.unmoved >= 0.25)
        suspect |= ((status == Status.CYCLE) | spent) & small
        floor = torch.zeros_like(batch.step)
        rows = suspect.nonzero()[:, 0]
        if len(rows):
            latents = batch.latents[rows].reshape(-1, *self.shape)
            floor[rows], evaluations = rounding_floor(self.f, latents, self.batch_size)
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

    def _errors(self, batch: WorkingBatch, status: Tensor, floor: Tensor, last: Tensor) -> Tensor:
        """Estimated distance to the fixed point: what is left of the steps, and of the rounding in each."""
        stride, rules = self.criterion.stride, self.criterion.rules
        samples = torch.arange(batch.history.shape[1], device=last.device)
        times = torch.minimum((samples + 1) * stride, batch.steps[:, None])
        # The rate shows while the steps are above the floor; below it they are noise.
        noise = (rules.floor_factor * floor).log()[:, None]
        above = (batch.history > noise) & (samples <= last[:, None]) & (batch.history > -80)
        seen = torch.where(above, samples, 0).amax(1)
        left = distance_left(batch.history, seen, times, rules)
        step = torch.where(batch.step > floor, batch.step, 0.0).double()
        errors = step * left + floor * (1 + left)
        # An exact fixed point of full-precision arithmetic, met too soon to tell a rate, is off by its rounding.
        exact = (batch.step == 0) & left.isinf() & (floor <= 1e-5 * batch.norm)
        errors = torch.where(exact, floor.double(), errors)
        return torch.where(status == Status.CONVERGED, errors.nan_to_num(nan=torch.inf, posinf=torch.inf), torch.nan)
