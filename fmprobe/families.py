"""What an adapter is, and the table of the adapters that are registered as entry points.

Listing the families imports nothing heavy: an adapter imports its model library inside `load`.
"""

import importlib.util
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

from fmprobe.errors import InputError

if TYPE_CHECKING:
    import torch

    from fmprobe.autoencoder import Autoencoder

GROUP = "fmprobe.adapters"
SMALL_IMAGE = 112  # image side in pixels that a CPU can handle; a multiple of the usual patch sizes 14 and 16

Tokens = Literal["patch", "cls", "pooled", "all"]
TOKENS: tuple[Tokens, ...] = get_args(Tokens)


@dataclass(frozen=True)
class Source:
    """What an adapter's `load` is given: where a model comes from, and how it is wanted.

    Attributes:
        name: the name as the user wrote it.
        folder: folder on this machine with config.json, preprocessing and weights; None for a model in memory.
        revision: the commit that a hub id was pinned to.
        config: content of config.json.
        device: device to load to.
        dtype: dtype of the weights.
        image_size: image side in pixels; None is the model's own, "fit" is a side that the device can handle.
        tokens: tokens that make up z; None is the family's default.
        module: a model already in memory.
        processor: its image processor.
        weights: safetensors files.
        random_weights: seed of an architecture with random weights.
        device_map: accelerate's map of modules to devices, for a model too large for one device.
    """

    name: str
    folder: Path | None
    revision: str | None
    config: Mapping[str, Any]
    device: "torch.device"
    dtype: "torch.dtype"
    image_size: int | Literal["fit"] | None = None
    tokens: Tokens | None = None
    module: Any = None
    processor: Any = None
    weights: tuple[Path, ...] = ()
    random_weights: int | None = None
    device_map: Any = None

    def pick_image_size(self, native: int, multiple_of: int = 1, flexible: bool = False) -> int:
        """The image side for a model of square images; otherwise as `pick_image_sides`."""
        return self.pick_image_sides((native, native), (multiple_of, multiple_of), flexible)[0]

    def pick_image_sides(
        self, native: tuple[int, int], multiple_of: tuple[int, int] = (1, 1), flexible: bool = False
    ) -> tuple[int, int]:
        """Height and width in pixels: what was asked for; for "fit", sides that the device can handle; else `native`.

        Args:
            native: the model's own height and width.
            multiple_of: numbers that height and width must be multiples of.
            flexible: whether the model takes other sizes as well, so that "fit" may choose one.

        Raises:
            InputError: the size asked for is not a size or not a multiple.
        """
        if self.image_size is None or self.image_size == "fit":
            largest, steps = max(native), list(zip(native, multiple_of, strict=True))
            small = [side * SMALL_IMAGE // largest // step * step for side, step in steps]
            fits = self.image_size is None or not flexible or self.device.type != "cpu" or largest <= SMALL_IMAGE
            return native if fits or min(small) == 0 else (small[0], small[1])
        try:
            side = operator.index(self.image_size)
        except TypeError as error:
            raise InputError(f'image size {self.image_size!r}: expected the side in pixels, "fit" or None') from error
        if side <= 0 or any(side % step for step in multiple_of):
            of = " and of ".join(map(str, sorted(set(multiple_of))))
            raise InputError(f"image size {side} does not suit {self.name}: expected a multiple of {of}")
        return side, side

    def pick_tokens(self, available: Sequence[Tokens]) -> Tokens:
        """The tokens asked for; by default the first of those that the model has.

        Raises:
            InputError: the model does not have the tokens asked for.
        """
        if self.tokens is not None and self.tokens not in available:
            raise InputError(f"{self.name} has no tokens {self.tokens!r}: expected one of {', '.join(available)}")
        return self.tokens or available[0]

    def provenance(self, **more: Any) -> dict[str, Any]:
        """What every adapter records of a model, and `more`."""
        dtype = str(self.dtype).removeprefix("torch.")
        weights = {} if self.random_weights is None else {"random_weights": self.random_weights}
        return {"model": self.name, "revision": self.revision, "dtype": dtype, **weights, **more}


class Published(NamedTuple):
    """A decoder that was published for an encoder.

    Attributes:
        encoder: hub id of the encoder.
        decoder: hub id of the repository that holds the decoder.
        side: side of the decoded images in pixels.
        parameters: number of parameters that the repository of the decoder holds, to within a percent.
        operations: floating-point operations of one evaluation of f on one latent, to within a tenth.
        preferred: whether it is the default on an accelerator. It is not where the encoder has a decoder of its own.
    """

    encoder: str
    decoder: str
    side: int
    parameters: int
    operations: float
    preferred: bool = True


class Adapter(ABC):
    """A family of models. A new family is a subclass in a file of its own and one entry-point line.

    Attributes:
        example: a hub id of the family.
        kinds: what config.json calls its models: `model_type`, `_class_name` of diffusers, or "timm".
        latents: what z is.
        decoder: where the decoder comes from: "own" or "surrogate".
        requires: a package that is an optional extra of fmprobe, if the family needs one.
        weights: name of the weights file.
        spreads: whether `load` uses `device_map`.
        processed: whether `load` uses `processor`.
        published: decoders of this family that belong to encoders of other families, which `pair` puts together.
    """

    example: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    latents: ClassVar[str]
    decoder: ClassVar[str]
    requires: ClassVar[str] = ""
    weights: ClassVar[str] = "model.safetensors"
    spreads: ClassVar[bool] = False
    processed: ClassVar[bool] = True
    published: ClassVar[tuple[Published, ...]] = ()

    @abstractmethod
    def load(self, source: Source) -> "Autoencoder":
        """Load the model of `source` as an Autoencoder, in eval mode, with gradients off for its parameters."""

    def check_installed(self, name: str) -> None:
        """Raise InputError where the package that a model of the family needs is not installed."""
        if self.requires and importlib.util.find_spec(self.requires) is None:
            extra = self.requires
            raise InputError(f'{name} needs {extra}, which is not installed: pip install "fmprobe[{extra}]"')

    def pair(self, encoder: Source, decoder: Source) -> "Autoencoder":
        """Load the encoder of one source and the decoder of another, one of `published`, as one Autoencoder."""
        raise NotImplementedError


@cache
def adapters() -> dict[str, Adapter]:
    """All registered families by name, those of fmprobe and those of other packages."""
    return {entry.name: entry.load()() for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}
