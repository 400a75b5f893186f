"""fit_decoder: a surrogate for a frozen encoder, trained on procedural images unless images are given."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.inputs import ImagesLike
from fmprobe.nodes import level
from fmprobe.progress import progress_of
from fmprobe.sharing import team
from fmprobe.surrogates.artefact import Surrogate
from fmprobe.surrogates.data import (
    HELD_OUT,
    HELD_OUT_FIRST,
    TrainingData,
    coloured_noise,
    procedural,
    takes_procedural,
    training_data,
)
from fmprobe.surrogates.features import Features, cache_folder, features_key, features_of
from fmprobe.surrogates.kinds import find_kind
from fmprobe.surrogates.latent import LatentSettings
from fmprobe.surrogates.pixel import PixelSettings
from fmprobe.surrogates.settings import Settings
from fmprobe.surrogates.training import discard


@dataclass(frozen=True)
class FitSettings(PixelSettings, LatentSettings):
    """Settings of a pixel decoder or of a latent surrogate, as `kind` says, in one record.

    `Settings`, `TrainedSettings`, `PixelSettings` and `LatentSettings` say what the fields mean. The defaults suit a
    pixel decoder on a CPU of two cores; those of a kind on a device are `for_device`'s. A field that the kind does not
    use holds its default or 0.
    """

    @classmethod
    def for_device(cls, device: torch.device, kind: str = "pixel") -> "FitSettings":
        """The defaults of a kind on a device. A kind that has other settings than these gives its own class.

        Raises:
            InputError: If the kind is unknown.
        """
        made = find_kind(kind)
        chosen = cls if issubclass(cls, made.settings_type) else made.settings_type
        return cast("FitSettings", chosen(kind=kind, **made.defaults(device)))


def fit_decoder(
    model: Autoencoder,
    images: ImagesLike | None = None,
    kind: str = "pixel",
    *,
    seed: int = 0,
    progress: bool = True,
    trackers: str | None = None,
    **settings: Any,
) -> Surrogate:
    """Fit a surrogate to an encoder that has no decoder, so that a latent map exists.

    Kinds that are trained by steps use AdamW under a cosine schedule and average the weights. They go through
    accelerate, so several launched processes share each batch. A fit that was killed goes on where it stopped when it
    is called again with the same arguments. The global random state is left as it was.

    `info["validation"]` of the result holds errors on held-out images: of a pixel decoder the L1 error, beside that of
    each image's own median of each channel, and the relative feature error ||E(D(z)) - z|| / ||z||.

    Args:
        model: The encoder.
        images: None for procedural images (Baradad et al. 2021), so that no photograph is needed. Else floats
            `(n, C, H, W)` in `[0, 1]`, or anything else that `Autoencoder.take_images` takes. A source is read in
            parts. Every tenth of these is held out.
        kind: "pixel", a decoder to images, "latent", an autoencoder on features, or another name in
            `fmprobe.surrogates.kinds.KINDS`.
        seed: Seed of everything that is drawn.
        progress: Whether progress bars may be shown.
        trackers: accelerate's `log_with`.
        settings: Fields of `FitSettings`. By default they suit the model's device. `n_images` of given images is the
            number that is used, spread evenly.

    Raises:
        InputError: If the model has a decoder, or the latents, images or settings do not fit.
    """
    chosen = chosen_settings(model, images, kind, **settings, seed=seed)
    return fit_with(model, chosen, images, progress=progress, trackers=trackers)


def chosen_settings(
    model: Autoencoder, images: ImagesLike | None = None, kind: str = "pixel", **settings: Any
) -> FitSettings:
    """The settings of a fit, as `fit_decoder` takes them: those given, and the kind's defaults on the model's device.

    Raises:
        InputError: If a setting is unknown.
    """
    chosen = FitSettings.for_device(model.device, kind)
    if unknown := sorted(settings.keys() - asdict(chosen).keys()):
        raise InputError(
            f"unknown setting {unknown[0]!r} of a {kind} surrogate: expected one of {', '.join(asdict(chosen))}"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    if images is not None:
        given = {"n_images": None, **given}
    return replace(chosen, **given)


def fit_with(
    model: Autoencoder,
    settings: Settings,
    images: ImagesLike | None = None,
    *,
    progress: bool = True,
    trackers: str | None = None,
) -> Surrogate:
    """`fit_decoder` with all its settings in one object."""
    began = time.monotonic()
    kind = find_kind(settings.kind)
    if model.has_latent_map:
        raise InputError(f"{model.name} has a latent map already: it needs no surrogate")
    if images is not None and settings.mixture != Settings.mixture:
        raise InputError(f"mixture={settings.mixture!r} is of procedural images, and images are given: leave it out")
    if trackers and "trackers" not in kind.options():
        raise InputError(f"a {settings.kind} surrogate is not trained by steps: leave trackers out")
    kind.check(model, settings)
    data = training_data(model, settings, images)
    # Without a fingerprint nothing tells this run from another, and its state is not kept.
    key = features_key(model, data.key, asdict(settings))
    how = {"folder": cache_folder("fits") / key if key else None, "progress": progress, "trackers": trackers}
    if how["folder"] is not None:
        level(how["folder"])  # so that all processes go on from the same step
    with _encoded(model, settings, data, progress) as features:
        surrogate, log = kind.fit(model, settings, features, data.held_out, **how)
    judged = {"held_out": data.held_out}
    if takes_procedural(model):
        judged["leaves"] = procedural(model, HELD_OUT, HELD_OUT_FIRST, "leaves", settings.seed)
    used = asdict(replace(settings, n_images=data.n))
    surrogate.info |= {
        "model": model.name,
        "revision": model.provenance.get("revision"),
        "fingerprint": model.fingerprint,
        "tokens": model.provenance.get("tokens"),
        "image_size": model.image_shape[-1],
        "data_free": data.data_free,
        "data": data.words,
        "source": data.source,
        "settings": used,
        "seed": settings.seed,
        "steps": used.get("steps"),
        "log": log,
        "validation": {name: validate(model, surrogate, block) for name, block in judged.items()},
        "seconds": round(time.monotonic() - began, 1),
    }
    discard(how["folder"])
    return surrogate


def validate(model: Autoencoder, surrogate: Surrogate, images: Tensor) -> dict[str, float | int]:
    """Errors of a surrogate on images, bytes or floats.

    Returns:
        "images", their number; "l1_median", the L1 error of each image's own median (of each channel, where images are
        `(C, H, W)`); and the errors that the surrogate's kind has, "feature_error" among them.
    """
    pixels = as_pixels(images)
    axes = pixels.shape[:2] if pixels.ndim == 4 else pixels.shape[:1]  # one of no channels is taken as a whole
    median = pixels.flatten(len(axes)).median(dim=-1).values.reshape(*axes, *[1] * (pixels.ndim - len(axes)))
    known = {"images": len(images), "l1_median": float((pixels - median).abs().mean())}
    return {**known, **surrogate.errors(model, pixels)}


@contextmanager
def _encoded(model: Autoencoder, settings: Settings, data: TrainingData, progress: bool) -> Iterator[Features]:
    """The features of the training images. The main process encodes, and the others find them in the cache."""
    crew = team()
    if not crew.is_main:
        crew.barrier()
    bar = progress_of("encoding images", data.n, shown=None if progress else False)
    noise = partial(coloured_noise, settings), [settings.pixel_noise, settings.seed], settings.draws
    with bar, features_of(model, data.blocks, data.key, *noise, bar.update) as features:
        bar.close()
        if crew.is_main:
            crew.barrier()
        yield features
