"""The decoder that was published for an encoder, in a command: the default on an accelerator, and named on a CPU."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import typer

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.families import Published
from fmprobe.hub import canonical
from fmprobe.published import PUBLISHED, published_for

BYTES = 4  # of a parameter in float32


def load_preferred(name: str, load: Mapping[str, Any], load_model: Callable[..., Autoencoder]) -> Autoencoder:
    """Load a model, on an accelerator with the decoder that was published for it.

    On a CPU that decoder is named, with its size and an estimate of its time, and no request is made for it.

    Args:
        name: the model.
        load: how it is loaded, as `fmprobe.load` takes it.
        load_model: loads it.
    """
    pairs = [pair for pair in published_for(canonical(name)) if pair.preferred]
    plain = load.get("decoder") is None and load.get("tokens") in (None, "patch") and load.get("device_map") is None
    if not pairs or not plain:
        return load_model(name, **load)
    from fmprobe.loading import pick_device

    if pick_device(load.get("device")).type == "cpu":
        model = load_model(name, **load)
        typer.echo(_offer(pairs[0]))
        return model
    if load.get("image_size") not in (None, *(pair.side for pair in pairs)):
        return load_model(name, **load)
    try:
        model = load_model(name, **{**load, "decoder": PUBLISHED})
    except InputError as error:
        typer.echo(f"the decoder published for {name} cannot be loaded, so a surrogate takes its place: {error}")
        return load_model(name, **load)
    typer.echo(f"decoder: {pairs[0].decoder}, published for this encoder (--decoder names another)")
    return model


def _offer(pair: Published) -> str:
    """The line that names a published decoder, with its size and the time of f on this machine."""
    size, seconds = pair.parameters * BYTES / 1e9, pair.operations / _speed()
    return (
        f"a decoder was published for this encoder: --decoder {PUBLISHED} takes {pair.decoder} "
        f"(about {size:.1f} GB in float32, and here about {seconds:.1g} s a start and step)"
    )


def _speed() -> float:
    """Floating-point operations a second of a product of matrices as the published decoders have them."""
    import torch

    rows, width, hidden = 256, 1152, 4096
    a, b = torch.ones(rows, width), torch.ones(width, hidden)
    times = []
    for _ in range(3):  # the first call warms up
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    return 2.0 * rows * width * hidden / min(times)
