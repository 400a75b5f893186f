"""What a notebook shows of results: a small table and a plot; `figure_of` is their method `plot`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmprobe.report import plots
from fmprobe.report.alignment import plot_alignment
from fmprobe.report.contraction import plot_contraction
from fmprobe.report.convergence import convergence_scatter
from fmprobe.report.fields import plot_field
from fmprobe.report.memorization import memorization_levels
from fmprobe.report.ood import histogram
from fmprobe.report.rendering import render, to_svg
from fmprobe.report.residuals import plot_residuals
from fmprobe.report.summary import summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By key of results.json, the figure of its entry that says most.
FIGURES: "dict[str, Callable[[Mapping[str, Any]], Figure]]" = {
    "attractors": plots.basins_and_sweep,
    "weights": lambda entry: plots.weight_curves(entry, "image_mse", "image MSE"),
    "memorization": memorization_levels,
    "field": plot_field,
    "convergence": convergence_scatter,
    "contraction": plot_contraction,
    "residual_curves": plot_residuals,
    "alignment": plot_alignment,
    "ood": lambda entry: histogram(entry["histograms"]["trajectory"]),
}


def figure_of(key: str, entry: Mapping[str, Any]) -> "Figure":
    """The figure of an entry of `results.json`."""
    return FIGURES[key](entry)


def html_of(results: Mapping[str, Any], figure: "Figure", warnings: Sequence[str] = ()) -> str:
    """A table of what was found, what speaks against it first, and a figure, as HTML."""
    rows = [("warning", text) for text in warnings] + summary(results)
    return str(render("notebook.html", rows=rows, svg=to_svg(figure, "plot", f"fmprobe-{id(figure)}")))
