"""fmprobe residuals: do the steps of orbits fall, in latent space and in the images, and do norms stay bounded?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fmprobe import canvas
from fmprobe.errors import InputError
from fmprobe.probes.result import Result, probe_once
from fmprobe.progress import duration, progress_of
from fmprobe.report.sections import Section
from fmprobe.runs import options as o
from fmprobe.tables import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.inputs import ImagesLike

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
STARTS, STEPS = 32, 100  # by default
BUDGET = 90.0  # seconds that the orbits may take on a CPU, where nobody says how many steps
SHOWN = (1, 2, 5, 10, 30, 100, 300)  # steps that a table has, beside the last
PANELS = {
    "latent": "latent residual  ||z[t] - z[t-1]||",
    "output": "output residual  ||D(z[t]) - D(z[t-1])||",
    "norm": "latent norm  ||z[t]||",
}

Data = Annotated[
    str | None,
    typer.Option(
        help="Images whose latents are the starts, SOURCE[:split][#column]. [default: noise]",
        metavar="SOURCE",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images",
        min=1,
        help="Largest number of images of --data, spread evenly. [default: 32]",
        metavar="N",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Starts = Annotated[
    int | None,
    typer.Option(
        "--starts",
        "-n",
        min=1,
        help="Number of starts drawn from N(0, I). [default: 32]",
        metavar="N",
        rich_help_panel=o.Panel.SEARCH,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Number of steps that every start takes. [default: 100, fewer on a slow CPU]",
        metavar="N",
        rich_help_panel=o.Panel.SEARCH,
    ),
]


@o.grouped(options=o.RUN, load=o.LOAD)
def residuals(
    model: o.Model,
    data: Data = None,
    images: Images = None,
    starts: Starts = None,
    steps: Steps = None,
    batch_size: o.BatchSize = None,
    *,
    options: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Follow residuals and norms of orbits step by step.

    The orbits start from noise or from encoded images, and none ends early. An encoder without a decoder gets a
    surrogate: in closed form on a CPU, trained on an accelerator.

    Example: fmprobe residuals facebook/vit-mae-base --data photos --steps 50
    """
    if data is None and images is not None:
        raise InputError("--images counts the images of --data: give --data too, or --starts for noise")
    if data is not None and starts is not None:
        raise InputError("--starts counts noise starts, and --data gives others: leave out one of them")
    from fmprobe.digests import digest
    from fmprobe.hub import canonical
    from fmprobe.images import sample_images
    from fmprobe.runs.models import open_model

    sources = [] if data is None else [data]
    asked = {"data": [canonical(source) for source in sources], "images": images, "starts": starts}
    asked |= {"steps": steps, "batch_size": batch_size}
    seed = options["seed"]
    with open_model(model, options, asked, load, suffix="-residuals", sources=sources) as (run, loaded):
        given = identity = None
        if data is not None:
            given = sample_images(data, images or STARTS, seed=seed, **loaded.image_arguments)
            identity = digest(given)

        def probe(subject: "Autoencoder") -> tuple[Residuals, dict[str, Any]]:
            count = (starts or STARTS) if given is None else len(given)
            settings = _plan(subject, count, steps, batch_size)
            found = probe_residuals(subject, given, n=count, seed=seed, **settings)
            protocol = {"starts": found.starts, "n": count, "seed": seed, **settings}
            return found, protocol | ({} if data is None else {"data": data, "identity": identity})

        # The images of a source may change under its name.
        same = lambda entry: bool(entry) and run.results["protocol"].get("identity") == identity  # noqa: E731
        return probe_once(run, loaded, seed, Residuals, probe, same)


def _plan(model: "Autoencoder", starts: int, steps: int | None, batch_size: int | None) -> dict[str, int]:
    """Settings of `probe_residuals` that fit the device; those that are given stay."""
    from fmprobe.runs.plan import affordable_steps, measured_cost

    cost = measured_cost(model)
    step = starts * cost.seconds
    count = steps or affordable_steps(STEPS, BUDGET, step, model.device)
    typer.echo(f"{starts} starts, {count} steps each: about {duration(count * step)}")
    return {"steps": count, "batch_size": batch_size or cost.batch_size}


@dataclass(frozen=True)
class Residuals(Result):
    """Norms along n orbits of T steps, float32 `(n, T)`; column t - 1 belongs to step t.

    All are nan from where an orbit is not finite.

    Attributes:
        latent: ||z[t] - z[t-1]||.
        output: ||D(z[t]) - D(z[t-1])||, not clamped; None where the model has no images.
        norm: ||z[t]||.
        start_norm: ||z[0]||, `(n,)`.
        starts: what the starts are.
        seed: seed of the starts.
    """

    key: ClassVar[str] = "residual_curves"
    latent: "Tensor"
    output: "Tensor | None"
    norm: "Tensor"
    start_norm: "Tensor"
    starts: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The key `residual_curves` of `results.json`: quantiles over starts at each step, of those that are finite."""
        curves = {"latent": self.latent, "output": self.output, "norm": self.norm}
        return {
            "starts": self.starts,
            "n": len(self.latent),
            "seed": self.seed,
            "steps": list(range(1, self.latent.shape[1] + 1)),
            "finite": (self.latent == self.latent).sum(0).tolist(),
            "start_norm": float(self.start_norm.quantile(0.5)),
            **{name: None if values is None else _quantiles(values) for name, values in curves.items()},
        }


def probe_residuals(
    model: "Autoencoder",
    images: "ImagesLike | None" = None,
    *,
    n: int | None = None,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = 32,
) -> Residuals:
    """Residual of latents and of images, and norm of latents, step by step (Fumero et al., ICLR 2026, fig. 12, 16, 17).

    Args:
        model: the model.
        images: images `(n, *image_shape)`, or anything else that `Autoencoder.take_images` takes, whose latents are the
            starts; by default starts are drawn from N(0, I).
        n: number of starts, by default 32.
        steps: number of steps that every start takes, settled or not.
        seed: seed of the starts.
        batch_size: largest number of latents in one call of the model.

    Raises:
        InputError: the model has no latent map, a number is below 1, or `n` is not the number of `images`.
    """
    import torch

    from fmprobe.dynamics.curves import norms_along

    if images is not None:
        images = model.take_images(images)
        if n not in (None, len(images)):
            raise InputError(f"{len(images)} images are given, and n={n}: leave out one of them")
        n = len(images)
    count = STARTS if n is None else n
    if min(count, steps, batch_size) < 1:
        raise InputError(f"residual curves need starts, steps and a batch, got {count}, {steps} and {batch_size}")
    decode = model.decode if model.has_decoder else None
    encode = model.encode_unchecked if model.maps_through_images else None
    blocks, firsts = [], range(0, count, batch_size)
    with torch.no_grad(), progress_of("steps", len(firsts) * steps) as bar:
        for first in firsts:
            size = min(batch_size, count - first)
            if images is None:
                latents = model.sample_latents(size, seed, first)
            else:
                latents = model.encode(images[first : first + size])
            blocks.append(
                norms_along(model.latent_map, latents, steps, decode=decode, encode=encode, stepped=bar.update)
            )
    curves = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    what = "N(0, I)" if images is None else "images, encoded"
    return Residuals(
        curves["latent"], curves.get("output"), curves["norm"], curves["start_norm"][:, 0], starts=what, seed=seed
    ).about(model)


def _quantiles(values: "Tensor") -> dict[str, list[float | None]]:
    """By name of the quantile, one value a step, None where no orbit is finite."""
    import numpy as np

    table: dict[str, list[float | None]] = {f"q{round(100 * q)}": [] for q in QUANTILES}
    for column in values.T:
        known = column[column == column].double().numpy()
        found = np.quantile(known, QUANTILES) if len(known) else [None] * len(QUANTILES)
        for row, value in zip(table.values(), found, strict=True):
            row.append(None if value is None else float(f"{value:.6g}"))
    return table


def plot_residuals(residuals: Mapping[str, Any], title: str = "") -> "Figure":
    """Median over the starts, with the bands that hold half and four fifths of them, one panel a norm.

    `residuals`: what `Residuals.to_dict` gives. Fumero et al., ICLR 2026, fig. 12, 16, 17.
    """
    shown = [name for name in PANELS if residuals[name] is not None]
    figure, panels = canvas.panels(1, len(shown), (3.4 * len(shown), 3.2))
    for ax, name in zip(panels, shown, strict=True):
        known = [value is not None for value in residuals[name]["q50"]]
        steps = [step for step, there in zip(residuals["steps"], known, strict=True) if there]
        curve = {q: [v for v in values if v is not None] for q, values in residuals[name].items()}
        ax.plot(steps, curve["q50"], color="#0072B2", lw=1.6, label="median")
        ax.fill_between(steps, curve["q25"], curve["q75"], color="#0072B2", alpha=0.3, lw=0, label="half")
        ax.fill_between(steps, curve["q10"], curve["q90"], color="#0072B2", alpha=0.12, lw=0, label="four fifths")
        ax.set_xscale("log")
        if any(value > 0 for value in curve["q50"]):
            ax.set_yscale("log")
        ax.set_xlabel("step t")
        ax.set_ylabel(PANELS[name])
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    canvas.title(figure, panels, title or f"{residuals['n']} starts: {residuals['starts']}")
    return figure


def lines(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How far the residual has fallen at the last step."""
    median = entry["latent"]["q50"]
    text = (
        f"median {number(median[-1], '.3g')} at step {entry['steps'][-1]}, {number(_fall(median), '.2g')} of the first"
    )
    return [("latent residual", f"{text}; {entry['n']} starts: {entry['starts']}")]


def sentence(entry: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """How far the step fell."""
    fall, last = _fall(entry["latent"]["q50"]), entry["steps"][-1]
    if fall is None:
        return ""
    return f"After {last} steps, the median step of {entry['n']} orbits is {number(fall, '.2g')} times the first one."


def medians(entry: Mapping[str, Any]) -> list[Table]:
    """Medians over the starts at a few steps, and how far each fell."""
    last = entry["steps"][-1]
    steps = [step for step in SHOWN if step < last] + [last]
    rows = [
        (name.split("  ")[0], *(entry[key]["q50"][step - 1] for step in steps), _fall(entry[key]["q50"]))
        for key, name in PANELS.items()
        if entry[key] is not None
    ]
    lead = f"The median norm of the starts is {entry['start_norm']:.4g}."
    if (lost := entry["n"] - entry["finite"][-1]) > 0:
        lead += f" {lost} of {entry['n']} orbits are not finite at the end, and left out from there on."
    title = f"Medians over {entry['n']} starts ({entry['starts']}), by step"
    return [Table(title, rows, ("norm", *map(str, steps), "last / first"), lead)]


def _fall(median: list[float | None]) -> float | None:
    """The last value over the first."""
    first, last = median[0], median[-1]
    return last / first if first and last is not None else None


SECTIONS = (
    Section(
        "residual_curves",
        "Residuals in latent space and in images",
        "Each line is the median over the starts. The bands hold half and four fifths of them.",
        sentence=sentence,
        lines=lines,
        tables=medians,
        figures=lambda entry: {"residuals against the step": plot_residuals(entry)},
    ),
)
COMMANDS = {"residuals": residuals}
