"""The alignment of two networks as a picture; nothing is computed here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = {
    "subject": ("the two networks", "#0072B2"),
    "null": ("random weights", "#999999"),
    "ceiling": ("A and A with weight noise", "#009E73"),
}


def plot_alignment(alignment: Mapping[str, Any]) -> "Figure":
    """Cosine of the fields by map, with its band of four fifths; agreement of relative representations by step.

    `alignment`: what `Alignment.to_dict` gives.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = {name: alignment[name] for name in SERIES if alignment[name] is not None}
    maps = list(alignment["subject"]["maps"])
    for i, (name, figures) in enumerate(shown.items()):
        label, colour = SERIES[name]
        for place, key in enumerate(maps):
            cosine = figures["maps"].get(key, {}).get("cosine") or {"known": 0}
            if cosine["known"]:
                x = place + 0.22 * (i - (len(shown) - 1) / 2)
                left.plot([x, x], [cosine["q10"], cosine["q90"]], color=colour, lw=1.5)
                left.plot(x, cosine["q50"], "o", color=colour, label=label if place == 0 else None)
        drift = figures["drift"]
        known = [pair for pair in zip(drift["steps"], drift["agreement"], strict=True) if pair[1] is not None]
        if known:
            right.plot(*zip(*known, strict=True), "o-", ms=3, color=colour, label=label)
    left.axhline(0, color="grey", lw=0.8)
    left.set_xticks(range(len(maps)), maps)
    left.set_ylim(-1.05, 1.05)
    left.set_ylabel("cosine of the two fields")
    right.set_xscale("symlog", linthresh=1)
    right.set_xlabel("step of the iteration")
    right.set_ylabel("correlation of relative representations")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=8)
    return figure
