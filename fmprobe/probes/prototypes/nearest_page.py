"""The section of the images that are nearest to attractors, where the latent map has no decoder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.report.rendering import render
from fmprobe.report.sections import Section
from fmprobe.tables import number

if TYPE_CHECKING:
    from markupsafe import Markup

    from fmprobe.report.finished import FinishedRun


def body(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """One row per attractor: the nearest images, each with its distance."""
    rows = [
        [(image, number(distance, ".2f")) for image, distance in zip(*row, strict=True)]
        for row in zip(found["images"], found["distances"], strict=True)
    ]
    sheet = run.sprite(found["file"], rows=len(rows), columns=len(rows[0]))
    return render("nearest.html", sheet=sheet, rows=rows, words=found["set"], count=found["count"])


NEAREST = Section(
    "nearest_images",
    "Nearest images, not decoded",
    "This latent map has no decoder, so an attractor has no picture of its own. Each row shows the images whose "
    "latents are nearest to an attractor. Below each is its distance, where 1 is the typical distance of two images.",
    body=body,
)
