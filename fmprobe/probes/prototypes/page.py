"""The sections of `fmprobe probe`: gallery, film, statuses, readings, residual curves, merge sweep."""

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError
from fmprobe.pictures import ON_SHEET, draw_sheet
from fmprobe.probes.prototypes.matched import MATCHED
from fmprobe.probes.prototypes.nearest_page import NEAREST
from fmprobe.probes.prototypes.nothing_settled import NOTHING_SETTLED
from fmprobe.probes.prototypes.readings_page import READINGS
from fmprobe.report.finished import SMALL
from fmprobe.report.plots import COLOURS, basins_and_sweep, merge_sweep, residual_curves
from fmprobe.report.rendering import plot, render
from fmprobe.report.sections import Section
from fmprobe.tables import number, rounded

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.finished import FinishedRun

IN_GALLERY = 64  # pictures on the page; the folder holds all
SIDE = 224  # pixels of a picture in the gallery, where it is too large to be taken as it is


def gallery(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """The decoded attractors, sized by basin, each with its figures."""
    decodes = run.results.get("decodes_to_images", True)
    items, side = _tiles(found, run) if decodes else ([], 0)
    return render("gallery.html", items=items, total=len(found["sizes"]), decodes=decodes, small=side < SMALL)


def _tiles(found: Mapping[str, Any], run: "FinishedRun") -> tuple[list[dict[str, Any]], int]:
    rows = run.rows("prototypes", "index.csv")
    if [int(row["basin_size"]) for row in rows] != found["sizes"]:
        raise InputError(
            f"{run.folder / 'prototypes/index.csv'} does not list the attractors of results.json: "
            "run the command again with --no-resume"
        )
    starts, items, side = run.results["orbits"]["noise"]["starts"], [], 0
    nearest, examined = _nearest(run), found.get("examined") or 0
    for i, row in enumerate(rows[:IN_GALLERY]):
        picture = run.picture("prototypes", row["file"], side=SIDE)
        size, side = int(row["basin_size"]), max(side, picture.width, picture.height)
        many = f"{size} {'start' if size == 1 else 'starts'}"
        radius = row["spectral_radius"] if row["spectral_radius"] != "nan" else None
        facts = [
            ("basin", f"{size} of {starts}, {100 * size / starts:.1f}%"),
            ("steps, median", row.get("median_steps")),
            _last_step(row.get("residual"), run.results),
            ("spectral radius ρ", radius or ("stability unknown" if i < examined else "not examined")),
            ("error of the fixed point", row["error"]),
            ("lowest start", row["lowest_start"]),
            ("nearest training image", nearest.get(i)),
        ]
        items.append(
            {
                "src": picture.src,
                # The area of a picture grows with its basin, within bounds that keep small ones visible.
                "width": round(64 + 112 * math.sqrt(size / max(found["sizes"]))),
                "title": f"attractor {i + 1}",
                "caption": many + (f", ρ {float(radius):.2f}" if radius else ""),
                "facts": [(name, value) for name, value in facts if value],
            }
        )
    return items, side


def _last_step(residual: str | None, results: Mapping[str, Any]) -> tuple[str, str | None]:
    """The median last step of a basin: as a norm, as the curves show it, or else in the protocol's measure."""
    norm = _norm(float(residual), results) if residual else None
    if norm is None:
        return f"last step, median, {results['protocol']['measure']}", residual
    return "norm of the last step, median", f"{norm:.3g}"


def _nearest(run: "FinishedRun") -> dict[int, str]:
    """By attractor the training image nearest to it, where the key `memorization` has them."""
    found = run.results.get("memorization") or {}
    if found.get("subject") != "attractors":
        return {}
    pairs = zip(found["nearest"], found["nearest_cosine"], strict=True)
    return {
        i: f"number {image}, cosine {number(cosine, '.3f')}" for i, (image, cosine) in enumerate(pairs) if image >= 0
    }


def film(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """Decoded trajectories of a few starts, moved along by a slider."""
    stops = [*map(str, found["steps"]), "end"]
    labels = [
        f"start {start}, {status} at step {ended}"
        for start, ended, status in zip(found["starts"], found["ended"], found["status"], strict=True)
    ]
    sprite = run.sprite("trajectories.png", rows=len(labels), columns=len(stops))
    return render("film.html", film=sprite, labels=labels, stops=stops, id=f"r{run.index}-film")


def statuses(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """How many starts ended in which status, and what each means."""
    from fmprobe.dynamics.orbits import Status

    orbits = found["noise"]
    rows = [
        {"name": name, "count": orbits["status"][name], "colour": COLOURS[name], "meaning": status.meaning}
        for status in Status
        for name in (status.name.lower(),)
    ]
    said = ", ".join(f"{row['count']} {row['name']}" for row in rows if row["count"]) + f" of {orbits['starts']}"
    return render("statuses.html", statuses=rows, starts=orbits["starts"], said=said)


def residuals(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """The curves of the first starts."""
    title = f"Residual curves: the norm of the step against the step, of {len(found['norms'])} starts"
    return plot(_curves(found, run)["residual curves"], title, run)


def _curves(found: Mapping[str, Any], run: "FinishedRun") -> "dict[str, Figure]":
    return {"residual curves": residual_curves(found, _tol_norm(run.results))}


def _sheet(found: Mapping[str, Any], run: "FinishedRun") -> "dict[str, Figure]":
    """The decoded attractors under the sizes of their basins; nothing where there are no pictures."""
    from PIL import Image

    if not found["sizes"] or not run.results.get("decodes_to_images", True):
        return {}
    files = [row["file"] for row in run.rows("prototypes", "index.csv")[:ON_SHEET]]
    pictures = [Image.open(io.BytesIO(run.read("prototypes", file)), formats=["PNG"]) for file in files]
    return {"decoded attractors": draw_sheet(pictures, found["sizes"], run.results["orbits"]["noise"]["starts"])}


def _tol_norm(results: Mapping[str, Any]) -> float | None:
    """The tolerance as a norm, where it is one number for all latents."""
    return _norm(results["protocol"]["tol"], results)


def _norm(step: float, results: Mapping[str, Any]) -> float | None:
    """The Euclidean norm of a step in the protocol's measure; None where the measure depends on the latent."""
    measure = results["protocol"]["measure"]
    if measure == "squared":
        return math.sqrt(step)
    return step * math.sqrt(math.prod(results["model"]["latent_shape"])) if measure == "rms" else None


def sweep(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """The number of distinct ends at a sweep of merge thresholds; nothing where no end was to be merged."""
    from markupsafe import Markup

    merge = found["merge"]
    if not any(merge["sweep"].values()):
        return Markup("")
    counts = ", ".join(f"{count} at {rounded(float(threshold))}" for threshold, count in merge["sweep"].items())
    return plot(merge_sweep(merge), f"Distinct ends against the merge threshold: {counts}", run)


def orbit_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many starts ended in which status, and after how many steps."""
    orbits = found["noise"]
    statuses = ", ".join(f"{count} {name}" for name, count in orbits["status"].items() if count)
    rows = [("orbits", f"{statuses} of {orbits['starts']}")]
    if orbits["steps"]["median"] is not None:
        rows.append(("steps", f"median {orbits['steps']['median']:.0f}, at most {orbits['steps']['max']}"))
    return rows


def attractor_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many attractors there are, by which measures, what was left out, and how stable they are."""
    count = "unresolved" if found["count"] is None else str(found["count"])
    merge = found["merge"]
    count += f" by {merge['measure']} distance {merge['threshold']:g}"
    count += "".join(
        f" ({also['count']} by {name} distance {also['threshold']:g})" for name, also in merge["also"].items()
    )
    rows = [("attractors", count)]
    if found["unresolved"]:
        rows.append(("unresolved", f"{found['unresolved']} starts met the tolerance too far from a fixed point"))
    if found["unstable"]:
        rows.append(("unstable", f"{found['unstable']} fixed points that repel, left out"))
    if unknown := found.get("stability_unknown"):
        examined = found.get("examined")
        rows.append(("stability unknown", f"{unknown} of {examined} attractors examined: no certain radius; kept"))
    if damaged := found.get("images_not_finite"):
        rows.append(("not finite", f"pixels of {damaged} of {len(found['sizes'])} decoded attractors, shown black"))
    if found["sizes"]:
        more = ", …" if len(found["sizes"]) > 12 else ""
        rows.append(("basins", ", ".join(map(str, found["sizes"][:12])) + more))
    known = [radius for radius in found["spectral_radius"] if radius is not None]
    if known:
        rows.append(("spectral radius", f"{min(known):.3f} to {max(known):.3f}"))
    return rows


def sentence(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """How many starts settled, and into how many attractors."""
    noise, count = results["orbits"]["noise"], found["count"]
    starts, settled = noise["starts"], noise["status"]["converged"]
    if not settled:
        words = (noise.get("exponent") or {}).get("words")
        return f"None of {starts} noise starts settled, so there is no attractor." + (f" {words}" if words else "")
    if not count:
        return f"From {starts} noise starts, {settled} settled, but none near enough to a fixed point that attracts."
    into = "1 attractor" if count == 1 else f"{count} attractors"
    if (placed := sum(found["sizes"])) < settled:
        return f"From {starts} noise starts, {settled} settled, {placed} of them into {into}."
    return f"From {starts} noise starts, {settled} settled, into {into}."


SECTIONS = (
    NOTHING_SETTLED,
    Section(
        "attractors",
        "Decoded attractors",
        "The size of a picture shows its basin: the share of the starts that end there. ρ is the spectral radius "
        "of the Jacobian at the attractor. The nearer it is to 1, the slower orbits approach.",
        sentence=sentence,
        lines=attractor_lines,
        figures=lambda found: {"basins and merge threshold": basins_and_sweep(found)},
        drawings=_sheet,
        body=gallery,
    ),
    MATCHED,
    NEAREST,
    Section(
        "trajectories",
        "On the way",
        "A few starts are decoded step by step, from noise to where they end. The last frame is the end of each "
        "orbit, whether it settled or not.",
        body=film,
    ),
    Section(
        "orbits",
        "How the orbits ended",
        "Each start is judged by its own orbit. Only those that converged can belong to an attractor.",
        lines=orbit_lines,
        body=statuses,
    ),
    *READINGS,
    Section(
        "residuals",
        "Residual curves",
        "Each line is a start. It shows how far a step moves the latent, up to the step at which the orbit ended.",
        drawings=_curves,
        body=residuals,
    ),
    Section(
        "attractors",
        "Attractors against the merge threshold",
        "The curve shows how many ends count as distinct if nearer ones are merged. A plateau around the dashed "
        "line is a count to trust.",
        body=sweep,
    ),
)
