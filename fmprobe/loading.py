"""load(name): from the name of a model to an Autoencoder, through the adapters registered as entry points.

Nothing heavy is imported to list the families: adapters import their model library inside `load`.
"""

import difflib
import importlib.util
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    Raises InputError where the name, the family, the revision or the decoder do not fit, and for whatever is given that
    such a model has no use for.
    """
    if tokens is not None and tokens not in TOKENS:
        raise InputError(f"unknown tokens {tokens!r}: expected one of {', '.join(TOKENS)}")
    if decoder is not None:
        from fmprobe.surrogates.artefact import recorded

        made_for = recorded(decoder)
        image_size = made_for.image_size if image_size in (None, "fit") else image_size
        tokens = tokens or made_for.tokens
    if isinstance(image_size, bool):
        raise InputError(f'image size {image_size!r}: expected pixels a side, "fit" or None')
    asked = {
        "image_size": image_size,
        "tokens": tokens,
        "device": pick_device(device),
        "dtype": _dtype(dtype),
        "processor": processor,
        "random_weights": _seed(random_weights, device_map),
        "device_map": device_map,
    }
    execution = _execution(autocast, compile, deterministic)
    if isinstance(name, str | Path):
        model = _from_files(str(name), revision, asked)
    else:
        explicit = {"device": None if device in (None, "auto") else asked["device"], "dtype": dtype and asked["dtype"]}
        model = _from_memory(name, revision, asked | explicit)
    model.protocol = FOUNDATION
    model.evaluate_by(execution)
    changed = {
        "autocast": execution.autocast and str(execution.autocast).removeprefix("torch."),
        "compile": compile,
        "deterministic": deterministic,
        "device_map": None if device_map is None else str(device_map),
        "processor": None if processor is None else type(processor).__name__,  # in place of the checkpoint's own
    }
    model.provenance |= {name: value for name, value in changed.items() if value not in (None, False)}
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
        there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "meta": 0}
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
    cast = None if autocast is None else _dtype(autocast)
    if cast not in (None, torch.bfloat16, torch.float16):
        raise InputError(f"cannot autocast to {autocast}: expected bfloat16 or float16")
    if deterministic:
        be_deterministic()
    return Execution(cast, compile, FIXED if deterministic else None)


def _dtype(dtype: "str | torch.dtype | None") -> "torch.dtype":
    import torch

    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str) and dtype in names:
        return names[dtype]
    if dtype not in (*names.values(), torch.float64):
        raise InputError(f"unknown dtype {dtype!r}: expected one of {', '.join(names)}")
    return dtype


def _seed(random_weights: Any, device_map: Any) -> int | None:
    """The seed of random weights. Raises InputError where it is none, and beside a map, which it would not follow."""
    if random_weights is None:
        return None
    if isinstance(random_weights, bool) or not hasattr(random_weights, "__index__"):
        raise InputError(f"random_weights {random_weights!r}: expected a seed, a whole number")
    if device_map is not None:
        raise InputError("device_map does not go with random_weights: leave one of them out")
    return operator.index(random_weights)


def _from_files(name: str, revision: str | None, asked: Mapping[str, Any]) -> "Autoencoder":
    from fmprobe.digests import digest
    from fmprobe.fingerprint import of_files, of_memory
    from fmprobe.hub import locate

    checkpoint = locate(name, revision)
    if revision is not None and (checkpoint.commit is None or not revision):
        raise InputError(
            f"revision {revision!r} does not go with {name}: it names a branch, tag or commit of a hub id, ORG/NAME"
        )
    family, adapter = _adapter_of(checkpoint.config, checkpoint.name)
    _check_family(adapter, family, checkpoint.name, asked)
    processors = [checkpoint.fetch(file) for file in ("preprocessor_config.json", "processor_config.json")]
    weights = tuple(checkpoint.fetch_weights(adapter.weights))
    config, seed, given = checkpoint.config, asked["random_weights"], asked["processor"]
    read = processors if adapter.processed and given is None else ()
    files = digest(of_files(weights, config, read), None if seed is None else ["drawn", seed])
    source = Source(checkpoint.name, checkpoint.folder, checkpoint.commit, config, weights=weights, **asked)
    first = None if given is None else of_memory(given)  # adapters read some of it once
    return _loaded(family, adapter, source, lambda: files if first is None else digest(files, first, of_memory(given)))


def _from_memory(wrapped: Any, revision: str | None, asked: Mapping[str, Any]) -> "Autoencoder":
    from fmprobe.fingerprint import of_memory
    from fmprobe.modules import config_of, evaluation, kept_in_its_mode, placement, unwrapped

    module, processor = unwrapped(wrapped), asked["processor"]
    config = config_of(module)
    name = config.get("_name_or_path") or type(module).__name__
    family, adapter = _adapter_of(config, name)
    device, dtype = placement(module, name)
    placed: dict[str, Any] = {"device": device, "dtype": dtype}
    _check_in_memory(name, placed, {**asked, "revision": revision})
    _check_family(adapter, family, name, asked)
    read_once = of_memory(config, processor)  # by adapters, which a later change of them does not reach
    source = Source(name, None, None, config, module=module, **{**asked, **placed})
    with evaluation(module):
        model = _loaded(family, adapter, source, lambda: of_memory(module, processor, read_once))
    return kept_in_its_mode(model, module)


def _check_in_memory(name: str, placed: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise InputError where something is asked of a module in memory that only its owner may do to it."""
    if asked["random_weights"] is not None:
        raise InputError(f"{name} is in memory: pass a hub id or a folder for its architecture with random weights")
    for keyword in ("revision", "device_map"):
        if asked[keyword] is not None:
            raise InputError(f"{keyword} does not go with {name}, which is in memory: pass a hub id, or leave it out")
    for keyword, its_own in placed.items():
        wanted = asked[keyword]
        if wanted is not None and wanted != its_own and _place(wanted) != _place(its_own):
            mine, theirs = (str(one).removeprefix("torch.") for one in (its_own, wanted))
            to = f"torch.{theirs}" if keyword == "dtype" else repr(theirs)
            raise InputError(
                f"{name} is in memory with {keyword} {mine}, not {theirs}: pass it as module.to({to}), or leave "
                f"{keyword} out"
            )


def _place(device: Any) -> Any:
    """A device as a type and a number, that of the first one where it has none; a dtype as it is."""
    return (device.type, device.index or 0) if hasattr(device, "type") else device


def _loaded(family: str, adapter: Adapter, source: Source, fingerprint: Callable[[], str]) -> "Autoencoder":
    """What the adapter makes of a source, with its fingerprint. Raises InputError where it is not as asked for."""
    import torch

    from fmprobe.seeding import torch_seed

    with torch.random.fork_rng(devices=[]):  # some models draw weights before they read them
        if source.random_weights is not None:
            torch.default_generator.manual_seed(torch_seed(source.random_weights, "models: random weights"))
        try:
            model = adapter.load(source)
        except InputError:
            raise
        except Exception as error:  # of any kind: a config that its weights do not suit, or the caller's own module
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise InputError(f"cannot use {source.name} as a model of the family {family}: {reason}") from error
    tokens, side = model.provenance.get("tokens"), source.image_size
    if source.tokens not in (None, tokens):
        raise InputError(f"{source.name} has tokens {tokens!r} alone, not {source.tokens!r}: leave tokens out")
    if side not in (None, "fit") and model.image_shape[1:] != (side, side):
        raise InputError(
            f"{source.name} takes images of {model.image_shape} alone, not of {side} px: leave the image size out"
        )
    model.provenance.setdefault("family", family)
    model.identify_by(fingerprint)
    model.provenance["fingerprint"] = model.fingerprint
    return model


def _check_family(adapter: Adapter, family: str, name: str, asked: Mapping[str, Any]) -> None:
    """Raise InputError where something is given that the family has no use for."""
    for keyword, used in (("device_map", adapter.spreads), ("processor", adapter.processed)):
        if asked[keyword] is not None and not used:
            raise InputError(f"{keyword} does not go with {name}, of the family {family}: leave it out")


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
