"""Networks that are almost the same: a little noise on the weights, as a ceiling for comparisons."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from fmprobe.errors import InputError
from fmprobe.seeding import index_of, torch_generator

NOISE = 0.01  # relative to the root mean square of each tensor
STATISTICS = ("running_mean", "running_var")
Network = TypeVar("Network", bound=nn.Module)


def perturb(tensors: Mapping[str, Tensor], noise: float = NOISE, seed: int = 0) -> dict[str, Tensor]:
    """Each floating-point tensor plus `noise` times its root mean square times N(0, 1), in its own precision.

    The noise of a tensor depends on `seed` and on its name alone, so that it does not matter which files hold it. The
    running means and variances of a batch norm stay: they are no weights, and a variance could become negative.

    Raises:
        InputError: the noise is negative or not finite.
    """
    if not 0 <= noise < math.inf:
        raise InputError(f"weight noise must be finite and from 0 up, got {noise}")
    changed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or name.rsplit(".", 1)[-1] in STATISTICS:
            changed[name] = tensor
            continue
        generator = torch_generator(seed, "perturbation: weight noise", index_of(name))
        drawn = torch.randn(tensor.shape, generator=generator).to(tensor.device)
        values = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        changed[name] = (values + noise * values.square().mean().sqrt() * drawn).to(tensor.dtype)
    return changed


def perturbed(module: Network, noise: float = NOISE, seed: int = 0) -> Network:
    """A copy of a torch module whose weights have noise added, as `perturb` adds it."""
    twin = copy.deepcopy(module)
    twin.load_state_dict(perturb(twin.state_dict(), noise, seed))
    return twin


def perturbed_checkpoint(
    name: str, folder: Path, *, revision: str | None = None, noise: float = NOISE, seed: int = 0
) -> Path:
    """A copy of a checkpoint in `folder` with noise on its weights, to be loaded by that name; returns `folder`.

    Args:
        name: hub id or local folder in Hugging Face layout.
        folder: where the copy goes.
        revision: branch, tag or commit of a hub id.
        noise: strength of the noise, relative to the root mean square of each tensor.
        seed: seed of the noise.

    Raises:
        InputError: there is no such model.
    """
    import shutil

    from safetensors.torch import load_file, save_file

    from fmprobe.hub import locate
    from fmprobe.loading import adapters, kind_of

    checkpoint = locate(name, revision)
    kind = kind_of(checkpoint.config)
    family = next((adapter for adapter in adapters().values() if kind in adapter.kinds), None)
    if family is None:
        raise InputError(f"{name} is of type {kind!r}, which no adapter covers")
    for optional in ("preprocessor_config.json", "processor_config.json"):
        checkpoint.fetch(optional)
    folder.mkdir(parents=True, exist_ok=True)
    for path in checkpoint.fetch_weights(family.weights):
        save_file(perturb(load_file(path), noise, seed), folder / path.name, metadata={"format": "pt"})
    for path in checkpoint.folder.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    return folder
