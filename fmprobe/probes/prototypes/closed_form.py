"""The surrogate of `probe` in closed form: as many components as the orbits of two sets of images settle with."""

import math
from typing import Any

import typer

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.probes.capacity import probe_capacity
from fmprobe.runs.run import Run, head
from fmprobe.sharing import is_main
from fmprobe.surrogates.cache import cached_decoder
from fmprobe.surrogates.closed import ClosedFormSettings

IMAGES, KS, STARTS, MAX_STEPS = 512, (4, 16, 64, 256), 8, 40  # of the diagram, so that it ends in minutes on a CPU


def with_closed_form(run: Run, model: Autoencoder, seed: int) -> Autoencoder:
    """The encoder with the closed-form decoder of images A, at the largest k at which orbits of A and B settle.

    The diagram over capacity that decides k goes into the results of the run, with what both sets share and what random
    weights do not. Where orbits settle at no k, the smallest is taken.

    Args:
        run: the run, whose results keep the diagram.
        model: an encoder without a decoder.
        seed: seed of the images and the starts.

    Raises:
        InputError: no decoder in closed form can be fitted to the encoder.
    """
    if "capacity" not in run.results:
        typer.echo(
            "closed-form surrogates for two sets of procedural images and for random weights: this takes minutes"
        )
        run.once("capacity", lambda: _diagram(model, seed))
    found = run.results["what_survives"]
    size = math.prod(model.latent_shape)
    chosen = found["settles_to"] or min(point["k"] for point in run.results["capacity"])
    settings = ClosedFormSettings(n_images=IMAGES, pixel_noise=0.0, seed=seed, k=None if chosen == size else chosen)
    decoder, _ = cached_decoder(model, settings, progress=is_main())
    typer.echo(f"{found['sentence']}\n{found['surrogate']}\ndecoder: {decoder.about()['architecture']}")
    return model.with_decoder(decoder)


def _diagram(model: Autoencoder, seed: int) -> dict[str, Any] | None:
    """The entries of the diagram, from the main process."""
    if not is_main():
        return None
    most = min(IMAGES, math.prod(model.latent_shape)) - 1
    ks = [k for k in KS if k <= most] or [most]
    settings: dict[str, Any] = {"n_images": IMAGES, "starts": STARTS, "max_steps": MAX_STEPS, "seed": seed}
    try:
        found = probe_capacity(model, ks, **settings)
    except InputError as error:
        if "random weights" not in str(error):
            raise
        typer.echo(f"there is no null: {error}")
        found = probe_capacity(model, ks, null=False, **settings)
    return {**head(model, found.protocol), **found.entries()}
