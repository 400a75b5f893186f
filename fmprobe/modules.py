"""A model that is in memory already: what it is, where it lies, and how it is evaluated without being changed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fmprobe.autoencoder import Autoencoder


def unwrapped(module: Any) -> Any:
    """The model inside torch.compile, DataParallel, DistributedDataParallel and their like, in any order."""
    from accelerate.utils import extract_model_from_parallel
    from torch import nn

    while (
        isinstance(module, nn.Module)
        and (inner := extract_model_from_parallel(module, keep_torch_compile=False)) is not module
    ):
        module = inner
    return module


def config_of(module: Any) -> dict[str, Any]:
    """The config of a transformers, diffusers or timm model. Raises InputError for others."""
    if hasattr(module, "pretrained_cfg"):  # timm
        return {"architecture": module.pretrained_cfg.get("architecture"), "pretrained_cfg": module.pretrained_cfg}
    if not hasattr(module, "config") or not hasattr(module, "parameters"):
        raise InputError(
            f"cannot load a {type(module).__name__}: expected a hub id, a folder, or a model of transformers, "
            "diffusers or timm"
        )
    config = module.config
    if hasattr(config, "to_dict"):
        return config.to_dict()
    # diffusers writes the name of the class into files alone.
    names = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("diffusers.")]
    return {**dict(config), **({"_class_name": names[0]} if names else {})}


def placement(module: "nn.Module", name: str) -> "tuple[torch.device, torch.dtype]":
    """Where a model's parameters lie and their type, which is the first one's.

    Raises InputError where it has none, or none with values, where they lie on several devices without accelerate's
    hooks, and where it is quantised, so that its weights are no tensors.
    """
    import torch

    parameters = dict(module.named_parameters())
    first = next((p for p in parameters.values() if p.is_floating_point()), None)
    packed = next((key for key, value in module.state_dict().items() if not isinstance(value, torch.Tensor)), None)
    if packed is not None:
        raise InputError(
            f"{name} is quantised, and what it packs in {packed} has no derivatives: pass the model as it was before"
        )
    if first is None:
        raise InputError(f"{name} has no parameters: expected a model with weights")
    empty = sorted(key for key, parameter in parameters.items() if parameter.is_meta)
    if empty:
        raise InputError(
            f"{name} has {len(empty)} parameters on the meta device, which hold no values, such as {empty[0]}: give "
            "the model its weights, on one device"
        )
    devices = sorted({str(parameter.device) for parameter in parameters.values()})
    if len(devices) > 1 and not hasattr(module, "hf_device_map"):
        raise InputError(f"{name} lies on {' and '.join(devices)}: move the module to one device, or load it by name")
    return first.device, first.dtype


def kept_in_its_mode(model: "Autoencoder", module: "nn.Module") -> "Autoencoder":
    """A model whose functions run with every part of its module in evaluation mode, and leave each in its own.

    So dropout and statistics of a batch never enter a latent, whatever mode the module's owner has it in.
    """

    def kept(function: "Callable[[Tensor], Tensor] | None") -> "Callable[[Tensor], Tensor] | None":
        if function is None:
            return None

        def run(x: "Tensor") -> "Tensor":
            with evaluation(module):
                return function(x)

        return run

    return model.derived(encode=kept(model._encode), decode=kept(model._decode), latent_map=kept(model._latent_map))


@contextmanager
def evaluation(module: "nn.Module") -> Iterator[None]:
    """Every part of a module in evaluation mode for a while."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
