"""A section: what a probe shows of its entry of `results.json`, on the page, in the terminal and in notebooks."""

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

Entry = Any  # of results.json, as JSON holds it
Lines = Sequence[tuple[str, str]]


def _nothing(entry: Entry) -> Any:
    return ()


@dataclass(frozen=True)
class Section:
    """One section of a page, shown for the runs whose results hold its key.

    Attributes:
        key: the entry of `results.json`.
        title: what stands above.
        lead: how to read the section.
        lines: names and values of the entry that say most, for the summary.
        tables: the entry's tables, for the page, the terminal and CSV files.
        figures: the entry's figures by what each shows, for the page and notebooks.
        body: the section's markup, from the entry and its run, where figures and tables are not all of it.
    """

    key: str
    title: str
    lead: str
    lines: Callable[[Entry], Lines] = _nothing
    tables: Callable[[Entry], Sequence[Table]] = _nothing
    figures: "Callable[[Entry], Mapping[str, Figure]]" = _nothing
    body: "Callable[[Entry, FinishedRun], Markup] | None" = None

    @property
    def anchor(self) -> str:
        """The section's address on the page."""
        return re.sub(r"\W+", "-", self.title.lower())

    def markup(self, entry: Entry, run: "FinishedRun") -> "Markup":
        """The section of a run as markup: figures, then tables, unless it has a body of its own."""
        if self.body is not None:
            return self.body(entry, run)
        return plots(self.figures(entry), run) + tables(self.tables(entry))


def plots(figures: "Mapping[str, Figure]", run: "FinishedRun") -> "Markup":
    """Figures side by side, each with the words for those who cannot see it."""
    from markupsafe import Markup

    if not figures:
        return Markup("")
    drawn = [plot(figure, title, run) for title, figure in figures.items()]
    return Markup('<div class="plots">{}</div>').format(Markup("").join(drawn))


def tables(content: Sequence[Table]) -> "Markup":
    """Tables one below another."""
    from markupsafe import Markup

    return Markup("").join(render("table.html", table=table) for table in content)
