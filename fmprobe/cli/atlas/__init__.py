"""fmprobe atlas: many models probed by name, each in a process of its own, and one page that compares them."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmprobe.cli.atlas.asked import Asked, asked_for, spelled
from fmprobe.cli.atlas.child import run_child
from fmprobe.errors import InputError
from fmprobe.probes.ood import Ood
from fmprobe.probes.prototypes import Surrogate, check_choices
from fmprobe.runs import options as o
from fmprobe.runs.config import keep

if TYPE_CHECKING:
    from fmprobe.report.atlas import Row
    from fmprobe.runs.folder import RunFolder

PAGE = "atlas.html"
OOD = ("seed", *o.LOAD, *o.ORBITS, *o.MERGING)  # options of `probe` that `ood` takes too
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=o.folder,
        metavar="PATH",
        help="Folder of the atlas. [default: runs/atlas]",
        rich_help_panel=o.Panel.OUTPUT,
    ),
]
RUN = {**o.without(o.RUN, "verbose"), "out": (Out, None)}
LOAD = o.without(o.LOAD, "revision", "decoder")  # these two belong to one model, and stand in its line of a list

Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="Hub ids, local folders, or demo, the embedded model. [default: none]"),
]
Names = Annotated[
    Path | None,
    typer.Option(
        "--list",
        parser=o.folder,
        metavar="FILE",
        help="Text with one model per line, and after it options of `fmprobe probe` for it alone; # begins a comment.",
        rich_help_panel=o.Panel.MODEL,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="In-distribution images: `fmprobe ood` is run on every model too, in its folder ood.",
        metavar="SOURCE",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        min=64,
        help="Number of images of --data. [default: as `fmprobe ood`]",
        metavar="N",
        rich_help_panel=o.Panel.IMAGES,
    ),
]


@o.grouped(options=RUN, plan=o.PLAN, load=LOAD)
def atlas(
    context: typer.Context,
    models: Models = None,
    names: Names = None,
    surrogate: Surrogate = None,
    data: Data = None,
    ood: Ood = None,
    images: Images = None,
    *,
    options: dict[str, Any],
    plan: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Compare many models by name on one page, atlas.html.

    The page lies in the folder --out. Each model is probed as `fmprobe probe MODEL` does, in a process and a folder of
    its own, one after the other. A model that fails is a row with its reason, and the others go on. The same command
    goes on where it stopped: models that are done are not loaded again, and more may be named. The exit code is 0 if at
    least one model was probed.

    Example: fmprobe atlas demo facebook/dinov2-small --list more.txt -o atlas
    """
    from fmprobe import __version__
    from fmprobe.probes.ood import named_sources
    from fmprobe.runs.folder import RunFolder
    from fmprobe.sharing import launched

    if launched() > 1:
        raise InputError("atlas starts processes of its own: run it without torchrun or accelerate launch")
    check_choices({**plan, "surrogate": surrogate})
    if (data is None) != (not ood) or (images is not None and data is None):
        raise InputError("out-of-distribution detection needs both --data and --ood: give both, or none of its options")
    named_sources(ood or [])
    values = {"seed": options["seed"], "surrogate": surrogate, **plan, **load}
    common = {key: values[key] for key in values if key in o.given(context)}
    asked = asked_for(models or [], names, common)
    detection = None if data is None else [*_words("--data", data), *_words("--ood", *(ood or []))]
    detection = detection and detection + ([] if images is None else ["--images", str(images)])
    out = options["out"] or Path("runs/atlas")
    folder = RunFolder.open(out, {"atlas": common, "fmprobe": __version__}, options["resume"])
    with folder.locked():
        keep(folder.path)
        _probe_all(folder, asked, common, detection)
    return out


def _words(option: str, *values: str) -> list[str]:
    return [word for value in values for word in (option, value)]


def _probe_all(
    folder: "RunFolder", asked: Sequence[Asked], common: Mapping[str, Any], detection: Sequence[str] | None
) -> None:
    """Probe what is not done yet, and make the page anew after each model."""
    from fmprobe.report.atlas import Row, table_of, write_atlas

    before = (folder.results or {}).get("models", {})
    rows = []
    for one in asked:
        name = one.folder(common)
        steps = dict(before.get(name, {}).get("steps", {}))
        rows.append(Row(one.label, folder.path / name, spelled(one.own(common)), steps))
        rows[-1].read()
    for i, (row, one) in enumerate(zip(rows, asked, strict=True)):
        steps = {"probe": one.command("probe", row.folder)}
        if detection is not None:
            steps["ood"] = one.command("ood", row.folder / "ood", detection, OOD)
        for step, words in steps.items():
            if step == "probe" or row.error is None:
                _step(folder, row, step, words, f"{i + 1} of {len(rows)}  {one.name}")
        row.read()
        folder.finish({"models": {row.folder.name: row.to_dict() for row in rows}})
        write_atlas(folder.path / PAGE, rows, spelled(common))
    typer.echo("\n" + table_of(rows).to_text() + f"\n\natlas       {folder.path / PAGE}")
    if reason := all(row.error for row in rows) and rows[0].error:
        raise InputError(f"none of the {len(rows)} models could be probed, as {folder.path / PAGE} says: {reason}")


def _step(folder: "RunFolder", row: "Row", step: str, words: list[str], said: str) -> None:
    """Run a command on a model, unless it is done already."""
    command = shlex.join(words[:-2])  # without the folder, which may be moved
    if row.is_done(step, command):
        typer.echo(f"{said}: {step} is done already")
        return
    log = folder.path / f"{row.folder.name}-{step}.log"
    typer.echo(f"{said}: {step} (what it prints: {log})")
    folder.tell("begin", model=row.name, step=step)
    error = run_child(words, log)
    row.steps[step] = {"command": command, "error": error}
    folder.tell("end", model=row.name, step=step, error=error)
    typer.echo(f"  {'done' if error is None else f'failed: {error}'}")
