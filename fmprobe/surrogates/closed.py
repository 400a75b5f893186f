"""Kind "closed-form": principal components of the features and a linear decoder from them, without training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.surrogates.data import FEWEST
from fmprobe.surrogates.decoder import ImageDecoder
from fmprobe.surrogates.features import AT_ONCE, Features, channelwise, encode_native
from fmprobe.surrogates.linear import RIDGES, LinearDecoder, LinearSettings
from fmprobe.surrogates.settings import kind_of, number

BLOCK = 1024  # images at a time; the components are exact for so many, and nearly so for more
FLAT = 1e-10  # a component whose variance is below this share of the largest one's is none


@dataclass(frozen=True)
class ClosedFormSettings(LinearSettings):
    """Settings of a closed-form surrogate.

    Attributes:
        k: Number of principal components that a code keeps, fewer than there are images. None keeps the features as
            they are, and paints each place by ridge regression: kind "linear".
        ridge: Weight of the squared norm of the linear map, relative to the variance of a latent channel for kind
            "linear", and with k to the total variance of the features over the number of images.
    """

    kind: str = kind_of("closed-form")
    k: int | None = number(None, positive=True, whole=True, optional=True)


class BottleneckDecoder(ImageDecoder):
    """Codes `(B, k)` to images `(B, C, H, H)`, which may leave `[0, 1]`, by one linear map.

    A code holds the first k principal components of the standardised features, each divided by its deviation, so that
    N(0, I) is a sensible start. The latent map f(c) = P(E(D(c))) projects what the encoder sees onto them.

    Args:
        latent_shape: Shape of the encoder's latents, without the batch.
        image_shape: Shape of its images `(C, H, H)`.
        k: Number of components.
        info: What `Surrogate.info` begins with.
    """

    kind = "closed-form"
    settings_type = ClosedFormSettings
    centre: Tensor
    project: Tensor

    def __init__(
        self, latent_shape: Sequence[int], image_shape: Sequence[int], k: int, info: dict[str, Any] | None = None
    ) -> None:
        super().__init__(latent_shape, image_shape, info)
        self.k = k
        size, pixels = torch.Size(latent_shape).numel(), torch.Size(image_shape).numel()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("project", torch.zeros(size, k))
        self.weight = nn.Parameter(torch.zeros(k, pixels))
        self.bias = nn.Parameter(torch.zeros(pixels))

    def forward(self, codes: Tensor) -> Tensor:
        """Images `(B, C, H, H)` of codes."""
        return (codes @ self.weight + self.bias).unflatten(1, self.image_shape)

    def read(self, native: Tensor) -> Tensor:
        """Codes `(B, k)` of the encoder's own latents."""
        return (self.standardise(native).flatten(1) - self.centre) @ self.project

    def attach(self, model: Autoencoder) -> Autoencoder:
        """Latents are codes, which this decoder paints."""
        return model.derived(
            encode=lambda images: self.read(model.encode_unchecked(images)),
            decode=self,
            latent_shape=(self.k,),
            **self.describe(),
        )

    @classmethod
    def defaults(cls, device: torch.device) -> dict[str, Any]:
        """Clean images, as those of a linear decoder."""
        return {"n_images": 1000, **LinearDecoder.defaults(device)}

    @classmethod
    def check(cls, model: Autoencoder, settings: ClosedFormSettings) -> None:
        """Raise InputError where a model, or the number of images, does not suit the number of components."""
        if settings.k is None:
            LinearDecoder.check(model, settings)
            return
        size = torch.Size(model.latent_shape).numel()
        if settings.k > size:
            raise InputError(f"{model.name} has latents of {size} numbers: k must be at most {size}, got {settings.k}")
        if settings.n_images is not None and FEWEST <= settings.n_images <= settings.k:
            raise InputError(_too_many(settings.k, settings.n_images))

    @classmethod
    def fit(  # type: ignore[override]  # without k, a decoder of kind "linear" is made
        cls, model: Autoencoder, settings: ClosedFormSettings, features: Features, held_out: Tensor, **how: Any
    ) -> tuple[ImageDecoder, list[dict[str, Any]]]:
        """Minimise mean ||c W + b - y||^2 + ridge ||V||^2, where V = W over the deviations acts on the components."""
        if settings.k is None:
            return LinearDecoder.fit(model, settings, features, held_out, **how)
        decoder, chosen = ComponentRegression(model, features, held_out, settings.k).decoder(settings.k, settings.ridge)
        return decoder, [{"ridge": chosen}]

    @property
    def space(self) -> str:
        return f"the first {self.k} principal components of the features, each with mean 0 and deviation 1"

    def about(self) -> dict[str, Any]:
        return {"architecture": f"linear map from {self.k} principal components", "k": self.k}

    def config(self) -> dict[str, Any]:
        shapes = {"latent_shape": list(self.latent_shape), "image_shape": list(self.image_shape)}
        return {**shapes, "k": self.k, "info": self.info}


class ComponentRegression:
    """Principal components of the features, and the regression of the pixels on them: one for all numbers k.

    Components come from scikit-learn's incremental decomposition, `BLOCK` images at a time. They are exact for up to
    `BLOCK` images. Memory grows neither with the number of images nor with the square of the number of features.
    Decompositions and sums are float64.

    Args:
        model: The frozen encoder.
        features: Its latents of the images, and the images.
        held_out: Images that choose the ridge, as bytes.
        k: Largest number of components.

    Raises:
        InputError: There are no more than k images, or their features have fewer than k components that vary.
    """

    def __init__(self, model: Autoencoder, features: Features, held_out: Tensor, k: int) -> None:
        self.model, self.k, self.mean, self.std = model, k, features.mean, features.std
        if k >= len(features):
            raise InputError(_too_many(k, len(features)))
        self.noise, variance = self._components(features, k)
        self.deviation = variance.sqrt()
        gram = torch.zeros(k, k, dtype=torch.float64)
        cross = torch.zeros(k, torch.Size(model.image_shape).numel(), dtype=torch.float64)
        total = torch.zeros(cross.shape[1], dtype=torch.float64)
        for rows, x in _rows(features, AT_ONCE):
            codes = self._codes(x)
            y = features.images(rows).flatten(1).double()
            gram, cross, total = gram.addmm_(codes.T, codes), cross.addmm_(codes.T, y), total.add_(y.sum(0))
        # Codes have mean 0, so that the mean image is the bias.
        n = len(features) * features.draws
        self.gram, self.cross, self.bias = gram.div_(n), cross.div_(n), total.div_(n)
        self.pixels = as_pixels(held_out).flatten(1).double()
        mean, std = (channelwise(one, model.latent_shape) for one in (self.mean, self.std))
        self.seen = self._codes(((encode_native(model, held_out) - mean) / std).flatten(1).double())

    def decoder(self, k: int, ridge: float | None = None) -> tuple[BottleneckDecoder, float]:
        """The decoder from the first k components, and its ridge: by default that which paints held-out images best."""
        gram, cross, seen = self.gram[:k, :k], self.cross[:k], self.seen[:, :k]

        def penalised(weight: float) -> Tensor:
            return gram + (weight * self.noise / self.deviation[:k].square()).diag()

        def error(weight: float) -> float:
            painted = torch.linalg.solve(penalised(weight), seen.T).T @ cross + self.bias
            return float((painted - self.pixels).square().mean())

        chosen = min(RIDGES, key=error) if ridge is None else ridge
        made = BottleneckDecoder(self.model.latent_shape, self.model.image_shape, k).requires_grad_(False)
        made.latent_mean.copy_(self.mean)
        made.latent_std.copy_(self.std)
        made.centre.copy_(self.centre)
        made.project.copy_(self.axes[:, :k] / self.deviation[:k])
        made.weight.copy_(torch.linalg.solve(penalised(chosen), cross))
        made.bias.copy_(self.bias)
        return made.eval().to(self.model.device), chosen

    def _components(self, features: Features, k: int) -> tuple[float, Tensor]:
        """Take centre and axes; return the total variance over the number of images, and the variances `(k,)`."""
        from sklearn.decomposition import IncrementalPCA

        # More components than asked for are carried from block to block, so that the first k lose little.
        carried = min(max(BLOCK // 2, 2 * k), len(features) - 1, torch.Size(self.model.latent_shape).numel())
        found: Any = IncrementalPCA(carried)
        for _, x in _rows(features, max(BLOCK, carried + 1)):
            found.partial_fit(x.numpy())
        n = int(found.n_samples_seen_)
        variance = torch.from_numpy(found.explained_variance_[:k]) * (n - 1) / n
        flat = int((variance <= FLAT * variance[0]).sum()) if variance[0] > 0 else k
        if flat:
            raise InputError(
                f"the features of {self.model.name} have {k - flat} components that vary over {n} images: "
                f"k must be at most {k - flat}, got {k}"
            )
        self.centre, self.axes = torch.from_numpy(found.mean_), torch.from_numpy(found.components_[:k].T.copy())
        return float(found.var_.sum()) / n, variance

    def _codes(self, rows: Tensor) -> Tensor:
        """Codes `(n, k)` of rows of standardised features, float64."""
        return (rows - self.centre) @ self.axes / self.deviation


def _rows(features: Features, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of images, and their standardised features `(n, d)` in float64, in blocks; each draw by itself."""
    for draw in range(features.draws):
        for rows in torch.arange(len(features)).split(size):
            yield rows, features.latents(rows, draw).flatten(1).double()


def _too_many(k: int, n: int) -> str:
    return f"{n} images have fewer than {n} principal components: k must be below {n}, got {k}; give more images"
