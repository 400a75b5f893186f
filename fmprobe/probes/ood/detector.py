"""TrajectoryDetector: fit on in-distribution images, score new ones, accept or reject them, save and load."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.probes.ood import artefact
from fmprobe.probes.ood.calibration import Calibration, check_acceptance
from fmprobe.probes.ood.features import feature_vectors
from fmprobe.probes.ood.score import LARGEST, Bank, Encoded, Needs, Scores
from fmprobe.probes.ood.split import content_hashes, pixels_of
from fmprobe.probes.ood.table import BY_NAME, OFFERED, SCORES, joined_of
from fmprobe.probes.ood.trajectory import Nearest, Reference, TrajectorySettings, find_reference, follow

RULE = "joined"  # the score that accepts and rejects, unless another is named
ACCEPTANCE = 0.95
STOPPING_RULE = ("tol", "measure", "max_steps")
FEWEST = 2  # fit images


class TrajectoryDetector:
    """Out-of-distribution detection by latent trajectories (Fumero et al., ICLR 2026, sec. 4, fig. 5 and 10, tab. 1).

    The published score of an image x is the mean Euclidean distance from each point of its trajectory to the nearest
    attractor of the fit images. The trajectory starts at z_0 = E(x) and iterates f(z) = E(D(z)). `score` gives this
    score, `scores` gives every other score beside it.

    `predict` accepts or rejects. It needs held-out images: in-distribution images that were not fitted on. Its default
    score, "joined", is a one-class model of statistics of the trajectory (the profile), joined with baselines.

    Args:
        model: An autoencoder, as `fmprobe.load` gives it.
        rule: The score by which `predict` decides.
        acceptance: The share of in-distribution images that `predict` accepts.
        **settings: Fields of `TrajectorySettings`. By default orbits end as the paper's protocol for the kind of model
            has it (`fmprobe.dynamics.protocols`).

    Attributes:
        rule: As given.
        acceptance: As given.
        settings: The `TrajectorySettings`.
        calibration: What was learned from held-out images; None without them.

    Raises:
        InputError: The model is no autoencoder, or a setting, the rule or the acceptance is not allowed.
    """

    def __init__(
        self, model: Autoencoder, *, rule: str = RULE, acceptance: float = ACCEPTANCE, **settings: Any
    ) -> None:
        if not isinstance(model, Autoencoder):
            raise InputError(
                f"a detector is of a model: expected what fmprobe.load gives, got a {type(model).__name__}"
            )
        check_acceptance(acceptance)
        if not isinstance(rule, str) or rule not in OFFERED:
            raise InputError(f"unknown score {rule!r}: expected one of {', '.join(OFFERED)}")
        stopping = model.protocol.chosen(*(settings.get(name) for name in STOPPING_RULE))
        try:
            self.settings = TrajectorySettings(**{**settings, **stopping})
        except TypeError as error:
            known = ", ".join(TrajectorySettings.__dataclass_fields__)
            raise InputError(f"{str(error).split('__init__() ')[-1]}: expected settings among {known}") from error
        self.model = model
        self.rule, self.acceptance = rule, acceptance
        self._reference: Reference | None = None
        self.calibration: Calibration | None = None

    def fit(
        self, images: Tensor, held_out: Tensor | None = None, *, progress: bool | None = None
    ) -> "TrajectoryDetector":
        """Find the attractors of in-distribution images, and keep the images' features.

        Fit images whose latents are not finite are left out with a warning, and so are held-out images that are also
        fit images.

        Args:
            images: In-distribution images `(n, *image_shape)`, floats in [0, 1] or bytes.
            held_out: Further in-distribution images for `calibrate`.
            progress: Whether to show a progress bar; None shows one on a terminal.

        Raises:
            InputError: There are fewer than 2 fit images, all held-out images are fit images, or all orbits diverge.
        """
        self._check(images, "fit images")
        if held_out is not None:
            self._check(held_out, "held-out images")
        if len(images) < FEWEST:
            raise InputError(f"cannot fit a detector on {len(images)} images: expected at least {FEWEST}")
        latents = torch.cat([self._encode(block) for block in images.split(self.settings.batch_size)])
        latents = self._finite(latents)
        reference = find_reference(self.model.latent_map, latents, self.settings, progress)
        reference.facts["not_finite"] = len(images) - len(latents)
        reference.facts["pixels"] = pixels_of(images)
        self._take(reference, feature_vectors(latents, len(latents)))
        self.calibration = None
        if held_out is not None:
            seen = set(content_hashes(images))
            fresh = [i for i, name in enumerate(content_hashes(held_out)) if name not in seen]
            if not fresh:
                raise InputError(f"all {len(held_out)} held-out images are also fit images: pass others")
            if len(fresh) < len(held_out):
                dropped = len(held_out) - len(fresh)
                warnings.warn(f"{dropped} held-out images are also fit images and were left out", stacklevel=2)
            self.calibrate(held_out[fresh])
        return self

    def calibrate(self, held_out: Tensor) -> "TrajectoryDetector":
        """Learn from held-out images which scores are usual: two-sided and one-class scores, and all thresholds.

        Args:
            held_out: In-distribution images `(h, *image_shape)` that were not fitted on.

        Raises:
            InputError: There are fewer than 16 images.
        """
        self._check(held_out, "held-out images")
        scores = self._plain(held_out, self._fitted_scores())[0]
        if lost := int((scores["latent norm"] >= LARGEST).sum()):
            said = f"{lost} of {len(held_out)} held-out images have latents that are not finite and count as rejected"
            warnings.warn(said, stacklevel=2)
        self.calibration = Calibration(scores, joined_of(self._fits, self._bank))
        self._fitted().facts["held_out_pixels"] = pixels_of(held_out)
        return self

    def score(self, images: Tensor) -> Tensor:
        """The score "trajectory": the published one, unless the setting `aggregate` names another statistic.

        Args:
            images: Images `(N, *image_shape)`, floats in [0, 1] or bytes.

        Returns:
            Float32 `(N,)` on the CPU, low for images like the fit images; the largest float32 where an orbit diverged.

        Raises:
            InputError: The detector is not fitted.
        """
        self._fitted()
        self._check(images)
        name = self.settings.aggregate
        if not len(images):
            return torch.empty(0)
        return torch.from_numpy(self._plain(images, {name: self._fits[name]})[0][name]).float()

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """Every score by name, float32 `(N,)` on the CPU.

        "trajectory" equals `score`. The others are its parts, the baselines, and, after `calibrate`, two-sided and
        one-class scores. A low score does not always mean in-distribution: it means that the image resembles the
        in-distribution images in what the score measures.
        """
        return {name: torch.from_numpy(values).float() for name, values in self.examine(images)[0].items()}

    def predict(self, images: Tensor, *, acceptance: float | None = None, rule: str | None = None) -> Tensor:
        """Accept or reject images by a threshold that accepts a given share of in-distribution images.

        Args:
            images: Images `(N, *image_shape)`.
            acceptance: That share; None for the detector's.
            rule: Which of `scores` decides; None for the detector's.

        Returns:
            Bool `(N,)`, True for images that are accepted as in-distribution.

        Raises:
            InputError: No held-out images were given, or the score is unknown.
        """
        threshold = self.threshold(acceptance, rule)
        return torch.from_numpy(self.examine(images)[0][rule or self.rule] <= threshold)

    def threshold(self, acceptance: float | None = None, rule: str | None = None) -> float:
        """The highest score that `predict` accepts, with the same arguments."""
        if self.calibration is None:
            raise InputError(
                "no threshold without held-out in-distribution images: fit(images, held_out=…) or calibrate(…)"
            )
        name = rule or self.rule
        name = self.settings.aggregate if name == "trajectory" else name
        return self.calibration.threshold(name, self.acceptance if acceptance is None else acceptance)

    def examine(self, images: Tensor) -> tuple[Scores, np.ndarray]:
        """Every score by name, float64 `(N,)`, and the `Status` of each orbit, int64 `(N,)`."""
        self._check(images)
        fits = self._fitted_scores()
        if self.calibration is not None:  # a score that did not exist when it was calibrated is not offered
            fits = {name: fit for name, fit in fits.items() if name in self.calibration.held_out}
        plain, status = self._plain(images, fits)
        scores = {"trajectory": plain[self.settings.aggregate], **plain}
        if self.calibration is not None:
            scores |= self.calibration.scores(plain)
        return {name: values for name, values in scores.items() if name in OFFERED}, status

    def save(self, folder: str | Path) -> None:
        """Write the detector, and its model's surrogate decoder if it has one, into a folder.

        Raises:
            InputError: The detector is not fitted, or the folder cannot be written.
        """
        described = self.describe()
        facts: dict[str, Any] = {key: described[key] for key in ("settings", "reference", "decision")}
        facts["joined"] = list(self.calibration.joined) if self.calibration else []
        reference = self._fitted()
        arrays = {"reference": reference.points.cpu().numpy(), "deviation": reference.deviation.cpu().numpy()}
        arrays |= {f"bank.{kind}": rows for kind, rows in self._bank.features.items()}
        if self.calibration is not None:
            arrays |= {f"held_out.{name}": values for name, values in self.calibration.held_out.items()}
        artefact.save(Path(folder), self.model, facts, arrays)

    @classmethod
    def load(cls, folder: str | Path, model: Autoencoder | None = None, *, device: Any = None) -> "TrajectoryDetector":
        """Read what `save` wrote. The models of the baselines and of the profile are fitted again, and are the same.

        Args:
            folder: The folder.
            model: The model that the detector was fitted with; None loads it by its name.
            device: The device of a model that is loaded by its name.

        Raises:
            InputError: The folder is incomplete or damaged, or the detector was fitted with another model.
        """
        saved = artefact.load(Path(folder), model, device)
        with artefact.complete(Path(folder)):
            facts, decision = saved.facts, saved.facts["decision"]
            detector = cls(saved.model, rule=decision["rule"], acceptance=decision["acceptance"], **facts["settings"])
            if not isinstance(facts["reference"]["images"], int):
                raise TypeError(f"{facts['reference']['images']!r} images")
            device = saved.model.device
            points, deviation = (torch.from_numpy(saved.arrays[key]).to(device) for key in ("reference", "deviation"))
            detector._take(Reference(points, deviation, facts["reference"]), saved.under("bank."))
            held_out = saved.under("held_out.")
            detector.calibration = Calibration(held_out, tuple(facts["joined"])) if held_out else None
            detector.describe()  # fails where the facts make no sense
        return detector

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts: the settings and the protocol's name, what distances are taken to, and what decides."""
        facts = dict(self._fitted().facts)
        calibrated = self.calibration.n if self.calibration else 0
        decision = {"rule": self.rule, "acceptance": self.acceptance, "held_out": calibrated}
        if self.calibration:
            decision["threshold"] = self.threshold()
        stopping = {name: getattr(self.settings, name) for name in STOPPING_RULE}
        protocol = self.model.protocol.named(**stopping)
        return {"settings": asdict(self.settings), "protocol": protocol, "reference": facts, "decision": decision}

    def _take(self, reference: Reference, features: dict[str, np.ndarray]) -> None:
        """Take over what was found in the fit images, and fit every score that exists for them."""
        self._reference, self._bank = reference, Bank(features)
        self._nearest = Nearest(reference, self.settings.distance)
        fits = {score.name: score.fit(self._bank) for score in SCORES}
        self._fits = {name: fit for name, fit in fits.items() if fit is not None}

    def _fitted(self) -> Reference:
        """What distances are taken to. Raises InputError before `fit`."""
        if self._reference is None:
            raise InputError("this detector knows no in-distribution images yet: call fit(images) first")
        return self._reference

    def _fitted_scores(self) -> Mapping[str, Any]:
        """What each score that exists for the fit images knows of them, by its name."""
        self._fitted()
        return self._fits

    def _finite(self, latents: Tensor) -> Tensor:
        """The latents of fit images that are finite. Raises InputError where fewer than two are."""
        whole = latents.flatten(1).isfinite().all(1)
        lost = len(latents) - int(whole.sum())
        if lost > len(latents) - FEWEST:
            raise InputError(
                f"{self.model.name} gives latents of {lost} of {len(latents)} fit images that are not finite: try "
                "dtype float32"
            )
        if lost:
            said = f"{lost} of {len(latents)} fit images have latents that are not finite and were left out"
            warnings.warn(said, stacklevel=3)
        return latents[whole]

    def _check(self, images: Tensor, what: str = "images") -> None:
        """Raise InputError for images that the model does not take. Bytes are taken, and scaled block by block."""
        scaled = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim > 0
        self.model.check_images(as_pixels(images[:1]) if scaled else images, what)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Latents z_0 of checked images, in at least float32."""
        latents = self.model.encode_unchecked(as_pixels(images))
        return latents if latents.dtype in (torch.float32, torch.float64) else latents.float()

    def _plain(self, images: Tensor, fits: Mapping[str, Any]) -> tuple[Scores, np.ndarray]:
        """Scores that are not learned from held-out images, and the status of each orbit.

        Args:
            images: Images `(N, *image_shape)`, at least one.
            fits: The scores to compute, by name, with what each knows of the fit images.
        """
        if not len(images):
            raise InputError("there are no images to score: expected at least one")
        size = self.settings.batch_size
        of_orbit = _needing(fits, Needs.ORBIT) | _needing(fits, Needs.FIRST_POINT)
        of_latent = _needing(fits, Needs.LATENT, Needs.DECODED)
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*of_orbit, *of_latent)}
        status = []
        for block in images.split(4 * size):
            latents = []
            for part in block.split(size):
                latents.append(self._encode(part))
                for name, values in self._of_latent(part, latents[-1], of_latent).items():
                    found[name].append(values)
            orbits = follow(self.model.latent_map, torch.cat(latents), self._nearest, self.settings)
            status.append(orbits.status.cpu().numpy())
            for name, fit in of_orbit.items():
                found[name].append(BY_NAME[name](orbits, fit))
        return {name: np.concatenate(values) for name, values in found.items()}, np.concatenate(status)

    @torch.no_grad()
    def _of_latent(self, images: Tensor, latents: Tensor, fits: Mapping[str, Any]) -> Scores:
        """Scores that need no trajectory; the largest float32 where the latent or the score is not finite."""
        if not fits:
            return {}
        finite = latents.flatten(1).isfinite().all(1)
        known = torch.where(finite.reshape(-1, *[1] * (latents.ndim - 1)), latents, 0)  # scikit-learn takes finite rows
        features = feature_vectors(known, self._fitted().facts["images"])
        seen = Encoded(as_pixels(images), known, self.model.decode(known), features)
        return {name: _or_largest(BY_NAME[name](seen, fit), finite.cpu().numpy()) for name, fit in fits.items()}


def _needing(fits: Mapping[str, Any], *needs: Needs) -> dict[str, Any]:
    """The scores that have one of these needs."""
    return {name: fit for name, fit in fits.items() if BY_NAME[name].needs in needs}


def _or_largest(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Scores, but the largest float32 where the latent is not known or the score is not finite."""
    return np.where(known & np.isfinite(values), np.minimum(values, LARGEST), LARGEST)
