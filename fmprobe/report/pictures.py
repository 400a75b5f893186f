"""Decoded attractors and reconstructions as image files."""

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmprobe.runs import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.dynamics.attractors import AttractorSet
    from fmprobe.probes.film import Film
    from fmprobe.probes.weights import WeightCurves

ON_SHEET = 48  # pictures on one sheet
COLUMNS = ("file", "basin_size", "basin_share", "lowest_start", "spectral_radius", "error", "median_steps", "residual")
FILM, PAINTED = "trajectories.png", "reconstructions.png"
FRAME = 96  # pixels that a side of a frame has at most


def to_picture(image: "Tensor") -> "Image":
    """One image `(C, H, W)`, clamped to [0, 1], as 8-bit grey or RGB."""
    from PIL import Image

    pixels = (image.clamp(0, 1).nan_to_num() * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0])


def save_prototypes(images: "Tensor", attractors: "AttractorSet", folder: Path) -> None:
    """`prototypes/NNNN.png`, `prototypes/index.csv` and `prototypes.png` in a run folder."""
    pictures = [to_picture(image) for image in images]
    rows, orbits = [], attractors.orbits
    for i, picture in enumerate(pictures):
        name = f"{i:04d}.png"
        write_atomically(folder / "prototypes" / name, lambda path, p=picture: p.save(path, format="PNG"))
        basin = (attractors.labels == i).nonzero()[:, 0].to(orbits.steps.device)
        size, n = int(attractors.sizes[i]), len(attractors.labels)
        radius, error = float(attractors.spectral_radius[i]), float(attractors.errors[i])
        steps, residual = int(orbits.steps[basin].median()), float(orbits.residuals[basin].median())
        facts = f"{radius:.4f}", f"{error:.3g}", steps, f"{residual:.3g}"
        rows.append((name, size, f"{size / n:.4f}", int(basin[0]), *facts))

    def write_index(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])

    write_atomically(folder / "prototypes" / "index.csv", write_index)
    sheet = draw_sheet(pictures, [row[1] for row in rows], len(attractors.labels))
    write_atomically(folder / "prototypes.png", lambda path: sheet.savefig(path, format="png", dpi=120))


def draw_sheet(pictures: "list[Image]", sizes: list[int], n: int) -> "Figure":
    """Pictures in a grid under the sizes of their basins; a sentence where there are none."""
    from matplotlib.figure import Figure

    shown = pictures[:ON_SHEET]
    columns = max(1, min(8, math.ceil(math.sqrt(len(shown) * 1.6))))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(1.5 * max(columns, 4), 1.7 * rows + 0.5), layout="constrained")
    if not shown:
        figure.text(0.5, 0.5, f"No attractor: none of {n} orbits settled.", ha="center", va="center")
        return figure
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for i, ax in enumerate(axes):
        ax.axis("off")
        if i < len(shown):
            small = max(shown[i].size) < 64
            ax.imshow(shown[i], cmap="gray", vmin=0, vmax=255, interpolation="nearest" if small else "antialiased")
            ax.set_title(f"{sizes[i]} of {n}", fontsize=9)
    more = f" (the {len(shown)} largest of {len(pictures)})" if len(pictures) > len(shown) else ""
    figure.suptitle(f"Decoded attractors and the starts that end in each{more}", fontsize=10)
    return figure


def save_film(film: "Film", folder: Path) -> None:
    """`trajectories.png` in a run folder: a row an orbit, a column a frame."""
    save_frames(film.frames, folder / FILM)


def save_frames(frames: "Tensor", path: Path) -> None:
    """Images `(rows, columns, C, H, W)` edge to edge in one PNG, each made small enough for a page."""
    from PIL import Image

    rows, columns = frames.shape[:2]
    height, width = frames.shape[-2:]
    scale = min(1.0, FRAME / max(height, width))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    sprite = Image.new("RGB", (columns * width, rows * height))
    for row in range(rows):
        for column in range(columns):
            picture = to_picture(frames[row, column]).resize((width, height), Image.Resampling.BOX)
            sprite.paste(picture, (column * width, row * height))
    write_atomically(path, lambda temporary: sprite.save(temporary, format="PNG", optimize=True))


def save_painted(model: "Autoencoder", folder: Path, batch_size: int = 8) -> dict[str, Any]:
    """`reconstructions.png` where the decoder is a surrogate: images above, what it makes of them below.

    Returns the key `reconstructions` of `results.json`, or nothing.
    """
    from fmprobe.surrogates.painted import painted

    images = painted(model, batch_size)
    if images is None:
        return {}
    save_frames(images, folder / PAINTED)
    return {"reconstructions": {"picture": PAINTED, "images": images.shape[1]}}


def save_levels(curves: "WeightCurves", path: Path) -> dict[str, Any]:
    """Reconstructions as frames, for a slider: a row an image of a dictionary, a column a level.

    Returns what `results.json` says of them: `rows` (dictionaries, "image" and "D(E(x))" first), `images`, `levels`.
    """
    import torch

    levels = curves.picture_levels
    shown = {name: kept.expand(len(levels), *kept.shape[1:]) for name, kept in curves.pictures.items()}
    save_frames(torch.cat([kept.transpose(0, 1) for kept in shown.values()]), path)
    images = curves.pictures["image"].shape[1]
    return {"picture": path.name, "rows": list(shown), "images": images, "levels": levels}


def save_reconstructions(curves: "WeightCurves", path: Path) -> None:
    """One sheet: a row a dictionary, for each image one column a level of three; the images themselves on top."""
    from matplotlib.figure import Figure

    every, count = len(curves.picture_levels), curves.pictures["image"].shape[1]
    kept = sorted({0, every // 2, every - 1})
    levels = [curves.picture_levels[k] for k in kept]
    names = list(curves.pictures)
    columns = len(levels) * count
    figure = Figure(figsize=(1.0 * columns + 1.6, 1.1 * len(names) + 0.4), layout="constrained")
    axes = figure.subplots(len(names), columns, squeeze=False)
    for name, row in zip(names, axes, strict=True):
        shown = curves.pictures[name]
        shown = shown[kept] if len(shown) == every else shown
        for column, ax in enumerate(row):
            image, level = divmod(column, len(levels))
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if level < len(shown):
                small = shown.shape[-1] < 64
                ax.imshow(
                    to_picture(shown[level, image]),
                    cmap="gray",
                    vmin=0,
                    vmax=255,
                    interpolation="nearest" if small else "antialiased",
                )
            if len(shown) > 1 or len(levels) == 1:
                ax.set_title(f"{levels[level]}", fontsize=7, pad=2)
        row[0].set_ylabel(name.replace(" after ", "\nafter ").replace(" of ", "\nof "), fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
