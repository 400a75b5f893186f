"""Safe loading of diffusers' models."""

from collections.abc import Callable
from typing import Any

import torch

from fmprobe.errors import InputError
from fmprobe.hub import check_count, count_parameters
from fmprobe.loading import Source
from fmprobe_adapters._transformers import one_line_errors


def load_module(source: Source, complete: Callable[[Source, Any], None] | None = None) -> Any:
    """The autoencoder in eval mode on its device, gradients off, every weight there.

    `complete` may fill in what diffusers left out, which are parameters without storage. Raises InputError where
    weights are missing or damaged, or are far fewer than the configuration describes.
    """
    if source.module is not None:
        return source.module.eval()
    import diffusers
    from diffusers.utils import logging

    model_class = getattr(diffusers, source.config["_class_name"])
    held = count_parameters(list(source.weights), source.name)
    logging.set_verbosity_error()
    with one_line_errors(source.name):
        with torch.device("meta"):  # nothing is allocated
            described = sum(p.numel() for p in model_class.from_config(dict(source.config)).parameters())
        check_count(source.name, described, held)
        if source.random_weights is not None:
            module = model_class.from_config(dict(source.config))
            return module.requires_grad_(False).eval().to(source.device, source.dtype)
        # With low_cpu_mem_usage a weight that is missing stays without storage instead of being made up.
        module = model_class.from_pretrained(
            str(source.folder), use_safetensors=True, torch_dtype=source.dtype, low_cpu_mem_usage=True
        )
        if complete is not None:
            complete(source, module)
    if missing := sorted(unfilled(module)):
        raise InputError(
            f"{source.name} lacks {len(missing)} weights that {type(module).__name__} needs, such as {missing[0]}: "
            "they would be random, so nothing can be concluded from it"
        )
    return module.requires_grad_(False).eval().to(source.device)


def unfilled(module: torch.nn.Module) -> set[str]:
    """Parameters that no weights were found for: they have a shape and no storage."""
    return {name for name, parameter in module.named_parameters() if parameter.is_meta}
