"""What makes the runs of tests quick: pages without their plots, and exponents of few steps.

Drawing takes much of the time of a small run. How many steps an exponent is averaged over depends on how long f takes;
in tests it does not.
"""

from functools import partial
from typing import Any
from unittest import mock

from fmprobe.probes.prototypes import reading
from fmprobe.report import rendering

_drawn, _ladder = rendering.to_svg, {"CAPS": reading.CAPS, "LADDER": reading.LADDER, "SET_STEPS": reading.SET_STEPS}
_short = {"CAPS": (4,), "LADDER": (reading.FEWEST_STEPS,), "SET_STEPS": reading.LEAST_SET[1]}


def _empty(figure: Any, title: str, prefix: str | None = None) -> str:
    """A picture of nothing with the title of the figure."""
    return f'<svg role="img"><title>{title}</title></svg>'


sketched = partial(mock.patch.object, rendering, "to_svg", _empty)
drawn = partial(mock.patch.object, rendering, "to_svg", _drawn)
short_readings = partial(mock.patch.multiple, reading, **_short)
whole_readings = partial(mock.patch.multiple, reading, **_ladder)
