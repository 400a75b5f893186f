"""TrajectoryDetector: fit on in-distribution images, score new ones, accept or reject them, save and load."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmprobe.artefacts import Artefact
from fmprobe.autoencoder import Autoencoder
from fmprobe.cards import Card
from fmprobe.digests import digest
from fmprobe.errors import InputError
from fmprobe.hub import canonical
from fmprobe.inputs import ImagesLike
from fmprobe.probes.ood import artefact
from fmprobe.probes.ood.calibration import Calibration, check_acceptance, check_enough
from fmprobe.probes.ood.features import feature_vectors
from fmprobe.probes.ood.plain import PlainScores, encoded
from fmprobe.probes.ood.score import LARGEST, Bank, Needs, Scores
from fmprobe.probes.ood.split import check_classes, content_hashes, labels_by_content, pixels_of, split_by_content
from fmprobe.probes.ood.table import BY_NAME, OFFERED, joined_of
from fmprobe.probes.ood.trajectory import Reference, TrajectorySettings, find_reference
from fmprobe.probes.ood.views import PytorchOOD

AUTO = "auto"  # the rule that is chosen by what it costs
ACCEPTANCE = 0.95
STOPPING_RULE = ("tol", "measure", "max_steps")
FEWEST = 2  # fit images


class TrajectoryDetector(Artefact):
    """Out-of-distribution detection by latent trajectories (Fumero et al., ICLR 2026, sec. 4, fig. 5 and 10, tab. 1).

    The published score of an image x is the mean Euclidean distance from each point of its trajectory to the nearest
    attractor of the fit images. The trajectory starts at z_0 = E(x) and iterates f(z) = E(D(z)). `score` gives this
    score, `scores` gives every other score beside it.

    `predict` accepts or rejects. It needs held-out images: in-distribution images that were not fitted on. The score
    "joined" is a one-class model of the published score and of baselines. "features" is the same without what follows
    orbits. It takes one encoding and one decoding of an image; recipes/README.md compares the two.

    Args:
        model: An autoencoder, as `fmprobe.load` gives it.
        rule: The score by which `predict` decides. "auto" is "features" where the model takes pictures in
            [0, 1], else "joined".
        acceptance: The share of in-distribution images that `predict` accepts.
        **settings: Fields of `TrajectorySettings`. By default orbits end as the paper's protocol for the kind of model
            has it (`fmprobe.dynamics.protocols`).

    Attributes:
        rule: The score by which `predict` decides; never "auto".
        acceptance: As given.
        settings: The `TrajectorySettings`.
        calibration: What was learned from held-out images; None without them.

    Raises:
        InputError: The model is no autoencoder, or a setting, the rule or the acceptance is not allowed.
    """

    def __init__(
        self, model: Autoencoder, *, rule: str = AUTO, acceptance: float = ACCEPTANCE, **settings: Any
    ) -> None:
        if not isinstance(model, Autoencoder):
            raise InputError(
                f"a detector is of a model: expected what fmprobe.load gives, got a {type(model).__name__}"
            )
        check_acceptance(acceptance)
        if not isinstance(rule, str) or rule not in (AUTO, *OFFERED):
            raise InputError(f"unknown score {rule!r}: expected {AUTO} or one of {', '.join(OFFERED)}")
        stopping = model.protocol.chosen(*(settings.get(name) for name in STOPPING_RULE))
        try:
            self.settings = TrajectorySettings(**{**settings, **stopping})
        except TypeError as error:
            known = ", ".join(TrajectorySettings.__dataclass_fields__)
            raise InputError(f"{str(error).split('__init__() ')[-1]}: expected settings among {known}") from error
        self.model = model
        self._asked_rule, self.acceptance = rule, acceptance
        self._reference: Reference | None = None
        self.calibration: Calibration | None = None
        self._seen: frozenset[str] = frozenset()  # digests of the fit images
        self._sources: list[str] = []  # that images were read from, by name

    @property
    def rule(self) -> str:
        return self.rule_of(self._asked_rule)

    def rule_of(self, asked: str | None) -> str:
        """The name of the rule that somebody asks for: None is the detector's, and "auto" follows the model."""
        if asked == AUTO:
            return "features" if self._takes_pictures else "joined"
        return asked or self.rule

    @property
    def _takes_pictures(self) -> bool:
        """Whether images are pictures, with values in [0, 1], so that statistics of pixels mean something."""
        return len(self.model.image_shape) == 3 and not self.model.any_range

    def cost(self, rule: str | None = None) -> str:
        """What a score of an image takes, in words, by default of the one that decides: encodings, and steps of f.

        Raises:
            InputError: The detector is not fitted, or the score is unknown or not offered.
        """
        needs = {BY_NAME[part].needs for part in self._made_of(self.rule_of(rule))}
        said = ["one encoding"]
        if Needs.DECODED in needs:
            said.append("one decoding")
        if Needs.ORBIT in needs:
            said.append(f"at most {self.settings.horizon} steps of f")
        return " and ".join(said)

    def __repr__(self) -> str:
        lines = [
            f"TrajectoryDetector of {self.model.short_name}: decides by {self.rule!r}, accepts {self.acceptance:.0%}"
        ]
        if self._reference is None:
            return f"{lines[0]}; not fitted"
        facts = self._reference.facts
        lines.append(f"  {facts['images']} fit images, distances to {facts['points']} {facts['kind']}")
        if self.calibration is None:
            return "\n".join([*lines, "  no held-out images: it gives scores, and accepts or rejects nothing"])
        low, high = (promised := self.calibration.acceptance(self.acceptance)).interval
        said = f"{promised.expected:.1%} are accepted ({low:.1%} to {high:.1%})"
        return "\n".join([*lines, f"  an image takes {self.cost()}", f"  {self.calibration.n} held-out images: {said}"])

    def fit(
        self,
        images: ImagesLike,
        held_out: ImagesLike | float | None = None,
        *,
        labels: Sequence[int] | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> "TrajectoryDetector":
        """Find the attractors of in-distribution images, and keep the images' features.

        Fit images whose latents are not finite are left out with a warning.

        Args:
            images: In-distribution images `(n, *image_shape)`, floats in [0, 1] or bytes; or anything else that
                `Autoencoder.take_images` takes, such as a DataLoader, of which only the latents are kept.
            held_out: Further in-distribution images for `calibrate`; or the share of `images`, between 0 and 1, that
                is held out and not fitted on, by the content of the images.
            labels: The class of each of `images`, in their order; with them there are scores that compare with the
                classes. None for no classes.
            seed: Random seed of that split.
            progress: Whether to show a progress bar; None shows one on a terminal, and lines elsewhere.

        Raises:
            InputError: There are fewer than 2 different fit images, or 16 held-out ones, or all orbits diverge; or
                there is not one label, a whole number, for each image, or the fit images have a single class, or fewer
                than two images a class. The detector is then as it was before.
        """
        classes: dict[str, int] | None = None
        held_out = float(held_out) if isinstance(held_out, np.floating) else held_out
        sources = [canonical(str(given)) for given in (images, held_out) if isinstance(given, str | Path)]
        if labels is not None:
            images = self.model.take_images(images, "fit images")
            classes = labels_by_content(labels, images)
        if isinstance(held_out, float | int):
            check_acceptance(held_out, "held_out")
            images = self.model.take_images(images, "fit images")
            (images, held_out), _ = split_by_content(images, (1 - held_out, held_out), seed)
        elif held_out is not None:
            held_out = self.model.take_images(held_out, "held-out images")
        content, blocks = [], []
        for block in self.model.image_batches(images, "fit images", block=self.settings.batch_size):
            content += content_hashes(block)
            blocks.append(encoded(self.model, block))
        if len(set(content)) < FEWEST:
            raise InputError(
                f"cannot fit a detector on {len(content)} images, {len(set(content))} of them different: expected at "
                f"least {FEWEST}"
            )
        latents, kept = self._finite(torch.cat(blocks))
        reference = find_reference(self.model.latent_map, latents, self.settings, progress)
        reference.facts["not_finite"] = len(content) - len(latents)
        reference.facts["pixels"] = digest(content)
        known = None
        if classes is not None:
            check_classes(known := np.array([classes[name] for name in content])[kept])
            reference.facts["labels"] = digest([classes[name] for name in content])
        before = dict(vars(self))
        self._take(reference, feature_vectors(latents, len(latents)), known)
        self.calibration, self._seen, self._sources = None, frozenset(content), list(dict.fromkeys(sources))
        try:
            return self if held_out is None else self.calibrate(held_out)
        except BaseException:  # the detector is then as it was, and not fitted by half
            vars(self).update(before)
            raise

    def calibrate(self, held_out: ImagesLike) -> "TrajectoryDetector":
        """Learn from held-out images which scores are usual: two-sided and one-class scores, and all thresholds.

        Held-out images that are also fit images are left out with a warning, and so are duplicates.

        Args:
            held_out: In-distribution images `(h, *image_shape)` that were not fitted on.

        Raises:
            InputError: There are fewer than 16 images that are left.
        """
        self._fitted()
        held_out = self._fresh(self.model.take_images(held_out, "held-out images"))
        check_enough(len(held_out))
        scores = self._plain(held_out, self._plain.names)[0]
        if lost := int((scores["latent norm"] >= LARGEST).sum()):
            said = f"{lost} of {len(held_out)} held-out images have latents that are not finite and count as rejected"
            warnings.warn(said, stacklevel=2)
        self.calibration = Calibration(scores, joined_of(self._plain.names, self._plain.bank))
        self._fitted().facts["held_out_pixels"] = pixels_of(held_out)
        return self

    def score(self, images: ImagesLike) -> Tensor:
        """The score "trajectory": the published one, unless the setting `aggregate` names another statistic.

        Args:
            images: Images `(N, *image_shape)`, floats in [0, 1] or bytes; or anything else that
                `Autoencoder.take_images` takes.

        Returns:
            Float32 `(N,)` on the CPU, low for images like the fit images; the largest float32 where an orbit diverged.

        Raises:
            InputError: The detector is not fitted.
        """
        self._fitted()
        if isinstance(images, Tensor) and not len(images):
            self.model.check_images(images)
            return torch.empty(0)
        return torch.from_numpy(self._plain(images, (self.settings.aggregate,))[0][self.settings.aggregate]).float()

    def scores(self, images: ImagesLike) -> dict[str, Tensor]:
        """Every score by name, float32 `(N,)` on the CPU.

        "trajectory" equals `score`. The others are its parts, the baselines, and, after `calibrate`, two-sided and
        one-class scores. A low score does not always mean in-distribution: it means that the image resembles the
        in-distribution images in what the score measures. Where one score is enough, `score_samples` takes less time.
        """
        return {name: torch.from_numpy(values).float() for name, values in self.examine(images)[0].items()}

    def predict(
        self,
        images: ImagesLike,
        *,
        acceptance: float | None = None,
        rule: str | None = None,
        sklearn_labels: bool = False,
    ) -> Tensor:
        """Accept or reject images by a threshold that accepts a given share of in-distribution images.

        Only the score that decides is computed.

        Args:
            images: Images `(N, *image_shape)`, or anything else that `Autoencoder.take_images` takes.
            acceptance: That share; None for the detector's.
            rule: Which of `scores` decides; None for the detector's.
            sklearn_labels: Whether to answer as scikit-learn's outlier detectors do: 1 inside and -1 outside.

        Returns:
            Bool `(N,)`, True for images that are accepted as in-distribution; int64 with `sklearn_labels`.

        Raises:
            InputError: No held-out images were given, or the score is unknown.
        """
        threshold = self.threshold(acceptance, rule)
        accepted = torch.from_numpy(self._of_rule(images, rule) <= threshold)
        return torch.where(accepted, 1, -1) if sklearn_labels else accepted

    def score_samples(self, images: ImagesLike, *, rule: str | None = None) -> np.ndarray:
        """The score that decides, with the sign of scikit-learn: high for images like the in-distribution images.

        Only this score is computed.

        Args:
            images: Images `(N, *image_shape)`, or anything else that `Autoencoder.take_images` takes.
            rule: Which of `scores`; None for the detector's.

        Returns:
            The negative score, float64 `(N,)`.

        Raises:
            InputError: The score is unknown, or is learned from held-out images that were not given.
        """
        return -self._of_rule(images, rule)

    def decision_function(
        self, images: ImagesLike, *, acceptance: float | None = None, rule: str | None = None
    ) -> np.ndarray:
        """How far the score lies below the threshold, with the same arguments as `predict`.

        Returns:
            Float64 `(N,)`: not negative for images that `predict` accepts, negative for those that it rejects.

        Raises:
            InputError: No held-out images were given, or the score is unknown.
        """
        threshold = self.threshold(acceptance, rule)
        return threshold - self._of_rule(images, rule)

    def p_values(self, images: ImagesLike, *, rule: str | None = None) -> np.ndarray:
        """How usual each image is: the conformal p-value of its score among those of the held-out images.

        Args:
            images: Images `(N, *image_shape)`, or anything else that `Autoencoder.take_images` takes.
            rule: Which of `scores`; None for the detector's.

        Returns:
            Float64 `(N,)`. Of new in-distribution images a share of at most p has a value of at most p.

        Raises:
            InputError: No held-out images were given, or the score is unknown.
        """
        return self._calibrated().p_values(self._name(rule), self._of_rule(images, rule))

    def explain(self, images: ImagesLike, rule: str | None = None) -> list[dict[str, float]]:
        """Why a score is what it is: how far each part of it lies from what is usual, for each image.

        Args:
            images: Images `(N, *image_shape)`, or anything else that `Autoencoder.take_images` takes.
            rule: Which of `scores`; None for the detector's.

        Returns:
            Of each image the parts by name, the farthest first: distance from the median of the held-out images, in
            deviations that are scaled from their quartiles. Most parts are taken by their logarithm.

        Raises:
            InputError: No held-out images were given, or the score is unknown.
        """
        calibration, name = self._calibrated(), self._name(rule)
        found = calibration.deviations(name, self._plain(images, calibration.made_of(name))[0])
        rows = (
            {part: float(values[i]) for part, values in found.items()} for i in range(len(next(iter(found.values()))))
        )
        return [dict(sorted(row.items(), key=lambda item: -abs(item[1]))) for row in rows]

    def held_out_scores(self, rule: str | None = None) -> np.ndarray:
        """The score of each held-out image, float64 `(h,)`. Raises InputError without held-out images."""
        return self._calibrated().held_out_scores(self._name(rule))

    def threshold(self, acceptance: float | None = None, rule: str | None = None) -> float:
        """The highest score that `predict` accepts, with the same arguments and errors."""
        asked = self.acceptance if acceptance is None else acceptance
        return self._calibrated().threshold(self._name(rule), asked)

    @property
    def offered(self) -> tuple[str, ...]:
        """The names of the scores that there are, in the order of tables.

        A score that did not exist when the detector was calibrated is not among them.
        """
        self._fitted()
        known = ("trajectory", *(self.calibration.names if self.calibration else self._plain.names))
        return tuple(name for name in OFFERED if name in known)

    def examine(self, images: ImagesLike, names: Sequence[str] | None = None) -> tuple[Scores, np.ndarray]:
        """Scores by name, float64 `(N,)`, and the `Status` of each orbit, int64 `(N,)`.

        Args:
            images: Images `(N, *image_shape)`, or anything else that `Autoencoder.take_images` takes.
            names: Which of `offered`; None for all. Only these are computed, and their orbits have a status where one
                of these needs them, else the status is empty.

        Raises:
            InputError: A score is unknown, or is learned from held-out images that were not given.
        """
        self._fitted()
        asked = self.offered if names is None else names
        parts = dict.fromkeys(part for name in asked for part in self._made_of(name))
        plain, status = self._plain(images, tuple(parts))
        return {name: self._score_of(name, plain) for name in asked}, status

    def follows_orbits(self, rule: str | None = None) -> bool:
        """Whether a score, by default the one that decides, needs the trajectories."""
        return any(BY_NAME[part].needs is Needs.ORBIT for part in self._made_of(self.rule_of(rule)))

    def shift(self, images: ImagesLike) -> float:
        """How far the mean features of images lie from those of the fit images, in root mean square deviations.

        The features are those of the smallest kind. What finite numbers of images add to the squared distance is
        subtracted, so that other images of the fit images' source have a shift near 0.

        Args:
            images: Two images or more, `(N, *image_shape)` or anything else that `Autoencoder.take_images` takes.

        Returns:
            The distance over the fit images' root mean square distance from their mean; infinite where that is 0.

        Raises:
            InputError: The detector is not fitted, or there are fewer than two images.
        """
        n_fit, kind = self._fitted().facts["images"], self._plain.bank.smallest
        blocks = self.model.image_batches(images, block=self.settings.batch_size)
        parts = [feature_vectors(encoded(self.model, block), n_fit)[kind] for block in blocks]
        if sum(map(len, parts)) < FEWEST:
            raise InputError(f"the shift of {sum(map(len, parts))} images is not known: expected at least {FEWEST}")
        known, rows = self._plain.bank.features[kind].astype(np.float64), np.concatenate(parts).astype(np.float64)
        within = known.var(0, ddof=1).sum()
        by_chance = within / len(known) + rows.var(0, ddof=1).sum() / len(rows)
        apart = max(float(np.square(known.mean(0) - rows.mean(0)).sum() - by_chance), 0.0)
        return math.sqrt(apart / within) if within else math.inf if apart else 0.0

    def as_pytorch_ood(self, rule: str | None = None) -> PytorchOOD:
        """This detector with the methods of pytorch-ood: `fit(loader)`, and `predict(x)`, which gives scores.

        Args:
            rule: Which of `scores`; by default the one that decides, or "trajectory" without held-out images.

        Raises:
            InputError: The score is unknown.
        """
        rule = self.rule_of(rule) if rule or self.calibration else "trajectory"
        if rule not in OFFERED:
            raise InputError(f"unknown score {rule!r}: expected one of {', '.join(OFFERED)}")
        return PytorchOOD(self, rule)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of this detector by name, as scikit-learn asks for them."""
        return {"model": self.model, "rule": self._asked_rule, "acceptance": self.acceptance, **asdict(self.settings)}

    def set_params(self, **params: Any) -> "TrajectoryDetector":
        """Change arguments by name; what was fitted is forgotten, unless only the rule or the acceptance changes.

        Raises:
            InputError: An argument is unknown, or its value makes no sense.
        """
        known = self.get_params()
        if unknown := params.keys() - known.keys():
            raise InputError(f"unknown parameter {min(unknown)!r}: expected one of {', '.join(known)}")
        if params.keys() <= {"rule", "acceptance"}:
            checked = type(self)(**{**known, **params})
            self._asked_rule, self.acceptance = checked._asked_rule, checked.acceptance
        else:
            self.__init__(**{**known, **params})
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        tags = InputTags(two_d_array=False, three_d_array=True)
        return Tags(estimator_type="outlier_detector", target_tags=TargetTags(required=False), input_tags=tags)

    def __sklearn_is_fitted__(self) -> bool:
        return self._reference is not None

    def __sklearn_clone__(self) -> "TrajectoryDetector":
        """A detector with the same arguments that is not fitted; it shares the model."""
        return type(self)(**self.get_params())

    def save(self, folder: str | Path) -> None:
        """Write the detector, and its model's surrogate decoder if it has one, into a folder.

        Raises:
            InputError: The detector is not fitted, or the folder cannot be written.
        """
        described = self.describe()
        facts: dict[str, Any] = {key: described[key] for key in ("settings", "reference", "decision")}
        facts["sources"] = self._sources
        facts["joined"] = list(self.calibration.joined) if self.calibration else []
        facts["earlier"] = self.calibration is not None and self.calibration.earlier
        reference = self._fitted()
        arrays = {"reference": reference.points.cpu().numpy(), "deviation": reference.deviation.cpu().numpy()}
        if self._seen:
            arrays["seen"] = np.array([[*bytes.fromhex(name)] for name in sorted(self._seen)], dtype=np.uint8)
        arrays |= {f"bank.{kind}": rows for kind, rows in self._plain.bank.features.items()}
        if self._plain.bank.labels is not None:
            arrays["labels"] = self._plain.bank.labels
        if self.calibration is not None:
            arrays |= {f"held_out.{name}": values for name, values in self.calibration.held_out.items()}
        artefact.save(Path(folder), self.model, facts, arrays)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def card_of(cls, folder: Path) -> Card:
        """What the card says of a saved detector."""
        return artefact.card(folder)

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
            reference = Reference(points, deviation, facts["reference"])
            detector._take(reference, saved.under("bank."), saved.arrays.get("labels"))
            # A detector that was saved by an earlier version does not know its fit images.
            detector._seen = frozenset(bytes(row).hex() for row in saved.arrays.get("seen", ()))
            detector._sources = list(facts.get("sources") or ())
            held_out = saved.under("held_out.")
            earlier = bool(facts.get("earlier", True))  # an earlier version did not say so
            detector.calibration = Calibration(held_out, tuple(facts["joined"]), earlier) if held_out else None
        return detector

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts: the settings and the protocol's name, what distances are taken to, and what decides."""
        facts = dict(self._fitted().facts)
        calibrated = self.calibration.n if self.calibration else 0
        decision = {"rule": self.rule, "acceptance": self.acceptance, "held_out": calibrated}
        if self.calibration:
            promised = self.calibration.acceptance(self.acceptance)
            decision |= {"threshold": self.threshold(), "expected": promised.expected, "interval": promised.interval}
            decision["cost"] = self.cost()
        stopping = {name: getattr(self.settings, name) for name in STOPPING_RULE}
        protocol = self.model.protocol.named(**stopping)
        return {"settings": asdict(self.settings), "protocol": protocol, "reference": facts, "decision": decision}

    def _take(self, reference: Reference, features: dict[str, np.ndarray], labels: np.ndarray | None) -> None:
        """Take over what was found in the fit images. A score is fitted to them when it is first computed."""
        bank = Bank(features, labels, self._takes_pictures)
        self._reference, self._plain = reference, PlainScores(self.model, self.settings, reference, bank)

    def _fitted(self) -> Reference:
        """What distances are taken to. Raises InputError before `fit`."""
        if self._reference is None:
            raise InputError("this detector knows no in-distribution images yet: call fit(images) first")
        return self._reference

    def _calibrated(self) -> Calibration:
        """What was learned from held-out images. Raises InputError without them."""
        self._fitted()
        if self.calibration is None:
            raise InputError(
                "no threshold without held-out in-distribution images: calibrate(images), or fit(images, "
                "held_out=0.25), which holds out a quarter of them"
            )
        return self.calibration

    def _fresh(self, held_out: Tensor) -> Tensor:
        """The held-out images that are no fit images, each of them once."""
        first: dict[str, int] = {}
        for i, name in enumerate(content_hashes(held_out)):
            first.setdefault(name, i)
        for said, lost in (
            ("also fit images", len(first.keys() & self._seen)),
            ("duplicates", len(held_out) - len(first)),
        ):
            if lost:
                warnings.warn(f"{lost} held-out images are {said} and were left out", stacklevel=3)
        fresh = [i for name, i in first.items() if name not in self._seen]
        if len(held_out) and not fresh:
            raise InputError(f"all {len(held_out)} held-out images are also fit images: pass others")
        return held_out[fresh]

    def _name(self, rule: str | None) -> str:
        """The name of a score, or of the one that decides; "trajectory" is a name of the aggregate."""
        name = self.rule_of(rule)
        return self.settings.aggregate if name == "trajectory" else name

    def _of_rule(self, images: ImagesLike, rule: str | None) -> np.ndarray:
        """The score `(N,)` by which a rule decides."""
        name = self.rule_of(rule)
        return self.examine(images, (name,))[0][name]

    def _made_of(self, rule: str) -> tuple[str, ...]:
        """The scores that are learned from no held-out images and that a score is made of. Raises InputError."""
        name = self._name(rule)
        if self.calibration is not None:
            return self.calibration.made_of(name)
        if name not in self.offered:
            learned = "is learned from held-out images: fit(images, held_out=…)" if name in OFFERED else "is no score"
            said = "needs features or classes that the fit images lack" if name in BY_NAME else learned
            raise InputError(f"{name!r} {said}; without any there are {', '.join(self.offered)}")
        return (name,)

    def _score_of(self, rule: str, plain: Scores) -> np.ndarray:
        """A score `(N,)`, of images whose plain scores are given."""
        name = self._name(rule)
        return plain[name] if self.calibration is None else self.calibration.score(name, plain)

    def _finite(self, latents: Tensor) -> tuple[Tensor, np.ndarray]:
        """The latents of fit images that are finite, and which these are. Raises InputError for fewer than two."""
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
        return latents[whole], whole.cpu().numpy()
