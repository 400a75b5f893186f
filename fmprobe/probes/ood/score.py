"""What an out-of-distribution score is, and the data that scores are computed from.

A score gives each image one number. A low number means that the image resembles the in-distribution images in what the
score measures; it does not always mean that the image is in-distribution.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fmprobe.dynamics.orbits import Status

LARGEST = torch.finfo(torch.float32).max  # the score of an image whose orbit diverged, or whose latent is not finite

Scores = dict[str, np.ndarray]  # values (B,) of several scores, by name


class Needs(Enum):
    """What must be computed of an image before a score of it can be."""

    LATENT = "the latent z_0 = E(x) and its features"
    DECODED = "the latent and the image D(z_0)"
    FIRST_POINT = "the distance from z_0 to the nearest attractor"
    ORBIT = "the trajectory from z_0"


@dataclass(frozen=True)
class Shared:
    """Data from which several scores compute the same intermediate value, once."""

    _values: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of `compute`, which is called for the first request of `key` only."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]


@dataclass(frozen=True)
class Bank(Shared):
    """Feature vectors of the fit images, which the baselines compare with.

    Attributes:
        features: Rows `(n, d)`, float32, by kind of feature, as `feature_vectors` gives them.
        labels: The class of each fit image `(n,)`, int64, where it is known.
        pictures: Whether the images are pictures `(C, H, W)` in [0, 1].
    """

    features: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    pictures: bool = False

    @property
    def n(self) -> int:
        """How many fit images there are."""
        return len(self.features[self.smallest])

    @property
    def smallest(self) -> str:
        """The kind of feature with the fewest dimensions."""
        return "pooled" if "pooled" in self.features else "z"


@dataclass(frozen=True)
class Encoded(Shared):
    """Images and their latents, for the scores that need no trajectory.

    Attributes:
        images: Images `(B, C, H, W)`, floats in [0, 1].
        latents: Their latents z_0 = E(x), `(B, *latent_shape)`; zero where a latent is not finite.
        decode: D, which is called only where a score looks at the decoded images.
        features: Feature vectors `(B, d)` of the latents, by kind of feature.
    """

    images: Tensor
    latents: Tensor
    decode: Callable[[Tensor], Tensor]
    features: dict[str, np.ndarray]

    @property
    def decoded(self) -> Tensor:
        """The images D(z_0), `(B, C, H, W)`."""
        return self.once("decoded", lambda: self.decode(self.latents))


@dataclass(frozen=True)
class FirstPoint:
    """The first points z_0 of the trajectories of B images.

    Attributes:
        first: Distance from z_0 to the nearest attractor, `(B,)`, float64.
    """

    first: Tensor


@dataclass(frozen=True)
class Trajectories(FirstPoint):
    """Statistics of the trajectories z_0, …, z_T of B images; every tensor is `(B,)`, float64 unless stated.

    Where each orbit counts the same number of steps (`TrajectorySettings.steps`), a converged orbit counts its end
    again for each remaining step, and a cycle goes round.

    Attributes:
        last: Distance from z_T to the nearest attractor.
        largest: The largest distance from a point of the trajectory to its nearest attractor.
        total: The sum of these distances over all points counted.
        counted: How many steps are counted, int64.
        steps: How many steps the orbit took until it ended, int64.
        first_step: ||z_1 - z_0||.
        last_step: ||z_T - z_{T-1}||, of the last step computed.
        length: The sum of the step norms.
        moved: ||z_T - z_0||, of the point where the orbit ended.
        status: How the orbit ended, a `Status` each, int64.
    """

    last: Tensor
    largest: Tensor
    total: Tensor
    counted: Tensor
    steps: Tensor
    first_step: Tensor
    last_step: Tensor
    length: Tensor
    moved: Tensor
    status: Tensor

    def bounded(self, values: Tensor) -> Tensor:
        """`values`, but the largest float32 where the orbit diverged or the value is not finite."""
        return torch.where(self.status == Status.DIVERGED, LARGEST, bounded(values))


def bounded(values: Tensor) -> Tensor:
    """`values`, but the largest float32 where they are larger or not finite."""
    return values.nan_to_num(LARGEST, LARGEST, LARGEST).clamp(max=LARGEST)


@dataclass(frozen=True, kw_only=True)
class Score(ABC):
    """One out-of-distribution score: what it is called, how it is used, and how it is computed.

    Three vectors are made of scores: the profile, all statistics of one trajectory; the joined vector, the published
    score beside the baselines that help; and the features, the part of the joined vector that follows no orbit.
    One-class models, which are fitted to the held-out images' vectors alone, give the scores "profile", "joined" and
    "features". Columns keep their places: a model of permuted columns would differ in the last digits.

    Attributes:
        name: The name in tables, artefacts and `--rule`.
        group: A key of `table.GROUPS`, or "inner" for a statistic that enters the profile and is no score by itself.
        needs: What must be computed of an image first; this decides what `__call__` is given.
        two_sided: Whether the score is also offered as its distance from the held-out median, on either side.
        in_profile: Column of the trajectory profile; None for no column.
        in_joined: Column of the joined vector; None for no column.
        one_sided: Whether a column counts only where it is larger than is usual. A small distance to the fit images
            does not make an image unusual.
        log: A column is the logarithm of the value plus a small share of the median, over the held-out images, of the
            value itself ("own") or of the first point's distance ("first"). None: the column is the value.
    """

    name: str
    group: str
    needs: Needs
    two_sided: bool = False
    in_profile: int | None = None
    in_joined: int | None = None
    one_sided: bool = False
    log: Literal["own", "first"] | None = "own"

    def exists(self, bank: Bank) -> bool:
        """Whether these fit images have the score."""
        return True

    def fit(self, bank: Bank) -> Any:
        """What `__call__` needs to know of the fit images, for which the score exists."""
        return ()

    def joins(self, bank: Bank) -> bool:
        """Whether the score may be a column of the joined vector, for these fit images."""
        return True

    @abstractmethod
    def __call__(self, seen: Any, fitted: Any) -> np.ndarray:
        """The score of each image.

        Args:
            seen: `Encoded` where the score needs LATENT, `Trajectories` where it needs ORBIT, and `FirstPoint` or
                `Trajectories` where it needs FIRST_POINT.
            fitted: What `fit` gave.

        Returns:
            Values `(B,)`, float64.
        """


@dataclass(frozen=True, kw_only=True)
class Statistic(Score):
    """A score that uses no features of the fit images, and is computed directly.

    Attributes:
        of: The score `(B,)`, float64, of what `__call__` is given.
    """

    of: Callable[[Any], Tensor]

    def __call__(self, seen: Encoded | FirstPoint, fitted: Any = ()) -> np.ndarray:
        return self.of(seen).cpu().numpy()
