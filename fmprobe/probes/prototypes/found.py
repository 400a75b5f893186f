"""Prototypes: the attractors that noise starts end in, decoded, with a film of a few orbits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet
from fmprobe.autoencoder import Autoencoder
from fmprobe.canvas import Drawn
from fmprobe.dynamics.orbits import Status
from fmprobe.files import write_atomically
from fmprobe.pictures import draw_sheet, save_figure, save_frames, to_picture
from fmprobe.probes.prototypes.film import Film, film
from fmprobe.probes.prototypes.nearest import Nearest, nearest_images
from fmprobe.surrogates.data import painted
from fmprobe.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("file", "basin_size", "basin_share", "lowest_start", "spectral_radius", "error", "median_steps", "residual")
FILM, PAINTED = "trajectories.png", "reconstructions.png"


@dataclass(frozen=True)
class Prototypes(Drawn):
    """Attractors of a model from N(0, I) starts, with what was seen on the way.

    Attributes:
        attractors: the attractors.
        images: the decoded attractors `(m, *image_shape)`, not clamped; None where the model has no images.
        curves: norms of the steps of the first starts.
        film: a few decoded trajectories.
        nearest: the images nearest to the attractors, where the model has no decoder.
    """

    attractors: AttractorSet
    images: Tensor | None
    curves: Mapping[str, Any]
    film: Film | None = None
    nearest: Nearest | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys `orbits`, `attractors`, `residuals` and `trajectories` of `results.json`."""
        orbits = self.attractors.orbits
        status = [Status(value).name.lower() for value in orbits.status[: len(self.curves["norms"])].tolist()]
        return {
            "orbits": {"noise": orbits.to_dict()},
            "attractors": {**self.attractors.to_dict(), **self._damaged()},
            "residuals": {**self.curves, "status": status},
            **({"trajectories": self.film.to_dict()} if self.film else {}),
            **({"nearest_images": self.nearest.to_dict()} if self.nearest else {}),
        }

    def _damaged(self) -> dict[str, int]:
        """How many of the decoded attractors hold pixels that are not finite, where some do."""
        known = 0 if self.images is None else int(self.images.flatten(1).isfinite().all(1).sum())
        damaged = 0 if self.images is None else len(self.images) - known
        return {"images_not_finite": damaged} if damaged else {}

    def draw(self) -> "Figure":
        """The decoded attractors under the sizes of their basins; without images what `AttractorSet.draw` shows."""
        if self.images is None:
            return self.attractors.draw()
        pictures = [to_picture(image) for image in self.images]
        return draw_sheet(pictures, self.attractors.sizes.tolist(), len(self.attractors.labels))

    def _repr_html_(self) -> str:
        from fmprobe.report.show import html_of

        warning = self.attractors.warning
        return html_of(self.to_dict(), self.draw(), [warning] if warning else ())

    def save(self, folder: Path) -> None:
        """Write `attractors/`, `prototypes/NNNN.png` with `index.csv`, `prototypes.png` and `trajectories.png`."""
        self.attractors.save(folder / "attractors")
        if self.images is not None:
            pictures = [to_picture(image) for image in self.images]
            for i, picture in enumerate(pictures):
                path = folder / "prototypes" / f"{i:04d}.png"
                write_atomically(path, lambda temporary, p=picture: p.save(temporary, format="PNG"))
            index = self.index().to_csv()
            write_atomically(folder / "prototypes" / "index.csv", lambda path: path.write_text(index, encoding="utf-8"))
            save_figure(self.draw(), folder / "prototypes.png")
        if self.film is not None:
            save_frames(self.film.frames, folder / FILM)
        if self.nearest is not None:
            self.nearest.save(folder)

    def index(self) -> Table:
        """One row per attractor: its picture, basin, spectral radius, error, and the median orbit that ends there."""
        found, orbits, rows = self.attractors, self.attractors.orbits, []
        for i, size in enumerate(found.sizes.tolist()):
            basin = (found.labels == i).nonzero()[:, 0].to(orbits.steps.device)
            radius, error = float(found.spectral_radius[i]), float(found.errors[i])
            steps, residual = int(orbits.steps[basin].median()), float(orbits.residuals[basin].median())
            share = f"{size / len(found.labels):.4f}"
            facts = (f"{radius:.4f}", f"{error:.3g}", steps, f"{residual:.3g}")
            rows.append((f"{i:04d}.png", size, share, int(basin[0]), *facts))
        return Table("Attractors", rows, COLUMNS)


def prototypes_of(
    model: Autoencoder, attractors: AttractorSet, curves: Mapping[str, Any], *, seed: int = 0, batch_size: int = 32
) -> Prototypes:
    """Decode the attractors that N(0, I) starts under `seed` ended in (Fumero et al., ICLR 2026, sec. 4, fig. 18).

    Args:
        model: the model that they are attractors of; without a decoder they are shown by the nearest images.
        attractors: the attractors.
        curves: norms of the steps of the first starts, as `ResidualCurves.to_dict` gives them.
        seed: seed of the starts.
        batch_size: largest number of latents in one call of the model.
    """
    images = None
    if model.has_decoder:
        with torch.no_grad():
            images = model.decode(attractors.latents, batch_size).cpu()
    attractors = replace(attractors, warning=model.surrogate_warning)
    nearest = nearest_images(model, attractors.latents, batch_size=batch_size)
    return Prototypes(attractors, images, curves, film(model, attractors, seed, batch_size), nearest)


def save_painted(model: Autoencoder, folder: Path, batch_size: int = 8) -> dict[str, Any]:
    """`reconstructions.png` where the decoder is a surrogate: images above, their reconstructions below.

    Returns the key `reconstructions` of `results.json`, or nothing.
    """
    images = painted(model, batch_size)
    if images is None:
        return {}
    save_frames(images, folder / PAINTED)
    return {"reconstructions": {"picture": PAINTED, "images": images.shape[1]}}
