"""Maps between the latent spaces of two networks, fitted on the latents of images that both have seen."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fmprobe.dynamics.norms import norms, power_of_two
from fmprobe.errors import InputError

ORTHOGONAL, LINEAR, RELATIVE = "orthogonal", "linear", "relative"
RIDGE = np.logspace(-8, 2, 11)  # penalties that are tried, relative to the mean squared singular value
CONSTANT = 1e-6  # a spread of this share of the latents' size is their rounding
NOTHING = "the latents of A do not vary, so that every image is mapped to the mean of B's"


class LatentMap(ABC):
    """Latents of two networks A and B, flat rows `(n, d_a)` and `(n, d_b)`, in one common space.

    `facts`: what the fit decided, JSON-ready; `rank` 0 and a `reason` where there was nothing to fit.
    """

    facts: dict[str, Any]

    @abstractmethod
    def from_a(self, latents: Tensor) -> Tensor:
        """Latents of A in the common space."""

    @abstractmethod
    def from_b(self, latents: Tensor) -> Tensor:
        """Latents of B in the common space."""

    @abstractmethod
    def counterpart(self, a: Tensor, b: Tensor) -> Tensor:
        """Where in B's space the points `a` of A are; `b`: B's own latents of the same images."""


@dataclass(frozen=True)
class Affine(LatentMap):
    """The common space is B's: z -> (z - centre_a) basis weights + centre_b."""

    centre_a: Tensor
    centre_b: Tensor
    basis: Tensor
    weights: Tensor
    facts: dict[str, Any]

    def from_a(self, latents: Tensor) -> Tensor:
        return (latents - self.centre_a) @ self.basis @ self.weights + self.centre_b

    def from_b(self, latents: Tensor) -> Tensor:
        return latents

    def counterpart(self, a: Tensor, b: Tensor) -> Tensor:
        return self.from_a(a)


@dataclass(frozen=True)
class Relative(LatentMap):
    """Relative representations: cosines with the latents of the same anchor images, about their mean.

    Moschella et al., ICLR 2023, sec. 3, with latents centred. Nothing is fitted, and dimensions may differ; a point of
    A has a counterpart only as an image has, which is where B's field is looked at.
    """

    anchors_a: Tensor
    anchors_b: Tensor
    facts: dict[str, Any]

    def from_a(self, latents: Tensor) -> Tensor:
        return _cosines(latents, self.anchors_a)

    def from_b(self, latents: Tensor) -> Tensor:
        return _cosines(latents, self.anchors_b)

    def counterpart(self, a: Tensor, b: Tensor) -> Tensor:
        return b


def fit_orthogonal(a: Tensor, b: Tensor) -> Affine:
    """Orthogonal Procrustes about the means, with one scale (Schönemann 1966, by scipy), on paired rows `(n, d)`.

    With fewer rows than dimensions the rotation is known between their spans alone: what lies outside is dropped.
    Rows `a` that do not vary are mapped to the mean of `b`. Raises InputError where the dimensions differ.
    """
    from scipy.linalg import orthogonal_procrustes

    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"latents of {a.shape[1]} and of {b.shape[1]} values: no orthogonal map joins them; ask for the maps "
            f"{LINEAR} or {RELATIVE}"
        )
    (centre_a, x), (centre_b, y) = _centred(a), _centred(b)
    if not _varies(x, a):
        return _to_the_mean(centre_a, centre_b, {"scale": 0.0})
    basis_a, basis_b = _span(x), _span(y)
    rotation, overlap = orthogonal_procrustes(x @ basis_a, y @ basis_b)
    scale = float(overlap) / float(np.square(x).sum())
    facts = {"scale": scale, "rank": int(rotation.shape[0])}
    return Affine(centre_a, centre_b, _tensor(basis_a @ rotation), _tensor(scale * basis_b.T), facts)


def fit_linear(a: Tensor, b: Tensor) -> Affine:
    """Ridge regression with intercept (scikit-learn), paired rows `(n, d_a)` to `(n, d_b)`.

    The penalty is the one of eleven with the smallest leave-one-out error. Rows `a` that do not vary are mapped to the
    mean of `b`.
    """
    from sklearn.linear_model import RidgeCV

    (centre_a, x), (centre_b, y) = _centred(a), _centred(b)
    if not _varies(x, a):
        return _to_the_mean(centre_a, centre_b, {"penalty": None})
    basis = _span(x)
    scores = x @ basis  # a ridge solution lies in the span of the rows, so nothing is lost
    unit = float(np.square(scores).sum()) / scores.shape[1]
    fitted: Any = RidgeCV(alphas=RIDGE * unit, fit_intercept=False).fit(scores, y)
    weights = fitted.coef_.reshape(y.shape[1], -1).T
    facts = {"penalty": float(fitted.alpha_) / unit, "rank": int(basis.shape[1])}
    return Affine(centre_a, centre_b, _tensor(basis), _tensor(weights), facts)


def fit_relative(a: Tensor, b: Tensor, anchors: int = 64) -> Relative:
    """At most `anchors` of the paired rows, evenly spread, as anchors."""
    count = min(anchors, len(a))
    rows = [i * len(a) // count for i in range(count)]
    return Relative(a[rows], b[rows], {"anchors": count})


FITS = {ORTHOGONAL: fit_orthogonal, LINEAR: fit_linear, RELATIVE: fit_relative}


def _cosines(latents: Tensor, anchors: Tensor) -> Tensor:
    centre = anchors.mean(0)
    return _directions(latents, centre) @ _directions(anchors, centre).T


def _directions(latents: Tensor, centre: Tensor) -> Tensor:
    """Unit rows from the centre to the latents, zero where these differ from it by no more than their rounding."""
    apart = latents - centre
    known = norms(apart) > CONSTANT * norms(centre[None])
    units = apart.double() / power_of_two(apart.abs().amax(1))[:, None]  # whose norms neither overflow nor vanish
    return (normalize(units, dim=1) * known[:, None]).to(latents.dtype)


def _centred(latents: Tensor) -> tuple[Tensor, np.ndarray]:
    """The mean, and rows about it in float64."""
    rows = latents.double()
    centre = rows.mean(0)
    return centre.to(latents.dtype), (rows - centre).numpy()


def _varies(centred: np.ndarray, latents: Tensor) -> bool:
    """Whether rows spread by more than their rounding, which a fit would only blow up."""
    least = CONSTANT**2 * float(latents.double().square().sum())
    return float(np.square(centred).sum()) > max(least, torch.finfo(torch.float32).tiny)


def _to_the_mean(centre_a: Tensor, centre_b: Tensor, facts: dict[str, Any]) -> Affine:
    basis, weights = torch.zeros(len(centre_a), 1), torch.zeros(1, len(centre_b))
    return Affine(centre_a, centre_b, basis, weights, {**facts, "rank": 0, "reason": NOTHING})


def _span(rows: np.ndarray) -> np.ndarray:
    """Orthonormal columns `(d, min(n, d))` whose span holds the rows."""
    n, d = rows.shape
    return np.eye(d) if n >= d else np.linalg.svd(rows, full_matrices=False)[2].T


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
