"""A detector on disk: safetensors and JSON, tied to the model that it was fitted with."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.digests import file_digest
from fmprobe.dynamics.calls import apart
from fmprobe.errors import InputError
from fmprobe.files import SCHEMA, read_json, write_atomically, write_json
from fmprobe.fingerprint import is_of
from fmprobe.probes.ood.calibration import Calibration
from fmprobe.probes.ood.trajectory import Reference

if TYPE_CHECKING:
    from fmprobe.probes.ood.detector import TrajectoryDetector

TENSORS, FACTS, DECODER = "detector.safetensors", "detector.json", "decoder"
SAMPLED = 64  # numbers of f on fixed latents that tell one latent map from another
TOLERANCE = 0.02  # relative; the same map differs by less between devices and precisions
EVALUATED = ("autocast", "deterministic")  # how f was evaluated, and has to be again
PINNED = ("tokens", "space", "image_shape", "latent_shape", "decoder")


def save_detector(detector: "TrajectoryDetector", folder: Path) -> None:
    """`decoder/` where the decoder is a surrogate, `detector.safetensors`, then `detector.json`, which completes them.

    Raises InputError where the detector is not fitted or the folder cannot be written.
    """
    from safetensors.numpy import save_file

    facts = detector.describe()
    tensors = detector.arrays()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        keeps = _save_surrogate(detector.model, folder / DECODER)
        write_atomically(folder / TENSORS, lambda path: save_file(tensors, path))
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the detector to {str(folder)!r}: {reason}") from error
    content = {
        "schema": SCHEMA,
        "sha256": file_digest(folder / TENSORS),
        "model": {**_identity(detector.model), "surrogate_kept": keeps},
        "settings": asdict(detector.settings),
        "reference": facts["reference"],
        "decision": facts["decision"],
        "joined": list(detector.calibration.joined) if detector.calibration else [],
        "sample": _sample(detector.model).tolist(),
    }
    write_json(folder / FACTS, content, exact=True)


def load_detector(folder: Path, model: Autoencoder | None, device: Any = None) -> "TrajectoryDetector":
    """What `save_detector` wrote. Raises InputError where it is incomplete or damaged, or the model is another."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from fmprobe.probes.ood.detector import TrajectoryDetector

    content = read_json(folder / FACTS)
    if content.get("schema") != SCHEMA:
        raise InputError(
            f"{folder / FACTS} is of schema {content.get('schema')!r}, and this version reads {SCHEMA}: fit the "
            "detector again, or load it with the version that saved it"
        )
    path = folder / TENSORS
    if not path.is_file() or file_digest(path) != content.get("sha256"):
        raise InputError(f"{path} is missing or is not the file that {FACTS} describes: save the detector again")
    try:
        model = model or _load_model(content["model"], folder, device)
        _check_same(content, model, folder)
        detector = TrajectoryDetector(model, **content["settings"])
        decision = content["decision"]
        detector.rule, detector.acceptance = decision["rule"], decision["acceptance"]
        detector.restore(load_file(path), content["reference"], tuple(content["joined"]))
        detector.describe()  # what it holds must make sense
    except InputError:
        raise
    except (SafetensorError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder} does not hold a complete detector ({error}): save it again") from error
    return detector


def pack(reference: Reference, banks: dict[str, np.ndarray], calibration: Calibration | None) -> dict[str, np.ndarray]:
    """Everything of a fitted detector that is an array, by its name on disk."""
    arrays = {"reference": reference.points.cpu().numpy(), "deviation": reference.deviation.cpu().numpy()}
    arrays |= {f"bank.{name}": bank for name, bank in banks.items()}
    if calibration is not None:
        arrays |= {f"held_out.{name}": values for name, values in calibration.held_out.items()}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def unpack(
    arrays: dict[str, np.ndarray], facts: dict[str, Any], device: torch.device
) -> tuple[Reference, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The reference, the banks and the held-out scores of what `pack` made."""

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    points, deviation = (torch.from_numpy(arrays[name]).to(device) for name in ("reference", "deviation"))
    return Reference(points, deviation, facts), under("bank."), under("held_out.")


def _identity(model: Autoencoder) -> dict[str, Any]:
    """What the model is: its name, and what must be the same again."""
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


def _save_surrogate(model: Autoencoder, folder: Path) -> bool:
    """Keep the surrogate decoder beside the detector, so that the folder alone brings the model back."""
    if model.surrogate is None:
        return False
    model.surrogate.save(folder)
    return True


def _load_model(identity: dict[str, Any], folder: Path, device: Any) -> Autoencoder:
    from fmprobe.loading import load

    if not identity["fingerprint"]:
        raise InputError(
            f"the detector in {folder} was fitted with {identity['model']}, which has no name: pass model=…"
        )
    if identity["decoder"].get("kind") == "surrogate" and not identity["surrogate_kept"]:
        raise InputError(f"the decoder that the detector in {folder} was fitted with was not kept: pass model=…")
    sides = identity["image_shape"][1:]
    return load(
        identity["model"],
        revision=identity["revision"],
        image_size=sides[0] if len(set(sides)) == 1 else None,
        tokens=identity["tokens"],
        dtype=identity["dtype"],
        **{key: identity[key] for key in EVALUATED if identity.get(key)},
        decoder=folder / DECODER if identity["surrogate_kept"] else None,
        device=device,
    )


def _check_same(content: dict[str, Any], model: Autoencoder, folder: Path) -> None:
    mine, theirs = _identity(model), content["model"]
    if not is_of(theirs["fingerprint"], model):
        raise InputError(
            f"the detector in {folder} was fitted with another model: fingerprint is {theirs['fingerprint']} there "
            f"and {mine['fingerprint']} in {model.name}, or by an earlier fmprobe, which named models otherwise; load "
            f"it with {theirs['model']}, or fit a new detector"
        )
    if "fingerprint" not in theirs["decoder"]:  # of an earlier fmprobe
        mine["decoder"].pop("fingerprint", None)
    for key in PINNED:
        if mine[key] != theirs.get(key):
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
    """Some numbers of f on fixed latents: models without a fingerprint, and decoders, have nothing else to go by."""
    values = apart(model.latent_map, 1)(model.sample_latents(2, seed=0)).flatten().double().cpu()
    return values[:: max(1, len(values) // SAMPLED)][:SAMPLED].nan_to_num(0, 0, 0)
