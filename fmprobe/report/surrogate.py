"""The section on a surrogate decoder: what it was trained on, and how well it reconstructs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fmprobe.report.rendering import render
from fmprobe.report.sections import Section, tables
from fmprobe.tables import Table, rounded

if TYPE_CHECKING:
    from fmprobe.report.finished import FinishedRun

HEAD = {
    "l1": "L1",
    "l1_median": "L1 of the median colour",
    "feature_error": "relative feature error",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
}


def quality(decoder: Mapping[str, Any], run: "FinishedRun") -> Markup:
    """The surrogate's data and its errors on images that it was not trained on, with pictures. It is empty if the model
    has its own decoder.
    """
    if decoder.get("kind") != "surrogate":
        return Markup("")
    validation = decoder.get("validation") or {}
    columns = [key for key in HEAD if any(key in row for row in validation.values())]
    rows = [(name.replace("_", " "), *(row.get(key) for key in columns)) for name, row in validation.items()]
    body = Markup("<p>{}, trained on {}.</p>").format(decoder.get("architecture"), _in_words(decoder.get("data")))
    if rows:
        head = ["images", *(HEAD[key] for key in columns)]
        body += tables([Table("Errors of the surrogate", rows, head)])
    if kept := run.results.get("reconstructions"):
        body += render("reconstructions.html", film=run.sprite(kept["picture"], rows=2, columns=kept["images"]))
    return body


def _in_words(data: Any) -> str:
    """Training data in words; a mapping becomes "key value" pairs."""
    if isinstance(data, Mapping):
        return "; ".join(f"{key.replace('_', ' ')} {rounded(value)}" for key, value in data.items())
    return rounded(data)


QUALITY = Section(
    "decoder",
    "The surrogate",
    "The encoder has no decoder of its own. The latent map is that of encoder and surrogate together, and so are the "
    "findings.",
    body=quality,
)
