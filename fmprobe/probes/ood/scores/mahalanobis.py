"""Mahalanobis distance to the fit images' features, by a covariance with Ledoit-Wolf shrinkage."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fmprobe.probes.ood.score import Bank, Encoded, Needs, Score

if TYPE_CHECKING:
    from sklearn.covariance import LedoitWolf


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(Score):
    """Distance from the mean of the fit images in units of their covariance (scikit-learn's `LedoitWolf`).

    Attributes:
        feature: The kind of feature; the score exists for the kind with the fewest dimensions.
    """

    feature: str

    def exists(self, bank: Bank) -> bool:
        return self.feature == bank.smallest

    def fit(self, bank: Bank) -> "LedoitWolf":
        from sklearn.covariance import LedoitWolf

        return LedoitWolf().fit(bank.features[self.feature].astype(np.float64))

    def __call__(self, seen: Encoded, fitted: "LedoitWolf") -> np.ndarray:
        rows = seen.features[self.feature].astype(np.float64)
        return np.sqrt(fitted.mahalanobis(rows).clip(min=0))


SCORES = tuple(
    Mahalanobis(name=f"mahalanobis {feature}", group="baseline", needs=Needs.LATENT, in_joined=1, feature=feature)
    for feature in ("pooled", "z")
)
