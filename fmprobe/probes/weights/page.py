"""The section on weight probing: curves, reconstructions at a slider of atoms, and the numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmprobe.report.plots import weight_curves
from fmprobe.report.rendering import render
from fmprobe.report.sections import Section, plots, tables
from fmprobe.tables import Cell, Table, number

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.finished import FinishedRun

METRICS = {"image_mse": "image MSE", "latent_mse": "latent MSE", "psnr": "PSNR (dB)"}
EXCESS = {"image_mse": "excess", "latent_mse": "latent_excess"}  # over the model's atoms, by metric that has a table


def by_source(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Curves by data set; those that `probe_weights` gives are of one set of images without a name."""
    return found.get("data", {"": found})


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of each data set the image MSE of the model's atoms, beside the best other dictionary, whichever wins."""
    names = {source: f"weights, {source.rsplit('/', 1)[-1]}" if source else "weights" for source in by_source(found)}
    return [(names[source], _best(curves)) for source, curves in by_source(found).items()]


def sentence(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Of each data set, whether the model's atoms reconstruct its images better than the best dictionary of chance."""
    from fmprobe.probes.weights.dictionaries import PCA  # it sees images of the set, so that it is no rival

    said = []
    for source, curves in by_source(found).items():
        errors = {name: row["image_mse"][-1]["mean"] for name, row in curves["dictionaries"].items()}
        (subject, own), *rest = errors.items()
        others = [(name, value) for name, value in rest if value is not None and name != PCA]
        if own is not None and others:
            best, value = min(others, key=lambda pair: pair[1])
            how = "better" if own < value else "no better"
            of = f" of {source.rsplit('/', 1)[-1]}" if source else ""
            said.append(
                f"With {curves['levels'][-1]} atoms, the {subject} reconstruct images{of} {how} than the best "
                f"dictionary of chance: the mean squared error is {number(own, '.4f')}, and "
                f"{number(value, '.4f')} with {best}."
            )
    return " ".join(said)


def _best(curves: Mapping[str, Any]) -> str:
    subject, *others = ((name, row["image_mse"][-1]["mean"]) for name, row in curves["dictionaries"].items())
    text = f"image MSE at {curves['levels'][-1]} atoms: {subject[0]} {number(subject[1], '.4f')}"
    if finite := [pair for pair in others if pair[1] is not None]:
        name, value = min(finite, key=lambda pair: pair[1])
        text += f"; best of the others, {name} {number(value, '.4f')}"
    return text


def figures(found: Mapping[str, Any]) -> "dict[str, Figure]":
    """Each metric against the number of atoms, a data set."""
    return {
        f"{label} against the number of atoms, {source}, {i + 1}": weight_curves(curves, metric, label)
        for i, (source, curves) in enumerate(by_source(found).items())
        for metric, label in METRICS.items()
    }


def errors(found: Mapping[str, Any]) -> list[Table]:
    """Image and latent MSE by dictionary and number of atoms, a data set."""
    return [_errors(source, curves, metric) for source, curves in by_source(found).items() for metric in EXCESS]


def _errors(source: str, curves: Mapping[str, Any], metric: str) -> Table:
    """One row per dictionary, with the verdict on whether the model's atoms beat it."""
    label, levels = METRICS[metric], curves["levels"]
    dictionaries = curves["dictionaries"]
    means = {name: [level["mean"] for level in row[metric]] for name, row in dictionaries.items()}
    best = [
        min((value for value in column if value is not None), default=None)
        for column in zip(*means.values(), strict=True)
    ]
    rows = []
    for name, row in dictionaries.items():
        excess = row.get(EXCESS[metric])
        cells = [
            Cell(mean, ".4f", best=mean is not None and mean == best[k], hint=_interval(excess, k, curves["subject"]))
            for k, mean in enumerate(means[name])
        ]
        rows.append([f"{name} ({row['count']})", Cell(row["effective_rank"], ".1f"), *cells, _verdict(excess)])
    for key, name in (("zero", "D(0), no atom"), ("own", "D(E(x)), nothing left out")):
        rows.append([name, "", *[Cell(curves[key][metric]["mean"], ".4f")] * len(levels), ""])
    absent = "; ".join(f"{name}: absent, {reason}" for name, reason in curves["absent"].items())
    title = f"{source}: {label} of {curves['images']} images by number of atoms".removeprefix(": ")
    head = ["dictionary (atoms)", "effective rank", *map(str, levels), f"against {curves['subject']}"]
    return Table(title, rows, head, absent)


def _interval(excess: Sequence[Mapping[str, float]] | None, level: int, subject: str) -> str:
    if excess is None:
        return ""
    mean, low, high = (number(excess[level][key], ".4g") for key in ("mean", "low", "high"))
    return f"minus that of the {subject}: {mean} ({low} to {high})"


def _verdict(excess: Sequence[Mapping[str, float]] | None) -> str:
    """At how many levels the 95% interval of the excess over the model's atoms lies on one side of zero."""
    if excess is None:
        return ""
    known = [level for level in excess if None not in (level["low"], level["high"])]
    worse, better = sum(level["low"] > 0 for level in known), sum(level["high"] < 0 for level in known)
    return f"worse at {worse}, better at {better} of {len(excess)}"


def body(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """Of each data set: the curves, the reconstructions and the image MSE."""
    sets = []
    for i, (source, curves) in enumerate(found["data"].items()):
        shown: dict[str, Any] = {"source": source, "images": curves["images"], "id": f"r{run.index}-w{i}"}
        shown["plots"] = plots(figures({"data": {source: curves}}), run)
        shown["table"] = tables([_errors(source, curves, "image_mse")])
        if frames := curves.get("frames"):
            sprite = run.sprite(
                "weights",
                frames["picture"],
                rows=len(frames["rows"]) * frames["images"],
                columns=len(frames["levels"]),
            )
            names = {"names": frames["rows"], "images": frames["images"], "levels": frames["levels"]}
            shown["film"] = {**sprite, **names}
        else:
            shown["film"] = None
            shown["sheet"] = run.picture("weights", curves["picture"], side=1600).src
        sets.append(shown)
    return render("weights.html", sets=sets)


SECTIONS = (
    Section(
        "weights",
        "Weight probing",
        "Images that the search never saw are encoded, and their latents are reconstructed by Orthogonal Matching "
        "Pursuit from the first 1, 2, … atoms of a dictionary. If the model's atoms do better than as many atoms "
        "of chance, the weights hold something about such images. Bands are 95% bootstrap intervals over images. "
        "The lowest error of a column is bold. PCA sees images of the same data set, so it is a reference and no "
        "rival.",
        sentence=sentence,
        lines=lines,
        tables=errors,
        figures=figures,
        body=body,
    ),
)
