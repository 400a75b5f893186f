"""Alignment: do two networks have the same latent vector field, up to a map between their spaces?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.checks import check_counts, check_seed
from fmprobe.dynamics.distances import chamfer
from fmprobe.dynamics.fields import cosine_of, field_at
from fmprobe.dynamics.protocols import protocol_for
from fmprobe.errors import InputError
from fmprobe.inputs import ImagesLike
from fmprobe.probes.alignment.latent_maps import FITS, ORTHOGONAL, LatentMap, Relative, fit_relative
from fmprobe.probes.result import Result
from fmprobe.seeding import generator

FIT_SHARE = 2 / 3  # share of the images that the maps are fitted on; the others are held out
LEAST = 12  # images
SHUFFLES = 200  # random permutations of the basins, for the chance level of the Jaccard index
DRIFT_STEPS = (0, 1, 2, 3, 5, 10, 20, 50, 100)
JACOBIANS = 8  # largest number of attractors of a network whose stability is examined


@dataclass(frozen=True)
class Alignment(Result):
    """How well the fields of two networks agree, beside what chance and an almost equal network give.

    Attributes:
        subject: A compared with B. Its entry `maps` holds, by map between the latent spaces: `fit_error`, the squared
            error of the map on held-out images over their variance (0 is perfect, 1 as bad as the mean); `cosine` of
            the fields at held-out images; `basins`, see `basin_agreement`; and `chamfer`, the distance of the attractor
            sets in units of the spread of held-out images. Its entry `drift` compares relative representations along
            the iteration; `orbits` counts how the orbits of either network ended.
        null: the same of A and the architecture of B with random weights.
        ceiling: the same of A and A with slight noise on its weights.
        absent: why something is missing, by its name.
        protocol: the settings that decided the figures.
    """

    key: ClassVar[str] = "alignment"
    subject: dict[str, Any]
    null: dict[str, Any] | None
    ceiling: dict[str, Any] | None
    absent: dict[str, str]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The key `alignment` of `results.json`."""
        return {name: getattr(self, name) for name in ("subject", "null", "ceiling", "absent", "protocol")}


Pairs = Mapping[str, Callable[[], dict[str, Any]]]  # what computes a comparison of two networks, by name


@dataclass(frozen=True)
class _Settings:
    maps: tuple[str, ...]
    anchors: int
    drift_steps: tuple[int, ...]
    search: dict[str, Any]  # of find_attractors

    @property
    def batch_size(self) -> int:
        return self.search["batch_size"]


def one_by_one(pairs: Pairs) -> dict[str, dict[str, Any]]:
    """Every comparison, in order."""
    return {name: pair() for name, pair in pairs.items()}


def compare(
    model_a: Autoencoder,
    model_b: Autoencoder,
    images: ImagesLike,
    *,
    images_b: ImagesLike | None = None,
    null: Autoencoder | None = None,
    ceiling: Autoencoder | None = None,
    maps: Sequence[str] | None = None,
    anchors: int = 64,
    drift_steps: Sequence[int] = DRIFT_STEPS,
    tol: float | None = None,
    measure: str | None = None,
    max_steps: int | None = None,
    batch_size: int = 64,
    merge: str = "relative",
    merge_threshold: float | None = None,
    seed: int = 0,
    compute: Callable[[Pairs], Mapping[str, dict[str, Any]]] = one_by_one,
) -> Alignment:
    """Compare the latent vector fields of two networks (Fumero et al., ICLR 2026, sec. 6, asks for it).

    Maps between the latent spaces are fitted on two thirds of the images. On the others, each mapped step of A is
    compared with B's step at the mapped point (for "relative" at the same image), and so are the basins of attraction.
    The attractors are those that the held-out images lead to, in each network.

    Args:
        model_a: the network A.
        model_b: the network B.
        images: images `(n, *image_shape)` of A, or anything else that `Autoencoder.take_images` of A takes.
        images_b: the same pictures for B; by default the very tensor that A is given.
        null: a network like B with random weights.
        ceiling: one like A with a little weight noise (`fmprobe.probes.alignment.perturbation`).
        maps: some of "orthogonal" (left out by default where dimensions differ), "linear" and "relative".
        anchors: number of images that relative representations are relative to.
        drift_steps: steps of the iteration at which these are compared.
        tol: tolerance, by default that of the paper's protocol for this kind of models, the looser of two.
        measure: measure of a step, with the same default.
        max_steps: limit of the steps, with the same default.
        batch_size: largest number of rows in one call of a network.
        merge: as in `find_attractors`.
        merge_threshold: as in `find_attractors`.
        seed: seed of the choice of the images that are fitted on.
        compute: calls the functions that it is given and returns what they return, by their names. Processes may share
            them here.

    Raises:
        InputError: a network has no latent map or takes no images, there are fewer than 12 images, a map is unknown, an
            orthogonal map is asked for between different dimensions, or a latent is not finite.
        ValueError: a number makes no sense.
    """
    _check_models(model_a, model_b)
    images = model_a.take_images(images)
    images_b = None if images_b is None else model_b.take_images(images_b)
    model_b.check_images(images if images_b is None else images_b)
    _check(images, images_b, maps)
    check_counts(2, anchors=anchors)
    check_seed(seed)
    check_counts(0, **{f"drift_steps[{i}]": step for i, step in enumerate(drift_steps)})
    check_counts(batch_size=batch_size)
    published = protocol_for(model_a, model_b)
    rule = published.chosen(tol, measure, max_steps)
    search = {**rule, "batch_size": batch_size}
    merging = {"merge": merge, "merge_threshold": merge_threshold}
    quiet = {**search, **merging, "stability_cap": JACOBIANS, "progress": False}
    wanted, absent = _maps(model_a, model_b, maps)
    settings = _Settings(wanted, anchors, tuple(sorted({0, *drift_steps})), quiet)
    order = torch.from_numpy(generator(seed, 0, "alignment: images to fit").permutation(len(images)))
    fitted = round(FIT_SHARE * len(images))
    other = images if images_b is None else images_b
    a = _Side(model_a, images[order], fitted, settings)

    def against(model: Autoencoder, its_images: Tensor) -> dict[str, Any]:
        return _compare(a, _Side(model, its_images[order], fitted, settings), settings)

    pairs = {"subject": partial(against, model_b, other)}
    for name, model, its_images in (("null", null, other), ("ceiling", ceiling, images)):
        if model is None:
            absent[name] = "no such network was given"
        else:
            pairs[name] = partial(against, model, its_images)
    protocol = {
        "images": len(images),
        "fitted_on": fitted,
        "seed": seed,
        "anchors": min(anchors, fitted),
        "shuffles": SHUFFLES,
        "models": [model_a.name, model_b.name],
        "name": published.named(**rule),
        **search,
        **merging,
    }
    found = compute(pairs)
    made = Alignment(found["subject"], found.get("null"), found.get("ceiling"), absent, protocol)
    return made.about(model_a, model_b, *(model for model in (null, ceiling) if model is not None))


def _maps(a: Autoencoder, b: Autoencoder, asked: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """The maps to fit, by default all that can be, and why one cannot."""
    sizes = [math.prod(model.latent_shape) for model in (a, b)]
    if asked is not None or sizes[0] == sizes[1]:
        return tuple(asked or FITS), {}
    reason = f"latents of {sizes[0]} and of {sizes[1]} values"
    return tuple(name for name in FITS if name != ORTHOGONAL), {ORTHOGONAL: reason}


class _Side:
    """One network: the latents of its images, flat and on the CPU, and where the held-out ones lead."""

    def __init__(self, model: Autoencoder, images: Tensor, fitted: int, settings: _Settings) -> None:
        self.model, self.settings = model, settings
        with torch.no_grad():
            latents = model.encode(images, settings.batch_size).flatten(1).cpu()
        if not bool(latents.isfinite().all()):
            raise InputError(f"{model.name} gives latents of the images that are not finite: try dtype float32")
        self.fit, self.held_out = latents[:fitted], latents[fitted:]

    def shaped(self, flat: Tensor) -> Tensor:
        """Flat latents in their own shape, on the model's device."""
        return flat.reshape(-1, *self.model.latent_shape).to(self.model.device)

    def steps_at(self, flat: Tensor) -> Tensor:
        """V at flat latents, flat."""
        return field_at(self.model.latent_map, self.shaped(flat), self.settings.batch_size).flatten(1).cpu()

    def attractors_from(self, flat: Tensor) -> AttractorSet:
        """What flat latents lead to."""
        return find_attractors(self.model, starts=self.shaped(flat), **self.settings.search)

    @cached_property
    def attractors(self) -> AttractorSet:
        """What the held-out images lead to."""
        return self.attractors_from(self.held_out)

    @cached_property
    def steps(self) -> Tensor:
        """V at the held-out images."""
        return self.steps_at(self.held_out)

    @cached_property
    def path(self) -> list[Tensor]:
        """Flat latents of the held-out images at the steps of which the drift is taken."""
        wanted, flat, points = self.settings.drift_steps, self.held_out, []
        for step in range(wanted[-1] + 1):
            if step in wanted:
                points.append(flat)
            if step < wanted[-1]:
                flat = flat + self.steps_at(flat)
        return points


def _compare(a: _Side, b: _Side, settings: _Settings) -> dict[str, Any]:
    """All figures of one pair of networks."""
    fitted: dict[str, LatentMap] = {}
    for name in settings.maps:
        more = {"anchors": settings.anchors} if FITS[name] is fit_relative else {}
        fitted[name] = FITS[name](a.fit, b.fit, **more)
    return {
        "maps": {name: _under_map(a, b, latent_map) for name, latent_map in fitted.items()},
        "drift": _drift(a, b, fit_relative(a.fit, b.fit, settings.anchors)),
        "orbits": {
            name: {"attractors": side.attractors.count, "status": side.attractors.orbits.counts()}
            for name, side in (("a", a), ("b", b))
        },
    }


def _under_map(a: _Side, b: _Side, latent_map: LatentMap) -> dict[str, Any]:
    """All figures of one pair of networks under one map."""
    points = latent_map.counterpart(a.held_out, b.held_out)
    own = points is b.held_out
    start_a, start_b = latent_map.from_a(a.held_out), latent_map.from_b(points)
    step_a = latent_map.from_a(a.held_out + a.steps) - start_a
    step_b = latent_map.from_b(points + (b.steps if own else b.steps_at(points))) - start_b
    reached = b.attractors if own else b.attractors_from(points)
    common = latent_map.from_b(b.held_out)
    spread = float((common - common.mean(0)).double().square().sum(1).mean().sqrt())
    return {
        **latent_map.facts,
        "fit_error": _share(start_a - common, common - common.mean(0)),
        "cosine": _quantiles(cosine_of(step_a, step_b)),
        "basins": basin_agreement(a.attractors.labels.cpu(), reached.labels.cpu()),
        "chamfer": _chamfer(
            latent_map.from_a(a.attractors.latents.flatten(1).cpu()),
            latent_map.from_b(b.attractors.latents.flatten(1).cpu()),
            spread,
        ),
    }


def basin_agreement(a: Tensor, b: Tensor, shuffles: int = SHUFFLES) -> dict[str, Any]:
    """Adjusted Rand index (Hubert and Arabie 1985) and Jaccard index of pairs, of two labellings `(n,)`; -1 is none.

    Only starts whose orbits settled in both networks count. The chance level of the Jaccard index is its mean over
    `shuffles` random permutations of one labelling. Both indices are None, with the `reason`, where fewer than two
    starts settled in both, or where a labelling has one basin, on which everything would agree.
    """
    from sklearn.metrics import adjusted_rand_score

    both = (a >= 0) & (b >= 0)
    x, y = a[both].numpy(), b[both].numpy()
    row: dict[str, Any] = {"starts": len(a), "settled_in_both": len(x), "basins": [len(set(x)), len(set(y))]}
    reason = None
    if len(x) < 2:
        reason = f"{len(x)} of {len(a)} starts settled in both networks"
    elif min(row["basins"]) < 2:
        reason = "the starts share one basin in a network"
    if reason is not None:
        return {**row, "adjusted_rand": None, "jaccard": None, "jaccard_chance": None, "reason": reason}
    rng = generator(0, 0, "alignment: shuffled basins")
    chance = np.mean([pair_jaccard(x, rng.permutation(y)) for _ in range(shuffles)])
    rand, jaccard = float(adjusted_rand_score(x, y)), pair_jaccard(x, y)
    return {**row, "adjusted_rand": rand, "jaccard": jaccard, "jaccard_chance": float(chance), "reason": None}


def pair_jaccard(x: np.ndarray, y: np.ndarray) -> float:
    """Pairs that share a basin in both labellings, over pairs that do in at least one."""
    from sklearn.metrics.cluster import pair_confusion_matrix

    (_, one), (other, both) = pair_confusion_matrix(x, y)
    return float(both / (both + one + other)) if both + one + other else 1.0


def _drift(a: _Side, b: _Side, relative: Relative) -> dict[str, Any]:
    """Relative representations of the held-out images along both iterations.

    `agreement`: correlation over anchors between the two networks' representations of an image, mean over images.
    `a`, `b`: root mean squared change of a cosine since step 0.
    """
    rows: dict[str, list[float | None]] = {"agreement": [], "a": [], "b": []}
    first = None
    for z, w in zip(a.path, b.path, strict=True):
        x, y = relative.from_a(z), relative.from_b(w)
        first = first or (x, y)
        rows["agreement"].append(_mean(cosine_of(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True))))
        for name, here, start in (("a", x, first[0]), ("b", y, first[1])):
            rows[name].append(_mean((here - start).double().square().mean(1).sqrt()))
    return {"steps": list(a.settings.drift_steps), **rows}


def _chamfer(a: Tensor, b: Tensor, spread: float) -> float | None:
    """Chamfer distance of two sets in units of `spread`; None where a set is empty."""
    if not len(a) or not len(b) or not spread > 0:
        return None
    return chamfer(a, b, "euclidean") / spread


def _share(error: Tensor, whole: Tensor) -> float | None:
    """Squared norm of the error over that of the whole; None where it is not finite."""
    total = float(whole.double().square().sum())
    share = float(error.double().square().sum()) / total if total > 0 else float("nan")
    return share if np.isfinite(share) else None


def _quantiles(values: Tensor) -> dict[str, float | int | None]:
    known = values[values == values].numpy()
    if not len(known):
        return {"known": 0, "mean": None, "q10": None, "q50": None, "q90": None}
    low, median, high = np.quantile(known, (0.1, 0.5, 0.9))
    mean = float(known.mean())
    return {"known": len(known), "mean": mean, "q10": float(low), "q50": float(median), "q90": float(high)}


def _mean(values: Tensor) -> float | None:
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else None


def _check_models(a: Autoencoder, b: Autoencoder) -> None:
    for model in (a, b):
        if not model.has_latent_map:
            raise InputError(f"{model.name} has no latent map: give it a decoder (`fmprobe fit-decoder`)")
        if not model.image_shape:
            raise InputError(f"{model.name} takes no images, and shared images are what latents are matched by")


def _check(images: Tensor, images_b: Tensor | None, maps: Sequence[str] | None) -> None:
    if len(images) < LEAST or (images_b is not None and len(images_b) != len(images)):
        given = len(images) if images_b is None else f"{len(images)} and {len(images_b)}"
        raise InputError(f"two networks are compared on {LEAST} images or more, the same for both: got {given}")
    if unknown := [name for name in maps or () if name not in FITS]:
        raise InputError(f"unknown map {unknown[0]!r}: expected some of {', '.join(FITS)}")
