"""fmprobe fit-decoder: a surrogate decoder for an encoder that has none, kept in a folder."""

from typing import Annotated

import typer

from fmprobe.cli import options as o

Data = Annotated[str | None, typer.Option(help="Training images, SOURCE[:split][#column]. [default: procedural]")]
Images = Annotated[int | None, typer.Option("--images", min=16, help="Training images. [default: by device, or all]")]
Size = Annotated[str | None, typer.Option(help="tiny, small, base or large. [default: by device]")]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps. [default: by device]")]


def fit_decoder(
    model: o.Model,
    out: o.Out = None,
    data: Data = None,
    images: Images = None,
    size: Size = None,
    steps: Steps = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    seed: o.Seed = 0,
    revision: o.Revision = None,
    image_size: o.ImageSize = None,
) -> None:
    """Fit a decoder to a frozen encoder; its folder goes into --decoder of the other commands.

    Without --data it is trained on procedural images, so no photograph is needed.
    """
    import fmprobe
    from fmprobe.cli.session import default_out, load_model, validation_line

    encoder = load_model(model, revision=revision, image_size=image_size, device=device, dtype=dtype)
    pictures = None
    if data is not None:
        channels, height, width = encoder.image_shape
        pictures = fmprobe.load_images(data, images, image_shape=(channels, height, width), seed=seed)
    decoder = fmprobe.fit_decoder(encoder, pictures, size=size, n_images=images, steps=steps, seed=seed)
    folder = out or default_out(model, "-decoder")
    decoder.save(folder)
    typer.echo(f"decoder     {folder}; validation: {validation_line(decoder)}")
