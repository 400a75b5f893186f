"""The section of `fmprobe capacity`: the diagram, its table, and what both sets of images share."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmprobe.report.plots import axes
from fmprobe.report.sections import Section
from fmprobe.tables import Cell, Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "A": ("images A", "#0072B2", "o"),
    "B": ("images B", "#D55E00", "s"),
    "null": ("random weights", "#000000", "x"),
}

Entry = Mapping[str, Any]


def lines(entry: Entry) -> list[tuple[str, str]]:
    """What survives, up to where orbits settle, and the exponents with all features."""
    rows = [("what survives", entry["sentence"]), ("settling", entry["surrogate"])]
    if entry["exponent"] is not None:
        figures = f"{number(entry['exponent'], '.3f')} ± {number(entry['error'], '.3f')} nats a step"
        if entry["null_exponent"] is not None:
            figures += f"; under random weights {number(entry['null_exponent'], '.3f')}"
        rows.append(("exponent, all features", figures))
    return rows


def survivors(entry: Entry) -> list[Table]:
    """What the two sets of images share, and what the null shows."""
    sets = ("images A and B", "random weights")
    rows = [
        ("largest number of components tried, k =", entry["tried_to"], entry["tried_to"]),
        ("orbits settle up to k =", entry["settles_to"], entry["null_settles_to"]),
        ("chaotic from k =", entry["chaos_from"], entry["null_chaos_from"]),
        ("regime with all features", entry["full"] or "not shared", entry["full_null"]),
        ("exponent with all features, nats a step", _with_error(entry), Cell(entry["null_exponent"], ".3f")),
        ("standard errors between them", Cell(entry["apart"], ".1f"), None),
        ("the decoders of all features paint better than the median colour", _yes(entry["paints"]), None),
        ("random weights differ by more than 3 standard errors", _yes(entry["differs"]), None),
        ("A and B share the regime", _yes(entry["shared"]), None),
        ("the finding with all features is the encoder's", _yes(entry["of_the_encoder"]), None),
        ("all attractors match up to k =", entry["matched_at"], None),
    ]
    return [Table("What survives", rows, ("", *sets))]


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "not known"}[value]


def _with_error(entry: Entry) -> Cell:
    note = "" if entry["error"] is None else f"± {number(entry['error'], '.3f')}"
    return Cell(entry["exponent"], ".3f", note=note)


def diagram_tables(points: Sequence[Entry]) -> list[Table]:
    """A row a point."""
    rows = [
        (
            f"{point['k']}{' (all features)' if point['form'] == 'ridge' else ''}, {STYLE[point['set']][0]}",
            f"{point['settled']} of {point['starts']}",
            point["attractors"],
            Cell(point["exponent"], ".3f", note=_interval(point["interval"]), hint=_error(point["standard_error"])),
            point["regime"],
            Cell(point["l1"], ".3f", note=f"median colour {number(point['l1_median'], '.3f')}"),
        )
        for point in points
    ]
    lead = "Exponents are in nats a step, medians over starts with their interval. L1 errors are on held-out images."
    head = ("k, images", "settled", "attractors", "exponent", "regime", "L1")
    return [Table("The diagram over capacity", rows, head, lead)]


def agreement_tables(agreements: Sequence[Entry]) -> list[Table]:
    """A row a number of components: how far the attractors of A and B agree."""
    rows = [
        (
            str(one["k"]),
            f"{one['matched']} of {one['of']}",
            Cell(one["distance"], ".2f"),
            Cell(one["correlation"], ".2f"),
        )
        for one in agreements
    ]
    lead = (
        "Attractors are paired one to one by their pictures. A pair matches where its relative difference is within "
        "the merge threshold. The last column compares the mean pictures of where orbits end, less the mean image."
    )
    return [Table("Agreement of A and B", rows, ("k", "matched", "difference", "correlation"), lead)]


def _error(value: float | None) -> str:
    return f"standard error of an orbit that moves: {number(value, '.3f')}"


def _interval(bounds: Sequence[float | None]) -> str:
    return f"{number(bounds[0], '.3f')} to {number(bounds[1], '.3f')}"


def plot_capacity(points: Sequence[Entry]) -> "Figure":
    """Exponent against k with intervals over starts, a line a set; filled markers where at least 90% settled."""
    figure, ax = axes("numbers that a latent keeps, k", "largest Lyapunov exponent (nats a step)")
    for name, (label, colour, marker) in STYLE.items():
        rows = [p for p in points if p["set"] == name and p["exponent"] is not None]
        if not rows:
            continue
        ks, values = [p["k"] for p in rows], [p["exponent"] for p in rows]
        ax.plot(ks, values, "-", color=colour, lw=1, label=label)
        for p in rows:
            fill = colour if p["settled"] >= 0.9 * p["starts"] or marker == "x" else "white"
            ax.plot(p["k"], p["exponent"], marker, color=colour, mfc=fill, ms=6)
            low, high = (p["exponent"] if bound is None else bound for bound in p["interval"])
            ax.vlines(p["k"], low, high, color=colour, lw=1)
    ax.axhline(0, color="grey", ls="--", lw=1)
    ax.set_xscale("log", base=2)
    if ax.get_legend_handles_labels()[0]:
        said = "bars: interval over starts\nfilled: at least 90% settled"
        ax.legend(frameon=False, fontsize=9, title=said, title_fontsize=9)
    return figure


def figures(points: Sequence[Entry]) -> "dict[str, Figure]":
    """The diagram, if an exponent is known."""
    known = [p for p in points if p["exponent"] is not None and math.isfinite(p["exponent"])]
    title = "Exponent against capacity. Filled markers: at least 90% of the starts settled. Bars: interval over starts"
    return {title: plot_capacity(points)} if known else {}


SECTIONS = (
    Section(
        "what_survives",
        "What survives",
        "A finding is the encoder's where surrogates from two disjoint sets of images share it, random weights do not, "
        "and the surrogates paint better than each image's own median colour. Surrogates here are linear decoders in "
        "closed form. No surrogate passes the rule of recipes/surrogate_choice.py, and the closed form of all features "
        "comes nearest.",
        sentence=lambda entry, results: entry["sentence"],
        lines=lines,
        tables=survivors,
    ),
    Section(
        "capacity",
        "Capacity",
        "A latent keeps k principal components of the features. The more it keeps, the less f contracts. Below an "
        "exponent of 0 orbits settle, above 0 they are chaotic.",
        tables=diagram_tables,
        figures=figures,
    ),
    Section(
        "agreement",
        "Agreement of the two sets of images",
        "The same search with surrogates from disjoint images. What differs between them is the surrogate's.",
        tables=agreement_tables,
    ),
)
