"""PixelDecoder: images from the latents of an encoder that has no decoder of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder
from fmprobe.surrogates.artefact import Surrogate, channelwise
from fmprobe.surrogates.bodies import SIZES, make_body

SPACE = "standardised by the mean and deviation a channel of the surrogate's training features"

CARD = """---
library_name: fmprobe
license: apache-2.0
tags: [fmprobe, surrogate-decoder]
---

# Surrogate decoder for {model}

A {architecture} ({parameters:,} parameters) from standardised latents {latent_shape} to images {image_shape}, so that
the latent map f(z) = E(D(z)) of an encoder without a decoder exists. What f does is this decoder's doing as much as
the encoder's.

Encoder: `{model}`, revision `{revision}`, fingerprint `{fingerprint}`, tokens `{tokens}`. Training data: {data}.

| held-out images | number | L1 | L1 of each image's own median | feature error |
|---|---|---|---|---|
{rows}
```python
model = fmprobe.load("{model}", image_size={side}, decoder=THIS_FOLDER)
```
"""


class PixelDecoder(Surrogate):
    """Standardised latents `(B, *latent_shape)` to images `(B, C, H, W)` in `[0, 1]`, by a sigmoid.

    Tokens `(N, D)` go through a transformer, maps `(C, h, w)` and vectors `(D,)` through convolutions. `latent_mean`
    and `latent_std`, one value a channel, are the statistics that standardise the encoder's native latents. `blur`: the
    deviation of a fixed Gaussian that ends the decoder, as a share of the image's side.
    Raises InputError for a size that is not in `SIZES` or shapes that do not go together.
    """

    kind = "pixel"
    latent_mean: Tensor
    latent_std: Tensor
    kernel: Tensor

    def __init__(
        self,
        latent_shape: Sequence[int],
        image_shape: Sequence[int],
        size: str = "small",
        info: dict[str, Any] | None = None,
        blur: float = 0.0,
    ) -> None:
        super().__init__()
        self.body = make_body(latent_shape, image_shape, size)
        self.latent_shape, self.image_shape, self.size = tuple(latent_shape), tuple(image_shape), size
        self.info, self.blur = dict(info or {}), blur
        self.register_buffer("kernel", _gaussian(blur * image_shape[-1]), persistent=False)
        channels = latent_shape[0] if len(latent_shape) == 3 else latent_shape[-1]
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))

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

    def standardise(self, native: Tensor) -> Tensor:
        """The encoder's own latents, in the space that this decoder reads."""
        return (native - channelwise(self.latent_mean, self.latent_shape)) / channelwise(
            self.latent_std, self.latent_shape
        )

    def attach(self, model: Autoencoder) -> Autoencoder:
        """Latents standardised by this decoder's statistics, images decoded by it."""
        return model.derived(
            encode=lambda images: self.standardise(model.encode_unchecked(images)), decode=self, **self.describe()
        )

    def describe(self) -> dict[str, Any]:
        """What goes into the provenance: the latent space, and the decoder with its error."""
        layers, width = SIZES[self.size]
        body = {1: "vector to convolutions", 2: "patch transformer", 3: "convolutions"}[len(self.latent_shape)]
        return {
            "space": SPACE,
            "data_free": bool(self.info.get("data_free", False)),
            "decoder": {
                "kind": "surrogate",
                "architecture": f"{body}, {layers} layers x {width}",
                "blur": self.blur,
                "parameters": sum(p.numel() for p in self.parameters()),
                "image_shape": list(self.image_shape),
                **{key: self.info.get(key) for key in ("data", "seed", "steps", "seconds", "validation")},
            },
        }

    def config(self) -> dict[str, Any]:
        return {
            "latent_shape": list(self.latent_shape),
            "image_shape": list(self.image_shape),
            "size": self.size,
            "info": self.info,
            "blur": self.blur,
        }

    def card(self) -> str:
        decoder = self.describe()["decoder"]
        rows = "".join(
            f"| {name} | {row['images']} | {row['l1']:.4f} | {row['l1_median']:.4f} | {row['feature_error']:.3f} |\n"
            for name, row in (self.info.get("validation") or {}).items()
        )
        about = {key: self.info.get(key) for key in ("model", "revision", "fingerprint", "tokens", "data")}
        return CARD.format(
            **about,
            architecture=decoder["architecture"],
            parameters=decoder["parameters"],
            latent_shape=self.latent_shape,
            image_shape=self.image_shape,
            side=self.image_shape[-1],
            rows=rows,
        )


def _gaussian(deviation: float) -> Tensor:
    """The weights of a Gaussian of a deviation in pixels, out to three of them; one weight for none."""
    reach = round(3 * deviation)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-places.square() / (2 * deviation**2)) if reach else torch.ones(1, dtype=torch.float64)
    return (weights / weights.sum()).float()
