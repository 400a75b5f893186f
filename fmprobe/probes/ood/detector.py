"""TrajectoryDetector: fit on in-distribution images, score new ones, accept or reject them, keep it in a folder."""

import warnings
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
from fmprobe.probes.ood.baselines import Baselines, features_of, image_scores
from fmprobe.probes.ood.calibration import INNER, Calibration, Scores
from fmprobe.probes.ood.split import content_hashes, pixels_of
from fmprobe.probes.ood.trajectory import LARGEST, Nearest, Reference, TrajectorySettings, find_reference, follow

RULE = "joined"  # the score that accepts and rejects unless another is named
ACCEPTANCE = 0.95
RULE_OF_STOPPING = ("tol", "measure", "max_steps")
FEWEST = 2  # fit images


class TrajectoryDetector:
    """Out-of-distribution detection by latent trajectories (Fumero et al., ICLR 2026, sec. 4, fig. 5 and 10, tab. 1).

    `score` is the published one: the mean Euclidean distance from each point of the trajectory of f(z) = E(D(z)), z_0 =
    E(x) included, to the nearest attractor of the fit images. `settings`: the fields of `TrajectorySettings`; orbits
    end by default as the paper's protocol for the kind of model has it (`fmprobe.dynamics.protocols`). `scores`
    gives that beside every part of it and every baseline. `predict` needs held-out images. Raises InputError for
    settings that are not known.
    """

    def __init__(
        self, model: Autoencoder, *, rule: str = RULE, acceptance: float = ACCEPTANCE, **settings: Any
    ) -> None:
        if not isinstance(model, Autoencoder):
            raise InputError(
                f"a detector is of a model: expected what fmprobe.load gives, got a {type(model).__name__}"
            )
        stopping = model.protocol.chosen(*(settings.get(name) for name in RULE_OF_STOPPING))
        try:
            self.settings = TrajectorySettings(**{**settings, **stopping})
        except TypeError as error:
            known = ", ".join(TrajectorySettings.__dataclass_fields__)
            raise InputError(f"{str(error).split('__init__() ')[-1]}: expected settings among {known}") from error
        self.model = model
        self.rule, self.acceptance = rule, acceptance
        self._reference: Reference | None = None
        self._baselines: Baselines | None = None
        self.calibration: Calibration | None = None

    def fit(
        self, images: Tensor, held_out: Tensor | None = None, *, progress: bool | None = None
    ) -> "TrajectoryDetector":
        """Find the attractors of in-distribution `images` `(n, *image_shape)`, in [0, 1], and keep their features.

        `held_out`: further in-distribution images, for `calibrate`; those that are also fit images are left out, with a
        warning. So are fit images whose latents are not finite. Raises InputError for fewer than 2 images, where all
        held-out images are fit images, or where all orbits diverge.
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
        self._take(reference, features_of(latents, len(latents)))
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
        """Learn from in-distribution images `(h, *image_shape)` that were not fitted on what is usual.

        Two-sided and profile scores and the thresholds of `predict` come from them. Raises InputError below 16.
        """
        self._check(held_out, "held-out images")
        scores = self._plain(held_out)[0]
        if lost := int((scores["latent norm"] >= LARGEST).sum()):
            said = f"{lost} of {len(held_out)} held-out images have latents that are not finite and count as rejected"
            warnings.warn(said, stacklevel=2)
        self.calibration = Calibration(scores, self._joined())
        self._fitted().facts["held_out_pixels"] = pixels_of(held_out)
        return self

    def score(self, images: Tensor) -> Tensor:
        """The trajectory score of `images` `(N, *image_shape)`: float32 `(N,)` on the CPU, low = in-distribution.

        An orbit that diverged scores the largest float32. Raises InputError before `fit`.
        """
        self._fitted()
        self._check(images)
        parts = [self._trajectories(block)[self.settings.aggregate] for block in self._blocks(images)]
        return torch.cat([torch.from_numpy(part) for part in parts]).float() if parts else torch.empty(0)

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """Every score by name, float32 `(N,)` on the CPU, low = in-distribution.

        "trajectory", the same as `score`; its parts; the baselines; after `calibrate`, two-sided and profile scores.
        """
        return {name: torch.from_numpy(values).float() for name, values in self.examine(images)[0].items()}

    def predict(self, images: Tensor, *, acceptance: float | None = None, rule: str | None = None) -> Tensor:
        """True `(N,)` for images accepted as in-distribution, by the threshold that accepts a share of held-out ones.

        `acceptance`: that share, 0.95 unless set. `rule`: which of `scores` decides, "joined" unless set. Raises
        InputError where no held-out images were given.
        """
        threshold = self.threshold(acceptance, rule)
        return torch.from_numpy(self.examine(images)[0][rule or self.rule] <= threshold)

    def threshold(self, acceptance: float | None = None, rule: str | None = None) -> float:
        """The highest score that `predict` accepts."""
        if self.calibration is None:
            raise InputError(
                "no threshold without held-out in-distribution images: fit(images, held_out=…) or calibrate(…)"
            )
        name = rule or self.rule
        name = self.settings.aggregate if name == "trajectory" else name
        return self.calibration.threshold(name, self.acceptance if acceptance is None else acceptance)

    def examine(self, images: Tensor) -> tuple[Scores, np.ndarray]:
        """Every score by name, float64 `(N,)`, and the `Status` of each orbit."""
        self._check(images)
        plain, status = self._plain(images)
        scores = {"trajectory": plain[self.settings.aggregate], **plain}
        if self.calibration is not None:
            scores |= self.calibration.scores(plain)
        return {name: values for name, values in scores.items() if name not in INNER}, status

    def save(self, folder: str | Path) -> None:
        """Write the detector, and its model's surrogate decoder if it has one, into a folder; safetensors and JSON.

        Raises InputError where the detector is not fitted or the folder cannot be written.
        """
        described = self.describe()
        facts: dict[str, Any] = {key: described[key] for key in ("settings", "reference", "decision")}
        facts["joined"] = list(self.calibration.joined) if self.calibration else []
        reference, banks = self._fitted(), self._fitted_baselines().banks
        arrays = {"reference": reference.points.cpu().numpy(), "deviation": reference.deviation.cpu().numpy()}
        arrays |= {f"bank.{name}": bank for name, bank in banks.items()}
        if self.calibration is not None:
            arrays |= {f"held_out.{name}": values for name, values in self.calibration.held_out.items()}
        artefact.save(Path(folder), self.model, facts, arrays)

    @classmethod
    def load(cls, folder: str | Path, model: Autoencoder | None = None, *, device: Any = None) -> "TrajectoryDetector":
        """Read what `save` wrote; `model`: the one it was fitted with, loaded by its name where None.

        Raises InputError where the folder is incomplete or damaged, or the model is another.
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
            # The models of scikit-learn are fitted again, and alike.
            detector.calibration = Calibration(held_out, tuple(facts["joined"])) if held_out else None
            detector.describe()  # what it holds must make sense
        return detector

    def describe(self) -> dict[str, Any]:
        """JSON-ready: settings, what they call their stopping rule, what the distances are taken to, what decides."""
        facts = dict(self._fitted().facts)
        calibrated = self.calibration.n if self.calibration else 0
        decision = {"rule": self.rule, "acceptance": self.acceptance, "held_out": calibrated}
        if self.calibration:
            decision["threshold"] = self.threshold()
        rule = {name: getattr(self.settings, name) for name in RULE_OF_STOPPING}
        protocol = self.model.protocol.named(**rule)
        return {"settings": asdict(self.settings), "protocol": protocol, "reference": facts, "decision": decision}

    def _take(self, reference: Reference, banks: dict[str, np.ndarray]) -> None:
        self._reference, self._baselines = reference, Baselines(banks)
        self._nearest = Nearest(reference, self.settings.distance)

    def _joined(self) -> tuple[str, ...]:
        """Baselines that join the profile, chosen by what they look at, before any result."""
        small, n = self._fitted_baselines().small, self._fitted().facts["images"]
        k = 10 if n > 10 else 1
        knn = f"knn-{k} {small} normalised"
        return (knn, f"mahalanobis {small}", f"pca residual {small}", "latent norm", "residual", "reconstruction error")

    def _fitted(self) -> Reference:
        if self._reference is None:
            raise InputError("this detector knows no in-distribution images yet: call fit(images) first")
        return self._reference

    def _fitted_baselines(self) -> Baselines:
        self._fitted()
        assert self._baselines is not None
        return self._baselines

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
        """Raise InputError for images that the model does not take; bytes are, and each block is scaled by itself."""
        scaled = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim > 0
        self.model.check_images(as_pixels(images[:1]) if scaled else images, what)

    def _blocks(self, images: Tensor) -> tuple[Tensor, ...]:
        return images.split(4 * self.settings.batch_size) if len(images) else ()

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        latents = self.model.encode_unchecked(as_pixels(images))
        return latents if latents.dtype in (torch.float32, torch.float64) else latents.float()

    def _trajectories(self, images: Tensor, latents: Tensor | None = None) -> Scores:
        if latents is None:
            latents = torch.cat([self._encode(block) for block in images.split(self.settings.batch_size)])
        figures = follow(self.model.latent_map, latents, self._nearest, self.settings)
        return {name: value.numpy() for name, value in figures.items()}

    @torch.no_grad()
    def _plain(self, images: Tensor) -> tuple[Scores, np.ndarray]:
        """Scores that need no held-out images, and the status of each orbit."""
        baselines, n_fit = self._fitted_baselines(), self._fitted().facts["images"]
        found: dict[str, list[np.ndarray]] = {}
        for block in self._blocks(images):
            rows = []
            latents = []
            for part in block.split(self.settings.batch_size):
                z = self._encode(part)
                whole = z.flatten(1).isfinite().all(1)
                known = torch.where(whole.reshape(-1, *[1] * (z.ndim - 1)), z, 0)  # scikit-learn takes finite numbers
                row = image_scores(known, as_pixels(part), self.model.decode(known))
                row |= baselines.scores(features_of(known, n_fit))
                rows.append({name: _or_largest(values, whole.cpu().numpy()) for name, values in row.items()})
                latents.append(z)
            scores = self._trajectories(block, torch.cat(latents))
            scores |= {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
            for name, values in scores.items():
                found.setdefault(name, []).append(values)
        joined = {name: np.concatenate(values) for name, values in found.items()}
        if not joined:
            raise InputError("there are no images to score: expected at least one")
        status = joined.pop("status")
        return joined | {"settled": (status == 0).astype(np.float64)}, status


def _or_largest(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Scores, the largest float32 where the latent or the score is not finite."""
    return np.where(known & np.isfinite(values), np.minimum(values, LARGEST), LARGEST)
