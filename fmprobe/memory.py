"""Models in memory: what a module of transformers, timm or diffusers says of itself, and whether it can be used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError

if TYPE_CHECKING:
    import torch


def unwrapped(module: Any) -> Any:
    """The module that `torch.compile` wraps, whose own code is what an adapter calls; else the module."""
    return getattr(module, "_orig_mod", module)


def config_of(module: Any) -> dict[str, Any]:
    """The config of a transformers, diffusers or timm model in memory. Raises InputError for anything else."""
    if hasattr(module, "pretrained_cfg"):  # timm
        return {"architecture": module.pretrained_cfg.get("architecture"), "pretrained_cfg": module.pretrained_cfg}
    if not hasattr(module, "config") or not hasattr(module, "parameters"):
        raise InputError(
            f"cannot load a {type(module).__name__}: expected a hub id, a folder, or a model of transformers, "
            "diffusers or timm"
        )
    config = module.config
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def first_weight(module: Any, name: str) -> "torch.Tensor":
    """A weight, which says where the module is and of what type. Raises InputError where there are no values."""
    first = next(iter(module.parameters()), None)
    if first is None:
        raise InputError(f"{name} has no weights: expected a model of transformers, diffusers or timm")
    if any(weight.is_meta for weight in module.parameters()):
        raise InputError(f"{name} is on the meta device, where weights have no values: load them first")
    return first


def check_heeded(
    name: str, first: "torch.Tensor", *, dtype: "torch.dtype | None", device: "torch.device | None", **given: Any
) -> None:
    """Raise InputError where something is asked of a module in memory that only its owner may do to it.

    `dtype` and `device`, where they are not None, have to be the module's; `given` have to be None.
    """
    if given.pop("random_weights") is not None:
        raise InputError(f"{name} is in memory: pass a hub id or a folder for its architecture with random weights")
    for keyword, value in given.items():
        if value is not None:
            raise InputError(f"{keyword} does not go with {name}, which is in memory: pass a hub id, or leave it out")
    if dtype is not None and dtype != first.dtype:
        mine, asked = (str(one).removeprefix("torch.") for one in (first.dtype, dtype))
        raise InputError(
            f"{name} is in memory in {mine}, not {asked}: convert it with module.to(dtype), or leave dtype out"
        )
    if device is not None and (device.type, device.index or 0) != (first.device.type, first.device.index or 0):
        raise InputError(
            f"{name} is in memory on {first.device}, not {device}: move it with module.to(device), or leave device out"
        )


def recorded_name(config: Mapping[str, Any], module: Any) -> str:
    """The hub id or folder that a module was loaded from, else the name of its class."""
    return config.get("_name_or_path") or type(module).__name__
