"""fmprobe push: a finished run, a detector, a decoder or a set of attractors, to a repository of the hub."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmprobe.errors import InputError
from fmprobe.files import RESULTS
from fmprobe.runs.options import folder

if TYPE_CHECKING:
    from fmprobe.artefacts import Artefact

Run = Annotated[
    Path,
    typer.Argument(parser=folder, metavar="RUN", help="Folder of a finished run, detector, decoder or attractors."),
]
Repository = Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository of the hub; made if there is none.")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
License = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Licence by its name on the hub, such as apache-2.0. [default: the base model's]"),
]


def push(run: Run, repository: Repository, private: Private = False, license: License = None) -> dict[str, str]:
    """Push a finished run to the hub, with its page and a card.

    It becomes one commit. A detector, a decoder or a set of attractors is pushed alike. Paths of this machine are
    replaced by their last part. Orbits that were kept to go on from (shards) and the log of events stay here.

    Example: fmprobe push runs/dinov2-small ORG/NAME --private
    """
    from fmprobe.runs.folder import RunFolder

    kind = _kind_of(run)
    with RunFolder(run).locked() if kind is RunFolder else nullcontext():
        address = kind.push_folder(run, repository, private=private or None, license=license)
    typer.echo(f"pushed      {address}")
    return {"pushed": address}


def _kind_of(path: Path) -> "type[Artefact]":
    """What a folder holds. Raises InputError where it is nothing that can be pushed."""
    from fmprobe.attractors import AttractorSet
    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.runs.folder import RunFolder
    from fmprobe.surrogates.artefact import Surrogate

    complete = {
        RESULTS: RunFolder,
        "detector.json": TrajectoryDetector,
        "attractors.json": AttractorSet,
        "config.json": Surrogate,
    }
    for name, kind in complete.items():
        if (path / name).is_file():
            return kind
    raise InputError(
        f"{path} holds no finished run, detector, decoder or attractors: expected a folder with one of "
        f"{', '.join(complete)}"
    )
