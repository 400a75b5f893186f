"""`load(name)`: from the name of a model to an `Autoencoder`, through the adapters registered as entry points.

Listing the families imports nothing heavy: an adapter imports its model library inside `load`.
"""

import difflib
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmprobe.devices import pick_device
from fmprobe.dynamics.protocols import FOUNDATION
from fmprobe.errors import InputError
from fmprobe.families import SMALL_IMAGE, TOKENS, Adapter, Published, Source, Tokens, adapters
from fmprobe.published import is_published, load_published

if TYPE_CHECKING:
    import torch

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.execution import Execution

# The classes that an adapter is written with are imported from here.
__all__ = [
    "SMALL_IMAGE",
    "TOKENS",
    "Adapter",
    "Published",
    "Source",
    "Tokens",
    "adapters",
    "kind_of",
    "load",
    "pick_device",
]


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
    """Load a model as an Autoencoder: a hub id, a local folder in Hugging Face layout, or a model in memory.

    Weights are read only from safetensors, and no code of a repository is executed.

    A transformers, timm or diffusers model in memory is used as it is and left as it is: on its own device and in its
    own dtype. It is always evaluated in evaluation mode, whatever its own mode is. torch.compile, DataParallel and
    DistributedDataParallel around it are unwrapped.

    Args:
        name: the hub id, the folder, or the model in memory.
        decoder: folder of a surrogate decoder that `fit-decoder` wrote, for an encoder that has no decoder. Its image
            size and tokens are taken over. Or "published", the decoder that was published for this encoder, of images
            of `image_size` where there are several; or the hub id of such a decoder.
        revision: branch, tag or commit of a hub id.
        image_size: image side in pixels. None is the processor's. "fit" is the processor's as well, but at most 112 px
            if there is no accelerator and the model takes other sizes.
        tokens: tokens that make up z: "patch" (the default of encoders), "cls", "pooled" or "all". A model with its own
            decoder always uses those that the decoder was trained on.
        device: None or "auto" takes CUDA, MPS or CPU, whichever is there.
        dtype: dtype of the weights, by default float32. Latents are always float32.
        processor: image processor in place of the checkpoint's own; required for a transformers model in memory.
        random_weights: seed with which the architecture is initialised in place of the stored weights.
        device_map: "auto", or accelerate's map of modules to devices, for a transformers model too large for one
            device.
        autocast: dtype of f alone, "bfloat16" or "float16".
        compile: backend of `torch.compile` for f, such as "inductor".
        deterministic: whether torch uses deterministic algorithms, and a row of f is the same bit for bit in any batch.

    Returns:
        The model, in eval mode.

    Raises:
        InputError: the name, family, revision or decoder do not fit, or an argument is given that such a model cannot
            use.
    """
    if tokens is not None and tokens not in TOKENS:
        raise InputError(f"unknown tokens {tokens!r}: expected one of {', '.join(TOKENS)}")
    published = is_published(decoder)
    if decoder is not None and not published:
        from fmprobe.surrogates.artefact import recorded

        made_for = recorded(decoder)
        image_size = made_for.image_size if image_size in (None, "fit") else image_size
        tokens = tokens or made_for.tokens
    if isinstance(image_size, bool):
        raise InputError(f'image size {image_size!r}: expected the side in pixels, "fit" or None')
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
    if published:
        model = load_published(name, str(decoder), revision, asked)
    elif isinstance(name, str | Path):
        model = _from_files(str(name), revision, asked)
    else:
        explicit = {"device": None if device in (None, "auto") else asked["device"], "dtype": dtype and asked["dtype"]}
        model = _from_memory(name, revision, asked | explicit)
    model.protocol = FOUNDATION
    model.evaluate_by(execution)
    model.provenance |= _changes(execution, deterministic, device_map, processor)
    if isinstance(name, str | Path) and device_map is None:
        pinned = {"revision": model.provenance.get("revision") or revision, "image_size": _side_of(model, image_size)}
        how = {"tokens": tokens, "dtype": dtype, "processor": processor, "random_weights": random_weights}
        again = {**pinned, **how, "decoder": str(decoder) if published else None}
        model.reload_by(lambda device: load(name, device=device, **again))
    if decoder is None or published:
        return model
    from fmprobe.surrogates.artefact import load_surrogate

    return model.with_decoder(load_surrogate(decoder, model))


def demo_model() -> "Autoencoder":
    """Load the model that fmprobe ships: a small ViT-MAE trained on scikit-learn's digits, offline, on the CPU."""
    from importlib.resources import as_file, files

    with as_file(files("fmprobe.demo") / "vit-mae-digits") as folder:
        return load(str(folder), device="cpu")


def _side_of(model: "Autoencoder", asked: "int | Literal['fit'] | None") -> "int | Literal['fit'] | None":
    """The image size that gives this model's on any device: "fit" depends on it."""
    return model.image_shape[-1] if asked == "fit" and model.image_shape else asked


def _changes(execution: "Execution", deterministic: bool, device_map: Any, processor: Any) -> dict[str, Any]:
    """What provenance records of arguments that change the values of f; only those that were given."""
    changed = {
        "autocast": execution.autocast and str(execution.autocast).removeprefix("torch."),
        "compile": execution.compile,
        "deterministic": deterministic,
        "device_map": None if device_map is None else str(device_map),
        "processor": None if processor is None else type(processor).__name__,  # one given in place of the checkpoint's
    }
    return {name: value for name, value in changed.items() if value not in (None, False)}


def _execution(autocast: "str | torch.dtype | None", compile: str | None, deterministic: bool) -> "Execution":
    """How f is evaluated, by the arguments of `load`."""
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
    """A dtype by its name or as it is; None is float32."""
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
    """The seed of random weights, as an int; None if there are to be none.

    InputError is raised if it is not a seed, or beside a device map, which random weights would not follow.
    """
    if random_weights is None:
        return None
    if isinstance(random_weights, bool) or not hasattr(random_weights, "__index__"):
        raise InputError(f"random_weights {random_weights!r}: expected a seed, a whole number")
    if device_map is not None:
        raise InputError("device_map does not go with random_weights: leave one of them out")
    return operator.index(random_weights)


def _from_files(name: str, revision: str | None, asked: Mapping[str, Any]) -> "Autoencoder":
    """Load a model from a folder or from the hub."""
    from fmprobe.digests import digest
    from fmprobe.fingerprint import of_files, of_memory
    from fmprobe.hub import locate

    checkpoint = locate(name, revision)
    checkpoint.check_revision(revision)
    family, adapter = _adapter_of(checkpoint.config, checkpoint.name)
    _check_family(adapter, family, checkpoint.name, asked)
    processors = [checkpoint.fetch(file) for file in ("preprocessor_config.json", "processor_config.json")]
    weights = tuple(checkpoint.fetch_weights(adapter.weights))
    config, seed, given = checkpoint.config, asked["random_weights"], asked["processor"]
    read = processors if adapter.processed and given is None else ()
    files = digest(of_files(weights, config, read), None if seed is None else ["drawn", seed])
    source = Source(checkpoint.name, checkpoint.folder, checkpoint.commit, config, weights=weights, **asked)
    first = None if given is None else of_memory(given)  # adapters read some of the processor's settings only once
    return _loaded(family, adapter, source, lambda: files if first is None else digest(files, first, of_memory(given)))


def _from_memory(wrapped: Any, revision: str | None, asked: Mapping[str, Any]) -> "Autoencoder":
    """Wrap a model that is in memory."""
    from fmprobe.fingerprint import of_memory
    from fmprobe.modules import check_in_memory, config_of, evaluation, kept_in_its_mode, placement, unwrapped

    module, processor = unwrapped(wrapped), asked["processor"]
    config = config_of(module)
    name = config.get("_name_or_path") or type(module).__name__
    family, adapter = _adapter_of(config, name)
    device, dtype = placement(module, name)
    placed: dict[str, Any] = {"device": device, "dtype": dtype}
    check_in_memory(name, placed, {**asked, "revision": revision})
    _check_family(adapter, family, name, asked)
    read_once = of_memory(config, processor)  # adapters read these once, and later changes of them have no effect
    source = Source(name, None, None, config, module=module, **{**asked, **placed})
    with evaluation(module):
        model = _loaded(family, adapter, source, lambda: of_memory(module, processor, read_once))
    return kept_in_its_mode(model, module)


def _loaded(family: str, adapter: Adapter, source: Source, fingerprint: Callable[[], str]) -> "Autoencoder":
    """Load a source by its adapter and add its fingerprint; raise InputError if the model is not as asked for."""
    from fmprobe.modules import weights_drawn

    with weights_drawn(source.random_weights):
        try:
            model = adapter.load(source)
        except InputError:
            raise
        except Exception as error:  # a config that does not fit its weights, or a caller's module, may raise any kind
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise InputError(f"cannot use {source.name} as a model of the family {family}: {reason}") from error
    tokens, side = model.provenance.get("tokens"), source.image_size
    if source.tokens not in (None, tokens):
        raise InputError(f"{source.name} has only the tokens {tokens!r}, not {source.tokens!r}: leave tokens out")
    if side not in (None, "fit") and model.image_shape[1:] != (side, side):
        raise InputError(
            f"{source.name} takes only images of {model.image_shape}, not of {side} px: leave the image size out"
        )
    model.provenance.setdefault("family", family)
    model.identify_by(fingerprint)
    model.provenance["fingerprint"] = model.fingerprint
    return model


def _check_family(adapter: Adapter, family: str, name: str, asked: Mapping[str, Any]) -> None:
    """Raise InputError if an argument is given that the family cannot use."""
    for keyword, used in (("device_map", adapter.spreads), ("processor", adapter.processed)):
        if asked[keyword] is not None and not used:
            raise InputError(f"{keyword} does not go with {name}, of the family {family}: leave it out")


def kind_of(config: Mapping[str, Any]) -> str | None:
    """What a config.json calls its model: `model_type` of transformers, `_class_name` of diffusers, or "timm"."""
    return config.get("model_type") or config.get("_class_name") or ("timm" if "architecture" in config else None)


def _adapter_of(config: Mapping[str, Any], name: str) -> tuple[str, Adapter]:
    """The family and the adapter of a config; raise InputError if there is none."""
    kind = kind_of(config)
    for family, adapter in adapters().items():
        if kind in adapter.kinds:
            adapter.check_installed(name)
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
