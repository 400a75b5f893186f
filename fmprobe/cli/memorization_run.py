"""What fmprobe memorization does: open the run, read the images, hold the attractors against them, keep it, tell."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmprobe
from fmprobe.cli.output import tell, warn
from fmprobe.cli.session import open_run, with_decoder
from fmprobe.digests import digest
from fmprobe.files import read_json, write_json
from fmprobe.hub import canonical
from fmprobe.images import sample_images
from fmprobe.report.rendering import number
from fmprobe.sharing import is_main

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.probes.memorization import Memorization

BATCH = 32


def run_memorization(
    name: str,
    out: Path | None,
    *,
    data: str,
    test: str | None,
    images: int,
    ends: bool,
    load: Mapping[str, Any],
    plan: Mapping[str, Any],
    seed: int,
    resume: bool,
    verbose: bool = False,
) -> Path:
    """From a model's name and images to a run folder whose results hold the key `memorization`; returns the folder."""
    sources = {"train": data} | ({} if test is None else {"test": test})
    model, folder, results = open_run(
        name, out, load=load, plan=plan, seed=seed, resume=resume, verbose=verbose, sources=list(sources.values())
    )
    model = with_decoder(model, seed)
    if not is_main():
        return folder.path  # what was found together is held against images by one process
    sets = {part: sample_images(source, images, seed=seed, **model.image_arguments) for part, source in sources.items()}
    kept = folder.path / "memorization" / "memorization.json"
    places = {part: canonical(source) for part, source in sources.items()}
    identity = digest({"sources": places, "ends": ends, "seed": seed}, *sets.values())
    if kept.is_file() and read_json(kept).get("identity") == identity:
        typer.echo(f"{kept} holds this already")
        entry = read_json(kept)
    else:
        attractors = fmprobe.AttractorSet.load(folder.path / "attractors")
        typer.echo(f"holding {len(attractors)} attractors against {len(sets['train'])} images of {data}")
        found = fmprobe.probe_memorization(
            model,
            sets["train"],
            sets.get("test"),
            attractors=attractors,
            ends=ends,
            seed=seed,
            batch_size=plan.get("batch_size") or BATCH,
        )
        entry = {**found.to_dict(), "sources": sources, "identity": identity}
        _save(found, sets["train"], entry, kept)
    results = folder.finish({**results, "memorization": entry})
    entry = results["memorization"]
    from fmprobe.report.page import write_report

    write_report(folder.path)
    warn(results)
    tell_memorization(entry)
    tell(results, folder.path)
    return folder.path


def _save(found: "Memorization", train: "Tensor", entry: Mapping[str, Any], kept: Path) -> None:
    """The pairs, then the JSON, which completes them."""
    from fmprobe.probes.memorization import save_pairs

    shutil.rmtree(kept.parent, ignore_errors=True)  # pairs of other images, of which there may be more
    save_pairs(found.decoded, train, found.nearest, kept.parent)
    write_json(kept, entry, exact=True)


def tell_memorization(entry: Mapping[str, Any]) -> None:
    """Values at the nearest training image by row and measure, errors, rank and the terms of the bound."""
    measures = list(entry["levels"])
    typer.echo(f"\nnearest of {entry['images']['train']} training images, mean ± deviation")
    typer.echo(f"{'':34}" + "".join(f"{measure:>19}" for measure in measures))
    for row in entry["levels"][measures[0]]:
        levels = [entry["levels"][measure][row] for measure in measures]
        if row == entry["subject"] or any(levels):
            count = levels[0]["count"] if levels[0] else 0
            cells = "".join(f"{_spread(level):>19}" for level in levels)
            typer.echo(f"{f'{row} ({count})':34}{cells}")
    errors = ", ".join(f"{part} {number(error, '.4g')}" for part, error in entry["errors"].items())
    typer.echo(f"error       mean squared, a pixel: {errors}")
    if entry["rank"]["attractors"] is not None:
        rank = entry["rank"]
        typer.echo(
            f"rank        {rank['attractors']} at 90% of variance (as many training images: {rank['train_images']})"
        )
    for part, terms in (entry["bound"] or {}).items():
        typer.echo(f"bound       {part}: {_bound(terms)}")
    if entry["warning"]:
        typer.echo(f"warning     {entry['warning']}")


def _bound(terms: Mapping[str, float | None]) -> str:
    """Both sides of the bound; terms that are not finite are shown as a dash."""
    lipschitz, away = terms["lipschitz"], terms["coverage_error"]
    # All images on attractors leave no slope to be known, and nothing to multiply it by.
    coverage = 0.0 if away == 0 else None if away is None or lipschitz is None else lipschitz**2 * away
    prototype, left = (number(terms[name], ".4g") for name in ("prototype_error", "error"))
    alone = f"without the factor 2 it holds for {number(terms['holds_as_printed'], '.0%')} of the images"
    return f"{left} <= 2 x ({prototype} prototype + {number(coverage, '.4g')} coverage); {alone}"


def _spread(level: Mapping[str, float] | None) -> str:
    return "none" if level is None else f"{number(level['mean'], '.3f')} ± {number(level['std'], '.3f')}"
