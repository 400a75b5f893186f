"""Residual curves: how the step of each orbit falls, or does not, in latent space and in the images."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.curves import norms_along
from fmprobe.errors import InputError
from fmprobe.probes.result import Result

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
STARTS = 32  # from noise, by default


@dataclass(frozen=True)
class Residuals(Result):
    """Norms along n orbits of T steps, float32 `(n, T)`; column t - 1 belongs to step t.

    `latent`: ||z[t] - z[t-1]||. `output`: ||D(z[t]) - D(z[t-1])||, not clamped, None where the model has no images.
    `norm`: ||z[t]||. Nan from where an orbit is not finite. `start_norm` `(n,)`: ||z[0]||. `starts`: what they are.
    """

    key: ClassVar[str] = "residual_curves"
    latent: Tensor
    output: Tensor | None
    norm: Tensor
    start_norm: Tensor
    starts: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The key `residual_curves` of `results.json`: quantiles over starts at each step, of those that are finite."""
        curves = {"latent": self.latent, "output": self.output, "norm": self.norm}
        return {
            "starts": self.starts,
            "n": len(self.latent),
            "seed": self.seed,
            "steps": list(range(1, self.latent.shape[1] + 1)),
            "finite": (self.latent == self.latent).sum(0).tolist(),
            "start_norm": float(self.start_norm.median()),
            **{name: None if values is None else _quantiles(values) for name, values in curves.items()},
        }


def probe_residuals(
    model: Autoencoder,
    images: Tensor | None = None,
    *,
    n: int | None = None,
    steps: int = 100,
    seed: int = 0,
    batch_size: int = 32,
) -> Residuals:
    """Residual of latents and of images, and norm of latents, step by step (Fumero et al., ICLR 2026, fig. 12, 16, 17).

    Starts are `images` `(n, *image_shape)`, encoded, or `n` draws from N(0, I) by `seed`, by default 32. Each takes all
    `steps`, settled or not. Raises InputError where the model has no latent map, for numbers below 1, and for an `n`
    that is not the number of `images`.
    """
    if images is not None:
        model.check_images(images)
        if n not in (None, len(images)):
            raise InputError(f"{len(images)} images are given, and n={n}: leave out one of them")
        n = len(images)
    count = STARTS if n is None else n
    if min(count, steps, batch_size) < 1:
        raise InputError(f"residual curves need starts, steps and a batch, got {count}, {steps} and {batch_size}")
    through = {
        "decode": model.decode if model.has_decoder else None,
        "encode": model.encode_unchecked if model.maps_through_images else None,
    }
    blocks = []
    with torch.no_grad():
        for first in range(0, count, batch_size):
            size = min(batch_size, count - first)
            if images is None:
                latents = model.sample_latents(size, seed, first)
            else:
                latents = model.encode(images[first : first + size])
            blocks.append(norms_along(model.latent_map, latents, steps, **through))
    curves = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    what = "N(0, I)" if images is None else "images, encoded"
    return Residuals(
        curves["latent"], curves.get("output"), curves["norm"], curves["start_norm"][:, 0], starts=what, seed=seed
    ).about(model)


def _quantiles(values: Tensor) -> dict[str, list[float | None]]:
    """By name of the quantile, one value a step, None where no orbit is finite."""
    table: dict[str, list[float | None]] = {f"q{round(100 * q)}": [] for q in QUANTILES}
    for column in values.T:
        known = column[column == column].double().numpy()
        found = np.quantile(known, QUANTILES) if len(known) else [None] * len(QUANTILES)
        for row, value in zip(table.values(), found, strict=True):
            row.append(None if value is None else float(f"{value:.6g}"))
    return table
