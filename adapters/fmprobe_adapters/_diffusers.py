"""Safe loading of diffusers' models, and the normalisation of latents that their configs state."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmprobe.errors import InputError
from fmprobe.hub import check_count, stored_shapes
from fmprobe.loading import Source
from fmprobe_adapters._weights import check_filled, check_keys, one_line_errors, quiet

IN_CONFIG = {  # buffers of AutoencoderRAE, and the entries of its config that it makes them from
    "_latents_mean": "latents_mean",
    "_latents_std": "latents_std",
    "encoder_mean": "encoder_norm_mean",
    "encoder_std": "encoder_norm_std",
}
NUMBERS, LISTS = ("scaling_factor", "shift_factor"), ("latents_mean", "latents_std")  # one value; one per channel
# An entry that diffusers' class does not know, with one of these in its name, may be another normalisation.
SUSPECT = re.compile("mean|std|var|scal|shift|norm|magnitude")


def load_module(source: Source, complete: Callable[[Source, Any], tuple[str, ...]] | None = None) -> Any:
    """Load an autoencoder from files, in eval mode on its device, with gradients off and all weights present.

    A model in memory is returned as it is.

    Args:
        source: the model.
        complete: may fill in parameters that diffusers left without storage, and returns the prefixes of the names of
            weights that it has handled.

    Raises:
        InputError: weights are missing or damaged, do not fit the configuration, or are far fewer than it describes.
    """
    if source.module is not None:
        return source.module
    import diffusers

    model_class = getattr(diffusers, source.config["_class_name"])
    held = stored_shapes(source.weights, source.name)
    with one_line_errors(source.name), quiet():
        with torch.device("meta"):  # so that nothing is allocated
            described = model_class.from_config(dict(source.config))
        check_count(source.name, described, held)
        if source.random_weights is not None:
            module = model_class.from_config(dict(source.config))
            return module.requires_grad_(False).eval().to(source.device, source.dtype)
        ours = {key: tuple(value.shape) for key, value in described.state_dict().items()}
        other = [(key, shape, ours[key]) for key, shape in held.items() if ours.get(key, shape) != shape]
        check_keys(source.name, model_class.__name__, mismatched=other)
        # With low_cpu_mem_usage a missing weight stays without storage instead of being initialised at random.
        module, info = model_class.from_pretrained(
            str(source.folder),
            use_safetensors=True,
            torch_dtype=source.dtype,
            low_cpu_mem_usage=True,
            output_loading_info=True,
        )
        done = () if complete is None else complete(source, module)
    stated = {key for key, entry in IN_CONFIG.items() if source.config.get(entry) is not None}
    missing, unexpected = (
        {key for key in info[what] if not key.startswith(done)} for what in ("missing_keys", "unexpected_keys")
    )
    check_keys(source.name, model_class.__name__, missing - stated, unexpected)
    check_filled(source.name, module)
    return module.requires_grad_(False).eval().to(source.device)


def unfilled(module: torch.nn.Module) -> set[str]:
    """The parameters that no weights were found for; they have a shape but no storage."""
    return {name for name, parameter in module.named_parameters() if parameter.is_meta}


@dataclass(frozen=True)
class Normalisation:
    """What diffusers' pipelines do to the latents of a VAE: (raw - offset) x factor, per channel or for all channels.

    Attributes:
        offset: the offset.
        factor: the factor.
        words: description for a provenance.
    """

    offset: Tensor
    factor: Tensor
    words: str

    def apply(self, raw: Tensor) -> Tensor:
        """Normalise raw latents."""
        return (raw - self.offset) * self.factor

    def undo(self, latents: Tensor) -> Tensor:
        """Turn normalised latents back into raw ones."""
        return latents / self.factor + self.offset


def read_normalisation(source: Source, module: Any) -> Normalisation:
    """Read the normalisation of a VAE's config, by a shift or by means and deviations, as the pipelines of diffusers
    do.

    `(raw - shift_factor) * scaling_factor` is that of pipeline_flux_img2img.
    `(raw - latents_mean) * scaling_factor / latents_std` is that of pipeline_stable_diffusion_xl_img2img.

    Raises:
        InputError: a value is not valid; a shift is stated together with means, for which no pipeline has a formula; or
            there is an entry that diffusers' class does not know.
    """
    config, name = {**source.config, **module.config}, source.name
    known = {key for kind in type(module).__mro__ for key in inspect.signature(kind.__init__).parameters}
    for key, value in config.items():
        if value is not None and key not in known | {*NUMBERS, *LISTS} and SUSPECT.search(key) and key[0] != "_":
            raise InputError(
                f"the config of {name} states {key}, which {type(module).__name__} does not know and which may "
                "normalise its latents: remove it if it does not, else use fmprobe.from_functions"
            )
    scale, shift = (_values(config.get(key), key, 1, name) for key in NUMBERS)
    channels = int(config["latent_channels"])
    mean, std = (_values(config.get(key), key, channels, name) for key in LISTS)
    if (mean is None) != (std is None):
        raise InputError(f"the config of {name} states only one of latents_mean and latents_std: expected both")
    if mean is not None and shift is not None and bool(shift.any()):
        raise InputError(
            f"the config of {name} states shift_factor and latents_mean, which no pipeline of diffusers uses together: "
            "take out the one that does not apply"
        )
    scale = torch.ones(1, 1, 1) if scale is None else scale
    shift = torch.zeros(1, 1, 1) if shift is None else shift
    if 0 in scale or (std is not None and 0 in std):
        raise InputError(f"the config of {name} states a scaling_factor or a latents_std of 0: correct it")
    if mean is None or std is None:
        offset, factor, words = shift, scale, f"{float(shift):g}) x {float(scale):g}: the published shift"
    else:
        offset, factor, words = (
            mean,
            scale / std,
            f"mean) / deviation x {float(scale):g}: both as published, a channel,",
        )
    words = f"(posterior mode - {words} and scaling factor, applied here"
    return Normalisation(offset.to(source.device), factor.to(source.device), words)


def _values(given: Any, key: str, count: int, name: str) -> Tensor | None:
    """Numbers of a config as `(count, 1, 1)`, and None for None; raise InputError for anything else."""
    if given is None:
        return None
    try:
        values = torch.tensor(given, dtype=torch.float32).flatten()
    except (TypeError, ValueError, RuntimeError):
        values = torch.zeros(0)
    if len(values) != count or isinstance(given, bool) or not bool(values.isfinite().all()):
        expected = "a number" if count == 1 else f"{count} numbers, one per channel"
        raise InputError(f"the config of {name} states {key} = {given!r}: expected {expected}")
    return values.view(-1, 1, 1)
