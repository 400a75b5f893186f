"""report.html: one self-contained page of a run folder."""

import base64
import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmprobe.dynamics.orbits import Status
from fmprobe.errors import InputError
from fmprobe.report.plots import COLOURS, merge_sweep, residual_curves, to_svg, weight_curves
from fmprobe.runs import RunFolder, write_atomically

IN_GALLERY = 64  # pictures on the page; the folder holds all


def write_report(folder: Path) -> Path:
    """Make `report.html` from what a finished run left in its folder; returns its path.

    Raises InputError where the folder holds no finished run.
    """
    from jinja2 import Environment, PackageLoader

    results = RunFolder(folder).results
    if results is None:
        raise InputError(f"{folder} holds no results.json: the run has not finished; run its command again")
    environment = Environment(loader=PackageLoader("fmprobe.report", "."), autoescape=True, trim_blocks=True)
    environment.filters["rounded"] = rounded
    page = environment.get_template("template.html").render(
        results=results,
        gallery=_gallery(folder) if results.get("decodes_to_images", True) else [],
        statuses=_statuses(results["orbits"]["noise"]),
        residuals=to_svg(residual_curves(results["residuals"], _tol_norm(results)), "Residual curves"),
        sweep=to_svg(merge_sweep(results["attractors"]["merge"]), "Attractors against merge threshold"),
        weights=_weights(folder, results.get("weights") or {"data": {}}),
        facts=facts_of(results),
    )
    path = folder / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _gallery(folder: Path) -> list[dict[str, Any]]:
    index = folder / "prototypes" / "index.csv"
    if not index.is_file():
        raise InputError(f"{index} is missing: run the command again with --no-resume")
    with index.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    largest = max((int(row["basin_size"]) for row in rows), default=1)
    gallery = []
    for row in rows[:IN_GALLERY]:
        name = Path(row["file"]).name  # the index is a file like any other: no path out of the folder
        data = base64.b64encode((folder / "prototypes" / name).read_bytes()).decode()
        # The area of a picture grows with its basin, within bounds that keep small ones visible.
        width = 64 + 128 * math.sqrt(int(row["basin_size"]) / largest)
        gallery.append({**row, "src": f"data:image/png;base64,{data}", "width": round(width)})
    return gallery


def _weights(folder: Path, weights: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each data set that was reconstructed: curves, the sheet of pictures, and the numbers."""
    sets = []
    for i, (source, curves) in enumerate(weights["data"].items()):
        sheet = folder / "weights" / Path(curves["picture"]).name
        if not sheet.is_file():
            raise InputError(f"{sheet} is missing: run the command again with --no-resume")
        plots = [
            to_svg(weight_curves(curves, metric, label), f"{label}, {source}, {i}")
            for metric, label in (("image_mse", "image MSE"), ("latent_mse", "latent MSE"), ("psnr", "PSNR (dB)"))
        ]
        data = base64.b64encode(sheet.read_bytes()).decode()
        sets.append({"source": source, "plots": plots, "src": f"data:image/png;base64,{data}", **curves})
    return sets


def _statuses(orbits: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": status.name.lower(),
            "count": orbits["status"][status.name.lower()],
            "share": 100 * orbits["status"][status.name.lower()] / max(1, orbits["starts"]),
            "colour": COLOURS[status.name.lower()],
            "meaning": status.meaning,
        }
        for status in Status
    ]


def _tol_norm(results: Mapping[str, Any]) -> float | None:
    """The tolerance as a norm, where it is one number for all latents."""
    protocol = results["protocol"]
    if protocol["measure"] == "squared":
        return math.sqrt(protocol["tol"])
    if protocol["measure"] == "rms":
        return protocol["tol"] * math.sqrt(math.prod(results["model"]["latent_shape"]))
    return None


def facts_of(results: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Provenance and protocol, flattened to rows of a table."""
    return {
        "Model": _rows(results["model"]),
        "Decoder": _rows(results["decoder"] or {}),
        "Protocol": _rows(results["protocol"]),
        "Run": [(key, results[key]) for key in ("command", "date", "device", "fmprobe", "total_seconds")],
    }


def _rows(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}{key}".replace("_", " ")
        rows += _rows(value, f"{name}: ") if isinstance(value, Mapping) else [(name, value)]
    return rows


def rounded(value: Any) -> str:
    """A value as the page shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(rounded(item) for item in value)
    return "–" if value is None else str(value)
