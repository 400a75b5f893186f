"""Distance from the principal subspace of the fit images' features."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fmprobe.probes.ood.score import Bank, Encoded, Needs, Score

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

VARIANCE = 0.9  # share of the variance that the principal components explain


@dataclass(frozen=True, kw_only=True)
class PCAResidual(Score):
    """Distance from the affine subspace that explains 90% of the fit images' variance (scikit-learn's `PCA`).

    Attributes:
        feature: The kind of feature; the score exists for the kind with the fewest dimensions.
    """

    feature: str

    def exists(self, bank: Bank) -> bool:
        return self.feature == bank.smallest

    def fit(self, bank: Bank) -> "tuple[np.ndarray, PCA | None]":
        """The mean and the subspace of the fit images; no subspace where all of them are equal."""
        from sklearn.decomposition import PCA

        rows = bank.features[self.feature].astype(np.float64)
        varies = bool((rows.std(0) > 0).any())
        return rows.mean(0), PCA(n_components=VARIANCE, svd_solver="full").fit(rows) if varies else None

    def __call__(self, seen: Encoded, fitted: "tuple[np.ndarray, PCA | None]") -> np.ndarray:
        rows = seen.features[self.feature].astype(np.float64)
        mean, pca = fitted
        projected = mean if pca is None else pca.inverse_transform(pca.transform(rows))
        return np.linalg.norm(rows - projected, axis=1)


SCORES = tuple(
    PCAResidual(name=f"pca residual {feature}", group="baseline", needs=Needs.LATENT, one_sided=True, feature=feature)
    for feature in ("pooled", "z")
)
