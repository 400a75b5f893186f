"""Fitted decoders kept on disk, keyed by everything that decides them."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.surrogates.fit import FitSettings, fit_with
from fmprobe.surrogates.pixel import PatchDecoder

FORMAT = 3  # raise it when fitting or the files change, so that older entries are no longer found


def cached_decoder(
    model: Autoencoder, settings: FitSettings | None = None, *, progress: bool = True
) -> tuple[PatchDecoder, bool]:
    """The decoder of `model` under `settings` on procedural images, and whether it was in the cache.

    Kept in `$XDG_CACHE_HOME/fmprobe/decoders` (by default `~/.cache`). A damaged entry is fitted again; a cache that
    cannot be written costs the next call its time and nothing else. A model without a fingerprint in its provenance
    is never cached, since nothing tells it from another. Raises InputError where the model cannot be fitted.
    """
    settings = settings or FitSettings.for_device(model.device)
    if not model.provenance.get("fingerprint"):
        return fit_with(model, settings, progress=progress), False
    entry = cache_folder() / decoder_key(model, settings)
    if entry.is_dir():
        try:
            return PatchDecoder.load(entry, model), True
        except InputError:
            shutil.rmtree(entry, ignore_errors=True)
    decoder = fit_with(model, settings, progress=progress)
    with suppress(InputError):  # a full or read-only disk; or another process has just put the same decoder there
        decoder.save(entry)
    return decoder, False


def cache_folder() -> Path:
    """Where fitted decoders are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification ignores relative paths.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fmprobe" / "decoders"


def decoder_key(model: Autoencoder, settings: FitSettings) -> str:
    """SHA-256 over the model's fingerprint, its shapes and preprocessing, the settings and the format version."""
    provenance = {key: model.provenance.get(key) for key in ("fingerprint", "dtype", "tokens", "preprocessing")}
    content = [FORMAT, provenance, list(model.image_shape), list(model.latent_shape), asdict(settings)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
