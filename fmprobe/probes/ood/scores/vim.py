"""The residual of virtual-logit matching, which needs no classifier (Wang et al., "ViM", CVPR 2022, sec. 3 and 4)."""

from dataclasses import dataclass

import numpy as np

from fmprobe.probes.ood.score import Bank, Encoded, Needs, Score


@dataclass(frozen=True, kw_only=True)
class VirtualLogit(Score):
    """Norm of the part of a feature vector that lies outside of the principal subspace of the fit images' features.

    The subspace passes through the origin, has half as many dimensions as the features, and is spanned by the largest
    eigenvectors of X^T X. The published score moves the origin by the classifier's bias, adds its logits, and takes 512
    dimensions of 768 or 1,000 of 2,048.

    Attributes:
        feature: The kind of feature; the score exists for the kind with the fewest dimensions.
    """

    feature: str

    def exists(self, bank: Bank) -> bool:
        return self.feature == bank.smallest

    def fit(self, bank: Bank) -> np.ndarray:
        """The orthonormal basis `(d, d - d // 2)` of what lies outside of the subspace."""
        rows = bank.features[self.feature].astype(np.float64)
        vectors = np.linalg.eigh(rows.T @ rows)[1]  # of ascending eigenvalues
        return vectors[:, : rows.shape[1] - rows.shape[1] // 2]

    def __call__(self, seen: Encoded, fitted: np.ndarray) -> np.ndarray:
        return np.linalg.norm(seen.features[self.feature].astype(np.float64) @ fitted, axis=1)


SCORES = tuple(
    VirtualLogit(name=f"vim residual {feature}", group="baseline", needs=Needs.LATENT, feature=feature)
    for feature in ("pooled", "z")
)
