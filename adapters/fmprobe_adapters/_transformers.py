"""What the adapters of transformers models share: safe loading and the processor's own preprocessing."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmprobe.errors import InputError
from fmprobe.hub import check_count, count_parameters
from fmprobe.loading import Source
from fmprobe_adapters._preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image


def read_preprocessing(source: Source) -> Preprocessing:
    """The preprocessing of the checkpoint's own image processor. Raises InputError where there is none."""
    processor = source.processor
    if processor is None:
        if source.folder is None:
            raise InputError(f"{source.name} is in memory: pass its image processor as processor=…")
        from transformers import AutoImageProcessor

        try:
            with quiet():
                processor = AutoImageProcessor.from_pretrained(source.folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{source.name} has no readable preprocessor_config.json, which states its pixel mean, deviation and "
                f"size: add one, or pass processor=…"
            ) from error
    if not getattr(processor, "do_rescale", True) or abs(processor.rescale_factor * 255 - 1) > 1e-3:
        raise InputError(f"the processor of {source.name} does not scale bytes to [0, 1], which images here are in")
    # Keys are missing, or None, where the processor does not take that step.
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else None
    size = int((crop or processor.size).get("height") or processor.size.get("shortest_edge") or 0)
    normalised = getattr(processor, "do_normalize", False)
    return Preprocessing(
        mean=tuple(float(v) for v in processor.image_mean) if normalised else (0.0,),
        std=tuple(float(v) for v in processor.image_std) if normalised else (1.0,),
        size=size,
        resize=lambda image, side: _processed(processor, image, side / size),
        how={
            "by": type(processor).__name__,
            "resize": dict(processor.size),
            "crop": dict(crop) if crop else None,
            "resample": None if processor.resample is None else int(processor.resample),
        },
    )


def _processed(processor: Any, image: "Image", scale: float) -> Tensor:
    """What the processor makes of an image, its sizes scaled, without the normalisation."""
    sizes = {"size": {k: round(v * scale) for k, v in dict(processor.size).items() if v is not None}}
    if getattr(processor, "do_center_crop", False):
        sizes["crop_size"] = {k: round(v * scale) for k, v in dict(processor.crop_size).items() if v is not None}
    return processor(image, return_tensors="pt", do_normalize=False, **sizes)["pixel_values"][0]


def load_module(source: Source, model_class: Any, **arguments: Any) -> Any:
    """The model in eval mode on its device, gradients off: from memory, or from safetensors with every weight there.

    `arguments` of the model's constructor. Raises InputError where weights are missing or damaged, do not fit the
    configuration, or are far fewer than it describes.
    """
    if source.module is not None:
        return source.module.eval()
    held = count_parameters(list(source.weights), source.name)
    with one_line_errors(source.name), quiet():
        config = model_class.config_class.from_pretrained(source.folder)
        with torch.device("meta"):  # nothing is allocated
            described = sum(p.numel() for p in model_class(config, **arguments).parameters())
    check_count(source.name, described, held)
    if source.random_weights is not None:
        with one_line_errors(source.name), quiet():
            module = model_class(config, **arguments)
        return module.requires_grad_(False).eval().to(source.device, source.dtype)
    with one_line_errors(source.name), quiet():
        placed = {} if source.device_map is None else {"device_map": source.device_map}
        module, info = model_class.from_pretrained(
            source.folder,
            config=config,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=source.dtype,
            **placed,
            **arguments,
        )
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{source.name} lacks {len(missing)} weights that {type(module).__name__} needs, such as {missing[0]}: "
            "they would be random, so nothing can be concluded from it"
        )
    module = module.requires_grad_(False).eval()
    return module.to(source.device) if source.device_map is None else module


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Whatever a model library raises while it loads, from OSError to SafetensorError, as one line that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot load the weights of {name}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' report of weights that a part of a model leaves unused; missing ones are errors here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def one(size: Any) -> int:
    """The side of a square that a config gives as a number or twice."""
    return int(size[0] if isinstance(size, list | tuple) else size)
