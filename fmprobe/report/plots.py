"""Plots of what a run found. Nothing is computed here."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.canvas import legend, panels
from fmprobe.report.rendering import known

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One colour for each status, distinguishable also with colour blindness (Okabe and Ito 2008).
COLOURS = {
    "converged": "#0072B2",
    "cycle": "#E69F00",
    "slow": "#009E73",
    "wandering": "#CC79A7",
    "diverged": "#D55E00",
}

SERIES = ("#0072B2", "#D55E00", "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#000000")


def residual_curves(residuals: Mapping[str, Any], tol_norm: float | None) -> "Figure":
    """Norm of the step against the number of steps, one line per start, coloured by status; `tol_norm` is dashed."""
    figure, ax = axes("step", "norm of the step  ||f(z) - z||")
    seen: set[str] = set()
    for norms, status in zip(residuals["norms"], residuals["status"], strict=True):
        known = [(step, norm) for step, norm in zip(residuals["steps"], norms, strict=False) if norm]
        if known:
            label = None if status in seen else status
            seen.add(status)
            ax.plot(*zip(*known, strict=True), color=COLOURS[status], lw=1, alpha=0.7, label=label)
    if tol_norm:
        ax.axhline(tol_norm, color="grey", ls="--", lw=1, label="tolerance")
    ax.set_xscale("log")
    ax.set_yscale("log")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9)
    return figure


def merge_sweep(merge: Mapping[str, Any]) -> "Figure":
    """Number of distinct ends against the merge threshold. The threshold that was used is marked."""
    figure, ax = axes("", "")
    _draw_sweep(ax, merge)
    return figure


def basins_and_sweep(attractors: Mapping[str, Any]) -> "Figure":
    """Sizes of the basins, and next to them the number of distinct ends against the merge threshold."""
    figure, (basins, sweep) = panels(1, 2, (9, 3.2))
    sizes = attractors["sizes"]
    basins.bar(range(1, len(sizes) + 1), sizes, color=COLOURS["converged"])
    basins.set_xlabel("attractor, largest basin first")
    basins.set_ylabel("starts in its basin")
    _draw_sweep(sweep, attractors["merge"])
    for ax in (basins, sweep):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_sweep(ax: Any, merge: Mapping[str, Any]) -> None:
    thresholds = [float(value) for value in merge["sweep"]]
    ax.plot(thresholds, list(merge["sweep"].values()), "o-", color=COLOURS["converged"], lw=1.5, ms=4)
    ax.axvline(merge["threshold"], color="grey", ls="--", lw=1)
    ax.set_xlabel(f"merge threshold ({merge['measure']} distance)")
    ax.set_ylabel("distinct ends")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.yaxis.get_major_locator().set_params(integer=True)


def weight_curves(curves: Mapping[str, Any], metric: str, label: str) -> "Figure":
    """A metric against the number of atoms, one line with its interval for each dictionary. The model's own line is
    thick.
    """
    figure, ax = axes("atoms", label)
    finite = False
    for i, (name, row) in enumerate(curves["dictionaries"].items()):
        colour, style = SERIES[i % len(SERIES)], "-" if i == 0 else "--"
        mean, low, high = (known(level[key] for level in row[metric]) for key in ("mean", "low", "high"))
        finite = finite or any(map(math.isfinite, mean))
        ax.plot(curves["levels"], mean, style, marker="o", ms=3, lw=2.2 if i == 0 else 1.2, color=colour, label=name)
        band = "95% interval over images" if i == 0 else None
        ax.fill_between(curves["levels"], low, high, color=colour, alpha=0.12, lw=0, label=band)
    for key, style, name in (("zero", "-.", "D(0), no atom"), ("own", ":", "D(E(x))")):
        ax.axhline(*known([curves[key][metric]["mean"]]), color="grey", ls=style, lw=1, label=name)
    if not finite:  # no point determines the extent of the axis
        ax.set_xlim(curves["levels"][0] / 2, 2 * curves["levels"][-1])
    ax.set_xscale("log", base=2)
    ax.set_xticks(curves["levels"], [str(level) for level in curves["levels"]])
    legend(figure, ax, 3)
    return figure


def axes(x: str, y: str) -> "tuple[Figure, Any]":
    """Labelled axes of a figure of one panel, in the style of all plots of a page."""
    figure, (ax,) = panels(1, 1, (6.4, 3.6))
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax
