"""Contraction along trajectories as a picture; nothing is computed here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.report.plots import axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {
    "norms": ("spectral norm of J", "#0072B2"),
    "radii": ("spectral radius of J", "#D55E00"),
    "local": ("finite differences", "#009E73"),
}


def plot_contraction(contraction: Mapping[str, Any]) -> "Figure":
    """Medians over starts against the step, with the band of four fifths of them; below the line at 1, f contracts.

    `contraction`: what `Contraction.to_dict` gives.
    """
    figure, ax = axes("step t of the trajectory", "factor by which f stretches at z[t]")
    for name, (label, colour) in LINES.items():
        rows = [
            (step, row["q10"], row["q50"], row["q90"])
            for step, row in zip(contraction["steps"], contraction[name] or [], strict=False)
            if row["known"]
        ]
        if rows:
            steps, low, median, high = zip(*rows, strict=True)
            ax.plot(steps, median, "o-", ms=3, lw=1.5, color=colour, label=label)
            ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    ax.axhline(1, color="grey", ls="--", lw=1)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_yscale("log")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8)
    return figure
