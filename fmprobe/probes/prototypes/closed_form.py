"""The diagram over capacity that `probe` begins with, and the closed-form surrogate that it chooses.

No surrogate passed the rule of recipes/surrogate_choice.py; the closed form of all features came nearest. On a CPU the
closed form is taken: its fits to two sets of images and to random weights end in minutes, so that what survives is
known before any attractor is shown.
"""

import math
from typing import Any

import typer

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.probes import capacity
from fmprobe.runs.run import Run, head
from fmprobe.sharing import is_main
from fmprobe.surrogates.closed import ClosedFormSettings

# Of the diagram, so that it ends in minutes on a CPU. At these k all orbits of dinov2-small settled within 48 steps for
# nine seeds of the images; from k = 64 on it depends on the images (recipes/README.md).
IMAGES, KS, STARTS, MAX_STEPS = 512, (16, 32), 8, 80


def what_survives(run: Run, model: Autoencoder, seed: int) -> None:
    """Put the diagram over capacity into the results of a run, and print each point as soon as it is known.

    Args:
        run: the run.
        model: an encoder without a decoder.
        seed: seed of the images and the starts.

    Raises:
        InputError: no decoder in closed form can be fitted to the encoder.
    """
    if "capacity" not in run.results:
        typer.echo(
            "closed-form surrogates of two sets of procedural images and of random weights, which takes minutes\n"
            "(no surrogate passes the rule of recipes/surrogate_choice.py; the closed form comes nearest)"
        )
        run.once("capacity", lambda: _diagram(model, seed))
    found = run.results["what_survives"]
    typer.echo(f"{found['sentence']}\n{found['surrogate']}")


def closed_form_settings(run: Run, model: Autoencoder, seed: int) -> ClosedFormSettings:
    """The settings of the surrogate of images A at the largest k at which orbits of A and B settle.

    Where orbits settle at no k, the smallest is taken.
    """
    chosen = run.results["what_survives"]["settles_to"] or min(point["k"] for point in run.results["capacity"])
    k = None if chosen == math.prod(model.latent_shape) else chosen
    return ClosedFormSettings(n_images=IMAGES, pixel_noise=0.0, seed=seed, k=k)


def _diagram(model: Autoencoder, seed: int) -> dict[str, Any] | None:
    """The entries of the diagram, from the main process."""
    if not is_main():
        return None
    most = min(IMAGES, math.prod(model.latent_shape)) - 1
    ks = [k for k in KS if k <= most] or [most]
    settings: dict[str, Any] = {"n_images": IMAGES, "starts": STARTS, "max_steps": MAX_STEPS, "seed": seed}
    settings["callback"] = typer.echo
    try:
        found = capacity.probe_capacity(model, ks, **settings)
    except InputError as error:
        if "random weights" not in str(error):
            raise
        typer.echo(f"there is no null: {error}")
        found = capacity.probe_capacity(model, ks, null=False, **settings)
    return {**head(model, found.protocol), **found.entries()}
