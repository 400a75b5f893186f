"""The page that compares many models: one row per model, made of what the run of each left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fmprobe.errors import InputError
from fmprobe.files import RESULTS, write_atomically
from fmprobe.report.finished import SMALL, FinishedRun
from fmprobe.report.rendering import digest_of, render, text_of
from fmprobe.report.sparkline import sparkline
from fmprobe.tables import Cell, Table, number
from fmprobe.validation import warnings_in

THUMBNAILS, SIDE, BUDGET = 6, 96, 6 << 10  # pictures a row, their pixels, and their bytes
UNKNOWN = "not known"


@dataclass
class Row:
    """A model of the atlas.

    Attributes:
        name: what the model is called.
        folder: the folder of its run.
        own: options of its own, as the command line spells them.
        steps: what was run on it, "probe" and "ood": the command, and why it failed or None.
        facts: what was found, as JSON holds it; empty as long as nothing was.
        pictures: the decoded attractors with the largest basins.
        diagram: the diagram over capacity as SVG.
    """

    name: str
    folder: Path
    own: Sequence[str] = ()
    steps: dict[str, dict[str, str | None]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    diagram: str = ""

    @property
    def error(self) -> str | None:
        """Why the model could not be probed; None if it was, or was not yet tried."""
        return self.steps.get("probe", {}).get("error")

    @property
    def link(self) -> str:
        """The page of the run, from the page of the atlas."""
        return f"{quote(self.folder.name)}/report.html"

    def is_done(self, step: str, command: str) -> bool:
        """Whether a step was done by this command, and what it left is there."""
        left = self.folder / RESULTS if step == "probe" else self.folder / step / RESULTS
        return self.steps.get(step) == {"command": command, "error": None} and left.is_file()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"name": self.name, "steps": self.steps, **self.facts}

    def read(self) -> None:
        """Read what the run of the model left. Where that is damaged, the reason takes the place of the facts."""
        self.facts, self.pictures, self.diagram = {}, [], ""
        if "probe" not in self.steps or self.error is not None:
            return
        if not (self.folder / RESULTS).is_file():  # somebody removed it, so that it is probed again
            self.steps.clear()
            return
        try:
            run = FinishedRun(self.folder)
            self.facts = {**facts_of(run.results), **self._detection(run)}
            self.pictures = thumbnails(run)
            self.diagram = sparkline(run.results.get("capacity") or ())
        except InputError as error:
            self._fail(str(error))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            self._fail(
                f"{self.folder / RESULTS} does not hold what is shown ({type(error).__name__}): delete the folder"
            )

    def _fail(self, reason: str) -> None:
        self.facts, self.pictures, self.diagram = {}, [], ""
        self.steps["probe"]["error"] = reason

    def _detection(self, run: FinishedRun) -> dict[str, Any]:
        """The mean AUROC of the rule that decides, over the sets that are no controls, where there are any."""
        beside, found, page = self.folder / "ood", run.results.get("ood"), None
        if (beside / RESULTS).is_file():
            found, page = FinishedRun(beside).results.get("ood"), f"{quote(self.folder.name)}/ood/report.html"
        failed = self.steps.get("ood", {}).get("error")
        if found is None or failed:
            return {"ood": None, "ood_rule": None, "ood_page": None, "ood_error": failed}
        rule = found["detector"]["decision"]["rule"]
        measured = next(row for row in found["scores"] if row["name"] == rule)["sets"]
        values = [measured[name]["auroc"] for name, about in found["sets"].items() if _counts(name, about)]
        mean = sum(values) / len(values) if values else None
        return {"ood": mean, "ood_rule": rule, "ood_page": page, "ood_error": None}


def _counts(name: str, about: Mapping[str, Any]) -> bool:
    return name != "in-distribution" and not about.get("control")


def facts_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of a run, as JSON holds it."""
    orbits, attractors = results["orbits"]["noise"], results["attractors"]
    exponent, survives = orbits.get("exponent") or {}, results.get("what_survives") or {}
    radii = [radius for radius in attractors["spectral_radius"] if radius is not None]
    warnings = warnings_in(results)
    return {
        "family": results["model"].get("family") or UNKNOWN,
        "decoder": (results.get("decoder") or {}).get("kind") or "none",
        "starts": orbits["starts"],
        "settled": orbits["status"]["converged"],
        "attractors": attractors["count"],
        "regime": exponent.get("regime"),
        "words": exponent.get("words"),
        "exponent": exponent.get("median"),
        "interval": exponent.get("interval") or [None, None],
        "spectral_radius": [min(radii), max(radii)] if radii else None,
        "survives": survives.get("sentence"),
        "of_the_encoder": survives.get("of_the_encoder"),
        "settles_to": survives.get("settles_to"),
        "seconds": results["total_seconds"],
        "warning": warnings[0] if warnings else None,
    }


def thumbnails(run: FinishedRun) -> list[dict[str, Any]]:
    """The decoded attractors with the largest basins, for the page."""
    if not run.results.get("decodes_to_images", True) or not run.results["attractors"]["sizes"]:
        return []
    starts, shown = run.results["orbits"]["noise"]["starts"], []
    for i, row in enumerate(run.rows("prototypes", "index.csv")[:THUMBNAILS], 1):
        picture = run.picture("prototypes", row["file"], side=SIDE, budget=BUDGET)
        said = f"attractor {i}, basin {int(row['basin_size'])} of {starts} starts"
        shown.append({"src": picture.src, "said": said, "small": max(picture.width, picture.height) < SMALL})
    return shown


def write_atlas(path: Path, rows: Sequence[Row], options: Sequence[str] = ()) -> None:
    """Write the page.

    Args:
        path: the file.
        rows: the models.
        options: the options that all of them were probed with, as the command line spells them.
    """
    script = text_of("atlas.js")
    names = [row.name for row in rows]
    labels = [f"{row.name} ({row.folder.name})" if names.count(row.name) > 1 else row.name for row in rows]
    families = sorted({row.facts.get("family", UNKNOWN) for row in rows})
    page = render(
        "atlas.html",
        rows=list(zip(labels, rows, strict=True)),
        families=[(name, sum(row.facts.get("family", UNKNOWN) == name for row in rows)) for name in families],
        unknown=UNKNOWN,
        probed=sum(bool(row.facts) for row in rows),
        failed=sum(row.error is not None for row in rows),
        options=" ".join(options),
        style=text_of("style.css") + text_of("atlas.css"),
        script=script,
        script_hash=digest_of(script),
    )
    write_atomically(path, lambda temporary: temporary.write_bytes(page.encode("utf-8", "backslashreplace")))


def table_of(rows: Sequence[Row]) -> Table:
    """The models for a terminal."""
    head = ("model", "settled", "attractors", "reading", "exponent", "spectral radius", "OOD AUROC", "seconds")
    failed = [[row.name, "failed", *[None] * (len(head) - 2)] for row in rows if row.error]
    return Table("", [_cells(row) for row in rows if row.facts] + failed, head)


def _cells(row: Row) -> list[Any]:
    found = row.facts
    radius = found["spectral_radius"]
    return [
        row.name,
        f"{found['settled']} of {found['starts']}",
        found["attractors"],
        found["regime"],
        Cell(found["exponent"], ".3f"),
        "–" if radius is None else f"{radius[0]:.2f} to {radius[1]:.2f}",
        "–" if found["ood"] is None else number(100 * found["ood"], ".1f"),
        Cell(found["seconds"], ".0f"),
    ]
