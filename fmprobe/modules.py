"""Models that are in memory already: what they are, where they lie, and how to evaluate them without changing them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fmprobe.autoencoder import Autoencoder


def unwrapped(module: Any) -> Any:
    """The model inside torch.compile, DataParallel, DistributedDataParallel and similar wrappers, in any order."""
    from accelerate.utils import extract_model_from_parallel
    from torch import nn

    while (
        isinstance(module, nn.Module)
        and (inner := extract_model_from_parallel(module, keep_torch_compile=False)) is not module
    ):
        module = inner
    return module


def config_of(module: Any) -> dict[str, Any]:
    """The config of a transformers, diffusers or timm model.

    Raises:
        InputError: the model is of another library.
    """
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
    # diffusers writes the name of the class only into files.
    names = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("diffusers.")]
    return {**dict(config), **({"_class_name": names[0]} if names else {})}


def placement(module: "nn.Module", name: str) -> "tuple[torch.device, torch.dtype]":
    """The device of a model's parameters, and the dtype of the first floating-point one.

    Raises:
        InputError: the model has no parameters, or none with values; they lie on several devices without accelerate's
            hooks; or the model is quantised, so that its weights are not tensors.
    """
    import torch

    parameters = dict(module.named_parameters())
    first = next((p for p in parameters.values() if p.is_floating_point()), None)
    packed = next((key for key, value in module.state_dict().items() if not isinstance(value, torch.Tensor)), None)
    if packed is not None:
        raise InputError(f"{name} is quantised, and {packed} has no derivatives: pass the model before quantisation")
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


def check_in_memory(name: str, placed: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Check that nothing is asked of a module in memory that only its owner may do to it.

    Args:
        name: what the model is called in the message.
        placed: device and dtype of the module.
        asked: arguments of `load`, None where they were not given.

    Raises:
        InputError: random weights, a revision, a device map, or another device or dtype is asked for.
    """
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
    """A device as type and number, 0 if it has no number; a dtype as it is."""
    return (device.type, device.index or 0) if hasattr(device, "type") else device


def kept_in_its_mode(model: "Autoencoder", module: "nn.Module") -> "Autoencoder":
    """A model whose functions run with every part of its module in evaluation mode, and restore the mode of each part.

    So dropout and batch statistics never enter a latent, whatever mode the owner of the module has chosen.
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
    """Put every part of a module in evaluation mode for a while."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def weights_drawn(seed: int | None) -> Iterator[None]:
    """Draw the weights of models that are made inside from a stream of the seed; the caller's random state is kept.

    Without a seed it is kept as well, since some models draw weights before they read them.
    """
    import torch

    from fmprobe.seeding import torch_seed

    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(torch_seed(seed, "models: random weights"))
        yield
