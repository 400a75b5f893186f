"""Plots of what a run found, as inline SVG; nothing is computed here."""

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One colour a status, told apart also by those who see fewer colours (Okabe and Ito 2008).
COLOURS = {
    "converged": "#0072B2",
    "cycle": "#E69F00",
    "slow": "#009E73",
    "wandering": "#CC79A7",
    "diverged": "#D55E00",
}


def residual_curves(residuals: Mapping[str, Any], tol_norm: float | None) -> "Figure":
    """Norm of the step against the step, one line a start, coloured by status; `tol_norm` as a dashed line."""
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
    """Number of distinct ends against the merge threshold, the one used marked."""
    figure, ax = axes(f"merge threshold ({merge['measure']} distance)", "distinct ends")
    thresholds = [float(value) for value in merge["sweep"]]
    ax.plot(thresholds, list(merge["sweep"].values()), "o-", color=COLOURS["converged"], lw=1.5, ms=4)
    ax.axvline(merge["threshold"], color="grey", ls="--", lw=1)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.yaxis.get_major_locator().set_params(integer=True)
    return figure


def to_svg(figure: "Figure", title: str) -> str:
    """An SVG element that scales, with a title for those who cannot see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Identifiers must not meet those of another plot on the page.
    prefix = re.sub(r"\W", "", title)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\1{prefix}-", svg)
    return re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img"><title>{title}</title>', svg, count=1)


def axes(x: str, y: str) -> "tuple[Figure, Any]":
    """An empty figure with its axes labelled, as all plots of a page look."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax
