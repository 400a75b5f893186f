"""What fmprobe compare does: load both, their null and their ceiling, compare, write, tell."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmprobe
from fmprobe.cli.output import tell as tell_all
from fmprobe.cli.output import warn
from fmprobe.cli.session import (
    MEASURES,
    MERGES,
    at_work,
    check_choice,
    default_out,
    head,
    identity,
    load_model,
    open_folder,
    pin_circumstances,
    with_decoder,
)
from fmprobe.digests import digest
from fmprobe.dynamics.protocols import FOR_DEVICE, protocol_for
from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.hub import canonical
from fmprobe.runs.folder import RunFolder
from fmprobe.sharing import is_main

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.probes.alignment import Alignment, Pairs

BUDGET = 180.0  # seconds that the orbits of a run on a CPU may take, where nobody says how many steps
PARTS = "comparisons"  # folder of what has been compared, while a run goes on
FEWEST_STEPS = 20  # that it may leave


def run_compare(
    names: tuple[str, str],
    out: Path | None,
    *,
    data: str,
    images: int,
    null: bool,
    ceiling: float | None,
    load: Mapping[str, Any],
    decoders: tuple[str | None, str | None],
    settings: Mapping[str, Any],
    seed: int,
    resume: bool,
    verbose: bool = False,
) -> Path:
    """From two models' names and shared images to a run folder whose results hold the key `alignment`.

    `ceiling`: the weight noise, None for no ceiling. Returns the folder.
    """
    began = time.perf_counter()
    _check(settings)
    out = out or default_out(names[0], f"-and-{default_out(names[1]).name}")
    asked = {"null": null, "ceiling": ceiling, "data": data, "images": images, "decoders": list(decoders)}
    places = {"models": names, "data": data, "decoders": decoders}
    manifest = {"seed": seed, **asked, **_named(places), **load, **settings, "fmprobe": fmprobe.__version__}
    loaded = [load_model(name, decoder=d, **load) for name, d in zip(names, decoders, strict=True)]
    manifest["identities"] = [identity(model) for model in loaded]
    pictures = [_images(model, data, images) for model in loaded]
    manifest["pictures"] = digest(*pictures)
    folder = open_folder(out, manifest, resume, verbose)
    if (results := folder.results) is not None:
        typer.echo(f"{out} holds this run already (--no-resume runs it again)")
    else:
        with at_work(folder):
            results = _compute(names, loaded, pictures, folder, asked, load, settings, seed, began)
    if is_main():
        from fmprobe.report.page import write_report

        write_report(folder.path)
        warn(results)
        tell(results["alignment"])
        tell_all(results, folder.path)
    return folder.path


def _compute(
    names: tuple[str, str],
    loaded: "list[Autoencoder]",
    pictures: "list[Tensor]",
    folder: RunFolder,
    asked: Mapping[str, Any],
    load: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int,
    began: float,
) -> dict[str, Any]:
    """The results, which the main process writes; the others, which find the comparisons with it, have none."""
    from fmprobe.sharing import team

    a, b = (with_decoder(model, seed) for model in loaded)
    twins = {}
    if asked["null"]:
        typer.echo("\nthe null: the architecture of B with random weights (--no-null leaves it out)")
        twins["null"] = with_decoder(load_model(names[1], random_weights=0, **load), seed)
    if asked["ceiling"] is not None:
        twins["ceiling"] = _disturbed(names[0], a, asked["ceiling"], load, seed)
    with team().main_first():  # how many steps are affordable follows from how fast the machine was then
        chosen = folder.pin("settings", lambda: _settings([a, b, *twins.values()], settings, len(pictures[0])))
        for name, model in {"A": a, "B": b, **twins}.items():
            pin_circumstances(model, folder, name)
    shared = partial(_shared, settings={**chosen, "seed": seed}, folder=folder)
    found = fmprobe.compare(a, b, pictures[0], images_b=pictures[1], seed=seed, compute=shared, **twins, **chosen)
    team().barrier()  # all have read the comparisons
    if is_main():
        reason = FOR_DEVICE if settings["max_steps"] is None else ""
        rule = {key: found.protocol[key] for key in ("tol", "measure", "max_steps")}
        name = protocol_for(a, b).named(**rule, reason=reason)
        found = replace(found, protocol={**found.protocol, "name": name})
    results = _results(found, folder, a, b, asked, began) if is_main() else {}
    shutil.rmtree(folder.path / PARTS, ignore_errors=True) if is_main() else None
    return results


def _shared(pairs: "Pairs", settings: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Comparisons drawn by the processes of the launch, each kept until the run is done."""
    from fmprobe.runs.sweeps import sweep
    from fmprobe.sharing import team

    def work(name: str, _: Mapping[str, Any]) -> Any:
        folder.tell("compare", pair=name, process=team().rank)
        return pairs[name]()

    return dict(sweep(work, dict.fromkeys(pairs, settings), folder.path / PARTS))


def _results(
    found: "Alignment", folder: RunFolder, a: "Autoencoder", b: "Autoencoder", asked: Mapping[str, Any], began: float
) -> dict[str, Any]:
    figure = found.plot()
    write_atomically(folder.path / "alignment.png", lambda path: figure.savefig(path, format="png", dpi=120))
    first, second = (head(model, {}) for model in (a, b))
    results = {
        **first,
        "protocol": {"data": asked["data"], "weight_noise": asked["ceiling"], **found.protocol},
        "other": {key: second[key] for key in ("model", "decoder")},
        "alignment": found.to_dict(),
        "total_seconds": round(time.perf_counter() - began, 1),
    }
    return folder.finish(results)


def _named(places: Mapping[str, Any]) -> dict[str, Any]:
    """Models, data and decoders under the one name that each place has in manifests."""
    return {
        key: canonical(value) if isinstance(value, str) else [name and canonical(name) for name in value]
        for key, value in places.items()
    }


def _images(model: "Autoencoder", source: str, n: int) -> "Tensor":
    from fmprobe.images import sample_images

    return sample_images(source, n, **model.image_arguments)


def _disturbed(name: str, model: "Autoencoder", noise: float, load: Mapping[str, Any], seed: int) -> "Autoencoder":
    """The model once more, with noise on its weights; a surrogate decoder stays as it is."""
    from fmprobe.probes.perturbation import perturbed_checkpoint

    typer.echo(f"\nthe ceiling: A with weight noise of {noise:.1%} (--no-ceiling leaves it out)")
    with tempfile.TemporaryDirectory() as scratch:
        copy = perturbed_checkpoint(name, Path(scratch) / Path(name).resolve().name, noise=noise, seed=seed)
        twin = load_model(str(copy), decoder=None, **load)
    return twin if model.surrogate is None else twin.with_decoder(model.surrogate)


def _check(settings: Mapping[str, Any]) -> None:
    from fmprobe.probes.latent_maps import FITS

    check_choice("measure", settings["measure"], MEASURES)
    check_choice("merge", settings["merge"], MERGES)
    if unknown := [name for name in settings["maps"] or () if name not in FITS]:
        raise InputError(f"--map {unknown[0]!r} is not known: expected some of {', '.join(FITS)}")


def _settings(models: "list[Autoencoder]", settings: Mapping[str, Any], n: int) -> dict[str, Any]:
    """What was asked for, the published tolerance, and on a CPU a step limit that the budget affords."""
    from fmprobe.probes.alignment import DRIFT_STEPS
    from fmprobe.probes.prototypes import make_plan

    chosen = {key: value for key, value in settings.items() if value is not None}
    plans = [make_plan(model, n=8, max_steps=1) for model in models]
    chosen.setdefault("batch_size", plans[0].batch_size)
    cost = sum(plan.seconds_per_row for plan in plans)  # of one step of an image in every network
    if "max_steps" not in chosen:
        most = protocol_for(*models).max_steps
        affordable = int(BUDGET / (n * cost)) if models[0].device.type == "cpu" else most
        chosen["max_steps"] = min(most, max(FEWEST_STEPS, affordable))
    chosen["drift_steps"] = [step for step in DRIFT_STEPS if step <= chosen["max_steps"]]
    most = n * chosen["max_steps"] * cost
    typer.echo(f"\n{n} images, at most {chosen['max_steps']} steps of orbits: at most {most / 60:.1f} min")
    return chosen


def tell(alignment: Mapping[str, Any]) -> None:
    """Every figure of the two models beside the null's and the ceiling's."""
    from fmprobe.report.alignment import comparison, notes

    typer.echo()
    head, rows = comparison(alignment)
    for row in (head, *rows):
        typer.echo(f"{row[0]:44}" + "".join(f"{cell:>28}" for cell in row[1:]))
    for note in notes(alignment):
        typer.echo(note)
