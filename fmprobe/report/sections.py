"""A section: what a probe shows of its entry of `results.json` on the page, in the terminal and in notebooks."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmprobe.report.rendering import plot, render
from fmprobe.tables import Table

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.finished import FinishedRun

Entry = Any  # an entry of results.json, as JSON holds it
Lines = Sequence[tuple[str, str]]


Results = Mapping[str, Any]  # all of results.json


def _nothing(entry: Entry) -> Any:
    return ()


def _no_drawings(entry: Entry, run: "FinishedRun") -> "Mapping[str, Figure]":
    return {}


def _silent(entry: Entry, results: Results) -> str:
    return ""


@dataclass(frozen=True)
class Section:
    """One section of a page. It is shown for the runs whose results hold its key.

    Attributes:
        key: the entry of `results.json`.
        title: the heading.
        lead: how to read the section.
        sentence: what was found, in words, for someone who reads nothing else; empty where the section adds nothing.
        lines: the most important names and values of the entry, for the summary.
        tables: the tables of the entry, for the page, the terminal and CSV files.
        figures: the figures of the entry by what each shows, for the page and notebooks.
        drawings: further figures, for which the folder of the run is needed.
        body: makes the section's markup from the entry and its run, if it shows more than figures and tables.
        across: makes the markup of several runs together, from the runs and their labels; such a section is on a page
            of several runs alone.
    """

    key: str
    title: str
    lead: str
    sentence: Callable[[Entry, Results], str] = _silent
    lines: Callable[[Entry], Lines] = _nothing
    tables: Callable[[Entry], Sequence[Table]] = _nothing
    figures: "Callable[[Entry], Mapping[str, Figure]]" = _nothing
    drawings: "Callable[[Entry, FinishedRun], Mapping[str, Figure]]" = _no_drawings
    body: "Callable[[Entry, FinishedRun], Markup] | None" = None
    across: "Callable[[Sequence[FinishedRun], Sequence[str]], Markup] | None" = None

    @property
    def anchor(self) -> str:
        """The address of the section on the page."""
        return re.sub(r"\W+", "-", self.title.lower())

    def markup(self, entry: Entry, run: "FinishedRun") -> "Markup":
        """The section of a run as markup: its own body if it has one, else figures and then tables."""
        if self.body is not None:
            return self.body(entry, run)
        return plots(self.figures(entry), run) + tables(self.tables(entry))


def plots(figures: "Mapping[str, Figure]", run: "FinishedRun") -> "Markup":
    """Figures side by side, each with a description for those who cannot see it."""
    from markupsafe import Markup

    if not figures:
        return Markup("")
    drawn = [plot(figure, title, run) for title, figure in figures.items()]
    return Markup('<div class="plots">{}</div>').format(Markup("").join(drawn))


def tables(content: Sequence[Table]) -> "Markup":
    """Tables one below the other."""
    from markupsafe import Markup

    return Markup("").join(render("table.html", table=table) for table in content)
