"""The report of `fmprobe ood`: histograms and the table of every score on every set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError
from fmprobe.report.html import facts_of, rounded
from fmprobe.report.plots import axes, to_svg
from fmprobe.runs import RunFolder, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito 2008; in-distribution is the filled grey one.
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")


def write_ood_report(folder: Path) -> Path:
    """Make `report.html` from what a finished run of `fmprobe ood` left in its folder; returns its path.

    Raises InputError where the folder holds no such run.
    """
    from jinja2 import Environment, PackageLoader

    results = RunFolder(folder).results
    if results is None or "ood" not in results:
        raise InputError(f"{folder} holds no finished run of fmprobe ood: run its command again")
    ood = results["ood"]
    environment = Environment(loader=PackageLoader("fmprobe.report", "."), autoescape=True, trim_blocks=True)
    environment.filters["rounded"] = rounded
    sets = [name for name in ood["sets"] if name != "in-distribution"]
    page = environment.get_template("ood.html").render(
        results=results,
        ood=ood,
        sets=sets,
        best={name: max(row["sets"][name]["auroc"] for row in ood["scores"]) for name in sets},
        plots={name: to_svg(histogram(h), f"Histogram of {name}") for name, h in ood["histograms"].items()},
        facts=facts_of(results),
    )
    path = folder / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


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
    ax.legend(frameon=False, fontsize=8)
    return figure
