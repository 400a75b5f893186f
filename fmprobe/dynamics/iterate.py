"""The fixed-point engine: iterate(f, starts) follows every orbit until it ends, and says how it ended."""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fmprobe.dynamics.cycles import examine_cycles
from fmprobe.dynamics.floor import rounding_floor
from fmprobe.dynamics.orbits import Orbits, Rules, Status, protocol_of
from fmprobe.dynamics.verdicts import distance_left, still_falling
from fmprobe.dynamics.working import OUT_OF_STEPS, RUNNING, Criterion, WorkingBatch

MEASURES = ("squared", "relative", "rms")
Observer = Callable[[Tensor, Tensor, Tensor], None]
Progress = Callable[[int, int], None]


def iterate(
    f: Callable[[Tensor], Tensor],
    starts: Tensor,
    *,
    tol: float | Tensor = 1e-6,
    measure: str = "squared",
    max_steps: int = 3000,
    batch_size: int = 256,
    observer: Observer | None = None,
    store_trajectories: bool = False,
    check_every: int | None = None,
    progress: bool | Progress | None = None,
    rules: Rules | None = None,
) -> Orbits:
    """Iterate z[t+1] = f(z[t]) from each start until its own orbit ends (Fumero et al., ICLR 2026, eq. 3, def. 2).

    `f` maps a batch `(B, *latent_shape)` to the same shape, each row by itself; `starts` is `(n, *latent_shape)`,
    float32 or float64. An orbit ends when its step is below `tol` (one value, or one a start) in `measure`: "squared"
    (squared step norm, the paper's), "relative" (step norm over latent norm) or "rms" (step norm over sqrt(d)); when
    it is a confirmed cycle; when it diverges; or after `max_steps`. It is then frozen and its place in the working
    batch of `batch_size` goes to the next start, so its end does not depend on who shared its batch.

    `observer(indices, before, after)` sees every step. `store_trajectories` keeps them all. Ended orbits are looked
    for every `check_every` steps (default 1 on the CPU, 8 on an accelerator, where looking means waiting): ends and
    steps stay the same, rows computed in vain are stated as `surplus`. `progress`: None shows a bar on a terminal
    after two seconds, False never, or a function of (ended, all).

    Raises ValueError for starts or settings that make no sense or an f that changes the shape, MemoryError where the
    trajectories asked for would not fit. Warns where `tol` lies under the resolution of the latents' arithmetic.
    """
    _check(starts, measure, max_steps, batch_size, check_every)
    shape = starts.shape[1:]
    latents = starts.detach().flatten(1)
    latents = latents if latents.dtype in (torch.float32, torch.float64) else latents.float()
    rules = rules or Rules()
    criterion = Criterion(measure, max_steps, latents.shape[1], rules)
    tols = torch.as_tensor(tol, dtype=latents.dtype, device=latents.device).expand(len(starts))
    _warn_below_resolution(latents, tols, criterion)
    recorder = _Recorder(latents, shape, max_steps) if store_trajectories else None
    run = _Run(f, latents, shape, tols, criterion, batch_size, [o for o in (recorder, observer) if o])
    run.check_every = check_every or (1 if latents.device.type == "cpu" else 8)
    with torch.no_grad(), _progress(progress, len(starts)) as report:
        run.go(report)
    protocol = protocol_of(measure, tol if isinstance(tol, float | int) else None, max_steps, batch_size, rules)
    return run.orbits(protocol, recorder.trajectories() if recorder else None)


class _Run:
    """One call of `iterate`: the loop, the refilling of the working batch, and the results."""

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        starts: Tensor,
        shape: torch.Size,
        tols: Tensor,
        criterion: Criterion,
        batch_size: int,
        observers: list[Observer],
    ) -> None:
        self.f, self.starts, self.shape, self.tols = f, starts, shape, tols
        self.criterion, self.batch_size, self.observers = criterion, batch_size, observers
        self.check_every = 1
        n, device = len(starts), starts.device
        self.ends = starts.clone()
        self.steps = torch.zeros(n, dtype=torch.long, device=device)
        self.status = torch.full((n,), int(Status.DIVERGED), dtype=torch.long, device=device)
        self.residuals = torch.full((n,), torch.inf, dtype=starts.dtype, device=device)
        self.errors = torch.full((n,), torch.nan, dtype=starts.dtype, device=device)
        self.periods = torch.zeros(n, dtype=torch.long, device=device)
        self.evaluations = self.check_evaluations = self.taken = 0

    def go(self, report: Progress) -> None:
        ended, calls = 0, 0
        batch = self._take(self.batch_size)
        scratch = torch.empty_like(batch.latents)
        while len(batch):
            after = self._evaluate(batch)
            self.evaluations += len(batch)
            batch.advance(after, self.criterion, scratch[: len(batch)])
            calls += 1
            if calls % self.check_every:
                continue
            done = batch.outcome != RUNNING
            rows = done.nonzero()[:, 0]
            if len(rows):
                self._retire(batch.rows(rows))
                ended += len(rows)
                fresh = self._take(len(rows))
                batch.put(rows[: len(fresh)], fresh)
                done[rows[: len(fresh)]] = False
                batch = batch.rows((~done).nonzero()[:, 0]) if len(fresh) < len(rows) else batch
            report(ended, len(self.starts))

    def orbits(self, protocol: dict[str, Any], trajectories: list[Tensor] | None) -> Orbits:
        return Orbits(
            ends=self.ends.reshape(len(self.ends), *self.shape),
            steps=self.steps,
            residuals=self.residuals,
            status=self.status,
            errors=self.errors,
            periods=self.periods,
            evaluations=self.evaluations,
            surplus=self.evaluations - int(self.steps.sum()),
            check_evaluations=self.check_evaluations,
            protocol=protocol,
            trajectories=trajectories,
        )

    def _take(self, count: int) -> WorkingBatch:
        index = torch.arange(self.taken, min(self.taken + count, len(self.starts)), device=self.starts.device)
        self.taken += len(index)
        return WorkingBatch.start(self.starts[index], index, self.tols[index], self.criterion)

    def _evaluate(self, batch: WorkingBatch) -> Tensor:
        before = batch.latents.reshape(len(batch), *self.shape)
        after = self.f(before)
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

    def _retire(self, batch: WorkingBatch) -> None:
        """Judge finished orbits and write them to the results."""
        status, errors = self._judge(batch)
        index = batch.index
        self.ends[index] = batch.latents
        self.steps[index] = batch.steps
        self.status[index] = status
        self.residuals[index] = batch.residual
        self.errors[index] = errors.to(self.errors.dtype)
        self.periods[index] = torch.where(status == Status.CYCLE, batch.period, 0)

    def _judge(self, batch: WorkingBatch) -> tuple[Tensor, Tensor]:
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
            self.check_evaluations += evaluations
        at_floor = suspect & (status != Status.CONVERGED) & (amplitude <= rules.floor_factor * floor)
        status[at_floor] = int(Status.CONVERGED)
        rows = (status == Status.CYCLE).nonzero()[:, 0]
        if len(rows):
            cycling = batch.rows(rows)
            batch.period[rows], repels, evaluations = examine_cycles(self.f, cycling, self.shape, criterion)
            status[rows[repels]] = int(Status.WANDERING)
            self.check_evaluations += evaluations
        return status, self._errors(batch, status, floor, last)

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


class _Recorder:
    """An observer that keeps every trajectory, on the CPU."""

    def __init__(self, starts: Tensor, shape: torch.Size, max_steps: int) -> None:
        needed = starts.numel() * starts.element_size() * (max_steps + 1)
        if needed > (free := _free_memory()):
            raise MemoryError(
                f"{len(starts)} trajectories of up to {max_steps} steps take up to {needed / 2**30:.1f} GiB and "
                f"{free / 2**30:.1f} GiB are free: take fewer starts or steps, or watch them with an observer"
            )
        self.points = [[row] for row in starts.reshape(-1, *shape).cpu()]

    def __call__(self, indices: Tensor, before: Tensor, after: Tensor) -> None:
        for index, row in zip(indices.tolist(), after.cpu(), strict=True):
            self.points[index].append(row.clone())

    def trajectories(self) -> list[Tensor]:
        return [torch.stack(points) for points in self.points]


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not told by this system
        return 8 * 2**30


def _check(starts: Tensor, measure: str, max_steps: int, batch_size: int, check_every: int | None) -> None:
    if starts.ndim < 2 or not starts.is_floating_point():
        raise ValueError(f"starts must be floats of shape (n, *latent_shape), got {starts.dtype} {tuple(starts.shape)}")
    if starts.shape[1:].numel() == 0:
        raise ValueError(f"latents must not be empty, got shape {tuple(starts.shape)}")
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(MEASURES)}")
    for name, value in (("max_steps", max_steps), ("batch_size", batch_size), ("check_every", check_every or 1)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _warn_below_resolution(latents: Tensor, tols: Tensor, criterion: Criterion) -> None:
    if not len(latents):
        return
    if not bool((tols >= 0).all()):
        raise ValueError("tol must not be negative or nan")
    norm = torch.linalg.vector_norm(latents, dim=1)
    rounding = torch.finfo(latents.dtype).eps * norm
    below = (tols < criterion.of(rounding, norm, norm)).double().mean()
    if below > 0.5:
        typical = float(criterion.of(rounding, norm, norm).median())
        warnings.warn(
            f"tol {float(tols.median()):.1e} lies under the resolution of {latents.dtype} latents of this size (about "
            f"{typical:.1e} in the measure {criterion.measure!r}): orbits can only converge to the rounding floor",
            stacklevel=3,
        )


def _progress(progress: bool | Progress | None, total: int) -> AbstractContextManager[Progress]:
    if callable(progress):
        return nullcontext(progress)
    if progress is False:
        return nullcontext(lambda ended, of: None)
    return _Bar(total, always=progress is True)


class _Bar(AbstractContextManager[Progress]):
    """A bar of ended orbits, shown after two seconds."""

    def __init__(self, total: int, always: bool) -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=total, desc="orbits", unit="orbit", delay=2, disable=False if always else None)

    def __enter__(self) -> Progress:
        return self.update

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, ended: int, total: int) -> None:
        self.bar.update(ended - self.bar.n)
