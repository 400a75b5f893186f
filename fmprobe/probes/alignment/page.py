"""The section on two networks compared: a picture, every figure beside its null and its ceiling."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.canvas import panels
from fmprobe.report.sections import Section, plots, tables
from fmprobe.tables import Table

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.finished import FinishedRun

SERIES = {
    "subject": ("A and B", "#0072B2"),
    "null": ("A and random weights", "#999999"),
    "ceiling": ("A and A with weight noise", "#009E73"),
}
BESIDE = {"null": "random weights", "ceiling": "the same model under weight noise"}


def plot_alignment(found: Mapping[str, Any]) -> "Figure":
    """Cosine of the fields by map, with its band of four fifths; agreement of relative representations by step.

    `found`: what `Alignment.to_dict` gives.
    """
    figure, (left, right) = panels(1, 2, (8.4, 3.4))
    shown = {name: found[name] for name in SERIES if found[name] is not None}
    maps = list(found["subject"]["maps"])
    for i, (name, figures) in enumerate(shown.items()):
        label, colour = SERIES[name]
        for place, key in enumerate(maps):
            cosine = figures["maps"].get(key, {}).get("cosine") or {"known": 0}
            if cosine["known"]:
                x = place + 0.22 * (i - (len(shown) - 1) / 2)
                left.plot([x, x], [cosine["q10"], cosine["q90"]], color=colour, lw=1.5)
                left.plot(x, cosine["q50"], "o", color=colour, label=label if place == 0 else None)
        drift = figures["drift"]
        known = [pair for pair in zip(drift["steps"], drift["agreement"], strict=True) if pair[1] is not None]
        if known:
            right.plot(*zip(*known, strict=True), "o-", ms=3, color=colour, label=label)
    left.axhline(0, color="grey", lw=0.8)
    left.set_xticks(range(len(maps)), maps)
    left.set_ylim(-1.05, 1.05)
    left.set_ylabel("cosine of the two fields\n(median, four fifths of the images)")
    right.set_xscale("symlog", linthresh=1)
    right.set_xlabel("step of the iteration")
    right.set_ylabel("correlation of relative representations")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=9)
    return figure


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """By map the median cosine of the fields, beside the null's and the ceiling's."""
    rows = []
    for name in found["subject"]["maps"]:
        cosines = {label: (found[part] or {"maps": {}})["maps"].get(name) for part, (label, _) in SERIES.items()}
        shown = [
            f"{label} {row['cosine']['q50']:.3f}" for label, row in cosines.items() if row and row["cosine"]["known"]
        ]
        rows.append((f"fields, {name}", "median cosine: " + (", ".join(shown) or "not known")))
    return rows


def sentence(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The median cosine of the two fields under the first map, beside the null's and the ceiling's."""
    for name in found["subject"]["maps"]:
        of = {part: (found[part] or {"maps": {}})["maps"].get(name) for part in SERIES}
        cosine = {part: row["cosine"]["q50"] for part, row in of.items() if row and row["cosine"]["known"]}
        if "subject" in cosine:
            beside = [f"{cosine[part]:.2f} for {who}" for part, who in BESIDE.items() if part in cosine]
            return f"Under the {name} map, the two vector fields have a median cosine of {cosine['subject']:.2f}" + (
                f"; it is {' and '.join(beside)}." if beside else "."
            )
    return ""


def body(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """The figure, every number beside its null and its ceiling, and the names of the models."""
    from markupsafe import Markup

    models = run.results.get("protocol", {}).get("models") or ()
    named = Markup("").join(Markup("<p>{}: {}</p>").format(*pair) for pair in zip("AB", models, strict=False))
    return plots(figures(found), run) + tables(comparison(found)) + named


def figures(found: Mapping[str, Any]) -> "dict[str, Figure]":
    """Cosine of the fields, and agreement along the iteration."""
    return {"cosine of the fields and agreement": plot_alignment(found)}


def comparison(found: Mapping[str, Any]) -> list[Table]:
    """Every figure of the two networks, then those of the null and the ceiling there are."""
    shown = {name: found[name] for name in SERIES if found[name] is not None}
    rows: list[list[str]] = []
    for key in found["subject"]["maps"]:
        maps = [figures["maps"].get(key) for figures in shown.values()]
        for title, cell in (
            (f"{key}: error of the map, held-out images", lambda row: _number(row["fit_error"])),
            ("  cosine of the fields, median (10, 90%)", _cosine),
            ("  basins, adjusted Rand", lambda row: _number(row["basins"]["adjusted_rand"])),
            ("  basins, Jaccard (chance)", _jaccard),
            ("  attractor sets, Chamfer over spread", lambda row: _number(row["chamfer"])),
        ):
            rows.append([title, *("–" if row is None else cell(row) for row in maps)])
    drifts = [figures["drift"] for figures in shown.values()]
    steps = drifts[0]["steps"]
    for i in sorted({0, len(steps) // 2, len(steps) - 1}):
        title = f"relative representations agree at step {steps[i]}"
        rows.append([title, *(_number(drift["agreement"][i]) for drift in drifts)])
    orbits = [figures["orbits"] for figures in shown.values()]
    counts = [f"{o['a']['attractors']} and {o['b']['attractors']}".replace("None", "unresolved") for o in orbits]
    head = ["", *(SERIES[name][0] for name in shown)]
    rows.append(["attractors", *counts])
    return [Table("Every figure beside its null and its ceiling", rows, head, "; ".join(_notes(found)))]


def _notes(found: Mapping[str, Any]) -> list[str]:
    """Why figures are absent, and why a map may say nothing."""
    maps = [row for name in SERIES if found[name] for row in found[name]["maps"].values()]
    reasons = sorted({row["basins"]["reason"] for row in maps} - {None})
    absent = [f"{name}: absent, {reason}" for name, reason in found["absent"].items()]
    fits = sorted({f"maps: {row['reason']}" for row in maps if "reason" in row})
    return [f"basins: – where {reason}" for reason in reasons] + fits + absent


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _cosine(row: Mapping[str, Any]) -> str:
    cosine = row["cosine"]
    return "–" if not cosine["known"] else f"{cosine['q50']:.3f} ({cosine['q10']:.2f}, {cosine['q90']:.2f})"


def _jaccard(row: Mapping[str, Any]) -> str:
    basins = row["basins"]
    return "–" if basins["jaccard"] is None else f"{basins['jaccard']:.3f} ({basins['jaccard_chance']:.3f})"


SECTIONS = (
    Section(
        "alignment",
        "Two networks compared",
        "The figure shows the cosine of the two fields under each map between the latent spaces, and the agreement"
        " of relative representations along the iteration. A null of random weights and a ceiling stand beside "
        "them.",
        sentence=sentence,
        lines=lines,
        tables=comparison,
        figures=figures,
        body=body,
    ),
)
