"""fmprobe ood MODEL: from a model's name and image sources to a run folder with a detector and a table."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmprobe
from fmprobe.cli.output import tell as tell_all
from fmprobe.cli.output import warn
from fmprobe.cli.session import at_work, default_out, head, identity, load_model, named, open_folder, with_decoder
from fmprobe.digests import digest, file_digest
from fmprobe.dynamics.protocols import FOR_DEVICE
from fmprobe.errors import InputError
from fmprobe.hub import canonical
from fmprobe.runs.folder import RunFolder
from fmprobe.runs.sweeps import sweep
from fmprobe.sharing import is_main, team

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.probes.ood.probe import Sets
    from fmprobe.probes.ood.score import Scores

PARTS = "scored"  # folder of what has been scored, while a run goes on
BLOCKS = 4  # batches of images that a process scores at a time
BUDGET = 300.0  # seconds that the iterations of a run on a CPU may take, where nobody says how many steps
FEWEST_STEPS = 20  # that it may leave


def compare(
    name: str,
    data: str,
    ood: Sequence[str],
    out: Path | None,
    *,
    load: Mapping[str, Any],
    settings: Mapping[str, Any],
    images: int | None,
    ood_images: int | None,
    controls: bool,
    acceptance: float,
    seed: int,
    resume: bool,
    verbose: bool = False,
) -> Path:
    """Fit, compare, write; returns the run folder."""
    began = time.perf_counter()
    sources = named_sources(ood)
    out = out or default_out(name, "-ood")
    asked = {"images": images, "ood_images": ood_images, "controls": controls, "acceptance": acceptance}
    places = {"model": canonical(name), "data": canonical(data), "ood": {k: canonical(v) for k, v in sources.items()}}
    manifest = {**places, "seed": seed, **asked, **named(load), **settings}
    manifest["fmprobe"] = fmprobe.__version__
    model = load_model(name, **load)
    manifest |= identity(model)
    sets, pixels = _sets(model, data, sources, asked, seed)
    folder = open_folder(out, manifest, resume, verbose)
    results = folder.results
    if results is not None and results.get("ood", {}).get("pixels") == pixels:
        typer.echo(f"{out} holds this run already (--no-resume runs it again)")
    else:
        with at_work(folder):
            about = {"data": data, "ood": sources, "seed": seed}
            results = _compute(with_decoder(model, seed), folder, sets, pixels, about, settings, acceptance, began)
    if is_main():
        from fmprobe.report.page import write_report

        write_report(folder.path)
        warn(results)
        tell(results["ood"])
        typer.echo(f"detector    {folder.path / 'detector'}")
        tell_all(results, folder.path)
    return folder.path


def named_sources(texts: Sequence[str]) -> dict[str, str]:
    """Sources by name: NAME=SOURCE, or the last part of SOURCE. Raises InputError where two names are the same."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals:
            name, source = Path(text.split("#")[0]).name.removesuffix(".parquet"), text
            name = f"{Path(text).parent.name}/{name}" if name in ("train", "test") else name
        if name in found or name == "in-distribution" or not name:
            raise InputError(f"--ood {text!r}: the name {name!r} is taken or empty; name the set with NAME=SOURCE")
        found[name] = source
    return found


def _compute(
    model: "Autoencoder",
    folder: RunFolder,
    sets: "Sets",
    pixels: str,
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
    acceptance: float,
    began: float,
) -> dict[str, Any]:
    """The results, which the main process writes; the others, which score a part of the images, have none."""
    from fmprobe.probes.ood.probe import compare_scores

    detector = _detector(model, sets, folder, settings, acceptance)
    found = _examined(detector, sets, folder)
    if not is_main():
        return {}
    compared = compare_scores(detector, sets, found, seed=about["seed"])
    followed = compared.facts["detector"]["settings"]
    rule = {key: followed[key] for key in ("tol", "measure", "max_steps")}
    name = model.protocol.named(**rule, reason=FOR_DEVICE if settings["max_steps"] is None else "")
    protocol = {**about, "name": name, **followed}
    results = {
        **head(model, protocol),
        "ood": {**compared.to_dict(), "pixels": pixels},
        "total_seconds": round(time.perf_counter() - began, 1),
    }
    results = folder.finish(results)
    shutil.rmtree(folder.path / PARTS, ignore_errors=True)
    return results


def _sets(
    model: "Autoencoder", data: str, sources: Mapping[str, str], asked: Mapping[str, Any], seed: int
) -> "tuple[Sets, str]":
    """The images, and one digest of all their pixels, since a file may hold others under its name."""
    from fmprobe.probes.ood.probe import Sets

    n = asked["images"] or (480 if model.device.type == "cpu" else 4000)
    inside = _sample(model, data, n, seed)
    each = asked["ood_images"] or max(2, len(inside) // 4)
    outside = {name: _sample(model, source, each, seed) for name, source in sources.items()}
    pixels = digest(inside, list(outside), *outside.values())
    return Sets.split(inside, outside, asked["controls"], seed), pixels


def _detector(
    model: "Autoencoder", sets: "Sets", folder: RunFolder, settings: Mapping[str, Any], acceptance: float
) -> "TrajectoryDetector":
    """The one that the folder holds, where a run that was cut off fitted it; the main process fits it, all have it."""
    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.probes.ood.probe import describe_reference, fit_detector

    kept = folder.path / "detector"
    with team().main_first():
        if is_main() and not _was_fitted(kept, model, sets):
            typer.echo(f"fit on {len(sets.fit)} images, {len(sets.held_out)} held out, {len(sets.test)} to test")
            fit_detector(model, sets, acceptance, _settings(model, settings, sets)).save(kept)
        detector = TrajectoryDetector.load(kept, model)
    typer.echo(f"distances to {describe_reference(detector.describe()['reference'])}")
    return detector


def _was_fitted(kept: Path, model: "Autoencoder", sets: "Sets") -> bool:
    """Whether a folder holds a detector of this model that these images were fitted and calibrated with."""
    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.probes.ood.split import pixels_of

    try:
        facts = TrajectoryDetector.load(kept, model).describe()["reference"]
    except InputError:
        return False
    return (facts.get("pixels"), facts.get("held_out_pixels")) == (pixels_of(sets.fit), pixels_of(sets.held_out))


def _examined(detector: "TrajectoryDetector", sets: "Sets", folder: RunFolder) -> "dict[str, tuple[Scores, ndarray]]":
    """What the detector makes of every set; the processes draw blocks of its images."""
    import numpy as np

    from fmprobe.probes.ood.artefact import FACTS
    from fmprobe.probes.ood.split import pixels_of

    size = BLOCKS * detector.settings.batch_size
    fitted = file_digest(folder.path / "detector" / FACTS)
    conditions = {
        f"{name} {first}": {
            "set": name,
            "first": first,
            "detector": fitted,
            "pixels": pixels_of(pictures[first : first + size]),
        }
        for name, pictures in sets.examined.items()
        for first in range(0, max(1, len(pictures)), size)
    }

    def work(_: str, part: dict[str, Any]) -> dict[str, Any]:
        images = sets.examined[part["set"]][part["first"] : part["first"] + size]
        scores, status = detector.examine(images)
        folder.tell("scored", set=part["set"], images=len(images), process=team().rank)
        return {"scores": {name: values.tolist() for name, values in scores.items()}, "status": status.tolist()}

    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in sets.examined}
    for label, result in sweep(work, conditions, folder.path / PARTS):
        name = conditions[label]["set"]
        if not parts[name]:
            typer.echo(f"scoring {name} ({len(sets.examined[name])} images)")
        parts[name].append(result)
    team().barrier()  # all have read the parts
    return {
        name: (
            {key: np.concatenate([row["scores"][key] for row in rows]) for key in rows[0]["scores"]},
            np.concatenate([row["status"] for row in rows]),
        )
        for name, rows in parts.items()
    }


def _sample(model: "Autoencoder", source: str, n: int, seed: int) -> "Tensor":
    from fmprobe.images import sample_images

    return sample_images(source, n, seed=seed, **model.image_arguments)


def _settings(model: "Autoencoder", settings: Mapping[str, Any], sets: "Sets") -> dict[str, Any]:
    """What was asked for; on a CPU a step limit that the budget affords, and the time that it takes at most.

    `steps` is how long the trajectories are that are scored; `max_steps` limits the search for the fit images'
    attractors, and the trajectories where `steps` is not given.
    """
    from fmprobe.probes.prototypes import make_plan

    chosen = {key: value for key, value in settings.items() if value is not None}
    plan = make_plan(model, n=8, max_steps=1)
    chosen.setdefault("batch_size", plan.batch_size)
    searched, scored = len(sets.fit), len(sets.held_out) + sum(map(len, sets.examined.values()))
    steps, cost = chosen.get("steps"), plan.seconds_per_row
    if "max_steps" not in chosen:
        left, rows = (BUDGET, searched + scored) if steps is None else (BUDGET - scored * steps * cost, searched)
        affordable = int(left / (rows * cost)) if model.device.type == "cpu" else model.protocol.max_steps
        chosen["max_steps"] = min(model.protocol.max_steps, max(FEWEST_STEPS, affordable))
    horizon = steps or chosen["max_steps"]
    most = (searched * chosen["max_steps"] + scored * horizon) * cost
    typer.echo(
        f"{searched} images searched from for attractors, at most {chosen['max_steps']} steps, and {scored} scored "
        f"over {'' if steps else 'at most '}{horizon}, of {1000 * cost:.1f} ms: at most {most / 60:.1f} min"
    )
    return chosen


def tell(ood: Mapping[str, Any]) -> None:
    """The outcome: the table, what the trajectory adds, and what the detector accepts."""
    sets = [name for name in ood["sets"] if name != "in-distribution"]
    _tell_table(ood, sets)
    _tell_what_the_trajectory_adds(ood, sets)
    diverged = {name: about["diverged"] for name, about in ood["sets"].items() if about["diverged"]}
    if diverged:
        typer.echo("diverged    " + ", ".join(f"{count} of {name}" for name, count in diverged.items()))
    decision = ood["detector"]["decision"]
    shares = ", ".join(f"{name} {100 * about['accepted_share']:.0f}%" for name, about in ood["sets"].items())
    typer.echo(f"\naccepted    by {decision['rule']!r} at {decision['acceptance']:.0%}: {shares}")


def _tell_table(ood: Mapping[str, Any], sets: Sequence[str]) -> None:
    """AUROC and FPR95 in percent, every score against every set; * marks the best AUROC of a set."""
    best = {name: max(row["sets"][name]["auroc"] for row in ood["scores"]) for name in sets}
    width = max(len(row["name"]) for row in ood["scores"]) + 2
    columns = [name.removeprefix("control: ") for name in sets]
    widths = [max(14, len(name) + 2) for name in columns]
    typer.echo("\nAUROC / FPR95 in percent; * the best AUROC of a set; in-distribution is positive and low")
    typer.echo("score".ljust(width) + "".join(name.rjust(w) for name, w in zip(columns, widths, strict=True)))
    group = None
    for row in ood["scores"]:
        if row["group"] != group:
            group = row["group"]
            typer.echo(f"-- {group}")
        cells = []
        for name, w in zip(sets, widths, strict=True):
            found = row["sets"][name]
            mark = "*" if found["auroc"] == best[name] else ""
            cells.append(f"{mark}{100 * found['auroc']:.1f} /{100 * found['fpr95']:6.1f}".rjust(w))
        typer.echo(row["name"].ljust(width) + "".join(cells))


def _tell_what_the_trajectory_adds(ood: Mapping[str, Any], sets: Sequence[str]) -> None:
    """The published score beside its first point alone, the best baseline and the default rule: AUROC in percent."""
    rows = {row["name"]: row for row in ood["scores"]}
    baselines = [row for row in ood["scores"] if row["group"] == "baseline"]
    rule = ood["detector"]["decision"]["rule"]
    typer.echo("\nAUROC: trajectory; its first point alone; the default rule; the best baseline, known afterwards")
    width = 2 + max(map(len, sets))
    for name in sets:
        values = {key: 100 * rows[key]["sets"][name]["auroc"] for key in ("trajectory", "first", rule) if key in rows}
        best = max(baselines, key=lambda row: row["sets"][name]["auroc"])
        shown = "; ".join(f"{key} {value:.1f}" for key, value in values.items())
        typer.echo(f"{name:{width}}{shown}; {best['name']} {100 * best['sets'][name]['auroc']:.1f}")
