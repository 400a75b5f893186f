"""What fmprobe score does: new images to a CSV or parquet, a row a file in input order; processes share the blocks."""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmprobe
from fmprobe.cli.output import warn
from fmprobe.cli.session import at_work, open_folder
from fmprobe.errors import InputError, WriteError
from fmprobe.runs import RunFolder, write_atomically
from fmprobe.sharing import is_main, team

if TYPE_CHECKING:
    from fmprobe.probes.ood.detector import TrajectoryDetector

TABLE = "scores.csv"
COLUMNS = ("file", "accepted", "score", "trajectory", "first", "orbit", "problem")


def score_source(
    detector_folder: Path,
    data: str,
    out: Path | None,
    *,
    acceptance: float | None,
    rule: str | None,
    device: str,
    resume: bool,
    parquet: bool = False,
    verbose: bool = False,
) -> Path:
    """Score every image of `data` with a detector that was kept; returns the path of the table.

    Rows that an interrupted run wrote are kept, their images skipped. A file that is no image gets a row that says so.
    `parquet`: the finished table as `scores.parquet` too, numbers as float64 and `accepted` as a truth value.
    """
    from fmprobe.images import open_images
    from fmprobe.probes.ood.detector import TrajectoryDetector

    detector = _load(detector_folder, device, TrajectoryDetector)
    warn(_decoder(detector))
    threshold = detector.threshold(acceptance, rule)
    rule = rule or detector.rule
    found = open_images(data, **detector.model.image_arguments)
    manifest = {
        "detector": hashlib.sha256((detector_folder / "detector.json").read_bytes()).hexdigest(),
        "data": data,
        "rule": rule,
        "threshold": threshold,
        "fmprobe": fmprobe.__version__,
    }
    folder = open_folder(out or Path("runs") / "ood-scores", manifest, resume, verbose)
    table = folder.path / TABLE
    with at_work(folder):
        _score_all(detector, found, folder, manifest, parquet)
    return table


def _score_all(
    detector: "TrajectoryDetector",
    found: Sequence[tuple[str, Any]],
    folder: RunFolder,
    manifest: Mapping[str, Any],
    parquet: bool,
) -> None:
    """Write the table of the images found and the results, all processes together."""
    table, rule, threshold = folder.path / TABLE, manifest["rule"], manifest["threshold"]
    with team().main_first():
        rows = _kept(table)
    team().barrier()  # all have read the table before one adds to it
    left = [(name, read) for name, read in found if name not in rows]
    typer.echo(
        f"{len(found)} images, {len(found) - len(left)} scored already; {rule!r} up to {threshold:.6g} is accepted"
    )
    size, draw = 4 * detector.settings.batch_size, team().counter()
    while (first := (draw(1) - 1) * size) < len(left):
        _append(table, _score(detector, left[first : first + size], rule, threshold))
        folder.tell("scored", images=len(left[first : first + size]), process=team().rank)
        typer.echo(f"{len(found) - len(left) + min(first + size, len(left))} of {len(found)}")
    team().barrier()
    if is_main():
        rows = _rows(table)
        ordered = [rows[name] for name, _ in found]
        write_atomically(table, lambda path: path.write_text(_text([COLUMNS, *ordered]), encoding="utf-8"))
        if parquet:
            _write_parquet(table.with_suffix(".parquet"), ordered)
        accepted = sum(row[1] == "yes" for row in ordered)
        unreadable = sum(bool(row[-1]) for row in ordered)
        counts = {"images": len(found), "accepted": accepted, "unreadable": unreadable}
        folder.finish({**_decoder(detector), "ood_scores": {**counts, **manifest}})
        typer.echo(f"accepted    {accepted} of {len(found)}{f'; {unreadable} could not be read' if unreadable else ''}")
        typer.echo(f"scores      {table}{' and .parquet' if parquet else ''}")


def _decoder(detector: "TrajectoryDetector") -> dict[str, Any]:
    """The surrogate that the detector's model is made with, under its key of the results."""
    decoder = detector.model.provenance.get("decoder") or {}
    if decoder.get("kind") != "surrogate":
        return {}
    return {"decoder": {**decoder, "warning": detector.model.surrogate_warning}}


def _load(folder: Path, device: str, kind: "type[TrajectoryDetector]") -> "TrajectoryDetector":
    from transformers.utils import logging

    logging.disable_progress_bar()
    return kind.load(folder, device=device)


def _score(
    detector: "TrajectoryDetector", block: Sequence[tuple[str, Any]], rule: str, threshold: float
) -> list[list[str]]:
    """A row for each image of a block; one that cannot be read has no score and its problem in the last column."""
    import numpy as np
    import torch

    from fmprobe.dynamics.orbits import Status

    pictures: list[torch.Tensor] = []
    problems: dict[str, str] = {}
    for name, read in block:
        try:
            pictures.append(read())
        except InputError as error:
            problems[name] = str(error)
    scores: Mapping[str, np.ndarray] = {}
    status = np.empty(0)
    if pictures:
        scores, status = detector.examine(torch.stack(pictures))
    rows, place = [], 0
    for name, _ in block:
        if name in problems:
            rows.append([name, "", "", "", "", "", problems[name]])
            continue
        values = [scores[key][place] for key in (rule, "trajectory", "first")]
        accepted = "yes" if values[0] <= threshold else "no"
        rows.append([name, accepted, *(f"{v:.9g}" for v in values), Status(status[place]).name.lower(), ""])
        place += 1
    return rows


def _rows(table: Path) -> dict[str, list[str]]:
    """The complete rows of a table, by file; a later row of a file counts."""
    if not table.is_file():
        return {}
    text = table.read_text(encoding="utf-8")
    text = text[: text.rfind("\n") + 1]  # the last line may have been cut
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if rows and tuple(rows[0]) != COLUMNS:
        raise InputError(f"{table} has other columns than {', '.join(COLUMNS)}: name another --out, or --no-resume")
    return {row[0]: row for row in rows[1:] if len(row) == len(COLUMNS)}


def _kept(table: Path) -> dict[str, list[str]]:
    """The rows of an interrupted run; those of files that could not be read are tried again. Makes the table whole."""
    kept = {name: row for name, row in _rows(table).items() if not row[-1]}
    if is_main():
        write_atomically(table, lambda path: path.write_text(_text([COLUMNS, *kept.values()]), encoding="utf-8"))
    return kept


def _append(table: Path, rows: Iterable[Sequence[str]]) -> None:
    """Add rows to the table by one write, so that those of several processes do not mix."""
    try:
        handle = os.open(table, os.O_WRONLY | os.O_APPEND)
        try:
            left = _text(rows).encode()
            while left:  # a disk that fills up takes a part
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise WriteError(table, error) from error


def _write_parquet(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """The rows of the table with their types; empty where an image could not be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    for place, name in enumerate(COLUMNS):
        values = [row[place] or None for row in rows]
        if name == "accepted":
            columns[name] = pa.array([None if value is None else value == "yes" for value in values], pa.bool_())
        elif name in ("score", "trajectory", "first"):
            columns[name] = pa.array([None if value is None else float(value) for value in values], pa.float64())
        else:
            columns[name] = pa.array(values, pa.string())
    write_atomically(path, lambda temporary: pq.write_table(pa.table(columns), temporary))


def _text(rows: Iterable[Sequence[str]]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
