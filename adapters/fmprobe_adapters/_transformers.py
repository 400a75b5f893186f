"""What the adapters of transformers models share: safe loading, and the processor's own preprocessing."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmprobe.errors import InputError
from fmprobe.hub import check_count, stored_shapes
from fmprobe.loading import Source
from fmprobe_adapters._preprocessing import MODES, Preprocessing, Sides, check_channels, in_words, noise_picture
from fmprobe_adapters._weights import check_filled, check_keys, left_over, one_line_errors, quiet

if TYPE_CHECKING:
    from PIL.Image import Image


def read_preprocessing(source: Source, channels: int) -> Preprocessing:
    """Read the preprocessing of the checkpoint's own image processor, and check it against the processor itself.

    Args:
        source: the model.
        channels: number of channels of the images that the model takes.

    Raises:
        InputError: there is no processor, its statistics are of another number of channels, or it takes steps that are
            not known here.
    """
    processor = _image_processor(source)
    mean, std = _statistics(processor, source.name)
    check_channels(mean, std, channels, source.name)
    native = _native_sides(processor, source.name, channels)
    how = {
        "by": type(processor).__name__,
        "resize": _sizes(processor, "size") if getattr(processor, "do_resize", False) else None,
        "crop": _sizes(processor, "crop_size") if getattr(processor, "do_center_crop", False) else None,
        "resample": _resampling(getattr(processor, "resample", None)),
    }

    preprocessing = Preprocessing(mean, std, native, partial(_resized, processor, source.name, native), how)
    preprocessing.check_values(
        source.name,
        channels,
        lambda image: _processed(processor, image, source.name),
        lambda image: _pixels(processor, image, source.name, {}),
    )
    return preprocessing


def _resized(processor: Any, name: str, native: Sides | None, image: "Image", sides: Sides) -> Tensor:
    """A picture as the processor resizes and crops it, with its sizes scaled to other sides than its own."""
    pixels = _pixels(processor, image, name, _scaled(processor, native, sides))
    if tuple(pixels.shape[-2:]) != sides:
        raise InputError(
            f"the image processor of {name} makes {in_words((pixels.shape[-2], pixels.shape[-1]))} of a "
            f"picture of {image.height} x {image.width} px, and the model is loaded for {in_words(sides)}: crop "
            "the pictures to this shape, or pass a processor with do_center_crop"
        )
    return pixels


def _image_processor(source: Source) -> Any:
    """The image processor that was given, or else the checkpoint's own."""
    from transformers.image_processing_utils import BaseImageProcessor

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
                "size: add one, or pass processor=…"
            ) from error
    processor = getattr(processor, "image_processor", processor)  # a part of a processor for images and text
    if not isinstance(processor, BaseImageProcessor):
        given = repr(processor) if isinstance(processor, str) else f"a {type(processor).__name__}"
        raise InputError(
            f"processor is {given}: expected an image processor of transformers, as "
            "AutoImageProcessor.from_pretrained gives it"
        )
    return processor


def _statistics(processor: Any, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels in [0, 1], whatever scale the processor gives bytes before it normalises."""
    scales = getattr(processor, "do_rescale", True)
    scale = 255 * (float(processor.rescale_factor) if scales else 1.0)
    offset = 1.0 if scales and getattr(processor, "rescale_offset", False) else 0.0  # it is subtracted after scaling
    mean, std = (0.0,), (1.0,)
    if getattr(processor, "do_normalize", False):
        mean, std = (_values(getattr(processor, what, None), what, name) for what in ("image_mean", "image_std"))
    if scale == 0 or 0 in std:
        raise InputError(f"the image processor of {name} has a rescale_factor or an image_std of 0: correct it")
    return tuple((v + offset) / scale for v in mean), tuple(v / scale for v in std)


def _values(given: Any, what: str, name: str) -> tuple[float, ...]:
    """A statistic of the processor as a tuple of floats."""
    values = given if isinstance(given, list | tuple) else (given,)
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the image processor of {name} gives {what} {given!r}: expected one number, or one per channel"
        ) from error


def _native_sides(processor: Any, name: str, channels: int) -> Sides | None:
    """The height and width that the processor makes of square pictures; None if they depend on the picture."""
    if channels not in MODES:
        return None
    small, large = (_processed(processor, noise_picture(side, side, channels), name).shape[-2:] for side in (64, 96))
    return (small[0], small[1]) if small == large else None


def _processed(processor: Any, image: "Image", name: str, **changes: Any) -> Tensor:
    """Apply the processor to one picture; raise InputError if the result is not an image."""
    if hasattr(processor, "do_convert_rgb"):
        changes["do_convert_rgb"] = False  # pictures are already RGB or grey, as the model takes them
    try:
        pixels = processor(image, return_tensors="pt", **changes)["pixel_values"][0]
    except Exception as error:  # processors raise many kinds, from TypeError to KeyError
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise InputError(f"the image processor of {name} cannot read a picture: {reason}") from error
    if not isinstance(pixels, Tensor) or pixels.ndim != 3:
        raise InputError(f"the image processor of {name} does not make one image of a picture: pass another processor")
    return pixels.float()


def _pixels(processor: Any, image: "Image", name: str, sizes: dict[str, Any]) -> Tensor:
    """As `_processed`, but in [0, 1]: it does not normalise, and always divides bytes by 255."""
    plain = {"do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 255}
    if hasattr(processor, "rescale_offset"):
        plain["rescale_offset"] = False
    return _processed(processor, image, name, **plain, **sizes)


def _scaled(processor: Any, native: Sides | None, sides: Sides) -> dict[str, Any]:
    """The processor's sizes, scaled to other sides than its own."""
    if native is None or sides == native:
        return {}
    high, wide = sides[0] / native[0], sides[1] / native[1]
    factors = {"height": high, "max_height": high, "width": wide, "max_width": wide}
    return {
        what: {key: round(value * factors.get(key, max(high, wide))) for key, value in given.items()}
        for what in ("size", "crop_size", "pad_size")
        if (given := _sizes(processor, what))
    }


def _sizes(processor: Any, what: str) -> dict[str, int]:
    """The entries of the processor's "size" or "crop_size" that are set."""
    given = getattr(processor, what, None)
    return {key: value for key, value in dict(given or {}).items() if value is not None}


def _resampling(given: Any) -> int | str | None:
    """The resampling method as JSON can hold it: PIL's number, or the name that the processor gives."""
    return int(given) if isinstance(given, int) else given and str(getattr(given, "value", given))


def load_module(source: Source, model_class: Any, absent: set[str] | None = None, **arguments: Any) -> Any:
    """Load a model from safetensors, in eval mode on its device, with gradients off and all weights present.

    A model in memory is returned as it is.

    Args:
        source: the model.
        model_class: the class of transformers.
        absent: gets the names of missing weights, which then hold NaN. The caller must raise an error if the model's
            outputs depend on them. By default a missing weight is an error.
        arguments: arguments of the model's constructor.

    Raises:
        InputError: weights are missing or damaged, do not fit the configuration, or are far fewer than it describes.
    """
    if source.module is not None:
        return source.module
    held = stored_shapes(source.weights, source.name)
    with one_line_errors(source.name), quiet():
        config = model_class.config_class.from_pretrained(source.folder)
        with torch.device("meta"):  # so that nothing is allocated
            described = model_class(config, **arguments)
    check_count(source.name, described, held, partial(_name_in_files, described))
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
            ignore_mismatched_sizes=True,  # the check below reports them by name
            **placed,
            **arguments,
        )
    module = module.requires_grad_(False).eval()
    missing = check_loaded(source.name, module, info, held, lenient=absent is not None)
    if absent is not None:
        absent.update(missing)
    if source.device_map is not None:
        return module
    check_filled(source.name, module)
    return module.to(source.device)


def check_loaded(name: str, module: Any, info: Mapping[str, Any], held: Collection[str], lenient: bool) -> list[str]:
    """Check what `from_pretrained` loaded; return the missing weights by their names in the files, filled with NaN.

    Args:
        name: what the model is called in the message.
        module: the model.
        info: what `from_pretrained` reports of its loading.
        held: names in the files, which may hold more parts than the module has.
        lenient: whether weights may be missing.

    Raises:
        InputError: as `check_keys`.
    """
    state, base = module.state_dict(keep_vars=True), f"{module.base_model_prefix}."
    prefix = base if not any(key.startswith(base) for key in state) and any(k.startswith(base) for k in held) else ""

    def in_files(key: str) -> str:
        return prefix + _name_in_files(module, key.removeprefix(prefix)).removeprefix(prefix)

    missing = [in_files(key) for key in info["missing_keys"]]
    unexpected = [key.removeprefix(base) for key in info["unexpected_keys"]] if prefix else info["unexpected_keys"]
    unexpected = left_over([*state, *(_name_in_files(module, key) for key in state)] if unexpected else (), unexpected)
    check_keys(
        name,
        type(module).__name__,
        [] if lenient and not unexpected else missing,
        [in_files(key) for key in unexpected],
        [(in_files(key), theirs, ours) for key, theirs, ours in info["mismatched_keys"]],
    )
    for key in info["missing_keys"]:
        state[key].data.fill_(float("nan"))
    return missing


def _name_in_files(module: Any, key: str) -> str:
    """The name that files give a weight of a module, if this version of transformers has another name in memory."""
    from transformers.core_model_loading import revert_weight_conversion

    try:
        return next(iter(revert_weight_conversion(module, {key: torch.zeros(1)})))
    except Exception:  # the weight is made only together with others
        return key
