"""The figures of a finished run as files, each with the model, the data and the number of starts below it."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fmprobe.canvas import caption
from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.registry import sections
from fmprobe.report.finished import FinishedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS, DPI = ("pdf", "svg", "png"), 200
FOLDER = "figures"  # of a run folder
LONGEST = 60  # characters of the name of a file


def formats_of(text: str) -> tuple[str, ...]:
    """The formats that a text such as "pdf,svg" names. Raises InputError for another one."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",")))
    if wrong := [name for name in names if name not in FORMATS]:
        raise InputError(f"--format {text}: {wrong[0]!r} is no format of figures: expected some of {','.join(FORMATS)}")
    return names


def write_figures(folder: Path, formats: Sequence[str], dpi: int = DPI) -> list[Path]:
    """Write every figure of a finished run to its folder `figures`; returns the files.

    Args:
        folder: the run folder.
        formats: some of `FORMATS`.
        dpi: dots an inch, for PNG and for pictures within the others.

    Raises:
        InputError: the folder holds no finished run.
        WriteError: a file cannot be written.
    """
    run, written = FinishedRun(folder), []
    for name, figure in figures_of(run):
        caption(figure, *said_of(run))
        for kind in formats:
            path = folder / FOLDER / f"{name}.{kind}"
            write_atomically(path, partial(_save, figure, kind, dpi))
            written.append(path)
    return written


def _save(figure: "Figure", kind: str, dpi: int, path: Path) -> None:
    """Write a figure without the time, so that the same run gives the same file."""
    from matplotlib import rc_context

    metadata = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "fmprobe"}):
        figure.savefig(path, format=kind, dpi=dpi, metadata=metadata)


def figures_of(run: FinishedRun) -> "Iterator[tuple[str, Figure]]":
    """Every figure of a run, by a name for its files."""
    for section in sections():
        if (entry := run.results.get(section.key)) is not None and section.across is None:
            drawn = {**dict(section.figures(entry)), **section.drawings(entry, run)}
            for title, figure in drawn.items():
                yield re.sub(r"\W+", "-", title.lower())[:LONGEST].strip("-"), figure


def said_of(run: FinishedRun) -> list[str]:
    """What is written below each figure of a run: the model, how many starts or images, and the data."""
    results, protocol = run.results, run.results.get("protocol") or {}
    parts = [run.name]
    if (results.get("decoder") or {}).get("kind") == "surrogate":
        parts.append("surrogate decoder")
    if (n := protocol.get("n")) is not None:
        parts.append(f"{n} starts from {protocol.get('starts', 'N(0, I)')}")
    if (n := protocol.get("images")) is not None:
        parts.append(f"{n} images")
    if data := protocol.get("data"):
        parts.append(f"data: {data if isinstance(data, str) else ', '.join(map(str, data))}")
    return [*parts, f"fmprobe {results.get('fmprobe', '')}"]
