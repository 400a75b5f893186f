"""Memorization: are a model's attractors its training images?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.distances import nearest
from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.images import spread
from fmprobe.inputs import ImagesLike
from fmprobe.pictures import to_picture
from fmprobe.probes.result import Result
from fmprobe.probes.weights.dictionaries import atoms_of
from fmprobe.seeding import generator

MEASURES = ("cosine", "centred cosine", "euclidean")
NULLS = 256  # number of decoded noise starts, and of noise images, that the attractors are compared with
EXPLAINED = 0.9  # share of the variance that the rank is counted at (fig. 13)
FEW_STEPS, SMALL_RADIUS = 3, 0.05  # median steps and largest spectral radius up to which f counts as near constant


@dataclass(frozen=True)
class Memorization(Result):
    """How near decoded attractors are to training images, beside what is as near without memory.

    Attributes:
        subject: what was decoded, "attractors" or "ends after T steps".
        count: how many of them there are.
        levels: by measure and by row, the mean, deviation and number of the values at the nearest training image; None
            where there is nothing. Measures: "cosine" (larger is nearer), "centred cosine" (of the images less the
            training mean) and "euclidean" (smaller is nearer). Rows: the subject, "test images", "reconstructed test
            images", "decoded starts" (D of N(0, I)), "noise images" (of uniform pixels) and "mean image" (of the
            training set).
        nearest: for each of the subject, the training image nearest by cosine; -1 for one that is not finite.
        nearest_cosine: the value there.
        errors: mean squared error a pixel of D(E(x)), by part.
        rank: see `rank_at`.
        bound: see `bound_terms`.
        orbits: summary of the orbits.
        images: number of images, by part.
        warning: that there is no attractor, or why f may be near constant, so that the values say little.
        decoded: the decoded attractors `(count, *image_shape)`, which `to_dict` leaves out.
    """

    key: ClassVar[str] = "memorization"
    subject: str
    count: int
    levels: dict[str, dict[str, Any]]
    nearest: list[int]
    nearest_cosine: list[float]
    errors: dict[str, float]
    rank: dict[str, float | None]
    bound: dict[str, dict[str, Any]] | None
    orbits: dict[str, Any]
    images: dict[str, int]
    warning: str | None
    decoded: Tensor

    @property
    def coefficient(self) -> float | None:
        """Mean cosine of the decoded attractors to their nearest training image; None where there is none."""
        row = self.levels["cosine"][self.subject]
        return row["mean"] if row else None

    def to_dict(self) -> dict[str, Any]:
        """The key `memorization` of `results.json`."""
        return {"coefficient": self.coefficient} | {k: v for k, v in vars(self).items() if k != "decoded"}


def probe_memorization(
    model: Autoencoder,
    train: ImagesLike,
    test: ImagesLike | None = None,
    *,
    attractors: AttractorSet | None = None,
    n: int | None = None,
    seed: int = 0,
    ends: bool = False,
    batch_size: int = 256,
    **search: Any,
) -> Memorization:
    """Memorization coefficient, mem(z*) = max over training images x of cos(D(z*), x), and what goes with it.

    Fumero et al., ICLR 2026, sec. 4, fig. 2, 13, 14. Where no orbit converged the values are None and the count is 0.

    Args:
        model: the model that may have stored images.
        train: training images `(N, *image_shape)` in [0, 1], or anything else that `Autoencoder.take_images` takes.
        test: images that the model was not trained on.
        attractors: its attractors; by default they are found now.
        n: number of starts of the search, drawn from N(0, I).
        seed: seed of the starts and of the nulls.
        ends: whether the distinct last latents of all finite orbits are taken, settled or not.
        batch_size: largest number of rows in one call of the model.
        search: further arguments of `find_attractors`.

    Raises:
        InputError: there are no images, a latent of them is not finite, the model has no decoder, the attractors lie in
            another latent space, or a search is asked for although attractors are given.
    """
    train = model.take_images(train, "training images")
    test = None if test is None else model.take_images(test, "test images")
    _check(train, test, attractors is not None, asked=[*(["n"] if n is not None else []), *search])
    if attractors is None:
        attractors = find_attractors(model, n, seed=seed, batch_size=batch_size, **search)
    attractors.check_space(model)
    check_counts(batch_size=batch_size)
    subject = f"ends after {attractors.orbits.protocol['max_steps']} steps" if ends else "attractors"
    latents = atoms_of(attractors, ends)[0].reshape(-1, *model.latent_shape)
    train, test = train.cpu(), None if test is None else test.cpu()
    sets = {"train": train} if test is None else {"train": train, "test": test}
    with torch.no_grad():
        decoded = model.decode(latents, batch_size).cpu()
        codes = {name: model.encode(images, batch_size).cpu() for name, images in sets.items()}
        if not all(bool(rows.isfinite().all()) for rows in codes.values()):
            raise InputError(f"{model.name} gives latents of the images that are not finite: try dtype float32")
        rebuilt = {name: model.decode(rows, batch_size).cpu() for name, rows in codes.items()}
        rows = {
            subject: decoded,
            "test images": test,
            "reconstructed test images": rebuilt.get("test"),
            "decoded starts": model.decode(model.sample_latents(NULLS, seed), batch_size).cpu(),
            "noise images": _noise_images(model, seed),
            "mean image": train.mean(0, keepdim=True),
        }
        values = {measure: _values(measure, rows, train) for measure in MEASURES}
        known = sets if len(latents) else {}
        bound = {name: bound_terms(known[name], rebuilt[name], codes[name], latents.cpu(), decoded) for name in known}
    own = values["cosine"][subject]
    return Memorization(
        subject=subject,
        count=len(latents),
        levels={measure: {name: _summary(found) for name, found in of.items()} for measure, of in values.items()},
        nearest=own[1].tolist() if own else [],
        nearest_cosine=own[0].tolist() if own else [],
        errors={name: float((rebuilt[name] - sets[name]).double().square().mean()) for name in sets},
        rank=_ranks(decoded, train),
        bound=bound or None,
        orbits=attractors.orbits.to_dict() | {"protocol": attractors.orbits.protocol},
        images={name: len(images) for name, images in sets.items()},
        warning=_warning(attractors),
        decoded=decoded,
    ).about(model)


def _check(train: Tensor, test: Tensor | None, given: bool, asked: Sequence[str]) -> None:
    """Raise InputError where there are no images, or for a search beside attractors that are given."""
    if not len(train) or (test is not None and not len(test)):
        raise InputError("memorization needs training images, and test images where they are given: got none")
    if given and asked:
        asked_for = ", ".join(asked)
        raise InputError(f"attractors are given, so nothing is searched: leave out {asked_for}, or the attractors")


def bound_terms(images: Tensor, rebuilt: Tensor, codes: Tensor, attractors: Tensor, decoded: Tensor) -> dict[str, Any]:
    """The terms of ||x - F(x)||^2 <= 2 ||x - D(P(E(x)))||^2 + 2 L_D^2 ||E(x) - P(E(x))||^2, P = nearest attractor.

    Fumero et al., ICLR 2026, prop. 3.2, A.8. The factor 2 is missing there, which (a+b)^2 <= 2a^2 + 2b^2 needs.

    Returns:
        Means over the images of squared norms: `error` (the left side), `prototype_error` and `coverage_error`. Then
        `lipschitz`, the largest ||D(E(x)) - D(P(E(x)))|| / ||E(x) - P(E(x))|| on these images, a lower estimate of L_D
        (None where all lie on attractors); `factor`, 2; and `holds_as_printed`, the share of images for which the bound
        holds without the factor.
    """
    distance, index = nearest(codes.flatten(1), attractors.flatten(1))
    coverage = distance.double().square()
    prototype = (images - decoded[index]).double().flatten(1).square().sum(1)
    prototype[index < 0] = torch.nan  # of a code that is not finite no attractor is the nearest
    error = (images - rebuilt).double().flatten(1).square().sum(1)
    apart = torch.linalg.vector_norm((rebuilt - decoded[index]).double().flatten(1), dim=1)
    away = coverage > 0
    squared = float((apart[away].square() / coverage[away]).max()) if bool(away.any()) else 0.0
    right = prototype + squared * coverage
    known = bool((error.isfinite() & right.isfinite()).all())
    return {
        "error": float(error.mean()),
        "prototype_error": float(prototype.mean()),
        "coverage_error": float(coverage.mean()),
        "lipschitz": math.sqrt(squared) if bool(away.any()) else None,
        "factor": 2,
        "holds_as_printed": float((error <= right).double().mean()) if known else math.nan,
    }


def rank_at(rows: Tensor, share: float = EXPLAINED, centred: bool = True) -> int:
    """Number of principal components that explain a share of the variance (Fumero et al., ICLR 2026, fig. 13).

    Args:
        rows: rows `(m, d)`.
        share: share of the variance.
        centred: whether the mean of the rows is taken off first.

    Returns:
        The number; 0 for rows that do not vary (or are zero).
    """
    rows = rows.double()
    size = float(rows.square().sum())
    rows = rows - rows.mean(0) if centred else rows
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    variances = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)
    total = float(variances.sum())
    if total <= 1e-14 * size:  # the resolution of float32: what is left are roundings
        return 0
    return int((variances.cumsum(0) < share * total).sum()) + 1


def _ranks(decoded: Tensor, train: Tensor) -> dict[str, float | None]:
    """Ranks of the decoded attractors, centred and as they are, and of as many training images for comparison.

    A rank is nan where one of the decoded images is not finite.
    """
    rows = decoded.flatten(1)
    images = train[spread(len(train), min(len(rows), len(train)))].flatten(1)
    if not len(rows):
        return {"attractors": None, "attractors_uncentred": None, "train_images": None}
    known = bool(rows.isfinite().all())
    return {
        "attractors": rank_at(rows) if known else math.nan,
        "attractors_uncentred": rank_at(rows, centred=False) if known else math.nan,
        "train_images": rank_at(images),
    }


def _values(measure: str, rows: dict[str, Tensor | None], train: Tensor) -> dict[str, tuple[Tensor, Tensor] | None]:
    """The value of each image at its nearest training image, and which image that is, row by row."""
    flat = train.flatten(1)
    shift = flat.mean(0) if measure == "centred cosine" else torch.zeros_like(flat[0])
    kind = "euclidean" if measure == "euclidean" else "cosine"
    found: dict[str, tuple[Tensor, Tensor] | None] = {}
    for name, images in rows.items():
        if images is None or not len(images):
            found[name] = None
            continue
        distance, index = nearest(images.flatten(1).to(flat) - shift, flat - shift, kind)
        found[name] = (distance if kind == "euclidean" else 1 - distance, index)
    return found


def _summary(found: tuple[Tensor, Tensor] | None) -> dict[str, float] | None:
    if found is None:
        return None
    values = found[0].double()
    return {"mean": float(values.mean()), "std": float(values.std(correction=0)), "count": len(values)}


def _warning(attractors: AttractorSet) -> str | None:
    """Signs that f takes everything to nearly the same place, or that there is nothing to be measured."""
    if not len(attractors):
        return f"none of {len(attractors.orbits)} orbits led to a known attractor"
    steps, radius = float(attractors.orbits.steps.double().median()), attractors.spectral_radius
    radius = radius[radius.isfinite()]
    signs = []
    if len(attractors) == 1:
        signs.append("there is one attractor")
    if steps <= FEW_STEPS:
        signs.append(f"half of the orbits end within {steps:g} steps")
    if len(radius) and float(radius.max()) <= SMALL_RADIUS:
        signs.append(f"no spectral radius exceeds {float(radius.max()):.2g}")
    return f"f may be near constant where these starts lie: {', '.join(signs)}" if signs else None


def _noise_images(model: Autoencoder, seed: int) -> Tensor:
    pixels = generator(seed, 0, "memorization: noise images").random((NULLS, *model.image_shape), dtype="float32")
    return torch.from_numpy(pixels)


GAP, GREY = 2, "#888888"  # pixels between an attractor and its training image, seen on a light and on a dark page


def save_pairs(decoded: "Tensor", train: "Tensor", nearest: Sequence[int], folder: Path) -> None:
    """`NNNN.png` for each decoded attractor `(m, C, H, W)`: it on the left, its nearest training image on the right."""
    from PIL import Image

    for i, (image, index) in enumerate(zip(decoded, nearest, strict=True)):
        left = to_picture(image)
        pair = Image.new(left.mode, (2 * left.width + GAP, left.height), GREY)
        pair.paste(left, (0, 0))
        if index >= 0:  # none is the nearest of a picture that is not finite
            pair.paste(to_picture(train[index]), (left.width + GAP, 0))
        write_atomically(folder / f"{i:04d}.png", lambda path, p=pair: p.save(path, format="PNG"))
