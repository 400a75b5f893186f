"""fmprobe ood: out-of-distribution detection by latent trajectories, compared and applied."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.cli import options as o

Model = Annotated[
    str | None, typer.Argument(help="Hub id (ORG/NAME) or local folder; left out with --detector. [default: none]")
]
Data = Annotated[
    str | None, typer.Option(help="In-distribution images, SOURCE[:split][#column]; with --detector: images to score.")
]
Ood = Annotated[
    list[str] | None, typer.Option("--ood", help="Images from elsewhere, NAME=SOURCE or SOURCE. Repeatable.")
]
Detector = Annotated[Path | None, typer.Option(help="Folder of a fitted detector: score --data with it, to a CSV.")]
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
    """Tell images from elsewhere by their latent trajectories: compare scores, or apply a fitted detector.

    `fmprobe ood MODEL --data ID --ood A --ood B` fits a detector on a part of ID, keeps it, and writes a table of every
    score and baseline on every set. `fmprobe ood --detector DIR --data FOLDER` scores new images to a CSV.
    """
    from fmprobe.errors import InputError

    if data is None:
        raise InputError("no images: name them with --data SOURCE[:split][#column]")
    if acceptance is not None and not 0 < acceptance < 1:
        raise InputError(f"--acceptance {acceptance} is no share: expected a number between 0 and 1")
    if detector is not None:
        if ood:
            raise InputError(
                "--ood compares scores while fitting; with --detector name the images to score with --data"
            )
        from fmprobe.cli.ood_score import score_source

        table = score_source(
            detector,
            data,
            out,
            acceptance=acceptance,
            rule=rule,
            model=model,
            device=load["device"],
            resume=resume,
            parquet=parquet,
            verbose=verbose,
        )
        return table.parent
    if parquet:
        raise InputError("--parquet is for the scores of new images: name a fitted detector with --detector DIR")
    if model is None:
        raise InputError("no model: name one to fit a detector for, or a fitted detector with --detector DIR")
    if rule is not None:
        raise InputError("--rule is for the scores of new images: name a fitted detector with --detector DIR")
    if ood_images is not None and not ood:
        raise InputError("--ood-images is of each --ood: name images from elsewhere, or leave it out")
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
