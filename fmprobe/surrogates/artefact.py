"""A surrogate as an artefact: a folder or hub repository of config.json, model.safetensors and a model card."""

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file
from torch import Tensor, nn

from fmprobe.autoencoder import Autoencoder
from fmprobe.digests import digest, file_digest
from fmprobe.errors import InputError
from fmprobe.fingerprint import is_of, of_weights

if TYPE_CHECKING:
    from fmprobe.surrogates.latent import LatentSurrogate
    from fmprobe.surrogates.pixel import PixelDecoder

WEIGHTS, CONFIG = "model.safetensors", "config.json"
KINDS = ("pixel", "latent")
ARCHITECTURE = 3  # raise it when a module's layout changes, so that older artefacts are refused by name


def _without_past(config: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in config.items() if name != "info"}
    return {name: _without_past(value) if isinstance(value, dict) else value for name, value in inner.items()}


class Surrogate(nn.Module, PyTorchModelHubMixin, ABC):
    """What pixel and latent surrogates share: `info`, a JSON-ready dict, and how they are saved and loaded.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of `PyTorchModelHubMixin`. `info` holds the encoder
    that it was made for, its training data, seed, steps, seconds and validation figures.
    """

    kind: str
    info: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """A digest of its kind, weights, statistics and settings at the time of asking, not of its past."""
        return digest(self.kind, _without_past(self.config()), of_weights(self))

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""

    @abstractmethod
    def card(self) -> str:
        """The model card."""

    @abstractmethod
    def attach(self, model: Autoencoder) -> Autoencoder:
        """The autoencoder that the encoder and this surrogate make together."""

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and a model card into `folder`, whole or not at all.

        An earlier surrogate there is replaced. Raises InputError where `folder` holds other things or takes no files.
        """
        target = Path(folder)
        check_place(target)
        scratch = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            self.save_pretrained(scratch / "new")
            if target.exists():
                target.rename(scratch / "old")
            (scratch / "new").rename(target)
        except OSError as error:
            raise InputError(f"cannot write the decoder to {target}: {error.strerror or error}") from error
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    @classmethod
    def load(cls, path_or_id: str | Path, model: Autoencoder) -> Self:
        """The surrogate in a folder that `save` wrote, or of a hub id, on `model`'s device; safetensors alone.

        Raises InputError where it is missing or damaged, was made for another encoder, or for other shapes.
        """
        folder = _fetch(path_or_id)
        config = read_config(folder)
        _check_fits(config, model, str(path_or_id))
        try:
            if config["kind"] != cls.kind:
                raise InputError(f"{path_or_id} is a surrogate of kind {config['kind']!r}, expected {cls.kind!r}")
            if config["weights_sha256"] != file_digest(folder / WEIGHTS):
                raise InputError(f"{path_or_id} is damaged (its weights have changed): fit the decoder again")
            state = load_file(folder / WEIGHTS)
            with torch.random.fork_rng(devices=[]):  # the initial weights that are replaced draw random numbers
                surrogate = cls(**{k: v for k, v in config.items() if k not in ("weights_sha256", "kind", "version")})
            _check_weights(state, surrogate.state_dict(), str(path_or_id))
            surrogate.load_state_dict(state)
        except InputError:
            raise
        except Exception as error:  # OSError, SafetensorError, RuntimeError of a state dict that does not fit
            raise InputError(f"{path_or_id} is damaged ({_first_line(error)}): fit the decoder again") from error
        return surrogate.requires_grad_(False).eval().to(model.device)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        # safetensors has no checksum of its own
        about = {"kind": self.kind, "version": ARCHITECTURE, "weights_sha256": file_digest(save_directory / WEIGHTS)}
        text = json.dumps({**self.config(), **about}, indent=2, sort_keys=True) + "\n"
        (save_directory / CONFIG).write_text(text, encoding="utf-8")
        from fmprobe.surrogates.training import LOG, lines_of

        (save_directory / LOG).write_text(lines_of(self.info.get("log") or []), encoding="utf-8")
        (save_directory / "README.md").write_text(self.card(), encoding="utf-8")

    @classmethod
    def _load_as_pickle(cls, *_: Any, **__: Any) -> Any:
        raise InputError("the repository holds no model.safetensors, and pickled weights are not read")


def check_place(folder: Path) -> None:
    """Raise InputError where `folder` holds something that is no surrogate, or cannot be written, before any work."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file()):
        raise InputError(f"{folder} exists and is not a decoder's folder: choose another one")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise InputError(f"cannot write the decoder to {folder}: {error.strerror}; choose another folder") from error


def load_surrogate(path_or_id: str | Path, model: Autoencoder) -> "PixelDecoder | LatentSurrogate":
    """The surrogate of a folder or hub id, of whichever kind it is. Raises InputError as `Surrogate.load`."""
    from fmprobe.surrogates.latent import LatentSurrogate
    from fmprobe.surrogates.pixel import PixelDecoder

    kind = read_config(_fetch(path_or_id))["kind"]
    return (LatentSurrogate if kind == LatentSurrogate.kind else PixelDecoder).load(path_or_id, model)


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a saved surrogate, its shapes, kind and hash checked; InputError if there is none."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no decoder ({CONFIG} is missing): write one with fit-decoder") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}): fit the decoder again") from error
    if not _describes(config):
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
    """How an encoder was loaded when a surrogate was made for it."""

    image_size: int | None  # None where images are not square, and the encoder's own size is meant
    tokens: Any


def recorded(path_or_id: str | Path) -> Recorded:
    """The image size and the tokens that a saved surrogate was made for. Raises InputError where there is none."""
    config = read_config(_fetch(path_or_id))
    sides = config["image_shape"][1:]
    return Recorded(int(sides[-1]) if len(set(sides)) == 1 else None, config["info"].get("tokens"))


def channelwise(statistic: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """One value a channel `(D,)` in the shape that broadcasts against latents: tokens, a map or a vector."""
    return statistic.view(-1, 1, 1) if len(latent_shape) == 3 else statistic


def _describes(config: Any) -> bool:
    """Whether what config.json holds has the fields of a surrogate, of the types that they are written with."""
    expected = {"latent_shape": list, "image_shape": list, "kind": str, "info": dict, "weights_sha256": str}
    if not isinstance(config, dict) or any(not isinstance(config.get(name), of) for name, of in expected.items()):
        return False
    shapes = [config["latent_shape"], config["image_shape"]]
    if any(not shape or any(type(size) is not int or size < 1 for size in shape) for shape in shapes):
        return False
    tokens, validation = config["info"].get("tokens"), config["info"].get("validation")
    return (tokens is None or isinstance(tokens, str)) and (validation is None or _is_validation(validation))


def _is_validation(figures: Any) -> bool:
    """Whether these are figures by name of the images and of the figure; None stands for one that is not finite."""
    sets = figures.values() if isinstance(figures, dict) else [None]
    return all(
        isinstance(row, dict)
        and ("l1_median" if "l1" in row else "feature_error") in row
        and all(value is None or isinstance(value, int | float) for value in row.values())
        for row in sets
    )


def _fetch(path_or_id: str | Path) -> Path:
    """The local folder of a path or a hub id; two files are fetched, neither of them a pickle."""
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
    """Raise InputError, naming the first, where weights are missing, too many, or of another shape."""
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
