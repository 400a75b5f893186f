"""fmprobe field: where does a step lead? The latent vector field V(z) = f(z) - z on a plane, and its basins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from fmprobe.canvas import panels
from fmprobe.files import write_atomically
from fmprobe.probes.prototypes import attractors_in, decoded, open_prototypes
from fmprobe.probes.result import Result
from fmprobe.report.sections import Section
from fmprobe.runs import options as o
from fmprobe.tables import Table

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from fmprobe.attractors import AttractorSet
    from fmprobe.dynamics.fields import Plane

FINEST, COARSEST = 25, 9  # grid points a side, by default
BUDGET = 120.0  # seconds that the grid's orbits may take on a CPU, where nobody says how fine the grid is
# Basins by size; beyond eight the colours come again.
SHADES = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#999999")
SIZE = (6.4, 5.2)  # of the figure, in inches
BACKGROUND = "#ffffff"  # of orbits that end in no attractor

Resolution = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Number of grid points a side. [default: 25, fewer on a slow CPU]",
        metavar="N",
        rich_help_panel="Field",
    ),
]
Basins = Annotated[
    bool,
    typer.Option(
        "--basins/--no-basins",
        help="Iterate every grid point to its end, to shade the basins.",
        rich_help_panel="Field",
    ),
]


@o.grouped(options=o.RUN, plan=o.PLAN, load=o.LOAD)
def field(
    model: o.Model,
    resolution: Resolution = None,
    basins: Basins = True,
    *,
    options: dict[str, Any],
    plan: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Draw the latent vector field on a plane of attractors.

    The plane goes through the three largest attractors. They are those of `probe` under the same options. What its run
    folder holds is not computed again.

    Example: fmprobe field facebook/vit-mae-base --resolution 15
    """
    from fmprobe.pictures import save_figure
    from fmprobe.progress import duration
    from fmprobe.sharing import is_main

    seed = options["seed"]
    with open_prototypes(model, options, plan, load) as (run, loaded):
        subject, protocol = decoded(run, loaded, seed), run.results["protocol"]
        attractors = attractors_in(run, subject)
        side = resolution or _affordable(protocol, subject.device.type == "cpu")

        def make() -> dict[str, Any] | None:
            if not is_main():
                return None  # one process draws what all have found
            cost = side**2 * (protocol["max_steps"] if basins else 1) * protocol["seconds_per_row"]
            typer.echo(f"{side} x {side} grid points: at most {duration(cost)}")
            found = vector_field(
                subject,
                attractors=attractors,
                resolution=side,
                basins=basins,
                seed=seed,
                progress=None,
                stability_cap=protocol["stability_cap"],
                **{key: protocol[key] for key in SEARCH},
            )
            save_figure(found.draw(), run.path / "field.png")
            return {"field": found.to_dict()}

        same = lambda entry: bool(entry) and _is_of(entry, side, basins)  # noqa: E731
        run.once("field", make, same=same, what="this")
        return run.finish("field")


SEARCH = ("tol", "measure", "max_steps", "batch_size", "merge", "merge_threshold")  # of the run's protocol


def _affordable(protocol: Mapping[str, Any], slow: bool) -> int:
    """Grid points a side whose orbits a CPU can follow in its budget, should none of them settle."""
    cost = protocol["max_steps"] * protocol["seconds_per_row"]
    affordable = math.isqrt(int(BUDGET / cost)) if slow and cost > 0 else FINEST
    return max(COARSEST, min(FINEST, affordable))


def _is_of(entry: Mapping[str, Any], resolution: int, basins: bool) -> bool:
    """Whether an entry of `results.json` has this grid, with or without basins."""
    return len(entry["ticks"]) == resolution and (entry["basins"] is not None) == basins


@dataclass(frozen=True)
class VectorField(Result):
    """V on a square grid of a plane, row i at `ticks[i]` along the second direction, column j along the first.

    Attributes:
        plane: the plane.
        ticks: coordinates `(g,)` of the grid, in latent units.
        arrows: V projected on the plane, `(g, g, 2)`.
        norms: norm of the full V, `(g, g)`; inf where f is not finite.
        outside: share of |V|^2 that the projection loses, `(g, g)`; nan where V is zero or not finite.
        basins: index of the attractor that the orbit of each grid point ends in, `(g, g)`, -1 for none; None if not
            asked for.
        attractors: where those orbits end, or the set that was given; None where there is neither.
    """

    key: ClassVar[str] = "field"
    plane: "Plane"
    ticks: "Tensor"
    arrows: "Tensor"
    norms: "Tensor"
    outside: "Tensor"
    basins: "Tensor | None"
    attractors: "AttractorSet | None"

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` keeps and the plot draws; values that are not finite become None."""
        found, outside = self.attractors, self.outside[self.outside == self.outside].double()
        points = self.ticks.new_zeros(0, 2) if found is None else self.plane.coordinates(found.latents)
        return {
            "plane": self.plane.label,
            "extent": self.plane.extent,
            "latent_shape": list(self.plane.origin.shape),
            "ticks": _listed(self.ticks),
            "arrows": _listed(self.arrows),
            "norms": _listed(self.norms),
            "outside": {
                "median": float(outside.median()) if len(outside) else None,
                "max": float(outside.max()) if len(outside) else None,
            },
            "basins": None if self.basins is None else self.basins.tolist(),
            "attractors": _listed(points),
            "orbits": None if self.basins is None or found is None else found.orbits.to_dict(),
        }


def vector_field(
    model: Any,
    plane: "Plane | Literal['attractors', 'components'] | None" = None,
    *,
    points: "Tensor | None" = None,
    attractors: "AttractorSet | None" = None,
    resolution: int = 25,
    basins: bool = True,
    seed: int = 0,
    batch_size: int = 256,
    **settings: Any,
) -> VectorField:
    """The latent vector field on a plane (Fumero et al., ICLR 2026, eq. 4, fig. 1, 3a).

    Args:
        model: an Autoencoder; or any f on a batch of latents, with a `Plane`.
        plane: a `Plane`; "attractors", through the three largest of `attractors`; or "components", the first two
            principal components of `points`. By default the latent space itself where it has two dimensions, else the
            plane through the largest attractors, with starts in place of those that are missing.
        points: latents `(n, *latent_shape)`.
        attractors: attractors that the plane is laid through; by default found from N(0, I).
        resolution: number of grid points a side.
        basins: whether every grid point is iterated to its end.
        seed: seed of the starts.
        batch_size: largest number of latents in one call of f.
        settings: of `find_attractors` (`tol`, `measure`, `max_steps`, `merge`, …).

    Raises:
        ValueError: there is no such plane, or a setting makes no sense.
    """
    import torch

    from fmprobe.attractors import find_attractors
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.dynamics.checks import check_counts
    from fmprobe.dynamics.fields import Plane, field_at
    from fmprobe.dynamics.norms import norms

    f = getattr(model, "latent_map", model)
    check_counts(2, resolution=resolution)
    check_counts(batch_size=batch_size)
    search = {"batch_size": batch_size, "progress": False, **settings}
    if not isinstance(plane, Plane):
        plane, attractors = _choose(model, plane, points, attractors, seed, search)
    ticks = torch.linspace(-plane.extent, plane.extent, resolution, dtype=plane.origin.dtype)
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    grid = plane.at(torch.stack([columns, rows], -1).reshape(-1, 2))
    steps = field_at(f, grid, batch_size).flatten(1)
    arrows = steps @ plane.directions.flatten(1).T
    lengths = norms(steps)
    # By the remainder, since a difference of nearly equal norms would be rounding.
    rest = norms(steps - arrows @ plane.directions.flatten(1))
    labels = None
    if basins:
        attractors = find_attractors(model, starts=grid, **search)
        labels = attractors.labels.reshape(resolution, resolution).cpu()
    square = (resolution, resolution)
    made = VectorField(
        plane=plane,
        ticks=ticks,
        arrows=arrows.reshape(*square, 2).cpu(),
        norms=lengths.nan_to_num(nan=torch.inf, posinf=torch.inf).to(steps.dtype).reshape(square).cpu(),
        outside=(rest / lengths).square().to(steps.dtype).reshape(square).cpu(),
        basins=labels,
        attractors=attractors,
    )
    return made.about(model) if isinstance(model, Autoencoder) else made


def _choose(
    model: Any, plane: str | None, points: "Tensor | None", attractors: "AttractorSet | None", seed: int, search: Any
) -> "tuple[Plane, AttractorSet | None]":
    """The plane asked for by name, or the default one, and the attractors that it was laid through."""
    import torch

    from fmprobe.attractors import find_attractors
    from fmprobe.dynamics.fields import Plane

    if plane == "components":
        if points is None:
            raise ValueError('plane "components" needs points of shape (n, *latent_shape)')
        return Plane.principal(points), attractors
    if plane not in (None, "attractors"):
        raise ValueError(f'unknown plane {plane!r}: expected a Plane, "attractors" or "components"')
    if not hasattr(model, "sample_latents"):
        raise ValueError("a bare f does not say what its latents are: pass a Plane")
    starts = model.sample_latents(3, seed=seed)
    if plane is None and starts[0].numel() == 2:
        return Plane.axes(starts), attractors
    if attractors is None:
        attractors = find_attractors(model, seed=seed, **search)
    largest = attractors.latents[:3].to(starts)
    if plane == "attractors" and len(largest) < 3:
        raise ValueError(f'plane "attractors" needs three attractors, there are {len(largest)}: leave plane out')
    label = f"through {len(largest)} attractor{'s' * (len(largest) != 1)}"
    label += f" and {3 - len(largest)} N(0, I) start{'s' * (len(largest) != 2)}" * (len(largest) < 3)
    return Plane.through(torch.cat([largest, starts[: 3 - len(largest)]]), label), attractors


def _listed(values: "Tensor") -> Sequence[Any]:
    """Nested lists rounded to four digits, None where not finite."""
    if values.ndim > 1:
        return [_listed(row) for row in values]
    return [float(f"{v:.4g}") if v == v and abs(v) != float("inf") else None for v in values.tolist()]


def plot_field(field: Mapping[str, Any], title: str = "") -> "Figure":
    """Arrows of one length coloured by the norm of V, basins shaded, attractors marked by stars.

    `field`: the entry of `results.json`. Fumero et al., ICLR 2026, fig. 1, 3a.
    """
    figure, (ax,) = panels(1, 1, SIZE)
    _draw(ax, field, title)
    return figure


def animate_fields(
    fields: Sequence[Mapping[str, Any]], titles: Sequence[str], path: Path, *, frames_a_second: int = 3
) -> None:
    """A GIF with one frame a field, all on one scale of colours; the last is held for five frames."""
    from matplotlib.animation import PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    span = _span([value for field in fields for value in _norms(field).ravel()])

    def save(temporary: Path) -> None:
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        writer = PillowWriter(fps=frames_a_second)
        with writer.saving(figure, str(temporary.with_suffix(".gif")), dpi=80):
            frames = [*zip(fields, titles, strict=True)]
            for field, title in frames + frames[-1:] * 4:
                figure.clear()
                _draw(figure.subplots(), field, title, span)
                writer.grab_frame()
        temporary.with_suffix(".gif").replace(temporary)  # the writer goes by the suffix

    write_atomically(path, save)


def _draw(ax: "Axes", field: Mapping[str, Any], title: str, span: tuple[float, float] | None = None) -> None:
    import numpy as np
    from matplotlib.colors import ListedColormap, LogNorm

    ticks, extent = field["ticks"], field["extent"]
    if field["basins"] is not None:
        basins = np.array(field["basins"])
        colours = [BACKGROUND, *(SHADES[i % len(SHADES)] for i in range(max(1, basins.max() + 1)))]
        half = (ticks[1] - ticks[0]) / 2
        edges = (ticks[0] - half, ticks[-1] + half) * 2
        ax.imshow(
            basins + 1,
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=len(colours) - 0.5,
            origin="lower",
            extent=edges,
            alpha=0.3,
            interpolation="nearest",
        )
    arrows, norms = np.array(field["arrows"], dtype=float), _norms(field)
    lengths = np.hypot(arrows[..., 0], arrows[..., 1])
    # A field that leaves the plane at right angles has no direction in it.
    units = np.divide(arrows, lengths[..., None], out=np.zeros_like(arrows), where=lengths[..., None] > 0)
    low, high = span or _span(norms.ravel())
    quiver = ax.quiver(
        ticks,
        ticks,
        units[..., 0],
        units[..., 1],
        np.where(np.isfinite(norms), norms, high),
        cmap="viridis",
        norm=LogNorm(low, high),
        pivot="mid",
        angles="xy",
        scale=1.3 * len(ticks),
        width=0.003,
    )
    ax.figure.colorbar(quiver, ax=ax, label="norm of the step  ||f(z) - z||")
    points = np.array(field["attractors"], dtype=float).reshape(-1, 2)
    ax.scatter(*points.T, marker="*", s=90, color="#D55E00", edgecolor="black", lw=0.5, zorder=3)
    ax.set_xlim(-1.05 * extent, 1.05 * extent)
    ax.set_ylim(-1.05 * extent, 1.05 * extent)
    ax.set_aspect("equal")
    ax.set_xlabel("first direction (latent units)")
    ax.set_ylabel("second direction (latent units)")
    ax.set_title(title or field["plane"], fontsize=10)


def _norms(field: Mapping[str, Any]) -> "np.ndarray":
    import numpy as np

    return np.array(field["norms"], dtype=float)


def _span(norms: Any) -> tuple[float, float]:
    """Limits of the scale of colours: the positive, finite norms, two of them apart."""
    import numpy as np

    values = np.array(norms, dtype=float)
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return 0.1, 1.0
    return float(values.min()), float(max(values.max(), 1.01 * values.min()))


def lines(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The plane, and the share of the grid that lies in a basin."""
    return [("field", "; ".join([entry["plane"], *_in_basins(entry)]))]


def sentence(entry: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The share of the plane that lies in a basin."""
    return "".join(f"On the plane {entry['plane']}, {share}." for share in _in_basins(entry))


def _in_basins(entry: Mapping[str, Any]) -> list[str]:
    """The share of the grid that lies in a basin, where it is known."""
    if entry["basins"] is None:
        return []
    labels = [label for row in entry["basins"] for label in row]
    return [f"{sum(label >= 0 for label in labels)} of {len(labels)} grid points lie in a basin of attraction"]


def numbers(entry: Mapping[str, Any]) -> list[Table]:
    """Size of the steps on the grid, and how much of them the plane shows."""
    norms = sorted(value for row in entry["norms"] for value in row if value is not None)
    rows: list[tuple[str, Any]] = [
        ("grid points a side", len(entry["ticks"])),
        ("extent of the plane from its centre, in latent units", entry["extent"]),
        ("norm of the step ||f(z) - z||, median", norms[len(norms) // 2] if norms else None),
        ("share of its square that lies outside the plane, median", entry["outside"]["median"]),
    ]
    if entry["basins"] is not None:
        rows.append(("attractors that the grid points end in", len(entry["attractors"])))
    return [Table("The field on the plane", rows)]


SECTIONS = (
    Section(
        "field",
        "The latent vector field",
        "The figure shows V(z) = f(z) - z on a plane. Arrows are coloured by its norm, basins of attraction are "
        "shaded, and attractors are stars. A grid point that is not shaded ends in no attractor.",
        sentence=sentence,
        lines=lines,
        tables=numbers,
        figures=lambda entry: {"vector field": plot_field(entry)},
    ),
)
COMMANDS = {"field": field}
