"""Distance to the nearest fit images in feature space (Sun et al., ICML 2022)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fmprobe.probes.ood.score import Bank, Encoded, Needs, Score

if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors


@dataclass(frozen=True, kw_only=True)
class KNN(Score):
    """Distance to the k-th nearest fit image, or the mean over the k nearest; the search is scikit-learn's.

    Attributes:
        k: How many neighbours; None for all fit images. The score exists for more than k fit images.
        mean: Whether the score is the mean over the k nearest.
        feature: The kind of feature.
        normalised: Whether feature vectors are scaled to norm 1 first.
    """

    k: int | None
    mean: bool
    feature: str
    normalised: bool

    def exists(self, bank: Bank) -> bool:
        return self.feature in bank.features and (self.k is None or self.k < bank.n)

    def fit(self, bank: Bank) -> "NearestNeighbors":
        from sklearn.neighbors import NearestNeighbors

        rows = bank.features[self.feature]
        key = (self.feature, self.normalised)
        return bank.once(key, lambda: NearestNeighbors(algorithm="brute").fit(self._scaled(rows)))

    def joins(self, bank: Bank) -> bool:
        """10 neighbours join, or 1 of few images: by the smallest features, and by their spread where it exists."""
        return (
            super().joins(bank) and self.feature in (bank.smallest, "spread") and self.k == (10 if bank.n > 10 else 1)
        )

    def __call__(self, seen: Encoded, fitted: "NearestNeighbors") -> np.ndarray:
        rows, n = seen.features[self.feature], fitted.n_samples_fit_
        key = (self.feature, self.normalised)
        distances = seen.once(key, lambda: fitted.kneighbors(self._scaled(rows), n_neighbors=n)[0])
        nearest = distances[:, : self.k]
        return nearest.mean(1) if self.mean else nearest[:, -1]

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        from sklearn.preprocessing import normalize

        return np.asarray(normalize(rows)) if self.normalised else rows


def _knn(k: int | None, mean: bool, feature: str, normalised: bool) -> KNN:
    name = f"knn-{k or 'all'}{' mean' if mean else ''} {feature}{' normalised' if normalised else ''}"
    return KNN(
        name=name,
        group="baseline",
        needs=Needs.LATENT,
        in_joined=(3 if feature == "spread" else 2) if normalised and not mean else None,
        one_sided=True,
        k=k,
        mean=mean,
        feature=feature,
        normalised=normalised,
    )


SCORES = tuple(
    _knn(k, mean, feature, normalised)
    for feature in ("pooled", "z", "spread")
    for normalised in (False, True)
    for k, mean in ((1, False), (10, False), (10, True), (50, False), (50, True), (None, True))
)
