"""Images and a frozen encoder's latents of them, on disk: computed once and read often."""

import contextlib
import hashlib
import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.digests import digest, file_digest
from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.paging import forget, lies_in
from fmprobe.errors import InputError
from fmprobe.images import as_pixels

AT_ONCE = 32  # images or latents in a call of the encoder or a decoder
CONSTANT = 1e-4  # a channel that varies less than this share of the typical one counts as constant
PIXELS, LATENTS, META = "pixels.u8", "latents.f16", "meta.txt"
FORMAT = 2  # raise it when the files change, or what random streams give

Disturb = Callable[[Tensor, int, int], Tensor]  # pixels, index of the first, draw -> what the encoder sees
Advance = Callable[[int], object]


class Features:
    """Images `(n, C, H, W)` as bytes and the standardised latents of them, memory-mapped from a folder.

    What has been read does not stay in memory.

    Latents are stored in half precision relative to the first block's statistics, so that neither the offset nor the
    scale of a channel costs accuracy. The draws of an image, seen with different noise, follow one another.

    Attributes:
        n: Number of images.
        draws: Number of draws of each image.
        mean: Mean of each channel over all latents, in the encoder's native units, float32 `(D,)`.
        std: Standard deviation of each channel, likewise.
    """

    def __init__(self, folder: Path) -> None:
        meta = read_meta(folder)
        self.image_shape, self.latent_shape = tuple(meta["image_shape"]), tuple(meta["latent_shape"])
        self.n, self.draws = meta["n"], meta["draws"]
        self.mean, self.std = torch.tensor(meta["mean"]), torch.tensor(meta["std"])
        self._scale = channelwise(torch.tensor(meta["scale"]), self.latent_shape)
        self._shift = channelwise(torch.tensor(meta["shift"]), self.latent_shape)
        self._pixels = _mapped(folder / PIXELS, torch.uint8, (self.n, *self.image_shape))
        self._latents = _mapped(folder / LATENTS, torch.float16, (self.n, self.draws, *self.latent_shape))

    def __len__(self) -> int:
        return self.n

    def latents(self, rows: Tensor, draw: int = 0) -> Tensor:
        """Standardised latents, float32 `(len(rows), *latent_shape)` on the CPU. Draws repeat after the last one."""
        stored = self._latents[rows, draw % self.draws]
        forget(self._latents)
        return stored.float() * self._scale + self._shift

    def of_step(self, rows: Tensor, step: int, batch_size: int) -> Tensor:
        """`latents` for a training step: each pass over the images takes the next draw."""
        return self.latents(rows, step * batch_size // self.n)

    def images(self, rows: Tensor) -> Tensor:
        """Float images in `[0, 1]`, `(len(rows), C, H, W)` on the CPU."""
        stored = self._pixels[rows]
        forget(self._pixels)
        return as_pixels(stored)


@contextlib.contextmanager
def features_of(
    model: Autoencoder,
    blocks: Callable[[], Iterable[Tensor]],
    data_key: str,
    disturb: Disturb,
    disturb_key: Any,
    draws: int = 1,
    advance: Advance = lambda count: None,
) -> Iterator[Features]:
    """Give the features of images, from the cache if it has them.

    They are kept in `$XDG_CACHE_HOME/fmprobe/features`, keyed by the encoder, its preprocessing and tokens, the data
    and the noise. Memory does not grow with the number of images. An entry whose content has changed is built again.
    If the model has no fingerprint, or the disk takes nothing, the features live in a temporary folder while in use.

    Args:
        model: The frozen encoder.
        blocks: Yields the images in blocks, as bytes or as floats in `[0, 1]`.
        data_key: What tells these images from others.
        disturb: Maps pixels, the index of the first image and the number of the draw to what the encoder sees.
        disturb_key: What tells this `disturb` from others, JSON-ready.
        draws: Number of versions of each image.
        advance: Called with the number of images that have just been encoded.

    Raises:
        InputError: If latents are not finite, or are the same for every image.
    """
    key = features_key(model, data_key, [disturb_key, draws])
    entry = cache_folder("features") / key if key else None
    if entry is not None and (found := _open(entry)) is not None:
        used(entry)
        advance(len(found))
        yield found
        return
    with contextlib.ExitStack() as stack:
        try:
            if entry is None:
                raise OSError
            entry.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{entry.name[:16]}-", dir=entry.parent))
        except OSError:
            entry, scratch = None, Path(tempfile.mkdtemp(prefix="fmprobe-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        folder = scratch / "new"
        _write(model, folder, blocks(), disturb, draws, advance)
        if entry is not None:
            with contextlib.suppress(OSError):  # another process has just put the same there
                shutil.rmtree(entry, ignore_errors=True)
                folder.rename(entry)
            folder = entry if _open(entry) is not None else folder
        yield Features(folder)


class Moments:
    """Mean and standard deviation of each column, accumulated over blocks of rows in float64 (scikit-learn)."""

    def __init__(self) -> None:
        from sklearn.preprocessing import StandardScaler

        self._scaler: Any = StandardScaler()

    def add(self, rows: Tensor) -> None:
        """Take in rows `(n, D)`."""
        self._scaler.partial_fit(rows.cpu().double().numpy())

    @property
    def mean(self) -> Tensor:
        return torch.from_numpy(self._scaler.mean_)

    @property
    def std(self) -> Tensor:
        return torch.from_numpy(self._scaler.var_).sqrt()


def features_key(model: Autoencoder, data_key: str, more: Any) -> str | None:
    """A digest of what decides a model's latents, the data and `more`. None for a model without a fingerprint."""
    if (fingerprint := model.fingerprint) is None:
        return None
    provenance = {key: model.provenance.get(key) for key in ("dtype", "tokens", "preprocessing")}
    return digest(FORMAT, fingerprint, provenance, list(model.image_shape), list(model.latent_shape), data_key, more)


def cache_folder(name: str) -> Path:
    """A folder for what can be computed again: `$XDG_CACHE_HOME/fmprobe/NAME`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification ignores relative paths.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fmprobe" / name


def used(entry: Path) -> None:
    """Note that an entry of the cache was used just now, so that `fmprobe cache --max-size` keeps it for longer."""
    with contextlib.suppress(OSError):  # a disk that takes nothing
        os.utime(entry)


def in_blocks(function: Function, x: Tensor, size: int = AT_ONCE) -> Tensor:
    """`function` of blocks of at most `size` rows, without gradients, as one tensor on the CPU."""
    with torch.no_grad():
        return torch.cat([function(block).cpu() for block in x.split(size)])


def encode_native(model: Autoencoder, images: Tensor) -> Tensor:
    """The encoder's own latents of images, bytes or floats, as float32 on the CPU.

    Raises:
        InputError: If they are not finite.
    """
    # Noise or a decoder may leave [0, 1], so values are not checked.
    latents = in_blocks(lambda block: model.encode_unchecked(as_pixels(block)).float(), images)
    if not latents.isfinite().all():
        raise InputError(f"{model.name} gives latents that are not finite: try dtype float32")
    return latents


def as_bytes(images: Tensor) -> Tensor:
    """Bytes of images in `[0, 1]`: a quarter of the memory, and the precision of photographs."""
    return images if images.dtype == torch.uint8 else (images * 255).round_().clamp_(0, 255).to(torch.uint8)


def channels_of(latent_shape: tuple[int, ...]) -> int:
    """Number of channels of latents: tokens `(N, D)`, a map `(C, h, w)` or a vector `(D,)`."""
    return latent_shape[0] if len(latent_shape) == 3 else latent_shape[-1]


def channelwise(statistic: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """One value for each channel, `(D,)`, in the shape that broadcasts against latents."""
    return statistic.view(-1, 1, 1) if len(latent_shape) == 3 else statistic


def channels_last(latents: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """Latents `(B, *latent_shape)` with their channels in the last dimension."""
    return latents.movedim(1, -1) if len(latent_shape) == 3 else latents


def _write(
    model: Autoencoder, folder: Path, blocks: Iterable[Tensor], disturb: Disturb, draws: int, advance: Advance
) -> None:
    """Write images and latents block by block, then their statistics and checksums."""
    folder.mkdir()
    statistics = _Statistics(model.latent_shape)
    n = 0
    with (folder / PIXELS).open("wb") as pixels, (folder / LATENTS).open("wb") as latents:
        for block in blocks:
            images = as_bytes(block)
            pixels.write(images.numpy().tobytes())
            seen = [encode_native(model, disturb(as_pixels(images), n, draw)) for draw in range(draws)]
            relative = torch.stack([statistics.add(one) for one in seen], dim=1)
            latents.write(relative.half().numpy().tobytes())
            n += len(images)
            advance(len(images))
    meta = {
        "model": model.name,
        "n": n,
        "draws": draws,
        "image_shape": list(model.image_shape),
        "latent_shape": list(model.latent_shape),
        **{name: value.tolist() for name, value in statistics.finish(model.name).items()},
        "sha256": {name: file_digest(folder / name) for name in (PIXELS, LATENTS)},
    }
    text = json.dumps(meta)
    (folder / META).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", encoding="utf-8")


def _mapped(path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """What a file holds, as a tensor that lies in it. Raises ValueError where the file is too short."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch takes no memory that is only for reading
    return lies_in(torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape)).reshape(shape), mapped)


def read_meta(folder: Path) -> dict[str, Any]:
    """What `_write` noted about its files. Raises ValueError where the note has changed."""
    checksum, _, text = (folder / META).read_text(encoding="utf-8").partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise ValueError(f"{folder / META} has changed")
    return json.loads(text)


class _Statistics:
    """Mean and standard deviation of each channel, accumulated relative to the first block's."""

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        self.shape = latent_shape
        self.mean0 = self.std0 = torch.empty(0)
        self.relative = Moments()
        self.first: Tensor | None = None  # one image's latents
        self.varies = False  # whether another image's differ from them

    def add(self, latents: Tensor) -> Tensor:
        """Take a block in. Returns it relative to the first block's statistics, in half precision's range."""
        if self.first is None:
            rows = self._rows(latents)
            self.first, self.mean0, self.std0 = latents[:1].clone(), rows.mean(0), _at_least(rows.std(0, correction=0))
        self.varies = self.varies or bool((latents != self.first).any())
        relative = (latents - channelwise(self.mean0, self.shape)) / channelwise(self.std0, self.shape)
        self.relative.add(self._rows(relative))
        return relative.clamp(-6e4, 6e4)  # half precision ends at 65504

    def finish(self, name: str) -> dict[str, Tensor]:
        """Mean and deviation in native units, and scale and shift with which stored latents are standardised."""
        if not self.varies or not bool((self.relative.std > 0).any()):
            raise InputError(f"{name} gives the same latents for every image: no statistics can be taken from them")
        mean0, std0 = self.mean0.double(), self.std0.double()
        mean, std = mean0 + std0 * self.relative.mean, _at_least(std0 * self.relative.std)
        found = {"mean": mean, "std": std, "scale": std0 / std, "shift": (mean0 - mean) / std}
        return {name: value.float() for name, value in found.items()}

    def _rows(self, latents: Tensor) -> Tensor:
        """All places of all latents, `(rows, D)`."""
        return channels_last(latents, self.shape).reshape(-1, channels_of(self.shape))


def _at_least(std: Tensor) -> Tensor:
    """Deviations with those of constant channels raised, so that dividing by them does not magnify rounding."""
    typical = std.median()
    return std.clamp(min=float(typical) * CONSTANT) if typical > 0 else torch.where(std > 0, std, 1.0)


def _open(entry: Path) -> Features | None:
    """The features in a folder whose files are what was written there, else None."""
    try:
        meta = read_meta(entry)
        if any(file_digest(entry / name) != meta["sha256"][name] for name in (PIXELS, LATENTS)):
            return None
        return Features(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None
