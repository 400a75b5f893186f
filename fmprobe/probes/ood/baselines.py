"""What the trajectory score is held against: detectors on the features z = E(x) that need no dynamics."""

import math

import numpy as np
import torch
from torch import Tensor

NEIGHBOURS = (1, 10, 50)
POOL_ABOVE = 512  # latents of more numbers than this are also pooled over their tokens, or places
VARIANCE = 0.9  # share that the principal components explain
MOST_NUMBERS = 2**29  # of a bank of features, 2 GiB; larger latents are pooled alone


def features_of(latents: Tensor, n_fit: int) -> dict[str, np.ndarray]:
    """Feature vectors of latents `(B, *latent_shape)`, float32: "z", the whole latent, and "pooled".

    Pooled is the mean over the tokens of `(N, D)` or the places of `(C, h, w)`, where z has more than 512 numbers.
    `n_fit`: images of the bank; z is left out where a bank of it would exceed 2 GiB.
    """
    size = math.prod(latents.shape[1:])
    out = {}
    pools = size > POOL_ABOVE and latents.ndim > 2
    if size * n_fit <= MOST_NUMBERS or not pools:
        out["z"] = latents.flatten(1)
    if pools:
        out["pooled"] = latents.mean(1) if latents.ndim == 3 else latents.flatten(2).mean(2)
    return {name: value.float().cpu().numpy() for name, value in out.items()}


class Baselines:
    """KNN, Mahalanobis distance and PCA residual over banks of fit features `(n, d)`, all of scikit-learn.

    Mahalanobis (Ledoit-Wolf shrinkage) and PCA (90% of the variance) use the smallest features there are.
    """

    def __init__(self, banks: dict[str, np.ndarray]) -> None:
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA
        from sklearn.neighbors import NearestNeighbors

        self.banks = banks
        self.small = "pooled" if "pooled" in banks else "z"
        bank = banks[self.small].astype(np.float64)
        self._neighbours = {
            (name, normalised): NearestNeighbors(algorithm="brute").fit(_unit(rows) if normalised else rows)
            for name, rows in banks.items()
            for normalised in (False, True)
        }
        self._gaussian = LedoitWolf().fit(bank)
        varies = bool((bank.std(0) > 0).any())
        self._pca = PCA(n_components=VARIANCE, svd_solver="full").fit(bank) if varies else None
        self._mean = bank.mean(0)

    def scores(self, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Each baseline's score by name, `(B,)`, low = in-distribution."""
        out: dict[str, np.ndarray] = {}
        for (name, normalised), model in self._neighbours.items():
            n = len(self.banks[name])
            rows = _unit(features[name]) if normalised else features[name]
            distances = model.kneighbors(rows, n_neighbors=n)[0]
            suffix = f"{name}{' normalised' if normalised else ''}"
            for k in NEIGHBOURS:
                if k < n:
                    out[f"knn-{k} {suffix}"] = distances[:, k - 1]
                    if k > 1:
                        out[f"knn-{k} mean {suffix}"] = distances[:, :k].mean(1)
            out[f"knn-all mean {suffix}"] = distances.mean(1)
        rows = features[self.small].astype(np.float64)
        out[f"mahalanobis {self.small}"] = np.sqrt(self._gaussian.mahalanobis(rows).clip(min=0))
        centre = self._mean if self._pca is None else self._pca.inverse_transform(self._pca.transform(rows))
        out[f"pca residual {self.small}"] = np.linalg.norm(rows - centre, axis=1)
        return out


def image_scores(latents: Tensor, images: Tensor, decoded: Tensor) -> dict[str, np.ndarray]:
    """Scores that need no fit: latent norm, and reconstruction error, the mean squared error of D(E(x))."""
    error = (decoded.float() - images.to(decoded.device).float()).flatten(1).double().square().mean(1)
    norm = torch.linalg.vector_norm(latents.flatten(1).double(), dim=1)
    return {"latent norm": norm.cpu().numpy(), "reconstruction error": error.cpu().numpy()}


def _unit(rows: np.ndarray) -> np.ndarray:
    from sklearn.preprocessing import normalize

    return np.asarray(normalize(rows))
