"""fmprobe memorization: are a model's attractors, found from noise, its training images?"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmprobe.probes.memorization.page import SECTIONS
from fmprobe.probes.prototypes import attractors_in, decoded, open_prototypes
from fmprobe.runs import options as o

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.attractors import AttractorSet
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.runs.run import Run

__all__ = ["COMMANDS", "SECTIONS", "compare_once", "memorization"]

BATCH = 32

Data = Annotated[
    str,
    typer.Option(help="Training images, SOURCE[:split][#column].", metavar="SOURCE", rich_help_panel=o.Panel.IMAGES),
]
Test = Annotated[
    str | None,
    typer.Option(
        help="Images the model was not trained on: for the null and the test error.",
        metavar="SOURCE",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Images = Annotated[
    int,
    typer.Option(
        "--images",
        min=1,
        help="Largest number of images of each source, spread evenly.",
        metavar="N",
        rich_help_panel=o.Panel.IMAGES,
    ),
]


@o.grouped(options=o.RUN, plan=o.PLAN, load=o.LOAD)
def memorization(
    model: o.Model,
    data: Data,
    test: Test = None,
    images: Images = 1000,
    use_ends: o.UseEnds = False,
    *,
    options: dict[str, Any],
    plan: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Compare a model's attractors with its training images.

    The comparison shows what is as near without memory. The attractors are those of `probe` under the same options.
    What its run folder holds is not computed again.

    Example: fmprobe memorization facebook/vit-mae-base --data train --test test
    """
    from fmprobe.hub import canonical
    from fmprobe.images import sample_images

    sources = {"train": data} | ({} if test is None else {"test": test})
    with open_prototypes(model, options, plan, load, sources=list(sources.values())) as (run, loaded):
        subject = decoded(run, loaded, options["seed"])
        sets = {
            p: sample_images(s, images, seed=options["seed"], **subject.image_arguments) for p, s in sources.items()
        }
        places = {part: canonical(source) for part, source in sources.items()}
        settings = {"ends": use_ends, "seed": options["seed"]}
        compare_once(run, subject, sets, sources, places, plan.get("batch_size") or BATCH, **settings)
        return run.finish("memorization")


def compare_once(
    run: "Run",
    model: "Autoencoder",
    sets: "dict[str, Tensor]",
    sources: dict[str, str],
    places: dict[str, str],
    batch_size: int = BATCH,
    **settings: Any,
) -> None:
    """Put the comparison of a run's attractors with images into its results, unless they hold it.

    Args:
        run: the run, which holds the attractors.
        model: its model.
        sets: images by part, "train" and perhaps "test".
        sources: where they come from, as it was asked for.
        places: the same by the one name of each place. They and the images decide whether the results hold this.
        batch_size: largest number of rows in one call of the model.
        settings: `ends` and `seed` of `probe_memorization`.
    """
    from fmprobe.digests import digest
    from fmprobe.sharing import is_main

    attractors = attractors_in(run, model)
    identity = digest({"sources": places, **settings}, *sets.values())

    def make() -> dict[str, Any] | None:
        if not is_main():
            return None  # one process compares what all have found
        entry = _compared(model, attractors, run.path, sets, {**settings, "batch_size": batch_size})
        return {"memorization": {**entry, "sources": sources, "identity": identity}}

    same = lambda entry: bool(entry) and entry.get("identity") == identity  # noqa: E731
    run.once("memorization", make, same=same, what="this")


def _compared(
    model: "Autoencoder",
    attractors: "AttractorSet",
    folder: Path,
    sets: "dict[str, Tensor]",
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The entry of `results.json`; the folder gets a picture of each attractor beside its nearest training image."""
    from fmprobe.probes.memorization.coefficient import probe_memorization, save_pairs

    typer.echo(f"comparing {len(attractors)} attractors with {len(sets['train'])} training images")
    found = probe_memorization(model, sets["train"], sets.get("test"), attractors=attractors, **settings)
    pairs = folder / "memorization"
    shutil.rmtree(pairs, ignore_errors=True)  # pairs of other images, of which there may be more
    save_pairs(found.decoded, sets["train"], found.nearest, pairs)
    return found.to_dict()


COMMANDS = {"memorization": memorization}
