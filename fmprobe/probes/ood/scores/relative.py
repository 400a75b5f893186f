"""Relative Mahalanobis distance, where the fit images have labels (Ren et al., arXiv:2106.09022, 2021, sec. 2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fmprobe.probes.ood.score import Bank, Encoded, Needs, Score

if TYPE_CHECKING:
    from sklearn.covariance import LedoitWolf


@dataclass(frozen=True, kw_only=True)
class RelativeMahalanobis(Score):
    """The squared Mahalanobis distance to the nearest class mean, minus that to the mean of all fit images.

    The classes share one covariance. It and the covariance of all images are shrunk (scikit-learn's `LedoitWolf`).

    Attributes:
        feature: The kind of feature; the score exists for the kind with the fewest dimensions, of two classes or more.
    """

    feature: str

    def exists(self, bank: Bank) -> bool:
        if self.feature != bank.smallest or bank.labels is None:
            return False
        return 1 < len(np.unique(bank.labels)) < len(bank.labels)  # some class varies

    def fit(self, bank: Bank) -> "tuple[np.ndarray, LedoitWolf, LedoitWolf]":
        """The mean of each class `(k, d)`, the covariance within classes, and that of all fit images."""
        from sklearn.covariance import LedoitWolf

        rows = bank.features[self.feature].astype(np.float64)
        _, classes = np.unique(np.asarray(bank.labels), return_inverse=True)
        means = np.stack([rows[classes == label].mean(0) for label in range(classes.max() + 1)])
        return means, LedoitWolf(assume_centered=True).fit(rows - means[classes]), LedoitWolf().fit(rows)

    def __call__(self, seen: Encoded, fitted: "tuple[np.ndarray, LedoitWolf, LedoitWolf]") -> np.ndarray:
        rows = seen.features[self.feature].astype(np.float64)
        means, within, background = fitted
        nearest = np.min([within.mahalanobis(rows - mean) for mean in means], axis=0)
        return nearest - background.mahalanobis(rows)


SCORES = tuple(
    RelativeMahalanobis(name=f"rmd {feature}", group="baseline", needs=Needs.LATENT, log=None, feature=feature)
    for feature in ("pooled", "z")
)
