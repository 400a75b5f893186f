"""Plots of what an AttractorTracker recorded; nothing is computed here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmprobe.report.plots import SERIES, axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"train": SERIES[0], "test": SERIES[2], "noise": SERIES[1]}


def training_curves(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Four panels along the epochs, one record each: attractors, noise against training, memorization, errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    counts, sets, memory, error = figure.subplots(2, 2).ravel()
    for kind, colour in KINDS.items():
        _line(counts, records, (kind, "distinct"), f"{kind}: distinct attractors", colour)
        _line(counts, records, (kind, "converged"), f"{kind}: settled", colour, ls=":")
    counts.set_ylabel("share of the starts")
    _line(sets, records, ("chamfer",), "Chamfer similarity, noise and training sets", SERIES[0])
    _line(sets, records, ("matched", "train"), "training attractors met by noise", SERIES[2])
    _line(sets, records, ("matched", "noise"), "noise attractors met by training", SERIES[1])
    _line(sets, records, ("fpr95",), "FPR95 of trajectories", SERIES[4], ls="--")
    sets.set_ylabel("share, or cosine")
    for kind in ("train", "noise"):
        _line(memory, records, ("memorization", kind, "mean"), f"{kind} starts", KINDS[kind])
    memory.set_ylabel("cosine to the nearest training image")
    _line(error, records, ("test_error",), "test error", "grey")
    error.set_ylabel("mean squared error a pixel")
    radius = error.twinx()
    _line(radius, records, ("spectral_radius", "max"), "largest spectral radius", SERIES[1], ls=":")
    radius.set_ylabel("spectral radius (dotted)")
    for ax in (counts, sets, memory, error):
        ax.set_xlabel("epoch")
        ax.set_xscale("symlog", linthresh=1)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.legend(frameon=False, fontsize=7)
    return figure


def matched_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], direction: str = "train") -> "Figure":
    """Share of the attractors of one kind that one of the other kind meets, along the epochs, a line a condition.

    `direction`: "train" (training attractors met by noise) or "noise" (the reverse).
    """
    other = {"train": "noise", "noise": "training"}[direction]
    figure, ax = axes("epoch", f"share of {direction} attractors met by {other}")
    for i, (name, records) in enumerate(runs.items()):
        _line(ax, records, ("matched", direction), name, SERIES[i % len(SERIES)], ls=("-", "--", ":")[i // len(SERIES)])
    ax.set_xscale("symlog", linthresh=1)
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _line(
    ax: Any, records: Sequence[Mapping[str, Any]], path: Sequence[str], label: str, colour: str, ls: str = "-"
) -> None:
    """What lies at `path` in each record, where it is known."""
    points = []
    for record in records:
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            points.append((record["epoch"], value))
    if points:
        ax.plot(*zip(*points, strict=True), ls=ls, marker="o", ms=3, lw=1.4, color=colour, label=label)
