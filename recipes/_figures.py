"""How recipes write figures: the options --format and --dpi, and the one function that heeds them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmprobe import __version__
from fmprobe.canvas import caption
from fmprobe.pictures import save_figure
from fmprobe.report.figures import FORMATS, formats_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_USUAL: dict[str, Any] = {"format": ("png",), "dpi": 120}
_asked = {**_USUAL}  # no part of a recipe's settings: results do not depend on it


class _Keep(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        _asked[self.dest] = values


def add_figure_options(parser: argparse.ArgumentParser) -> None:
    """Add --format and --dpi."""
    _asked.update(_USUAL)  # another recipe may have run in this process
    kinds = ",".join(FORMATS)
    parser.add_argument(
        "--format",
        action=_Keep,
        type=_formats,
        default=argparse.SUPPRESS,
        help=f"Formats of figures, some of {kinds}. [default: png]",
    )
    parser.add_argument(
        "--dpi", action=_Keep, type=int, default=argparse.SUPPRESS, help="Dots an inch of figures. [default: 120]"
    )


def _formats(text: str) -> tuple[str, ...]:
    try:
        return formats_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def save(figure: "Figure", folder: Path, name: str, about: Sequence[str]) -> None:
    """Write a figure to a folder in each format that was asked for.

    Args:
        figure: the figure.
        folder: the folder.
        name: its name, without the end.
        about: what stands below it: the model, the data, and the numbers of images and starts.
    """
    caption(figure, *about, f"fmprobe {__version__}")
    for kind in _asked["format"]:
        save_figure(figure, folder / f"{name}.{kind}", _asked["dpi"])
