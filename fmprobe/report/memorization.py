"""Pictures of the memorization probe: levels, sweeps, and attractors beside their nearest training images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmprobe.report.pictures import to_picture
from fmprobe.report.plots import SERIES, axes
from fmprobe.runs import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

GAP = 2  # pixels between an attractor and its training image


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
        ax.errorbar(level["mean"], i, xerr=level["std"], fmt="o" if own else "s", color=colour, capsize=3)
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


def save_pairs(decoded: "Tensor", train: "Tensor", nearest: Sequence[int], folder: Path) -> None:
    """`NNNN.png` for each decoded attractor `(m, C, H, W)`: it on the left, its nearest training image on the right."""
    from PIL import Image

    for i, (image, index) in enumerate(zip(decoded, nearest, strict=True)):
        left, right = to_picture(image), to_picture(train[index])
        pair = Image.new(left.mode, (2 * left.width + GAP, left.height), "white")
        pair.paste(left, (0, 0))
        pair.paste(right, (left.width + GAP, 0))
        write_atomically(folder / f"{i:04d}.png", lambda path, p=pair: p.save(path, format="PNG"))
