"""The section on attractors of several runs: which of them are the same picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmprobe.report.rendering import render
from fmprobe.report.sections import Section

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup

    from fmprobe.report.finished import FinishedRun, Picture

SAME = 0.05  # root mean square difference of pixels, of a range of 1, up to which two pictures count as one
SHOWN = 32  # largest basins of a run that are matched
SIDE = 96  # pixels of a picture


@dataclass(frozen=True)
class Attractor:
    """An attractor of a run: its number by size of basin, how many starts ended there, and its picture."""

    number: int
    basin: int
    picture: "Picture"
    pixels: "np.ndarray"


def match(first: "Sequence[np.ndarray]", second: "Sequence[np.ndarray]") -> list[tuple[int, int, float]]:
    """Pair pictures one to one so that the sum of their differences is least, and keep the pairs that are alike.

    Args:
        first: pictures of one shape, of values in [0, 1].
        second: others of that shape.

    Returns:
        For each pair, by the place in `first`: both places, and the root mean square difference of the pixels, which is
            at most `SAME`.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    if not first or not second:
        return []
    a, b = (np.stack([picture.ravel() for picture in pictures]) for pictures in (first, second))
    difference = np.sqrt(((a[:, None] - b[None]) ** 2).mean(-1))
    # A pair that is not alike costs all the same, so that it takes no partner from a pair that is.
    rows, columns = linear_sum_assignment(np.minimum(difference, SAME))
    pairs = [(int(i), int(j), float(difference[i, j])) for i, j in zip(rows, columns, strict=True)]
    return [pair for pair in pairs if pair[2] <= SAME]


def across(runs: "Sequence[FinishedRun]", labels: Sequence[str]) -> "Markup":
    """The attractors of the first run beside those of each other run: pairs, and those without a counterpart."""
    from markupsafe import Markup

    found = [(_attractors(run), label) for run, label in zip(runs, labels, strict=True) if _shows_attractors(run)]
    parts = [_beside(*found[0], *other) for other in found[1:]]
    return Markup("").join(part for part in parts if part)


def _beside(first: list[Attractor], name: str, second: list[Attractor], other: str) -> Any:
    if not first or not second:
        return ""
    if first[0].pixels.shape != second[0].pixels.shape:
        return render("matched.html", names=(name, other), pairs=[], alone=[], comparable=False, same=SAME)
    pairs = match([one.pixels for one in first], [one.pixels for one in second])
    paired = {i for i, _, _ in pairs}, {j for _, j, _ in pairs}
    return render(
        "matched.html",
        names=(name, other),
        pairs=[(first[i], second[j], difference) for i, j, difference in pairs],
        alone=[
            (label, [one for i, one in enumerate(attractors) if i not in taken])
            for label, attractors, taken in ((name, first, paired[0]), (other, second, paired[1]))
        ],
        comparable=True,
        same=SAME,
    )


def _shows_attractors(run: "FinishedRun") -> bool:
    return bool(run.results.get("attractors")) and run.results.get("decodes_to_images", True)


def _attractors(run: "FinishedRun") -> list[Attractor]:
    """The attractors of the largest basins."""
    import io

    import numpy as np
    from PIL import Image

    kept = []
    for i, row in enumerate(run.rows("prototypes", "index.csv")[:SHOWN]):
        with Image.open(io.BytesIO(run.read("prototypes", row["file"])), formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
        kept.append(
            Attractor(
                i + 1, int(row["basin_size"]), run.picture("prototypes", row["file"], side=SIDE, budget=6000), pixels
            )
        )
    return kept


MATCHED = Section(
    "attractors",
    "Attractors of these runs, matched",
    "The decoded attractors of the largest basins are paired one to one, so that their pictures differ least. "
    "Two that differ by more than the page states are no pair: each is named as one without a counterpart.",
    across=across,
)
