"""Images and a frozen encoder's latents of them, on disk: computed once and read often."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.digests import digest, file_digest
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.surrogates.artefact import channelwise

CONSTANT = 1e-4  # a channel that varies less than this share of the typical one counts as constant
PIXELS, LATENTS, META = "pixels.u8", "latents.f16", "meta.txt"
FORMAT = 2  # raise it when the files change, or what random streams give

Disturb = Callable[[Tensor, int, int], Tensor]  # pixels, index of the first, draw -> what the encoder sees
Advance = Callable[[int], object]


class Features:
    """Images `(n, C, H, W)` as bytes and the standardised latents of them, memory-mapped from a folder.

    `mean` and `std`, float32 `(D,)`, are the statistics a channel of all latents in the encoder's native units. Latents
    are stored in half precision relative to the first block's statistics, so that neither a channel's offset nor its
    scale costs accuracy; `draws` of each image, seen with different noise, follow one another.
    """

    def __init__(self, folder: Path) -> None:
        meta = _read_meta(folder)
        self.image_shape, self.latent_shape = tuple(meta["image_shape"]), tuple(meta["latent_shape"])
        self.n, self.draws = meta["n"], meta["draws"]
        self.mean, self.std = torch.tensor(meta["mean"]), torch.tensor(meta["std"])
        self._scale = channelwise(torch.tensor(meta["scale"]), self.latent_shape)
        self._shift = channelwise(torch.tensor(meta["shift"]), self.latent_shape)
        self._pixels = np.memmap(folder / PIXELS, np.uint8, "r", shape=(self.n, *self.image_shape))
        shape = (self.n, self.draws, *self.latent_shape)
        self._latents = np.memmap(folder / LATENTS, np.float16, "r", shape=shape)

    def __len__(self) -> int:
        return self.n

    def latents(self, rows: Tensor, draw: int = 0) -> Tensor:
        """Standardised latents, float32 `(len(rows), *latent_shape)` on the CPU."""
        stored = torch.from_numpy(self._latents[rows.numpy(), draw % self.draws])
        return stored.float() * self._scale + self._shift

    def images(self, rows: Tensor) -> Tensor:
        """Float images in `[0, 1]`, `(len(rows), C, H, W)` on the CPU."""
        return as_pixels(torch.from_numpy(self._pixels[rows.numpy()]))


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
    """The features of the images that `blocks()` yields, bytes or floats in `[0, 1]`, from the cache where it has them.

    Kept in `$XDG_CACHE_HOME/fmprobe/features`, keyed by the encoder, its preprocessing and tokens, the data and the
    noise; memory does not grow with the number of images. An entry whose contents have changed is built again; where
    the model has no fingerprint, or the disk takes nothing, they live in a temporary folder while they are used.
    Raises InputError where latents are not finite, or are the same for every image.
    """
    key = features_key(model, data_key, [disturb_key, draws])
    entry = cache_folder("features") / key if key else None
    if entry is not None and (found := _open(entry)) is not None:
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
        _write(model, scratch / "new", blocks(), disturb, draws, advance)
        folder = scratch / "new"
        if entry is not None:
            with contextlib.suppress(OSError):  # another process has just put the same there
                shutil.rmtree(entry, ignore_errors=True)
                folder.rename(entry)
            folder = entry if _open(entry) is not None else folder
        yield Features(folder)


def features_key(model: Autoencoder, data_key: str, more: Any) -> str | None:
    """A digest of what decides a model's latents, the data and `more`; None for a model without a fingerprint."""
    if (fingerprint := model.fingerprint) is None:
        return None
    provenance = {key: model.provenance.get(key) for key in ("dtype", "tokens", "preprocessing")}
    return digest(FORMAT, fingerprint, provenance, list(model.image_shape), list(model.latent_shape), data_key, more)


def cache_folder(room: str) -> Path:
    """Where fmprobe keeps what it can compute again: a room of `$XDG_CACHE_HOME/fmprobe`, by default of `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification ignores relative paths.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fmprobe" / room


def encode_native(model: Autoencoder, images: Tensor) -> Tensor:
    """The encoder's own latents of a block of images, float32 on the CPU. Raises InputError where not finite."""
    with torch.no_grad():
        latents = model.encode_unchecked(as_pixels(images)).float().cpu()  # noise or a decoder may leave [0, 1]
    if not latents.isfinite().all():
        raise InputError(f"{model.name} gives latents that are not finite: try dtype float32")
    return latents


def as_bytes(images: Tensor) -> Tensor:
    """Bytes of images in `[0, 1]`, a quarter of the memory, and what photographs have."""
    return images if images.dtype == torch.uint8 else (images * 255).round_().clamp_(0, 255).to(torch.uint8)


def _write(
    model: Autoencoder, folder: Path, blocks: Iterable[Tensor], disturb: Disturb, draws: int, advance: Advance
) -> None:
    """Images and latents block by block, then their statistics and checksums."""
    folder.mkdir()
    sums = _Statistics(model.latent_shape)
    n = 0
    with (folder / PIXELS).open("wb") as pixels, (folder / LATENTS).open("wb") as latents:
        for block in blocks:
            images = as_bytes(block)
            pixels.write(images.numpy().tobytes())
            seen = [encode_native(model, disturb(as_pixels(images), n, draw)) for draw in range(draws)]
            relative = torch.stack([sums.add(one) for one in seen], dim=1)
            latents.write(relative.half().numpy().tobytes())
            n += len(images)
            advance(len(images))
    mean, std, scale, shift = sums.finish(model.name)
    meta = {
        "n": n,
        "draws": draws,
        "image_shape": list(model.image_shape),
        "latent_shape": list(model.latent_shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "scale": scale.tolist(),
        "shift": shift.tolist(),
        "sha256": {name: file_digest(folder / name) for name in (PIXELS, LATENTS)},
    }
    text = json.dumps(meta)
    (folder / META).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", encoding="utf-8")


def _read_meta(folder: Path) -> dict[str, Any]:
    """What `_write` says of its files; ValueError where it is not what was written."""
    checksum, _, text = (folder / META).read_text(encoding="utf-8").partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise ValueError(f"{folder / META} has changed")
    return json.loads(text)


class _Statistics:
    """Mean and deviation a channel, summed over blocks relative to the first one's."""

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        self.shape = latent_shape
        self.mean0 = self.std0 = torch.empty(0)
        self.total = self.squares = torch.zeros((), dtype=torch.float64)
        self.count = 0
        self.first: Tensor | None = None  # one image's latents
        self.varies = False  # whether another image's differ from them

    def add(self, latents: Tensor) -> Tensor:
        """Take a block in; returns it relative to the first block's statistics, in half precision's range."""
        self.first = latents[:1].clone() if self.first is None else self.first
        self.varies = self.varies or bool((latents != self.first).any())
        if self.count == 0:
            rows = self._rows(latents)
            self.mean0, self.std0 = rows.mean(0), _at_least(rows.std(0, correction=0))
        relative = (latents - channelwise(self.mean0, self.shape)) / channelwise(self.std0, self.shape)
        rows = self._rows(relative).double()
        self.total, self.squares = self.total + rows.sum(0), self.squares + rows.square().sum(0)
        self.count += len(rows)
        return relative.clamp(-6e4, 6e4)  # half precision ends at 65504

    def finish(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and deviation in native units, and scale and shift with which stored latents are standardised."""
        relative_mean = self.total / max(self.count, 1)
        spread = (self.squares / max(self.count, 1) - relative_mean.square()).clamp(min=0).sqrt()
        if not self.varies or not bool((spread > 0).any()):
            raise InputError(f"{name} gives the same latents for every image: no statistics can be taken from them")
        mean0, std0 = self.mean0.double(), self.std0.double()
        mean, std = mean0 + std0 * relative_mean, _at_least(std0 * spread)
        return mean.float(), std.float(), (std0 / std).float(), ((mean0 - mean) / std).float()

    def _rows(self, latents: Tensor) -> Tensor:
        """All places of all latents, `(rows, D)`."""
        return (latents.movedim(1, -1) if len(self.shape) == 3 else latents).reshape(-1, self._channels())

    def _channels(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]


def _at_least(std: Tensor) -> Tensor:
    """Deviations with those of constant channels raised, so that dividing by them does not magnify rounding."""
    typical = std.median()
    return std.clamp(min=float(typical) * CONSTANT) if typical > 0 else torch.where(std > 0, std, 1.0)


def _open(entry: Path) -> Features | None:
    """The features in a folder whose files are what was written there, else None."""
    try:
        meta = _read_meta(entry)
        if any(file_digest(entry / name) != meta["sha256"][name] for name in (PIXELS, LATENTS)):
            return None
        return Features(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None
