"""The section of `fmprobe ood`: histograms and the table of every score on every set."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fmprobe.canvas import legend
from fmprobe.report.plots import axes
from fmprobe.report.rendering import percent, render
from fmprobe.report.sections import Section, plots
from fmprobe.report.sections import tables as markup
from fmprobe.tables import Cell, Table

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.finished import FinishedRun

# Okabe and Ito 2008, without the yellow that white hides; in-distribution is the filled grey one.
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """AUROC in percent of the rule that decides, the published score and the best single one; and the acceptance."""
    rows = []
    for name in others(found):
        best = _best_alone(found, name)
        scores = [f"{_auroc(found, score, name):.1f} by {score!r}" for score in _deciding(found)]
        scores.append(f"{100 * best['sets'][name]['auroc']:.1f} by the best single score afterwards, {best['name']!r}")
        rows.append((f"ood, {name}", f"AUROC {', '.join(scores)}"))
    return [*rows, ("acceptance", acceptance_in_words(found["detector"]["decision"]))]


def sentence(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The mean AUROC of the rule that decides over the sets that are no controls, beside the published score's."""
    sets = [name for name in others(found) if not found["sets"][name]["control"]]
    if not sets:
        return ""
    means = {score: sum(_auroc(found, score, name) for name in sets) / len(sets) for score in _deciding(found)}
    rule, *rest = means
    which = sets[0] if len(sets) == 1 else f"{len(sets)} sets"
    said = (
        f"The rule {rule!r}, which decides, tells in-distribution images from {which} with an AUROC of "
        f"{means[rule]:.1f}%{' on average' if len(sets) > 1 else ''}"
    )
    beside = f"; the published score along the trajectory reaches {means['trajectory']:.1f}%" if rest else ""
    return f"{said}{beside}. Chance is 50%."


def acceptance_in_words(decision: Mapping[str, Any]) -> str:
    """The share of in-distribution images that the threshold accepts, and how sure that is."""
    if "interval" not in decision:
        return f"{decision['acceptance']:.0%}"
    low, high = decision["interval"]
    return (
        f"{decision['expected']:.1%} of in-distribution images by {decision['rule']!r} "
        f"({low:.1%} to {high:.1%}, from {decision['held_out']} held-out images)"
    )


def others(found: Mapping[str, Any]) -> list[str]:
    """The names of the out-of-distribution sets."""
    return [name for name in found["sets"] if name != "in-distribution"]


def _best_alone(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The row of the score with the highest AUROC on a set, of those that are neither published nor one-class models.

    Nobody who has only in-distribution images knows which it is.
    """
    alone = (row for row in found["scores"] if row["group"] not in ("trajectory", "profile"))
    return max(alone, key=lambda row: row["sets"][name]["auroc"])


def _deciding(found: Mapping[str, Any]) -> list[str]:
    """The rule that decides, the one that also follows orbits, and the published score."""
    names = dict.fromkeys((found["detector"]["decision"]["rule"], "joined", "trajectory"))
    return [name for name in names if any(row["name"] == name for row in found["scores"])]


def _auroc(found: Mapping[str, Any], score: str, name: str) -> float:
    """AUROC in percent of a score on a set."""
    return 100 * next(row for row in found["scores"] if row["name"] == score)["sets"][name]["auroc"]


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The sets and what of them is accepted, every score on every set, and what the trajectory adds."""
    return [_sets(found), _scores(found), _added(found), *_ranges(found)]


def _sets(found: Mapping[str, Any]) -> Table:
    decision = found["detector"]["decision"]
    rows = []
    for name, about in found["sets"].items():
        dropped = f" ({about['dropped']} dropped: in-distribution as well)" if about.get("dropped") else ""
        status = ", ".join(f"{count} {kind}" for kind, count in about["status"].items() if count)
        shift = "" if about.get("range") is None else f"{about['range']} ({about['shift']:.2f})"
        rows.append([name, f"{about['images']}{dropped}", shift, status, f"{percent(about['accepted_share'])}%"])
    lead = (
        f"Images are accepted by the score {decision['rule']!r}; its threshold comes from the held-out images alone. "
        f"It accepts {acceptance_in_words(decision)}."
    )
    if "cost" in decision:
        lead += f" An image takes {decision['cost']}."
    if "near" in found:
        lead += (
            " A set is near-OOD where the mean of its features lies less than "
            f"{found['near']} root mean square deviations of the fit images from theirs, and far-OOD elsewhere."
        )
    head = ["set", "images", "near or far", "orbits", f"accepted at {decision['acceptance']:.0%}"]
    return Table("The sets", rows, head, lead)


def _scores(found: Mapping[str, Any]) -> Table:
    """AUROC and FPR95 in percent, the scores in their groups."""
    sets = others(found)
    best = {name: max(row["sets"][name]["auroc"] for row in found["scores"]) for name in sets}
    rows: list[list[Any]] = []
    group = None
    for row in found["scores"]:
        if row["group"] != group:
            group = row["group"]
            rows.append([found["groups"][group]])
        rows.append([row["name"], *(_cell(row["sets"][name], best[name]) for name in sets)])
    lead = (
        "AUROC / FPR95 in percent; the best AUROC of a set is marked. Small print on the page: the AUROC's "
        f"{found['bootstrap']}-resample 95% interval. In-distribution is the positive class. FPR95 is the share of "
        "out-of-distribution images that are accepted by the threshold that accepts 95% of in-distribution images. An "
        "AUROC below 50 means that the score points the other way."
    )
    return Table("Every score on every set", rows, ["score", *sets], lead)


def _cell(measured: Mapping[str, Any], best: float) -> Cell:
    low, high = (measured.get("intervals") or {}).get("auroc") or (None, None)
    note = "" if low is None or high is None else f"{percent(low, 0)} to {percent(high, 0)}"
    text = f"{percent(measured['auroc'])} / {percent(measured['fpr95'])}"
    return Cell(text, best=measured["auroc"] == best, note=note)


def _added(found: Mapping[str, Any]) -> Table:
    """The rule that decides and the published score, beside its first point alone and the best single score."""
    names = list(dict.fromkeys((*_deciding(found), "first")))
    rows = []
    for name in others(found):
        best = _best_alone(found, name)
        values = [Cell(_auroc(found, score, name), ".1f") for score in names]
        rows.append([name, *values, Cell(100 * best["sets"][name]["auroc"], ".1f"), best["name"]])
    lead = "AUROC in percent. Which single score is best is known only afterwards."
    return Table("What the trajectory adds", rows, ["set", *names, "best single score", "which"], lead)


def _ranges(found: Mapping[str, Any]) -> list[Table]:
    """Mean AUROC over the near- and over the far-OOD sets; no table where a run of an earlier version knows neither."""
    of = {
        where: [name for name, about in found["sets"].items() if about.get("range") == where]
        for where in ("near", "far")
    }
    known = {where: names for where, names in of.items() if names}
    if not known:
        return []

    def means(auroc: Callable[[str], float]) -> list[Cell]:
        return [Cell(sum(map(auroc, names)) / len(names), ".1f") for names in known.values()]

    rows = [[score, *means(partial(_auroc, found, score))] for score in _deciding(found)]
    best = means(lambda name: 100 * _best_alone(found, name)["sets"][name]["auroc"])
    rows.append(["the best single score of each set", *best])
    head = ["score", *(f"{where}-OOD: {', '.join(names)}" for where, names in known.items())]
    lead = "Mean AUROC in percent. Which single score is best is known only afterwards."
    return [Table("Near- and far-OOD", rows, head, lead)]


def figures(found: Mapping[str, Any]) -> "dict[str, Figure]":
    """The distribution of each score that is shown, the one that decides first and with its threshold."""
    decision = found["detector"]["decision"]
    names = sorted(found["histograms"], key=lambda name: name != decision["rule"])
    return {
        f"Histogram of {name}": histogram(
            found["histograms"][name], decision.get("threshold") if name == decision["rule"] else None, repr(name)
        )
        for name in names
    }


def body(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """How the images were split, the tables and the histograms."""
    return render("ood.html", ood=found, tables=markup(tables(found)), plots=plots(figures(found), run))


def histogram(content: Mapping[str, Any], threshold: float | None = None, name: str = "") -> "Figure":
    """Share of each set's images a bin of the score: in-distribution filled, the others as lines.

    Args:
        content: What `histogram_of` gave.
        threshold: Up to which an image is accepted; None draws no line.
        name: What the score is called at the axis.
    """
    said = f"score {name}".strip()
    figure, ax = axes(f"{said} (the end bins hold what lies beyond)", "share of the images")
    edges = content["edges"]
    others = [name for name in content["counts"] if name != "in-distribution"]
    for name, counts in content["counts"].items():
        shares = [count / max(1, sum(counts)) for count in counts]
        if name == "in-distribution":
            ax.stairs(shares, edges, fill=True, color="#bbbbbb", label=name)
        else:
            i = others.index(name)
            ax.stairs(
                shares, edges, color=LINES[i % len(LINES)], lw=1.4, ls="-" if i < len(LINES) else "--", label=name
            )
    if edges[-1] - edges[-2] > 2 * (edges[1] - edges[0]):  # bins that grow are even in the logarithm
        ax.set_xscale("log")
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        ax.axvline(threshold, color="#000000", lw=1.0, ls="--", label="threshold")
    legend(figure, ax, 3, side="left")
    return figure


SECTIONS = (
    Section(
        "ood",
        "Out-of-distribution detection",
        "The table shows which scores separate out-of-distribution images from in-distribution ones. No "
        "out-of-distribution set decided anything.",
        sentence=sentence,
        lines=lines,
        tables=tables,
        figures=figures,
        body=body,
    ),
)
