"""What the results of probes have in common: they show themselves in a notebook, and plot."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(ABC):
    """A probe's result; `key` is its place in `results.json`, and `to_dict` what stands there."""

    key: ClassVar[str]

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""

    def plot(self) -> "Figure":
        """The result as a matplotlib figure."""
        from fmprobe.report.notebook import figure_of

        return figure_of(self.key, self.to_dict())

    def _repr_html_(self) -> str:
        from fmprobe.report.notebook import html_of

        return html_of({self.key: self.to_dict()}, self.plot())
