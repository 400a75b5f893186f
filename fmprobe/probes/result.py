"""What the results of probes have in common: they show themselves in a notebook, and plot."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmprobe.autoencoder import Autoencoder


class Result(ABC):
    """A probe's result; `key` is its place in `results.json`, and `to_dict` what stands there.

    `warnings`: what speaks against the surrogates of the models that it is about.
    """

    key: ClassVar[str]
    warnings: tuple[str, ...] = ()

    def about(self, *models: "Autoencoder") -> Self:
        """This result, with the warnings of the models that it is about."""
        said = dict.fromkeys(model.surrogate_warning for model in models)
        object.__setattr__(self, "warnings", tuple(text for text in said if text is not None))
        return self

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""

    def plot(self) -> "Figure":
        """The result as a matplotlib figure."""
        from fmprobe.report.show import figure_of

        return figure_of(self.key, self.to_dict())

    def _repr_html_(self) -> str:
        from fmprobe.report.show import html_of

        return html_of({self.key: self.to_dict()}, self.plot(), self.warnings)
