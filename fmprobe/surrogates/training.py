"""The training loop of the kinds that are trained by steps.

It goes through accelerate, in one process or many, and goes on exactly where it was stopped.
"""

import contextlib
import copy
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.progress import progress_of
from fmprobe.seeding import generator, torch_generator, torch_seed
from fmprobe.surrogates.artefact import LOG, log_lines
from fmprobe.surrogates.settings import TrainedSettings

STATE = "state.pt"
CHECKPOINTS = 10  # of a run

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Batch:
    """A process' share of one step's rows, with random numbers that depend on the seed, the step and the row alone.

    Attributes:
        step: Number of the step, from 0.
        rows: Indices of the images.
    """

    step: int
    rows: Tensor
    _share: slice
    _seed: int
    _size: int
    _device: torch.device

    def one_in(self, k: int) -> Tensor:
        """Places in `rows` of every k-th row of the whole batch, the same rows whatever the number of processes."""
        first, last = self._share.start, self._share.stop
        return torch.arange(first, last)[torch.arange(first, last) % k == 0] - first

    def normal(self, shape: tuple[int, ...], stream: str) -> Tensor:
        """N(0, 1), `(len(rows), *shape)`, from a named stream, the same whatever the number of processes."""
        return self._drawn(torch.randn, shape, stream)

    def uniform(self, shape: tuple[int, ...], stream: str) -> Tensor:
        """U[0, 1), `(len(rows), *shape)`, likewise."""
        return self._drawn(torch.rand, shape, stream)

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...], stream: str) -> Tensor:
        drawn = draw((self._size, *shape), generator=torch_generator(self._seed, stream, self.step))
        return drawn[self._share].to(self._device)


@dataclass(frozen=True)
class Schedule:
    """How a module is trained. Fields without a note mean what they mean in `TrainedSettings`.

    Attributes:
        warmup: Share of the steps in which the learning rate rises.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup: float = 0.1
    ema: float = 0.99
    accumulate: int = 1
    precision: str = "no"
    seed: int = 0

    @classmethod
    def of(cls, settings: TrainedSettings) -> Self:
        """The schedule that settings ask for."""
        return cls(**{one.name: getattr(settings, one.name) for one in fields(cls) if hasattr(settings, one.name)})

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step: linear warm-up, then a cosine to zero.

        transformers' schedule starts at a rate of 0, which wastes the first step, and so shifts all others by one.
        """
        warmup = max(int(self.warmup * self.steps), 1)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(self.steps - warmup, 1)))


@contextlib.contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Draw the first weights of modules on the CPU from a stream of the seed; the caller's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(seed, "surrogates: initial weights"))
        yield


def train(
    module: Module,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    n: int,
    schedule: Schedule,
    *,
    device: torch.device,
    folder: Path | None = None,
    validate: Callable[[Module], float] | None = None,
    trackers: str | None = None,
    progress: bool = True,
    what: str = "training",
) -> tuple[Module, list[dict[str, Any]]]:
    """Train a module by AdamW. The result does not depend on the number of processes.

    Args:
        module: What is trained. It is moved to `device`.
        loss_of: Mean loss of a batch of rows.
        n: Number of rows.
        schedule: How long and how fast.
        device: Where it is trained.
        folder: Keeps the state and `log.jsonl`, about ten times a run. A run that was killed and is called again
            ends with the weights of an undisturbed one.
        validate: Error on held-out images, for the log. It leaves the module in the mode that it finds it in.
        trackers: accelerate's `log_with`.
        progress: Whether a progress bar may be shown.
        what: Label of the bar.

    Returns:
        The averaged module, in evaluation mode and without gradients, and the log. A row of it has the step, the loss,
        the seconds that a step took on average since the row before, and the validation error.

    Raises:
        InputError: If the batch has fewer rows than parts, or a tracker is unknown or not installed.
    """
    accelerator = _accelerator(device, folder, trackers)
    run = _Run(accelerator, module.to(device), n, schedule, folder)
    if trackers:
        accelerator.init_trackers("fmprobe", config=schedule.__dict__)
    every = max(schedule.steps // CHECKPOINTS, 1)
    shown = None if progress and accelerator.is_main_process else False
    bar = progress_of(what, schedule.steps, initial=run.first, shown=shown)
    with torch.enable_grad(), bar:
        since, began = run.first, time.perf_counter()
        for step in range(run.first, schedule.steps):
            loss = run.step(step, loss_of)
            if (step + 1) % every == 0 or step + 1 == schedule.steps:
                figures = {"step": step + 1, "loss": float(accelerator.reduce(loss, "mean"))}
                figures["seconds_per_step"] = float(f"{(time.perf_counter() - began) / (step + 1 - since):.3g}")
                if accelerator.is_main_process:
                    if validate is not None:
                        figures["validation"] = validate(run.kept())
                        bar.set_postfix(validation=f"{figures['validation']:.4f}")
                    run.state.write(step + 1, figures)
                if trackers:
                    accelerator.log(figures, step=step + 1)
                since, began = step + 1, time.perf_counter()  # without the time of the validation
            bar.update(1)
    if trackers:
        accelerator.end_training()
    return run.kept().requires_grad_(False).eval(), run.state.log


def _accelerator(device: torch.device, folder: Path | None, trackers: str | None) -> Any:
    """accelerate's view of the processes. Raises InputError for a tracker that is unknown or not installed."""
    from accelerate import Accelerator

    # accelerate keeps one mixed precision a process, so a run's own is not given to it.
    try:
        accelerator = Accelerator(cpu=device.type == "cpu", log_with=trackers, project_dir=folder)
    except ValueError as error:  # of a name that accelerate does not know
        raise InputError(f"unknown tracker {trackers!r}: {error}") from error
    if trackers and not accelerator.log_with:
        raise InputError(f"tracker {trackers!r} is not installed: pip install {trackers}")
    return accelerator


class _Run(Generic[Module]):
    """A module in training, its average and its optimiser.

    Attributes:
        state: What an interrupted run goes on from.
        first: The step that comes next.
    """

    def __init__(self, accelerator: Any, module: Module, n: int, schedule: Schedule, folder: Path | None) -> None:
        self.accelerator, self.module, self.n, self.schedule = accelerator, module, n, schedule
        self.batch_size = min(schedule.batch_size, n)
        self.parts = accelerator.num_processes * schedule.accumulate
        if self.batch_size < self.parts:
            raise InputError(
                f"a batch of {self.batch_size} cannot be shared by {self.parts} parts: choose at least {self.parts}"
            )
        self.average = AveragedModel(module, multi_avg_fn=_ema(schedule.ema)) if schedule.ema else None
        groups = _parameter_groups(module, schedule.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.95))
        self.state = _State(folder, module, self.average, optimiser)
        self.first = self.state.read()
        self.wrapped, self.optimiser = accelerator.prepare(module, optimiser)
        self.wrapped.train()

    def step(self, step: int, loss_of: Callable[[nn.Module, Batch], Tensor]) -> Tensor:
        """Take one step on this process' share of a batch. Returns the share's part in the loss."""
        schedule = self.schedule
        for group in self.optimiser.param_groups:
            group["lr"] = schedule.learning_rate * schedule.rate(step)
        total = torch.zeros((), device=self.accelerator.device)
        for batch, weight, last in self._share(step):
            mixed = torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=schedule.precision == "bf16")
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast(), mixed:
                    loss = loss_of(self.wrapped, batch) * weight
                self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.module)
        return total

    def kept(self) -> Module:
        """The averaged module, or the module itself where there is no average."""
        kept: Any = self.module if self.average is None else self.average.module  # a copy of the module
        return kept

    def _share(self, step: int) -> Iterator[tuple[Batch, float, bool]]:
        """The parts of a batch that are this process', their weights in the mean, and whether a part is the last."""
        rows, accumulate = _rows(self.n, self.batch_size, step, self.schedule.seed), self.schedule.accumulate
        bounds = [len(rows) * part // self.parts for part in range(self.parts + 1)]
        for part in range(accumulate):
            place = self.accelerator.process_index * accumulate + part
            mine = slice(bounds[place], bounds[place + 1])
            # The mean over a part becomes its share of the batch's mean: one part may have a row more than another.
            weight = (mine.stop - mine.start) * self.accelerator.num_processes / len(rows)
            batch = Batch(step, rows[mine], mine, self.schedule.seed, len(rows), self.accelerator.device)
            yield batch, weight, part == accumulate - 1


def _rows(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """The rows of a step. Each epoch has its own permutation, and a step may reach from one epoch into the next."""
    begin = step * batch_size
    chosen = torch.empty(0, dtype=torch.long)
    while len(chosen) < batch_size:
        epoch, offset = divmod(begin + len(chosen), n)
        order = torch.from_numpy(generator(seed, epoch, "surrogates: order of the images").permutation(n))
        chosen = torch.cat([chosen, order[offset : offset + batch_size - len(chosen)]])
    return chosen


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential average whose window grows from one step to that of `decay`.

    torch's `get_ema_multi_avg_fn` has a fixed decay, under which a short run would keep its first weights.
    """

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        for kept, new in zip(averaged, current, strict=True):
            kept.lerp_(new, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay applies to matrices, not to biases and norms."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class _State:
    """What a run needs to go on: its state, in one file that is replaced whole, and the log up to there."""

    def __init__(
        self, folder: Path | None, module: nn.Module, average: nn.Module | None, optimiser: torch.optim.Optimizer
    ) -> None:
        self.folder = folder
        self.parts = {"module": module, "optimiser": optimiser} | ({"average": average} if average else {})
        self.log: list[dict[str, Any]] = []

    def read(self) -> int:
        """Take up an earlier run's state. Returns the number of steps that it had taken, 0 where there is none."""
        path = self.folder / STATE if self.folder else None
        if path is None or not path.is_file():
            return 0
        fresh = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except Exception:  # a damaged file, of whatever kind: the run starts anew
            for name, part in self.parts.items():
                part.load_state_dict(fresh[name])
            return 0
        self.log = saved["log"]
        return saved["step"]

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Add a line to the log, and keep the state where there is a folder."""
        self.log.append(figures)
        if self.folder is None:
            return
        saved = {name: part.state_dict() for name, part in self.parts.items()} | {"step": step, "log": self.log}
        with contextlib.suppress(OSError):  # a full disk costs the state, not the run
            write_atomically(self.folder / STATE, lambda path: torch.save(saved, path))
            write_atomically(self.folder / LOG, lambda path: path.write_text(log_lines(self.log)))


def discard(folder: Path | None) -> None:
    """Remove the state of a run that has ended."""
    if folder is not None and int(os.environ.get("RANK", 0)) == 0:
        shutil.rmtree(folder, ignore_errors=True)
