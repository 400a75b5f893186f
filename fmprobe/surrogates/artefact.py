"""A surrogate as an artefact: a folder or hub repository of config.json, model.safetensors, a log and a model card."""

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from fmprobe.artefacts import Artefact, write_card
from fmprobe.autoencoder import Autoencoder
from fmprobe.cards import Base, Card, Licence, Metric
from fmprobe.digests import digest, file_digest
from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.fingerprint import is_of, of_weights
from fmprobe.places import places_in
from fmprobe.surrogates.kinds import KINDS, find_kind

if TYPE_CHECKING:
    from fmprobe.surrogates.features import Features
    from fmprobe.surrogates.settings import Settings

WEIGHTS, CONFIG, LOG = "model.safetensors", "config.json", "log.jsonl"
ARCHITECTURE = 3  # raise it when a module's layout changes, so that older artefacts are refused by name


# The kinds whose classes have a name in `fmprobe` itself.
PUBLIC = ("pixel", "latent")
ABOUT = """{text}

The encoder is `{model}`{revision}, fingerprint `{fingerprint}`, tokens `{tokens}`. The training data are {data}.

{rows}"""
LOADED = """import fmprobe
from {home} import {name}

encoder = {encoder}
decoder = {name}.from_pretrained({{source}}, model=encoder)
model = encoder.with_decoder(decoder)
"""


class Surrogate(nn.Module, Artefact, ABC):
    """Base class of all kinds: what a kind says of itself, how it is fitted and judged, and how it is saved and loaded.

    Attributes:
        kind: Name of the kind in `KINDS`.
        settings_type: Dataclass of the kind's settings.
        info: JSON-ready dict of the encoder, training data, seed, steps, seconds and validation errors.
        latent_shape: Shape of the encoder's latents, without the batch.
        image_shape: Shape of the encoder's images `(C, H, W)`.
    """

    kind: ClassVar[str]
    settings_type: "ClassVar[type[Settings]]"
    info: dict[str, Any]
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, ...]

    # How a kind is fitted and judged.

    @classmethod
    def defaults(cls, device: torch.device) -> dict[str, Any]:
        """Settings whose defaults on a device differ from those of the kind's dataclass."""
        return {}

    @classmethod
    def options(cls) -> set[str]:
        """Names of what a kind takes: its settings, what only training by steps has, and what else it adds."""
        settings = {one.name for one in fields(cls.settings_type)}
        return settings | ({"trackers", "plan"} if "steps" in settings else set())

    @classmethod
    def check(cls, model: Autoencoder, settings: Any) -> None:
        """Raise InputError where the kind cannot be fitted to a model. Called before anything is computed."""

    @classmethod
    @abstractmethod
    def fit(
        cls, model: Autoencoder, settings: Any, features: "Features", held_out: Tensor, **how: Any
    ) -> tuple[Self, list[dict[str, Any]]]:
        """Fit a surrogate.

        Args:
            model: The frozen encoder.
            settings: Settings of the kind's own type.
            features: Training images and the encoder's latents of them.
            held_out: Images that are not trained on, as bytes `(n, C, H, W)`.
            how: `folder`, `progress` and `trackers`, as `training.train` takes them.

        Returns:
            The surrogate on the model's device, without gradients, and the log of its training.
        """

    @abstractmethod
    def errors(self, model: Autoencoder, images: Tensor) -> dict[str, float]:
        """Errors on images `(n, C, H, W)` in `[0, 1]`, by name; "feature_error" is one of them."""

    def put_behind(self, pixel: "Surrogate") -> Self:
        """Put a pixel decoder behind a kind that does not paint. Raises InputError for a kind that paints."""
        raise InputError(f"a {self.kind} surrogate paints images itself: leave the pixel decoder out")

    # What a kind says of itself.

    @abstractmethod
    def attach(self, model: Autoencoder) -> Autoencoder:
        """The autoencoder that the encoder and this surrogate make together."""

    @property
    @abstractmethod
    def space(self) -> str:
        """The latent space in words."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What the provenance says of this kind alone: "architecture", in words, and whatever else it adds."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What the card says of this kind, in Markdown: a title, an empty line, and what it is."""

    def describe(self) -> dict[str, Any]:
        """What goes into the provenance: the latent space, and the surrogate with its errors."""
        decoder = {
            "kind": "surrogate",
            **self.about(),
            "parameters": sum(p.numel() for p in self.parameters()),
            "image_shape": list(self.image_shape),
            **{key: self.info.get(key) for key in ("data", "seed", "steps", "seconds", "validation")},
        }
        return {"space": self.space, "data_free": bool(self.info.get("data_free", False)), "decoder": decoder}

    @property
    def fingerprint(self) -> str:
        """A digest of its kind, weights, statistics and settings at the time of asking, without its history."""
        return digest(self.kind, _without_info(self.config()), of_weights(self))

    # How it is saved and loaded.

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, the log and a model card into `folder`, whole or not at all.

        An earlier surrogate in the folder is replaced.

        Raises:
            InputError: If `folder` holds other things or cannot be written.
        """
        target = Path(folder)
        check_place(target)
        scratch = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            new = scratch / "new"
            new.mkdir()
            self._save_pretrained(new)
            write_card(self.card().render(None, None, Licence(), set(places_in(self.info))), new)
            if target.exists():
                target.rename(scratch / "old")
            new.rename(target)
        except OSError as error:
            raise InputError(f"cannot write the decoder to {target}: {error.strerror or error}") from error
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    @classmethod
    def load(cls, path_or_id: str | Path, model: Autoencoder) -> Self:
        """Load a surrogate of this kind onto `model`'s device. Weights are read from safetensors alone.

        Args:
            path_or_id: A folder that `save` wrote, or a hub id.
            model: The encoder that the surrogate was made for.

        Raises:
            InputError: If it is missing or damaged, is of another kind, or was made for another encoder or shapes.
        """
        folder = _fetch(path_or_id)
        _check_fits(read_config(folder), model, str(path_or_id))
        return cls._read(folder, str(path_or_id)).to(model.device)

    @classmethod
    def _read(cls, folder: Path, name: str) -> Self:
        """Load a surrogate of this kind onto the CPU, whatever its encoder. Raises InputError as `load` does."""
        config = read_config(folder)
        try:
            if config["kind"] != cls.kind:
                raise InputError(f"{name} is a surrogate of kind {config['kind']!r}, expected {cls.kind!r}")
            if config["weights_sha256"] != file_digest(folder / WEIGHTS):
                raise InputError(f"{name} is damaged (its weights have changed): fit the decoder again")
            state = load_file(folder / WEIGHTS)
            with torch.random.fork_rng(devices=[]):  # the initial weights that are replaced draw random numbers
                surrogate = cls(**{k: v for k, v in config.items() if k not in ("weights_sha256", "kind", "version")})
            _check_weights(state, surrogate.state_dict(), name)
            surrogate.load_state_dict(state)
        except InputError:
            raise
        except Exception as error:  # OSError, SafetensorError, RuntimeError of a state dict that does not fit
            raise InputError(f"{name} is damaged ({_first_line(error)}): fit the decoder again") from error
        return surrogate.requires_grad_(False).eval()

    @classmethod
    def _from_folder(cls, folder: Path, *, model: Autoencoder | None = None, **more: Any) -> Self:
        """Load a surrogate of this kind, or of any kind for the base class; with its encoder it is checked to fit."""
        if more:
            raise InputError(f"{min(more)!r} is no argument of loading a surrogate: give model, or leave it out")
        kind = cast(type[Self], find_kind(read_config(folder)["kind"])) if cls is Surrogate else cls
        return kind._read(folder, str(folder)) if model is None else kind.load(folder, model)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_atomically(save_directory / WEIGHTS, lambda path: save_model(self, str(path)))
        # safetensors has no checksum of its own.
        about = {"kind": self.kind, "version": ARCHITECTURE, "weights_sha256": file_digest(save_directory / WEIGHTS)}
        texts = {
            CONFIG: json.dumps({**self.config(), **about}, indent=2, sort_keys=True) + "\n",
            LOG: log_lines(self.info.get("log") or []),
        }
        for name, text in texts.items():
            (save_directory / name).write_text(text, encoding="utf-8")

    @classmethod
    def card_of(cls, folder: Path) -> Card:
        """What the card says of a saved surrogate."""
        return find_kind(read_config(folder)["kind"])._read(folder, str(folder)).card()

    def card(self) -> Card:
        """What the card says of this surrogate."""
        info, validation = self.info, self.info.get("validation") or {}
        base = Base(str(info.get("model")), info.get("revision"))
        title, _, text = self.words.partition("\n\n")
        known = {key: info.get(key) for key in ("fingerprint", "tokens", "data")}
        known["revision"] = f", revision `{base.revision}`" if base.revision else ""
        side = self.image_shape[-1] if len(set(self.image_shape[1:])) == 1 else None
        home = "fmprobe" if self.kind in PUBLIC else type(self).__module__
        return Card(
            title=f"{title} for {base.shown}",
            text=ABOUT.format(text=text.strip(), model=base.shown, **known, rows=_rows(validation)),
            load=LOADED.format(
                home=home, name=type(self).__name__, encoder=base.load(image_size=side, tokens=known["tokens"])
            ),
            tags=("surrogate-decoder", self.kind),
            bases=[base],
            sources=[info.get("source")],
            metrics=[
                Metric(name, row[name], f"{sort.replace('_', ' ')}, {row['images']} images")
                for sort, row in validation.items()
                for name in ("l1", "feature_error")
                if name in row
            ],
        )


def load_surrogate(path_or_id: str | Path, model: Autoencoder) -> Surrogate:
    """Load a surrogate of any kind from a folder or hub id. Raises InputError as `Surrogate.load` does."""
    return find_kind(read_config(_fetch(path_or_id))["kind"]).load(path_or_id, model)


def check_place(folder: Path) -> None:
    """Raise InputError where `folder` holds something that is no surrogate, or cannot be written, before any work."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _holds_surrogate(folder)):
        raise InputError(f"{folder} exists and is not a decoder's folder: choose another one")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise InputError(f"cannot write the decoder to {folder}: {error.strerror}; choose another folder") from error


def _holds_surrogate(folder: Path) -> bool:
    """Whether config.json of a folder is that of a surrogate, of any version, and not of another model."""
    try:
        return _describes_surrogate(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def log_lines(log: list[dict[str, Any]]) -> str:
    """A training log as JSON lines."""
    return "".join(json.dumps(figures) + "\n" for figures in log)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read config.json of a saved surrogate, and check its shapes, kind and version.

    Raises:
        InputError: If it is missing, unreadable, of an unknown kind or of another version.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no decoder ({CONFIG} is missing): write one with fit-decoder") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}): fit the decoder again") from error
    if not _describes_surrogate(config):
        raise InputError(f"{path} does not describe a surrogate decoder: expected the folder that fit-decoder wrote")
    if config["kind"] not in KINDS:
        raise InputError(f"{folder} is a surrogate of kind {config['kind']!r}: expected one of {', '.join(KINDS)}")
    if config.get("version") != ARCHITECTURE:
        raise InputError(
            f"{folder} was written by another version of fmprobe (layout {config.get('version')}, this one reads "
            f"{ARCHITECTURE}): fit the decoder again"
        )
    return config


class Recorded(NamedTuple):
    """How an encoder was loaded when a surrogate was made for it.

    Attributes:
        image_size: Pixels a side. None if images are not square: the encoder's own size was used.
        tokens: The tokens that made z.
    """

    image_size: int | None
    tokens: Any


def recorded(path_or_id: str | Path) -> Recorded:
    """The image size and the tokens that a saved surrogate was made for. Raises InputError if there is none."""
    config = read_config(_fetch(path_or_id))
    sides = config["image_shape"][1:]
    return Recorded(int(sides[-1]) if len(set(sides)) == 1 else None, config["info"].get("tokens"))


def _rows(validation: Mapping[str, Any]) -> str:
    """The errors on each set of held-out images, as a table in Markdown."""
    measured = {name for row in validation.values() for name in row}
    names = [name for name in ("images", "l1", "l1_median", "feature_error") if name in measured]
    if "l1" not in measured:  # it makes no images, which the median colour would be compared with
        names = [name for name in names if name != "l1_median"]
    if not names:
        return "How well it does on held-out images is not known."
    head = ["held-out images", *(name.replace("_", " ") for name in names)]
    body = [
        [sort.replace("_", " "), *("" if (value := row.get(name)) is None else f"{value:.4g}" for name in names)]
        for sort, row in validation.items()
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def _without_info(config: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in config.items() if name != "info"}
    return {name: _without_info(value) if isinstance(value, dict) else value for name, value in inner.items()}


def _describes_surrogate(config: Any) -> bool:
    """Whether the content of config.json has the fields of a surrogate, each of the type that was written."""
    expected = {"latent_shape": list, "image_shape": list, "kind": str, "info": dict, "weights_sha256": str}
    if not isinstance(config, dict) or any(not isinstance(config.get(name), of) for name, of in expected.items()):
        return False
    shapes = [config["latent_shape"], config["image_shape"]]
    if any(not shape or any(type(size) is not int or size < 1 for size in shape) for shape in shapes):
        return False
    tokens, validation = config["info"].get("tokens"), config["info"].get("validation")
    return (tokens is None or isinstance(tokens, str)) and (validation is None or _is_validation(validation))


def _is_validation(errors: Any) -> bool:
    """Whether these are errors by set of images and by name. None stands for an error that is not finite."""
    sets = errors.values() if isinstance(errors, dict) else [None]
    return all(
        isinstance(row, dict)
        and ("l1_median" if "l1" in row else "feature_error") in row
        and all(value is None or isinstance(value, int | float) for value in row.values())
        for row in sets
    )


def _fetch(path_or_id: str | Path) -> Path:
    """The local folder of a path or a hub id. Two files are fetched from the hub, and neither is a pickle."""
    text = str(path_or_id)
    if Path(text).is_dir():
        return Path(text)
    if isinstance(path_or_id, Path) or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(
            f"there is no decoder at {text}: expected a folder that fit-decoder wrote, or a hub id ORG/NAME"
        )
    from fmprobe.hub import locate

    try:
        checkpoint = locate(text)
        checkpoint.fetch_weights(WEIGHTS)
    except InputError as error:
        raise InputError(f"there is no decoder at {text}: no such folder, and {error}") from error
    return checkpoint.folder


def _check_fits(config: dict[str, Any], model: Autoencoder, name: str) -> None:
    """Raise InputError where a surrogate was made for another encoder, other tokens or other shapes."""
    info = config["info"]
    if not is_of(info.get("fingerprint"), model):
        raise InputError(
            f"{name} was made for another encoder ({info.get('model')}, {str(info.get('fingerprint'))[:12]}) than "
            f"{model.name} ({str(model.fingerprint)[:12]}), or by an earlier fmprobe, which named encoders otherwise: "
            "fit a decoder for this one"
        )
    mine, theirs = model.provenance.get("tokens"), info.get("tokens")
    if None not in (mine, theirs) and mine != theirs:
        raise InputError(
            f"{name} was made for tokens {theirs!r}, {model.name} is loaded with {mine!r}: load it with "
            f"tokens={theirs!r}, or fit a decoder for this one"
        )
    for what, mine in (("image_shape", model.image_shape), ("latent_shape", model.latent_shape)):
        theirs = tuple(config[what])
        if theirs != mine:
            side, tokens = cast(list, config["image_shape"])[-1], info.get("tokens")
            raise InputError(
                f"{name} was made for {what.replace('_', ' ')} {theirs}, {model.name} is loaded with {mine}: load it "
                f"with image_size={side} and tokens={tokens!r}, or fit a decoder for this one"
            )


def _check_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """Raise InputError where a weight is missing, unexpected or of another shape; it names the first."""
    for weight in [*expected, *found]:
        shapes = [tuple(of[weight].shape) if weight in of else None for of in (found, expected)]
        if shapes[0] != shapes[1]:
            held, wanted = ("none" if shape is None else f"one of shape {shape}" for shape in shapes)
            raise InputError(
                f"{name} is not what its {CONFIG} describes: of the weight {weight} it holds {held}, expected "
                f"{wanted}; fit the decoder again"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
