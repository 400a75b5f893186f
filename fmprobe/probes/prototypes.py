"""Prototypes: the attractors that noise starts end in, decoded. From weights alone; the first question of every run."""

import csv
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.curves import ResidualCurves
from fmprobe.dynamics.iterate import free_memory
from fmprobe.dynamics.orbits import Status
from fmprobe.dynamics.protocols import FOR_DEVICE, FOUNDATION
from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.pictures import draw_sheet, save_frames, to_picture
from fmprobe.probes.film import Film, film
from fmprobe.runs.folder import RunFolder
from fmprobe.runs.search import Search
from fmprobe.sharing import Team

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("file", "basin_size", "basin_share", "lowest_start", "spectral_radius", "error", "median_steps", "residual")
FILM, PAINTED = "trajectories.png", "reconstructions.png"
CURVES = 32  # starts whose residual curves are kept
TYPICAL_STEPS = 100  # that a start takes, for the estimate before a run
STABILITY_COST = 300  # evaluations of f that the Jacobian of one attractor costs, about


@dataclass(frozen=True)
class Plan:
    """What a run will do. By default orbits end as the paper has it for foundation models (sec. 4).

    `name`: what the results call the stopping rule. `batch_size`, `merge`, `merge_threshold`, `seed` and `polish` as in
    `find_attractors`; `stability_cap`: attractors whose Jacobian is examined.
    `seconds_per_row`: measured cost of f.
    """

    n: int
    max_steps: int = FOUNDATION.max_steps
    tol: float = FOUNDATION.tol
    measure: str = FOUNDATION.measure
    name: str = "as given"
    batch_size: int = 256
    merge: str = "relative"
    merge_threshold: float | None = None
    seed: int = 0
    stability_cap: int = 64
    polish: str | None = None
    seconds_per_row: float = 0.0

    @property
    def likely_seconds(self) -> float:
        """If a start takes a typical number of steps; the Jacobians not counted."""
        return self.n * min(TYPICAL_STEPS, self.max_steps) * self.seconds_per_row

    @property
    def most_seconds(self) -> float:
        """If no start converges."""
        return self.n * self.max_steps * self.seconds_per_row


def make_plan(model: Autoencoder, n: int | None = None, max_steps: int | None = None, **settings: Any) -> Plan:
    """A plan that fits the device: what is None is chosen so that a run on a CPU takes minutes, and half its memory.

    Orbits end by the model's protocol, after fewer steps where a CPU needs that. `settings`: further fields of `Plan`;
    those that are None keep their defaults. Raises InputError where the first
    step from N(0, I) holds no finite number.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    accelerated = model.device.type != "cpu"
    rows, before = min(8, settings.get("batch_size", 8)), _peak_memory()
    cost = _seconds_per_row(model, rows)
    if "batch_size" not in settings:
        grown = max(1, (_peak_memory() - before) // rows)
        settings["batch_size"] = 256 if accelerated else max(1, min(32, free_memory() // (2 * grown)))
    if n is None:
        affordable = int(60 / (TYPICAL_STEPS * cost)) // 8 * 8
        n = 512 if accelerated else min(64, max(16, affordable))
    rule = model.protocol.chosen(settings.pop("tol", None), settings.pop("measure", None), max_steps)
    if max_steps is None and not accelerated:
        rule["max_steps"] = min(rule["max_steps"], max(100, int(150 / (n * cost))))
    name = model.protocol.named(**rule, reason=FOR_DEVICE if max_steps is None else "")
    plan = Plan(n=n, name=name, seconds_per_row=cost, **rule, **settings)
    if not accelerated:
        plan = replace(plan, stability_cap=min(64, max(2, int(60 / (STABILITY_COST * cost)))))
    return plan


@dataclass(frozen=True)
class Prototypes:
    """Attractors of a model from N(0, I) starts, with what was seen on the way.

    `images` `(m, *image_shape)`: the decoded attractors, not clamped; None where the model has no images. `curves`:
    residual norms of the first starts. `film`: a few decoded trajectories.
    """

    attractors: AttractorSet
    images: Tensor | None
    curves: dict[str, Any]
    seconds: float
    film: Film | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys `orbits`, `attractors`, `residuals` and `trajectories` of `results.json`."""
        orbits = self.attractors.orbits
        kept = len(self.curves["norms"])
        status = [Status(value).name.lower() for value in orbits.status[:kept].tolist()]
        return {
            "orbits": {"noise": orbits.to_dict()},
            "attractors": {**self.attractors.to_dict(), **self._damaged()},
            "residuals": {**self.curves, "status": status},
            **({"trajectories": self.film.to_dict()} if self.film else {}),
            "seconds": round(self.seconds, 2),
        }

    def _damaged(self) -> dict[str, int]:
        """How many of the decoded attractors hold pixels that are not finite, where some do."""
        known = 0 if self.images is None else int(self.images.flatten(1).isfinite().all(1).sum())
        damaged = 0 if self.images is None else len(self.images) - known
        return {"images_not_finite": damaged} if damaged else {}

    def plot(self) -> "Figure":
        """The decoded attractors under the sizes of their basins; without images what `AttractorSet.plot` shows."""
        from fmprobe.pictures import draw_sheet, to_picture

        if self.images is None:
            return self.attractors.plot()
        pictures = [to_picture(image) for image in self.images]
        return draw_sheet(pictures, self.attractors.sizes.tolist(), len(self.attractors.labels))

    def _repr_html_(self) -> str:
        from fmprobe.report.show import html_of

        warning = self.attractors.warning
        return html_of(self.to_dict(), self.plot(), [warning] if warning else ())


def find_prototypes(model: Autoencoder, plan: Plan, progress: bool | None = None) -> Prototypes:
    """Iterate N(0, I) starts to their attractors and decode these (Fumero et al., ICLR 2026, sec. 4, fig. 18).

    Raises InputError where the model has no decoder.
    """
    began = time.perf_counter()
    curves = ResidualCurves(min(CURVES, plan.n), plan.max_steps)
    attractors = find_attractors(
        model,
        plan.n,
        seed=plan.seed,
        tol=plan.tol,
        measure=plan.measure,
        max_steps=plan.max_steps,
        batch_size=plan.batch_size,
        merge=plan.merge,
        merge_threshold=plan.merge_threshold,
        stability_cap=plan.stability_cap,
        polish=plan.polish,
        observer=curves,
        progress=progress,
    )
    named = {**attractors.orbits.protocol, "name": plan.name}
    attractors = replace(attractors, orbits=replace(attractors.orbits, protocol=named))
    return _decoded(model, plan, attractors, curves.to_dict(), began)


def run_prototypes(
    model: Autoencoder, plan: Plan, folder: RunFolder, team: Team, name: str = "shards", progress: bool | None = None
) -> Prototypes | None:
    """`find_prototypes` as a run: shared by a team's processes and kept in shards of the run folder.

    None for all but the main process. Raises Stopped after a signal, WriteError on a full disk.
    """
    began = time.perf_counter()
    search = Search(model, plan, folder, team, name, min(CURVES, plan.n))
    search.iterate(progress)
    if not team.is_main:
        return None
    attractors, curves = search.attractors()
    return _decoded(model, plan, attractors, curves, began)


def _decoded(
    model: Autoencoder, plan: Plan, attractors: AttractorSet, curves: dict[str, Any], began: float
) -> Prototypes:
    images = None
    if model.has_decoder:
        with torch.no_grad():
            blocks = attractors.latents.split(plan.batch_size)
            decoded = [model.decode(block.to(model.device)).cpu() for block in blocks if len(block)]
        images = torch.cat(decoded) if decoded else torch.zeros(0, *model.image_shape)
    attractors = replace(attractors, warning=model.surrogate_warning)
    shown = film(model, attractors, plan.seed, plan.batch_size)
    return Prototypes(attractors, images, curves, time.perf_counter() - began, shown)


def _peak_memory() -> int:
    """Bytes that this process has held at most, where the system tells."""
    try:
        import resource
    except ImportError:
        return 0
    kilobytes = sys.platform != "darwin"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if kilobytes else 1)


def _seconds_per_row(model: Autoencoder, rows: int) -> float:
    latents = model.sample_latents(rows)
    times, finite = [], True
    with torch.no_grad():
        for _ in range(3):  # the first call warms up
            began = time.perf_counter()
            finite = bool(model.latent_map(latents).isfinite().any())
            times.append(time.perf_counter() - began)
    if not finite:
        raise InputError(
            f"the first step of {model.name} holds no finite number: its weights are damaged, or too large for "
            f"{model.provenance.get('dtype', 'their precision')} (try dtype float32)"
        )
    return min(times[1:]) / rows


def save_prototypes(images: "Tensor", attractors: "AttractorSet", folder: Path) -> None:
    """`prototypes/NNNN.png`, `prototypes/index.csv` and `prototypes.png` in a run folder."""
    pictures = [to_picture(image) for image in images]
    rows, orbits = [], attractors.orbits
    for i, picture in enumerate(pictures):
        name = f"{i:04d}.png"
        write_atomically(folder / "prototypes" / name, lambda path, p=picture: p.save(path, format="PNG"))
        basin = (attractors.labels == i).nonzero()[:, 0].to(orbits.steps.device)
        size, n = int(attractors.sizes[i]), len(attractors.labels)
        radius, error = float(attractors.spectral_radius[i]), float(attractors.errors[i])
        steps, residual = int(orbits.steps[basin].median()), float(orbits.residuals[basin].median())
        facts = f"{radius:.4f}", f"{error:.3g}", steps, f"{residual:.3g}"
        rows.append((name, size, f"{size / n:.4f}", int(basin[0]), *facts))

    def write_index(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])

    write_atomically(folder / "prototypes" / "index.csv", write_index)
    sheet = draw_sheet(pictures, [row[1] for row in rows], len(attractors.labels))
    write_atomically(folder / "prototypes.png", lambda path: sheet.savefig(path, format="png", dpi=120))


def save_film(film: "Film", folder: Path) -> None:
    """`trajectories.png` in a run folder: a row an orbit, a column a frame."""
    save_frames(film.frames, folder / FILM)


def save_painted(model: "Autoencoder", folder: Path, batch_size: int = 8) -> dict[str, Any]:
    """`reconstructions.png` where the decoder is a surrogate: images above, what it makes of them below.

    Returns the key `reconstructions` of `results.json`, or nothing.
    """
    from fmprobe.surrogates.data import painted

    images = painted(model, batch_size)
    if images is None:
        return {}
    save_frames(images, folder / PAINTED)
    return {"reconstructions": {"picture": PAINTED, "images": images.shape[1]}}
