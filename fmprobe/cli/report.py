"""fmprobe report: one page of one run folder, or of several side by side."""

from pathlib import Path
from typing import Annotated

import typer

from fmprobe.runs import options as o

Runs = Annotated[list[Path], typer.Argument(help="Folders of finished runs.", metavar="RUN")]
File = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=o.folder,
        metavar="PATH",
        help="The page. [default: report.html in the first folder]",
        rich_help_panel=o.Panel.OUTPUT,
    ),
]


def report(runs: Runs, out: File = None) -> dict[str, str]:
    """Make one self-contained page of finished runs.

    It shows attractors, trajectories, curves, tables and the protocol. Several runs are shown side by side, and what
    their protocols do not share is marked.

    Example: fmprobe report runs/mae runs/dinov2 -o both.html
    """
    from fmprobe.report.page import write_report

    path = write_report(runs, out)
    typer.echo(f"report      {path}")
    return {"report": str(path)}
