"""Where figures are drawn: in a figure of their own, or in axes that the caller gave."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    # Axes for the panels of a figure, also as `plt.subplots` gives several of them; None makes a figure.
    Given = Axes | Sequence[Axes] | np.ndarray | None


@dataclass(frozen=True)
class _Asked:
    """What the caller of `plot` asked for."""

    axes: "list[Axes]"
    figsize: tuple[float, float] | None


_asked: ContextVar[_Asked | None] = ContextVar("asked", default=None)


@contextmanager
def drawing(ax: "Given" = None, figsize: tuple[float, float] | None = None) -> Iterator[None]:
    """Let figures be drawn in the caller's axes, or as figures that `plt.show()` shows.

    Raises:
        InputError: `figsize` is given beside axes, whose figure has a size already, or is no pair of positive numbers.
    """
    given: Any = ax
    axes: list[Any] = (
        [] if ax is None else list(given.flat if hasattr(ax, "flat") else given if isinstance(ax, Sequence) else [ax])
    )
    if not all(hasattr(one, "get_subplotspec") and hasattr(one, "plot") for one in axes):
        raise InputError("ax: expected axes of matplotlib, one a panel, such as plt.subplots() gives them")
    if figsize is not None:
        if axes:
            raise InputError("ax and figsize: the figure of these axes has a size, so leave figsize out")
        sides = tuple(figsize) if isinstance(figsize, Sequence) else ()
        if len(sides) != 2 or not all(isinstance(side, int | float) and 0 < side < float("inf") for side in sides):
            raise InputError(f"figsize is {figsize!r}: expected a width and a height in inches, such as (6, 4)")
    before = _asked.set(_Asked(axes, figsize))
    try:
        yield
    finally:
        _asked.reset(before)


def panels(rows: int, columns: int, figsize: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """Axes for a figure of `rows` times `columns` panels, row by row, and the figure that they lie in.

    Args:
        rows: rows of panels.
        columns: panels a row.
        figsize: width and height in inches, unless the caller asked for others.

    Raises:
        InputError: the caller gave another number of axes.
    """
    asked, count = _asked.get(), rows * columns
    if asked is not None and asked.axes:
        if len(asked.axes) != count:
            raise InputError(f"ax: {len(asked.axes)} axes were given for {count} panels: pass one a panel, or none")
        return asked.axes[0].figure, list(asked.axes)  # type: ignore[return-value]
    figure = _new((figsize if asked is None else asked.figsize) or figsize, shown=asked is not None)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def grid(rows: int, columns: int, figsize: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """Axes for a grid of pictures, row by row, as `panels` gives them; within the one axes that the caller gave."""
    if not _in_callers_axes():
        return panels(rows, columns, figsize)
    figure, (ax,) = panels(1, 1, figsize)
    ax.axis("off")
    width, height = 1 / columns, 1 / rows
    places = [(column * width, 1 - (row + 1) * height) for row in range(rows) for column in range(columns)]
    return figure, [ax.inset_axes((x, y, 0.92 * width, 0.8 * height)) for x, y in places]


def title(figure: "Figure", axes: "Sequence[Axes]", text: str) -> None:
    """Write a title over the panels: over the figure, or over the first of the caller's axes."""
    if _in_callers_axes():
        axes[0].set_title(text, fontsize=10)
    else:
        figure.suptitle(text, fontsize=10)


def legend(figure: "Figure", ax: "Axes", columns: int, side: str = "center") -> None:
    """Put a legend above a figure of one panel, or into the caller's axes."""
    if _in_callers_axes():
        ax.legend(frameon=False, fontsize=9)
    else:
        place: Any = f"outside upper {side}"
        figure.legend(loc=place, ncols=columns, frameon=False, fontsize=9)


def _in_callers_axes() -> bool:
    asked = _asked.get()
    return asked is not None and bool(asked.axes)


def _new(figsize: tuple[float, float], shown: bool) -> "Figure":
    """An empty figure. One that is `shown` belongs to pyplot, which opens it at `plt.show()`."""
    if not shown:
        from matplotlib.figure import Figure

        return Figure(figsize=figsize, layout="constrained")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=figsize, layout="constrained")
    if "inline" in plt.get_backend():  # a notebook shows the figure as the result of its cell, and need not do it twice
        plt.close(figure)
    return figure


class Drawn(ABC):
    """What can be drawn: `draw` makes the figure that files and pages hold, `plot` the one that a person sees."""

    @abstractmethod
    def draw(self) -> "Figure":
        """The figure, which belongs to no window."""

    def plot(self, ax: "Given" = None, *, figsize: tuple[float, float] | None = None) -> "Figure":
        """Draw it, for a notebook that shows the result of a cell, or for `plt.show()` of matplotlib.

        Args:
            ax: axes to draw in, one a panel; by default a figure is made.
            figsize: width and height of that figure in inches.

        Raises:
            InputError: there are not as many axes as panels, or a size is given beside axes.
        """
        with drawing(ax, figsize):
            return self.draw()


def caption(figure: "Figure", *parts: str) -> None:
    """Write below a figure what it is of: the model, the data and the numbers of images and starts."""
    figure.supxlabel("  ·  ".join(parts), x=0.01, ha="left", fontsize=7, color="#595b66")
