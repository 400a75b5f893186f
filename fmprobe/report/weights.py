"""The section on weight probing: curves, reconstructions at a slider of atoms, and the numbers."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.report.attractors import SPRITE, sprite_of
from fmprobe.report.plots import weight_curves
from fmprobe.report.rendering import plot, render

if TYPE_CHECKING:
    from markupsafe import Markup

    from fmprobe.report.run import Run

METRICS = (("image_mse", "image MSE"), ("latent_mse", "latent MSE"), ("psnr", "PSNR (dB)"))


def weights(found: Mapping[str, Any], run: "Run") -> "Markup":
    """Of each data set that was reconstructed: curves, reconstructions, and the numbers."""
    sets = []
    for i, (source, curves) in enumerate(found["data"].items()):
        plots = [
            plot(weight_curves(curves, metric, label), f"{label} against the number of atoms, {source}, {i + 1}", run)
            for metric, label in METRICS
        ]
        rows = curves["dictionaries"].values()
        means = [[row["image_mse"][k]["mean"] for row in rows] for k in range(len(curves["levels"]))]
        best = [min((mean for mean in column if mean is not None), default=math.nan) for column in means]
        shown: dict[str, Any] = {**curves, "source": source, "plots": plots, "best": best, "id": f"r{run.index}-w{i}"}
        if frames := curves.get("frames"):
            shown["film"] = _film(frames, run)
        else:
            shown["film"] = None
            shown["sheet"] = run.picture("weights", curves["picture"], side=1600).src
        sets.append(shown)
    return render("weights.html", sets=sets)


def _film(frames: Mapping[str, Any], run: "Run") -> dict[str, Any]:
    picture = run.picture("weights", frames["picture"], budget=SPRITE)
    sprite = sprite_of(picture, len(frames["rows"]) * frames["images"], len(frames["levels"]), run)
    return {**sprite, "names": frames["rows"], "images": frames["images"], "levels": frames["levels"]}
