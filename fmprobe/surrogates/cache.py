"""Fitted decoders kept on disk, keyed by everything that decides them."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.nodes import level
from fmprobe.surrogates.artefact import Surrogate, load_surrogate
from fmprobe.surrogates.features import cache_folder, features_key, used
from fmprobe.surrogates.fit import FitSettings, fit_with
from fmprobe.surrogates.settings import Settings

FORMAT = 7  # raise it when fitting or the files change, so that older entries are no longer found


def cached_decoder(
    model: Autoencoder,
    settings: Settings | None = None,
    *,
    progress: bool = True,
    fitting: Callable[[Settings], object] = lambda _: None,
) -> tuple[Surrogate, bool]:
    """The surrogate of a model on procedural images, and whether it was in the cache.

    The cache is `$XDG_CACHE_HOME/fmprobe/decoders` (by default in `~/.cache`). A damaged entry is fitted again. A cache
    that cannot be written costs the next call its time and nothing else. A model without a fingerprint in its
    provenance is never cached, since nothing tells it from another.

    Args:
        model: The encoder.
        settings: By default those of a pixel decoder on the model's device.
        progress: Whether progress bars may be shown.
        fitting: Called with the settings before a surrogate is fitted.

    Raises:
        InputError: If the model cannot be fitted.
    """
    settings = settings or FitSettings.for_device(model.device)
    key = features_key(model, "procedural", [FORMAT, asdict(settings)])
    if key is None:
        fitting(settings)
        return fit_with(model, settings, progress=progress), False
    entry = cache_folder("decoders") / key
    level(entry)
    if entry.is_dir():
        try:
            found = load_surrogate(entry, model)
            used(entry)
            return found, True
        except InputError:
            shutil.rmtree(entry, ignore_errors=True)
    fitting(settings)
    decoder = fit_with(model, settings, progress=progress)
    with suppress(InputError):  # a full or read-only disk; or another process has just put the same decoder there
        decoder.save(entry)
    return decoder, False
