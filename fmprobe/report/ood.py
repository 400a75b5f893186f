"""The section of `fmprobe ood`: histograms and the table of every score on every set."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.report.plots import axes
from fmprobe.report.rendering import plot, render

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.run import Run

# Okabe and Ito 2008, without the yellow that white hides; in-distribution is the filled grey one.
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")


def ood(found: Mapping[str, Any], run: "Run") -> "Markup":
    """The sets, the histograms and the table."""
    sets = [name for name in found["sets"] if name != "in-distribution"]
    return render(
        "ood.html",
        ood=found,
        sets=sets,
        best={name: max(row["sets"][name]["auroc"] for row in found["scores"]) for name in sets},
        plots={name: plot(histogram(h), f"Histogram of {name}", run) for name, h in found["histograms"].items()},
    )


def scored(found: Mapping[str, Any], run: "Run") -> "Markup":
    """What a detector said of new images."""
    names = ("images", "accepted", "unreadable", "not_finite", "rule", "threshold", "data")
    rows = [(name.replace("_", " "), found[name]) for name in names if name in found]
    return render("table.html", title="Scored images", head=None, rows=rows)


def histogram(content: Mapping[str, Any]) -> "Figure":
    """Share of each set's images a bin of the score: in-distribution filled, the others as lines."""
    figure, ax = axes("score (the end bins hold what lies beyond)", "share of the images")
    edges = content["edges"]
    others = [name for name in content["counts"] if name != "in-distribution"]
    for name, counts in content["counts"].items():
        shares = [count / max(1, sum(counts)) for count in counts]
        if name == "in-distribution":
            ax.stairs(shares, edges, fill=True, color="#bbbbbb", label=name)
        else:
            i = others.index(name)
            ax.stairs(
                shares, edges, color=LINES[i % len(LINES)], lw=1.4, ls="-" if i < len(LINES) else "--", label=name
            )
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return figure
