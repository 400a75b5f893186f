"""fmprobe fit-decoder: a surrogate for an encoder that has no decoder, kept in a folder."""

from typing import Annotated, Any

import typer

from fmprobe.runs import options as o

Data = Annotated[str | None, typer.Option(help="Training images, SOURCE[:split][#column]. [default: procedural]")]
Images = Annotated[int | None, typer.Option("--images", min=16, help="Training images. [default: by device, or all]")]
Kind = Annotated[str, typer.Option(help="pixel: a decoder to images; latent: an autoencoder on features.")]
Size = Annotated[str | None, typer.Option(help="tiny, small, base or large. [default: by device]")]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps. [default: by device]")]
Noise = Annotated[
    float | None, typer.Option(min=0, callback=o.finite, help="Of the latents, in deviations. [default: 2]")
]
Perceptual = Annotated[
    float | None, typer.Option(min=0, callback=o.finite, help="Weight of the encoder's own features. [default: 0]")
]
Contraction = Annotated[
    float | None,
    typer.Option(min=0, callback=o.finite, help="Pixel: weight of f's squared Jacobian norm. [default: 0.015]"),
]
Variant = Annotated[
    str | None,
    typer.Option(help="Latent: plain, denoising, contractive, variational, sparse or topk. [default: plain]"),
]
Bottleneck = Annotated[int | None, typer.Option(min=1, help="Latent: values a place. [default: 32]")]
Behind = Annotated[str | None, typer.Option(help="Latent: folder of a pixel decoder that its latents are shown by.")]
Trackers = Annotated[str | None, typer.Option(help="A tracker of accelerate's, such as tensorboard. [default: none]")]


@o.grouped(load=o.without(o.LOAD, "decoder", "autocast", "compile", "deterministic"))
def fit_decoder(
    model: o.Model,
    out: o.Out = None,
    data: Data = None,
    images: Images = None,
    kind: Kind = "pixel",
    size: Size = None,
    steps: Steps = None,
    batch_size: o.BatchSize = None,
    noise: Noise = None,
    perceptual: Perceptual = None,
    contraction: Contraction = None,
    variant: Variant = None,
    bottleneck: Bottleneck = None,
    pixel_decoder: Behind = None,
    seed: o.Seed = 0,
    trackers: Trackers = None,
    *,
    load: dict[str, Any],
) -> dict[str, Any]:
    """Fit a surrogate to a frozen encoder; its folder goes into --decoder of the other commands.

    Without --data it is trained on procedural images, so no photograph is needed. Killed, and run again, it goes on
    where it stopped.
    """
    import fmprobe
    from fmprobe.runs.models import load_model, validation_line
    from fmprobe.runs.run import default_out
    from fmprobe.sharing import is_main
    from fmprobe.surrogates.artefact import check_place
    from fmprobe.surrogates.latent import LatentSurrogate
    from fmprobe.surrogates.pixel import PixelDecoder
    from fmprobe.validation import warning_of

    settings = {
        "n_images": images,
        "size": size,
        "steps": steps,
        "batch_size": batch_size,
        "noise": noise,
        "perceptual": perceptual,
        "contraction": contraction,
        "variant": variant,
        "bottleneck": bottleneck,
    }
    _refuse_unused(kind, {**settings, "pixel_decoder": pixel_decoder})
    folder = out or default_out(model, "-decoder")
    check_place(folder)
    encoder = load_model(model, **load)
    pixel = None if pixel_decoder is None else PixelDecoder.load(pixel_decoder, encoder)
    surrogate = fmprobe.fit_decoder(
        encoder,
        data,
        kind,
        seed=seed,
        progress=is_main(),
        trackers=trackers,
        **settings,
    )
    if pixel is not None and isinstance(surrogate, LatentSurrogate):
        surrogate.put_behind(pixel)
    if is_main():
        surrogate.save(folder)
    typer.echo(f"decoder     {folder}; validation: {validation_line(surrogate)}")
    if (warning := warning_of(surrogate.describe()["decoder"])) is not None:
        typer.echo(f"\nwarning     {warning}")
    return {"decoder": str(folder), "validation": surrogate.info["validation"]}


def _refuse_unused(kind: str, settings: dict[str, Any]) -> None:
    """Raise InputError for an option that this kind of surrogate has no use for."""
    from fmprobe.errors import InputError
    from fmprobe.surrogates.fit import UNUSED

    unused = {**UNUSED, "pixel": (*UNUSED["pixel"], "pixel_decoder")}
    for name in unused.get(kind, ()):
        if settings.get(name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is of no use to a {kind} surrogate: leave it out")
