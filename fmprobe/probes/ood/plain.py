"""The scores that are learned from the fit images alone, of new images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.inputs import ImagesLike
from fmprobe.probes.ood.features import feature_vectors
from fmprobe.probes.ood.score import LARGEST, Bank, Encoded, FirstPoint, Needs, Scores
from fmprobe.probes.ood.table import BY_NAME, SCORES
from fmprobe.probes.ood.trajectory import Nearest, Reference, TrajectorySettings, follow


class PlainScores:
    """Scores by what is known of the fit images, where no held-out images are needed.

    A score is fitted when it is first computed.

    Args:
        model: The model.
        settings: How trajectories are followed.
        reference: What distances are taken to.
        bank: The features of the fit images.

    Attributes:
        names: The scores that there are.
    """

    def __init__(self, model: Autoencoder, settings: TrajectorySettings, reference: Reference, bank: Bank) -> None:
        self.model, self.settings, self.reference, self.bank = model, settings, reference, bank
        self.nearest = Nearest(reference, settings.distance)
        self.names = tuple(score.name for score in SCORES if score.exists(bank))

    def __call__(self, images: ImagesLike, names: Sequence[str]) -> tuple[Scores, np.ndarray]:
        """The scores of images, and the status of each orbit.

        An image is decoded, and its orbit followed, only where one of the scores needs it.

        Args:
            images: Images, at least one.
            names: The scores to compute.

        Returns:
            The scores `(N,)` by name, and the status `(N,)`, which is empty where no score needs the orbits.
        """
        size = self.settings.batch_size
        of_latent = _needing(names, Needs.LATENT, Needs.DECODED)
        of_orbit = [name for name in names if name not in of_latent]
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*of_orbit, *of_latent)}
        status = [np.empty(0, dtype=np.int64)]
        for block in self.model.image_batches(images, block=4 * size):
            latents = []
            for part in block.split(size):
                latents.append(encoded(self.model, part))
                for name, values in self._of_latent(part, latents[-1], of_latent).items():
                    found[name].append(values)
            if not of_orbit:
                continue
            if _needing(of_orbit, Needs.ORBIT):
                seen = follow(self.model.latent_map, torch.cat(latents), self.nearest, self.settings)
                status.append(seen.status.cpu().numpy())
            else:
                seen = FirstPoint(torch.cat([self.nearest(part) for part in latents]).double())
            for name in of_orbit:
                found[name].append(BY_NAME[name](seen, self._known(name)))
        if not all(found.values()):
            raise InputError("there are no images to score: expected at least one")
        return {name: np.concatenate(values) for name, values in found.items()}, np.concatenate(status)

    def _known(self, name: str) -> Any:
        """What a score knows of the fit images."""
        return self.bank.once(("fit", name), lambda: BY_NAME[name].fit(self.bank))

    @torch.no_grad()
    def _of_latent(self, images: Tensor, latents: Tensor, names: Sequence[str]) -> Scores:
        """Scores that need no trajectory; the largest float32 where the latent or the score is not finite."""
        if not names:
            return {}
        finite = latents.flatten(1).isfinite().all(1)
        known = torch.where(finite.reshape(-1, *[1] * (latents.ndim - 1)), latents, 0)  # scikit-learn takes finite rows
        features = feature_vectors(known, self.reference.facts["images"])
        seen = Encoded(images, known, self.model.decode, features)
        rows = finite.cpu().numpy()
        return {name: _or_largest(BY_NAME[name](seen, self._known(name)), rows) for name in names}


@torch.no_grad()
def encoded(model: Autoencoder, images: Tensor) -> Tensor:
    """Latents z_0 of checked images, in at least float32."""
    latents = model.encode_unchecked(images)
    return latents if latents.dtype in (torch.float32, torch.float64) else latents.float()


def _needing(names: Sequence[str], *needs: Needs) -> list[str]:
    """The scores with one of these needs."""
    return [name for name in names if BY_NAME[name].needs in needs]


def _or_largest(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Scores, but the largest float32 where the latent is not known or the score is not finite."""
    return np.where(known & np.isfinite(values), np.minimum(values, LARGEST), LARGEST)
