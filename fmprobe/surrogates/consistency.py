"""The second stage of a pixel decoder: feature consistency on its own outputs, along orbits."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fmprobe.autoencoder import Autoencoder
from fmprobe.surrogates.features import Features
from fmprobe.surrogates.training import Batch, Schedule, train

if TYPE_CHECKING:
    from fmprobe.surrogates.pixel import PixelDecoder, PixelSettings

Decoder = TypeVar("Decoder", bound="PixelDecoder")

RATE = 0.3  # learning rate of the second stage, as a share of the first stage's
FARTHEST = 3  # steps of f that a latent is moved along its orbit
STAGE = "consistency"  # what the log calls the second stage, and the folder of its state


def train_consistency(
    decoder: Decoder,
    model: Autoencoder,
    settings: "PixelSettings",
    features: Features,
    held_out: Tensor,
    *,
    folder: Path | None = None,
    **how: Any,
) -> tuple[Decoder, list[dict[str, Any]]]:
    """Go on with a trained decoder: minimise ||E(D(z)) - z||^2 together with the L1 error of the pixels.

    The first stage knows the encoder only through its latents. The second one differentiates through the encoder, which
    stays as it is. Its weights are averaged as those of the first stage are.

    Args:
        decoder: The decoder that the first stage gave.
        model: The frozen encoder.
        settings: The settings of both stages.
        features: Training images and latents.
        held_out: Images that are not trained on, floats `(n, C, H, W)`.
        folder: Keeps the state of the first stage; that of the second lies in it.
        how: `progress` and `trackers`, as `training.train` takes them.

    Returns:
        The decoder, and the log of this stage. Its rows go on counting the steps, and their validation error is the
        relative feature error on `held_out`.
    """
    schedule = Schedule.of(settings)
    schedule = replace(schedule, steps=settings.consistency_steps, learning_rate=RATE * schedule.learning_rate)
    decoder, log = train(
        decoder.requires_grad_(True),
        _ConsistencyLoss(decoder, model, settings, features),
        len(features),
        schedule,
        device=model.device,
        folder=None if folder is None else folder / STAGE,
        validate=lambda module: module.errors(model, held_out)["feature_error"],
        what="training for feature consistency",
        **how,
    )
    return decoder, [{**row, "step": settings.steps + row["step"], "stage": STAGE} for row in log]


class _ConsistencyLoss:
    """The L1 error of the decoded pixels, and the mean square of E(D(z)) - z.

    Half of the rows are latents of images. The others are moved one to `FARTHEST` steps of f along their orbits, and
    have no image. Both terms are means over all rows, so that the loss does not depend on how a batch is shared.

    Args:
        decoder: The decoder itself, whose statistics a wrapped module hides.
        model: The frozen encoder.
        settings: The weight of the term.
        features: Training images and latents.
    """

    def __init__(
        self, decoder: "PixelDecoder", model: Autoencoder, settings: "PixelSettings", features: Features
    ) -> None:
        self.decoder, self.model, self.settings, self.features = decoder, model, settings, features

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        device = self.model.device
        latents = self.features.of_step(batch.rows, batch.step, self.settings.batch_size).to(device)
        target = self.features.images(batch.rows).to(device)
        moved = batch.one_in(2).to(device)
        with torch.no_grad():
            places = latents[moved]
            for _ in range(1 + batch.step % FARTHEST if len(moved) else 0):
                places = self._encoded(self.decoder(places))
            latents = latents.index_copy(0, moved, places)
        painted = module(latents)
        loss = self.settings.consistency * (self._encoded(painted) - latents).square().mean()
        has_image = torch.ones(len(latents), device=device).index_fill(0, moved, 0.0)
        return loss + ((painted - target).abs().flatten(1).mean(1) * has_image).mean()

    def _encoded(self, images: Tensor) -> Tensor:
        return self.decoder.standardise(self.model.encode_unchecked(images))
