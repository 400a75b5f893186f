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

__all__ = ["COMMANDS", "SECTIONS", "memorization"]

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
    from fmprobe.digests import digest
    from fmprobe.hub import canonical
    from fmprobe.images import sample_images
    from fmprobe.sharing import is_main

    sources = {"train": data} | ({} if test is None else {"test": test})
    seed = options["seed"]
    with open_prototypes(model, options, plan, load, sources=list(sources.values())) as (run, loaded):
        subject = decoded(run, loaded, seed)
        attractors = attractors_in(run, subject)
        sets = {p: sample_images(s, images, seed=seed, **subject.image_arguments) for p, s in sources.items()}
        places = {part: canonical(source) for part, source in sources.items()}
        identity = digest({"sources": places, "ends": use_ends, "seed": seed}, *sets.values())

        def make() -> dict[str, Any] | None:
            if not is_main():
                return None  # one process compares what all have found
            settings = {"ends": use_ends, "seed": seed, "batch_size": plan.get("batch_size") or BATCH}
            entry = _compared(subject, attractors, run.path, sets, settings)
            return {"memorization": {**entry, "sources": sources, "identity": identity}}

        same = lambda entry: bool(entry) and entry.get("identity") == identity  # noqa: E731
        run.once("memorization", make, same=same, what="this")
        return run.finish("memorization")


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
