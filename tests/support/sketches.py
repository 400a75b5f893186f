"""Figures as text, for tests of pages that are not about what a figure looks like."""

from typing import Any


def sketch(figure: Any, title: str, prefix: str | None = None) -> str:
    """The words and the lines of a figure, in place of `fmprobe.report.rendering.to_svg`."""
    words = [(ax.get_title(), ax.get_xlabel(), ax.get_legend_handles_labels()[1]) for ax in figure.axes]
    drawn = [artist for ax in figure.axes for artist in (*ax.lines, *ax.patches, *ax.collections, *ax.images)]
    return str([title, *words, *(str(getattr(a, "get_xydata", a.get_label)()) for a in drawn)])
