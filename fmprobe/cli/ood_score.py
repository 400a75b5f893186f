"""fmprobe ood --detector: new images to a CSV or parquet, one row a file in input order, in blocks, resumable."""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmprobe
from fmprobe.errors import InputError
from fmprobe.runs import RunFolder, write_atomically

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
    model: str | None,
    device: str,
    resume: bool,
    parquet: bool = False,
) -> Path:
    """Score every image of `data` with a detector that was kept; returns the path of the table.

    Rows that an interrupted run wrote are kept, their images skipped. A file that is no image gets a row that says so.
    `parquet`: the finished table as `scores.parquet` too, numbers as float64 and `accepted` as a truth value.
    """
    from fmprobe.images import open_images
    from fmprobe.probes.ood.detector import TrajectoryDetector

    detector = _load(detector_folder, model, device, TrajectoryDetector)
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
    folder = RunFolder.open(out or Path("runs") / "ood-scores", manifest, resume)
    table = folder.path / TABLE
    rows = _kept(table)
    names = [name for name, _ in found]
    left = [(name, read) for name, read in found if name not in rows]
    typer.echo(
        f"{len(names)} images, {len(names) - len(left)} scored already; {rule!r} up to {threshold:.6g} is accepted"
    )
    size = 4 * detector.settings.batch_size
    for first in range(0, len(left), size):
        block = _score(detector, left[first : first + size], rule, threshold)
        _append(table, block)
        rows |= {row[0]: row for row in block}
        typer.echo(f"{len(names) - len(left) + min(first + size, len(left))} of {len(names)}")
    ordered = [rows[name] for name in names]
    write_atomically(table, lambda path: path.write_text(_text([COLUMNS, *ordered]), encoding="utf-8"))
    if parquet:
        _write_parquet(table.with_suffix(".parquet"), ordered)
    accepted = sum(row[1] == "yes" for row in ordered)
    unreadable = sum(bool(row[-1]) for row in ordered)
    folder.finish({"ood_scores": {"images": len(names), "accepted": accepted, "unreadable": unreadable, **manifest}})
    typer.echo(f"accepted    {accepted} of {len(names)}{f'; {unreadable} could not be read' if unreadable else ''}")
    typer.echo(f"scores      {table}{' and .parquet' if parquet else ''}")
    return table


def _load(folder: Path, model: str | None, device: str, kind: "type[TrajectoryDetector]") -> "TrajectoryDetector":
    from transformers.utils import logging

    logging.disable_progress_bar()
    if model is not None:
        raise InputError(f"--detector {folder} knows its model: leave {model} out")
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


def _kept(table: Path) -> dict[str, list[str]]:
    """The complete rows of an interrupted run, by file; those of files that could not be read are tried again."""
    if not table.is_file():
        return {}
    text = table.read_text(encoding="utf-8")
    text = text[: text.rfind("\n") + 1]  # the last line may have been cut
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if rows and tuple(rows[0]) != COLUMNS:
        raise InputError(f"{table} has other columns than {', '.join(COLUMNS)}: name another --out, or --no-resume")
    kept = {row[0]: row for row in rows[1:] if len(row) == len(COLUMNS) and not row[-1]}
    write_atomically(table, lambda path: path.write_text(_text([COLUMNS, *kept.values()]), encoding="utf-8"))
    return kept


def _append(table: Path, rows: Iterable[Sequence[str]]) -> None:
    if not table.exists():
        rows = [COLUMNS, *rows]
    with table.open("a", newline="", encoding="utf-8") as file:
        file.write(_text(rows))
        file.flush()
        os.fsync(file.fileno())


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
