"""The latent vector field as a picture, and as an animation over training; nothing is computed here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmprobe.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Basins by size; beyond eight the colours come again.
SHADES = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#999999")
BACKGROUND = "#ffffff"  # of orbits that end in no attractor


def plot_field(field: Mapping[str, Any], title: str = "") -> "Figure":
    """Arrows of one length coloured by the norm of V, basins shaded, attractors marked by stars.

    `field`: what `VectorField.to_dict` gives. Fumero et al., ICLR 2026, fig. 1, 3a.
    """
    figure = _empty()
    _draw(figure, field, title)
    return figure


def animate_fields(
    fields: Sequence[Mapping[str, Any]], titles: Sequence[str], path: Path, *, frames_a_second: int = 3
) -> None:
    """A GIF with one frame a field, all on one scale of colours; the last is held for five frames."""
    from matplotlib.animation import PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    span = _span([value for field in fields for value in _norms(field).ravel()])

    def save(temporary: Path) -> None:
        figure = _empty()
        FigureCanvasAgg(figure)
        writer = PillowWriter(fps=frames_a_second)
        with writer.saving(figure, str(temporary.with_suffix(".gif")), dpi=80):
            frames = [*zip(fields, titles, strict=True)]
            for field, title in frames + frames[-1:] * 4:
                figure.clear()
                _draw(figure, field, title, span)
                writer.grab_frame()
        temporary.with_suffix(".gif").replace(temporary)  # the writer goes by the suffix

    write_atomically(path, save)


def _empty() -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(6.4, 5.2), layout="constrained")


def _draw(figure: "Figure", field: Mapping[str, Any], title: str, span: tuple[float, float] | None = None) -> None:
    from matplotlib.colors import ListedColormap, LogNorm

    ax = figure.subplots()
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
    figure.colorbar(quiver, ax=ax, label="norm of the step  ||f(z) - z||")
    points = np.array(field["attractors"], dtype=float).reshape(-1, 2)
    ax.scatter(*points.T, marker="*", s=90, color="#D55E00", edgecolor="black", lw=0.5, zorder=3)
    ax.set_xlim(-1.05 * extent, 1.05 * extent)
    ax.set_ylim(-1.05 * extent, 1.05 * extent)
    ax.set_aspect("equal")
    ax.set_xlabel("first direction (latent units)")
    ax.set_ylabel("second direction (latent units)")
    ax.set_title(title or field["plane"], fontsize=10)


def _norms(field: Mapping[str, Any]) -> np.ndarray:
    return np.array(field["norms"], dtype=float)


def _span(norms: Any) -> tuple[float, float]:
    """Limits of the scale of colours: the positive, finite norms, two of them apart."""
    values = np.array(norms, dtype=float)
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return 0.1, 1.0
    return float(values.min()), float(max(values.max(), 1.01 * values.min()))
