"""Models as commands load them: with small images on a CPU, a surrogate decoder where there is none, and a printed
line.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from fmprobe import loading
from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.hub import canonical
from fmprobe.runs.published import load_preferred
from fmprobe.runs.run import Run, default_out, identity, named
from fmprobe.sharing import is_main
from fmprobe.tables import times
from fmprobe.validation import errors_in_words, warning_of

if TYPE_CHECKING:
    from fmprobe.surrogates.settings import Settings


def load_model(name: str, *, image_size: int | None = None, **arguments: Any) -> Autoencoder:
    """Load a model as commands do: `fmprobe.load` with small images on a CPU, and without progress bars for local
    files.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = loading.load(name, image_size=image_size or "fit", **arguments)
    images = f"images {times(model.image_shape)}" if model.image_shape else "no images"
    typer.echo(f"{model.short_name}: {images}, latents {times(model.latent_shape)}, {model.device}")
    if not model.image_shape:
        if image_size is not None:
            raise InputError(f"{model.name} takes no images: leave --image-size out")
        typer.echo(f"latents: {model.provenance['space']}")
        return model
    side = model.image_shape[-1]
    native = (model.provenance.get("preprocessing") or {}).get("size", side)
    if image_size is None and side < native:
        typer.echo(f"no accelerator: images of {side} px, not {native} (--image-size {native} gives the full size)")
    return model


@contextmanager
def open_model(
    name: str,
    options: Mapping[str, Any],
    asked: Mapping[str, Any],
    load: Mapping[str, Any],
    *,
    suffix: str = "",
    sources: Sequence[str] = (),
) -> Iterator[tuple[Run, Autoencoder]]:
    """Open a run on one model. The model may still lack a decoder.

    Args:
        name: the model.
        options: those of the group `options.RUN`.
        asked: what is asked beside the model and the seed, as JSON holds it.
        load: how the model is loaded, as `fmprobe.load` takes it.
        suffix: end of the default folder's name, after `runs/` and the last part of the model's name.
        sources: image sources that are tried before anything is computed.
    """
    began = time.perf_counter()
    model = load_preferred(name, load, load_model)
    for source in sources:
        model.load_images(source, 1)
    # What was asked, before anything is computed, is the run's identity. Defaults follow from it and the device.
    manifest = {"model": canonical(name), "seed": options["seed"], **named(load), **asked, **identity(model)}
    out = options["out"] or default_out(name, suffix)
    with Run.open(out, manifest, began=began, resume=options["resume"], verbose=options["verbose"]) as run:
        yield run, model


def with_decoder(model: Autoencoder, seed: int, settings: "Settings | None" = None) -> Autoencoder:
    """The model itself if it has a latent map, else the model with a surrogate decoder from the cache or fitted now.

    Args:
        model: the model.
        seed: seed of the surrogate.
        settings: settings of the surrogate. By default a closed form of all features on a CPU, which comes nearest to
            the rule of recipes/surrogate_choice.py in a fifth of the time, and a trained surrogate on an accelerator.
    """
    if model.has_latent_map:
        return model
    from fmprobe.surrogates.cache import cached_decoder
    from fmprobe.surrogates.pace import estimate

    def say(chosen: "Settings") -> None:
        typer.echo(
            "the encoder has no decoder: fitting one on procedural images (it is kept for the next run); "
            f"{estimate(model, chosen)}"
        )

    settings = settings or settings_of("linear" if model.device.type == "cpu" else "pixel", model, seed)
    began = time.perf_counter()
    decoder, was_cached = cached_decoder(model, settings, progress=is_main(), fitting=say)
    how = "found in the cache" if was_cached else f"fitted in {time.perf_counter() - began:.0f} s"
    typer.echo(f"decoder {how}; {errors_in_words(decoder.info['validation'])}")
    whole = model.with_decoder(decoder)
    if (warning := warning_of(whole.provenance["decoder"])) is not None:
        typer.echo(f"\nwarning     {warning}")
    return whole


def settings_of(kind: str, model: Autoencoder, seed: int) -> "Settings":
    """The settings of a kind of surrogate on the model's device."""
    from fmprobe.surrogates.fit import FitSettings

    return replace(FitSettings.for_device(model.device, kind), seed=seed)
