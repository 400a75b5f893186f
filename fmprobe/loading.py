"""load(name): from the name of a model to an Autoencoder, through the adapters registered as entry points.

Nothing heavy is imported to list the families: adapters import their model library inside `load`.
"""

import difflib
import importlib.util
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from fmprobe.dynamics.protocols import FOUNDATION
from fmprobe.errors import InputError
from fmprobe.sharing import take_device

if TYPE_CHECKING:
    import torch

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.execution import Execution

GROUP = "fmprobe.adapters"
SMALL_IMAGE = 112  # pixels a side that a CPU copes with; a multiple of the usual patch sizes 14 and 16


Tokens = Literal["patch", "cls", "pooled", "all"]
TOKENS: tuple[Tokens, ...] = get_args(Tokens)


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is wanted: what an adapter's `load` is given."""

    name: str  # as the user wrote it
    folder: Path | None  # on this machine, with config.json, preprocessing and weights; None for a module in memory
    revision: str | None  # the commit a hub id was pinned to
    config: Mapping[str, Any]
    device: "torch.device"
    dtype: "torch.dtype"
    image_size: int | Literal["fit"] | None = None
    tokens: Tokens | None = None
    module: Any = None  # a model already in memory
    processor: Any = None
    weights: tuple[Path, ...] = ()  # safetensors files
    random_weights: int | None = None  # a seed: the architecture alone, as it is initialised
    device_map: Any = None  # of accelerate, for a model too large for one device
    fingerprint: str = field(default="", compare=False)  # what identifies the weights: commit, or content hash

    def pick_image_size(self, native: int, multiple_of: int = 1, flexible: bool = False) -> int:
        """`pick_image_sides` for a model of square images."""
        return self.pick_image_sides((native, native), (multiple_of, multiple_of), flexible)[0]

    def pick_image_sides(
        self, native: tuple[int, int], multiple_of: tuple[int, int] = (1, 1), flexible: bool = False
    ) -> tuple[int, int]:
        """Height and width in pixels: what was asked for; with "fit", sides that the device copes with; else `native`.

        `flexible`: the model takes other sizes as well as its native one, so that "fit" may choose. Raises InputError
        for a size that is none or no multiple.
        """
        if self.image_size is None or self.image_size == "fit":
            largest, steps = max(native), list(zip(native, multiple_of, strict=True))
            small = [side * SMALL_IMAGE // largest // step * step for side, step in steps]
            fits = self.image_size is None or not flexible or self.device.type != "cpu" or largest <= SMALL_IMAGE
            return native if fits or min(small) == 0 else (small[0], small[1])
        try:
            side = operator.index(self.image_size)
        except TypeError as error:
            raise InputError(f'image size {self.image_size!r}: expected pixels a side, "fit" or None') from error
        if side <= 0 or any(side % step for step in multiple_of):
            of = " and of ".join(map(str, sorted(set(multiple_of))))
            raise InputError(f"image size {side} does not suit {self.name}: expected a multiple of {of}")
        return side, side

    def pick_tokens(self, available: Sequence[Tokens]) -> Tokens:
        """The tokens asked for, by default the first of those that the model has. Raises InputError on others."""
        if self.tokens is not None and self.tokens not in available:
            raise InputError(f"{self.name} has no tokens {self.tokens!r}: expected one of {', '.join(available)}")
        return self.tokens or available[0]

    def provenance(self, **more: Any) -> dict[str, Any]:
        """What every adapter records of a model, and `more`."""
        dtype = str(self.dtype).removeprefix("torch.")
        weights = {} if self.random_weights is None else {"random_weights": self.random_weights}
        return {"model": self.name, "revision": self.revision, "dtype": dtype, **weights, **more}


class Adapter(ABC):
    """One family of models. A new one is a subclass in a file of its own and one entry-point line."""

    example: ClassVar[str]  # a hub id
    kinds: ClassVar[tuple[str, ...]]  # `model_type` in config.json; `_class_name` of diffusers; "timm"
    latents: ClassVar[str]  # what z is
    decoder: ClassVar[str]  # "own" or "surrogate"
    requires: ClassVar[str] = ""  # a package that is an extra of fmprobe, where the family needs one
    weights: ClassVar[str] = "model.safetensors"
    spreads: ClassVar[bool] = False  # whether `load` heeds `device_map`
    processed: ClassVar[bool] = True  # whether `load` heeds `processor`

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
    tokens: Tokens | None = None,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    processor: Any = None,
    random_weights: int | None = None,
    device_map: "str | Mapping[str, Any] | None" = None,
    autocast: "str | torch.dtype | None" = None,
    compile: str | None = None,
    deterministic: bool = False,
) -> "Autoencoder":
    """The Autoencoder of a hub id, of a local folder in Hugging Face layout, or of a model in memory.

    A model of transformers, timm or diffusers in memory is used as it is and left as it is: where it lies, in its own
    type, and always in evaluation mode, whatever mode its owner has it in. torch.compile, DataParallel and
    DistributedDataParallel around it are unwrapped.

    `decoder`: a folder written by `fit-decoder`, for an encoder that has none; its image size and tokens are taken
    over. `image_size`: pixels a side; None is the processor's; "fit" is the processor's, at most 112 px where there is
    no accelerator and the model takes other sizes. `tokens`: which make z, "patch" (the default of encoders), "cls",
    "pooled" or "all"; an own decoder reads what it was trained on. `device`: None or "auto" is CUDA, MPS or CPU,
    whichever is there; `dtype`: of the weights, float32 by default (latents are always float32). Weights are read from
    safetensors alone and no code of a repository is executed.
    `device_map`: "auto", or accelerate's map of modules to devices, for a transformers model too large for one device.
    `autocast`: of f alone, "bfloat16" or "float16"; `compile`: f by `torch.compile` with this backend, "inductor" for
    one; `deterministic`: torch's deterministic algorithms, and a row of f the same bit for bit in any batch.
    Raises InputError where the name, the family, the revision or the decoder do not fit.
    """
    if tokens is not None and tokens not in TOKENS:
        raise InputError(f"unknown tokens {tokens!r}: expected one of {', '.join(TOKENS)}")
    if decoder is not None:
        from fmprobe.surrogates.artefact import recorded

        made_for = recorded(decoder)
        image_size = made_for.image_size if image_size in (None, "fit") else image_size
        tokens = tokens or made_for.tokens
    asked = {
        "image_size": image_size,
        "tokens": tokens,
        "device": pick_device(device),
        "dtype": _dtype(dtype),
        "random_weights": random_weights,
        "device_map": device_map,
    }
    execution = _execution(autocast, compile, deterministic)
    if isinstance(name, str | Path):
        family, adapter, source = _from_files(str(name), revision, processor=processor, **asked)
    else:
        from fmprobe.modules import unwrapped

        family, adapter, source = _from_memory(unwrapped(name), processor=processor, **asked)
    if device_map is not None and not adapter.spreads:
        raise InputError(f"device_map does not go with {name}, of the family {family}: leave it out")
    if processor is not None and not adapter.processed:
        raise InputError(f"processor does not go with {source.name}, of the family {family}: leave it out")
    import torch

    from fmprobe.seeding import torch_seed

    with torch.random.fork_rng(devices=[]):  # some models draw weights before they read them
        if random_weights is not None:
            torch.default_generator.manual_seed(torch_seed(random_weights, "models: random weights"))
        model = adapter.load(source) if source.module is None else _evaluated(adapter, source)
    model.protocol = FOUNDATION
    model.provenance.setdefault("family", family)
    model.evaluate_by(execution)
    precision = str(_dtype(autocast)).removeprefix("torch.") if autocast else None
    changed = {"autocast": precision, "compile": compile, "deterministic": deterministic}
    model.provenance |= {name: value for name, value in changed.items() if value}
    drawn = "" if random_weights is None else f"-drawn-{random_weights}"
    model.provenance["fingerprint"] = source.fingerprint + drawn
    if decoder is None:
        return model
    from fmprobe.surrogates.artefact import load_surrogate

    return model.with_decoder(load_surrogate(decoder, model))


def pick_device(device: "str | torch.device | None" = None) -> "torch.device":
    """The device asked for; for None or "auto" the accelerator that is there, else the CPU."""
    import torch

    take_device()
    if device is not None and device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise InputError(f"unknown device {device!r}: expected auto, cpu, cuda, cuda:N or mps") from error
        there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if (chosen.index or 0) >= there.get(chosen.type, 1):
            raise InputError(f"device {device} is not here: auto takes the accelerator that is, else the CPU")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _execution(autocast: "str | torch.dtype | None", compile: str | None, deterministic: bool) -> "Execution":
    import torch

    from fmprobe.execution import FIXED, Execution, be_deterministic

    if compile is not None and compile not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise InputError(f"unknown backend {compile!r} to compile with: expected one of {', '.join(map(str, known))}")
    if deterministic:
        be_deterministic()
    return Execution(None if autocast is None else _dtype(autocast), compile, FIXED if deterministic else None)


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


def _from_files(name: str, revision: str | None, **asked: Any) -> tuple[str, Adapter, Source]:
    from fmprobe.hub import locate

    checkpoint = locate(name, revision)
    family, adapter = _adapter_of(checkpoint.config, checkpoint.name)
    for optional in ("preprocessor_config.json", "processor_config.json"):
        checkpoint.fetch(optional)
    weights = tuple(checkpoint.fetch_weights(adapter.weights))
    fingerprint = checkpoint.commit or folder_hash(checkpoint.folder)
    folder, config = checkpoint.folder, checkpoint.config
    return (
        family,
        adapter,
        Source(checkpoint.name, folder, checkpoint.commit, config, weights=weights, fingerprint=fingerprint, **asked),
    )


def _from_memory(module: Any, **asked: Any) -> tuple[str, Adapter, Source]:
    from fmprobe.modules import config_of, placement

    config = config_of(module)
    name = config.get("_name_or_path") or type(module).__name__
    family, adapter = _adapter_of(config, name)
    if asked["random_weights"] is not None:
        raise InputError(f"{name} is in memory: pass a hub id or a folder for its architecture with random weights")
    device, dtype = placement(module, name)
    asked |= {"device": device, "dtype": dtype}
    return family, adapter, Source(name, None, None, config, module=module, fingerprint=_module_hash(module), **asked)


def _evaluated(adapter: Adapter, source: Source) -> "Autoencoder":
    """The model of a module in memory, which keeps the mode that it is in."""
    from fmprobe.modules import evaluation, kept_in_its_mode

    with evaluation(source.module):
        model = adapter.load(source)
    return kept_in_its_mode(model, source.module)


def kind_of(config: Mapping[str, Any]) -> str | None:
    """What a config.json calls its model: transformers' `model_type`, diffusers' `_class_name`, or "timm"."""
    return config.get("model_type") or config.get("_class_name") or ("timm" if "architecture" in config else None)


def _adapter_of(config: Mapping[str, Any], name: str) -> tuple[str, Adapter]:
    kind = kind_of(config)
    for family, adapter in adapters().items():
        if kind in adapter.kinds:
            if adapter.requires and importlib.util.find_spec(adapter.requires) is None:
                extra = adapter.requires
                raise InputError(f'{name} needs {extra}, which is not installed: pip install "fmprobe[{extra}]"')
            return family, adapter
    if "auto_map" in config:
        raise InputError(
            f"{name} is of type {kind!r}, which runs code of its own repository, and fmprobe never executes that: if "
            "you trust it, load it yourself with trust_remote_code=True and use fmprobe.from_functions"
        )
    known = sorted(kind for adapter in adapters().values() for kind in adapter.kinds)
    close = difflib.get_close_matches(str(kind), known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise InputError(f"{name} is of type {kind!r}{hint}, which no adapter covers: expected one of {', '.join(known)}")


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
