"""Mahalanobis distance to the fit images' features, by a covariance with Ledoit-Wolf shrinkage.

Of features of norm 1 it is the score of SSD without labels (Sehwag et al., ICLR 2021, sec. 3.1, with one cluster).
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fmprobe.probes.ood.score import Bank, Encoded, Needs, Score

if TYPE_CHECKING:
    from sklearn.covariance import LedoitWolf


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(Score):
    """Distance from the mean of the fit images in units of their covariance (scikit-learn's `LedoitWolf`).

    Attributes:
        feature: The kind of feature; the score exists for the kind with the fewest dimensions, and for "spread".
        normalised: Whether feature vectors are scaled to norm 1 first.
    """

    feature: str
    normalised: bool = False

    def exists(self, bank: Bank) -> bool:
        return self.feature in bank.features and self.feature in (bank.smallest, "spread")

    def fit(self, bank: Bank) -> "LedoitWolf":
        from sklearn.covariance import LedoitWolf

        return LedoitWolf().fit(self._rows(bank.features))

    def __call__(self, seen: Encoded, fitted: "LedoitWolf") -> np.ndarray:
        return np.sqrt(fitted.mahalanobis(self._rows(seen.features)).clip(min=0))

    def _rows(self, features: dict[str, np.ndarray]) -> np.ndarray:
        from sklearn.preprocessing import normalize

        rows = features[self.feature].astype(np.float64)
        return np.asarray(normalize(rows)) if self.normalised else rows


_of = partial(Mahalanobis, group="baseline", needs=Needs.LATENT, one_sided=True)

SCORES = (
    *(_of(name=f"mahalanobis {feature}", feature=feature) for feature in ("pooled", "z")),
    *(_of(name=f"ssd {feature}", feature=feature, normalised=True) for feature in ("pooled", "z")),
    _of(name="ssd spread", feature="spread", normalised=True),
)
