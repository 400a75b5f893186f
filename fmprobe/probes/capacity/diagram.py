"""The diagram over capacity: what orbits do when a closed-form decoder keeps k numbers of an encoder's features."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fmprobe.attractors import AttractorSet
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.attractors import attractors_of
from fmprobe.dynamics.checks import check_counts, check_seed
from fmprobe.dynamics.distances import typical_size
from fmprobe.dynamics.iterate import iterate
from fmprobe.dynamics.jacobian import NotDifferentiableError, spectral_radius
from fmprobe.dynamics.lyapunov import TWINS
from fmprobe.dynamics.merging import THRESHOLDS
from fmprobe.dynamics.readings import Readings, read_orbits
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.progress import progress_of
from fmprobe.surrogates.closed import BottleneckDecoder, ClosedFormSettings, ComponentRegression
from fmprobe.surrogates.data import coloured_noise, training_data
from fmprobe.surrogates.decoder import ImageDecoder
from fmprobe.surrogates.features import Features, encode_native, features_of
from fmprobe.surrogates.linear import LinearDecoder

A, B, NULL = "A", "B", "null"
SETTLES = 0.9  # share of the starts that must settle
OTHER_IMAGES = 1_000_003  # is added to the seed of set A for set B: image i depends on its seed and on i alone
EXAMINED = 2  # attractors a point whose Jacobian is examined, those with the largest basins


@dataclass(frozen=True)
class Point:
    """A point of the diagram: one decoder, and what orbits do with it.

    Attributes:
        k: number of values that a latent keeps; that of all features for the ridge form.
        form: "bottleneck", or "ridge" for all features.
        set: "A" or "B", disjoint sets of images; or "null", random weights with a decoder from the images of A.
        starts: number of starts from N(0, I).
        settled: how many of their orbits converged.
        attractors: number of attractors; None where all starts that converged are unresolved.
        exponent: median over starts of the largest Lyapunov exponent, in nats a step; None where it is not known.
        interval: its interval over starts, as in `Readings.interval`.
        standard_error: median of the standard errors of the exponents that were measured on orbits that move.
        regime: the regime that most starts share.
        l1: L1 error of the decoder on held-out images.
        l1_median: L1 error of each image's own median colour.
    """

    k: int
    form: str
    set: str
    starts: int
    settled: int
    attractors: int | None
    exponent: float | None
    interval: tuple[float | None, float | None]
    standard_error: float | None
    regime: str | None
    l1: float
    l1_median: float

    @property
    def settles(self) -> bool:
        """Whether at least `SETTLES` of the starts settled."""
        return self.settled >= SETTLES * self.starts

    def __str__(self) -> str:
        images = "random weights" if self.set == NULL else f"images {self.set}"
        capacity = "all features" if self.form == "ridge" else f"k = {self.k}"
        exponent = "" if self.exponent is None else f", exponent {self.exponent:.3f} nats a step"
        return f"{images}, {capacity}: {self.settled} of {self.starts} settled, {self.regime or 'no reading'}{exponent}"


@dataclass(frozen=True)
class Agreement:
    """How far the attractors of sets A and B agree at one k, in the pictures that the decoders paint of them.

    Attributes:
        k: number of values that a latent keeps.
        matched: number of pairs, one to one, whose pictures differ by no more than the merge threshold, relative to
            their size.
        of: the larger of the two numbers of attractors.
        distance: median relative difference of all pairs; None without pairs.
        correlation: correlation of the mean pictures of where the orbits end, each less the mean image of its set.
    """

    k: int
    matched: int
    of: int
    distance: float | None
    correlation: float | None

    @property
    def all_match(self) -> bool:
        """Whether every attractor has its partner."""
        return 0 < self.of == self.matched


def points_of(
    encoders: Mapping[str, tuple[Autoencoder, int]],
    ks: Sequence[int],
    *,
    n_images: int,
    starts: int,
    rule: Mapping[str, Any],
    merging: Mapping[str, Any],
    effort: Mapping[str, int],
    seed: int,
    batch_size: int,
    progress: bool | None = None,
) -> Iterator[tuple[Point, Autoencoder, AttractorSet]]:
    """The points of the diagram, each with the model and what its search found; the ridge form of a set comes last.

    Args:
        encoders: the encoder of each set, and the seed of its images.
        ks: numbers of components, ascending.
        n_images: number of procedural images of a set.
        starts: number of starts.
        rule: when orbits end, as `iterate` takes it.
        merging: `merge` and `threshold` of `attractors_of`.
        effort: `cap`, `steps` and `burn_in` of `read_orbits`.
        seed: seed of the starts.
        batch_size: largest number of latents in one call of f.
        progress: whether to show progress bars; None shows them on a terminal, and lines elsewhere.
    """
    with progress_of("diagram", len(encoders) * (len(ks) + 1), shown=progress) as bar:
        for name, (encoder, images_seed) in encoders.items():
            settings = ClosedFormSettings(n_images=n_images, pixel_noise=0.0, seed=images_seed, k=max(ks))
            BottleneckDecoder.check(encoder, settings)
            data = training_data(encoder, settings, None)
            native, pixels = encode_native(encoder, data.held_out), as_pixels(data.held_out)
            noise = partial(coloured_noise, settings), [settings.pixel_noise, settings.seed], settings.draws
            with features_of(encoder, data.blocks, data.key, *noise) as features:
                for form, decoder in _decoders(encoder, features, data.held_out, ks):
                    whole = encoder.with_decoder(decoder)
                    found, readings = _searched(whole, starts, rule, merging, effort, seed, batch_size)
                    yield _point(name, form, found, readings, _painting(decoder, native, pixels)), whole, found
                    bar.update(1)


def _decoders(
    encoder: Autoencoder, features: Features, held_out: Tensor, ks: Sequence[int]
) -> Iterator[tuple[str, ImageDecoder]]:
    """The decoders of one set of images by their form: one for each k, then that of all features."""
    regression = ComponentRegression(encoder, features, held_out, max(ks))
    for k in ks:
        yield "bottleneck", regression.decoder(k)[0]
    del regression
    settings = ClosedFormSettings(k=None, pixel_noise=0.0)
    yield "ridge", LinearDecoder.fit(encoder, settings, features, held_out)[0]


def _searched(
    model: Autoencoder,
    starts: int,
    rule: Mapping[str, Any],
    merging: Mapping[str, Any],
    effort: Mapping[str, int],
    seed: int,
    batch_size: int,
) -> tuple[AttractorSet, Readings]:
    """The attractors from N(0, I) starts, and the readings of the orbits.

    Forward mode is slow on the attention of a CPU, so that the exponents of orbits that move come from twin orbits. Of
    an attractor's Jacobian only the spectral radius is read, which is a tenth of what a search examines.
    """
    z = model.sample_latents(starts, seed)
    orbits = iterate(model.latent_map, z, batch_size=batch_size, progress=False, **rule)
    scale = typical_size(float(z.double().square().mean()))
    found = AttractorSet.of(
        attractors_of(model.latent_map, orbits, scale, stability_cap=0, device=model.device, **merging), model
    )
    radius = found.spectral_radius.clone()
    first = found.latents[:EXAMINED].to(model.device)
    with suppress(NotDifferentiableError):
        radius[:EXAMINED] = spectral_radius(model.latent_map, first, batch_size=batch_size).to(radius)
    found = replace(found, spectral_radius=radius)
    return found, read_orbits(model, found, batch_size=batch_size, method=TWINS, progress=False, **effort)


def _painting(decoder: ImageDecoder, native: Tensor, pixels: Tensor) -> dict[str, float]:
    """L1 errors of a decoder, and of each image's own median colour."""
    median = pixels.flatten(2).median(dim=2).values[..., None, None]
    painted = decoder.paint(native)
    return {"l1": float((painted - pixels).abs().mean()), "l1_median": float((pixels - median).abs().mean())}


def _point(name: str, form: str, found: AttractorSet, readings: Readings, painted: Mapping[str, float]) -> Point:
    said = readings.to_dict()
    return Point(
        k=found.orbits.ends[0].numel(),
        form=form,
        set=name,
        starts=len(readings),
        settled=int(found.orbits.converged.sum()),
        attractors=found.count,
        exponent=said["median"],
        interval=tuple(said["interval"]),
        standard_error=said["standard_error"],
        regime=said["regime"],
        **painted,
    )


def agreement_of(
    k: int,
    one: tuple[Autoencoder, AttractorSet],
    other: tuple[Autoencoder, AttractorSet],
    threshold: float | None = None,
) -> Agreement:
    """How far two surrogates of an encoder agree on attractors and on where orbits end.

    Args:
        k: number of values that a latent keeps.
        one: the model with the first surrogate, and what its search found.
        other: likewise of the second.
        threshold: relative difference within which two pictures match; by default the merge threshold of searches.
    """
    threshold = THRESHOLDS["relative"] if threshold is None else threshold
    pictures = [pictures_of(model, found.latents) for model, found in (one, other)]
    pairs = paired(*pictures)
    means = [
        pictures_of(model, found.orbits.ends).mean(0) - pictures_of(model, torch.zeros(1, *model.latent_shape))[0]
        for model, found in (one, other)  # a code of zeros is painted as the mean image
    ]
    correlation = float(torch.corrcoef(torch.stack(means))[0, 1])
    return Agreement(
        k=k,
        matched=int((pairs <= threshold).sum()),
        of=max(len(p) for p in pictures),
        distance=float(pairs.median()) if len(pairs) else None,
        correlation=correlation if math.isfinite(correlation) else None,
    )


def pictures_of(model: Autoencoder, latents: Tensor) -> Tensor:
    """The decoded latents as rows, double, on the CPU."""
    with torch.no_grad():
        return model.decode(latents, 32).flatten(1).double().cpu()


def paired(one: Tensor, other: Tensor) -> Tensor:
    """Relative differences of the pairs of two sets of pictures, matched one to one at the least total difference."""
    size = max((float(p.square().mean().sqrt()) for p in (one, other) if len(p)), default=1.0)
    apart = torch.cdist(one, other) / (one.shape[1] ** 0.5 * size)
    return apart[linear_sum_assignment(apart.numpy())]


def checked(model: Autoencoder, ks: Sequence[int] | None, n_images: int, starts: int, seed: int) -> list[int]:
    """The numbers of components, ascending.

    Raises:
        InputError: the model has a latent map already, or a k does not lie from 1 to one below the number of images.
        ValueError: a number makes no sense.
    """
    check_counts(16, n_images=n_images)
    check_counts(starts=starts)
    check_seed(seed)
    if model.has_latent_map:
        raise InputError(
            f"{model.name} has a latent map already: the diagram is over closed-form decoders of an encoder without one"
        )
    most = min(n_images, math.prod(model.latent_shape)) - 1
    if ks is None:
        return sorted({2**i for i in range(2, 16) if 2**i <= most} | {most})
    for k in ks:
        check_counts(k=k)
        if k > most:
            raise InputError(f"k must be at most {most}, one below the numbers of images and of features, got {k}")
    if not ks:
        raise InputError("there is no k: give at least one number of components")
    return sorted({int(k) for k in ks})


def to_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The points as JSON holds them."""
    return [{**asdict(point), "interval": list(point.interval)} for point in points]
