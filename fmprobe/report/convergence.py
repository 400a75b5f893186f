"""Plot of measured against estimated steps; nothing is computed here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.report.plots import SERIES, axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def convergence_scatter(entry: Mapping[str, Any]) -> "Figure":
    """Measured steps against those of prop. A.9, by either rate, with the line on which they are equal.

    `entry`: the key `convergence` of `results.json`.
    """
    figure, ax = axes("estimated steps  log(eps / ||z0 - z*||) / log(rho)", "measured steps")
    most = 1.0
    for (name, points), colour in zip(entry["estimates"].items(), SERIES, strict=False):
        known = "" if points["pearson"] is None else f", r = {points['pearson']:.2f}"
        label = f"rho: {name.replace('_', ' ')} ({len(points['measured'])} starts{known})"
        ax.plot(points["estimated"], points["measured"], "o", ms=3, alpha=0.5, color=colour, label=label)
        most = max([most, *points["estimated"], *points["measured"]])
    ax.plot([1, most], [1, most], color="grey", ls="--", lw=1, label="equal")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_title(f"Steps until {entry['eps']:g} from the attractor", fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    return figure
