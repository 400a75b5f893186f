"""fmprobe fit-decoder: a surrogate for an encoder that has no decoder, kept in a folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.runs import options as o
from fmprobe.surrogates.kinds import KINDS

PIXEL, LATENT = "Pixel decoder", "Latent decoder"  # groups of options


def _weight(help: str) -> Any:
    return typer.Option(min=0, callback=o.finite, help=help, metavar="X", rich_help_panel=PIXEL)


Data = Annotated[
    str | None,
    typer.Option(
        help="Training images, SOURCE[:split][#column]. [default: procedural]",
        metavar="SOURCE",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images",
        min=16,
        help="Number of training images. [default: by device, or all]",
        metavar="N",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        help=f"What is fitted. {'; '.join(f'{name}: {kind.help}' for name, kind in KINDS.items())}.",
        metavar="NAME",
        rich_help_panel="Fit",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        help="(pixel only) Size: tiny, small, base or large. [default: by device]",
        metavar="NAME",
        rich_help_panel=PIXEL,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1, help="(pixel, latent) Training steps. [default: by device]", metavar="N", rich_help_panel="Fit"
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="(pixel, latent) Images in a step. [default: by device]", metavar="N", rich_help_panel="Fit"
    ),
]
Noise = Annotated[
    float | None, _weight("(pixel only) Maximum deviation of the noise on training latents. [default: 2]")
]
Perceptual = Annotated[float | None, _weight("(pixel only) Weight of the error in features. [default: 0]")]
Contraction = Annotated[
    float | None, _weight("(pixel only) Weight of the squared norm of f's Jacobian. [default: 0.015]")
]
ConsistencySteps = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="(pixel only) Steps of a second stage, which trains ||E(D(z)) - z||^2 along orbits. "
        "[default: 2000 on a GPU, else 0]",
        metavar="N",
        rich_help_panel=PIXEL,
    ),
]
Consistency = Annotated[float | None, _weight("(pixel only) Weight of that term in the second stage. [default: 0.1]")]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="(pixel, latent) Time a few steps, print how many an hour affords, and fit nothing.",
        rich_help_panel="Fit",
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(
        help="(latent only) Variant: plain, denoising, contractive, variational, sparse or topk. [default: plain]",
        metavar="NAME",
        rich_help_panel=LATENT,
    ),
]
Bottleneck = Annotated[
    int | None,
    typer.Option(min=1, help="(latent only) Values at each place. [default: 32]", metavar="N", rich_help_panel=LATENT),
]
Components = Annotated[
    int | None,
    typer.Option(
        "--k",
        min=1,
        help="(closed-form only) Principal components that codes keep. [default: all]",
        metavar="K",
        rich_help_panel="Decoder in closed form",
    ),
]
PixelDecoder = Annotated[
    str | None,
    typer.Option(help="(latent only) Pixel decoder used to visualise latents.", metavar="PATH", rich_help_panel=LATENT),
]
Trackers = Annotated[
    str | None,
    typer.Option(
        help="(pixel, latent) Tracker of accelerate's, such as tensorboard. [default: none]",
        metavar="NAME",
        rich_help_panel="Fit",
    ),
]


@o.grouped(load=o.without(o.LOAD, "decoder", "autocast", "compile", "deterministic"))
def fit_decoder(
    model: o.Model,
    out: o.Out = None,
    data: Data = None,
    images: Images = None,
    kind: Kind = "pixel",
    size: Size = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    noise: Noise = None,
    perceptual: Perceptual = None,
    contraction: Contraction = None,
    consistency_steps: ConsistencySteps = None,
    consistency: Consistency = None,
    variant: Variant = None,
    bottleneck: Bottleneck = None,
    k: Components = None,
    pixel_decoder: PixelDecoder = None,
    seed: o.Seed = 0,
    trackers: Trackers = None,
    plan: Plan = False,
    *,
    load: dict[str, Any],
) -> dict[str, Any]:
    """Fit a surrogate decoder to a frozen encoder.

    Its folder goes into --decoder of the other commands. Without --data it is trained on procedural images, so no
    photograph is needed. Killed, and run again, it goes on where it stopped.

    Example: fmprobe fit-decoder facebook/dinov2-small --kind closed-form
    """
    chosen = {"size": size, "steps": steps, "batch_size": batch_size, "trackers": trackers}
    chosen |= {"noise": noise, "perceptual": perceptual, "contraction": contraction}
    chosen |= {"consistency_steps": consistency_steps, "consistency": consistency}
    chosen |= {"variant": variant, "bottleneck": bottleneck, "k": k, "pixel_decoder": pixel_decoder}
    given = {name: value for name, value in chosen.items() if value is not None}
    _refuse_unused(kind, {**given, "plan": True} if plan else given)
    if plan:
        given = {key: value for key, value in given.items() if key not in ("pixel_decoder", "trackers")}
        return _plan(model, load, data, kind=kind, n_images=images, seed=seed, **given)
    return _fit(model, out, load, data, kind=kind, n_images=images, seed=seed, **given)


def _refuse_unused(kind: str, given: Iterable[str]) -> None:
    """Raise InputError for an option that this kind of surrogate does not take."""
    from fmprobe.errors import InputError
    from fmprobe.surrogates.kinds import find_kind

    taken = find_kind(kind).options()
    for name in given:
        if name not in taken:
            raise InputError(f"--{name.replace('_', '-')} is not an option of a {kind} surrogate: leave it out")


def _plan(name: str, load: dict[str, Any], data: str | None, **settings: Any) -> dict[str, Any]:
    """Load the encoder, and report how long the steps of a fit take here."""
    from dataclasses import asdict

    from fmprobe.runs.models import load_model
    from fmprobe.surrogates.fit import chosen_settings
    from fmprobe.surrogates.pace import pace_of

    encoder = load_model(name, **load)
    paces = pace_of(encoder, chosen_settings(encoder, data, **settings), data)
    for pace in paces:
        typer.echo(str(pace))
    return {"plan": [asdict(pace) for pace in paces]}


def _fit(
    name: str,
    out: Path | None,
    load: dict[str, Any],
    data: str | None,
    pixel_decoder: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Load the encoder, fit the surrogate, save it and report its errors."""
    from fmprobe.runs import config
    from fmprobe.runs.models import load_model
    from fmprobe.runs.run import default_out
    from fmprobe.sharing import is_main
    from fmprobe.surrogates import fit
    from fmprobe.surrogates.artefact import check_place
    from fmprobe.surrogates.kinds import find_kind
    from fmprobe.surrogates.pace import estimate
    from fmprobe.validation import errors_in_words, warning_of

    folder = out or default_out(name, "-decoder")
    check_place(folder)
    encoder = load_model(name, **load)
    pixel = None if pixel_decoder is None else find_kind("pixel").load(pixel_decoder, encoder)
    if data is None and encoder.image_shape:
        chosen = {key: value for key, value in settings.items() if key != "trackers"}
        typer.echo(estimate(encoder, fit.chosen_settings(encoder, **chosen)))
    surrogate = fit.fit_decoder(encoder, data, progress=is_main(), **settings)
    if pixel is not None:
        surrogate.put_behind(pixel)
    if is_main():
        surrogate.save(folder)
        config.keep(folder)
    typer.echo(f"decoder     {folder}; {errors_in_words(surrogate.info['validation'])}")
    if (warning := warning_of(surrogate.describe()["decoder"])) is not None:
        typer.echo(f"\nwarning     {warning}")
    return {"decoder": str(folder), "validation": surrogate.info["validation"]}
