"""Autoencoder: the pair (E, D) whose latent map f(z) = E(D(z)) is what fmprobe studies."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmprobe.dynamics.protocols import SMALL, Protocol
from fmprobe.errors import InputError
from fmprobe.execution import Execution
from fmprobe.seeding import STARTS, normal_rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from fmprobe.surrogates.artefact import Surrogate

Function = Callable[[Tensor], Tensor]


class Autoencoder:
    """An encoder and, where there is one, a decoder, with the shapes and the provenance of what they compute.

    Images are float32 `(B, C, H, W)` in `[0, 1]` (never clamped inside f); latents are float32 `(B, *latent_shape)`:
    tokens `(N, D)` or maps `(C, h, w)`. `provenance` is a JSON-ready dict: ids, revisions, preprocessing, the latent
    space, and the decoder with its data and error. `prepare` makes of an upright RGB picture what `encode` takes, one
    image `(C, H, W)`: the checkpoint's own resizing and cropping. `latent_map` is f where it is not E after D: that of
    a surrogate on features, or of a model that takes no images, whose `image_shape` is `()`.
    """

    def __init__(
        self,
        encode: Function | None,
        decode: Function | None,
        *,
        image_shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        provenance: Mapping[str, Any],
        device: torch.device | str = "cpu",
        prepare: "Callable[[Image], Tensor] | None" = None,
        latent_map: Function | None = None,
    ) -> None:
        for what, shape in (("image_shape", image_shape), ("latent_shape", latent_shape)):
            if any(size < 1 or size % 1 for size in shape):
                raise InputError(f"{what} {tuple(shape)}: expected sizes from 1 up, without that of the batch")
        self._encode = encode
        self._decode = decode
        self._latent_map = latent_map
        self._prepare = prepare
        self.image_shape = tuple(image_shape)
        self.latent_shape = tuple(latent_shape)
        self.provenance: dict[str, Any] = dict(provenance)
        self.device = torch.device(device)
        self.protocol: Protocol = SMALL  # when orbits end, unless the caller says otherwise
        self.surrogate: Surrogate | None = None  # that this model's latent map is made with
        self.evaluate_by(Execution())

    @property
    def name(self) -> str:
        return str(self.provenance.get("model", "model"))

    @property
    def has_decoder(self) -> bool:
        """Whether latents can be made into images."""
        return self._decode is not None

    @property
    def has_latent_map(self) -> bool:
        """Whether f exists, so that there is something to iterate."""
        return self._latent_map is not None or self._decode is not None

    @property
    def maps_through_images(self) -> bool:
        """Whether f is E after D, so that who follows f meets the images D(z) on the way."""
        return self._latent_map is None and self._decode is not None

    def encode(self, images: Tensor) -> Tensor:
        """E: images `(B, *image_shape)` to latents `(B, *latent_shape)`.

        Raises InputError on another shape or type, or where the model takes no images.
        """
        return self._encoded(images.clone() if isinstance(images, Tensor) else images)

    def _encoded(self, images: Tensor) -> Tensor:
        """E on images that may be overwritten."""
        if self._encode is None:
            raise InputError(f"{self.name} takes no images: only its latent map can be asked for")
        return self._apply(self._encode, images, "images", self.image_shape, self.latent_shape)

    def decode(self, latents: Tensor) -> Tensor:
        """D: latents `(B, *latent_shape)` to images `(B, *image_shape)`, not clamped.

        Raises InputError on another shape, or where the model has no decoder.
        """
        if self._decode is None:
            raise InputError(self._no_decoder())
        latents = latents.clone() if isinstance(latents, Tensor) else latents
        return self._apply(self._decode, latents, "latents", self.latent_shape, self.image_shape)

    def latent_map(self, latents: Tensor) -> Tensor:
        """f(z) = E(D(z)) (Fumero et al., ICLR 2026, sec. 2): latents `(B, *latent_shape)` to the same space.

        Raises InputError on another shape, or where the model has no decoder and no map of its own.
        """
        return self._evaluated(latents)

    def evaluate_by(self, execution: Execution) -> "Autoencoder":
        """This model, its latent map evaluated in another way from now on."""
        self.execution, self._evaluated = execution, execution.apply(self._map, self.device)
        return self

    def _map(self, latents: Tensor) -> Tensor:
        if self._latent_map is not None:
            return self._apply(self._latent_map, latents, "latents", self.latent_shape, self.latent_shape)
        return self._encoded(self.decode(latents))

    def _no_decoder(self) -> str:
        if self._latent_map is not None:
            return f"{self.name} has a latent map and no decoder to images: its latents cannot be looked at"
        return (
            f"{self.name} is an encoder without a decoder, so it has no latent map yet: make one with "
            f"`fmprobe fit-decoder {self.name} --out DIR` and pass it as decoder=DIR"
        )

    def load_images(self, source: str, n: int | None = None, *, seed: int = 0, skip_damaged: bool = False) -> Tensor:
        """The first `n` images of a source, resized and cropped as the model's own preprocessing does.

        As `fmprobe.load_images`, on the CPU. Raises InputError where the model takes no images.
        """
        return torch.cat(list(self.stream_images(source, n, seed=seed, skip_damaged=skip_damaged)))

    def stream_images(
        self, source: str, n: int | None = None, *, block: int = 64, seed: int = 0, skip_damaged: bool = False
    ) -> Iterator[Tensor]:
        """`load_images` in blocks of at most `block` images, so that memory does not grow with their number."""
        from fmprobe.images import stream_images

        return stream_images(source, n, block=block, seed=seed, skip_damaged=skip_damaged, **self.image_arguments)

    @property
    def image_arguments(self) -> dict[str, Any]:
        """What the functions of `fmprobe.images` need to read an image as this model takes it.

        Raises InputError where the model takes no images.
        """
        if len(self.image_shape) != 3:
            raise InputError(f"{self.name} takes no images")
        return {"image_shape": self.image_shape, "prepare": self._prepare}

    def sample_latents(self, n: int, seed: int = 0, first: int = 0) -> Tensor:
        """Starts from N(0, I), float32 `(n, *latent_shape)` on the model's device; row i depends on seed and i alone.

        `first` is the index of the first row, so that a large set can be drawn in blocks. Raises InputError below 0.
        """
        if min(n, first) < 0:
            raise InputError(f"cannot draw {n} latents from row {first} on: expected numbers from 0 up")
        rows = normal_rows(n, math.prod(self.latent_shape), seed, STARTS, first)
        return torch.from_numpy(rows).reshape(n, *self.latent_shape).to(self.device)

    def with_decoder(self, surrogate: "Surrogate") -> "Autoencoder":
        """The same encoder with a surrogate: latents become standardised by the surrogate's own statistics."""
        whole = surrogate.attach(self)
        whole.surrogate = surrogate
        return whole

    def derived(self, *, latent_shape: tuple[int, ...] | None = None, **changes: Any) -> "Autoencoder":
        """A copy with other functions (`encode`, `decode`, `latent_map`); all other keywords go into its provenance."""
        functions = {name: changes.pop(name, None) for name in ("encode", "decode", "latent_map")}
        copy = Autoencoder(
            **functions,
            image_shape=self.image_shape,
            latent_shape=latent_shape or self.latent_shape,
            provenance={**self.provenance, **changes},
            device=self.device,
            prepare=self._prepare,
        ).evaluate_by(self.execution)
        copy.protocol = self.protocol
        return copy

    def _apply(
        self, function: Function, x: Tensor, what: str, expected: tuple[int, ...], produced: tuple[int, ...]
    ) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            hint = ", in [0, 1], as fmprobe.load_images reads them" if what == "images" else ""
            raise InputError(f"{self.name} takes {what} as tensors of floats{hint}: got {kind}")
        if tuple(x.shape[1:]) != expected:
            raise InputError(f"{self.name} takes {what} of shape (B, {_text(expected)}), got {tuple(x.shape)}")
        out = function(x.to(self.device)).to(x.device)
        if tuple(out.shape) != (x.shape[0], *produced):
            raise InputError(
                f"{self.name} gave shape {tuple(out.shape)} for {what} {tuple(x.shape)}, "
                f"expected ({x.shape[0]}, {_text(produced)})"
            )
        return out


def from_functions(
    encode: Function,
    decode: Function,
    *,
    image_shape: tuple[int, ...],
    latent_shape: tuple[int, ...],
    name: str = "functions",
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """An Autoencoder from two functions on batches: images `(B, *image_shape)` and latents `(B, *latent_shape)`.

    Latents are taken as they are; shapes alone are checked.
    """
    provenance = {"model": name, "family": "functions", "space": "as given", "decoder": {"kind": "own"}}
    return Autoencoder(
        encode, decode, image_shape=image_shape, latent_shape=latent_shape, provenance=provenance, device=device
    )


def check_images(images: Tensor, shape: tuple[int, ...]) -> None:
    """Raise InputError where `images` are no finite floats `(n, *shape)`."""
    if tuple(images.shape[1:]) != tuple(shape) or not images.is_floating_point():
        raise InputError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: expected floats in [0, 1] of shape "
            f"(n, {_text(shape)})"
        )
    if not bool(images.isfinite().all()):
        raise InputError("images hold values that are not finite: leave those out")


def _text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
