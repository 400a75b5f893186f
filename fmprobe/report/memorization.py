"""Pictures of the memorization probe: levels, sweeps, and attractors beside their nearest training images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmprobe.report.plots import SERIES, axes
from fmprobe.report.rendering import known, number, plot, render

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.run import Run

ON_PAGE = 24  # pairs on the page; the folder holds all


def memorization(entry: Mapping[str, Any], run: "Run") -> "Markup":
    """Attractors beside their nearest training images, the levels and their null levels, errors, rank and bound."""
    found = list(zip(entry["nearest"], entry["nearest_cosine"], strict=True))
    pairs = [
        {
            "number": i + 1,
            "nearest": number if number >= 0 else "none",  # of a picture that is not finite
            "cosine": cosine,
            "src": run.picture("memorization", f"{i:04d}.png").src,
        }
        for i, (number, cosine) in enumerate(found[:ON_PAGE])
    ]
    measures = list(entry["levels"])
    rows = [
        (name, *(_spread(entry["levels"][measure][name]) for measure in measures))
        for name in entry["levels"][measures[0]]
    ]
    facts = [(f"error of {part} images, squared, a pixel", error) for part, error in entry["errors"].items()]
    facts += [(f"rank at 90% of variance, {name.replace('_', ' ')}", rank) for name, rank in entry["rank"].items()]
    for part, terms in (entry["bound"] or {}).items():
        facts += [(f"bound, {part}: {name.replace('_', ' ')}", value) for name, value in terms.items()]
    return render(
        "memorization.html",
        entry=entry,
        pairs=pairs,
        total=len(found),
        plot=plot(memorization_levels(entry), "Cosine to the nearest training image, with the null levels", run),
        measures=measures,
        rows=rows,
        facts=facts,
    )


def _spread(level: Mapping[str, float] | None) -> str:
    return "–" if level is None else f"{number(level['mean'], '.3f')} ± {number(level['std'], '.3f')}"


def memorization_levels(entry: Mapping[str, Any], measure: str = "cosine") -> "Figure":
    """Mean and deviation of every row at its nearest training image, the subject first and filled.

    `entry`: the key `memorization` of `results.json`. `measure`: one of its levels.
    """
    unit = "norm of the difference" if measure == "euclidean" else measure
    figure, ax = axes(f"{unit} to the nearest training image", "")
    rows = {name: level for name, level in entry["levels"][measure].items() if level}
    for i, (name, level) in enumerate(rows.items()):
        own = name == entry["subject"]
        colour = SERIES[0] if own else "grey"
        mean, spread = known([level["mean"], level["std"]])
        ax.errorbar(mean, i, xerr=spread, fmt="o" if own else "s", color=colour, capsize=3)
    ax.set_yticks(range(len(rows)), [f"{name} ({level['count']})" for name, level in rows.items()])
    ax.invert_yaxis()
    ax.set_title("Attractors held against the training images", fontsize=10)
    return figure


def memorization_sweep(rows: Sequence[Mapping[str, Any]], along: str) -> "Figure":
    """Memorization coefficient by where attractors were sought from, and test error, along a quantity.

    `rows`: one a network, `along` ("k" or "images") and the entries "train" and "noise".
    """
    label = {"k": "bottleneck k", "images": "training images"}[along]
    figure, ax = axes(label, "cosine to nearest training image")
    for start, colour in (("train", SERIES[0]), ("noise", SERIES[1])):
        known = [row for row in rows if row[start]["coefficient"] is not None]
        means = [row[start]["coefficient"] for row in known]
        spread = [row[start]["levels"]["cosine"][row[start]["subject"]]["std"] for row in known]
        ax.errorbar(
            [row[along] for row in known],
            means,
            yerr=spread,
            fmt="o-",
            color=colour,
            capsize=3,
            label=f"{start} starts",
        )
    errors = ax.twinx()
    errors.plot(
        [row[along] for row in rows], [row["train"]["errors"]["test"] for row in rows], "s--", color="grey", lw=1
    )
    errors.set_ylabel("test error, mean squared a pixel (dashed)")
    ax.set_xscale("log", base=2)
    ax.set_xticks([row[along] for row in rows], [str(row[along]) for row in rows])
    ax.legend(frameon=False, fontsize=8)
    return figure
