"""fit_decoder: a decoder for a frozen encoder, trained on procedural images unless images are given."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.seeding import generator
from fmprobe.surrogates.features import Features, as_pixels, compute_features, encode_native
from fmprobe.surrogates.pixel import SIZES, PatchDecoder, patch_grid
from fmprobe.surrogates.procedural import MIXTURES, power_noise, procedural_images

KINDS = ("pixel",)
FEWEST = 16  # images
HELD_OUT = 64  # images of each validation set
HELD_OUT_FIRST = 1_000_000_000  # procedural indices from here on are never trained on
NOISE_FIRST = 2_000_000_000  # random streams from here on disturb the training images
ENCODE_BATCH = 32


@dataclass(frozen=True)
class FitSettings:
    """How a decoder is fitted; the defaults suit a CPU of two cores, `for_device` those of an accelerator.

    `noise`: the standardised tokens get Gaussian noise of a deviation up to this, mostly less, drawn for every sample.
    `pixel_noise`: the encoder sees each training image with coloured noise of a deviation from U[0, pixel_noise], and
    the decoder learns to paint it without. Both make the latent map contract: D(E(x)) becomes a denoiser, and f has
    the same non-zero eigenvalues. `mixture`: of the procedural images.
    """

    kind: str = "pixel"
    size: str = "tiny"
    n_images: int = 1500
    steps: int = 900
    batch_size: int = 16
    learning_rate: float = 2e-3
    noise: float = 3.0
    pixel_noise: float = 0.2
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps
    mixture: str = "all"
    seed: int = 0

    @classmethod
    def for_device(cls, device: torch.device) -> "FitSettings":
        if device.type == "cuda":
            return cls(size="small", n_images=6000, steps=5000, batch_size=64, learning_rate=1e-3)
        return cls()


def fit_decoder(
    model: Autoencoder,
    images: Tensor | None = None,
    kind: str = "pixel",
    *,
    size: str | None = None,
    n_images: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    noise: float | None = None,
    pixel_noise: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PatchDecoder:
    """A decoder for an encoder that has none, so that the latent map f(z) = E(D(z)) exists.

    `images`: None for procedural images (Baradad et al. 2021), so that no photograph is needed, else float
    `(n, C, H, W)` in `[0, 1]`, of which the last tenth is held out. What is None takes `FitSettings`' value for the
    model's device. Minimises the L1 error of pixels by AdamW with warm-up and a cosine schedule; the global random
    state is left as it was. `info["validation"]` holds, for held-out images, the L1 error beside that of each image's
    own median a channel, and the relative feature error ||E(D(z)) - z|| / ||z||.
    Raises InputError where the model has a decoder, its latents are no square grid of tokens, or the images do not fit.
    """
    given = {
        "kind": kind,
        "size": size,
        "n_images": n_images,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "noise": noise,
        "pixel_noise": pixel_noise,
        "seed": seed,
    }
    settings = replace(FitSettings.for_device(model.device), **{k: v for k, v in given.items() if v is not None})
    return fit_with(model, settings, images, progress=progress)


def fit_with(
    model: Autoencoder, settings: FitSettings, images: Tensor | None = None, *, progress: bool = True
) -> PatchDecoder:
    """`fit_decoder` with all its settings in one object."""
    began = time.monotonic()
    _check(model, settings, images)
    train, held_out = _training_images(model, settings, images, progress)
    with _bar(len(train), "encoding images", progress) as bar:
        disturb = partial(_coloured_noise, settings)
        features = compute_features(model, train, ENCODE_BATCH, disturb=disturb, advance=bar.update)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # of the CPU alone, where the weights are drawn
        decoder = PatchDecoder(list(model.latent_shape), list(model.image_shape), settings.size)
    decoder.latent_mean.copy_(features.mean)
    decoder.latent_std.copy_(features.std)
    decoder.to(model.device)
    _train(model, decoder, features, train, held_out, settings, progress)
    decoder.requires_grad_(False).eval()

    validation = {"held_out": held_out}
    if model.image_shape[0] in (1, 3):
        validation["leaves"] = _procedural(model, settings, HELD_OUT, HELD_OUT_FIRST, "leaves")
    decoder.info.update(
        {
            "model": model.name,
            "revision": model.provenance.get("revision"),
            "fingerprint": model.provenance.get("fingerprint"),
            "tokens": model.provenance.get("tokens"),
            "image_size": model.image_shape[-1],
            "data_free": images is None,
            "data": _describe_data(settings, images, len(train), len(held_out)),
            "settings": asdict(replace(settings, n_images=len(train))),
            "seed": settings.seed,
            "steps": settings.steps,
            "validation": {name: _validate(model, decoder, block) for name, block in validation.items()},
            "seconds": round(time.monotonic() - began, 1),
        }
    )
    return decoder


def _check(model: Autoencoder, settings: FitSettings, images: Tensor | None) -> None:
    if model.has_decoder:
        raise InputError(f"{model.name} has a decoder already: its latent map needs no surrogate")
    if settings.kind not in KINDS:
        raise InputError(f"unknown kind of decoder {settings.kind!r}: expected one of {', '.join(KINDS)}")
    if settings.size not in SIZES:
        raise InputError(f"unknown decoder size {settings.size!r}: expected one of {', '.join(SIZES)}")
    if settings.mixture not in MIXTURES:
        raise InputError(f"unknown mixture {settings.mixture!r}: expected one of {', '.join(MIXTURES)}")
    for name in ("steps", "batch_size", "learning_rate"):
        if not getattr(settings, name) > 0:
            raise InputError(f"{name} must be above 0, got {getattr(settings, name)}")
    for name in ("noise", "pixel_noise"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise InputError(f"{name} must not be negative, got {getattr(settings, name)}")
    patch_grid(model.latent_shape, model.image_shape)
    if images is None:
        if model.image_shape[0] not in (1, 3):
            raise InputError(
                f"procedural images have 3 channels, {model.name} takes {model.image_shape[0]}: pass images="
            )
        if not FEWEST <= settings.n_images <= HELD_OUT_FIRST:
            raise InputError(f"a decoder is trained on {FEWEST} images or more, got n_images={settings.n_images}")
        return
    if images.ndim != 4 or tuple(images.shape[1:]) != model.image_shape:
        raise InputError(f"{model.name} takes images of shape (n, {model.image_shape}), got {tuple(images.shape)}")
    if len(images) < FEWEST:
        raise InputError(f"a decoder is trained on {FEWEST} images or more, got {len(images)}")
    if not images.is_floating_point() or not (images.amin() >= 0 and images.amax() <= 1):  # NaN fails as well
        raise InputError("training images must be floating point in [0, 1]: divide bytes by 255")


def _training_images(
    model: Autoencoder, settings: FitSettings, images: Tensor | None, progress: bool
) -> tuple[Tensor, Tensor]:
    """The images to train on and those held out, both on the CPU."""
    if images is not None:
        kept = len(images) - max(2, len(images) // 10)
        images = images.detach().float().cpu()
        return images[:kept], images[kept:][:HELD_OUT]
    with _bar(settings.n_images, "drawing procedural images", progress) as bar:
        train = _procedural(model, settings, settings.n_images, 0, settings.mixture, bar.update)
    return train, _procedural(model, settings, HELD_OUT, HELD_OUT_FIRST, settings.mixture)


def _procedural(
    model: Autoencoder,
    settings: FitSettings,
    n: int,
    first: int,
    mixture: str,
    advance: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Procedural images of the model's shape, as bytes: a quarter of the memory, and what photographs have."""
    out = torch.empty((n, *model.image_shape), dtype=torch.uint8)
    for start in range(0, n, 64):
        count = min(64, n - start)
        block = procedural_images(count, model.image_shape[-1], settings.seed, mixture, first + start)
        block = block if model.image_shape[0] == 3 else block.mean(dim=1, keepdim=True)
        out[start : start + count] = (block * 255).round_().to(torch.uint8)
        advance(count)
    return out


def _coloured_noise(settings: FitSettings, pixels: Tensor, first: int) -> Tensor:
    """Pixels with 1/f^a noise, a in [0, 1.5], its deviation from U[0, pixel_noise]; both depend on seed and index."""
    if settings.pixel_noise == 0:
        return pixels
    noise = torch.empty_like(pixels)
    for i in range(len(pixels)):
        rng = generator(settings.seed, NOISE_FIRST + first + i)
        fields = power_noise(rng, pixels.shape[1], pixels.shape[2], rng.uniform(0, 1.5))
        noise[i] = torch.from_numpy(fields) * (settings.pixel_noise * rng.random())
    return pixels + noise


def _shaken(latents: Tensor, noise: float, shake: torch.Generator) -> Tensor:
    """Latents with Gaussian noise; its deviation, `noise` times the cube of a uniform draw, is mostly small.

    The small ones teach the decoder to paint well, the few large ones to come back from N(0, I) starts.
    """
    draw = torch.rand((len(latents), 1, 1), generator=shake, device=latents.device)
    sigma = noise * draw**3
    return latents + sigma * torch.randn(latents.shape, generator=shake, device=latents.device)


def _train(
    model: Autoencoder,
    decoder: PatchDecoder,
    features: Features,
    images: Tensor,
    held_out: Tensor,
    settings: FitSettings,
    progress: bool,
) -> None:
    """Minimise the L1 error of the decoded pixels; the settings' seed fixes the order of images and the noise."""
    device = model.device
    order = torch.Generator().manual_seed(settings.seed)
    shake = torch.Generator(device).manual_seed(settings.seed)
    optimiser = torch.optim.AdamW(
        _parameter_groups(decoder, settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings))
    batch_size = min(settings.batch_size, len(features))
    queue = torch.empty(0, dtype=torch.long)
    held_out_latents = _standardised(model, decoder, held_out)
    every = max(settings.steps // 10, 1)
    decoder.train()
    with torch.enable_grad(), _bar(settings.steps, "training the decoder", progress) as bar:
        for step in range(settings.steps):
            if len(queue) < batch_size:
                queue = torch.cat([queue, torch.randperm(len(features), generator=order)])
            rows, queue = queue[:batch_size], queue[batch_size:]
            latents, target = features[rows].to(device), as_pixels(images[rows]).to(device)
            loss = F.l1_loss(decoder(_shaken(latents, settings.noise, shake)), target)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % every == every - 1 and not bar.disable:
                bar.set_postfix(held_out_l1=f"{_l1(decoder, held_out_latents, held_out):.4f}")
            bar.update(1)


def _rate(step: int, settings: FitSettings) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to zero."""
    warmup = max(int(settings.warmup * settings.steps), 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(settings.steps - warmup, 1)))


def _parameter_groups(decoder: PatchDecoder, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, biases and norms do not."""
    matrices = [p for p in decoder.parameters() if p.ndim > 1]
    others = [p for p in decoder.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _validate(model: Autoencoder, decoder: PatchDecoder, images: Tensor) -> dict[str, float | int]:
    """L1 error, the same of each image's own median a channel, and the feature error in the standardised space."""
    pixels = as_pixels(images)
    latents = _standardised(model, decoder, images)
    with torch.no_grad():
        decoded = torch.cat([decoder(z.to(model.device)).cpu() for z in latents.split(ENCODE_BATCH)])
    again = _standardised(model, decoder, decoded)
    median = pixels.flatten(2).median(dim=2).values[..., None, None]
    return {
        "images": len(images),
        "l1": float((decoded - pixels).abs().mean()),
        "l1_median": float((pixels - median).abs().mean()),
        "feature_error": float(((again - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)).mean()),
    }


def _standardised(model: Autoencoder, decoder: PatchDecoder, images: Tensor) -> Tensor:
    native = torch.cat([encode_native(model, block) for block in images.split(ENCODE_BATCH)])
    return (native - decoder.latent_mean.cpu()) / decoder.latent_std.cpu()


def _l1(decoder: PatchDecoder, latents: Tensor, images: Tensor) -> float:
    device = decoder.latent_mean.device
    with torch.no_grad():
        return float(F.l1_loss(decoder(latents.to(device)).cpu(), as_pixels(images)))


def _describe_data(settings: FitSettings, images: Tensor | None, trained: int, held_out: int) -> str:
    if images is not None:
        return f"{trained} images given by the caller; the last {len(images) - trained} of {len(images)} were held out"
    return (
        f"{trained} procedural images (mixture {settings.mixture!r}, seed {settings.seed}, from index 0); "
        f"held out: {held_out} of the same mixture and of dead leaves, indices from {HELD_OUT_FIRST}"
    )


def _bar(total: int, what: str, progress: bool) -> tqdm:
    """A progress bar for work that takes over two seconds, silent where there is no terminal."""
    return tqdm(total=total, desc=what, delay=2, disable=None if progress else True, leave=False)
