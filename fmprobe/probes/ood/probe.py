"""The comparison of `fmprobe ood`: how well each score tells sets of images from the in-distribution images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.orbits import Status
from fmprobe.errors import InputError
from fmprobe.probes.ood.calibration import FEWEST
from fmprobe.probes.ood.controls import control_images
from fmprobe.probes.ood.detector import TrajectoryDetector
from fmprobe.probes.ood.metrics import CONVENTION, ood_metrics
from fmprobe.probes.ood.score import LARGEST, Scores
from fmprobe.probes.ood.split import check_classes, content_hashes, labels_by_content, split_by_content, without
from fmprobe.probes.ood.table import GROUPS, OFFERED
from fmprobe.probes.result import Result

INSIDE = "in-distribution"
SHARES = (2, 1, 1)  # of the in-distribution images: fit, held-out, test
SHOWN = ("trajectory", "first", "features", "joined")  # scores whose histograms are kept
BINS, SPAN = 30, 30  # of histograms: bins, and the ratio of scores beyond which bins are even in the logarithm
BOOTSTRAP = 500
FEWEST_OUTSIDE = 2  # images of an out-of-distribution set
# Near-OOD is a set whose mean features lie closer to those of the fit images than this share of the fit images' root
# mean square deviation: it moves the second moment by less than a quarter. It was fixed before any set was compared.
NEAR = 0.5


@dataclass(frozen=True)
class OODResult(Result):
    """The result of `compare_scores`.

    Attributes:
        facts: JSON-ready facts, as `results.json` keeps them under `ood`.
    """

    key: ClassVar[str] = "ood"
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The facts."""
        return self.facts


@dataclass(frozen=True)
class Sets:
    """Images of a comparison, by their part in it. No image is in two parts.

    Attributes:
        fit: In-distribution images that the detector is fitted on.
        held_out: In-distribution images that the detector is calibrated with.
        test: In-distribution images that the other sets are compared with.
        others: Out-of-distribution sets and controls, by name.
        controls: The names of the controls: images of low complexity, made by `control_images`.
        dropped: How many images of each out-of-distribution set were also in-distribution images.
        duplicates: How many in-distribution images were duplicates.
        labels: The class of each fit image, where classes are known.
    """

    fit: Tensor
    held_out: Tensor
    test: Tensor
    others: dict[str, Tensor]
    controls: frozenset[str]
    dropped: dict[str, int]
    duplicates: int
    labels: list[int] | None = None

    @classmethod
    def split(
        cls,
        images: Tensor,
        ood: Mapping[str, Tensor],
        controls: bool,
        seed: int,
        labels: np.ndarray | None = None,
    ) -> "Sets":
        """Split in-distribution images by their content into fit, held-out and test images as 2 : 1 : 1.

        Args:
            images: In-distribution images `(n, *image_shape)`.
            ood: Out-of-distribution sets `(m, *image_shape)`, by name.
            controls: Whether to add controls, made of the test images.
            seed: Random seed for the split and the controls.
            labels: The class of each of `images`, where it is known.

        Raises:
            InputError: There are too few in-distribution images, or fewer than two of an out-of-distribution set that
                are not among them; or there is not one label for each, or the classes of the fit images cannot be
                learned from.
        """
        (fit, held_out, test), duplicates = split_by_content(images, SHARES, seed)
        if len(held_out) < FEWEST:
            raise InputError(
                f"{len(images)} in-distribution images are too few: expected at least {4 * FEWEST} distinct ones"
            )
        pairs = {name: without(pictures, [images], name) for name, pictures in ood.items()}
        made = {f"control: {name}": rows for name, rows in control_images(test, seed).items()} if controls else {}
        others = {name: pictures for name, (pictures, _) in pairs.items()} | made
        dropped = {name: count for name, (_, count) in pairs.items()}
        for name, rows in others.items():
            if len(rows) < FEWEST_OUTSIDE:
                raise InputError(
                    f"{name} has {len(rows)} images that are not in-distribution images too: expected at least "
                    f"{FEWEST_OUTSIDE}; name another set"
                )
        known = None
        if labels is not None:
            classes = labels_by_content(labels, images)
            check_classes(known := [classes[name] for name in content_hashes(fit)])
        return cls(fit, held_out, test, others, frozenset(made), dropped, duplicates, known)

    @property
    def examined(self) -> dict[str, Tensor]:
        """Every set that is scored, the in-distribution test images first."""
        return {INSIDE: self.test, **self.others}


def fit_detector(model: Autoencoder, sets: Sets, acceptance: float, settings: Mapping[str, Any]) -> TrajectoryDetector:
    """The detector of a comparison, which depends on the fit and the held-out images alone.

    Args:
        model: The autoencoder.
        sets: The images.
        acceptance: The share of in-distribution images that the detector accepts.
        settings: Fields of `TrajectorySettings`.
    """
    detector = TrajectoryDetector(model, acceptance=acceptance, **settings)
    return detector.fit(sets.fit, sets.held_out, labels=sets.labels)


def compare_scores(
    detector: TrajectoryDetector,
    sets: Sets,
    found: Mapping[str, tuple[Scores, np.ndarray]],
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> OODResult:
    """Compare every score on every set with the in-distribution test images (Fumero et al., ICLR 2026, fig. 5, tab. 1).

    Args:
        detector: The detector.
        sets: The images.
        found: What the detector's `examine` gave for each of `sets.examined`.
        bootstrap: Number of resamples for the intervals.
        seed: Random seed for the resamples.
    """
    facts = {name: _about(status, detector, scores) for name, (scores, status) in found.items()}
    for name, images in sets.others.items():
        shift = detector.shift(images) if name not in sets.controls else None
        facts[name] |= {
            "control": name in sets.controls,
            "dropped": sets.dropped.get(name, 0),
            "shift": shift if shift is None or math.isfinite(shift) else LARGEST,
            "range": None if shift is None else "near" if shift < NEAR else "far",
        }
    scores = {name: of for name, (of, _) in found.items()}
    inside, outside = scores[INSIDE], {name: scores[name] for name in sets.others}
    rows = [
        {
            "name": name,
            "group": group,
            "sets": {
                key: ood_metrics(inside[name], of[name], bootstrap=bootstrap, seed=seed) for key, of in outside.items()
            },
        }
        for name, group in OFFERED.items()
        if name in inside and name != detector.settings.aggregate  # which is listed as "trajectory"
    ]
    split = {"fit": len(sets.fit), "held_out": len(sets.held_out), "test": len(sets.test)}
    described = detector.describe()
    return OODResult(
        {
            "convention": CONVENTION,
            "split": {**split, "duplicates_dropped": sets.duplicates},
            "sets": facts,
            "near": NEAR,
            "detector": described,
            "distances_to": describe_reference(described["reference"]),
            "bootstrap": bootstrap,
            "groups": GROUPS,
            "scores": rows,
            "histograms": {
                name: histogram_of({key: of[name] for key, of in scores.items()}) for name in SHOWN if name in inside
            },
        },
    ).about(detector.model)


def describe_reference(facts: Mapping[str, Any]) -> str:
    """One line on the points that distances are taken to, from `Reference.facts`."""
    return (
        f"{facts['points']} {facts['kind']}: {100 * facts['converged_share']:.0f}% of {facts['images']} fit "
        f"images converged, {100 * facts['in_an_attractor_share']:.0f}% in an "
        f"attractor, {facts['distinct_ends']} distinct ends"
    )


def _about(status: np.ndarray, detector: TrajectoryDetector, scores: Scores) -> dict[str, Any]:
    """How many images a set has, how their orbits ended, and the share that the detector accepts."""
    counts = {kind.name.lower(): int((status == kind).sum()) for kind in Status}
    accepted = float((scores[detector.rule] <= detector.threshold()).mean())
    return {"images": len(status), "status": counts, "diverged": counts["diverged"], "accepted_share": accepted}


def histogram_of(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Counts of each set over common bins, from the 1st to the 99th percentile of all; the end bins count the rest.

    The bins are even in the logarithm where the scores span more than a factor of 30, so that every set is seen.
    """
    every = np.concatenate(list(scores.values()))
    bounded = every[every < LARGEST]  # orbits that diverged are counted in the last bin
    low, high = np.quantile(bounded, [0.01, 0.99]) if len(bounded) else (0.0, 1.0)
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    edges = (np.geomspace if low > 0 and high > SPAN * low else np.linspace)(low, high, BINS + 1)
    edges[[0, -1]] = low, high  # rounding must not leave a value outside
    counts = {name: np.histogram(values.clip(low, high), edges)[0].tolist() for name, values in scores.items()}
    return {"edges": edges.tolist(), "counts": counts}
