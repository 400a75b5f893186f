"""`Autoencoder`: the encoder E and decoder D whose latent map f(z) = E(D(z)) fmprobe studies."""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmprobe.batches import Function, check_batch, check_images, check_mode, checked_shape, in_batches, in_words
from fmprobe.devices import pick_device
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.protocols import SMALL, Protocol
from fmprobe.errors import InputError
from fmprobe.execution import Execution
from fmprobe.inputs import ImagesLike, Transform, batches_of
from fmprobe.progress import followed
from fmprobe.seeding import STARTS, normal_rows
from fmprobe.tables import times

if TYPE_CHECKING:
    from PIL.Image import Image

    from fmprobe.images import Given
    from fmprobe.surrogates.artefact import Surrogate


class Autoencoder:
    """An encoder and, if there is one, a decoder, with the shapes and the provenance of what they compute.

    Images are float32 `(B, C, H, W)` in `[0, 1]` and are never clamped inside f. Latents are float32
    `(B, *latent_shape)`: tokens `(N, D)` or maps `(C, h, w)`. A model that takes no images has the image shape `()`.

    The functions get copies of their arguments, on the model's device, and their values are copied. So they may work in
    place and may return a buffer that they use again.

    Args:
        encode: E, on a batch of images; None for a model that takes no images.
        decode: D, on a batch of latents; None for an encoder alone.
        image_shape: shape of an image, without the batch.
        latent_shape: shape of a latent, without the batch.
        provenance: a dict that JSON can hold: ids, revisions, preprocessing, the latent space, and the decoder with its
            data and error.
        device: the device that the functions compute on.
        prepare: turns an upright picture, RGB or grey, into the image `(C, H, W)` that `encode` takes, by the
            checkpoint's own resizing and cropping.
        latent_map: f, if it is not E after D: for a surrogate on features, or for a model that takes no images.
        any_range: whether images may leave [0, 1].
        fingerprint: returns a digest of what decides the values of the functions at the time of the call.
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
        any_range: bool = False,
        fingerprint: Callable[[], str] | None = None,
    ) -> None:
        self._encode = encode
        self._decode = decode
        self._latent_map = latent_map
        self._prepare = prepare
        self._fingerprint = fingerprint
        self.image_shape = checked_shape("image_shape", image_shape)
        self.latent_shape = checked_shape("latent_shape", latent_shape)
        self.any_range = any_range
        self.provenance: dict[str, Any] = dict(provenance)
        self.device = torch.device(device)
        self.protocol: Protocol = SMALL  # when orbits end, unless the caller says otherwise
        self.surrogate: Surrogate | None = None  # the surrogate decoder that this model uses, if any
        self._reload: Callable[[torch.device], Autoencoder] | None = None
        self.evaluate_by(Execution())

    def __repr__(self) -> str:
        from fmprobe.validation import decoder_in_words

        family = self.provenance.get("family")
        return "\n".join(
            [
                f"Autoencoder {self.short_name}{f', {family}' if family else ''}",
                f"  images {times(self.image_shape)}, latents {times(self.latent_shape)}, {self.device}",
                f"  decoder: {decoder_in_words(self.provenance.get('decoder'), self.has_latent_map)}",
            ]
        )

    @property
    def name(self) -> str:
        """What the model is called in results and messages."""
        return str(self.provenance.get("model", "model"))

    @property
    def short_name(self) -> str:
        """The name, without the folders that a model from a folder lies in."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    @property
    def fingerprint(self) -> str | None:
        """A digest of what decides the model's values at the time of asking; None if nothing identifies it.

        For a model in memory it changes with the module. A surrogate is not part of it. `provenance` keeps the latest
        one, and supplies it where the model was made without a function for it.
        """
        if self._fingerprint is not None:
            self.provenance["fingerprint"] = self._fingerprint()
        return self.provenance.get("fingerprint") or None

    @property
    def has_decoder(self) -> bool:
        """Whether latents can be decoded to images."""
        return self._decode is not None

    @property
    def has_latent_map(self) -> bool:
        """Whether f exists, so that there is something to iterate."""
        return self._latent_map is not None or self._decode is not None

    @property
    def surrogate_warning(self) -> str | None:
        """Why the surrogate decoder that this model uses should not be trusted; None if nothing speaks against it."""
        from fmprobe.validation import warning_of

        return warning_of(self.provenance.get("decoder"))

    @property
    def maps_through_images(self) -> bool:
        """Whether f(z) = E(D(z)), that is, whether each step passes through an image."""
        return self._latent_map is None and self._decode is not None

    def encode(self, images: ImagesLike, batch_size: int | None = None, progress: bool | None = None) -> Tensor:
        """Encode images in [0, 1] to latents on the model's device: E.

        Args:
            images: images `(B, *image_shape)`, on any device; or Pillow images, paths, arrays, a data set or a
                DataLoader, to which the checkpoint's own processor is applied (`take_images`).
            batch_size: largest number of images in one call of the encoder; by default all images of a tensor, and
                64 of what is read in parts.
            progress: whether to show a progress bar; None shows one on a terminal, and lines elsewhere.

        Returns:
            Latents `(B, *latent_shape)`.

        Raises:
            InputError: there are no images, they have another type or range or are ambiguous, or the model takes no
                images.
            ValueError: `batch_size` is below 1.
        """
        if batch_size is not None:
            check_counts(batch_size=batch_size)
        whole = len(images) if isinstance(images, Tensor) and images.ndim else None
        blocks = self.image_batches(images, block=batch_size or whole or 64)
        latents = [
            self.encode_unchecked(block, batch_size) for block in followed(blocks, "encode", None, shown=progress)
        ]
        if not sum(map(len, latents)):
            raise InputError(f"there are no images for {self.name} to encode: expected at least one")
        return latents[0] if len(latents) == 1 else torch.cat(latents)

    def encode_unchecked(self, images: Tensor, batch_size: int | None = None) -> Tensor:
        """Encode images that may leave [0, 1], such as those that D makes: as `encode`, but only shape and type are
        checked.

        f uses it. It does not look at values, because an accelerator would have to be waited for.
        """
        encoder = self._encoder()
        return in_batches(
            lambda part: self._apply(encoder, part, "images", self.image_shape, self.latent_shape), images, batch_size
        )

    def decode(self, latents: Tensor, batch_size: int | None = None) -> Tensor:
        """Decode latents to images on the model's device, without clamping: D.

        Args:
            latents: latents `(B, *latent_shape)`, on any device. An empty batch, as of a search that found nothing,
                gives no images.
            batch_size: largest number of latents in one call of the decoder; all of them by default.

        Returns:
            Images `(B, *image_shape)`.

        Raises:
            InputError: the latents have another shape, or the model has no decoder.
        """
        decoder = self._decoder()
        return in_batches(
            lambda part: self._apply(decoder, part, "latents", self.latent_shape, self.image_shape), latents, batch_size
        )

    def latent_map(self, latents: Tensor) -> Tensor:
        """Apply the latent map f(z) = E(D(z)) (Fumero et al., ICLR 2026, sec. 2).

        Args:
            latents: latents `(B, *latent_shape)`.

        Returns:
            Latents of the same shape on the same device, so that f maps their space to itself.

        Raises:
            InputError: the latents have another shape, or the model has neither a decoder nor a map of its own.
        """
        return self._evaluated(latents)

    def check_images(self, images: Tensor, what: str = "images") -> None:
        """Check that `images`, called `what` in the message, are such as `encode` takes.

        Raises:
            InputError: they are not, or the model takes no images.
        """
        self._encoder()
        check_images(images, self.image_shape, self.name, any_range=self.any_range, what=what)

    def image_batches(self, images: ImagesLike, what: str = "images", *, block: int = 64) -> Iterator[Tensor]:
        """Images of any kind that `take_images` takes, in batches of at most `block`, so that memory stays flat.

        Yields:
            Images `(b, *image_shape)` as `encode` takes them.

        Raises:
            InputError: as `take_images`, when a batch is asked for.
        """
        self._encoder()
        how = {"name": self.name, "any_range": self.any_range, "prepare": self._prepare, "what": what, "block": block}
        return batches_of(images, self.image_shape, **how)

    def take_images(self, images: ImagesLike, what: str = "images") -> Tensor:
        """Make the tensor that `encode` takes from images of any kind.

        Args:
            images: a tensor or an array of the model's shape, which is taken as it is; or what the checkpoint's own
                processor is applied to: a Pillow image, a path or a source, an array `(H, W, C)`, several of these in a
                list, a data set of `datasets` or torch, a DataLoader, or an iterator. Labels are left out.
            what: what the images are called in messages.

        Returns:
            Floats `(n, *image_shape)` in [0, 1].

        Raises:
            InputError: something is no image, is ambiguous or leaves [0, 1], or the model takes no images.
        """
        blocks = list(self.image_batches(images, what, block=2**31))
        if not blocks:
            return torch.zeros(0, *self.image_shape)
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0]

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """A function for the data sets of torch: it makes the image `(C, H, W)` that `encode` takes from a picture.

        A picture is a Pillow image, a path, or an array `(H, W, C)`. The checkpoint's own processor is applied.
        """
        return Transform(**self.image_arguments)

    def to(self, device: "str | torch.device") -> "Autoencoder":
        """Move this model to a device, and return it. Its weights are read again there; all inputs follow it.

        Args:
            device: the device; "auto" is the accelerator that is there, else the CPU.

        Raises:
            InputError: the device is unknown or not there, or the model was made of functions or of a module in memory,
                which its owner moves.
        """
        if (target := pick_device(device)) == self.device:
            return self
        if self._reload is None:
            raise InputError(
                f"{self.name} was made of what is in memory on {self.device}: move that to {target}, and make the "
                "model again"
            )
        there, execution = self._reload(target), self.execution
        self._encode, self._decode, self._latent_map = there._encode, there._decode, there._latent_map
        self.device, self.surrogate = there.device, there.surrogate
        return self.evaluate_by(execution)

    def reload_by(self, reload: "Callable[[torch.device], Autoencoder]") -> "Autoencoder":
        """Set the function that gives this same model on another device; return this model."""
        self._reload = reload
        return self

    def evaluate_by(self, execution: Execution) -> "Autoencoder":
        """Set how the latent map is evaluated from now on; return this model."""
        self.execution, self._evaluated = execution, execution.apply(self._map, self.device)
        return self

    def identify_by(self, fingerprint: Callable[[], str]) -> "Autoencoder":
        """Set the function that makes the fingerprint from now on; return this model."""
        self._fingerprint = fingerprint
        return self

    def _map(self, latents: Tensor) -> Tensor:
        if self._latent_map is not None:
            return self._apply(self._latent_map, latents, "latents", self.latent_shape, self.latent_shape)
        images = self._apply(self._decoder(), latents, "latents", self.latent_shape, self.image_shape)
        return self._apply(self._encoder(), images, "images", self.image_shape, self.latent_shape)

    def _encoder(self) -> Function:
        if self._encode is None:
            raise InputError(f"{self.name} takes no images: only its latent map can be asked for")
        return self._encode

    def _decoder(self) -> Function:
        if self._decode is None:
            raise InputError(self._no_decoder())
        return self._decode

    def _no_decoder(self) -> str:
        if self._latent_map is not None:
            return f"{self.name} has a latent map and no decoder to images: its latents cannot be looked at"
        return (
            f"{self.name} is an encoder without a decoder, so it has no latent map yet: make one with "
            f"`fmprobe fit-decoder {self.name} --out DIR` and pass it as decoder=DIR"
        )

    def load_images(
        self,
        source: "Given",
        n: int | None = None,
        *,
        seed: int = 0,
        skip_damaged: bool = False,
        streaming: bool = False,
    ) -> Tensor:
        """Load `n` images spread evenly over a source, resized and cropped by the model's own preprocessing.

        The arguments are those of `fmprobe.load_images`. The images are on the CPU.

        Raises:
            InputError: the model takes no images, or as `fmprobe.load_images`.
        """
        from fmprobe.images import load_images

        how = {"seed": seed, "skip_damaged": skip_damaged, "streaming": streaming}
        return load_images(source, n, **how, **self.image_arguments)

    def stream_images(
        self, source: "Given", n: int | None = None, *, block: int = 64, seed: int = 0, skip_damaged: bool = False
    ) -> Iterator[Tensor]:
        """Load images as `load_images` does, in blocks of at most `block`, so that memory does not grow with their
        number.
        """
        from fmprobe.images import stream_images

        return stream_images(source, n, block=block, seed=seed, skip_damaged=skip_damaged, **self.image_arguments)

    @property
    def image_arguments(self) -> dict[str, Any]:
        """The arguments that the functions of `fmprobe.images` need to read an image as this model takes it.

        Raises:
            InputError: the model takes no images, or images with a number of channels that no picture has.
        """
        if len(self.image_shape) != 3:
            raise InputError(f"{self.name} takes no images: leave the source of images out")
        if self.image_shape[0] not in (1, 3):
            raise InputError(
                f"{self.name} takes images of {self.image_shape[0]} channels, but pictures are read as grey or RGB: "
                "pass tensors"
            )
        return {"image_shape": self.image_shape, "prepare": self._prepare}

    def sample_latents(self, n: int, seed: int = 0, first: int = 0) -> Tensor:
        """Draw starts from N(0, I), float32 `(n, *latent_shape)`, on the model's device.

        Row i depends on the seed and on i alone.

        Args:
            n: number of starts.
            seed: seed of the draw.
            first: index of the first row, so that a large set can be drawn in blocks.

        Raises:
            InputError: `n` or `first` is below 0.
        """
        if min(n, first) < 0:
            raise InputError(f"cannot draw {n} latents from row {first} on: both must be at least 0")
        rows = normal_rows(n, math.prod(self.latent_shape), seed, STARTS, first)
        return torch.from_numpy(rows).reshape(n, *self.latent_shape).to(self.device)

    def with_decoder(self, surrogate: "Surrogate") -> "Autoencoder":
        """The same encoder with a surrogate decoder. Its latents are standardised by the surrogate's own statistics."""
        whole = surrogate.attach(self)
        whole.surrogate = surrogate
        if (reload := self._reload) is not None:
            whole.reload_by(lambda device: reload(device).with_decoder(deepcopy(surrogate).to(device)))
        return whole

    def derived(self, *, latent_shape: tuple[int, ...] | None = None, **changes: Any) -> "Autoencoder":
        """A copy with other functions.

        Args:
            latent_shape: shape of a latent; by default that of this model.
            changes: `encode`, `decode` and `latent_map` are the functions of the copy, which lacks those that are not
                given. All other keywords go into its provenance.
        """
        functions = {name: changes.pop(name, None) for name in ("encode", "decode", "latent_map")}
        copy = Autoencoder(
            **functions,
            image_shape=self.image_shape,
            latent_shape=latent_shape or self.latent_shape,
            provenance={**self.provenance, **changes},
            device=self.device,
            prepare=self._prepare,
            any_range=self.any_range,
            fingerprint=self._fingerprint,
        ).evaluate_by(self.execution)
        copy.protocol = self.protocol
        return copy

    def _apply(
        self, function: Function, x: Tensor, what: str, expected: tuple[int, ...], produced: tuple[int, ...]
    ) -> Tensor:
        """Apply a function to a copy of x on the model's device, and check its value. The value is at least float32."""
        check_batch(x, expected, self.name, what)
        if not len(x):  # many layers fail on an empty batch
            return torch.zeros(0, *produced, dtype=x.dtype, device=self.device)
        out = function(x.to(self.device, copy=True))
        if not isinstance(out, Tensor) or not out.is_floating_point():
            kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise InputError(f"{self.name} gave a {kind} for {what}: its function must return one tensor of floats")
        if tuple(out.shape) != (x.shape[0], *produced):
            raise InputError(
                f"{self.name} gave shape {tuple(out.shape)} for {what} {tuple(x.shape)}: "
                f"expected ({x.shape[0]}, {in_words(produced)})"
            )
        # The last layer of a model that is spread over devices may lie on another device.
        return out.to(self.device, torch.float32 if out.element_size() < 4 else out.dtype)


def from_functions(
    encode: Function,
    decode: Function | None,
    *,
    image_shape: tuple[int, ...],
    latent_shape: tuple[int, ...],
    name: str = "functions",
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """Make an Autoencoder from two functions on batches.

    Images and latents are taken as they are, in whatever range the functions expect. Only type and shape are checked.

    Args:
        encode: maps images `(B, *image_shape)` to latents `(B, *latent_shape)`.
        decode: maps latents to images; None for an encoder alone.
        image_shape: shape of an image, without the batch.
        latent_shape: shape of a latent, without the batch.
        name: what the model is called in results and messages.
        device: the device that the functions compute on.

    Raises:
        InputError: `encode` or `decode` is not a function, a shape is not valid, or a module with dropout or batch norm
            is in training mode.
    """
    for what, function in (("encode", encode), ("decode", decode)):
        if not callable(function) and not (what == "decode" and function is None):
            raise InputError(f"{what} is a {type(function).__name__}: pass a function on a batch of tensors")
        check_mode(what, function)
    provenance = {"model": name, "family": "functions", "space": "as given", "decoder": decode and {"kind": "own"}}
    return Autoencoder(
        encode,
        decode,
        image_shape=image_shape,
        latent_shape=latent_shape,
        provenance=provenance,
        device=device,
        any_range=True,
    )
