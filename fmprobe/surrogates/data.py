"""The images that a surrogate is trained on and judged by: procedural, or from any source, streamed in blocks."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.batches import check_images
from fmprobe.errors import InputError
from fmprobe.hub import canonical
from fmprobe.images import as_pixels, spread
from fmprobe.inputs import ImagesLike
from fmprobe.procedural import power_noise, procedural_images
from fmprobe.seeding import generator
from fmprobe.surrogates.features import as_bytes, in_blocks
from fmprobe.surrogates.settings import Settings

BLOCK = 32  # images at a time
FEWEST = 16  # images
HELD_OUT = 64  # images of each validation set
ONE_IN = 10  # of given images is held out
HELD_OUT_FIRST = 1_000_000_000  # procedural indices from here on are never trained on
NOISE_FIRST = 2_000_000_000  # random streams from here on disturb the training images
PAINTED = 8  # images that `painted` shows


@dataclass(frozen=True)
class TrainingData:
    """Images to train on, and images to judge by.

    Attributes:
        blocks: Gives the training images in blocks, as bytes, as often as it is called.
        held_out: Images that are not trained on, as bytes.
        n: Number of training images.
        key: What tells these images from others.
        words: What the images are, in words.
        data_free: Whether the images are procedural.
        source: The source that they were read from, as manifests hold it; None for other images.
    """

    blocks: Callable[[], Iterable[Tensor]]
    held_out: Tensor
    n: int
    key: str
    words: str
    data_free: bool
    source: str | None = None


def training_data(model: Autoencoder, settings: Settings, images: ImagesLike | None) -> TrainingData:
    """Collect the images for a fit.

    A source is read twice and never held as a whole. Of given images every tenth is held out.

    Args:
        model: The encoder, which decides the images' shape.
        settings: `n_images` limits given images, which are then spread evenly over the tensor or source.
        images: Images as `Autoencoder.take_images` takes them, or None for procedural images.

    Raises:
        InputError: If there are too few images, if they are all the same, or if they do not fit the model.
    """
    if images is None:
        return _procedural_data(model, settings)
    limit = settings.n_images
    if named := isinstance(images, str | Path):
        stream = _from_source(model, str(images), limit)
    else:
        stream = _from_tensor(model, images, limit)
    digest, held_out, n, kept = hashlib.sha256(), [], 0, 0
    first, varied = None, False
    for block in stream():
        digest.update(block.numpy().tobytes())
        first = block[:1] if first is None else first
        varied = varied or bool((block != first).any())
        chosen = block[_is_held_out(n, len(block))]
        n, kept = n + len(block), kept + len(block) - len(chosen)
        held_out.extend(chosen[: HELD_OUT - len(held_out)])
    if n < FEWEST:
        raise InputError(f"a decoder is trained on {FEWEST} images or more, got {n}")
    if not varied:
        raise InputError(f"the {n} training images are all the same, so that nothing can be learned: pass others")

    def blocks() -> Iterator[Tensor]:
        first = 0
        for block in stream():
            yield block[~_is_held_out(first, len(block))]
            first += len(block)

    what = f"images of {images}" if named else "images given by the caller"
    words = f"{kept} {what}; every tenth of {n} was held out"
    source = canonical(str(images)) if named else None
    return TrainingData(blocks, torch.stack(held_out), kept, digest.hexdigest(), words, source == "procedural", source)


def takes_procedural(model: Autoencoder) -> bool:
    """Whether the model takes square images of one or three channels."""
    return (
        len(model.image_shape) == 3 and model.image_shape[0] in (1, 3) and model.image_shape[1] == model.image_shape[2]
    )


def procedural(model: Autoencoder, n: int, first: int, mixture: str, seed: int) -> Tensor:
    """Procedural images of the model's shape, as bytes. Image i depends on the seed and first + i alone."""
    return torch.cat(list(_procedural_blocks(model, n, first, mixture, seed)))


def painted(model: Autoencoder, batch_size: int = PAINTED) -> Tensor | None:
    """Procedural images that were not trained on and below them D(E(x)), `(2, PAINTED, C, H, W)`.

    None where the model's decoder is no surrogate, or paints no images of one or three channels.
    """
    decoder = model.provenance.get("decoder") or {}
    if decoder.get("kind") != "surrogate" or not model.has_decoder or model.image_shape[0] not in (1, 3):
        return None
    images = as_pixels(procedural(model, PAINTED, HELD_OUT_FIRST, "all", 0))
    return torch.stack([images, in_blocks(lambda x: model.decode(model.encode(x)), images, batch_size)])


def coloured_noise(settings: Settings, pixels: Tensor, first: int, draw: int) -> Tensor:
    """Pixels with 1/f^a noise, a from U[0, 1.5], of a standard deviation from U[0, pixel_noise].

    The noise of an image depends on the seed, the image's index and the draw alone.

    Args:
        settings: `pixel_noise` and `seed`.
        pixels: Float images `(n, C, H, W)`.
        first: Index of the first image.
        draw: Number of the draw.
    """
    if settings.pixel_noise == 0:
        return pixels
    noise = torch.empty_like(pixels)
    for i in range(len(pixels)):
        rng = generator(settings.seed, NOISE_FIRST + draw * HELD_OUT_FIRST + first + i, "surrogates: augmentation")
        fields = power_noise(rng, pixels.shape[1], pixels.shape[2], rng.uniform(0, 1.5))
        noise[i] = torch.from_numpy(fields) * (settings.pixel_noise * rng.random())
    return pixels + noise


def _procedural_data(model: Autoencoder, settings: Settings) -> TrainingData:
    n, mixture, seed = settings.n_images, settings.mixture, settings.seed
    if not takes_procedural(model):
        raise InputError(
            f"procedural images are grey or RGB and square, {model.name} takes {model.image_shape}: pass images="
        )
    if n is None or not FEWEST <= n <= HELD_OUT_FIRST:
        raise InputError(f"a decoder is trained on {FEWEST} images or more, got n_images={n}")
    words = (
        f"{n} procedural images (mixture {mixture!r}, seed {seed}, from index 0); "
        f"held out: {HELD_OUT} of the same mixture and of dead leaves, indices from {HELD_OUT_FIRST}"
    )
    return TrainingData(
        lambda: _procedural_blocks(model, n, 0, mixture, seed),
        procedural(model, HELD_OUT, HELD_OUT_FIRST, mixture, seed),
        n,
        f"procedural {mixture} {seed} {n}",
        words,
        data_free=True,
    )


def _procedural_blocks(model: Autoencoder, n: int, first: int, mixture: str, seed: int) -> Iterator[Tensor]:
    for start in range(0, n, BLOCK):
        block = procedural_images(min(BLOCK, n - start), model.image_shape[-1], seed, mixture, first + start)
        yield as_bytes(block if model.image_shape[0] == 3 else block.mean(dim=1, keepdim=True))


def _from_tensor(model: Autoencoder, images: ImagesLike, limit: int | None) -> Callable[[], Iterator[Tensor]]:
    def bytes_of(block: Tensor) -> Tensor:
        if block.dtype == torch.uint8:
            return block
        check_images(block, model.image_shape, model.name)  # a model of any range leaves this to its caller
        return as_bytes(block.detach().float().cpu())

    if isinstance(images, Tensor) and images.is_floating_point():
        taken = model.take_images(images)  # it is in memory already
    else:
        blocks = [bytes_of(block) for block in model.image_batches(images, block=BLOCK)]
        taken = torch.cat(blocks) if blocks else torch.zeros(0, *model.image_shape)
    if limit is not None and limit < len(taken):
        taken = taken[spread(len(taken), limit)]
    if len(taken) < FEWEST:
        raise InputError(f"a decoder is trained on {FEWEST} images or more, got {len(taken)}")
    return lambda: (bytes_of(block) for block in taken.split(BLOCK))


def _from_source(model: Autoencoder, source: str, limit: int | None) -> Callable[[], Iterator[Tensor]]:
    return lambda: (as_bytes(block) for block in model.stream_images(source, limit, block=BLOCK))


def _is_held_out(first: int, n: int) -> Tensor:
    return torch.arange(first, first + n) % ONE_IN == ONE_IN - 1
