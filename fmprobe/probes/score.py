"""fmprobe score: new images through a fitted detector, to a CSV or parquet, one row per file in input order."""

import csv
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from fmprobe import __version__
from fmprobe.digests import digest
from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.nodes import append
from fmprobe.report.page import write_report
from fmprobe.report.rendering import render
from fmprobe.report.sections import Section, plots
from fmprobe.report.sections import tables as markup
from fmprobe.runs import options as o
from fmprobe.sharing import is_main, team
from fmprobe.tables import Table, number

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.report.finished import FinishedRun
    from fmprobe.runs.run import Run

TABLE = "scores.csv"
COLUMNS = ("file", "accepted", "score", "trajectory", "first", "orbit", "problem", "pixels")
NUMBERS = ("score", "trajectory", "first")
FAR = 99.0  # deviations; a part that hardly varies among held-out images lies farther out at once
EXTREMES = {  # by the key of results.json: the title, and how to read it
    "unusual": (
        "The most unusual images",
        "The images with the highest scores; those whose orbits diverge are left out. A p-value is the share of "
        "held-out in-distribution images that are as unusual. The reason is how far parts of the score lie from the "
        "held-out images' mean, in standard deviations.",
    ),
    "usual": ("The least unusual images", "The images with the lowest scores, the lowest first."),
}
NOT_FINITE = "the model gives it a latent that is not finite, so it is as far as can be"


Detector = Annotated[
    Path, typer.Argument(help="Folder of a fitted detector, such as `fmprobe ood MODEL` leaves.", metavar="DETECTOR")
]
Data = Annotated[
    str,
    typer.Option(help="Images to score, SOURCE[:split][#column].", metavar="SOURCE", rich_help_panel=o.Panel.IMAGES),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=o.folder,
        metavar="PATH",
        help="For the table. [default: runs/ood-scores]",
        rich_help_panel=o.Panel.OUTPUT,
    ),
]
Acceptance = Annotated[
    float | None,
    typer.Option(
        help="Share of in-distribution images to accept. [default: the detector's]",
        metavar="SHARE",
        rich_help_panel=o.Panel.DETECTOR,
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="The score that decides. [default: the detector's]", metavar="NAME", rich_help_panel=o.Panel.DETECTOR
    ),
]
Parquet = Annotated[
    bool, typer.Option("--parquet", help="Write scores.parquet beside the CSV.", rich_help_panel=o.Panel.OUTPUT)
]


def score(
    detector: Detector,
    data: Data,
    out: Out = None,
    acceptance: Acceptance = None,
    rule: Rule = None,
    parquet: Parquet = False,
    device: o.Device = "auto",
    verbose: o.Verbose = False,
    resume: o.Resume = True,
) -> Path:
    """Score new images with a fitted detector, to a CSV.

    One row per file says whether it is accepted, and by which score. No trajectory is followed where the score needs
    none, and the columns `trajectory` and `orbit` are then empty. The detector knows its model and all of its settings.
    Images that were scored before, as told by their pixels, keep their rows.

    Example: fmprobe score runs/mae-ood/detector --data new --parquet
    """
    check_acceptance(acceptance)
    how = {"device": device, "verbose": verbose, "resume": resume}
    return score_source(detector, data, out, acceptance=acceptance, rule=rule, parquet=parquet, **how)


def score_source(
    folder: Path,
    data: str,
    out: Path | None,
    *,
    acceptance: float | None,
    rule: str | None,
    parquet: bool,
    device: str,
    resume: bool,
    verbose: bool,
) -> Path:
    """Score every image of a source with the detector of a folder, and write the table; returns the run's folder.

    A file that is no image gets a row that says so, and so does one that the model has no finite latent for. The
    parquet file holds numbers as float64 and `accepted` as a truth value.
    """
    from fmprobe.digests import file_digest
    from fmprobe.hub import canonical
    from fmprobe.images import open_images, printable
    from fmprobe.probes.ood.artefact import FACTS
    from fmprobe.probes.ood.scored import about_scores
    from fmprobe.runs.run import Run, head

    began = time.perf_counter()
    fitted = load_detector(folder, device)
    if (warning := fitted.model.surrogate_warning) is not None:
        typer.echo(f"\nwarning     {warning}")
    found = open_images(data, **fitted.model.image_arguments)
    _check_names([name for name, _ in found])
    decides = {"rule": fitted.rule_of(rule), "threshold": fitted.threshold(acceptance, rule)}
    asked = {"detector": file_digest(folder / FACTS), "data": canonical(data), **decides}
    out = out or Path("runs") / "ood-scores"
    with Run.open(out, asked, began=began, resume=resume, verbose=verbose) as run:
        rows, again = _score_all(run, fitted, found, decides)
        counts = _counts(rows)
        about = {"detector": asked["detector"], "data": printable(data), **decides, "fmprobe": __version__}
        seen = about_scores(fitted, rows, found, decides["rule"], run.path) if is_main() else {}
        run.put({**head(fitted.model, asdict(fitted.settings)), "ood_scores": {**counts, **about, **seen}})
        table = (run.path / TABLE).with_suffix(".parquet")
        parquet = parquet or table.exists()  # one that is there holds the rows of the CSV
        if is_main() and parquet:
            _write_parquet(table, rows)
        typer.echo(f"{len(found)} images, {again} scored already")
        typer.echo(f"accepted    {counts['accepted']} of {len(found)}{_beside(counts)}")
        typer.echo(f"scores      {run.path / TABLE}{' and .parquet' if parquet else ''}")
        if is_main():
            write_report(run.path)
        typer.echo(f"report      {run.path / 'report.html'}")
        return run.path


def _check_names(names: Sequence[str]) -> None:
    """Raise InputError where two files are written alike, as one with a byte that is no UTF-8 may be."""
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"two files are both written {twice} in a table: rename one of them")


def _score_all(
    run: "Run", detector: "TrajectoryDetector", found: Sequence[tuple[str, Any]], decides: Mapping[str, Any]
) -> tuple[list[dict[str, str]], int]:
    """Write the table of the images found, all processes together.

    Rows of an earlier run are kept where an image has the same pixels, whatever its file is called now. The processes
    add rows to one table, rather than parts of their own, so that a kill loses no row.

    Returns:
        For the main process the rows in the order of the images; and how many of them were there already.
    """
    table, crew = run.path / TABLE, team()
    with crew.main_first():
        known = {row["pixels"]: row for row in _kept(table)}
    crew.barrier()  # all have read the table before one adds to it
    typer.echo(f"{len(found)} images; {decides['rule']!r} up to {decides['threshold']:.6g} is accepted")
    typer.echo(f"an image takes {detector.cost(decides['rule'])}")
    size, draw, again = 4 * detector.settings.batch_size, crew.counter(), crew.counter()
    while (first := (draw(1) - 1) * size) < len(found):
        rows = _score(detector, found[first : first + size], known, **decides)
        fresh = [row for row in rows if row != known.get(row["pixels"])]
        again(len(rows) - len(fresh))
        _append(table, fresh)
        run.tell("scored", images=len(fresh))
        typer.echo(f"{min(first + size, len(found))} of {len(found)}")
    crew.barrier()
    if not crew.is_main:
        return [], 0
    rows = _rows(table)
    ordered = [rows[name] for name, _ in found]
    _write(table, ordered)
    return ordered, again(0)


def _counts(rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Of a table's rows: all, those accepted, those without a score, and those without a finite latent."""
    return {
        "images": len(rows),
        "accepted": sum(row["accepted"] == "yes" for row in rows),
        "unreadable": sum(not row["score"] for row in rows),
        "not_finite": sum(bool(row["score"] and row["problem"]) for row in rows),
    }


def _beside(counts: Mapping[str, int]) -> str:
    """What is to be said of images that have no score, or none that means anything."""
    said = {"unreadable": "could not be read", "not_finite": "without a finite latent"}
    return "".join(f"; {counts[key]} {text}" for key, text in said.items() if counts[key])


def load_detector(folder: Path, device: str) -> "TrajectoryDetector":
    """A detector that was kept, on a device; a local file has no progress bar."""
    from transformers.utils import logging

    from fmprobe.probes.ood.detector import TrajectoryDetector

    logging.disable_progress_bar()
    return TrajectoryDetector.load(folder, device=device)


def _score(
    detector: "TrajectoryDetector",
    block: Sequence[tuple[str, Any]],
    known: Mapping[str, Mapping[str, str]],
    rule: str,
    threshold: float,
) -> list[dict[str, str]]:
    """A row for each image of a block; those with the pixels of a `known` row have its values."""
    import torch

    from fmprobe.dynamics.orbits import Status
    from fmprobe.probes.ood.score import LARGEST

    rows: list[dict[str, str]] = []
    pictures, places = [], []
    for name, read in block:
        row = {**dict.fromkeys(COLUMNS, ""), "file": name}
        try:
            picture = read()
            row["pixels"] = digest(picture)
            if row["pixels"] in known:
                row = {**known[row["pixels"]], "file": name}
            else:
                places.append(len(rows))
                pictures.append(picture)
        except InputError as error:
            row["problem"] = str(error)
        rows.append(row)
    names = (rule, *NUMBERS[1:], "latent norm") if detector.follows_orbits(rule) else (rule, "first", "latent norm")
    scores, status = detector.examine(torch.stack(pictures), names) if pictures else ({}, ())
    for i, place in enumerate(places):
        values = {"score": scores[rule], **{name: scores[name] for name in NUMBERS[1:] if name in scores}}
        rows[place] |= {column: f"{of[i]:.9g}" for column, of in values.items()}
        rows[place] |= {
            "accepted": "yes" if scores[rule][i] <= threshold else "no",
            "orbit": Status(status[i]).name.lower() if len(status) else "",
            "problem": NOT_FINITE if scores["latent norm"][i] >= LARGEST else "",
        }
    return rows


def _rows(table: Path) -> dict[str, dict[str, str]]:
    """The complete rows of a table, by file; a later row of a file counts."""
    if not table.is_file():
        return {}
    with table.open(encoding="utf-8", newline="\n") as file:
        rows = csv.reader(line for line in file if line.endswith("\n"))  # the last line may have been cut
        if tuple(next(rows, COLUMNS)) != COLUMNS:
            raise InputError(f"{table} has other columns than {', '.join(COLUMNS)}: name another --out, or --no-resume")
        return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows if len(row) == len(COLUMNS)}


def _kept(table: Path) -> list[dict[str, str]]:
    """The rows of an earlier run that have a score. Makes the table whole."""
    kept = [row for row in _rows(table).values() if row["score"]]
    if is_main():
        _write(table, kept)
    return kept


def _append(table: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Add rows to the table by one write, so that those of several processes do not mix."""
    text = io.StringIO(newline="")
    _put(text, rows)
    append(table, text.getvalue().encode(), flush=True)


def _write_parquet(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """The rows of the table with their types; empty where an image could not be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    for name in COLUMNS:
        values = [row[name] or None for row in rows]
        if name == "accepted":
            columns[name] = pa.array([None if value is None else value == "yes" for value in values], pa.bool_())
        elif name in NUMBERS:
            columns[name] = pa.array([None if value is None else float(value) for value in values], pa.float64())
        else:
            columns[name] = pa.array(values, pa.string())
    write_atomically(path, lambda temporary: pq.write_table(pa.table(columns), temporary))


def _write(table: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write a whole table, row by row."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            _put(file, [dict(zip(COLUMNS, COLUMNS, strict=True))])
            _put(file, rows)

    write_atomically(table, write)


def _put(file: TextIO, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows of a table into a file."""
    csv.writer(file, lineterminator="\n").writerows([row[name] for name in COLUMNS] for row in rows)


def check_acceptance(value: float | None) -> None:
    """Raise InputError for a share that is not between 0 and 1."""
    if value is not None and not 0 < value < 1:
        raise InputError(f"--acceptance {value} must be between 0 and 1")


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many images were accepted, and by which score."""
    unreadable = f"; {found['unreadable']} could not be read" if found["unreadable"] else ""
    return [("accepted", f"{found['accepted']} of {found['images']} by {found['rule']!r}{unreadable}")]


def sentence(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """How many images were accepted."""
    return f"{found['accepted']} of {found['images']} images were accepted as in-distribution by {found['rule']!r}."


def tables(found: Mapping[str, Any]) -> list[Table]:
    """What the detector said of the images, the most and the least unusual of them."""
    names = ("images", "accepted", "unreadable", "not_finite", "rule", "threshold", "data")
    scored = Table("Scored images", [(name.replace("_", " "), found[name]) for name in names if name in found])
    head, made = ["file", "score", "p-value", "why"], []
    for key, (title, lead) in EXTREMES.items():
        rows = [
            [Path(one["file"]).name, number(one["score"], ".4g"), f"{one['p_value']:.3f}", _reason(one)]
            for one in found.get(key, ())
        ]
        made += [Table(title, rows, head, lead)] if rows else []
    return [scored, *made]


def _reason(one: Mapping[str, Any]) -> str:
    """The parts of a score that lie farthest out."""
    bounded = ((part["name"], max(-FAR, min(FAR, part["deviations"]))) for part in one["parts"])
    return ", ".join(f"{name} {'beyond ' * (abs(value) == FAR)}{value:+.1f}" for name, value in bounded)


def figures(found: Mapping[str, Any]) -> "dict[str, Figure]":
    """The scores beside those of the held-out images, and the threshold."""
    from fmprobe.probes.ood.page import histogram

    if "histogram" not in found:
        return {}
    return {f"Scores by {found['rule']}": histogram(found["histogram"], found["threshold"])}


def body(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """The figure, the most and the least unusual images, and the tables."""
    from fmprobe.probes.ood.scored import PICTURES

    shown = plots(figures(found), run)
    for key, (title, _) in EXTREMES.items():
        if some := found.get(key, ()):
            sheet = run.sprite(PICTURES[key], rows=1, columns=len(some))
            rows = [{"file": Path(one["file"]).name, "reason": _reason(one)} for one in some]
            shown += render("unusual.html", title=title, sheet=sheet, rows=rows)
    return shown + markup(tables(found))


SECTIONS = (
    Section(
        "ood_scores",
        "Scored images",
        "A fitted detector scored new images, and its rule accepted or rejected each of them.",
        sentence=sentence,
        lines=lines,
        tables=tables,
        figures=figures,
        body=body,
    ),
)
COMMANDS = {"score": score}
