"""The diagram over capacity, small enough for a cell of a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fmprobe.report.rendering import render
from fmprobe.tables import number

WIDTH, HEIGHT, EDGE = 128, 44, 5  # of the drawing, and the room around its points
SETS = {"A": "images A", "B": "images B", "null": "random weights"}


def sparkline(points: Sequence[Mapping[str, Any]]) -> str:
    """The exponent against the logarithm of k as SVG, a line a set; filled where at least 90% of the starts settled.

    It is empty where no exponent is known.
    """
    known = [point for point in points if point["exponent"] is not None and math.isfinite(point["exponent"])]
    if not known:
        return ""
    across = _scale([math.log2(point["k"]) for point in known], EDGE, WIDTH - EDGE)
    up = _scale([0.0, *(point["exponent"] for point in known)], HEIGHT - EDGE, EDGE)
    lines = []
    for name, label in SETS.items():
        of = sorted((point for point in known if point["set"] == name), key=lambda point: point["k"])
        marks = [
            {
                "x": round(across(math.log2(point["k"])), 1),
                "y": round(up(point["exponent"]), 1),
                "settled": point["settled"] >= 0.9 * point["starts"],
            }
            for point in of
        ]
        said = ", ".join(f"{number(point['exponent'], '.2f')} at k = {point['k']}" for point in of)
        lines += [{"name": name, "marks": marks, "said": f"{label}: {said}"}] if of else []
    said = "Exponent against capacity. " + ". ".join(line["said"] for line in lines)
    return render("sparkline.html", lines=lines, said=said, zero=round(up(0.0), 1), width=WIDTH, height=HEIGHT)


def _scale(values: Sequence[float], low: float, high: float) -> Any:
    """A function that takes the range of the values to the range from `low` to `high`."""
    least, most = min(values), max(values)
    return lambda value: (low + high) / 2 if most == least else low + (value - least) / (most - least) * (high - low)
