"""What fmprobe weights does: open the run, reconstruct each data set, keep what is done, tell."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmprobe
from fmprobe.cli.output import tell, warn
from fmprobe.cli.session import at_work, load_model, open_run, search, with_decoder
from fmprobe.digests import digest
from fmprobe.errors import InputError
from fmprobe.files import read_json, write_json
from fmprobe.hub import canonical
from fmprobe.images import count_images, spread
from fmprobe.report.rendering import number
from fmprobe.runs.folder import RunFolder
from fmprobe.sharing import is_main

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.attractors import AttractorSet
    from fmprobe.autoencoder import Autoencoder

BATCH = 32


def run_weights(
    name: str,
    out: Path | None,
    *,
    data: Sequence[str],
    atoms: str | None,
    images: int,
    ends: bool,
    null: bool,
    load: Mapping[str, Any],
    plan: Mapping[str, Any],
    seed: int,
    resume: bool,
    verbose: bool = False,
) -> Path:
    """From a model's name and data sets to a run folder whose results hold the key `weights`; returns the folder."""
    levels = parse_atoms(atoms)
    from fmprobe.probes.dictionaries import atoms_of

    model, folder, results = open_run(
        name, out, load=load, plan=plan, seed=seed, resume=resume, verbose=verbose, sources=data
    )
    attractors = fmprobe.AttractorSet.load(folder.path / "attractors")
    model = with_decoder(model, seed)
    settings = {"atoms": levels, "ends": ends, "seed": seed, "batch_size": plan.get("batch_size") or BATCH}
    n_atoms = len(atoms_of(attractors, ends)[0])
    sets = {source: held_out(model, source, images, n_atoms, seed) for source in dict.fromkeys(data)}
    with at_work(folder):
        twin = _null_attractors(name, folder, results["protocol"], load, plan, seed) if null and n_atoms else None
        found = _reconstruct_all(model, attractors, twin, folder, sets, settings)
    if is_main():
        results = {**results, "weights": {"data": found}}
        results = folder.finish(results)
        found = results["weights"]["data"]
        from fmprobe.report.page import write_report

        write_report(folder.path)
        warn(results)
        for source, curves in found.items():
            tell_curves(source, curves)
        tell(results, folder.path)
    return folder.path


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


def held_out(model: "Autoencoder", source: str, n: int, n_atoms: int, seed: int) -> "tuple[Tensor, Tensor | None]":
    """n images of a source, and up to as many others as principal components need, if it has them; both spread evenly.

    Raises InputError where the source holds fewer than n, or one of them cannot be read.
    """
    there = count_images(source)
    more = next(k for k in (max(n, n_atoms), min(n, n_atoms), 0) if k == 0 or there is None or n + k <= there)
    images = model.load_images(source, n + more, seed=seed)
    shown = spread(n + more, n)
    others = sorted(set(range(n + more)) - set(shown))
    return images[shown], images[others] if more else None


def _null_attractors(
    name: str,
    folder: RunFolder,
    protocol: Mapping[str, Any],
    load: Mapping[str, Any],
    plan: Mapping[str, Any],
    seed: int,
) -> "AttractorSet":
    """What the same starts lead to under the same architecture with random weights, kept in the run folder."""
    from fmprobe.sharing import team

    kept = folder.path / "null"
    if not (kept / "attractors.json").is_file():
        typer.echo("\nthe null: the same architecture with random weights (--no-null leaves it out)")
        # A surrogate given for the model is of no use to another encoder: the null gets one of its own.
        model = with_decoder(load_model(name, **{**load, "decoder": None, "random_weights": 0}), seed)
        asked = {**plan, "n": protocol["n"], "max_steps": protocol["max_steps"]}
        found, _ = search(model, folder, asked, seed, "null-shards", stability_cap=0)
        if found is not None:
            found.attractors.save(kept)
            shutil.rmtree(folder.path / "null-shards", ignore_errors=True)
        team().barrier()
    return fmprobe.AttractorSet.load(kept)


def _reconstruct_all(
    model: "Autoencoder",
    attractors: "AttractorSet",
    twin: "AttractorSet | None",
    folder: RunFolder,
    sets: "Mapping[str, tuple[Tensor, Tensor | None]]",
    settings: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Curves of each data set; the processes draw the sets that the folder does not hold."""
    from fmprobe.sharing import team

    paths = {
        source: _path(folder, source, shown, reference, twin, settings) for source, (shown, reference) in sets.items()
    }
    left = [source for source, path in paths.items() if not path.is_file()]
    for source in [source for source in sets if source not in left]:
        typer.echo(f"{source}: {paths[source]} holds its curves already")
    team().barrier()
    draw = team().counter()
    while (place := draw(1) - 1) < len(left):
        source = left[place]
        _reconstruct(model, attractors, twin, paths[source], source, *sets[source], settings)
        folder.tell("reconstructed", source=source, process=team().rank)
    team().barrier()
    return {source: read_json(path) for source, path in paths.items()}


def _path(
    folder: RunFolder,
    source: str,
    images: "Tensor",
    reference: "Tensor | None",
    twin: "AttractorSet | None",
    settings: Mapping[str, Any],
) -> Path:
    """The shard of the run folder that holds the curves of one data set, named by everything that decides them."""
    decided = digest(canonical(source), settings, len(images), twin is not None, images, reference)
    stem = re.sub(r"\W+", "-", Path(source).name).strip("-") or "data"
    return folder.path / "weights" / f"{stem}-{decided[:12]}.json"


def _reconstruct(
    model: "Autoencoder",
    attractors: "AttractorSet",
    twin: "AttractorSet | None",
    path: Path,
    source: str,
    images: "Tensor",
    reference: "Tensor | None",
    settings: Mapping[str, Any],
) -> None:
    """Write the curves of one data set to `path`, and a picture beside it."""
    from fmprobe.probes.weights import save_levels, save_reconstructions

    typer.echo(f"{source}: reconstructing {len(images)} images")
    arguments = dict(settings)
    curves = fmprobe.probe_weights(
        model,
        attractors,
        images,
        arguments.pop("atoms"),
        null_attractors=twin,
        reference_images=reference,
        **arguments,
    )
    picture = path.with_suffix(".png")
    save_reconstructions(curves, picture)
    frames = save_levels(curves, path.with_name(f"{path.stem}-frames.png"))
    write_json(path, {**curves.to_dict(), "picture": picture.name, "frames": frames}, exact=True)


def tell_curves(source: str, curves: Mapping[str, Any]) -> None:
    """Image and latent MSE by dictionary and number of atoms, and whether the model's atoms beat each baseline."""
    for metric, excess in (("image_mse", "excess"), ("latent_mse", "latent_excess")):
        label = metric.replace("_mse", " MSE")
        typer.echo(f"\n{source}: {label} of {curves['images']} images by number of atoms ({curves['subject']})")
        typer.echo(f"{'':28}{'rank':>7}" + "".join(f"{k:>9}" for k in curves["levels"]))
        for name, row in curves["dictionaries"].items():
            title = f"{name} ({row['count']})"
            cells = "".join(f"{number(level['mean'], '.4f'):>9}" for level in row[metric])
            typer.echo(f"{title:28}{number(row['effective_rank'], '.1f'):>7}{cells}{_verdict(row.get(excess))}")
        typer.echo(f"{'no atom':35}{number(curves['zero'][metric]['mean'], '.4f'):>9}")
        typer.echo(f"{'nothing left out':35}{number(curves['own'][metric]['mean'], '.4f'):>9}")
    for name, reason in curves["absent"].items():
        typer.echo(f"{name}: absent, {reason}")


def _verdict(excess: Sequence[Mapping[str, float]] | None) -> str:
    """At how many levels the 95% interval of the excess over the model's atoms lies on one side of zero."""
    if excess is None:
        return ""
    known = [level for level in excess if None not in (level["low"], level["high"])]
    worse, better = sum(level["low"] > 0 for level in known), sum(level["high"] < 0 for level in known)
    return f"   worse at {worse}, better at {better} of {len(excess)}"
