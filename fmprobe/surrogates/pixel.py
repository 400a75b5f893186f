"""Kind "pixel": a decoder to images, a transformer for tokens and convolutions for maps and vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.surrogates.bodies import SIZES, make_body
from fmprobe.surrogates.consistency import train_consistency
from fmprobe.surrogates.decoder import ImageDecoder
from fmprobe.surrogates.features import Features, encode_native
from fmprobe.surrogates.settings import TrainedSettings, kind_of, number, word
from fmprobe.surrogates.training import Batch, Schedule, initial_weights, train

# The Jacobian is penalised in every second of the last third of the steps, at one row in 16: a row costs as much as 20.
LATE, EVERY, CONTRACTED = 1 / 3, 2, 16
NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class PixelSettings(TrainedSettings):
    """Settings of a pixel decoder.

    Attributes:
        size: Number of layers and width, a name in `SIZES`.
        noise: Maximum standard deviation of the Gaussian noise added to each standardised latent. It is drawn for each
            sample, and is skewed towards zero.
        blur: Standard deviation of the Gaussian that ends the decoder, as a share of the image's side. An encoder
            amplifies the detail that a decoder makes up.
        perceptual: Weight of the L1 distance between the encoder's features of the painted image and of the image.
        contraction: Weight of ||J_f||_F^2 / d, a Hutchinson estimate, at points of orbits from N(0, I), in the last
            third of the steps. Too much leaves one attractor, too little none.
        consistency_steps: Number of steps of a second stage, which trains ||E(D(z)) - z||^2 along orbits.
        consistency: Weight of that term in the second stage, beside the L1 error of the pixels. A larger one lowers the
            feature error faster, and the decoder paints worse.
    """

    kind: str = kind_of("pixel")
    size: str = word("tiny", "decoder size", SIZES)
    noise: float = number(2.0)
    blur: float = number(0.018)
    perceptual: float = number(0.0)
    contraction: float = number(0.015)
    consistency_steps: int = number(0, whole=True)
    consistency: float = number(0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        default = PixelSettings.consistency
        if self.consistency_steps == 0 and self.consistency not in (0, default):
            raise InputError(
                f"consistency={self.consistency!r} is a weight in a second stage, and consistency_steps is 0: give it, "
                "or leave consistency out"
            )


class PixelDecoder(ImageDecoder):
    """Standardised latents `(B, *latent_shape)` to images `(B, C, H, W)` in `[0, 1]`, by a sigmoid.

    Tokens `(N, D)` go through a transformer, maps `(C, h, w)` and vectors `(D,)` through convolutions.

    Args:
        latent_shape: Shape of the encoder's latents, without the batch.
        image_shape: Shape of its images `(C, H, H)`.
        size: Number of layers and width, a name in `SIZES`.
        info: What `Surrogate.info` begins with.
        blur: Standard deviation of the Gaussian that ends the decoder, as a share of the image's side.

    Raises:
        InputError: If the size is not in `SIZES`, or the shapes do not go together.
    """

    kind = "pixel"
    settings_type = PixelSettings
    kernel: Tensor

    def __init__(
        self,
        latent_shape: Sequence[int],
        image_shape: Sequence[int],
        size: str = "small",
        info: dict[str, Any] | None = None,
        blur: float = 0.0,
    ) -> None:
        super().__init__(latent_shape, image_shape, info)
        self.body = make_body(latent_shape, image_shape, size)
        self.size, self.blur = size, blur
        self.register_buffer("kernel", _gaussian(blur * image_shape[-1]), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Images `(B, C, H, W)` of standardised latents; twice differentiable under SDPBackend.MATH."""
        # Pixels cannot leave [0, 1]: what f feeds to the encoder stays within what an encoder knows, and f is smooth.
        return self._blurred(torch.sigmoid(4 * self.body(latents)))

    def _blurred(self, images: Tensor) -> Tensor:
        """Images without detail finer than `blur`, which a decoder can only guess and an encoder amplifies."""
        reach, channels = len(self.kernel) // 2, images.shape[1]
        if reach == 0:
            return images
        images = F.pad(images, (reach, reach, reach, reach), mode="replicate")
        for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
            images = F.conv2d(images, self.kernel.view(shape).expand(channels, -1, -1, -1), groups=channels)
        return images

    @classmethod
    def defaults(cls, device: torch.device) -> dict[str, Any]:
        """The defaults of the settings suit a CPU of two cores; an accelerator affords more."""
        if device.type != "cuda":
            return {}
        longer = {"size": "small", "n_images": 6000, "steps": 5000, "batch_size": 64, "learning_rate": 1e-3}
        return {**longer, "consistency_steps": 2000}

    @classmethod
    def check(cls, model: Autoencoder, settings: PixelSettings) -> None:
        """Raise InputError where the shapes of a model do not suit a decoder."""
        with torch.device("meta"):
            make_body(model.latent_shape, model.image_shape, settings.size)

    @classmethod
    def fit(
        cls, model: Autoencoder, settings: PixelSettings, features: Features, held_out: Tensor, **how: Any
    ) -> tuple[Self, list[dict[str, Any]]]:
        """Minimise the L1 error of the decoded pixels, and whatever else the settings ask for, in one stage or two."""
        with initial_weights(settings.seed):
            decoder = cls(model.latent_shape, model.image_shape, settings.size, blur=settings.blur)
        decoder.take_statistics(features)
        native, pixels = encode_native(model, held_out), as_pixels(held_out)
        decoder, log = train(
            decoder,
            _PixelLoss(decoder.to(model.device), model, settings, features),
            len(features),
            Schedule.of(settings),
            device=model.device,
            validate=lambda module: float(F.l1_loss(module.paint(native), pixels)),
            what="training the pixel surrogate",
            **how,
        )
        if settings.consistency_steps == 0:
            return decoder, log
        decoder, more = train_consistency(decoder, model, settings, features, pixels, **how)
        return decoder, [*log, *more]

    def about(self) -> dict[str, Any]:
        layers, width = SIZES[self.size]
        body = {1: "vector to convolutions", 2: "patch transformer", 3: "convolutions"}[len(self.latent_shape)]
        return {"architecture": f"{body}, {layers} layers x {width}", "blur": self.blur}

    def config(self) -> dict[str, Any]:
        return {
            "latent_shape": list(self.latent_shape),
            "image_shape": list(self.image_shape),
            "size": self.size,
            "info": self.info,
            "blur": self.blur,
        }


class _PixelLoss:
    """L1 error of the decoded pixels, and the terms that have a weight in the settings.

    Args:
        decoder: The decoder itself, whose statistics a wrapped module hides. They are not trained.
        model: The frozen encoder.
        settings: Weights of the terms, and the noise.
        features: Training images and latents.
    """

    def __init__(self, decoder: PixelDecoder, model: Autoencoder, settings: PixelSettings, features: Features) -> None:
        self.decoder, self.model, self.settings, self.features = decoder, model, settings, features
        self.late = int((1 - LATE) * settings.steps)

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        settings, device = self.settings, self.model.device
        clean = self.features.of_step(batch.rows, batch.step, settings.batch_size).to(device)
        target = self.features.images(batch.rows).to(device)
        latents = _shaken(clean, settings.noise, batch)
        now = settings.contraction and batch.step >= self.late and (batch.step - self.late) % EVERY == 0
        contracted = batch.one_in(CONTRACTED) if now else NONE
        if not (settings.perceptual or len(contracted)):
            return F.l1_loss(module(latents), target)
        orbit = self._on_orbits(batch, clean[contracted]).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            painted = module(torch.cat([latents, orbit]))  # in one call, which a wrapped module needs
            loss = F.l1_loss(painted[: len(clean)], target)
            if settings.perceptual:
                loss = loss + settings.perceptual * F.l1_loss(self._encoded(painted[: len(clean)]), clean)
            if len(contracted):
                seen = batch.normal(clean.shape[1:], "surrogates: directions of the Jacobian")[contracted]
                after = self._encoded(painted[len(clean) :])
                (pulled,) = torch.autograd.grad((after * seen).sum(), orbit, create_graph=True)
                per_row = pulled.square().flatten(1).mean(1)
                loss = loss + settings.contraction * per_row.sum() * CONTRACTED / len(clean)
        return loss

    def _encoded(self, images: Tensor) -> Tensor:
        return self.decoder.standardise(self.model.encode_unchecked(images))

    def _on_orbits(self, batch: Batch, like: Tensor) -> Tensor:
        """Points that f is iterated to from N(0, I), one to four steps on: where orbits live, data or not."""
        places = batch.normal(like.shape[1:], "surrogates: starts of orbits")[batch.one_in(CONTRACTED)][: len(like)]
        with torch.no_grad():
            for _ in range(1 + batch.step // EVERY % 4 if len(like) else 0):
                places = self._encoded(self.decoder(places))
        return places


def _shaken(latents: Tensor, noise: float, batch: Batch) -> Tensor:
    """Latents with Gaussian noise, whose deviation is `noise` times the cube of a uniform draw, so mostly small.

    The small ones teach the decoder to paint well, the few large ones to come back from N(0, I) starts.
    """
    sigma = noise * batch.uniform((1,) * (latents.ndim - 1), "surrogates: size of the latent noise") ** 3
    return latents + sigma * batch.normal(latents.shape[1:], "surrogates: latent noise")


def _gaussian(deviation: float) -> Tensor:
    """The weights of a Gaussian of a deviation in pixels, out to three of them; one weight for none."""
    reach = round(3 * deviation)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-places.square() / (2 * deviation**2)) if reach else torch.ones(1, dtype=torch.float64)
    return (weights / weights.sum()).float()
