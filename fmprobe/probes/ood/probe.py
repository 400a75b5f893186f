"""The question of `fmprobe ood`: which scores tell which sets from the in-distribution images, and by how much."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.orbits import Status
from fmprobe.errors import InputError
from fmprobe.probes.ood.calibration import FEWEST, Scores
from fmprobe.probes.ood.controls import control_images
from fmprobe.probes.ood.detector import TrajectoryDetector
from fmprobe.probes.ood.metrics import CONVENTION, ood_metrics
from fmprobe.probes.ood.split import split_by_content, without
from fmprobe.probes.ood.trajectory import LARGEST
from fmprobe.probes.result import Result

INSIDE = "in-distribution"
SHARES = (2, 1, 1)  # of the in-distribution images: fit, held out, test
PARTS = ("first", "mean", "last", "max", "length", "steps")
SHOWN = ("trajectory", "first", "joined")  # scores whose histograms are kept
BINS = 30
BOOTSTRAP = 500


@dataclass(frozen=True)
class OODResult(Result):
    """What `probe_ood` found: the fitted detector, and JSON-ready facts as `results.json` keeps them under `ood`."""

    key: ClassVar[str] = "ood"
    detector: TrajectoryDetector
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The facts."""
        return self.facts


@dataclass(frozen=True)
class Sets:
    """Images by their part in a comparison: to fit, held out and to test, and those from elsewhere by name.

    The last of `elsewhere` are the `controls`; `dropped`: how many of each were in-distribution images too.
    """

    fit: Tensor
    held_out: Tensor
    test: Tensor
    elsewhere: dict[str, Tensor]
    controls: frozenset[str]
    dropped: dict[str, int]
    duplicates: int

    @classmethod
    def split(cls, images: Tensor, ood: Mapping[str, Tensor], controls: bool, seed: int) -> "Sets":
        """In-distribution `images` by their content as 2 : 1 : 1. Raises InputError for too few."""
        (fit, held_out, test), duplicates = split_by_content(images, SHARES, seed)
        if len(held_out) < FEWEST:
            raise InputError(
                f"{len(images)} in-distribution images are too few: expected at least {4 * FEWEST} distinct ones"
            )
        pairs = {name: without(pictures, [images], name) for name, pictures in ood.items()}
        made = {f"control: {name}": rows for name, rows in control_images(test, seed).items()} if controls else {}
        elsewhere = {name: pictures for name, (pictures, _) in pairs.items()} | made
        dropped = {name: count for name, (_, count) in pairs.items()}
        return cls(fit, held_out, test, elsewhere, frozenset(made), dropped, duplicates)

    @property
    def examined(self) -> dict[str, Tensor]:
        """Every set that is scored, the in-distribution test images first."""
        return {INSIDE: self.test, **self.elsewhere}


def probe_ood(
    model: Autoencoder,
    images: Tensor,
    ood: Mapping[str, Tensor],
    *,
    controls: bool = True,
    acceptance: float = 0.95,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    **settings: Any,
) -> OODResult:
    """Fit a detector on a part of `images` and compare every score on another part with sets from elsewhere.

    `images` `(n, *image_shape)`: in-distribution, split by content into fit, held-out and test images as 2 : 1 : 1.
    `ood`: sets `(m, *image_shape)` by name; images that are also in-distribution are dropped with a warning.
    `controls`: add those of `control_images`, made of the test images.
    `settings`: of `TrajectorySettings`. No set of `ood` decides
    anything (Fumero et al., ICLR 2026, fig. 5, 10, tab. 1 for the protocol). Raises InputError for too few images.
    """
    sets = Sets.split(images, ood, controls, seed)
    detector = fitted(model, sets, acceptance, settings)
    found = {name: detector.examine(pictures) for name, pictures in sets.examined.items()}
    return compare_scores(detector, sets, found, bootstrap, seed)


def fitted(model: Autoencoder, sets: Sets, acceptance: float, settings: Mapping[str, Any]) -> TrajectoryDetector:
    """The detector that the in-distribution images decide."""
    return TrajectoryDetector(model, acceptance=acceptance, **settings).fit(sets.fit, sets.held_out)


def compare_scores(
    detector: TrajectoryDetector,
    sets: Sets,
    found: Mapping[str, tuple[Scores, np.ndarray]],
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> OODResult:
    """Every score on every set from elsewhere; `found`: what the detector's `examine` gave for each set."""
    facts = {
        name: {
            **_about(status, detector, scores),
            **({"control": name in sets.controls, "dropped": sets.dropped.get(name, 0)} if name != INSIDE else {}),
        }
        for name, (scores, status) in found.items()
    }
    scores = {name: of for name, (of, _) in found.items()}
    inside, outside = scores[INSIDE], {name: scores[name] for name in sets.elsewhere}
    table = [
        {
            "name": name,
            "group": group_of(name),
            "sets": {
                key: ood_metrics(inside[name], of[name], bootstrap=bootstrap, seed=seed) for key, of in outside.items()
            },
        }
        for name in inside
        if name != detector.settings.aggregate  # listed as "trajectory"
    ]
    split = {"fit": len(sets.fit), "held_out": len(sets.held_out), "test": len(sets.test)}
    return OODResult(
        detector,
        {
            "convention": CONVENTION,
            "split": {**split, "duplicates_dropped": sets.duplicates},
            "sets": facts,
            "detector": detector.describe(),
            "distances_to": describe_reference(detector.describe()["reference"]),
            "bootstrap": bootstrap,
            "groups": GROUPS,
            "scores": sorted(table, key=_place),
            "histograms": {
                name: _histogram({key: of[name] for key, of in scores.items()}) for name in SHOWN if name in inside
            },
        },
    ).about(detector.model)


GROUPS = {
    "trajectory": "the published score",
    "part": "parts of it, each alone",
    "baseline": "baselines on the same features",
    "two-sided": "distance from what is usual, on either side",
    "profile": "one-class models of the trajectory profile, alone and joined with baselines",
}


def group_of(name: str) -> str:
    """The group of a score: a key of `GROUPS`."""
    if name == "trajectory":
        return name
    if name in PARTS:
        return "part"
    if name.startswith("two-sided"):
        return "two-sided"
    return "profile" if name.startswith(("profile", "joined")) else "baseline"


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    """Groups in their order, and the first-point distance at the head of the parts."""
    return list(GROUPS).index(row["group"]), PARTS.index(row["name"]) if row["name"] in PARTS else 0


def describe_reference(facts: Mapping[str, Any]) -> str:
    """In one line what the distances are taken to."""
    return (
        f"{facts['points']} {facts['kind']}: {100 * facts['converged_share']:.0f}% of {facts['images']} fit "
        f"images converged, {100 * facts['in_an_attractor_share']:.0f}% in an "
        f"attractor, {facts['distinct_ends']} distinct ends"
    )


def _about(status: np.ndarray, detector: TrajectoryDetector, scores: Scores) -> dict[str, Any]:
    """How many images, how their orbits ended, and how many the detector accepts."""
    counts = {kind.name.lower(): int((status == kind).sum()) for kind in Status}
    accepted = float((scores[detector.rule] <= detector.threshold()).mean())
    return {"images": len(status), "status": counts, "diverged": counts["diverged"], "accepted_share": accepted}


def _histogram(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Counts over common bins between the 1st and 99th percentile of all; what lies beyond counts in the end bins."""
    every = np.concatenate(list(scores.values()))
    bounded = every[every < LARGEST]  # orbits that diverged count in the last bin
    low, high = np.quantile(bounded, [0.01, 0.99]) if len(bounded) else (0.0, 1.0)
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64).numpy() * (high - low) + low
    counts = {name: np.histogram(values.clip(low, high), edges)[0].tolist() for name, values in scores.items()}
    return {"edges": edges.tolist(), "counts": counts}
