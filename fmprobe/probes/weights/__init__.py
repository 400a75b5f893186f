"""fmprobe weights: do a model's attractors, found from noise, reconstruct images of data sets it is shown?"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmprobe.errors import InputError
from fmprobe.probes.prototypes import attractors_in, decoded, decoded_alike, open_prototypes
from fmprobe.probes.weights.page import SECTIONS
from fmprobe.runs import options as o

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.attractors import AttractorSet
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.runs.run import Run

__all__ = ["COMMANDS", "SECTIONS", "parse_atoms", "weights"]

BATCH = 32

Data = Annotated[
    list[str],
    typer.Option(
        help="Images to reconstruct, SOURCE[:split][#column]. Repeatable.",
        metavar="SOURCE",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Atoms = Annotated[
    str | None,
    typer.Option(
        help="Numbers of atoms, as in 32,64,128. [default: powers of two]",
        metavar="N,N",
        rich_help_panel=o.Panel.COMPARISON,
    ),
]
Images = Annotated[
    int,
    typer.Option(
        "--images", min=2, help="Number of images of each data set.", metavar="N", rich_help_panel=o.Panel.IMAGES
    ),
]
Null = Annotated[
    bool,
    typer.Option(
        "--null/--no-null",
        help="Also take attractors of random weights as a dictionary, as a null.",
        rich_help_panel=o.Panel.COMPARISON,
    ),
]


@o.grouped(options=o.RUN, plan=o.PLAN, load=o.LOAD)
def weights(
    model: o.Model,
    data: Data,
    atoms: Atoms = None,
    images: Images = 64,
    use_ends: o.UseEnds = False,
    null: Null = True,
    *,
    options: dict[str, Any],
    plan: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Reconstruct images from a model's attractors.

    Matching pursuit takes attractors as atoms, and beside them bases of chance and of data. The attractors are those of
    `probe` under the same options. What its run folder holds is not computed again.

    Example: fmprobe weights facebook/vit-mae-base --data photos --atoms 8,16
    """
    levels = parse_atoms(atoms)
    from fmprobe.images import held_out
    from fmprobe.probes.weights.dictionaries import atoms_of
    from fmprobe.published import published_id

    seed = options["seed"]
    with open_prototypes(model, options, plan, load, sources=data) as (run, loaded):
        subject = decoded(run, loaded, seed)
        attractors = attractors_in(run, subject)
        n_atoms = len(atoms_of(attractors, use_ends)[0])
        sets = {source: held_out(subject, source, images, n_atoms, seed) for source in dict.fromkeys(data)}
        # A surrogate given for the model does not fit another encoder: the null gets one of its own.
        random = {**load, "decoder": published_id(subject), "random_weights": 0}
        twin = _null(model, run, random, plan, seed, subject) if null and n_atoms else None
        settings = {"atoms": levels, "ends": use_ends, "seed": seed, "batch_size": plan.get("batch_size") or BATCH}
        run.put({"weights": {"data": _curves(run, subject, attractors, twin, sets, settings)}})
        return run.finish("weights")


def parse_atoms(text: str | None) -> list[int] | None:
    """Numbers of atoms out of "32,64,128". Raises InputError for anything else."""
    if text is None:
        return None
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1:
        raise InputError(f"--atoms {text!r} is not understood: expected numbers from 1 up, as in 32,64,128")
    return levels


def _null(
    name: str, run: "Run", load: Mapping[str, Any], plan: Mapping[str, Any], seed: int, subject: "Autoencoder"
) -> "AttractorSet":
    """What the same starts lead to under the same architecture with random weights, kept in the run folder."""
    from fmprobe.attractors import AttractorSet
    from fmprobe.runs.models import load_model
    from fmprobe.runs.search import search
    from fmprobe.sharing import team

    kept, shards = run.path / "null", "null-shards"
    if not (kept / "attractors.json").is_file():
        typer.echo("\nthe null: the same architecture with random weights (--no-null leaves it out)")
        twin = decoded_alike(run, load_model(name, **load), seed, subject)
        asked = {**plan, **{key: run.results["protocol"][key] for key in ("n", "max_steps")}}
        _, found = search(twin, run, asked, seed, shards, stability_cap=0)
        if found is not None:
            found[0].save(kept)
            shutil.rmtree(run.path / shards, ignore_errors=True)
        team().barrier()
    return AttractorSet.load(kept)


def _curves(
    run: "Run",
    model: "Autoencoder",
    attractors: "AttractorSet",
    twin: "AttractorSet | None",
    sets: "Mapping[str, tuple[Tensor, Tensor | None]]",
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Curves by data set; the processes draw the sets that the folder does not hold, with a picture of each."""
    from fmprobe.digests import digest
    from fmprobe.hub import canonical
    from fmprobe.probes.weights.curves import probe_weights, save_levels, save_reconstructions
    from fmprobe.runs.sweeps import file_of, kept

    def label(source: str) -> str:
        """Names everything that decides the curves of a data set."""
        shown, reference = sets[source]
        decided = digest(canonical(source), settings, len(shown), twin is not None, shown, reference)
        stem = re.sub(r"\W+", "-", Path(source).name).strip("-") or "data"
        return f"{stem}-{decided[:12]}"

    def work(name: str, condition: Mapping[str, Any]) -> dict[str, Any]:
        source = condition["source"]
        images, reference = sets[source]
        typer.echo(f"{source}: reconstructing {len(images)} images")
        given = {**settings, "null_attractors": twin, "reference_images": reference}
        curves = probe_weights(model, attractors, images, **given)
        picture = run.path / "weights" / f"{name}.png"
        save_reconstructions(curves, picture)
        frames = save_levels(curves, picture.with_name(f"{name}-frames.png"))
        run.tell("reconstructed", source=source)
        return {**curves.to_dict(), "picture": picture.name, "frames": frames}

    conditions = {label(source): {"source": source} for source in sets}
    for name, condition in conditions.items():
        if kept(run.path / "weights", name, condition):
            typer.echo(f"{condition['source']}: {file_of(run.path / 'weights', name)} holds its curves already")
    found = dict(run.shared("weights", work, conditions))
    return {condition["source"]: found[name] for name, condition in conditions.items()}


COMMANDS = {"weights": weights}
