"""The fixed-point engine: `iterate(f, starts)` follows each orbit until it ends and says how it ended."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.checks import check_counts, check_starts
from fmprobe.dynamics.engine import Ended, Engine, Observer
from fmprobe.dynamics.norms import norms
from fmprobe.dynamics.orbits import Orbits, Rules, Status, protocol_of
from fmprobe.dynamics.protocols import SMALL
from fmprobe.dynamics.working import Criterion
from fmprobe.progress import progress_of

MEASURES = ("squared", "relative", "rms")
Progress = Callable[[int, int], None]


def iterate(
    f: Function,
    starts: Tensor,
    *,
    tol: float | Tensor = SMALL.tol,
    measure: str = SMALL.measure,
    max_steps: int | Tensor = SMALL.max_steps,
    batch_size: int = 256,
    observer: Observer | None = None,
    store_trajectories: bool = False,
    check_every: int | None = None,
    progress: bool | Progress | None = None,
    rules: Rules | None = None,
) -> Orbits:
    """Iterate z[t+1] = f(z[t]) from each start until its orbit ends (Fumero et al., ICLR 2026, eq. 3, def. 2).

    An orbit ends when its step falls below `tol`, when it is a confirmed cycle, when it diverges, or after `max_steps`.
    It is then frozen, and the next start takes its place in the working batch. So the end of an orbit does not depend
    on the other orbits in its batch.

    Args:
        f: maps a batch `(B, *latent_shape)` to the same shape, each row by itself. It may change its argument, keep it
            or return it.
        starts: the starts `(n, *latent_shape)`, float32 or float64.
        tol: tolerance at which an orbit has converged, one value or one a start.
        measure: measure of a step: "squared" (squared norm of the step, as in the paper), "relative" (norm of the step
            over the norm of the latent) or "rms" (norm of the step over sqrt(d)).
        max_steps: largest number of steps, one value or one a start.
        batch_size: size of the working batch, and largest number of latents in one call of f.
        observer: called as `observer(indices, before, after)` with every step.
        store_trajectories: whether all trajectories are kept.
        check_every: number of steps between two looks for ended orbits; by default 1 on the CPU and 8 on an
            accelerator, where looking means waiting. Ends and steps do not depend on it. Rows of f computed after the
            end of an orbit are counted as `surplus`.
        progress: None shows a bar on a terminal and lines elsewhere, False shows neither, and a function is called with
            the numbers of ended orbits and of all orbits.
        rules: thresholds of the verdicts.

    Raises:
        ValueError: the starts or a setting make no sense, or f changes the shape.
        MemoryError: the trajectories asked for would not fit into memory.

    Warns:
        UserWarning: `tol` lies below the resolution of the latents' arithmetic.
    """
    _check(starts, measure, max_steps, batch_size, check_every)
    batch_size, check_every = int(batch_size), int(check_every or _patience(starts))
    shape, rules = starts.shape[1:], rules or Rules()
    kept = _Kept(_flat(starts), shape)
    latents = kept.latents
    tols, budgets = _one_a_start("tol", tol, latents), _one_a_start("max_steps", max_steps, latents).long()
    most = max(budgets.tolist(), default=1)
    criterion = Criterion.make(latents, measure, most, rules)
    _warn_below_resolution(latents, tols, criterion)
    recorder = _Recorder(latents, shape, most) if store_trajectories else None
    observers = [o for o in (recorder, observer) if o]
    engine = Engine(f, shape, criterion, batch_size, observers, check_every)
    source = _InMemory(latents, tols, budgets)
    with torch.no_grad(), progress_bar(progress, len(starts)) as report:
        engine.go(source.take, kept.keep, lambda: report(kept.ended, len(starts)))
    one_tol, one_budget = (None if isinstance(v, Tensor) and v.ndim else float(v) for v in (tol, max_steps))
    protocol = protocol_of(measure, one_tol, None if one_budget is None else int(one_budget), batch_size, rules)
    return kept.orbits(protocol, recorder.trajectories() if recorder else None)


def stream_orbits(
    f: Function,
    take: Callable[[int], tuple[Tensor, Tensor]],
    keep: Callable[[Ended], None],
    *,
    tol: float,
    measure: str,
    max_steps: int,
    batch_size: int,
    observer: Observer | None = None,
    looked: Callable[[], None] = lambda: None,
) -> None:
    """Iterate starts that are drawn as they are needed, and hand over orbits as they end, so that memory stays flat.

    The end of an orbit depends on the same things as in `iterate`.

    Args:
        f: as in `iterate`.
        take: `take(count)` gives index `(k,)` and latents `(k, *latent_shape)` of at most `count` further starts; k = 0
            when there are no more.
        keep: gets the orbits that have ended, in no particular order.
        tol: as in `iterate`, one value.
        measure: as in `iterate`.
        max_steps: as in `iterate`, one value.
        batch_size: as in `iterate`.
        observer: as in `iterate`.
        looked: called each time ended orbits have been looked for. An exception in it ends the run.
    """
    index, starts = take(batch_size)
    _check(starts, measure, max_steps, batch_size, None)
    first = _flat(starts)
    criterion = Criterion.make(first, measure, max_steps, Rules())
    _warn_below_resolution(first, _one_a_start("tol", tol, first), criterion)
    waiting = [(index, starts)]

    def taken(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index, starts = waiting.pop() if waiting else take(count)
        latents = _flat(starts)
        return index, latents, _one_a_start("tol", tol, latents), _one_a_start("max_steps", max_steps, latents).long()

    observers = [observer] if observer else []
    engine = Engine(f, starts.shape[1:], criterion, batch_size, observers, _patience(first))
    with torch.no_grad():
        engine.go(taken, keep, looked)


def _one_a_start(name: str, value: float | Tensor, latents: Tensor) -> Tensor:
    """Expand a setting to one value for each of the latents `(n, d)`, float64 `(n,)`."""
    values = torch.as_tensor(value, dtype=torch.float64, device=latents.device).detach()
    if values.numel() != 1 and values.shape != (len(latents),):
        shape, n = tuple(values.shape), len(latents)
        raise ValueError(f"{name} must be one value, or one a start: got shape {shape}, {n} starts")
    return values.flatten().expand(len(latents)).clone()


def _flat(starts: Tensor) -> Tensor:
    latents = starts.detach().flatten(1)
    return latents if latents.dtype in (torch.float32, torch.float64) else latents.float()


def _patience(latents: Tensor) -> int:
    """Number of steps between two looks for ended orbits; on an accelerator, looking means waiting."""
    return 1 if latents.device.type == "cpu" else 8


class _InMemory:
    """Gives starts that are in memory, one after the other."""

    def __init__(self, starts: Tensor, tols: Tensor, budgets: Tensor) -> None:
        self.starts, self.tols, self.budgets, self.taken = starts, tols, budgets, 0

    def take(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index = torch.arange(self.taken, min(self.taken + count, len(self.starts)), device=self.starts.device)
        self.taken += len(index)
        return index, self.starts[index], self.tols[index], self.budgets[index]


class _Kept:
    """Keeps ended orbits in the order of their starts.

    Until an orbit has ended, its end is its start. So the starts are copied to where f cannot reach them, and need no
    memory besides the ends.
    """

    def __init__(self, starts: Tensor, shape: torch.Size) -> None:
        n, device = len(starts), starts.device
        counts = torch.zeros(n, dtype=torch.long, device=device)
        self.rows = {
            "ends": starts.clone(memory_format=torch.contiguous_format).reshape(n, *shape),
            "steps": counts.clone(),
            "residuals": starts.new_full((n,), torch.inf),
            "status": torch.full_like(counts, int(Status.DIVERGED)),
            "errors": starts.new_full((n,), torch.nan),
            "periods": counts,
        }
        self.ended = self.evaluations = self.check_evaluations = 0

    @property
    def latents(self) -> Tensor:
        """The ends `(n, d)`, as a view of the memory that keeps them."""
        return self.rows["ends"].flatten(1)

    def keep(self, ended: Ended) -> None:
        for name, values in self.rows.items():
            values[ended.index] = getattr(ended, name)
        self.ended += len(ended.index)
        self.evaluations += int(ended.evaluations.sum())
        self.check_evaluations += ended.check_evaluations

    def orbits(self, protocol: dict[str, Any], trajectories: list[Tensor] | None) -> Orbits:
        return Orbits(
            **self.rows,
            evaluations=self.evaluations,
            surplus=self.evaluations - int(self.rows["steps"].sum()),
            check_evaluations=self.check_evaluations,
            protocol=protocol,
            trajectories=trajectories,
        )


class _Recorder:
    """An observer that keeps every trajectory on the CPU."""

    def __init__(self, starts: Tensor, shape: torch.Size, max_steps: int) -> None:
        needed = starts.numel() * starts.element_size() * (max_steps + 1)
        if needed > (free := free_memory()):
            raise MemoryError(
                f"{len(starts)} trajectories of up to {max_steps} steps take up to {needed / 2**30:.1f} GiB and "
                f"{free / 2**30:.1f} GiB are free: take fewer starts or steps, or watch them with an observer"
            )
        self.points = [[row.clone()] for row in starts.reshape(-1, *shape).cpu()]

    def __call__(self, indices: Tensor, before: Tensor, after: Tensor) -> None:
        for index, row in zip(indices.tolist(), after.cpu(), strict=True):
            self.points[index].append(row.clone())

    def trajectories(self) -> list[Tensor]:
        return [torch.stack(points) for points in self.points]


def free_memory() -> int:
    """Number of bytes that this machine can still give, or a cautious guess."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # this is not Linux
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # this system does not say
        return 8 * 2**30


def check_rule(tol: float, measure: str, max_steps: int) -> None:
    """Check a stopping rule for one orbit.

    Raises:
        ValueError: a setting makes no sense.
    """
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(MEASURES)}")
    if not tol >= 0:
        raise ValueError("tol must not be negative or nan")
    check_counts(max_steps=max_steps)


def _check(starts: Tensor, measure: str, max_steps: int | Tensor, batch_size: int, check_every: int | None) -> None:
    check_starts(starts)
    for steps in max_steps.unique().tolist() if isinstance(max_steps, Tensor) else [max_steps]:
        check_rule(0.0, measure, steps)  # the tolerances are checked with the resolution of the latents
    check_counts(batch_size=batch_size, check_every=1 if check_every is None else check_every)


def _warn_below_resolution(latents: Tensor, tols: Tensor, criterion: Criterion) -> None:
    if not len(latents):
        return
    if not bool((tols >= 0).all()):
        raise ValueError("tol must not be negative or nan")
    norm = norms(latents)
    rounding = criterion.resolution * norm
    below = (tols < criterion.of(rounding, norm, norm)).double().mean()
    if below > 0.5:
        typical = float(criterion.of(rounding, norm, norm).median())
        warnings.warn(
            f"tol {float(tols.median()):.1e} lies under the resolution of {latents.dtype} latents of this size (about "
            f"{typical:.1e} in the measure {criterion.measure!r}): orbits can only converge to the rounding floor; "
            "choose a larger tol",
            stacklevel=3,
        )


def progress_bar(progress: bool | Progress | None, total: int) -> AbstractContextManager[Progress]:
    """Turn a `progress` argument into a context that gives a function of (ended orbits, all orbits)."""
    if callable(progress):
        return nullcontext(progress)
    if progress is False:
        return nullcontext(lambda ended, of: None)
    return _orbits(progress, total)


@contextmanager
def _orbits(shown: bool | None, total: int) -> Iterator[Progress]:
    """Progress of ended orbits."""
    with progress_of("orbits", total, shown=shown, unit="orbit") as bar:
        yield lambda ended, total: bar.update(ended - bar.n)
