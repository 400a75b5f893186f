"""Autoencoder: the pair (E, D) whose latent map f(z) = E(D(z)) is what fmprobe studies."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fmprobe.dynamics.protocols import SMALL, Protocol
from fmprobe.errors import InputError
from fmprobe.execution import Execution
from fmprobe.seeding import STARTS, normal_rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from fmprobe.surrogates.artefact import Surrogate

Function = Callable[[Tensor], Tensor]
ROUNDING = 1e-5  # by which a pixel may leave [0, 1]: what arithmetic in float32 leaves of an exact 0 or 1


class Autoencoder:
    """An encoder and, where there is one, a decoder, with the shapes and the provenance of what they compute.

    Images are float32 `(B, C, H, W)` in `[0, 1]` (never clamped inside f); latents are float32 `(B, *latent_shape)`:
    tokens `(N, D)` or maps `(C, h, w)`. `provenance` is a JSON-ready dict: ids, revisions, preprocessing, the latent
    space, and the decoder with its data and error. `prepare` makes of an upright picture, RGB or grey, what `encode`
    takes, one image `(C, H, W)`: the checkpoint's own resizing and cropping. `latent_map` is f where it is not E after
    D: that of a surrogate on features, or of a model that takes no images, whose `image_shape` is `()`. `any_range`:
    images need not lie in [0, 1]. `fingerprint` digests what decides the values of these functions when it is called.

    The functions get copies of what they are called with, on the model's device, and what they return is copied: they
    may work in place, and return a buffer that they use again.
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
        self.image_shape = _shape("image_shape", image_shape)
        self.latent_shape = _shape("latent_shape", latent_shape)
        self.any_range = any_range
        self.provenance: dict[str, Any] = dict(provenance)
        self.device = torch.device(device)
        self.protocol: Protocol = SMALL  # when orbits end, unless the caller says otherwise
        self.surrogate: Surrogate | None = None  # that this model's latent map is made with
        self.evaluate_by(Execution())

    @property
    def name(self) -> str:
        return str(self.provenance.get("model", "model"))

    @property
    def fingerprint(self) -> str | None:
        """A digest of what decides the model's values at the time of asking; None where nothing tells it from another.

        That of a model in memory changes with its module. A surrogate is not part of it. `provenance` keeps the one
        that was last asked for, and is believed where the model was made without such a function.
        """
        if self._fingerprint is not None:
            self.provenance["fingerprint"] = self._fingerprint()
        return self.provenance.get("fingerprint") or None

    @property
    def has_decoder(self) -> bool:
        """Whether latents can be made into images."""
        return self._decode is not None

    @property
    def has_latent_map(self) -> bool:
        """Whether f exists, so that there is something to iterate."""
        return self._latent_map is not None or self._decode is not None

    @property
    def surrogate_warning(self) -> str | None:
        """What speaks against the surrogate that this model's latent map is made with; None where nothing does."""
        from fmprobe.validation import warning_of

        return warning_of(self.provenance.get("decoder"))

    @property
    def maps_through_images(self) -> bool:
        """Whether f is E after D, so that who follows f meets the images D(z) on the way."""
        return self._latent_map is None and self._decode is not None

    def encode(self, images: Tensor, batch_size: int | None = None) -> Tensor:
        """E: images in [0, 1] to latents, on the model's device.

        Args:
            images: images `(B, *image_shape)`, on any device.
            batch_size: largest number of images in one call of the encoder; all of them by default.

        Returns:
            Latents `(B, *latent_shape)`.

        Raises:
            InputError: there are no images, they have another shape, type or range (`check_images`), or the model takes
                no images.
        """
        self.check_images(images)
        if not len(images):
            raise InputError(f"there are no images for {self.name} to encode: expected at least one")
        return self.encode_unchecked(images, batch_size)

    def encode_unchecked(self, images: Tensor, batch_size: int | None = None) -> Tensor:
        """E of images that may leave [0, 1], as those that D paints: as `encode`, but shape and type alone are checked.

        f is made of it. It does not look at values, for which an accelerator would have to be waited for.
        """
        encoder = self._encoder()
        return _in_batches(
            lambda part: self._apply(encoder, part, "images", self.image_shape, self.latent_shape), images, batch_size
        )

    def decode(self, latents: Tensor, batch_size: int | None = None) -> Tensor:
        """D: latents to images, not clamped, on the model's device.

        Args:
            latents: latents `(B, *latent_shape)`, on any device. No latents, as of a search that found nothing, are no
                images.
            batch_size: largest number of latents in one call of the decoder; all of them by default.

        Returns:
            Images `(B, *image_shape)`.

        Raises:
            InputError: the latents have another shape, or the model has no decoder.
        """
        decoder = self._decoder()
        return _in_batches(
            lambda part: self._apply(decoder, part, "latents", self.latent_shape, self.image_shape), latents, batch_size
        )

    def latent_map(self, latents: Tensor) -> Tensor:
        """f(z) = E(D(z)) (Fumero et al., ICLR 2026, sec. 2): latents `(B, *latent_shape)` to the same space.

        The result is where the latents are, so that f maps their space to itself. Raises InputError on another shape,
        or where the model has no decoder and no map of its own.
        """
        return self._evaluated(latents)

    def check_images(self, images: Tensor, what: str = "images") -> None:
        """Raise InputError where `images`, called `what`, are not such as `encode` takes, or the model takes none."""
        self._encoder()
        check_images(images, self.image_shape, self.name, any_range=self.any_range, what=what)

    def evaluate_by(self, execution: Execution) -> "Autoencoder":
        """This model, its latent map evaluated in another way from now on."""
        self.execution, self._evaluated = execution, execution.apply(self._map, self.device)
        return self

    def identify_by(self, fingerprint: Callable[[], str]) -> "Autoencoder":
        """This model, its fingerprint made by a function from now on."""
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

    def load_images(self, source: str, n: int | None = None, *, seed: int = 0, skip_damaged: bool = False) -> Tensor:
        """`n` images spread evenly over a source, resized and cropped as the model's own preprocessing does.

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

        Raises InputError where the model takes no images, or such as no picture holds.
        """
        if len(self.image_shape) != 3:
            raise InputError(f"{self.name} takes no images")
        if self.image_shape[0] not in (1, 3):
            raise InputError(
                f"{self.name} takes images of {self.image_shape[0]} channels, and pictures are read as grey or RGB: "
                "pass tensors"
            )
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
            any_range=self.any_range,
            fingerprint=self._fingerprint,
        ).evaluate_by(self.execution)
        copy.protocol = self.protocol
        return copy

    def _apply(
        self, function: Function, x: Tensor, what: str, expected: tuple[int, ...], produced: tuple[int, ...]
    ) -> Tensor:
        """What a function gives for a copy of x on the model's device, at least float32."""
        _check_batch(x, expected, self.name, what)
        if not len(x):  # many layers fail on no rows
            return torch.zeros(0, *produced, dtype=x.dtype, device=self.device)
        out = function(x.to(self.device, copy=True))
        if not isinstance(out, Tensor) or not out.is_floating_point():
            kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise InputError(f"{self.name} gave a {kind} for {what}: expected one tensor of floats from its function")
        if tuple(out.shape) != (x.shape[0], *produced):
            raise InputError(
                f"{self.name} gave shape {tuple(out.shape)} for {what} {tuple(x.shape)}, "
                f"expected ({x.shape[0]}, {_text(produced)})"
            )
        # A model shared by devices may end on another.
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
    """An Autoencoder from two functions on batches: images `(B, *image_shape)` and latents `(B, *latent_shape)`.

    Images and latents are taken as they are, in whatever range the functions expect; type and shapes alone are checked.
    `decode`: None for an encoder alone. Raises InputError for what is no function, shapes that are none, and modules
    with dropout or batch norm in training mode.
    """
    for what, function in (("encode", encode), ("decode", decode)):
        if not callable(function) and not (what == "decode" and function is None):
            raise InputError(f"{what} is a {type(function).__name__}: expected a function on a batch of tensors")
        _check_mode(what, function)
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


def check_images(
    images: Tensor,
    shape: tuple[int, ...],
    name: str | None = None,
    *,
    any_range: bool = False,
    what: str = "images",
) -> None:
    """Raise InputError where `images`, called `what`, are no finite floats `(n, *shape)` in [0, 1], up to rounding.

    `name`: of the model that takes them. `any_range`: values are not looked at.
    """
    _check_batch(images, tuple(shape), name, what)
    if any_range or not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not math.isfinite(high - low):
        raise InputError(f"{what} hold values that are not finite: expected floats in [0, 1], leave the others out")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise InputError(
            f"{what} lie in [{low:.4g}, {high:.4g}]: expected floats in [0, 1], as model.load_images reads them; "
            f"{_remedy(low, high)}"
        )


def _remedy(low: float, high: float) -> str:
    if low >= -0.25 and high <= 1.25:
        return "clamp them, where resizing overshot"
    if low >= 0 and high > 2:
        return f"divide them by {255 if high <= 255 else 'the largest value that their type holds'}"
    return "undo the normalisation (images * std + mean, or (images + 1) / 2 where it was to [-1, 1])"


def _check_batch(x: Tensor, expected: tuple[int, ...], name: str | None, what: str) -> None:
    """Raise InputError where x is no tensor of floats `(B, *expected)`."""
    kind = "latents" if what == "latents" else "images"
    takes = f"{name} takes {kind}" if name else f"expected {kind}"
    given = "" if what == kind else f" as {what}"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        hint = "" if kind == "latents" else ", in [0, 1], as fmprobe.load_images reads them"
        got = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
        remedy = ": divide bytes by 255" if got == torch.uint8 and kind == "images" else ""
        raise InputError(f"{takes} as tensors of floats{hint}: got {got}{given}{remedy}")
    shape = tuple(x.shape)
    if len(shape) != 1 + len(expected) or shape[1:] != expected:
        hint = f": pass {kind}[None] for a batch of one" if shape == expected else ""
        if name is None:
            raise InputError(
                f"{what} of shape {shape}: expected floats in [0, 1] of shape (n, {_text(expected)}){hint}"
            )
        raise InputError(f"{takes} of shape (B, {_text(expected)}), got {shape}{given}{hint}")


def _check_mode(what: str, function: Any) -> None:
    """Raise InputError where a function belongs to a module that gives other values in training mode, and is in it."""
    owner = getattr(function, "__self__", function)
    for part in owner.modules() if isinstance(owner, nn.Module) else ():
        varies = isinstance(part, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm)
        if varies and part.training:
            raise InputError(
                f"{what} is in training mode, where its {type(part).__name__} makes a row depend on chance or on the "
                "others: call eval() on the module first"
            )


def _in_batches(function: Function, rows: Tensor, batch_size: int | None) -> Tensor:
    """A function of at most `batch_size` rows at a time; its values in memory of their own."""
    if batch_size is None or len(rows) <= batch_size:
        return _own(function(rows))
    return torch.cat([_own(function(part)) for part in rows.split(batch_size)])


def _own(out: Tensor) -> Tensor:
    """A copy that is nobody else's: a function may return a buffer that it uses again, or a part of itself."""
    return out.clone(memory_format=torch.contiguous_format)


def _shape(what: str, shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        given = tuple(shape) if isinstance(shape, list | tuple) else shape
        raise InputError(
            f"{what} {given!r}: expected a tuple of sizes from 1 up, without that of the batch, such as (3, 64, 64)"
        )
    return sizes


def _text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
