"""What a notebook shows of results: a small table and a plot; `figure_of` is their method `plot`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.report import plots
from fmprobe.report.ood import histogram
from fmprobe.report.rendering import render, to_svg
from fmprobe.report.summary import summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By key of results.json, the figure of its entry that says most.
FIGURES: "dict[str, Callable[[Mapping[str, Any]], Figure]]" = {
    "attractors": plots.basins_and_sweep,
    "weights": lambda entry: plots.weight_curves(entry, "image_mse", "image MSE"),
    "ood": lambda entry: histogram(entry["histograms"]["trajectory"]),
}


def figure_of(key: str, entry: Mapping[str, Any]) -> "Figure":
    """The figure of an entry of `results.json`."""
    return FIGURES[key](entry)


def html_of(results: Mapping[str, Any], figure: "Figure") -> str:
    """A table of what was found, and a figure, as HTML."""
    return str(render("notebook.html", rows=summary(results), svg=to_svg(figure, "plot", f"fmprobe-{id(figure)}")))
