"""Kind "latent": a small autoencoder on a frozen encoder's features, whose bottleneck is what is iterated."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.surrogates.artefact import Surrogate
from fmprobe.surrogates.decoder import relative_error
from fmprobe.surrogates.features import (
    AT_ONCE,
    Features,
    Moments,
    channels_last,
    channels_of,
    channelwise,
    encode_native,
)
from fmprobe.surrogates.pixel import PixelDecoder
from fmprobe.surrogates.settings import TrainedSettings, kind_of, number, word
from fmprobe.surrogates.training import Batch, Schedule, initial_weights, train

VARIANTS = ("plain", "denoising", "contractive", "variational", "sparse", "topk")
DENOISING = 0.5  # deviation of the noise on standardised features
CONTRACTIVE, VARIATIONAL, SPARSE = 0.1, 0.01, 0.01  # weights of the penalties
ACTIVE = 8  # one of so many codes that top-k leaves on
LEAST_SPREAD = 0.5  # smallest deviation that a code on the sphere is divided by, as a share of the typical one
TINY = 1e-12  # smallest mean square that a code is divided by, so that a code of zeros stays one

WORDS = """Latent surrogate

A {variant} autoencoder from standardised features {latent_shape} to a bottleneck of {bottleneck} and back. Its latent
map is that of the bottleneck: the dynamics are this network's, learned from the encoder's features.
"""


@dataclass(frozen=True)
class LatentSettings(TrainedSettings):
    """Settings of a latent surrogate.

    Attributes:
        variant: What the autoencoder is trained for, one of `VARIANTS`.
        bottleneck: Number of values in the bottleneck, at each place.
    """

    kind: str = kind_of("latent")
    variant: str = word("plain", "latent surrogate", VARIANTS)
    bottleneck: int = number(32, positive=True, whole=True)


class LatentSurrogate(Surrogate):
    """Features, place by place, to a bottleneck and back. f is the map of the bottleneck to itself.

    Latents are `(N, k)`, `(k, h, w)` or `(k,)`, standardised by one mean and deviation a code.

    A code lies on a sphere of radius sqrt(k) at each place (Zhang and Sennrich 2019). So f is bounded wherever it
    starts, and N(0, I), whose norm is about sqrt(k), starts in the range of the codes. The penalties cannot shrink a
    code: L1 on a sphere rewards sparsity alone, as L1 over L2 does (Hoyer 2004).

    Args:
        latent_shape: Shape of the encoder's latents, without the batch.
        image_shape: Shape of its images.
        bottleneck: Number k of values in the bottleneck.
        variant: plain; denoising (Vincent et al. 2008); contractive (Rifai et al. 2011, a Hutchinson estimate of the
            Jacobian's squared Frobenius norm); variational (Kingma and Welling 2014, the mean is the code); sparse
            (L1); topk (Makhzani and Frey 2014: the largest eighth of the codes stays, on a sphere by size).
        width: Width of the hidden layers.
        info: What `Surrogate.info` begins with.
        pixel: Configuration of a pixel decoder behind it, which makes images of latents.
        sphere: Whether codes lie on a sphere. Surrogates of earlier versions do not have it, and f may diverge.

    Raises:
        InputError: If the variant is unknown, or the bottleneck is not positive.
    """

    kind = "latent"
    settings_type = LatentSettings
    feature_mean: Tensor
    feature_std: Tensor
    code_mean: Tensor
    code_std: Tensor

    def __init__(
        self,
        latent_shape: Sequence[int],
        image_shape: Sequence[int],
        bottleneck: int = 32,
        variant: str = "plain",
        width: int = 256,
        info: dict[str, Any] | None = None,
        pixel: dict[str, Any] | None = None,
        sphere: bool = False,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise InputError(f"unknown latent surrogate {variant!r}: expected one of {', '.join(VARIANTS)}")
        if not 1 <= bottleneck <= 2**16:
            raise InputError(f"bottleneck must be 1 to {2**16}, got {bottleneck}")
        self.latent_shape, self.image_shape = tuple(latent_shape), tuple(image_shape)
        self.bottleneck, self.variant, self.width, self.info = bottleneck, variant, width, dict(info or {})
        self.sphere = sphere
        channels = channels_of(self.latent_shape)
        codes = 2 * bottleneck if variant == "variational" else bottleneck
        self.to_code = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, codes))
        self.to_features = nn.Sequential(nn.Linear(bottleneck, width), nn.GELU(), nn.Linear(width, channels))
        for name, size in (("feature", channels), ("code", bottleneck)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.pixel = PixelDecoder(**pixel) if pixel else None

    @classmethod
    def defaults(cls, device: torch.device) -> dict[str, Any]:
        """The same on every device. `noise` is a pixel decoder's; records of latent surrogates have always said 0."""
        return {"steps": 1500, "batch_size": 16, "learning_rate": 2e-3, "noise": 0.0, "pixel_noise": 0.0}

    @classmethod
    def options(cls) -> set[str]:
        """The settings, and a pixel decoder that makes images of latents."""
        return {*super().options(), "pixel_decoder"}

    @classmethod
    def check(cls, model: Autoencoder, settings: LatentSettings) -> None:
        """Raise InputError for a code of one number, of which a sphere keeps only the sign."""
        if settings.bottleneck < 2:
            raise InputError("a latent surrogate keeps the direction of a code: choose a bottleneck of at least 2")

    @classmethod
    def fit(
        cls, model: Autoencoder, settings: LatentSettings, features: Features, held_out: Tensor, **how: Any
    ) -> tuple[Self, list[dict[str, Any]]]:
        """Minimise the variant's loss on features, then standardise the codes."""
        with initial_weights(settings.seed):
            made = cls(model.latent_shape, model.image_shape, settings.bottleneck, settings.variant, sphere=True)
        made.feature_mean.copy_(features.mean)
        made.feature_std.copy_(features.std)
        made.to(model.device)
        native = encode_native(model, held_out)

        def loss_of(module: nn.Module, batch: Batch) -> Tensor:
            clean = features.of_step(batch.rows, batch.step, settings.batch_size)
            return module(made.as_rows(clean.to(model.device)), batch)

        def error(module: LatentSurrogate) -> float:
            with torch.no_grad():
                rows = module.standardised_rows(native.to(model.device))
                return float(F.mse_loss(module(rows), rows))

        schedule, what = Schedule.of(settings), "training the latent surrogate"
        made, log = train(made, loss_of, len(features), schedule, device=model.device, validate=error, what=what, **how)
        made.measure_codes(features.latents(rows) for rows in torch.arange(len(features)).split(AT_ONCE))
        return made, log

    def errors(self, model: Autoencoder, images: Tensor) -> dict[str, float]:
        """||D'(E'(x)) - x|| / ||x|| on standardised features x, in the mean over images; there are no pixels."""
        rows = self.standardised_rows(encode_native(model, images).to(model.device))
        with torch.no_grad():
            return {"feature_error": relative_error(self(rows).cpu(), rows.cpu())}

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of a latent of f."""
        if len(self.latent_shape) == 3:
            return (self.bottleneck, *self.latent_shape[1:])
        return (*self.latent_shape[:-1], self.bottleneck)

    @property
    def bound(self) -> float:
        """Largest norm of a value of f at a place, over sqrt(k), the typical norm of a start; inf without a sphere."""
        if not self.sphere:
            return math.inf
        reach = 1 + float(self.code_mean.norm()) / math.sqrt(self.bottleneck)
        return reach / float(self.code_std.min())

    def forward(self, rows: Tensor, batch: Batch | None = None) -> Tensor:
        """Standardised features `(…, D)` through the bottleneck and back; with a batch, the loss on them."""
        return self.to_features(self.code(rows)) if batch is None else self.loss(rows, batch)

    def code(self, rows: Tensor) -> Tensor:
        """The bottleneck of standardised features `(…, D)`, in its own units `(…, k)`."""
        code = self.to_code(rows)[..., : self.bottleneck]
        return self.in_range(code) if self.sphere else self._kept(code)

    def in_range(self, code: Tensor) -> Tensor:
        """The nearest place `(…, k)` where codes may lie. It leaves a code as it is."""
        if not self.sphere:
            return code
        code = self._kept(code)
        return code * code.square().mean(-1, keepdim=True).clamp(min=TINY).rsqrt()

    def _kept(self, code: Tensor) -> Tensor:
        """The code with all but its largest values at 0, where the variant has it so."""
        if self.variant != "topk":
            return code
        # By size, so that what was kept is kept again, whatever its sign.
        size = code.abs() if self.sphere else code
        places = size.topk(max(self.bottleneck // ACTIVE, 1), dim=-1).indices
        return torch.zeros_like(code).scatter(-1, places, code.gather(-1, places))

    def loss(self, rows: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the features with the variant's penalty; `rows` is `(B, places, D)`."""
        rows = rows.requires_grad_(self.variant == "contractive")
        code, penalty = self._trained_code(rows, batch)
        return F.mse_loss(self.to_features(code), rows) + penalty

    def _trained_code(self, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """The code that the variant decodes in training, and the penalty on it."""
        if self.variant == "denoising":
            return self.code(rows + DENOISING * batch.normal(rows.shape[1:], "latent surrogates: denoising")), 0.0
        if self.variant == "variational":
            mean, log_variance = self.to_code(rows).chunk(2, dim=-1)
            mean = self.in_range(mean)
            noise = batch.normal(mean.shape[1:], "latent surrogates: variational")
            code = self.in_range(mean + (0.5 * log_variance).exp() * noise)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            return code, VARIATIONAL * divergence
        code = self.code(rows)
        if self.variant == "contractive":
            seen = batch.normal(code.shape[1:], "latent surrogates: contractive")
            (pulled,) = torch.autograd.grad((code * seen).sum(), rows, create_graph=True)
            return code, CONTRACTIVE * pulled.square().sum(-1).mean() / code.shape[-1]
        return code, SPARSE * code.abs().mean() if self.variant == "sparse" else 0.0

    def attach(self, model: Autoencoder) -> Autoencoder:
        """f = code(features(z)) on the standardised bottleneck. Images go through the encoder and then the code.

        With a pixel decoder behind it latents decode to images; f does not go through them.
        """

        def decode(latents: Tensor) -> Tensor:
            pixel: Any = self.pixel
            features = self._from_rows(self._features(latents))
            return pixel(
                pixel.standardise(features * self._channels(self.feature_std) + self._channels(self.feature_mean))
            )

        return model.derived(
            encode=lambda images: self._latents(self.standardised_rows(model.encode_unchecked(images))),
            decode=None if self.pixel is None else decode,
            latent_map=lambda latents: self._latents(self._features(latents)),
            latent_shape=self.code_shape,
            **self.describe(),
        )

    def put_behind(self, pixel: Surrogate) -> Self:
        """This surrogate with a pixel decoder behind it. Raises InputError where that was made for other latents."""
        if not isinstance(pixel, PixelDecoder):
            raise InputError(f"a pixel decoder goes behind a latent surrogate, got a surrogate of kind {pixel.kind!r}")
        mine = (self.latent_shape, self.image_shape, self.info.get("fingerprint"))
        theirs = (pixel.latent_shape, pixel.image_shape, pixel.info.get("fingerprint"))
        if mine != theirs:
            raise InputError(
                f"the pixel decoder is for {theirs}, the latent surrogate for {mine}: fit both on one encoder"
            )
        self.pixel = pixel
        return self

    @property
    def space(self) -> str:
        return (
            f"bottleneck of {self.bottleneck} of a {self.variant} autoencoder on the encoder's features, "
            f"{'on a sphere, ' if self.sphere else ''}standardised a code; f does not go through images"
        )

    def about(self) -> dict[str, Any]:
        return {
            "architecture": f"latent surrogate, {self.variant}, {self.width} wide, bottleneck {self.bottleneck}",
            "pictures": self.pixel.describe()["decoder"] if self.pixel is not None else None,
        }

    def config(self) -> dict[str, Any]:
        return {
            "latent_shape": list(self.latent_shape),
            "image_shape": list(self.image_shape),
            "bottleneck": self.bottleneck,
            "variant": self.variant,
            "width": self.width,
            "info": self.info,
            "pixel": self.pixel.config() if self.pixel is not None else None,
            **({"sphere": True} if self.sphere else {}),  # surrogates of earlier versions keep their fingerprint
        }

    @property
    def words(self) -> str:
        return WORDS.format(variant=self.variant, latent_shape=self.latent_shape, bottleneck=self.bottleneck)

    def standardised_rows(self, native: Tensor) -> Tensor:
        """The encoder's own latents, standardised, place by place with the channels last."""
        return self.as_rows((native - self._channels(self.feature_mean)) / self._channels(self.feature_std))

    def measure_codes(self, blocks: Iterable[Tensor]) -> None:
        """Set the mean and deviation of each code from standardised features, block by block."""
        measured = Moments()
        with torch.no_grad():
            for block in blocks:
                codes = self.code(self.as_rows(block.to(self.code_mean.device)))
                measured.add(codes.reshape(-1, self.bottleneck))
        std = measured.std
        self.code_mean.copy_(measured.mean)
        least = LEAST_SPREAD * float(std.square().mean().sqrt()) if self.sphere else 1e-3 * float(std.max())
        self.code_std.copy_(std.clamp(min=least or 1.0))  # a code that is never on stays off

    def _features(self, latents: Tensor) -> Tensor:
        """Standardised features, place by place, of latents of f."""
        return self.to_features(self.in_range(self.as_rows(latents) * self.code_std + self.code_mean))

    def _latents(self, rows: Tensor) -> Tensor:
        """Latents of f of standardised features, place by place."""
        return self._from_rows((self.code(rows) - self.code_mean) / self.code_std)

    def as_rows(self, latents: Tensor) -> Tensor:
        """Latents place by place, their channels last."""
        return channels_last(latents, self.latent_shape)

    def _from_rows(self, rows: Tensor) -> Tensor:
        return rows.movedim(-1, 1) if len(self.latent_shape) == 3 else rows

    def _channels(self, statistic: Tensor) -> Tensor:
        return channelwise(statistic, self.latent_shape)
