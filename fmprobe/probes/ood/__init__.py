"""fmprobe ood: out-of-distribution detection by latent trajectories, compared; with --detector as `fmprobe score`."""

import inspect
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmprobe.errors import InputError
from fmprobe.probes import score as scoring  # `score` is a module of this folder too
from fmprobe.probes.ood.page import SECTIONS
from fmprobe.runs import options as o
from fmprobe.runs.config import OUTPUT

if TYPE_CHECKING:
    from numpy import ndarray

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.probes.ood.probe import Sets
    from fmprobe.probes.ood.score import Scores
    from fmprobe.runs.run import Run

__all__ = ["COMMANDS", "SECTIONS", "named_sources", "ood", "run_ood"]

PARTS = "scored"  # folder of what has been scored, while a run goes on
BLOCKS = 4  # batches of images that a process scores at a time
BUDGET = 300.0  # seconds that the iterations of a run on a CPU may take, where nobody says how many steps

Model = Annotated[
    str | None,
    typer.Argument(
        help="Hub id (ORG/NAME) or local folder; left out with --detector. [default: none]", metavar="MODEL"
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="In-distribution images, SOURCE[:split][#column]; with --detector: images to score.",
        metavar="SOURCE",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Ood = Annotated[
    list[str] | None,
    typer.Option(
        "--ood",
        help="Out-of-distribution images, NAME=SOURCE or SOURCE. Repeatable.",
        metavar="SOURCE",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Detector = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a fitted detector: the same as `fmprobe score DIR`.",
        metavar="PATH",
        rich_help_panel=o.Panel.DETECTOR,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        min=64,
        help="Number of images of --data, spread evenly. [default: 480, 4000 on a GPU]",
        metavar="N",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
OodImages = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Number of images of each --ood, spread evenly. [default: as many as test images]",
        metavar="N",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Column or .npz key of the classes of --data, or folders: adds scores that need them. [default: none]",
        metavar="NAME",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of steps of a scored orbit. [default: to its end]",
        metavar="N",
        rich_help_panel=o.Panel.DETECTOR,
    ),
]
Distance = Annotated[
    str | None,
    typer.Option(
        help="euclidean, cosine or standardised. [default: euclidean]", metavar="NAME", rich_help_panel=o.Panel.DETECTOR
    ),
]
Aggregate = Annotated[
    str | None,
    typer.Option(
        help="mean, first, last, max, length, steps or contraction ratio. [default: mean]",
        metavar="NAME",
        rich_help_panel=o.Panel.DETECTOR,
    ),
]
Acceptance = Annotated[
    float | None,
    typer.Option(
        help="Share of in-distribution images to accept. [default: 0.95]",
        metavar="SHARE",
        rich_help_panel=o.Panel.DETECTOR,
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="With --detector: the score that decides. [default: the detector's]",
        metavar="NAME",
        rich_help_panel=o.Panel.DETECTOR,
    ),
]
Parquet = Annotated[
    bool,
    typer.Option(
        "--parquet", help="With --detector: write scores.parquet beside the CSV.", rich_help_panel=o.Panel.OUTPUT
    ),
]
Controls = Annotated[
    bool,
    typer.Option(
        "--controls/--no-controls",
        help="Add constant, noise, blurred and inverted images.",
        rich_help_panel=o.Panel.IMAGES,
    ),
]


@o.grouped(options=o.RUN, orbits=o.ORBITS, merging=o.MERGING, load=o.LOAD)
def ood(
    context: typer.Context,
    model: Model = None,
    data: Data = None,
    ood: Ood = None,
    detector: Detector = None,
    images: Images = None,
    ood_images: OodImages = None,
    labels: Labels = None,
    steps: Steps = None,
    distance: Distance = None,
    aggregate: Aggregate = None,
    acceptance: Acceptance = None,
    rule: Rule = None,
    controls: Controls = True,
    parquet: Parquet = False,
    *,
    options: dict[str, Any],
    orbits: dict[str, Any],
    merging: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Detect out-of-distribution images, by every score.

    A detector is fitted on a part of the images of --data and kept. A table compares every score by latent trajectories
    with every baseline, on each set of --ood. `fmprobe score DETECTOR --data FOLDER` scores new images with it.

    Example: fmprobe ood facebook/vit-mae-base --data photos --ood far=noise
    """
    if data is None:
        raise InputError("no images: name them with --data SOURCE[:split][#column]")
    given = o.given(context)
    if detector is not None:
        acting = {"detector", *OUTPUT, *inspect.signature(scoring.score).parameters}
        _refuse(context, given - acting, f"--detector {detector} knows its model and settings")
        how = {key: options[key] for key in ("out", "verbose", "resume")}
        return scoring.score(
            detector, data, acceptance=acceptance, rule=rule, parquet=parquet, device=load["device"], **how
        )
    _refuse(context, given & {"rule", "parquet"}, "a detector is fitted here, and `fmprobe score` applies it")
    if not ood:
        _refuse(context, given & {"ood_images"}, "there are no out-of-distribution images without --ood")
    scoring.check_acceptance(acceptance)
    if model is None:
        raise InputError("no model: name one to fit a detector for, or a fitted detector with --detector DIR")
    settings = {"steps": steps, "distance": distance, "aggregate": aggregate, **orbits}
    settings |= {"merge": merging["merge"], "threshold": merging["merge_threshold"]}
    asked = {
        "images": images,
        "ood_images": ood_images,
        "labels": labels,
        "controls": controls,
        "acceptance": 0.95 if acceptance is None else acceptance,
    }
    return run_ood(model, data, ood or [], load=load, settings=settings, **asked, **options)


def _refuse(context: typer.Context, names: Collection[str], reason: str) -> None:
    """Raise InputError, with the `reason`, where there are parameters that would not act."""
    spelled = [
        str(context.params[parameter.name]) if parameter.param_type_name == "argument" else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None and parameter.name in names
    ]
    if spelled:
        raise InputError(f"{reason}: leave {', '.join(spelled)} out")


def run_ood(
    name: str,
    data: str,
    ood: Sequence[str],
    out: Path | None = None,
    *,
    load: Mapping[str, Any],
    settings: Mapping[str, Any],
    images: int | None = None,
    ood_images: int | None = None,
    labels: str | None = None,
    controls: bool = True,
    acceptance: float = 0.95,
    seed: int = 0,
    resume: bool = True,
    verbose: bool = False,
) -> Path:
    """Fit a detector, compare every score on every set, and write a run folder; returns the folder.

    Args:
        name: the model.
        data: source of in-distribution images.
        ood: sources of out-of-distribution images, as NAME=SOURCE or SOURCE.
        out: the folder; by default `runs/` and the last part of the model's name.
        load: how the model is loaded, as `fmprobe.load` takes it.
        settings: of `TrajectorySettings`; those that are None have their defaults.
        images: number of in-distribution images; half fit the detector, a quarter calibrates it, a quarter tests it.
        ood_images: number of images of each other set; by default as many as test images.
        labels: what holds the classes of the in-distribution images, as `load_labels` takes it; None for no classes.
        controls: whether constant, noise, blurred and inverted images are added as sets.
        acceptance: share of in-distribution images to accept.
        seed: seed of the split, of drawn images, and of a surrogate decoder that is fitted.
        resume: whether to go on with a run in the folder.
        verbose: whether events are printed too.
    """
    from fmprobe.hub import canonical
    from fmprobe.runs.models import load_model, with_decoder
    from fmprobe.runs.run import Run, default_out, identity, named

    began = time.perf_counter()
    sources = named_sources(ood)
    model = load_model(name, **load)
    asked = {
        "model": canonical(name),
        "data": canonical(data),
        "ood": {key: canonical(source) for key, source in sources.items()},
        "images": images,
        "ood_images": ood_images,
        "controls": controls,
        "acceptance": acceptance,
        "seed": seed,
        **named(load),
        **settings,
        **identity(model),
        **({} if labels is None else {"labels": labels}),
    }
    sets, pixels = _sets(model, data, sources, asked, seed)
    with Run.open(out or default_out(name, "-ood"), asked, began=began, resume=resume, verbose=verbose) as run:

        def make() -> dict[str, Any] | None:
            whole = with_decoder(model, seed)
            detector = _detector(run, whole, sets, settings, acceptance)
            about = {"data": data, "ood": sources, "seed": seed} | ({} if labels is None else {"labels": labels})
            return _compared(run, whole, detector, sets, pixels, about, settings)

        # A file may hold other images under its name than when the run was made.
        run.once("ood", make, same=lambda entry: bool(entry) and entry.get("pixels") == pixels, discard=[PARTS])
        return run.finish("ood", beside=[("detector", str(run.path / "detector"))])


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


def _sets(
    model: "Autoencoder", data: str, sources: Mapping[str, str], asked: Mapping[str, Any], seed: int
) -> "tuple[Sets, str]":
    """The images, and one digest of all their pixels."""
    from fmprobe.digests import digest
    from fmprobe.images import load_labels, sample_images
    from fmprobe.probes.ood.probe import Sets

    how = {"seed": seed, **model.image_arguments}
    inside = sample_images(data, asked["images"] or (480 if model.device.type == "cpu" else 4000), **how)
    each = asked["ood_images"] or max(2, len(inside) // 4)
    outside = {name: sample_images(source, each, **how) for name, source in sources.items()}
    pixels = digest(inside, list(outside), *outside.values())
    labels = load_labels(data, asked["labels"], len(inside)) if "labels" in asked else None
    sets = Sets.split(inside, outside, asked["controls"], seed, labels)
    return sets, pixels if labels is None else digest(pixels, labels.tolist())


def _detector(
    run: "Run", model: "Autoencoder", sets: "Sets", settings: Mapping[str, Any], acceptance: float
) -> "TrajectoryDetector":
    """The one that the folder holds, where a run that was cut off fitted it; the main process fits it, all have it."""
    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.probes.ood.probe import describe_reference, fit_detector
    from fmprobe.sharing import is_main, team

    kept = run.path / "detector"
    with team().main_first():
        if is_main() and not _was_fitted(kept, model, sets):
            typer.echo(f"fit on {len(sets.fit)} images, {len(sets.held_out)} held out, {len(sets.test)} to test")
            fit_detector(model, sets, acceptance, _settings(model, settings, sets)).save(kept)
        detector = TrajectoryDetector.load(kept, model)
    typer.echo(f"distances to {describe_reference(detector.describe()['reference'])}")
    typer.echo(f"decides by {detector.rule!r}: an image takes {detector.cost()}")
    return detector


def _was_fitted(kept: Path, model: "Autoencoder", sets: "Sets") -> bool:
    """Whether a folder holds a detector of this model that these images were fitted and calibrated with."""
    from fmprobe.digests import digest
    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.probes.ood.split import pixels_of

    try:
        facts = TrajectoryDetector.load(kept, model).describe()["reference"]
    except InputError:
        return False
    labels = None if sets.labels is None else digest(sets.labels)
    given = (pixels_of(sets.fit), pixels_of(sets.held_out), labels)
    return (facts.get("pixels"), facts.get("held_out_pixels"), facts.get("labels")) == given


def _settings(model: "Autoencoder", settings: Mapping[str, Any], sets: "Sets") -> dict[str, Any]:
    """What was asked for; on a CPU a step limit that the budget affords, and the time that it takes at most.

    `steps` is how long the scored trajectories are. `max_steps` limits the search for the fit images' attractors, and
    the trajectories where `steps` is not given.
    """
    from fmprobe.runs.plan import affordable_steps, measured_cost

    chosen = {key: value for key, value in settings.items() if value is not None}
    cost = measured_cost(model)
    chosen.setdefault("batch_size", cost.batch_size)
    searched, scored = len(sets.fit), len(sets.held_out) + sum(map(len, sets.examined.values()))
    steps = chosen.get("steps")
    if "max_steps" not in chosen:
        rows = searched + scored if steps is None else searched
        left = BUDGET if steps is None else BUDGET - scored * steps * cost.seconds
        most = model.protocol.max_steps
        chosen["max_steps"] = affordable_steps(most, left, rows * cost.seconds, model.device)
    horizon = steps or chosen["max_steps"]
    minutes = (searched * chosen["max_steps"] + scored * horizon) * cost.seconds / 60
    typer.echo(
        f"{searched} images searched from for attractors, at most {chosen['max_steps']} steps, and {scored} scored "
        f"over {'' if steps else 'at most '}{horizon}, of {1000 * cost.seconds:.1f} ms: at most {minutes:.1f} min"
    )
    return chosen


def _compared(
    run: "Run",
    model: "Autoencoder",
    detector: "TrajectoryDetector",
    sets: "Sets",
    pixels: str,
    about: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The entries of `results.json`, for the main process; all processes score the sets together."""
    from fmprobe.probes.ood.probe import compare_scores
    from fmprobe.runs.plan import rule_name
    from fmprobe.runs.run import head
    from fmprobe.sharing import is_main

    found = _examined(run, detector, sets)
    if not is_main():
        return None
    compared = compare_scores(detector, sets, found, seed=about["seed"])
    followed = compared.facts["detector"]["settings"]
    protocol = {**about, "name": rule_name(model.protocol, followed, asked), **followed}
    entry = {**compared.to_dict(), "pixels": pixels}
    return {**head(model, protocol), "ood": entry, "total_seconds": run.seconds}


def _examined(run: "Run", detector: "TrajectoryDetector", sets: "Sets") -> "dict[str, tuple[Scores, ndarray]]":
    """What the detector makes of every set; the processes draw blocks of its images."""
    import numpy as np

    from fmprobe.digests import file_digest
    from fmprobe.probes.ood.artefact import FACTS
    from fmprobe.probes.ood.split import pixels_of

    size = BLOCKS * detector.settings.batch_size
    fitted = file_digest(run.path / "detector" / FACTS)
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
        run.tell("scored", set=part["set"], images=len(images))
        return {"scores": {name: values.tolist() for name, values in scores.items()}, "status": status.tolist()}

    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in sets.examined}
    for label, result in run.shared(PARTS, work, conditions):
        name = conditions[label]["set"]
        if not parts[name]:
            typer.echo(f"scoring {name} ({len(sets.examined[name])} images)")
        parts[name].append(result)
    return {
        name: (
            {key: np.concatenate([row["scores"][key] for row in rows]) for key in rows[0]["scores"]},
            np.concatenate([row["status"] for row in rows]),
        )
        for name, rows in parts.items()
    }


COMMANDS = {"ood": ood}
