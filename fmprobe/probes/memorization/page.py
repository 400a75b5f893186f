"""The section of `fmprobe memorization`, and its figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, pstdev
from typing import TYPE_CHECKING, Any

from fmprobe.report.plots import SERIES, axes
from fmprobe.report.rendering import known, render
from fmprobe.report.sections import Section, plots, tables
from fmprobe.tables import Table, number

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.finished import FinishedRun

SAME = 0.99  # cosine above which two images count as the same one
MEMORYLESS = ("test images", "mean image", "noise images")  # unlike decoded starts, no network has made them
TERMS = {  # of the bound (prop. 3.2), P(z) the attractor nearest to z
    "error": "mean of ||x - D(E(x))||²",
    "prototype_error": "mean of ||x - D(P(E(x)))||²",
    "coverage_error": "mean of ||E(x) - P(E(x))||²",
    "lipschitz": "L, the largest factor by which D lengthens E(x) - P(E(x))",
    "factor": "factor of the right side",
    "holds_as_printed": "share of the images for which it holds without the factor",
}
ON_PAGE = 24  # pairs on the page; the folder holds all


def lines(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How near the attractors are to training images, beside the null."""
    if not entry["count"]:
        return [("memorization", entry["warning"] or "not known: no attractor")]
    name, level = without_memory(entry)
    nearest = f"cosine {number(entry['coefficient'], '.3f')} of {entry['count']} {entry['subject']}"
    text = f"{nearest} to the nearest training image; {name} {number(level, '.3f')}"
    return [("memorization", text)]


def sentence(entry: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """How near what was found comes to training images, beside what comes as near without memory."""
    if not entry["count"]:
        return ""
    name, level = without_memory(entry)
    return (
        f"{_alike(entry)} The mean cosine to the nearest training image is {number(entry['coefficient'], '.3f')}. "
        f"Without memory it comes to as much as {number(level, '.3f')}, that of the {name}."
    )


def without_memory(entry: Mapping[str, Any]) -> tuple[str, float | None]:
    """The images without memory that come nearest to training images, and their mean cosine to the nearest one."""
    levels = entry["levels"]["cosine"]
    means = {name: levels[name]["mean"] for name in MEMORYLESS if levels.get(name)}
    name = max(means, key=lambda name: -math.inf if means[name] is None else means[name])
    return name, means[name]


def _alike(entry: Mapping[str, Any]) -> str:
    """How many of what was decoded are a training image, by the rule of the paper (sec. 4): cosine above 0.99."""
    count, subject = entry["count"], entry["subject"]
    same = [i for i, cosine in zip(entry["nearest"], entry["nearest_cosine"], strict=True) if (cosine or 0) > SAME]
    one = f"one of the {entry['images']['train']} training images (cosine above {SAME})"
    if count == 1 and same:
        return f"The one decoded {subject.replace('ends', 'end').replace('attractors', 'attractor')} is {one}."
    if len(same) < count:
        return f"{len(same) or 'None'} of {count} decoded {subject} {'is' if len(same) < 2 else 'are'} {one}."
    distinct = len(set(same))
    if distinct == count:
        return f"Each of the {count} decoded {subject} is a different {one}."
    return f"Each of the {count} decoded {subject} is {one}, {distinct} different ones in all."


def values(entry: Mapping[str, Any]) -> list[Table]:
    """Values at the nearest training image by row and measure; errors, rank and both sides of the bound."""
    measures = list(entry["levels"])
    rows = []
    for name, level in entry["levels"][measures[0]].items():
        levels = [entry["levels"][measure][name] for measure in measures]
        if name == entry["subject"] or any(levels):
            rows.append([f"{name} ({level['count'] if level else 0})", *map(_spread, levels)])
    facts: list[tuple[str, Any]] = [
        (f"mean squared error a pixel, {part} images", error) for part, error in entry["errors"].items()
    ]
    if entry["rank"]["attractors"] is not None:
        names = {"attractors": entry["subject"], "train_images": "as many training images"}
        facts += [
            (f"rank at 90% of variance, {names.get(name, name.replace('_', ' '))}", rank)
            for name, rank in entry["rank"].items()
        ]
    facts += [(f"bound of the error, {part} images", _bound(terms)) for part, terms in (entry["bound"] or {}).items()]
    title = f"nearest of {entry['images']['train']} training images, mean ± deviation"
    return [
        Table(title, rows, ["images", *measures], entry["warning"] or ""),
        Table("errors, rank and bound", facts),
    ]


def _bound(terms: Mapping[str, float | None]) -> str:
    """Both sides of the bound; terms that are not finite are shown as a dash."""
    lipschitz, away = terms["lipschitz"], terms["coverage_error"]
    # All images on attractors leave no slope to be known, and nothing to multiply it by.
    coverage = 0.0 if away == 0 else None if away is None or lipschitz is None else lipschitz**2 * away
    prototype, left = (number(terms[name], ".4g") for name in ("prototype_error", "error"))
    alone = f"without the factor 2 it holds for {number(terms['holds_as_printed'], '.0%')} of the images"
    return f"{left} <= 2 x ({prototype} prototype + {number(coverage, '.4g')} L² x coverage); {alone}"


def _spread(level: Mapping[str, float] | None) -> str:
    return "–" if level is None else f"{number(level['mean'], '.3f')} ± {number(level['std'], '.3f')}"


def body(entry: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """The levels, the attractors beside their nearest training images, and the numbers."""
    found = list(zip(entry["nearest"], entry["nearest_cosine"], strict=True))
    pairs = [
        {
            "number": i + 1,
            "nearest": image if image >= 0 else "none",  # of a picture that is not finite
            "cosine": cosine,
            "src": run.picture("memorization", f"{i:04d}.png").src,
        }
        for i, (image, cosine) in enumerate(found[:ON_PAGE])
    ]
    levels, facts = values(entry)
    terms = [
        (f"bound, {part} images: {TERMS[name]}", value)
        for part, row in (entry["bound"] or {}).items()
        for name, value in row.items()
    ]
    return render(
        "memorization.html",
        entry=entry,
        pairs=pairs,
        total=len(found),
        plots=plots(figures(entry), run),
        levels=tables([replace(levels, lead="")]),
        facts=tables([replace(facts, rows=[*facts.rows, *terms])]),
    )


def figures(entry: Mapping[str, Any]) -> "dict[str, Figure]":
    """The levels."""
    return {"Cosine to the nearest training image, with the null levels": memorization_levels(entry)}


def memorization_levels(entry: Mapping[str, Any], measure: str = "cosine") -> "Figure":
    """Mean and deviation of every row at its nearest training image, the subject first and filled.

    `entry`: the key `memorization` of `results.json`. `measure`: one of its levels.
    """
    unit = "norm of the difference" if measure == "euclidean" else measure
    figure, ax = axes(f"{unit} to the nearest training image", "")
    rows = {name: level for name, level in entry["levels"][measure].items() if level}
    for i, (name, level) in enumerate(rows.items()):
        own = name == entry["subject"]
        colour = SERIES[0] if own else "grey"
        mean, spread = known([level["mean"], level["std"]])
        ax.errorbar(mean, i, xerr=spread, fmt="o" if own else "s", color=colour, capsize=3)
    ax.set_yticks(range(len(rows)), [f"{name} ({level['count']})" for name, level in rows.items()])
    ax.invert_yaxis()
    ax.set_title("Mean and standard deviation over the images", fontsize=10)
    return figure


def memorization_sweep(rows: Sequence[Mapping[str, Any]], along: str) -> "Figure":
    """Memorization coefficient by where attractors were sought from, and test error, along a quantity.

    Several networks of one value of it, such as seeds, are shown by their mean and deviation. A single one is shown
    with the deviation of its attractors. What test images and the mean training image come to is drawn beside them.

    `rows`: one a network, `along` ("k" or "images") and the entries "train" and "noise".
    """
    label = {"k": "bottleneck k", "images": "training images"}[along]
    figure, ax = axes(label, "cosine to nearest training image")
    groups = {value: [row for row in rows if row[along] == value] for value in sorted({row[along] for row in rows})}
    for start, colour in (("train", SERIES[0]), ("noise", SERIES[1])):
        levels = {value: [_own(row[start]) for row in group] for value, group in groups.items()}
        points = {value: _point([level for level in found if level]) for value, found in levels.items() if any(found)}
        means, spreads = zip(*points.values(), strict=True) if points else ((), ())
        ax.errorbar(list(points), means, yerr=spreads, fmt="o-", color=colour, capsize=3, label=f"{start} starts")
    for name, style in (("test images", ":"), ("mean image", "-.")):
        found = [mean(row["train"]["levels"]["cosine"][name]["mean"] for row in group) for group in groups.values()]
        ax.plot(list(groups), found, style, color="black", lw=1, label=name)
    errors = ax.twinx()
    found = [mean(row["train"]["errors"]["test"] for row in group) for group in groups.values()]
    errors.plot(list(groups), found, "s--", color="grey", lw=1)
    errors.set_ylabel("test error, mean squared a pixel (dashed)")
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(groups), list(map(str, groups)))
    ax.legend(frameon=False, fontsize=9)
    return figure


def _own(entry: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Mean and deviation of the cosines of an entry's subject; None where there is nothing."""
    return entry["levels"]["cosine"][entry["subject"]]


def _point(levels: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Mean and deviation over networks; of a single one over its attractors."""
    means = [level["mean"] for level in levels]
    return mean(means), pstdev(means) if len(means) > 1 else levels[0]["std"]


SECTIONS = (
    Section(
        "memorization",
        "Memorization",
        "The table shows how near the decoded attractors are to training images. Beside them stand test images, noise "
        "and the mean image, which come as near without memory, and decoded starts, which the same decoder paints.",
        sentence=sentence,
        lines=lines,
        tables=values,
        figures=figures,
        body=body,
    ),
)
