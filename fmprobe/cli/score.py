"""fmprobe score: new images through a fitted detector."""

from pathlib import Path
from typing import Annotated

import typer

from fmprobe.cli import options as o

Detector = Annotated[Path, typer.Argument(help="Folder of a fitted detector, such as `fmprobe ood MODEL` leaves.")]
Data = Annotated[str, typer.Option(help="Images to score, SOURCE[:split][#column].")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", parser=o.folder, metavar="PATH", help="For the table. [default: runs/ood-scores]"),
]
Acceptance = Annotated[
    float | None, typer.Option(help="Share of in-distribution images to accept. [default: the detector's]")
]
Rule = Annotated[str | None, typer.Option(help="The score that decides. [default: the detector's]")]
Parquet = Annotated[bool, typer.Option("--parquet", help="Write scores.parquet beside the CSV.")]


def score(
    detector: Detector,
    data: Data,
    out: Out = None,
    acceptance: Acceptance = None,
    rule: Rule = None,
    parquet: Parquet = False,
    device: o.Device = "auto",
    verbose: o.Verbose = False,
    resume: o.Resume = True,
) -> Path:
    """Score new images with a fitted detector, to a CSV with a row a file: accepted or not, and by which score.

    The detector knows its model and all of its settings. Images that were scored before, as told by their pixels, keep
    their rows.
    """
    check_acceptance(acceptance)
    from fmprobe.cli.ood_score import score_source

    table = score_source(
        detector,
        data,
        out,
        acceptance=acceptance,
        rule=rule,
        device=device,
        resume=resume,
        parquet=parquet,
        verbose=verbose,
    )
    return table.parent


def check_acceptance(value: float | None) -> None:
    """Raise InputError for a share that is none."""
    from fmprobe.errors import InputError

    if value is not None and not 0 < value < 1:
        raise InputError(f"--acceptance {value} is no share: expected a number between 0 and 1")
