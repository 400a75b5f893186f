"""What held-out in-distribution images say of a score: how typical a value is, and what a profile looks like."""

import warnings
from numbers import Real

import numpy as np

from fmprobe.errors import InputError
from fmprobe.probes.ood.trajectory import LARGEST

FEWEST = 16  # held-out images
FOLDS = 5
# The trajectory profile; all but the rate and whether it converged enter by their logarithm.
DISTANCES = ("first", "last", "mean", "max", "length", "moved")
PROFILE = (*DISTANCES, "steps", "rate", "settled")
INNER = ("rate", "settled", "moved")  # parts of the profile that are no scores: low is not in-distribution
AT_ATTRACTOR = 0.01
RESOLUTION = 1e-5  # relative, of a score
LEAST_SPREAD = 1e-3  # of a logarithm: what varies less is constant but for rounding
TWO_SIDED = ("mean", "first", "last", "max", "length", "steps", "residual", "latent norm", "reconstruction error")

Scores = dict[str, np.ndarray]


class Calibration:
    """Scores of held-out in-distribution images `(h,)` each, by name, and what is fitted to them.

    `joined`: names of the baselines that join the profile. No out-of-distribution image is involved. Raises InputError
    for fewer than 16 images.
    """

    def __init__(self, held_out: Scores, joined: tuple[str, ...]) -> None:
        self.held_out, self.joined = held_out, joined
        self.n = len(held_out["mean"])
        if self.n < FEWEST:
            raise InputError(f"{self.n} held-out images calibrate nothing: expected at least {FEWEST}")
        self.names = {"profile": PROFILE, "joined": (*PROFILE, *joined)}
        self._models = {name: _OneClass(held_out, columns) for name, columns in self.names.items()}
        self._calibrated = held_out | self._out_of_fold()
        self._calibrated |= {f"two-sided {name}": self.typicality(name, held_out[name]) for name in TWO_SIDED}

    def scores(self, scores: Scores) -> Scores:
        """Two-sided, profile and joined scores, `(B,)` by name, of images whose plain scores are given."""
        out = {f"two-sided {name}": self.typicality(name, scores[name]) for name in TWO_SIDED}
        for name, model in self._models.items():
            for kind, values in model.scores(scores).items():
                out[f"{name}{kind}"] = values
        return out

    def typicality(self, name: str, values: np.ndarray) -> np.ndarray:
        """Distance of the score's rank among the held-out ones from the middle: 0 at their median, 1 at their ends.

        Beyond the ends it goes on by the distance from them in units of the held-out range, so that order is kept.
        """
        # Scores that differ by their last digits alone are equal: some vary by rounding and nothing else.
        grain = RESOLUTION * float(np.median(np.abs(self.held_out[name]))) or 1e-30
        held = np.round(np.sort(self.held_out[name]) / grain)
        values = np.round(values / grain)
        low, high = held[0], held[-1]
        # The middle of a run of equal scores, and linear between two.
        levels = np.unique(held)
        ranks = (np.searchsorted(held, levels, "left") + np.searchsorted(held, levels, "right") - 1) / 2
        share = np.interp(values, levels, ranks) / max(self.n - 1, 1)
        beyond = np.maximum(values - high, 0) + np.maximum(low - values, 0)
        scale = high - low if high > low else 1 / RESOLUTION
        return np.minimum(np.abs(2 * share - 1) + beyond / scale, LARGEST)

    def threshold(self, name: str, acceptance: float) -> float:
        """The score up to which a share `acceptance` of in-distribution images lies, by the held-out ones' order.

        The ceil((h + 1) * acceptance)-th smallest of h, which new images from the same source stay under with at least
        that probability (split conformal prediction), while h is large enough for it to exist; else the largest.
        Warns where that is the score of orbits that diverge: then every image is accepted.
        """
        if not isinstance(acceptance, Real) or not 0 < acceptance < 1:
            raise InputError(f"acceptance must lie between 0 and 1, got {acceptance!r}")
        offered = self._calibrated.keys() - set(INNER)
        if not isinstance(name, str) or name not in offered:
            raise InputError(f"unknown score {name!r}: expected one of {', '.join(sorted(offered))}")
        held = np.sort(self._calibrated[name])
        place = int(np.ceil((self.n + 1) * acceptance - 1e-9))
        threshold = float(held[min(place, self.n) - 1])
        if threshold >= LARGEST:
            warnings.warn(
                f"more than {1 - acceptance:.0%} of the held-out images' orbits diverge or have no score, so {name!r} "
                "accepts everything: lower the acceptance, or decide by another score",
                stacklevel=2,
            )
        return threshold

    def _out_of_fold(self) -> Scores:
        """Each held-out image's profile scores by models fitted without it, so that thresholds are not too narrow."""
        folds = np.arange(self.n) % FOLDS
        out: Scores = {}
        for fold in range(FOLDS):
            seen = {name: values[folds != fold] for name, values in self.held_out.items()}
            unseen = {name: values[folds == fold] for name, values in self.held_out.items()}
            for name, columns in self.names.items():
                for kind, values in _OneClass(seen, columns).scores(unseen).items():
                    out.setdefault(f"{name}{kind}", np.empty(self.n))[folds == fold] = values
        return out


class _OneClass:
    """Ledoit-Wolf Gaussian and one-class SVM (scikit-learn) on standardised columns of scores."""

    def __init__(self, scores: Scores, columns: tuple[str, ...]) -> None:
        from sklearn.covariance import LedoitWolf
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import OneClassSVM

        self.columns = columns
        # Under a hundredth of the usual first distance a point is at the attractor: its last digits are rounding.
        near = AT_ATTRACTOR * float(np.median(scores["first"]))
        self.least = {c: near if c in DISTANCES else 1e-6 * float(np.median(scores[c])) for c in columns}
        kept = scores["mean"] < LARGEST  # those that are lost score the largest float, and would widen what is usual
        raw = self._matrix(scores)[kept if kept.sum() > 1 else slice(None)]
        self.scaler = StandardScaler().fit(raw)
        self.scaler.scale_ = np.maximum(raw.std(0), LEAST_SPREAD)
        rows = self.scaler.transform(raw)
        self.gaussian = LedoitWolf().fit(rows)
        self.svm = OneClassSVM(nu=0.1, gamma="scale").fit(rows)

    def scores(self, scores: Scores) -> Scores:
        rows = self.scaler.transform(self._matrix(scores))
        lost = scores["mean"] >= LARGEST
        gaussian = np.sqrt(self.gaussian.mahalanobis(rows).clip(min=0))
        svm = -self.svm.decision_function(rows)
        return {"": np.where(lost, LARGEST, gaussian), " svm": np.where(lost, LARGEST, svm)}

    def _matrix(self, scores: Scores) -> np.ndarray:
        columns = []
        for name in self.columns:
            plain = name in ("rate", "settled")
            columns.append(
                scores[name] if plain else np.log(np.maximum(scores[name], 0) + max(self.least[name], 1e-30))
            )
        return np.stack(columns, 1)
