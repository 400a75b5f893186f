"""What makes the runs of tests quick: figures that are not drawn, exponents of few steps, and nothing made twice.

Drawing takes much of the time of a small run. How many steps an exponent is averaged over depends on how long f takes;
in tests it does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import Any
from unittest import mock

import typer.main
import typer.testing
from matplotlib.figure import Figure
from PIL import Image

from fmprobe import procedural
from fmprobe.probes.prototypes import reading

_savefig, _ladder = Figure.savefig, {name: getattr(reading, name) for name in ("CAPS", "LADDER", "SET_STEPS")}
_short = {"CAPS": (4,), "LADDER": (6,), "SET_STEPS": reading.LEAST_SET[1]}


def _blank(figure: Figure, target: Any, *, format: str | None = None, **given: Any) -> None:
    """Save an empty picture in place of the figure, in the formats of pages and run folders."""
    if format == "svg" and hasattr(target, "write"):
        target.write('<svg viewBox="0 0 1 1"></svg>')
    elif format == "png":
        Image.new("L", (1, 1)).save(target, format="PNG")
    else:
        _savefig(figure, target, format=format, **given)


sketched = partial(mock.patch.object, Figure, "savefig", _blank)
drawn = partial(mock.patch.object, Figure, "savefig", _savefig)
short_readings = partial(mock.patch.multiple, reading, **_short)
whole_readings = partial(mock.patch.multiple, reading, **_ladder)
_command, _painted = cache(typer.main.get_command), lru_cache(4096)(procedural._painted)
painted_anew = partial(mock.patch.object, procedural, "_painted", procedural._painted)


@contextmanager
def made_once() -> Iterator[None]:
    """The command line is put together once and not for every call of it, and a procedural image is painted once."""
    with (
        mock.patch.object(typer.main, "get_command", _command),
        mock.patch.object(typer.testing, "_get_command", _command),
        mock.patch.object(procedural, "_painted", _painted),
    ):
        yield
