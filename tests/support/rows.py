"""Rows of an atlas, of runs that commands wrote."""

from pathlib import Path
from typing import Any

from fmprobe.report.atlas import Row
from support.written import Written

DONE: dict[str, Any] = {"probe": {"command": "", "error": None}}
REASON = "<u>no memory</u>"


def row(folder: Path, name: str, **more: Any) -> Row:
    """A model that was probed, from its folder."""
    made = Row(name, folder, steps={**DONE, **more})
    made.read()
    return made


def rows_of_every_kind(written: Written, whole: Path) -> list[Row]:
    """With all readings, without a picture, without attractors, failed, and not probed yet; `whole` is a new folder."""
    whole = written.gathered(whole, search="prototypes")
    return [
        row(whole, "org/<b>whole"),
        row(written("wide"), "wide"),
        row(written("language"), "language"),
        row(written("chaotic"), "chaotic"),
        row(written("prototypes"), "wide", ood={"command": "", "error": "no images"}),
        Row("failed", whole, steps={"probe": {"command": "", "error": REASON}}),
        Row("later", whole),
    ]
