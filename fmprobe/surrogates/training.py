"""The training loop of all surrogates, through accelerate: one process or many, resumed exactly where it stopped."""

import contextlib
import copy
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from fmprobe.errors import InputError
from fmprobe.seeding import generator, torch_generator

LOG, STATE = "log.jsonl", "state.pt"
CHECKPOINTS = 10  # of a run

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Batch:
    """A process' share of one step's rows, and random numbers that depend on the seed, the step and the row alone."""

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
        """N(0, 1), `(len(rows), *shape)`, of the stream named, the same whatever the number of processes."""
        drawn = torch.randn((self._size, *shape), generator=torch_generator(self._seed, stream, self.step))
        return drawn[self._share].to(self._device)

    def uniform(self, shape: tuple[int, ...], stream: str) -> Tensor:
        """U[0, 1), as `normal`."""
        drawn = torch.rand((self._size, *shape), generator=torch_generator(self._seed, stream, self.step))
        return drawn[self._share].to(self._device)


@dataclass(frozen=True)
class Schedule:
    """How long, how large the steps and what is averaged. `batch_size` is that of all processes together."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps
    ema: float = 0.99  # decay of the averaged weights, which are what is kept; 0 keeps the last
    accumulate: int = 1  # parts that a batch is taken in
    precision: str = "no"  # "bf16" for mixed precision; what accelerate was launched with applies as well
    seed: int = 0

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step: linear warm-up, then a cosine to zero."""
        warmup = max(int(self.warmup * self.steps), 1)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(self.steps - warmup, 1)))


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
    """`module` after minimising the mean of `loss_of` over batches of the `n` rows by AdamW: its average, and the log.

    `folder` keeps the state, about ten times a run, and `log.jsonl`, one line each: killed there and called again it
    ends with the weights of an undisturbed run. The result does not depend on the number of processes. `trackers`:
    accelerate's `log_with`. Raises InputError where the batch has fewer rows than parts.
    """
    # accelerate keeps one mixed precision a process, so a run's own is not given to it.
    try:
        accelerator = Accelerator(cpu=device.type == "cpu", log_with=trackers, project_dir=folder)
    except ValueError as error:  # of a name that accelerate does not know
        raise InputError(f"unknown tracker {trackers!r}: {error}") from error
    if trackers and not accelerator.log_with:
        raise InputError(f"tracker {trackers!r} is not installed: pip install {trackers}")
    batch_size = min(schedule.batch_size, n)
    parts = accelerator.num_processes * schedule.accumulate
    if batch_size < parts:
        raise InputError(f"a batch of {batch_size} cannot be shared by {parts} parts: choose at least {parts}")
    module.to(device)
    average = AveragedModel(module, multi_avg_fn=_ema(schedule.ema)) if schedule.ema else None
    optimiser = torch.optim.AdamW(
        _parameter_groups(module, schedule.weight_decay), lr=schedule.learning_rate, betas=(0.9, 0.95)
    )
    state = _State(folder, module, average, optimiser)
    first = state.read()
    wrapped, optimiser = accelerator.prepare(module, optimiser)
    if trackers:
        accelerator.init_trackers("fmprobe", config=schedule.__dict__)
    every = max(schedule.steps // CHECKPOINTS, 1)
    quiet = None if progress and accelerator.is_main_process else True
    wrapped.train()
    with (
        torch.enable_grad(),
        tqdm(total=schedule.steps, initial=first, desc=what, delay=2, disable=quiet, leave=False) as bar,
    ):
        for step in range(first, schedule.steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate * schedule.rate(step)
            loss = _step(
                accelerator, wrapped, optimiser, loss_of, _rows(n, batch_size, step, schedule.seed), step, schedule
            )
            if average is not None:
                average.update_parameters(module)
            if (step + 1) % every == 0 or step + 1 == schedule.steps:
                mean: Any = accelerator.reduce(loss, "mean")
                figures = {"step": step + 1, "loss": float(mean)}
                if validate is not None and accelerator.is_main_process:
                    figures["validation"] = validate(_kept(module, average))
                    bar.set_postfix(validation=f"{figures['validation']:.4f}")
                    wrapped.train()
                if accelerator.is_main_process:
                    state.write(step + 1, figures)
                if trackers:
                    accelerator.log(figures, step=step + 1)
            bar.update(1)
    if trackers:
        accelerator.end_training()
    return _kept(module, average).requires_grad_(False).eval(), state.log


def _step(
    accelerator: Accelerator,
    module: Any,
    optimiser: Any,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    rows: Tensor,
    step: int,
    schedule: Schedule,
) -> Tensor:
    """One step of the optimiser on this process' share of a batch, taken in as many parts as asked for."""
    parts = accelerator.num_processes * schedule.accumulate
    bounds = [len(rows) * part // parts for part in range(parts + 1)]
    total = torch.zeros((), device=accelerator.device)
    for part in range(schedule.accumulate):
        place = accelerator.process_index * schedule.accumulate + part
        mine = slice(bounds[place], bounds[place + 1])
        # A mean over the rows of a part, which may be one more than those of another, made a share of the batch's mean.
        weight = (mine.stop - mine.start) * accelerator.num_processes / len(rows)
        batch = Batch(step, rows[mine], mine, schedule.seed, len(rows), accelerator.device)
        last = part == schedule.accumulate - 1
        mixed = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=schedule.precision == "bf16")
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            with accelerator.autocast(), mixed:
                loss = loss_of(module, batch) * weight
            accelerator.backward(loss)
        total += loss.detach()
    accelerator.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return total


def _rows(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """The rows of a step: each epoch is a permutation of its own, and a step may reach from one into the next."""
    begin = step * batch_size
    chosen = torch.empty(0, dtype=torch.long)
    while len(chosen) < batch_size:
        epoch, offset = divmod(begin + len(chosen), n)
        order = torch.from_numpy(generator(seed, epoch, "surrogates: order of the images").permutation(n))
        chosen = torch.cat([chosen, order[offset : offset + batch_size - len(chosen)]])
    return chosen


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential average whose window grows from one step to `decay`'s, so that short runs are averaged too."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        for kept, new in zip(averaged, current, strict=True):
            kept.lerp_(new, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def _kept(module: Module, average: AveragedModel | None) -> Module:
    if average is None:
        return module
    kept: Any = average.module  # a copy of `module`
    return kept


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, biases and norms do not."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class _State:
    """Everything that a run goes on from, in one file that is replaced whole, and the log up to there."""

    def __init__(
        self, folder: Path | None, module: nn.Module, average: nn.Module | None, optimiser: torch.optim.Optimizer
    ) -> None:
        self.folder = folder
        self.parts = {"module": module, "optimiser": optimiser} | ({"average": average} if average else {})
        self.log: list[dict[str, Any]] = []

    def read(self) -> int:
        """Take up an earlier run's state; returns the steps that it had taken, 0 where there is none."""
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
        from fmprobe.files import write_atomically

        self.log.append(figures)
        if self.folder is None:
            return
        saved = {name: part.state_dict() for name, part in self.parts.items()} | {"step": step, "log": self.log}
        with contextlib.suppress(OSError):  # a full disk costs the state, not the run
            write_atomically(self.folder / STATE, lambda path: torch.save(saved, path))
            write_atomically(self.folder / LOG, lambda path: path.write_text(lines_of(self.log)))


def lines_of(log: list[dict[str, Any]]) -> str:
    """A log as JSON lines."""
    return "".join(json.dumps(figures) + "\n" for figures in log)


def discard(folder: Path | None) -> None:
    """Remove the state of a run that has ended."""
    if folder is not None and int(os.environ.get("RANK", 0)) == 0:
        shutil.rmtree(folder, ignore_errors=True)
