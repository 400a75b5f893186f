"""What a notebook shows of results: a small table and the most important figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmprobe.registry import sections
from fmprobe.report.rendering import render, to_svg
from fmprobe.report.summary import summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_of(key: str, entry: Mapping[str, Any]) -> "Figure":
    """The first figure of an entry of `results.json`."""
    return next(figure for section in sections() if section.key == key for figure in section.figures(entry).values())


def html_of(results: Mapping[str, Any], figure: "Figure", warnings: Sequence[str] = ()) -> str:
    """Warnings about the results, a figure and what was found, as HTML."""
    svg = to_svg(figure, "plot", f"fmprobe-{id(figure)}")
    return str(render("notebook.html", rows=summary(results), warnings=warnings, svg=svg))
