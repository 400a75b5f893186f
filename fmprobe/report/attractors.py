"""Sections on what noise starts lead to: gallery, film, statuses, residual curves, merge sweep."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError
from fmprobe.report.plots import COLOURS, merge_sweep, residual_curves
from fmprobe.report.rendering import number, plot, render, rounded

if TYPE_CHECKING:
    from markupsafe import Markup

    from fmprobe.report.run import Picture, Run

IN_GALLERY = 64  # pictures on the page; the folder holds all
SIDE = 224  # pixels of a picture in the gallery, where it is too large to be taken as it is
SPRITE = 128 << 10  # bytes of a picture of many frames
SMALL = 64  # pixels a side under which a picture is shown with its pixels sharp


def gallery(found: Mapping[str, Any], run: "Run") -> "Markup":
    """The decoded attractors, sized by basin, each with its figures."""
    decodes = run.results.get("decodes_to_images", True)
    items, side = _tiles(found, run) if decodes else ([], 0)
    return render("gallery.html", items=items, total=len(found["sizes"]), decodes=decodes, small=side < SMALL)


def _tiles(found: Mapping[str, Any], run: "Run") -> tuple[list[dict[str, Any]], int]:
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
            ("residual, median", row.get("residual")),
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


def _nearest(run: "Run") -> dict[int, str]:
    """By attractor the training image nearest to it, where the key `memorization` has them."""
    found = run.results.get("memorization") or {}
    if found.get("subject") != "attractors":
        return {}
    pairs = zip(found["nearest"], found["nearest_cosine"], strict=True)
    return {
        i: f"number {image}, cosine {number(cosine, '.3f')}" for i, (image, cosine) in enumerate(pairs) if image >= 0
    }


def film(found: Mapping[str, Any], run: "Run") -> "Markup":
    """Decoded trajectories of a few starts, moved along by a slider."""
    stops = [*map(str, found["steps"]), "end"]
    labels = [
        f"start {start}, {status} at step {ended}"
        for start, ended, status in zip(found["starts"], found["ended"], found["status"], strict=True)
    ]
    picture = run.picture("trajectories.png", budget=SPRITE)
    sprite = sprite_of(picture, len(labels), len(stops), run)
    return render("film.html", film=sprite, labels=labels, stops=stops, id=f"r{run.index}-film")


def sprite_of(picture: "Picture", rows: int, columns: int, run: "Run") -> dict[str, Any]:
    """What a page needs to know of a picture of frames, `rows` times `columns` of them, edge to edge."""
    if not rows or picture.width % columns or picture.height % rows:
        raise InputError(f"{run.folder}: a picture of frames does not fit its results; run the command again")
    width, height = picture.width // columns, picture.height // rows
    aspect = f"{width} / {height}"
    return {"picture": picture, "rows": rows, "columns": columns, "aspect": aspect, "small": max(width, height) < SMALL}


def statuses(found: Mapping[str, Any], run: "Run") -> "Markup":
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


def residuals(found: Mapping[str, Any], run: "Run") -> "Markup":
    """The curves of the first starts."""
    title = f"Residual curves: the norm of the step against the step, of {len(found['norms'])} starts"
    return plot(residual_curves(found, _tol_norm(run.results)), title, run)


def _tol_norm(results: Mapping[str, Any]) -> float | None:
    """The tolerance as a norm, where it is one number for all latents."""
    protocol = results["protocol"]
    if protocol["measure"] == "squared":
        return math.sqrt(protocol["tol"])
    if protocol["measure"] == "rms":
        return protocol["tol"] * math.sqrt(math.prod(results["model"]["latent_shape"]))
    return None


def sweep(found: Mapping[str, Any], run: "Run") -> "Markup":
    """The number of distinct ends at a sweep of merge thresholds."""
    merge = found["merge"]
    counts = ", ".join(f"{count} at {rounded(float(threshold))}" for threshold, count in merge["sweep"].items())
    return plot(merge_sweep(merge), f"Distinct ends against the merge threshold: {counts}", run)
