"""Safe loading of timm's models."""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import timm
import torch

from fmprobe.errors import InputError
from fmprobe.hub import check_count, stored_shapes
from fmprobe.loading import Source
from fmprobe_adapters._weights import check_filled, check_keys, one_line_errors, quiet

UNFETCHED = {"url": None, "hf_hub_id": None, "custom_load": False, "source": ""}  # weights are read only from files


@dataclasses.dataclass(frozen=True)
class Description:
    """What config.json says of a model.

    Attributes:
        architecture: name of the architecture.
        pretrained_cfg: timm's pretrained configuration.
        arguments: arguments of the model's constructor.
    """

    architecture: str
    pretrained_cfg: dict[str, Any]
    arguments: dict[str, Any]

    def make(self, resized: bool = False, **weights: Any) -> Any:
        """Make the model, with weights if `weights` are given, as entries of a pretrained configuration."""
        cfg = self.pretrained_cfg | weights
        wanted: Any = {"pretrained": bool(weights), "pretrained_cfg": cfg, **self.arguments}
        if resized:
            try:  # vision transformers interpolate their position embeddings if asked to
                return timm.create_model(self.architecture, **wanted, dynamic_img_size=True)
            except TypeError:  # other architectures have no such argument and do not need it
                pass
        return timm.create_model(self.architecture, **wanted)

    @property
    def heads(self) -> tuple[str, ...]:
        """Prefixes of the names of the classifier's weights."""
        names = self.pretrained_cfg["classifier"] or ()
        return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))

    def headless(self) -> "Description":
        """The same model without a classifier, so that timm drops the classifier's weights."""
        return Description(
            self.architecture, self.pretrained_cfg | {"num_classes": -1}, self.arguments | {"num_classes": 0}
        )


def read_description(source: Source) -> Description:
    """Read config.json as timm does. Files of 2021 hold the entries of the pretrained configuration at the top."""
    config, name = source.config, source.config["architecture"]
    if name not in timm.list_models():
        raise InputError(
            f"{source.name} is of timm's architecture {name!r}, which this timm does not know: upgrade timm"
        )
    known = {entry.name for entry in dataclasses.fields(timm.models.PretrainedCfg)}
    stated = {key: value for key, value in config.get("pretrained_cfg", config).items() if key in known}
    cfg = {"classifier": getattr(timm.get_pretrained_cfg(name), "classifier", None), **stated, **UNFETCHED}
    arguments = {"num_classes": config.get("num_classes", cfg.get("num_classes", 0)), **config.get("model_args", {})}
    # If the two numbers of classes differed, timm would accept any missing weight.
    return Description(name, cfg | {"num_classes": arguments["num_classes"]}, arguments)


def load_module(source: Source, resized: bool) -> Any:
    """Load the model that config.json describes with the weights of its safetensors files; nothing is fetched.

    Raises:
        InputError: weights other than those of a classifier are missing or damaged, do not fit the configuration, or
            are far fewer than it describes.
    """
    held = stored_shapes(source.weights, source.name)
    description = read_description(source)
    with one_line_errors(source.name), quiet():
        with torch.device("meta"):  # so that nothing is allocated
            described = description.make()
        check_count(source.name, described, held)
        if source.random_weights is not None:
            module = description.make(resized)
            return module.requires_grad_(False).eval().to(source.device, source.dtype)
        heads = description.heads
        ours = {key: tuple(value.shape) for key, value in described.state_dict().items() if not key.startswith(heads)}
        # timm would resample weights of another size, and invent filters for another number of channels.
        other = {(k, held[k], shape) for k, shape in ours.items() if math.prod(held.get(k, shape)) != math.prod(shape)}
        check_keys(source.name, type(described).__name__, mismatched=other)
        module = _filled(source, description, resized, missing=ours.keys() - held.keys())
    check_filled(source.name, module)
    return module.requires_grad_(False).eval().to(source.device, source.dtype)


def _filled(source: Source, description: Description, resized: bool, missing: Iterable[str]) -> Any:
    """The model with its weights. If only those of the classifier do not fit, it is left out, since z does not use it.

    `missing` are names that the files lack. This is no error if timm has a filter that renames weights.
    """
    from safetensors.torch import load_file

    weights: dict[str, Any] = {"file": str(source.weights[0])}
    if len(source.weights) > 1:
        weights = {"state_dict": {key: value for path in source.weights for key, value in load_file(path).items()}}
    try:
        return description.make(resized, **weights)
    except Exception as error:
        complaints = _complaints(str(error))
        if not any(complaints):  # a filter of timm failed on the names
            check_keys(source.name, description.architecture, list(missing))
            raise
        lacks, extra, other = ([key for key in keys if not key.startswith(description.heads)] for keys in complaints)
        check_keys(source.name, description.architecture, lacks, extra)
        if other:
            raise
    return description.headless().make(resized, **weights)


def _complaints(message: str) -> tuple[list[str], list[str], list[str]]:
    """The weights that torch's load_state_dict names as missing, as unexpected and as of another shape."""
    lines = {line.strip().split("(s)")[0]: line for line in message.splitlines() if "key(s)" in line}
    missing, unexpected = (re.findall('"([^"]+)"', lines.get(what, "")) for what in ("Missing key", "Unexpected key"))
    return missing, unexpected, re.findall("size mismatch for ([^:]+):", message)
