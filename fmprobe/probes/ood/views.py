"""A detector with the methods of another library."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.probes.ood.table import BY_NAME

if TYPE_CHECKING:
    from fmprobe.inputs import ImagesLike
    from fmprobe.probes.ood.detector import TrajectoryDetector

HELD_OUT = 0.25  # share of the images that is held out for a score that is learned from such


class PytorchOOD:
    """A `TrajectoryDetector` as pytorch-ood 0.4 uses detectors: scores that are high for out-of-distribution inputs.

    It needs pytorch-ood neither to be made nor to be used. `TrajectoryDetector.as_pytorch_ood` makes it.

    Its metrics name two conventions: `FPR95TPR` there is "fpr95_ood_positive" of `fmprobe.ood_metrics`, the share of
    in-distribution images that are rejected where 95% of the out-of-distribution images are. The "fpr95" of Fumero et
    al. is the share of out-of-distribution images accepted where 95% of the in-distribution images are.

    Attributes:
        detector: the detector.
        rule: the score that `predict` gives.
    """

    requires_fit = True

    def __init__(self, detector: "TrajectoryDetector", rule: str) -> None:
        self.detector, self.rule = detector, rule
        self._on_features: TrajectoryDetector | None = None

    def fit(self, data_loader: "ImagesLike") -> "PytorchOOD":
        """Fit to in-distribution images: a DataLoader, whose labels are left out, or what `take_images` takes.

        Where the score is learned from held-out images, a quarter of them is held out, by content.

        Raises:
            InputError: as `TrajectoryDetector.fit`.
        """
        self.detector.fit(data_loader, self._held_out)
        self._on_features = None
        return self

    def fit_features(self, z: Tensor, y: Any = None) -> "PytorchOOD":
        """Fit to latents `(n, *latent_shape)` of in-distribution images; `y` is left out.

        Raises:
            InputError: The score is learned from held-out images, which latents are not.
        """
        if self._held_out is not None:
            raise InputError(
                f"{self.rule!r} is learned from held-out images and not from latents: take another score, as in "
                'as_pytorch_ood("trajectory")'
            )
        self._on_features = type(self.detector)(
            _of_latents(self.detector.model), rule=self.rule, **asdict(self.detector.settings)
        ).fit(z)
        return self

    @property
    def _held_out(self) -> float | None:
        """The share of the images that is held out: none, unless the score is learned from them."""
        return None if self.rule in BY_NAME or self.rule == "trajectory" else HELD_OUT

    @torch.no_grad()
    def predict(self, x: "ImagesLike") -> Tensor:
        """The score of each image, float32 `(B,)`: high is out-of-distribution."""
        if self._on_features is not None:
            return self.predict_features(self.detector.model.encode(x))
        return torch.from_numpy(-self.detector.score_samples(x, rule=self.rule)).float()

    __call__ = predict

    def predict_features(self, z: Tensor) -> Tensor:
        """The score of each latent, float32 `(B,)`: high is out-of-distribution.

        Raises:
            InputError: `fit_features` was not called, or the rule needs images.
        """
        if self._on_features is None:
            raise InputError("this detector was not fitted to features: call fit_features(z) first")
        return torch.from_numpy(-self._on_features.score_samples(z, rule=self.rule)).float()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rule={self.rule!r}, {self.detector!r})"


def _of_latents(model: Autoencoder) -> Autoencoder:
    """A model whose images are the latents of another, with its latent map."""
    made = Autoencoder(
        lambda z: z,
        None,
        image_shape=model.latent_shape,
        latent_shape=model.latent_shape,
        provenance={"model": f"latents of {model.name}"},
        device=model.device,
        latent_map=model.latent_map,
        any_range=True,
    )
    made.protocol = model.protocol
    return made
