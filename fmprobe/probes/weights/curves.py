"""Weight probing without data: how well do attractors, as a dictionary, reconstruct other images?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet
from fmprobe.autoencoder import Autoencoder
from fmprobe.digests import digest
from fmprobe.dynamics.checks import check_counts, check_seed
from fmprobe.dynamics.matching_pursuit import orthogonal_matching_pursuit
from fmprobe.errors import InputError
from fmprobe.images import spread
from fmprobe.inputs import ImagesLike
from fmprobe.pictures import save_figure, save_frames, to_picture
from fmprobe.probes.result import Result
from fmprobe.probes.weights.dictionaries import Dictionaries, bootstrap, effective_rank, make_dictionaries

RESAMPLES = 1000
PICTURES, PICTURE_LEVELS = 4, 8  # images whose reconstructions are kept, and levels at which, at most
CODES_AT_ONCE = 1 << 30  # bytes
LEAST_MSE = 1e-10  # a perfect image counts as 100 dB


@dataclass(frozen=True)
class WeightCurves(Result):
    """Error of sparse reconstructions against the number of atoms, for the model's atoms and for every baseline.

    Image MSE is in [0, 1] after clamping, PSNR in dB, latent MSE in the model's space.

    Attributes:
        subject: what the model's atoms are, "attractors" or "ends after T steps".
        levels: numbers of atoms.
        images: number of images.
        own: errors of D(E(x)), the reconstruction with nothing left out.
        zero: error of D(0), the reconstruction without any atom (the floor for a useless dictionary).
        dictionaries: by name, the subject first: the `count` of atoms, their `effective_rank`, and by metric one row a
            level with `mean`, `low` and `high` (95% bootstrap interval over images). Baselines also have `excess` and
            `latent_excess`: their image and latent MSE minus the subject's, image by image, so that an interval above
            zero means that the subject wins.
        absent: why a baseline is missing, by its name.
        protocol: the settings that decided the figures.
        picture_levels: numbers of atoms at which pictures are kept.
        pictures: reconstructions `(levels, images, C, H, W)` by dictionary; "image" and "D(E(x))" have one level.
    """

    key: ClassVar[str] = "weights"
    subject: str
    levels: list[int]
    images: int
    own: dict[str, dict[str, float]]
    zero: dict[str, dict[str, float]]
    dictionaries: dict[str, dict[str, Any]]
    absent: dict[str, str]
    protocol: dict[str, Any]
    picture_levels: list[int]
    pictures: dict[str, Tensor] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` keeps: everything but the pictures."""
        names = ("subject", "levels", "images", "own", "zero", "dictionaries", "absent", "protocol")
        return {name: getattr(self, name) for name in names}


def probe_weights(
    model: Autoencoder,
    attractors: AttractorSet,
    images: ImagesLike,
    atoms: Sequence[int] | None = None,
    *,
    ends: bool = False,
    null_attractors: AttractorSet | None = None,
    reference_images: ImagesLike | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> WeightCurves:
    """Reconstruct encoded images from a model's attractors (Fumero et al., ICLR 2026, sec. 4, fig. 4, 7-9).

    Flattened latents are coded by Orthogonal Matching Pursuit and decoded. All dictionaries have as many atoms as the
    model has distinct attractors, at most the latent's dimension.

    The baselines are a random orthonormal basis (the paper's), Gaussian atoms of the same norms, the starts that the
    atoms came from, the attractors of random weights, and the mean and principal components of other images.

    Args:
        model: the model whose latents are reconstructed.
        attractors: its attractors.
        images: images `(B, *image_shape)` in [0, 1], or anything else that `Autoencoder.take_images` takes.
        atoms: numbers of atoms, by default powers of two. Numbers beyond the count of atoms become that count.
        ends: whether the atoms are the distinct last latents of all finite orbits, settled or not.
        null_attractors: attractors of the same architecture with random weights.
        reference_images: images for the principal components, which should be none of `images`.
            `protocol["reference_images_shown"]` is the number of those that are.
        seed: seed of the baselines and of the resampling; it must be that of the search for the attractors.
        batch_size: largest number of rows in one call of the model.

    Raises:
        InputError: there are no atoms or no images, a latent is not finite, or the attractors lie in another latent
            space or were found under another seed.
        ValueError: a number is below 1.
    """
    images = model.take_images(images)
    if reference_images is not None:
        reference_images = model.take_images(reference_images, "reference images")
    _check(images, atoms, seed, batch_size)
    with torch.no_grad():
        latents = model.encode(images, batch_size).flatten(1)
        if not bool(latents.isfinite().all()):
            raise InputError(f"{model.name} gives latents of the images that are not finite: try dtype float32")
        reference = None
        if reference_images is not None and len(reference_images):
            reference = model.encode(reference_images, batch_size).flatten(1)
        found = make_dictionaries(
            model, attractors, ends=ends, seed=seed, null_attractors=null_attractors, reference=reference
        )
        count = len(found.atoms[found.subject])
        levels = sorted({min(k, count) for k in atoms or [2**i for i in range(count.bit_length())] + [count]})
        shown = [levels[k] for k in sorted({round(k) for k in np.linspace(0, len(levels) - 1, PICTURE_LEVELS)})]
        measure = _Measure(model, images, latents, batch_size)
        own, picture = measure(latents)
        zero, _ = measure(torch.zeros_like(latents))
        pictures = {"image": images[None, measure.shown].cpu(), "D(E(x))": picture[None]}
        series = {}
        for name, dictionary in found.atoms.items():
            measured = [measure(rows) for rows in _reconstructions(dictionary, latents, levels)]
            series[name] = [values for values, _ in measured]
            pictures[name] = torch.stack([kept for k, (_, kept) in zip(levels, measured, strict=True) if k in shown])
    protocol = {
        "asked": list(atoms) if atoms else None,
        "resamples": RESAMPLES,
        "seed": seed,
        "reference_images": 0 if reference is None else len(reference),
        "reference_images_shown": 0 if reference_images is None else _shared(reference_images, images),
    }
    whole, nothing = (bootstrap(values, RESAMPLES, seed) for values in (own, zero))
    return WeightCurves(
        subject=found.subject,
        levels=levels,
        images=len(images),
        own=whole,
        zero=nothing,
        dictionaries=_rows(found, series, seed),
        absent=found.absent,
        protocol=protocol,
        picture_levels=shown,
        pictures=pictures,
    ).about(model)


def _check(
    images: Tensor,
    atoms: Sequence[int] | None,
    seed: int,
    batch_size: int,
) -> None:
    """Raise InputError or ValueError for arguments of `probe_weights` that make no sense."""
    if not len(images) or (atoms is not None and (not atoms or min(atoms) < 1)):
        raise InputError(f"weight probing needs images and numbers of atoms from 1 up, got {len(images)} and {atoms}")
    check_counts(batch_size=batch_size)
    check_seed(seed)
    for k in atoms or ():
        check_counts(atoms=k)


def _rows(
    found: Dictionaries, series: Mapping[str, list[dict[str, np.ndarray]]], seed: int
) -> dict[str, dict[str, Any]]:
    """Of each dictionary its size, its rank, and its errors by metric and level."""
    return {
        name: {
            "count": len(found.atoms[name]),
            "effective_rank": round(effective_rank(found.atoms[name]), 2),
            **_summary(values, series[found.subject] if name != found.subject else None, seed),
        }
        for name, values in series.items()
    }


class _Measure:
    """Errors of reconstructed latents, image by image, in latent space and after decoding."""

    def __init__(self, model: Autoencoder, images: Tensor, latents: Tensor, batch_size: int) -> None:
        self.model, self.images, self.latents, self.batch_size = model, images, latents, batch_size
        self.shown = spread(len(images), min(PICTURES, len(images)))  # of which pictures are kept

    def __call__(self, reconstructed: Tensor) -> tuple[dict[str, np.ndarray], Tensor]:
        errors, pictures, done = [], [], 0
        for rows, wanted in zip(reconstructed.split(self.batch_size), self.images.split(self.batch_size), strict=True):
            decoded = self.model.decode(rows.reshape(-1, *self.model.latent_shape)).cpu()
            decoded = decoded.clamp(0, 1).where(decoded.isfinite(), torch.nan)  # an infinite pixel is not a white one
            errors.append((decoded - wanted.cpu().clamp(0, 1)).double().square().flatten(1).mean(1))
            pictures += [decoded[i - done] for i in self.shown if 0 <= i - done < len(decoded)]
            done += len(decoded)
        image_mse = torch.cat(errors).numpy()
        latent_mse = (reconstructed - self.latents).double().square().mean(1).cpu().numpy()
        psnr = -10 * np.log10(np.maximum(image_mse, LEAST_MSE))
        values = {"image_mse": image_mse, "latent_mse": latent_mse, "psnr": psnr}
        return values, torch.stack(pictures)


def _shared(images: Tensor, others: Tensor) -> int:
    """How many of the images are among the others."""
    there = {digest(image) for image in others}
    return sum(digest(image) in there for image in images)


def _reconstructions(dictionary: Tensor, latents: Tensor, levels: list[int]) -> list[Tensor]:
    """All latents at each number of atoms, coded in parts whose codes are of bounded size."""
    part = max(1, CODES_AT_ONCE // (latents.element_size() * levels[-1] ** 2))
    codes = (orthogonal_matching_pursuit(dictionary, rows, levels[-1]) for rows in latents.split(part))
    parts = [[code.reconstruct(k) for k in levels] for code in codes]
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def _summary(
    values: list[dict[str, np.ndarray]], subject: list[dict[str, np.ndarray]] | None, seed: int
) -> dict[str, list[dict[str, float]]]:
    """By metric, one row a level."""
    levels = []
    for i, level in enumerate(values):
        series = dict(level)
        if subject is not None:
            series["excess"] = level["image_mse"] - subject[i]["image_mse"]
            series["latent_excess"] = level["latent_mse"] - subject[i]["latent_mse"]
        levels.append(bootstrap(series, RESAMPLES, seed))
    return {metric: [level[metric] for level in levels] for metric in levels[0]}


def save_levels(curves: WeightCurves, path: Path) -> dict[str, Any]:
    """Reconstructions as frames, for a slider: one row per image of a dictionary, one column per level.

    Returns what `results.json` says of them: `rows` (dictionaries, "image" and "D(E(x))" first), `images`, `levels`.
    """
    levels = curves.picture_levels
    shown = {name: kept.expand(len(levels), *kept.shape[1:]) for name, kept in curves.pictures.items()}
    save_frames(torch.cat([kept.transpose(0, 1) for kept in shown.values()]), path)
    images = curves.pictures["image"].shape[1]
    return {"picture": path.name, "rows": list(shown), "images": images, "levels": levels}


def save_reconstructions(curves: WeightCurves, path: Path) -> None:
    """One sheet: one row per dictionary, for each image one column a level of three; the images themselves on top."""
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
    save_figure(figure, path, dpi=110)
