"""The folder of a saved detector: plain facts as JSON and arrays as safetensors, tied to the model it was fitted with.

A folder holds `detector.safetensors`, `detector.json` and, where the model decodes with a surrogate, `decoder/`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.cards import Base, Card, Metric
from fmprobe.digests import file_digest
from fmprobe.dynamics.calls import apart
from fmprobe.errors import InputError
from fmprobe.files import SCHEMA, read_json, write_atomically, write_json
from fmprobe.fingerprint import is_of
from fmprobe.places import is_place, without_places

TENSORS, FACTS, DECODER = "detector.safetensors", "detector.json", "decoder"
SAMPLED = 64  # values of f on fixed latents, by which one latent map is told from another
TOLERANCE = 0.02  # relative difference of these values; devices and precisions differ by less
EVALUATED = ("autocast", "deterministic")  # how f was evaluated; the loaded model is evaluated in the same way
PINNED = ("tokens", "space", "image_shape", "latent_shape", "decoder")  # what must be equal in the loaded model


@dataclass(frozen=True)
class Saved:
    """The content of a detector's folder.

    Attributes:
        model: The model that the detector was fitted with.
        facts: What `save` was given as `facts`.
        arrays: What `save` was given as `arrays`.
    """

    model: Autoencoder
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}


def save(folder: Path, model: Autoencoder, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a detector's folder; `detector.json` is written last and completes it.

    Args:
        folder: Where to write.
        model: The model that the detector was fitted with.
        facts: JSON-ready facts under any keys but "schema", "sha256", "model" and "sample".
        arrays: Arrays by name.

    Raises:
        InputError: The folder cannot be written.
    """
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if model.surrogate is not None:  # so that the folder alone brings the model back
            model.surrogate.save(folder / DECODER)
        write_atomically(folder / TENSORS, lambda path: save_file(tensors, path))
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the detector to {str(folder)!r}: {reason}") from error
    content = {
        "schema": SCHEMA,
        "sha256": file_digest(folder / TENSORS),
        "model": {**_identity(model), "surrogate_kept": model.surrogate is not None},
        **facts,
        "sample": _sample(model).tolist(),
    }
    write_json(folder / FACTS, content, exact=True)


def load(folder: Path, model: Autoencoder | None, device: Any = None) -> Saved:
    """Read what `save` wrote.

    Args:
        folder: Where to read.
        model: The model that the detector was fitted with; None loads it by its name.
        device: The device of a model that is loaded by its name.

    Raises:
        InputError: The folder is incomplete or damaged, or the detector was fitted with another model.
    """
    from safetensors.numpy import load_file

    content = read(folder)
    with complete(folder):
        model = model or _load_model(content["model"], folder, device)
        _check_same(content, model, folder)
        return Saved(model, content, load_file(folder / TENSORS))


def read(folder: Path) -> dict[str, Any]:
    """The facts of a detector's folder, whose arrays are checked to be those that belong to them.

    Raises:
        InputError: The folder is incomplete or damaged, or was written by a later version.
    """
    content = read_json(folder / FACTS)
    if content.get("schema") != SCHEMA:
        raise InputError(
            f"{folder / FACTS} is of schema {content.get('schema')!r}, and this version reads {SCHEMA}: fit the "
            "detector again, or load it with the version that saved it"
        )
    path = folder / TENSORS
    if not path.is_file() or file_digest(path) != content.get("sha256"):
        raise InputError(f"{path} is missing or is not the file that {FACTS} describes: save the detector again")
    return content


def card(folder: Path) -> Card:
    """What the card says of a detector's folder."""
    content = read(folder)
    with complete(folder):
        identity, reference, decision = content["model"], content["reference"], content["decision"]
        base = Base(str(identity["model"]), identity["revision"])
        sides = identity["image_shape"][1:]
        how = {"image_size": sides[0] if len(set(sides)) == 1 else None, "tokens": identity["tokens"]}
        expected, held_out = decision.get("expected"), decision["held_out"]
        text = (
            f"A detector of out-of-distribution images for `{base.shown}`, fingerprint `{identity['fingerprint']}`, by "
            f"latent trajectories (arXiv 2505.22785). It was fitted to {reference['images']} images and measures "
            f"distances to {reference['points']} {reference['kind']}. "
        )
        text += (
            f"It decides by *{decision['rule']}*. By {held_out} held-out images it accepts {expected:.1%} of "
            "in-distribution images."
            if held_out and expected is not None
            else "It gives scores. Without held-out images it accepts or rejects nothing."
        )
        given, needs = "", ""
        if not base.on_hub or not identity["fingerprint"]:
            decoder = "decoder" if identity["surrogate_kept"] else identity["decoder"].get("id")
            given, needs = ", model=model", f"model = {base.load(**how, decoder=decoder)}\n"
        return Card(
            title=f"Detector for {base.shown}",
            text=text,
            load="import fmprobe\n\n"
            f"{needs}detector = fmprobe.TrajectoryDetector.from_pretrained({{source}}{given})\n"
            "detector.predict(images)\n",
            tags=("out-of-distribution-detection",),
            bases=[base],
            sources=content.get("sources") or (),
            metrics=[Metric("accepted_share", expected, f"{held_out} held-out images")] if held_out else [],
        )


@contextmanager
def complete(folder: Path) -> Iterator[None]:
    """Report content that cannot be used as an incomplete folder.

    Raises:
        InputError: The block failed for want of a fact or an array, or because one has the wrong type or shape.
    """
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (SafetensorError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder} does not hold a complete detector ({error}): save it again") from error


def _identity(model: Autoencoder) -> dict[str, Any]:
    """The model's name, and the facts that must be equal in the model that the detector is loaded with."""
    provenance = model.provenance
    decoder = {key: value for key, value in (provenance.get("decoder") or {}).items() if key != "seconds"}
    if model.surrogate is not None:
        decoder["fingerprint"] = model.surrogate.fingerprint
    name = str(provenance.get("model"))
    identity = {
        "model": str(Path(name).resolve()) if Path(name).is_dir() else name,
        "fingerprint": model.fingerprint,
        **{key: provenance.get(key) for key in ("revision", "tokens", "space", "dtype", *EVALUATED)},
        "image_shape": list(model.image_shape),
        "latent_shape": list(model.latent_shape),
        "decoder": decoder,
    }
    return json.loads(json.dumps(identity, default=str))


def _load_model(identity: Mapping[str, Any], folder: Path, device: Any) -> Autoencoder:
    """The model of that identity, loaded by its name.

    Raises:
        InputError: The model has no name, or its surrogate decoder was not saved.
    """
    from fmprobe.loading import load

    if not identity["fingerprint"]:
        raise InputError(
            f"the detector in {folder} was fitted with {identity['model']}, which has no name: pass model=…"
        )
    if identity["decoder"].get("kind") == "surrogate" and not identity["surrogate_kept"]:
        raise InputError(f"the decoder that the detector in {folder} was fitted with was not kept: pass model=…")
    sides = identity["image_shape"][1:]
    try:
        return load(
            identity["model"],
            revision=identity["revision"],
            image_size=sides[0] if len(set(sides)) == 1 else None,
            tokens=identity["tokens"],
            dtype=identity["dtype"],
            **{key: identity[key] for key in EVALUATED if identity.get(key)},
            decoder=folder / DECODER if identity["surrogate_kept"] else identity["decoder"].get("id"),
            device=device,
        )
    except InputError as error:
        name = str(identity["model"])
        if identity["revision"] is not None or is_place(name) or Path(name).exists():
            raise
        # A folder of another machine, of which the name alone was shared.
        raise InputError(f"the detector in {folder} was fitted with {name}, which is not here: pass model=…") from error


def _check_same(content: Mapping[str, Any], model: Autoencoder, folder: Path) -> None:
    """Compare a model with the one that a detector was fitted with.

    Raises:
        InputError: They differ in fingerprint, in a pinned fact, or in the values of f on fixed latents.
    """
    mine, theirs = _identity(model), content["model"]
    if not is_of(theirs["fingerprint"], model):
        raise InputError(
            f"the detector in {folder} was fitted with another model: fingerprint is {theirs['fingerprint']} there "
            f"and {mine['fingerprint']} in {model.name}, or by an earlier fmprobe, which named models otherwise; load "
            f"it with {theirs['model']}, or fit a new detector"
        )
    if "fingerprint" not in theirs["decoder"]:  # saved by an earlier fmprobe
        mine["decoder"].pop("fingerprint", None)
    for key in PINNED:
        # What was shared names data by the last part of a path.
        if without_places(mine[key]) != without_places(theirs.get(key)):
            raise InputError(
                f"the detector in {folder} was fitted with another model: {key} is {theirs.get(key)} there "
                f"and {mine[key]} in {model.name}; load it with {theirs['model']}, or fit a new detector"
            )
    sample, expected = _sample(model), torch.tensor(content["sample"], dtype=torch.float64)
    if sample.shape != expected.shape or float((sample - expected).norm()) > TOLERANCE * float(expected.norm()) + 1e-12:
        raise InputError(
            f"the detector in {folder} was fitted with another model: the latent map of {model.name} gives other "
            "values on the same latents; load it with the weights and the decoder that it was fitted with"
        )


@torch.no_grad()
def _sample(model: Autoencoder) -> Tensor:
    """Some values of f on fixed latents; models without a fingerprint, and decoders, have no other identity."""
    values = apart(model.latent_map, 1)(model.sample_latents(2, seed=0)).flatten().double().cpu()
    return values[:: max(1, len(values) // SAMPLED)][:SAMPLED].nan_to_num(0, 0, 0)
