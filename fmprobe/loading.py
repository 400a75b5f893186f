"""load(name): from the name of a model to an Autoencoder, through the adapters registered as entry points.

Nothing heavy is imported to list the families: adapters import their model library inside `load`.
"""

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fmprobe.errors import InputError

if TYPE_CHECKING:
    import torch

    from fmprobe.autoencoder import Autoencoder

GROUP = "fmprobe.adapters"
SMALL_IMAGE = 112  # pixels a side that a CPU copes with; a multiple of the usual patch sizes 14 and 16


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is wanted: what an adapter's `load` is given."""

    name: str  # as the user wrote it
    path: str  # a folder, or a hub id
    revision: str | None  # the commit a hub id was pinned to
    config: Mapping[str, Any]
    device: "torch.device"
    dtype: "torch.dtype"
    image_size: int | Literal["fit"] | None = None
    module: Any = None  # a model already in memory
    processor: Any = None
    fingerprint: str = field(default="", compare=False)  # what identifies the weights: commit, or content hash

    def pick_image_size(self, native: int, multiple_of: int = 1, needs_surrogate: bool = False) -> int:
        """The side in pixels: what was asked for; with "fit", a size that the device copes with; else `native`."""
        if isinstance(self.image_size, int):
            if self.image_size <= 0 or self.image_size % multiple_of:
                raise InputError(
                    f"image size {self.image_size} does not suit {self.name}: expected a multiple of {multiple_of}"
                )
            return self.image_size
        small = SMALL_IMAGE // multiple_of * multiple_of
        if self.image_size == "fit" and needs_surrogate and self.device.type == "cpu" and 0 < small < native:
            return small
        return native

    def pretrained_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`: safetensors alone, no remote code, the pinned revision."""
        arguments: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "dtype": self.dtype}
        return arguments | ({"revision": self.revision} if self.revision else {})


class Adapter(ABC):
    """One family of models. A new one is a subclass in a file of its own and one entry-point line."""

    example: ClassVar[str]  # a hub id
    model_types: ClassVar[tuple[str, ...]]  # `model_type` in config.json
    latents: ClassVar[str]  # what z is
    decoder: ClassVar[str]  # "own" or "surrogate"
    requires: ClassVar[str] = ""  # an extra of fmprobe, where the family needs one

    @abstractmethod
    def load(self, source: Source) -> "Autoencoder":
        """The model of `source` as an Autoencoder, in eval mode, gradients off for its parameters."""


@cache
def adapters() -> dict[str, Adapter]:
    """All registered families by name, fmprobe's own and other packages'."""
    return {entry.name: entry.load()() for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


def load(
    name: Any,
    *,
    decoder: str | Path | None = None,
    revision: str | None = None,
    image_size: int | Literal["fit"] | None = None,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    processor: Any = None,
) -> "Autoencoder":
    """The Autoencoder of a hub id, a local folder in Hugging Face layout, or a transformers model in memory.

    `decoder`: a folder written by `fit-decoder`, for an encoder that has none; its image size is taken over.
    `image_size`: pixels a side; None is
    the processor's; "fit" is the processor's, at most 112 px for an encoder without decoder where there is no
    accelerator. `device`: None or "auto" is CUDA, MPS or CPU, whichever is there; `dtype`: of the weights, float32
    by default (latents are always float32). Weights are read from safetensors alone and no code of a repository is
    executed. Raises InputError where the name, the family, the revision or the decoder do not fit.
    """
    if decoder is not None and image_size in (None, "fit"):
        from fmprobe.surrogates.pixel import recorded_image_size

        image_size = recorded_image_size(decoder)
    source = _source(name, revision, image_size, pick_device(device), _dtype(dtype), processor)
    model_type = source.config.get("model_type")
    for family, adapter in adapters().items():
        if model_type in adapter.model_types:
            model = adapter.load(source)
            model.provenance.setdefault("family", family)
            model.provenance["fingerprint"] = source.fingerprint
            break
    else:
        raise InputError(_unknown_family(source.name, model_type))
    if decoder is None:
        return model
    from fmprobe.surrogates.pixel import PatchDecoder

    return model.with_decoder(PatchDecoder.load(decoder, model))


def pick_device(device: "str | torch.device | None" = None) -> "torch.device":
    """The device asked for; for None or "auto" the accelerator that is there, else the CPU."""
    import torch

    if device is not None and device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise InputError(f"unknown device {device!r}: expected auto, cpu, cuda, cuda:N or mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(dtype: "str | torch.dtype | None") -> "torch.dtype":
    import torch

    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str):
        if dtype not in names:
            raise InputError(f"unknown dtype {dtype!r}: expected one of {', '.join(names)}")
        return names[dtype]
    return dtype


def _source(
    name: Any,
    revision: str | None,
    image_size: int | Literal["fit"] | None,
    device: "torch.device",
    dtype: "torch.dtype",
    processor: Any,
) -> Source:
    if not isinstance(name, str | Path):
        if not hasattr(name, "config"):
            raise InputError(
                f"cannot load a {type(name).__name__}: expected a hub id, a folder or a transformers model"
            )
        config = name.config.to_dict()
        label = config.get("_name_or_path") or type(name).__name__
        return Source(label, label, None, config, device, dtype, image_size, name, processor, _module_hash(name))
    text = str(name)
    if Path(text).is_dir():
        config, fingerprint = _local_config(Path(text)), folder_hash(Path(text))
        return Source(text, text, None, config, device, dtype, image_size, processor=processor, fingerprint=fingerprint)
    config, commit = _hub_config(text, revision)
    return Source(text, text, commit, config, device, dtype, image_size, processor=processor, fingerprint=commit)


def _local_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no config.json: expected a model folder in Hugging Face layout")
    return _read_config(path, str(folder))


def _hub_config(name: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """config.json of a hub id and the commit it belongs to."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if name.count("/") != 1:
        raise InputError(
            f"{name!r} is neither a folder nor a hub id: expected a path that exists, or ORG/NAME such as {_example()}"
        )
    try:
        path = hf_hub_download(name, "config.json", revision=revision, etag_timeout=10)
    except GatedRepoError as error:
        raise InputError(f"{name} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {revision!r}: name a branch, tag or commit of it") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"the hub has no model {name!r} (or it is private: set HF_TOKEN); check the spelling"
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name} is not in the local cache and the hub cannot be reached: connect once, or pass a local folder"
        ) from error
    except EntryNotFoundError as error:
        raise InputError(f"{name} holds no config.json: it is not a model in Hugging Face layout") from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise InputError(f"cannot fetch {name} from the hub: {str(error).splitlines()[0]}") from error
    return _read_config(Path(path), name), Path(path).parent.name


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"config.json of {name} cannot be read as JSON ({error}): fetch the model again") from error
    if not isinstance(config, dict):
        raise InputError(f"config.json of {name} is not a JSON object: fetch the model again")
    return config


def _unknown_family(name: str, model_type: Any) -> str:
    known = sorted(kind for adapter in adapters().values() for kind in adapter.model_types)
    close = difflib.get_close_matches(str(model_type), known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{name} is of type {model_type!r}{hint}, which no adapter covers: expected one of {', '.join(known)}"


def _example() -> str:
    return " or ".join(adapter.example for adapter in adapters().values())


def folder_hash(folder: Path) -> str:
    """SHA-256 of a local checkpoint: names and contents of its configuration and safetensors files."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _module_hash(module: Any) -> str:
    """SHA-256 of a module's parameters, for a model that was never on disk."""
    import hashlib

    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + b"\0" + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
