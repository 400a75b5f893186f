"""Residual curves as a picture; nothing is computed here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "latent": "latent residual  ||z[t] - z[t-1]||",
    "output": "output residual  ||D(z[t]) - D(z[t-1])||",
    "norm": "latent norm  ||z[t]||",
}


def plot_residuals(residuals: Mapping[str, Any], title: str = "") -> "Figure":
    """Median over the starts, with the bands that hold half and four fifths of them, one panel a norm.

    `residuals`: what `Residuals.to_dict` gives. Fumero et al., ICLR 2026, fig. 12, 16, 17.
    """
    from matplotlib.figure import Figure

    shown = [name for name in PANELS if residuals[name] is not None]
    figure = Figure(figsize=(3.4 * len(shown), 3.2), layout="constrained")
    for ax, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        known = [value is not None for value in residuals[name]["q50"]]
        steps = [step for step, there in zip(residuals["steps"], known, strict=True) if there]
        curve = {q: [v for v in values if v is not None] for q, values in residuals[name].items()}
        ax.plot(steps, curve["q50"], color="#0072B2", lw=1.6, label="median")
        ax.fill_between(steps, curve["q25"], curve["q75"], color="#0072B2", alpha=0.3, lw=0, label="half")
        ax.fill_between(steps, curve["q10"], curve["q90"], color="#0072B2", alpha=0.12, lw=0, label="four fifths")
        ax.set_xscale("log")
        if any(value > 0 for value in curve["q50"]):
            ax.set_yscale("log")
        ax.set_xlabel("step t")
        ax.set_ylabel(PANELS[name])
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title or f"{residuals['n']} starts: {residuals['starts']}", fontsize=10)
    return figure
