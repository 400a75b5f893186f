"""Pages without their plots, for tests that are not about these: drawing takes much of the time of a small run."""

from functools import partial
from typing import Any
from unittest import mock

from fmprobe.report import rendering

_drawn = rendering.to_svg


def _empty(figure: Any, title: str, prefix: str | None = None) -> str:
    """A picture of nothing with the title of the figure."""
    return f'<svg role="img"><title>{title}</title></svg>'


sketched = partial(mock.patch.object, rendering, "to_svg", _empty)
drawn = partial(mock.patch.object, rendering, "to_svg", _drawn)
