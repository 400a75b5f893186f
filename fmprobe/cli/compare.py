"""fmprobe compare: are the latent vector fields of two models the same, up to a map between their spaces?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.cli import options as o

A = Annotated[str, typer.Argument(metavar="A", help="Hub id (ORG/NAME) or local folder in Hugging Face layout.")]
B = Annotated[str, typer.Argument(metavar="B", help="The other model.")]
Data = Annotated[str, typer.Option(help="Images that both are shown, SOURCE[:split][#column].")]
Images = Annotated[int, typer.Option("--images", min=12, help="Of --data, spread evenly: two thirds fit the maps.")]
Maps = Annotated[
    list[str] | None, typer.Option("--map", help="orthogonal, linear or relative. Repeatable. [default: all that can]")
]
Anchors = Annotated[int, typer.Option(min=2, help="Images that relative representations are relative to.")]
Null = Annotated[bool, typer.Option("--null/--no-null", help="Compare A with B's architecture at random, or not.")]
Ceiling = Annotated[bool, typer.Option("--ceiling/--no-ceiling", help="Compare A with A under weight noise, or not.")]
Noise = Annotated[
    float | None,
    typer.Option(
        min=0, callback=o.finite, help="Of the ceiling, relative to each weight tensor's size. [default: 0.01]"
    ),
]
NOISE = 0.01
DecoderB = Annotated[str | None, typer.Option(help="As --decoder, which is A's, for B.")]


@o.grouped(search=o.ORBITS | o.MERGING, load=o.without(o.LOAD, "revision", "decoder"))
def compare(
    model_a: A,
    model_b: B,
    data: Data,
    images: Images = 96,
    maps: Maps = None,
    anchors: Anchors = 64,
    null: Null = True,
    ceiling: Ceiling = True,
    noise: Noise = None,
    out: o.Out = None,
    seed: o.Seed = 0,
    decoder: o.Decoder = None,
    decoder_b: DecoderB = None,
    verbose: o.Verbose = False,
    resume: o.Resume = True,
    *,
    search: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Compare the latent vector fields of two models on shared images, beside a null and a ceiling.

    Maps between the two latent spaces are fitted on a part of the images; on the rest: error of the map, cosine of the
    fields, agreement of basins, distance of attractor sets, and relative representations along the iteration.
    """
    from fmprobe.cli.compare_run import run_compare
    from fmprobe.errors import InputError

    if noise is not None and not ceiling:
        raise InputError("--noise is that of the ceiling: leave it out, or --no-ceiling")
    strength = NOISE if noise is None else noise
    return run_compare(
        (model_a, model_b),
        out,
        data=data,
        images=images,
        null=null,
        ceiling=strength if ceiling else None,
        load=load,
        decoders=(decoder, decoder_b),
        settings={"maps": maps, "anchors": anchors, **search},
        seed=seed,
        resume=resume,
        verbose=verbose,
    )
