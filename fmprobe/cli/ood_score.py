"""What fmprobe score does: new images to a CSV or parquet, a row a file in input order; processes share the blocks."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmprobe
from fmprobe.cli.output import warn
from fmprobe.cli.session import at_work, open_folder
from fmprobe.digests import digest, file_digest
from fmprobe.errors import InputError, WriteError
from fmprobe.files import write_atomically
from fmprobe.hub import canonical
from fmprobe.runs.folder import RunFolder
from fmprobe.sharing import is_main, team

if TYPE_CHECKING:
    from fmprobe.probes.ood.detector import TrajectoryDetector

TABLE = "scores.csv"
COLUMNS = ("file", "accepted", "score", "trajectory", "first", "orbit", "problem", "pixels")
NUMBERS = ("score", "trajectory", "first")
NOT_FINITE = "the model gives it a latent that is not finite, so it is as far as can be"


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

    Rows of an earlier run are kept where an image has the same pixels, whatever its file is called now; `pixels` is
    their digest. A file that is no image gets a row that says so, and so does one that the model has no finite latent
    for. `parquet`: the finished table as `scores.parquet` too, numbers as float64 and `accepted` as a truth value.
    """
    from fmprobe.images import open_images, printable
    from fmprobe.probes.ood.artefact import FACTS
    from fmprobe.probes.ood.detector import TrajectoryDetector

    detector = _load(detector_folder, device, TrajectoryDetector)
    warn(_decoder(detector))
    threshold = detector.threshold(acceptance, rule)
    rule = rule or detector.rule
    found = open_images(data, **detector.model.image_arguments)
    _check_names([name for name, _ in found])
    manifest = {
        "detector": file_digest(detector_folder / FACTS),
        "data": canonical(data),
        "rule": rule,
        "threshold": threshold,
        "fmprobe": fmprobe.__version__,
    }
    folder = open_folder(out or Path("runs") / "ood-scores", manifest, resume, verbose)
    table = folder.path / TABLE
    with at_work(folder):
        _score_all(detector, found, folder, {**manifest, "data": printable(data)}, parquet)
    return table


def _check_names(names: Sequence[str]) -> None:
    """Raise InputError where two files are written alike, as one with a byte that is no UTF-8 may be."""
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"two files are both written {twice} in a table: rename one of them")


def _score_all(
    detector: "TrajectoryDetector",
    found: Sequence[tuple[str, Any]],
    folder: RunFolder,
    about: Mapping[str, Any],
    parquet: bool,
) -> None:
    """Write the table of the images found and the results, all processes together."""
    table, rule, threshold = folder.path / TABLE, about["rule"], about["threshold"]
    with team().main_first():
        known = {row["pixels"]: row for row in _kept(table)}
    team().barrier()  # all have read the table before one adds to it
    typer.echo(f"{len(found)} images; {rule!r} up to {threshold:.6g} is accepted")
    size, draw, again = 4 * detector.settings.batch_size, team().counter(), team().counter()
    while (first := (draw(1) - 1) * size) < len(found):
        block = found[first : first + size]
        rows = _score(detector, block, known, rule, threshold)
        fresh = [row for row in rows if row != known.get(row["pixels"])]
        again(len(rows) - len(fresh))
        _append(table, fresh)
        folder.tell("scored", images=len(fresh), process=team().rank)
        typer.echo(f"{min(first + size, len(found))} of {len(found)}")
    team().barrier()
    if is_main():
        rows = _rows(table)
        ordered = [rows[name] for name, _ in found]
        write_atomically(table, lambda path: path.write_text(_text(ordered, head=True), encoding="utf-8"))
        if parquet:
            _write_parquet(table.with_suffix(".parquet"), ordered)
        counts = _counts(ordered)
        folder.finish({**_decoder(detector), "ood_scores": {**counts, **about}})
        typer.echo(f"{len(found)} images, {again(0)} scored already")
        typer.echo(f"accepted    {counts['accepted']} of {len(found)}{_beside(counts)}")
        typer.echo(f"scores      {table}{' and .parquet' if parquet else ''}")


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
    scores, status = detector.examine(torch.stack(pictures)) if pictures else ({}, ())
    for i, place in enumerate(places):
        values = {column: scores[key][i] for column, key in zip(NUMBERS, (rule, *NUMBERS[1:]), strict=True)}
        rows[place] |= {column: f"{value:.9g}" for column, value in values.items()}
        rows[place] |= {
            "accepted": "yes" if values["score"] <= threshold else "no",
            "orbit": Status(status[i]).name.lower(),
            "problem": NOT_FINITE if scores["latent norm"][i] >= LARGEST else "",
        }
    return rows


def _rows(table: Path) -> dict[str, dict[str, str]]:
    """The complete rows of a table, by file; a later row of a file counts."""
    if not table.is_file():
        return {}
    text = table.read_text(encoding="utf-8")
    text = text[: text.rfind("\n") + 1]  # the last line may have been cut
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if rows and tuple(rows[0]) != COLUMNS:
        raise InputError(f"{table} has other columns than {', '.join(COLUMNS)}: name another --out, or --no-resume")
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows[1:] if len(row) == len(COLUMNS)}


def _kept(table: Path) -> list[dict[str, str]]:
    """The rows of an earlier run that have a score. Makes the table whole."""
    kept = [row for row in _rows(table).values() if row["score"]]
    if is_main():
        write_atomically(table, lambda path: path.write_text(_text(kept, head=True), encoding="utf-8"))
    return kept


def _append(table: Path, rows: Iterable[Mapping[str, str]]) -> None:
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


def _text(rows: Iterable[Mapping[str, str]], head: bool = False) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([COLUMNS] if head else [])
    writer.writerows([row[name] for name in COLUMNS] for row in rows)
    return out.getvalue()
