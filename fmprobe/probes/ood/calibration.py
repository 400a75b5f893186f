"""Learning from held-out in-distribution images: two-sided scores, one-class models, and thresholds.

No out-of-distribution image is involved.
"""

import math
import warnings
from dataclasses import dataclass
from numbers import Real

import numpy as np

from fmprobe.errors import InputError
from fmprobe.probes.ood.score import LARGEST, Scores
from fmprobe.probes.ood.table import BY_NAME, MODELS, OFFERED, TWO_SIDED, features_of, profile_of

FEWEST = 16  # held-out images
FOLDS = 5
AT_ATTRACTOR = 0.01  # below this share of the median first distance, a point is at the attractor
RESOLUTION = 1e-5  # relative; scores that differ by less are equal
LEAST_SPREAD = 1e-3  # of a logarithm; what varies less is constant up to rounding
BETWEEN_QUARTILES = 1.349  # of N(0, 1)
BOUND = 6.0  # deviations; a column counts no more, so that a rare value does not lift a threshold beyond use


@dataclass(frozen=True)
class Acceptance:
    """What a threshold promises: the share of in-distribution images that it accepts.

    The threshold is one of h held-out scores, the r-th smallest. Over the choice of the held-out images, the share of
    new images that it accepts has a Beta(r, h + 1 - r) distribution, where no two scores are equal (Vovk, "Conditional
    validity of inductive conformal predictors", ACML 2012, sec. 3).

    Attributes:
        asked: The share that was asked for.
        expected: The mean of that distribution, r / (h + 1). It is below `asked` where h images cannot promise more.
        interval: From its 2.5th to its 97.5th percentile.
        held_out: h.
        needed: The fewest held-out images that can promise `asked`.
    """

    asked: float
    expected: float
    interval: tuple[float, float]
    held_out: int
    needed: int


class Calibration:
    """Scores of held-out in-distribution images, and the models that are fitted to them.

    Scores that `held_out` lacks are not offered: a detector that was calibrated before a score existed is used without
    it, and its profile keeps its columns. Models are fitted when a score of theirs is first asked for.

    Args:
        held_out: Values `(h,)` of each plain score, that is, each score that needs no held-out images, by name.
        joined: Names of the columns of the joined vector.
        earlier: Whether to decide as detectors of an earlier version do, which keep their thresholds: the joined vector
            begins with the profile, and columns count on both sides, in standard deviations
            and without a bound.

    Raises:
        InputError: There are fewer than 16 held-out images.
        ValueError: Scores have no value for each held-out image, or those of a column are missing.
    """

    def __init__(self, held_out: Scores, joined: tuple[str, ...], earlier: bool = False) -> None:
        self.held_out, self.joined, self.earlier = held_out, joined, earlier
        self.n = len(held_out["mean"])
        check_enough(self.n)
        profile = profile_of(held_out)
        self._vectors = {"profile": profile}
        if earlier:
            self._vectors["joined"] = (*profile, *joined)
        else:
            self._vectors |= {"features": features_of(joined), "joined": joined}
        if missing := {"mean", "first", *self._vectors["joined"]} - held_out.keys():
            raise ValueError(f"the score {min(missing)!r} of the held-out images is missing")
        if any(values.shape != (self.n,) for values in held_out.values()):
            raise ValueError("some score has no value for each held-out image")
        self._two_sided = {name: of for name, of in TWO_SIDED.items() if of in held_out}
        one_class = (f"{vector}{model}" for vector in self._vectors for model in MODELS)
        known = {*held_out, *self._two_sided, *one_class}
        self.names = tuple(name for name in OFFERED if name in known)  # the scores that are offered
        self._fitted: dict[tuple[str, ...], _OneClass] = {}
        self._of_held_out: Scores = {}

    def held_out_scores(self, name: str) -> np.ndarray:
        """The score of each held-out image, `(h,)`, by models that were fitted without it."""
        self._check_known(name)
        if name in self.held_out:
            return self.held_out[name]
        if name not in self._of_held_out:
            vector = _vector_of(name)
            found = self._out_of_fold(vector) if vector in self._vectors else {name: self.score(name, self.held_out)}
            self._of_held_out |= found
        return self._of_held_out[name]

    def made_of(self, name: str) -> tuple[str, ...]:
        """The plain scores that a score is made of.

        Raises:
            InputError: The score is unknown.
        """
        self._check_known(name)
        return self._vectors.get(_vector_of(name)) or (self._two_sided.get(name, name),)

    def score(self, name: str, plain: Scores) -> np.ndarray:
        """One score `(B,)`, of images whose plain scores `made_of(name)` are given."""
        if name in self._two_sided:
            return self._typicality(self._two_sided[name], plain[self._two_sided[name]])
        if (vector := _vector_of(name)) in self._vectors:
            return self._model(self._vectors[vector]).scores(plain)[name.removeprefix(vector)]
        return plain[name]

    def threshold(self, name: str, acceptance: float) -> float:
        """The score up to which a share of in-distribution images lies, by the order of the held-out scores.

        Of h held-out scores it is the ceil((h + 1) * acceptance)-th smallest. A new image from the same source scores
        at most that with a probability of at least `acceptance` (split conformal prediction). Where h is too small for
        that rank to exist, it is the largest, which promises a share of h / (h + 1) and no more.

        Args:
            name: The score.
            acceptance: The share, between 0 and 1.

        Raises:
            InputError: The share is out of range, or the score is unknown.

        Warns:
            UserWarning: There are too few held-out images for that share; or the threshold is the score of orbits that
                diverge, so that every image is accepted.
        """
        promised = self.acceptance(acceptance)
        self._check_known(name)
        if promised.needed > self.n:
            warnings.warn(
                f"{self.n} held-out images promise an acceptance of at most {self.n / (self.n + 1):.1%}, not "
                f"{acceptance:.1%}: hold out at least {promised.needed}, or ask for less",
                stacklevel=2,
            )
        threshold = float(np.sort(self.held_out_scores(name))[self._rank(acceptance) - 1])
        if threshold >= LARGEST:
            warnings.warn(
                f"more than {1 - acceptance:.0%} of the held-out images' orbits diverge or have no score, so {name!r} "
                "accepts everything: lower the acceptance, or decide by another score",
                stacklevel=2,
            )
        return threshold

    def acceptance(self, asked: float) -> Acceptance:
        """What the threshold for a share of in-distribution images promises. Raises InputError for no share."""
        from scipy.special import betaincinv

        check_acceptance(asked)
        rank = self._rank(asked)
        low, high = betaincinv(rank, self.n + 1 - rank, [0.025, 0.975])
        needed = math.ceil(asked / (1 - asked) - 1e-9)
        return Acceptance(asked, rank / (self.n + 1), (float(low), float(high)), self.n, needed)

    def p_values(self, name: str, values: np.ndarray) -> np.ndarray:
        """The conformal p-value `(B,)` of each value of a score. Raises InputError for an unknown score."""
        return p_values(self.held_out_scores(name), values)

    def deviations(self, name: str, plain: Scores) -> Scores:
        """Of each part of a score `(B,)`, how far it lies from the held-out images' median, in their deviations.

        The deviation is the standard deviation of a normal distribution with the held-out images' quartiles. Parts are
        taken as the one-class models take them, most of them by their logarithm.
        """
        return self._model(self.made_of(name)).deviations(plain)

    def _model(self, columns: tuple[str, ...]) -> "_OneClass":
        """The one-class models of these columns, fitted to all held-out images."""
        if columns not in self._fitted:
            self._fitted[columns] = _OneClass(self.held_out, columns, self.earlier)
        return self._fitted[columns]

    def _rank(self, acceptance: float) -> int:
        """Which of the held-out scores, ascending from 1, is the threshold."""
        return min(int(np.ceil((self.n + 1) * acceptance - 1e-9)), self.n)

    def _check_known(self, name: str) -> None:
        if not isinstance(name, str) or name not in self.names:
            raise InputError(f"unknown score {name!r}: expected one of {', '.join(sorted(self.names))}")

    def _typicality(self, name: str, values: np.ndarray) -> np.ndarray:
        """The two-sided score: how far a value's rank among the held-out values is from the middle.

        It is 0 at their median and 1 at their smallest and largest. Beyond these it grows by the distance from them in
        units of the held-out range, so that order is kept.
        """
        # Some scores vary by rounding alone: values that differ in their last digits are equal.
        grain = RESOLUTION * float(np.median(np.abs(self.held_out[name]))) or 1e-30
        held = np.round(np.sort(self.held_out[name]) / grain)
        values = np.round(values / grain)
        low, high = held[0], held[-1]
        # A run of equal values has the rank of its middle; ranks between two values are interpolated linearly.
        levels = np.unique(held)
        ranks = (np.searchsorted(held, levels, "left") + np.searchsorted(held, levels, "right") - 1) / 2
        share = np.interp(values, levels, ranks) / max(self.n - 1, 1)
        beyond = np.maximum(values - high, 0) + np.maximum(low - values, 0)
        scale = high - low if high > low else 1 / RESOLUTION
        return np.minimum(np.abs(2 * share - 1) + beyond / scale, LARGEST)

    def _out_of_fold(self, vector: str) -> Scores:
        """One-class scores of the held-out images for a vector, each by models that are fitted without it."""
        # Thresholds of images that a model was fitted to would be too low for new ones.
        folds = np.arange(self.n) % FOLDS
        out: Scores = {}
        for fold in range(FOLDS):
            seen = {name: values[folds != fold] for name, values in self.held_out.items()}
            unseen = {name: values[folds == fold] for name, values in self.held_out.items()}
            for suffix, values in _OneClass(seen, self._vectors[vector], self.earlier).scores(unseen).items():
                out.setdefault(f"{vector}{suffix}", np.empty(self.n))[folds == fold] = values
        return out


def p_values(held_out: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The conformal p-value `(B,)` of each score, between 1 / (h + 1) and 1.

    It is (1 + the number of held-out scores that are as high) / (h + 1). For a new in-distribution image it is at most
    p with a probability of at most p (Bates et al., "Testing for outliers with conformal p-values", Annals of
    Statistics 2023, sec. 2.1).

    Args:
        held_out: scores of held-out in-distribution images, `(h,)`.
        scores: scores of new images, `(B,)`.
    """
    n = len(held_out)
    return (1 + n - np.searchsorted(np.sort(held_out), scores, "left")) / (n + 1)


def _vector_of(name: str) -> str:
    """The vector of columns that a one-class score is a model of; other names are no vector's."""
    return name.removesuffix(MODELS[1])


def check_enough(n: int) -> None:
    """Raise InputError where so many held-out images calibrate nothing."""
    if n < FEWEST:
        raise InputError(f"{n} held-out images calibrate nothing: expected at least {FEWEST}")


def check_acceptance(share: float, name: str = "acceptance") -> None:
    """Raise InputError for a share that is not between 0 and 1."""
    if not isinstance(share, Real) or not 0 < share < 1:
        raise InputError(f"{name} must lie between 0 and 1, got {share!r}")


def _quartiles(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median of each column, and the standard deviation of a normal distribution with its quartiles."""
    low, middle, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
    return middle, (high - low) / BETWEEN_QUARTILES


class _OneClass:
    """A Gaussian with Ledoit-Wolf shrinkage and a one-class SVM (scikit-learn) on columns of scores in deviations.

    Args:
        scores: Values `(h,)` of the held-out images, by name.
        names: The scores that are columns.
        earlier: As `Calibration` has it.
    """

    def __init__(self, scores: Scores, names: tuple[str, ...], earlier: bool) -> None:
        from sklearn.covariance import LedoitWolf
        from sklearn.svm import OneClassSVM

        lowest = [0.0 if BY_NAME[name].one_sided else -BOUND for name in names]
        self._limits = (-np.inf, np.inf) if earlier else (np.array(lowest), BOUND)
        # The last digits of a point at the attractor are rounding: the logarithm must not magnify them.
        near = AT_ATTRACTOR * float(np.median(scores["first"]))
        self._logs = {name: BY_NAME[name].log for name in names}
        self._least = {
            name: near if log == "first" else 1e-6 * float(np.median(scores[name])) for name, log in self._logs.items()
        }
        kept = ~self._lost(scores)  # the largest float of diverged orbits would widen what is usual
        raw = self._matrix(scores)[kept if kept.sum() > 1 else slice(None)]
        # Quartiles, because one rare value would widen a standard deviation so much that little else is unusual.
        middle, spread = (raw.mean(0), raw.std(0)) if earlier else _quartiles(raw)
        self._middle, self._spread = middle, np.maximum(spread, LEAST_SPREAD)
        rows = self._bounded(raw)
        self._gaussian = LedoitWolf().fit(rows)
        self._svm = OneClassSVM(nu=0.1, gamma="scale").fit(rows)

    def scores(self, scores: Scores) -> Scores:
        """Mahalanobis distances and negative decision values of the SVM, `(B,)` each, by the suffixes of `MODELS`."""
        rows = self._bounded(self._matrix(scores))
        lost = self._lost(scores)
        gaussian = np.sqrt(self._gaussian.mahalanobis(rows).clip(min=0))
        svm = -self._svm.decision_function(rows)
        return dict(zip(MODELS, (np.where(lost, LARGEST, values) for values in (gaussian, svm)), strict=True))

    def deviations(self, scores: Scores) -> Scores:
        """The standardised columns `(B,)`, by name."""
        return dict(zip(self._logs, self._standardised(self._matrix(scores)).T, strict=True))

    def _bounded(self, raw: np.ndarray) -> np.ndarray:
        """Columns in deviations from the middle of the held-out images, `(B, c)`, within their limits."""
        return self._standardised(raw).clip(*self._limits)

    def _standardised(self, raw: np.ndarray) -> np.ndarray:
        return (raw - self._middle) / self._spread

    def _lost(self, scores: Scores) -> np.ndarray:
        """Whether a column of an image has no value, because its orbit diverged or its latent is not finite, `(B,)`."""
        return np.any([scores[name] >= LARGEST for name in self._logs], axis=0)

    def _matrix(self, scores: Scores) -> np.ndarray:
        """The columns of each image, `(B, c)`."""
        columns = []
        for name, log in self._logs.items():
            values = scores[name]
            columns.append(values if log is None else np.log(np.maximum(values, 0) + max(self._least[name], 1e-30)))
        return np.stack(columns, 1)
