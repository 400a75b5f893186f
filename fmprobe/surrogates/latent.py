"""LatentSurrogate: a small autoencoder on a frozen encoder's features, whose bottleneck is what is iterated."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.surrogates.artefact import Surrogate, channelwise
from fmprobe.surrogates.pixel import PixelDecoder

if TYPE_CHECKING:
    from fmprobe.surrogates.training import Batch

VARIANTS = ("plain", "denoising", "contractive", "variational", "sparse", "topk")
DENOISING = 0.5  # deviation of the noise on standardised features
CONTRACTIVE, VARIATIONAL, SPARSE = 0.1, 0.01, 0.01  # weights of the penalties
ACTIVE = 8  # one of so many codes that top-k leaves on

CARD = """---
library_name: fmprobe
license: apache-2.0
tags: [fmprobe, latent-surrogate]
---

# Latent surrogate for {model}

A {variant} autoencoder from standardised features {latent_shape} to a bottleneck of {bottleneck} and back. Its latent
map is that of the bottleneck: the dynamics are this network's, learned from the encoder's features.

Encoder: `{model}`, revision `{revision}`, fingerprint `{fingerprint}`, tokens `{tokens}`. Training data: {data}.
Relative feature error on held-out images: {error}.

```python
model = fmprobe.load("{model}", image_size={side}, decoder=THIS_FOLDER)
```
"""


class LatentSurrogate(Surrogate):
    """Features, place by place, to a bottleneck of `bottleneck` values and back; f is the bottleneck's own map.

    `variant`: plain; denoising (Vincent et al. 2008); contractive (Rifai et al. 2011, a Hutchinson estimate of the
    Jacobian's squared Frobenius norm); variational (Kingma and Welling 2014, the mean is the code); sparse (L1); topk
    (Makhzani and Frey 2014: the largest eighth of the codes stays). Latents are `(N, k)`, `(k, h, w)` or `(k,)`,
    standardised by one mean and deviation a code. `pixel`: a decoder behind it, so that latents can be looked at.
    Raises InputError for an unknown variant or a bottleneck that is not positive.
    """

    kind = "latent"
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
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise InputError(f"unknown latent surrogate {variant!r}: expected one of {', '.join(VARIANTS)}")
        if not 1 <= bottleneck <= 2**16:
            raise InputError(f"bottleneck must be 1 to {2**16}, got {bottleneck}")
        self.latent_shape, self.image_shape = tuple(latent_shape), tuple(image_shape)
        self.bottleneck, self.variant, self.width, self.info = bottleneck, variant, width, dict(info or {})
        channels = latent_shape[0] if len(latent_shape) == 3 else latent_shape[-1]
        codes = 2 * bottleneck if variant == "variational" else bottleneck
        self.to_code = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, codes))
        self.to_features = nn.Sequential(nn.Linear(bottleneck, width), nn.GELU(), nn.Linear(width, channels))
        for name, size in (("feature", channels), ("code", bottleneck)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.pixel = PixelDecoder(**pixel) if pixel else None

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of a latent of f."""
        if len(self.latent_shape) == 3:
            return (self.bottleneck, *self.latent_shape[1:])
        return (*self.latent_shape[:-1], self.bottleneck)

    def forward(self, rows: Tensor, batch: "Batch | None" = None) -> Tensor:
        """Standardised features `(…, D)` through the bottleneck and back; with a batch, the loss on them."""
        return self.to_features(self.code(rows)) if batch is None else self.loss(rows, batch)

    def code(self, rows: Tensor) -> Tensor:
        """The bottleneck of standardised features `(…, D)`, in its own units `(…, k)`."""
        code = self.to_code(rows)[..., : self.bottleneck]
        if self.variant != "topk":
            return code
        kept = code.topk(max(self.bottleneck // ACTIVE, 1), dim=-1)
        return torch.zeros_like(code).scatter(-1, kept.indices, kept.values)

    def loss(self, rows: Tensor, batch: "Batch") -> Tensor:
        """Mean squared error of the features, with what the variant adds; `rows` is `(B, places, D)`."""
        if self.variant == "denoising":
            noise = batch.normal(rows.shape[1:], "latent surrogates: denoising")
            return F.mse_loss(self(rows + DENOISING * noise), rows)
        if self.variant == "variational":
            mean, log_variance = self.to_code(rows).chunk(2, dim=-1)
            code = mean + (0.5 * log_variance).exp() * batch.normal(mean.shape[1:], "latent surrogates: variational")
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            return F.mse_loss(self.to_features(code), rows) + VARIATIONAL * divergence
        if self.variant == "contractive":
            rows = rows.requires_grad_()
            code = self.code(rows)
            seen = batch.normal(code.shape[1:], "latent surrogates: contractive")
            (pulled,) = torch.autograd.grad((code * seen).sum(), rows, create_graph=True)
            return (
                F.mse_loss(self.to_features(code), rows) + CONTRACTIVE * pulled.square().sum(-1).mean() / code.shape[-1]
            )
        code = self.code(rows)
        penalty = SPARSE * code.abs().mean() if self.variant == "sparse" else 0.0
        return F.mse_loss(self.to_features(code), rows) + penalty

    def attach(self, model: Autoencoder) -> Autoencoder:
        """f = code(features(z)) on the standardised bottleneck; images are encoded by the encoder and then the code.

        With a pixel decoder behind it latents decode to images; f does not go through them.
        """

        def encode(images: Tensor) -> Tensor:
            rows = self.standardised_rows(model.encode_unchecked(images))
            return self._from_rows((self.code(rows) - self.code_mean) / self.code_std)

        def latent_map(latents: Tensor) -> Tensor:
            return self._from_rows((self.code(self._features(latents)) - self.code_mean) / self.code_std)

        def decode(latents: Tensor) -> Tensor:
            assert self.pixel is not None
            features = self._from_rows(self._features(latents))
            native = features * self._channels(self.feature_std) + self._channels(self.feature_mean)
            return self.pixel(self.pixel.standardise(native))

        return model.derived(
            encode=encode,
            decode=decode if self.pixel is not None else None,
            latent_map=latent_map,
            latent_shape=self.code_shape,
            **self.describe(),
        )

    def describe(self) -> dict[str, Any]:
        """What goes into the provenance: the latent space, and the surrogate with its error."""
        return {
            "space": (
                f"bottleneck of {self.bottleneck} of a {self.variant} autoencoder on the encoder's features, "
                "standardised a code; f does not go through images"
            ),
            "data_free": bool(self.info.get("data_free", False)),
            "decoder": {
                "kind": "surrogate",
                "architecture": f"latent surrogate, {self.variant}, {self.width} wide, bottleneck {self.bottleneck}",
                "parameters": sum(p.numel() for p in self.parameters()),
                "image_shape": list(self.image_shape),
                "pictures": self.pixel.describe()["decoder"] if self.pixel is not None else None,
                **{key: self.info.get(key) for key in ("data", "seed", "steps", "seconds", "validation")},
            },
        }

    def put_behind(self, pixel: PixelDecoder) -> "LatentSurrogate":
        """This surrogate with a pixel decoder behind it. Raises InputError where that was made for other latents."""
        mine = (self.latent_shape, self.image_shape, self.info.get("fingerprint"))
        theirs = (pixel.latent_shape, pixel.image_shape, pixel.info.get("fingerprint"))
        if mine != theirs:
            raise InputError(
                f"the pixel decoder is for {theirs}, the latent surrogate for {mine}: fit both on one encoder"
            )
        self.pixel = pixel
        return self

    def config(self) -> dict[str, Any]:
        return {
            "latent_shape": list(self.latent_shape),
            "image_shape": list(self.image_shape),
            "bottleneck": self.bottleneck,
            "variant": self.variant,
            "width": self.width,
            "info": self.info,
            "pixel": self.pixel.config() if self.pixel is not None else None,
        }

    def card(self) -> str:
        about = {key: self.info.get(key) for key in ("model", "revision", "fingerprint", "tokens", "data")}
        error = (self.info.get("validation") or {}).get("held_out", {}).get("feature_error")
        return CARD.format(
            **about,
            variant=self.variant,
            latent_shape=self.latent_shape,
            bottleneck=self.bottleneck,
            error=error,
            side=self.image_shape[-1],
        )

    def standardised_rows(self, native: Tensor) -> Tensor:
        """The encoder's own latents, standardised, place by place with the channels last."""
        return self.as_rows((native - self._channels(self.feature_mean)) / self._channels(self.feature_std))

    def measure_codes(self, blocks: Iterable[Tensor]) -> None:
        """Set the mean and deviation a code from standardised features, block by block."""
        total = squares = torch.zeros(self.bottleneck, dtype=torch.float64)
        count = 0
        with torch.no_grad():
            for block in blocks:
                codes = (
                    self.code(self.as_rows(block.to(self.code_mean.device))).reshape(-1, self.bottleneck).double().cpu()
                )
                total, squares, count = total + codes.sum(0), squares + codes.square().sum(0), count + len(codes)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.code_mean.copy_(mean)
        self.code_std.copy_(std.clamp(min=1e-3 * float(std.max()) or 1.0))  # a code that is never on stays off

    def _features(self, latents: Tensor) -> Tensor:
        """Standardised features, place by place, of latents of f."""
        return self.to_features(self.as_rows(latents) * self.code_std + self.code_mean)

    def as_rows(self, latents: Tensor) -> Tensor:
        """Latents place by place, their channels last."""
        return latents.movedim(1, -1) if len(self.latent_shape) == 3 else latents

    def _from_rows(self, rows: Tensor) -> Tensor:
        return rows.movedim(-1, 1) if len(self.latent_shape) == 3 else rows

    def _channels(self, statistic: Tensor) -> Tensor:
        return channelwise(statistic, self.latent_shape)
