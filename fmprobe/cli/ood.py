"""fmprobe ood: out-of-distribution detection by latent trajectories, compared; with --detector as `fmprobe score`."""

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.cli import options as o
from fmprobe.cli.output import with_output
from fmprobe.cli.score import check_acceptance, score
from fmprobe.errors import InputError

Model = Annotated[
    str | None, typer.Argument(help="Hub id (ORG/NAME) or local folder; left out with --detector. [default: none]")
]
Data = Annotated[
    str | None, typer.Option(help="In-distribution images, SOURCE[:split][#column]; with --detector: images to score.")
]
Ood = Annotated[
    list[str] | None, typer.Option("--ood", help="Images from elsewhere, NAME=SOURCE or SOURCE. Repeatable.")
]
Detector = Annotated[Path | None, typer.Option(help="Folder of a fitted detector: the same as `fmprobe score DIR`.")]
Images = Annotated[int | None, typer.Option(min=64, help="Of --data, spread evenly. [default: 480, 4000 on a GPU]")]
OodImages = Annotated[int | None, typer.Option(min=2, help="Of each --ood, spread evenly. [default: the test images']")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps counted of every orbit. [default: to its end]")]
Distance = Annotated[str | None, typer.Option(help="euclidean, cosine or standardised. [default: euclidean]")]
Aggregate = Annotated[str | None, typer.Option(help="mean, first, last, max, length or steps. [default: mean]")]
Acceptance = Annotated[float | None, typer.Option(help="Share of in-distribution images to accept. [default: 0.95]")]
Rule = Annotated[str | None, typer.Option(help="With --detector: the score that decides. [default: the detector's]")]
Parquet = Annotated[bool, typer.Option("--parquet", help="With --detector: write scores.parquet beside the CSV.")]
Controls = Annotated[
    bool, typer.Option("--controls/--no-controls", help="Add constant, noise, blurred, inverted images.")
]


@o.grouped(orbits=o.ORBITS, load=o.LOAD)
def ood(
    context: typer.Context,
    model: Model = None,
    data: Data = None,
    ood: Ood = None,
    detector: Detector = None,
    out: o.Out = None,
    images: Images = None,
    ood_images: OodImages = None,
    steps: Steps = None,
    distance: Distance = None,
    aggregate: Aggregate = None,
    acceptance: Acceptance = None,
    rule: Rule = None,
    controls: Controls = True,
    parquet: Parquet = False,
    merge: o.Merge = None,
    merge_threshold: o.MergeThreshold = None,
    seed: o.Seed = 0,
    verbose: o.Verbose = False,
    resume: o.Resume = True,
    *,
    orbits: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Tell images from elsewhere by their latent trajectories: every score and every baseline, compared.

    `fmprobe ood MODEL --data ID --ood A --ood B` fits a detector on a part of ID, keeps it, and writes a table of every
    score and baseline on every set. `fmprobe score DETECTOR --data FOLDER` scores new images with it.
    """
    if data is None:
        raise InputError("no images: name them with --data SOURCE[:split][#column]")
    if detector is not None:
        acting = {"detector", *inspect.signature(with_output(score)).parameters}
        _refuse(context, _given(context) - acting, f"--detector {detector} knows its model and settings")
        return score(detector, data, out, acceptance, rule, parquet, load["device"], verbose, resume)
    _refuse(context, _given(context) & {"rule", "parquet"}, "a detector is fitted here, and `fmprobe score` applies it")
    if not ood:
        _refuse(context, _given(context) & {"ood_images"}, "there are no images from elsewhere without --ood")
    check_acceptance(acceptance)
    if model is None:
        raise InputError("no model: name one to fit a detector for, or a fitted detector with --detector DIR")
    from fmprobe.cli.ood_compare import compare

    return compare(
        model,
        data,
        ood or [],
        out,
        load=load,
        settings={
            "steps": steps,
            "distance": distance,
            "aggregate": aggregate,
            "merge": merge,
            "threshold": merge_threshold,
            **orbits,
        },
        images=images,
        ood_images=ood_images,
        controls=controls,
        acceptance=0.95 if acceptance is None else acceptance,
        seed=seed,
        resume=resume,
        verbose=verbose,
    )


def _given(context: typer.Context) -> set[str]:
    """The names of the parameters that somebody gave a value, rather than their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _refuse(context: typer.Context, names: Collection[str], reason: str) -> None:
    """Raise InputError, with the `reason`, where there are parameters that would not act."""
    spelled = [
        str(context.params[parameter.name]) if parameter.param_type_name == "argument" else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None and parameter.name in names
    ]
    if spelled:
        raise InputError(f"{reason}: leave {', '.join(spelled)} out")
