"""What the adapters of transformers models share: safe loading and the processor's own preprocessing."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fmprobe.errors import InputError
from fmprobe.loading import Source


@dataclass(frozen=True)
class Preprocessing:
    """What the checkpoint's image processor does: pixel mean and deviation a channel, image side, resampling."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    resample: int | None  # PIL's number of the filter

    def normalise(self, images: Tensor) -> Tensor:
        mean, std = self._statistics(images)
        return (images - mean) / std

    def denormalise(self, pixels: Tensor) -> Tensor:
        mean, std = self._statistics(pixels)
        return pixels * std + mean

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(v, dtype=like.dtype, device=like.device).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        return mean, std


def read_preprocessing(source: Source) -> Preprocessing:
    """The preprocessing of the checkpoint's own image processor. Raises InputError where there is none."""
    processor = source.processor
    if processor is None:
        if source.module is not None:
            raise InputError(f"{source.name} is in memory: pass its image processor as processor=…")
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(
                source.path, revision=source.revision, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{source.name} has no readable preprocessor_config.json, which states its pixel mean, deviation and "
                f"size: add one, or pass processor=…"
            ) from error
    # Keys are missing, or None, where the processor does not take that step.
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    normalised = getattr(processor, "do_normalize", False)
    return Preprocessing(
        mean=tuple(float(v) for v in processor.image_mean) if normalised else (0.0,),
        std=tuple(float(v) for v in processor.image_std) if normalised else (1.0,),
        size=int(size.get("height") or size.get("shortest_edge") or 0),
        resample=None if processor.resample is None else int(processor.resample),
    )


def load_module(source: Source, model_class: Any) -> Any:
    """The model in eval mode on its device, gradients off: from memory, or from safetensors with every weight there.

    Raises InputError where weights are missing, are not safetensors, or do not fit the configuration.
    """
    if source.module is not None:
        return source.module.eval()
    try:
        module, info = model_class.from_pretrained(
            source.path, output_loading_info=True, **source.pretrained_arguments()
        )
    except Exception as error:  # the libraries raise many kinds here, from OSError to SafetensorError
        reason = str(error).strip().splitlines()
        raise InputError(
            f"cannot load the weights of {source.name}: {reason[0] if reason else type(error).__name__}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{source.name} lacks {len(missing)} weights that {type(module).__name__} needs, such as {missing[0]}: "
            "they would be random, so nothing can be concluded from it"
        )
    module.requires_grad_(False)
    return module.eval().to(source.device)
