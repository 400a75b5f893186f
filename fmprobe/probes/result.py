"""What the results of probes have in common: they show themselves in a notebook, and plot."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fmprobe.canvas import Drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.runs.run import Run


class Result(Drawn):
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

    def draw(self) -> "Figure":
        """The result as a figure."""
        from fmprobe.report.show import figure_of

        return figure_of(self.key, self.to_dict())

    def _repr_html_(self) -> str:
        from fmprobe.report.show import html_of

        return html_of({self.key: self.to_dict()}, self.draw(), self.warnings)


def probe_once(
    run: "Run",
    model: "Autoencoder",
    seed: int,
    kind: type[Result],
    probe: "Callable[[Autoencoder], tuple[Result, Mapping[str, Any]]]",
    same: Callable[[Any], bool] = bool,
) -> Path:
    """Run a probe on one process unless the run holds its result; write its figure and the page.

    Args:
        run: a run of its own, whose folder gets the figure `KEY.png`.
        model: the model, which gets a surrogate decoder here if it has none.
        seed: seed of the surrogate.
        kind: the class of the result.
        probe: takes the model with its decoder; returns the result, and the entries of the protocol.
        same: whether a result that is there belongs to what is asked for now.
    """
    from fmprobe.pictures import save_figure
    from fmprobe.runs.models import with_decoder
    from fmprobe.runs.run import head
    from fmprobe.sharing import is_main

    def make() -> dict[str, Any] | None:
        subject = with_decoder(model, seed)  # which all processes fit together
        if not is_main():
            return None
        found, protocol = probe(subject)
        save_figure(found.draw(), run.path / f"{kind.key}.png")
        return {**head(subject, protocol), kind.key: found.to_dict(), "total_seconds": run.seconds}

    run.once(kind.key, make, same=same)
    return run.finish(kind.key)
