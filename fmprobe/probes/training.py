"""Training dynamics: how attractors form while an autoencoder learns, measured from a callback."""

import json
import random
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.autoencoder import Autoencoder, check_images
from fmprobe.canvas import Drawn, panels
from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.distances import chamfer, nearest
from fmprobe.dynamics.merging import THRESHOLDS
from fmprobe.errors import InputError, WriteError
from fmprobe.files import append
from fmprobe.images import spread
from fmprobe.probes.memorization.coefficient import rank_at
from fmprobe.probes.ood.metrics import ood_metrics
from fmprobe.probes.ood.scores.distances import MEAN
from fmprobe.probes.ood.trajectory import Nearest, Reference, TrajectorySettings, follow
from fmprobe.probes.trainer import numbers, trainer_callback
from fmprobe.report.plots import SERIES, axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"train": SERIES[0], "test": SERIES[2], "noise": SERIES[1]}  # of starts, and their colours in figures


class AttractorTracker(Drawn):
    """A callback that measures, at chosen epochs, where the latent map leads (Fumero et al., ICLR 2026, fig. 3).

    A plain loop and `train_autoencoder(callback=…)` call `tracker(epoch, model)`. A loop under accelerate calls it with
    the prepared model, on every process, and the first process measures. A transformers Trainer takes
    `tracker.for_trainer()`. Training gives the same weights as without the tracker: modes, gradients and random states
    are left as they were.

    Args:
        train: training images `(N, *image_shape)`.
        test: images that the model is not trained on.
        starts: number of draws of N(0, I), and largest number of training and of test images, spread evenly.
        epochs: the chosen epochs, or a number: every so many epochs.
        path: file to which each record is appended at once, as a line of JSON.
        log: called with the numbers of each record by name, and `step=epoch`, as `Accelerator.log`, `wandb.log` and
            `mlflow.log_metrics` are.
        adapt: makes an Autoencoder of the model in training; by default the model's own `autoencoder()`.
        seed: seed of the starts.
        tol: as in `find_attractors`.
        measure: as in `find_attractors`.
        max_steps: as in `find_attractors`.
        batch_size: largest number of rows in one call of the model.
        threshold: two ends are one attractor where cos > 1 - `threshold` (the paper's 0.99).
        stability_cap: largest number of attractors whose Jacobian is examined.

    Attributes:
        records: the records so far.

    Raises:
        InputError: there are no images or starts, the images have two shapes, or they hold no finite floats.
        ValueError: a setting makes no sense, as in `find_attractors`.
        WriteError: the file cannot be written.
    """

    def __init__(
        self,
        train: Tensor,
        test: Tensor,
        *,
        starts: int = 256,
        epochs: int | Collection[int] = 1,
        path: str | Path | None = None,
        log: Callable[..., Any] | None = None,
        adapt: Callable[[Any], Autoencoder] | None = None,
        seed: int = 0,
        tol: float | None = None,
        measure: str | None = None,
        max_steps: int | None = None,
        batch_size: int = 256,
        threshold: float = THRESHOLDS["cosine"],
        stability_cap: int = 8,
    ) -> None:
        for images, what in ((train, "training images"), (test, "test images")):
            check_images(images, getattr(train, "shape", (0,))[1:], what=what)
        if isinstance(epochs, float | np.integer) and not epochs % 1:
            epochs = int(epochs)
        if min(len(train), len(test), starts) < 1 or (isinstance(epochs, int) and epochs < 1):
            raise InputError(
                f"AttractorTracker: {len(train)} training and {len(test)} test images, starts={starts}, "
                f"epochs={epochs}: expected at least 1 of each"
            )
        chosen = [epochs] if isinstance(epochs, int | float | str) else epochs
        if not chosen or any(not isinstance(epoch, Real) or epoch < 0 or epoch % 1 for epoch in chosen):
            raise InputError(f"AttractorTracker: epochs={epochs}: expected a whole number, or those of chosen epochs")
        self.train, self.test, self.starts, self.epochs = train, test, starts, epochs
        self.path = Path(path) if path is not None else None
        self.adapt, self.log = adapt or _own_autoencoder, log
        self.seed, self.batch_size, self.threshold = seed, batch_size, threshold
        self.orbits: dict[str, Any] = {"tol": tol, "measure": measure, "max_steps": max_steps, "batch_size": batch_size}
        self.search = {"merge": "cosine", "merge_threshold": threshold, "stability_cap": stability_cap}
        # Settings that make no sense are refused now, and not after hours of training.
        find_attractors(lambda z: z, starts=torch.zeros(1, 1), progress=False, **self.orbits, **self.search)
        if self.path is not None and self.path.is_dir():
            raise InputError(f"AttractorTracker: {self.path} is a folder: expected a file for the records")
        self.records: list[dict[str, Any]] = []

    def __call__(self, epoch: int, model: Any) -> dict[str, Any] | None:
        """Measure if this is a chosen epoch and the first process; returns the record, or None."""
        chosen = epoch % self.epochs == 0 if isinstance(self.epochs, int) else epoch in self.epochs
        if not chosen or _rank() != 0:
            return None
        began = time.perf_counter()
        model = _unwrapped(model)
        with unchanged(model):
            record = {"epoch": epoch, **self.measure(self.adapt(model))}
        record["cost"]["seconds"] = round(time.perf_counter() - began, 3)
        self.records.append(record)
        if lost := ", ".join(f"{count} {kind} starts" for kind, count in record.get("not_finite", {}).items()):
            warnings.warn(f"the network gives latents that are not finite at epoch {epoch}: {lost}", stacklevel=2)
        if self.path is not None:
            self._append(json.dumps(record, allow_nan=False) + "\n", self.path)
        if self.log is not None:
            self.log(numbers(record), step=epoch)
        return record

    def _append(self, line: str, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(path, error) from error
        append(path, line.encode())

    def for_trainer(self) -> Any:
        """This tracker as a `transformers.TrainerCallback`, called before the training and after each epoch.

        The numbers of each record go into `trainer.state.log_history` and to every tracker that the Trainer reports to.
        """
        return trainer_callback(self)

    def draw(self) -> "Figure":
        """The records along the epochs: attractors, noise against training, memorization, errors.

        Raises:
            InputError: there are no records.
        """
        if not self.records:
            raise InputError("AttractorTracker has no records to draw: call it with an epoch and a model first")
        return training_curves(self.records)

    def __repr__(self) -> str:
        said = f"{len(self.train)} training and {len(self.test)} test images, {self.starts} starts of a kind"
        if not self.records:
            return f"AttractorTracker: {said}; no records yet"
        last = self.records[-1]
        counts = ", ".join(f"{last[kind]['count']} from {kind}" for kind in KINDS if kind in last)
        return f"AttractorTracker: {said}\n  {len(self.records)} records; at epoch {last['epoch']} attractors: {counts}"

    def measure(self, model: Autoencoder) -> dict[str, Any]:
        """One record, as JSON holds it. What cannot be said, since no orbit settled, is None.

        Returns:
            For each kind of start ("train", "test", "noise"): `starts`, `status`, `converged` (a share), `count` of
            distinct attractors (None where all are unresolved), `distinct` (the count over the starts), and the median
            of the `steps`.

            Then `chamfer`, the similarity of the sets from training and from noise starts (1 for equal sets);
            `matched`, the share of each set that has a member of the other within the threshold; `fpr95`, the share of
            noise trajectories taken for training ones by their mean distance to the training attractors;
            `memorization`, by kind, as in `probe_memorization`; `rank` likewise; `test_error`; `spectral_radius` of the
            first training attractors; `cost`: rows of f computed, without products with its derivatives; and, where
            there are any, `not_finite`: the starts of a kind whose latents are not finite.
        """
        f = _Counted(model.latent_map)
        rule = model.protocol.chosen(**{key: self.orbits[key] for key in ("tol", "measure", "max_steps")})
        orbits = {**self.orbits, **rule}
        with torch.no_grad():
            latents = {
                "train": model.encode(self._spread(self.train), self.batch_size),
                "test": model.encode(self._spread(self.test), self.batch_size),
                "noise": model.sample_latents(self.starts, self.seed),
            }
            test_error = self._error(model, self.test)
            usable = {kind: rows[rows.flatten(1).isfinite().all(1)] for kind, rows in latents.items()}
        lost = {
            kind: len(latents[kind]) - len(usable[kind]) for kind in KINDS if len(usable[kind]) < len(latents[kind])
        }
        found = {
            kind: find_attractors(f, starts=usable[kind], progress=False, **orbits, **self.search)
            for kind in KINDS
            if len(usable[kind])
        }
        with torch.no_grad():
            images = {
                kind: model.decode(found[kind].latents, self.batch_size).cpu()
                for kind in ("train", "noise")
                if kind in found
            }
            fpr95 = self._fpr95(f, usable, found.get("train"), orbits)
        radius = found["train"].spectral_radius if "train" in found else torch.zeros(0)
        radius = radius[radius.isfinite()]
        return {
            **{kind: _summary(found.get(kind), len(latents[kind])) for kind in KINDS},
            **self._compare(found),
            "fpr95": fpr95,
            "memorization": {kind: self._memorization(rows) for kind, rows in images.items()},
            "rank": {kind: rank_at(rows.flatten(1)) if len(rows) else None for kind, rows in images.items()},
            "test_error": test_error,
            "spectral_radius": {"mean": float(radius.mean()), "max": float(radius.max())} if len(radius) else None,
            "cost": {"evaluations": f.rows},
            **({"not_finite": lost} if lost else {}),
        }

    def _spread(self, images: Tensor) -> Tensor:
        """As many images as there are starts, evenly over all: sets are often sorted by class."""
        return images[spread(len(images), min(self.starts, len(images)))]

    def _compare(self, found: dict[str, AttractorSet]) -> dict[str, Any]:
        """How far the attractors from training images and from noise agree."""
        sets = [found[kind].latents.flatten(1) for kind in ("train", "noise") if kind in found]
        if len(sets) < 2 or not all(map(len, sets)):
            return {"chamfer": None, "matched": None}
        train, noise = sets
        near = {"train": nearest(train, noise, "cosine")[0], "noise": nearest(noise, train, "cosine")[0]}
        matched = {kind: float((distance < self.threshold).double().mean()) for kind, distance in near.items()}
        return {"chamfer": 1 - chamfer(train, noise), "matched": {**matched, "threshold": self.threshold}}

    def _fpr95(
        self, f: "_Counted", latents: dict[str, Tensor], train: AttractorSet | None, orbits: dict[str, Any]
    ) -> float | None:
        if train is None or not len(train) or min(len(latents["train"]), len(latents["noise"])) < 2:
            return None
        reference = Reference(train.latents, torch.ones_like(train.latents[0].flatten()), {})
        settings = TrajectorySettings(**orbits)
        to_attractors = Nearest(reference, "euclidean")
        scores = {kind: MEAN(follow(f, latents[kind], to_attractors, settings)) for kind in ("train", "noise")}
        return ood_metrics(scores["train"], scores["noise"])["fpr95"]

    def _memorization(self, decoded: Tensor) -> dict[str, float] | None:
        decoded = decoded[decoded.flatten(1).isfinite().all(1)]
        if not len(decoded):
            return None
        cosine = 1 - nearest(decoded.flatten(1), self.train.flatten(1).to(decoded), "cosine")[0].double()
        return {"mean": float(cosine.mean()), "std": float(cosine.std(correction=0))}

    def _error(self, model: Autoencoder, images: Tensor) -> float | None:
        total = 0.0
        for block in images.to(model.device).split(self.batch_size):
            total += float((model.decode(model.encode(block)) - block).double().square().sum())
        error = total / images.numel()
        return error if np.isfinite(error) else None


class _Counted:
    """f, counting the rows that it is asked for."""

    def __init__(self, f: Function) -> None:
        self.f, self.rows = f, 0

    def __call__(self, latents: Tensor) -> Tensor:
        self.rows += len(latents)
        return self.f(latents)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and wants no gradients; after, it and all random states are as before."""
    modes = [(module, module.training) for module in model.modules()]
    wants = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the caller's own state
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            model.eval().requires_grad_(False)
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, wanted in wants:
                parameter.requires_grad_(wanted)
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _summary(found: AttractorSet | None, starts: int) -> dict[str, Any]:
    if found is None:
        return {"starts": starts, "status": {}, "converged": 0.0, "count": 0, "distinct": 0.0, "steps": None}
    return {
        "starts": starts,
        "status": found.orbits.counts(),
        "converged": int(found.orbits.converged.sum()) / starts,
        "count": found.count,
        "distinct": None if found.count is None else found.count / starts,
        "steps": float(found.orbits.steps.double().median()),
    }


def _unwrapped(model: Any) -> Any:
    """The network inside data-parallel and torch.compile's wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def _own_autoencoder(model: Any) -> Autoencoder:
    if not hasattr(model, "autoencoder"):
        raise InputError(
            f"AttractorTracker does not know how {type(model).__name__} encodes and decodes: pass adapt=, a function "
            "from the model to an Autoencoder, such as one that calls fmprobe.from_functions or fmprobe.load"
        )
    return model.autoencoder()


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def training_curves(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Four panels along the epochs, one record each: attractors, noise against training, memorization, errors."""
    figure, (counts, sets, memory, error) = panels(2, 2, (9, 6.4))
    for kind, colour in KINDS.items():
        _line(counts, records, (kind, "distinct"), f"{kind}: distinct attractors", colour)
        _line(counts, records, (kind, "converged"), f"{kind}: settled", colour, ls=":")
    counts.set_ylabel("share of the starts")
    _line(sets, records, ("chamfer",), "Chamfer similarity, noise and training sets", SERIES[0])
    _line(sets, records, ("matched", "train"), "training attractors met by noise", SERIES[2])
    _line(sets, records, ("matched", "noise"), "noise attractors met by training", SERIES[1])
    _line(sets, records, ("fpr95",), "FPR95 of trajectories", SERIES[4], ls="--")
    sets.set_ylabel("share, or cosine")
    for kind in ("train", "noise"):
        _line(memory, records, ("memorization", kind, "mean"), f"{kind} starts", KINDS[kind])
    memory.set_ylabel("cosine to the nearest training image")
    _line(error, records, ("test_error",), "test error", "grey")
    error.set_ylabel("mean squared error a pixel")
    radius = error.twinx()
    _line(radius, records, ("spectral_radius", "max"), "largest spectral radius", SERIES[1], ls=":")
    radius.set_ylabel("spectral radius (dotted)")
    for ax in (counts, sets, memory, error):
        ax.set_xlabel("epoch")
        ax.set_xscale("symlog", linthresh=1)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.legend(frameon=False, fontsize=7)
    return figure


def matched_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], direction: str = "train") -> "Figure":
    """Share of the attractors of one kind that one of the other kind meets, along the epochs, a line a condition.

    `direction`: "train" (training attractors met by noise) or "noise" (the reverse).
    """
    other = {"train": "noise", "noise": "training"}[direction]
    figure, ax = axes("epoch", f"share of {direction} attractors met by {other}")
    for i, (name, records) in enumerate(runs.items()):
        _line(ax, records, ("matched", direction), name, SERIES[i % len(SERIES)], ls=("-", "--", ":")[i // len(SERIES)])
    ax.set_xscale("symlog", linthresh=1)
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _line(
    ax: Any, records: Sequence[Mapping[str, Any]], path: Sequence[str], label: str, colour: str, ls: str = "-"
) -> None:
    """What lies at `path` in each record, where it is known."""
    points = []
    for record in records:
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            points.append((record["epoch"], value))
    if points:
        ax.plot(*zip(*points, strict=True), ls=ls, marker="o", ms=3, lw=1.4, color=colour, label=label)
