"""fit_decoder: a surrogate for a frozen encoder, trained on procedural images unless images are given."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.procedural import MIXTURES
from fmprobe.seeding import torch_seed
from fmprobe.sharing import team
from fmprobe.surrogates.artefact import KINDS
from fmprobe.surrogates.bodies import SIZES, make_body
from fmprobe.surrogates.data import (
    HELD_OUT,
    HELD_OUT_FIRST,
    coloured_noise,
    procedural,
    takes_procedural,
    training_data,
)
from fmprobe.surrogates.features import Features, as_pixels, cache_folder, encode_native, features_key, features_of
from fmprobe.surrogates.latent import VARIANTS, LatentSurrogate
from fmprobe.surrogates.pixel import PixelDecoder
from fmprobe.surrogates.training import Batch, Schedule, discard, train

UNUSED = {  # settings that a kind has no use for
    "pixel": ("variant", "bottleneck"),
    "latent": ("size", "noise", "blur", "perceptual", "contraction"),
}
COUNTS = ("n_images", "steps", "batch_size", "draws", "accumulate", "bottleneck", "seed")
CHOICES = {  # of settings that are words, with what each is of
    "kind": ("kind of decoder", KINDS),
    "size": ("decoder size", tuple(SIZES)),
    "precision": ("precision", ("no", "bf16")),
    "mixture": ("mixture", MIXTURES),
    "variant": ("latent surrogate", VARIANTS),
}
ENCODE_BATCH = 32
# The Jacobian is penalised in every second of the last third of the steps, at one row in 16: a row costs as much as 20.
LATE, EVERY, CONTRACTED = 1 / 3, 2, 16
NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class FitSettings:
    """How a surrogate is fitted; the defaults suit a CPU of two cores, `for_device` those of an accelerator.

    `noise`: the standardised latents get Gaussian noise of a deviation up to this, mostly less, drawn for every sample.
    `pixel_noise`: the encoder sees each training image with coloured noise of a deviation from U[0, pixel_noise], in
    `draws` versions, and the decoder learns to paint it without: D(E(x)) becomes a denoiser, and f has the same
    non-zero eigenvalues. `contraction`: weight of ||J_f||_F^2 / d (a Hutchinson estimate) at points of orbits from
    N(0, I), in the last third of the steps; too much leaves one attractor, too little none. `perceptual`: weight of the
    distance of the encoder's features of the painted image to those of the image.
    `blur`: of the painted images, as `PixelDecoder` has it; an encoder amplifies the detail that a decoder makes up.
    `n_images`: procedural images, or, of images that are given, at most so many, evenly spread; None: all of these.
    `mixture`: of the procedural images. `variant` and `bottleneck`: of a latent surrogate. Raises InputError for a
    value that its field cannot have, and for one of a field that the kind does not use, unless it is the default or 0.
    """

    kind: str = "pixel"
    size: str = "tiny"
    n_images: int | None = 1500
    steps: int = 900
    batch_size: int = 16
    learning_rate: float = 2e-3
    noise: float = 2.0
    pixel_noise: float = 0.2
    draws: int = 1
    blur: float = 0.018
    perceptual: float = 0.0
    contraction: float = 0.015
    weight_decay: float = 0.05
    ema: float = 0.99
    accumulate: int = 1
    precision: str = "no"
    mixture: str = "all"
    variant: str = "plain"
    bottleneck: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in CHOICES:
                _check_choice(field.name, value)
            elif value is not None or field.name != "n_images":
                plain = _checked_number(field.name, value)  # numpy's numbers have no place in a file
                object.__setattr__(self, field.name, plain)
        for name in UNUSED[self.kind]:
            if (value := getattr(self, name)) not in (0, getattr(FitSettings, name)):
                raise InputError(f"{name}={value!r} is of no use to a {self.kind} surrogate: leave it out")
        if self.draws > 1 and self.pixel_noise == 0:
            raise InputError(
                f"draws={self.draws} are versions with other noise, and pixel_noise is 0: give it, or leave draws out"
            )

    @classmethod
    def for_device(cls, device: torch.device, kind: str = "pixel") -> "FitSettings":
        """The defaults of a kind on a device. Raises InputError for an unknown kind."""
        _check_choice("kind", kind)
        if kind == "latent":
            return cls(kind="latent", steps=1500, batch_size=16, learning_rate=2e-3, noise=0.0, pixel_noise=0.0)
        if device.type == "cuda":
            return cls(size="small", n_images=6000, steps=5000, batch_size=64, learning_rate=1e-3)
        return cls()


def fit_decoder(
    model: Autoencoder,
    images: Tensor | str | None = None,
    kind: str = "pixel",
    *,
    seed: int = 0,
    progress: bool = True,
    trackers: str | None = None,
    **settings: Any,
) -> PixelDecoder | LatentSurrogate:
    """A surrogate for an encoder that has no decoder, so that a latent map exists.

    `images`: None for procedural images (Baradad et al. 2021), so that no photograph is needed; or float `(n, C, H, W)`
    in `[0, 1]`, or a source as `fmprobe.load_images` takes it, of which every tenth image is held out and, with
    `n_images`, that many are taken, evenly spread. `kind`: "pixel", a decoder to images, or "latent", an autoencoder on
    features. `settings`: fields of `FitSettings`; what is left out suits the model's device. Trained by AdamW under a
    cosine schedule, its weights averaged; through accelerate, so that launched on several processes they share each
    batch. Killed, and called again with the same arguments, it goes on where it stopped. The global random state is
    left as it was. `info["validation"]` holds, for held-out images, the L1 error beside that of each image's own
    median a channel, and the relative feature error ||E(D(z)) - z|| / ||z||. `trackers`: accelerate's `log_with`.
    Raises InputError where the model has a decoder, or the latents, images or settings do not fit.
    """
    chosen = FitSettings.for_device(model.device, kind)
    if unknown := sorted(settings.keys() - asdict(chosen).keys()):
        raise InputError(f"unknown setting {unknown[0]!r}: expected one of {', '.join(asdict(chosen))}")
    given = {name: value for name, value in settings.items() if value is not None}
    if images is not None:
        given = {"n_images": None, **given}
    return fit_with(model, replace(chosen, **given, seed=seed), images, progress=progress, trackers=trackers)


def fit_with(
    model: Autoencoder,
    settings: FitSettings,
    images: Tensor | str | None = None,
    *,
    progress: bool = True,
    trackers: str | None = None,
) -> PixelDecoder | LatentSurrogate:
    """`fit_decoder` with all its settings in one object."""
    began = time.monotonic()
    _check(model, settings, images is None)
    data = training_data(model, settings, images)
    crew = team()
    if not crew.is_main:
        crew.barrier()  # the main process encodes, the others find the features in the cache
    with (
        _bar(data.n, "encoding images", progress) as bar,
        features_of(
            model,
            data.blocks,
            data.key,
            partial(coloured_noise, settings),
            [settings.pixel_noise, settings.seed],
            settings.draws,
            bar.update,
        ) as features,
    ):
        bar.close()
        if crew.is_main:
            crew.barrier()
        # Without a fingerprint nothing tells this run from another, and its state is not kept.
        key = features_key(model, data.key, asdict(settings))
        folder = cache_folder("fits") / key if key else None
        surrogate, log = _train(model, settings, features, data.held_out, folder, progress, trackers)
    validation = {"held_out": data.held_out}
    if takes_procedural(model):
        validation["leaves"] = procedural(model, HELD_OUT, HELD_OUT_FIRST, "leaves", settings.seed)
    surrogate.info.update(
        {
            "model": model.name,
            "revision": model.provenance.get("revision"),
            "fingerprint": model.fingerprint,
            "tokens": model.provenance.get("tokens"),
            "image_size": model.image_shape[-1],
            "data_free": data.data_free,
            "data": data.words,
            "settings": asdict(replace(settings, n_images=data.n)),
            "seed": settings.seed,
            "steps": settings.steps,
            "log": log,
            "validation": {name: validate(model, surrogate, block) for name, block in validation.items()},
            "seconds": round(time.monotonic() - began, 1),
        }
    )
    discard(folder)
    return surrogate


def validate(model: Autoencoder, surrogate: PixelDecoder | LatentSurrogate, images: Tensor) -> dict[str, float | int]:
    """Errors on images, bytes or floats: of features, and of pixels beside each image's own median a channel.

    The feature error is ||E(D(z)) - z|| / ||z|| in the mean for a pixel decoder, ||D'(E'(x)) - x|| / ||x|| on
    standardised features for a latent surrogate, which has no pixels.
    """
    pixels = as_pixels(images)
    native = torch.cat([encode_native(model, block) for block in images.split(ENCODE_BATCH)])
    median = pixels.flatten(2).median(dim=2).values[..., None, None]
    figures: dict[str, float | int] = {"images": len(images), "l1_median": float((pixels - median).abs().mean())}
    with torch.no_grad():
        if isinstance(surrogate, LatentSurrogate):
            rows = surrogate.standardised_rows(native.to(model.device))
            again, before = surrogate(rows).cpu(), rows.cpu()
        else:
            before = surrogate.standardise(native.to(model.device)).cpu()
            decoded = torch.cat([surrogate(z.to(model.device)).cpu() for z in before.split(ENCODE_BATCH)])
            figures["l1"] = float((decoded - pixels).abs().mean())
            native = torch.cat([encode_native(model, block) for block in decoded.split(ENCODE_BATCH)])
            again = surrogate.standardise(native.to(model.device)).cpu()
    error = (again - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    return {**figures, "feature_error": float(error.mean())}


def _check(model: Autoencoder, settings: FitSettings, procedural_images: bool) -> None:
    if model.has_latent_map:
        raise InputError(f"{model.name} has a latent map already: it needs no surrogate")
    if not procedural_images and settings.mixture != FitSettings.mixture:
        raise InputError(f"mixture={settings.mixture!r} is of procedural images, and images are given: leave it out")
    if settings.kind == "pixel":
        with torch.device("meta"):
            make_body(model.latent_shape, model.image_shape, settings.size)


def _check_choice(name: str, value: Any) -> None:
    what, choices = CHOICES[name]
    if value not in choices:
        known = " or ".join(choices) if name == "precision" else f"one of {', '.join(choices)}"
        raise InputError(f"unknown {what} {value!r}: expected {known}")


def _checked_number(name: str, value: Any) -> int | float:
    """The value, a plain number. Raises InputError for what is no number, not finite, or outside the field's range."""
    known = _is_finite(value)
    whole = name in COUNTS
    if name == "ema":
        inside, rule = known and 0 <= value < 1, "be at least 0 and below 1"
    elif name == "learning_rate" or (whole and name != "seed"):
        inside, rule = known and value > 0, "be above 0 and finite"
    else:
        inside, rule = known and value >= 0, "not be negative, and must be finite"
    if not inside or (whole and value % 1):
        raise InputError(f"{name} must {rule}{', and whole' if whole else ''}, got {value!r}")
    return int(value) if whole else float(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _schedule(settings: FitSettings) -> Schedule:
    names = ("steps", "batch_size", "learning_rate", "weight_decay", "ema", "accumulate", "precision", "seed")
    return Schedule(**{name: getattr(settings, name) for name in names})


def _train(
    model: Autoencoder,
    settings: FitSettings,
    features: Features,
    held_out: Tensor,
    folder: Path | None,
    progress: bool,
    trackers: str | None,
) -> tuple[PixelDecoder | LatentSurrogate, list[dict[str, Any]]]:
    """A surrogate of the kind asked for, trained on features, and the log of its training."""
    make = _pixel_task if settings.kind == "pixel" else _latent_task
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone, where the weights are drawn.
        torch.default_generator.manual_seed(torch_seed(settings.seed, "surrogates: initial weights"))
        task = make(model, settings, features, held_out)
    surrogate, log = train(
        task.module,
        task.loss_of,
        len(features),
        _schedule(settings),
        device=model.device,
        folder=folder,
        validate=task.watched,
        trackers=trackers,
        progress=progress,
        what=f"training the {settings.kind} surrogate",
    )
    if isinstance(surrogate, LatentSurrogate):
        blocks = torch.arange(len(features)).split(ENCODE_BATCH)
        surrogate.measure_codes(features.latents(rows) for rows in blocks)
    return surrogate, log


@dataclass(frozen=True)
class _Task:
    """What is trained, by which loss, and what is watched on held-out images."""

    module: PixelDecoder | LatentSurrogate
    loss_of: Callable[[nn.Module, Batch], Tensor]
    watched: Callable[[Any], float]


def _pixel_task(model: Autoencoder, settings: FitSettings, features: Features, held_out: Tensor) -> _Task:
    """Minimise the L1 error of the decoded pixels, and what else the settings ask for."""
    shapes = list(model.latent_shape), list(model.image_shape)
    decoder = PixelDecoder(*shapes, settings.size, blur=settings.blur)
    decoder.latent_mean.copy_(features.mean)
    decoder.latent_std.copy_(features.std)
    native = torch.cat([encode_native(model, block) for block in held_out.split(ENCODE_BATCH)])
    # Statistics that a wrapped module hides; buffers are not trained.
    standardise = decoder.to(model.device).standardise
    late = int((1 - LATE) * settings.steps)

    def f(latents: Tensor) -> Tensor:
        return standardise(model.encode_unchecked(decoder(latents)))

    def loss_of(module: nn.Module, batch: Batch) -> Tensor:
        clean = features.latents(batch.rows, batch.step * settings.batch_size // len(features)).to(model.device)
        target = features.images(batch.rows).to(model.device)
        latents = _shaken(clean, settings.noise, batch)
        now = settings.contraction and batch.step >= late and (batch.step - late) % EVERY == 0
        contracted = batch.one_in(CONTRACTED) if now else NONE
        if not (settings.perceptual or len(contracted)):
            return F.l1_loss(module(latents), target)
        orbit = _on_orbits(batch, clean[contracted], f).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            painted = module(torch.cat([latents, orbit]))  # in one call, which a wrapped module needs
            loss = F.l1_loss(painted[: len(clean)], target)
            if settings.perceptual:
                again = standardise(model.encode_unchecked(painted[: len(clean)]))
                loss = loss + settings.perceptual * F.l1_loss(again, clean)
            if len(contracted):
                after = standardise(model.encode_unchecked(painted[len(clean) :]))
                seen = batch.normal(clean.shape[1:], "surrogates: directions of the Jacobian")[contracted]
                (pulled,) = torch.autograd.grad((after * seen).sum(), orbit, create_graph=True)
                per_row = pulled.square().flatten(1).mean(1)
                loss = loss + settings.contraction * per_row.sum() * CONTRACTED / len(clean)
        return loss

    def l1(module: PixelDecoder) -> float:
        with torch.no_grad():
            blocks = [module(module.standardise(z.to(model.device))).cpu() for z in native.split(ENCODE_BATCH)]
        return float(F.l1_loss(torch.cat(blocks), as_pixels(held_out)))

    return _Task(decoder, loss_of, l1)


def _latent_task(model: Autoencoder, settings: FitSettings, features: Features, held_out: Tensor) -> _Task:
    """Minimise the variant's loss on features."""
    shapes = list(model.latent_shape), list(model.image_shape)
    surrogate = LatentSurrogate(*shapes, settings.bottleneck, settings.variant)
    surrogate.feature_mean.copy_(features.mean)
    surrogate.feature_std.copy_(features.std)
    surrogate.to(model.device)
    native = torch.cat([encode_native(model, block) for block in held_out.split(ENCODE_BATCH)])

    def loss_of(module: nn.Module, batch: Batch) -> Tensor:
        clean = features.latents(batch.rows, batch.step * settings.batch_size // len(features))
        return module(surrogate.as_rows(clean.to(model.device)), batch)

    def error(module: LatentSurrogate) -> float:
        with torch.no_grad():
            rows = module.standardised_rows(native.to(model.device))
            return float(F.mse_loss(module(rows), rows))

    return _Task(surrogate, loss_of, error)


def _on_orbits(batch: Batch, like: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """Points that f is iterated to from N(0, I), one to four steps on: where orbits live, data or not."""
    places = batch.normal(like.shape[1:], "surrogates: starts of orbits")[batch.one_in(CONTRACTED)][: len(like)]
    with torch.no_grad():
        for _ in range(1 + batch.step // EVERY % 4 if len(like) else 0):
            places = f(places)
    return places


def _shaken(latents: Tensor, noise: float, batch: Batch) -> Tensor:
    """Latents with Gaussian noise; its deviation, `noise` times the cube of a uniform draw, is mostly small.

    The small ones teach the decoder to paint well, the few large ones to come back from N(0, I) starts.
    """
    sigma = noise * batch.uniform((1,) * (latents.ndim - 1), "surrogates: size of the latent noise") ** 3
    return latents + sigma * batch.normal(latents.shape[1:], "surrogates: latent noise")


def _bar(total: int, what: str, progress: bool) -> tqdm:
    """A progress bar for work that takes over two seconds, silent where there is no terminal."""
    return tqdm(total=total, desc=what, delay=2, disable=None if progress else True, leave=False)
