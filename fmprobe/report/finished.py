"""A finished run folder as a report reads it: it is checked, and nothing outside the folder is read."""

import base64
import csv
import io
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError
from fmprobe.files import RESULTS, SCHEMA, is_own
from fmprobe.places import shown as shown_results

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_FILE = 64 << 20  # largest size of a file that is read, in bytes
BUDGET = 32 << 10  # largest size of a picture on the page, in bytes
SPRITE = 128 << 10  # largest size of a picture of many frames, in bytes
SMALL = 64  # side in pixels below which a picture is shown with sharp pixels
QUALITIES = (90, 80, 65, 45)  # qualities of a JPEG; the first that keeps to the budget is used


class FinishedRun:
    """The results of one run folder, and the pictures and tables that lie with them.

    Args:
        folder: the run folder.
        index: place of the run among the runs of a page.

    Raises:
        InputError: the folder holds no finished run of this version's schema.
    """

    def __init__(self, folder: Path, index: int = 0) -> None:
        self.folder, self.index = folder, index
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: name the folder of a run")
        if not (folder / RESULTS).exists():
            raise InputError(f"{folder} holds no {RESULTS}, so the run has not finished: run its command again")
        self.results: dict[str, Any] = shown_results(self._parse(RESULTS))
        if self.results.get("schema") != SCHEMA:
            raise InputError(
                f"{folder / RESULTS} is of schema {self.results.get('schema')!r}, and this version reads {SCHEMA}: "
                "make the report with the version that made the run"
            )

    def _parse(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.folder / name} is not JSON ({error}): {_AGAIN}") from error
        if not isinstance(content, dict):
            raise InputError(f"{self.folder / name} is not a JSON object: {_AGAIN}")
        return content

    @cached_property
    def name(self) -> str:
        """What the run is called on the page: its model, or both that it compared, or else its folder."""
        found = [self.results, self.results.get("other")]
        models = [one.get("model") for one in found if isinstance(one, Mapping)]
        known = [str(model["id"]) for model in models if isinstance(model, Mapping) and model.get("id")]
        return " and ".join(dict.fromkeys(known)) or self.folder.name

    def read(self, *parts: str) -> bytes:
        """The bytes of a file of the folder.

        Raises:
            InputError: the file is missing, too large or outside the folder.
        """
        path = self.folder.joinpath(*parts)
        try:
            real = path.resolve(strict=True)
            if not is_own(path, self.folder) or not real.is_file():
                raise InputError(f"{path} is no file of the run folder, and nothing else is read: {_AGAIN}")
            if real.stat().st_size > LARGEST_FILE:
                raise InputError(f"{path} is larger than {LARGEST_FILE >> 20} MiB, and no run writes that: {_AGAIN}")
            return real.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} cannot be read ({_reason(error)}): {_AGAIN}") from error

    def rows(self, *parts: str) -> list[dict[str, str]]:
        """The rows of a CSV file."""
        try:
            return list(csv.DictReader(io.StringIO(self.read(*parts).decode("utf-8"), newline="")))
        except (ValueError, csv.Error) as error:
            raise InputError(f"{self.folder.joinpath(*parts)} is no table ({error}): {_AGAIN}") from error

    def picture(self, *parts: str, side: int | None = None, budget: int = BUDGET) -> "Picture":
        """A PNG of the folder for the page, by the last part of its name.

        A picture of more than `budget` bytes becomes a JPEG of at most `side` pixels.
        """
        from PIL import Image

        parts = (*parts[:-1], Path(parts[-1]).name)
        data = self.read(*parts)
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            path = self.folder.joinpath(*parts)
            raise InputError(f"{path} is no PNG that can be shown ({error}): {_AGAIN}") from error
        kind, size = "png", image.size
        if len(data) > budget:
            small = image.convert("RGB")
            if side:
                small.thumbnail((side, side))
            kind, data = "jpeg", _within(small, budget)
        return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *size)

    def sprite(self, *parts: str, rows: int, columns: int) -> dict[str, Any]:
        """A PNG of the folder that holds `rows` times `columns` frames, edge to edge, as templates show it.

        Raises:
            InputError: the picture does not hold so many frames.
        """
        picture = self.picture(*parts, budget=SPRITE)
        if not rows or picture.width % columns or picture.height % rows:
            raise InputError(f"{self.folder} has a picture of frames that does not fit its results: {_AGAIN}")
        width, height = picture.width // columns, picture.height // rows
        return {
            "picture": picture,
            "rows": rows,
            "columns": columns,
            "aspect": f"{width} / {height}",
            "small": max(width, height) < SMALL,
        }


def _within(image: "Image", budget: int) -> bytes:
    """A JPEG that keeps to a number of bytes, or of the lowest quality."""
    data = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if len(data) <= budget:
            break
    return data


class Picture:
    """A picture as a data URI, with its original size in pixels."""

    def __init__(self, src: str, width: int, height: int) -> None:
        self.src, self.width, self.height = src, width, height


_AGAIN = "run the command again with --no-resume"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
