"""Figures in words, for tests of pages that are not about what a figure looks like."""

from html import escape
from typing import Any

from matplotlib.figure import Figure

draw = Figure.savefig


def sketch(figure: Figure, file: Any, *, format: str | None = None, **options: Any) -> None:
    """`Figure.savefig`, which writes an SVG of the words and the lines of a figure and does not draw them."""
    if format != "svg":
        draw(figure, file, format=format, **options)
        return
    words = [(ax.get_title(), ax.get_xlabel(), ax.get_legend_handles_labels()[1]) for ax in figure.axes]
    drawn = [artist for ax in figure.axes for artist in (*ax.lines, *ax.patches, *ax.collections, *ax.images)]
    text = str([*words, *(str(getattr(artist, "get_xydata", artist.get_label)()) for artist in drawn)])
    file.write(f'<svg viewBox="0 0 1 1"><text>{escape(text)}</text></svg>')
