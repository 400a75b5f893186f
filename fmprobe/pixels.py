"""From what a source holds (a file, its bytes or an array) to the pixels of one image.

A pixel is what the file holds. Integers are divided by the greatest value of their dtype, if none is negative. Floats
are taken as they are, if all lie in [0, 1]. Any other range is refused.

More than 8 bits are kept, with two exceptions: a model's own processor may take pictures of 8 bits, and Pillow gives no
more for 16-bit colours in JPEG 2000 and PPM and for 16-bit grey with alpha (off by less than 1/255).

Transparency is dropped, so that the colour below it shows, as in the model libraries. Lab, CMYK and palettes become
RGB. Colour profiles and gamma are not applied. Of several frames or pages the first is taken.
"""

import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from fmprobe.errors import InputError, SourceError

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray
Picture = Image.Image | Array  # an upright picture: 8 bits a channel, or float32 (h, w) or (h, w, 3) in [0, 1]
Prepare = Callable[[Image.Image], "Tensor"]

# Formats of Pillow that hold no picture, or a picture that another program must draw or whose scale is not stored.
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
Image.init()
FORMATS = tuple(name for name in Image.OPEN if name not in NO_PICTURES)
# File name suffixes that are read, in lower case. An MPO is opened as the JPEG that it begins with.
SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in {*FORMATS, "MPO"}))
ROUNDING = 1e-5  # how far a pixel may leave [0, 1]: arithmetic in float32 moves an exact 0 or 1 by less
ORIENTATION = 0x0112  # a tag of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
SIGNED = 2  # a value of SAMPLE_FORMAT
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 luma, as in Pillow's "L"
NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}  # libtiff unpacks to this machine's byte order
OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def printable(text: object) -> str:
    """Text as one line that any encoding can hold. Control characters, and bytes that are not UTF-8, are written as
    `\\xff`.
    """
    whole = os.fsencode(str(text)).decode("utf-8", "backslashreplace")
    odd = {char for char in whole if unicodedata.category(char) in ("Cc", "Zl", "Zp")}
    return whole.translate({ord(char): char.encode("unicode_escape").decode() for char in odd})


def read(label: str, picture: Callable[[], Picture], shape: tuple[int, int, int], prepare: Prepare | None) -> "Tensor":
    """Read one image as float32 `shape` in [0, 1].

    Raises:
        InputError: it cannot be read; the message names it by its label.
        SourceError: its source gives no more images.
    """
    try:
        return _tensor(picture(), shape, prepare)
    except (MemoryError, SourceError):
        raise
    except Exception as error:  # for damaged files Pillow raises nearly every kind
        reason = printable(error) or type(error).__name__
        raise InputError(f"{label} cannot be read as an image ({reason[:300]}): fix or remove it") from error


def from_file(file: Path | bytes) -> Picture:
    """The upright picture of a file, given by its path or its content."""
    with _opened(file) as image:
        image.load()
        # Where the colours have 16 bits, `image` has the upper byte of each value only.
        return _upright(image, lambda: _low_bytes(file))


def from_image(image: Image.Image) -> Picture:
    """The upright picture of an image in memory, at the depth that Pillow kept of it."""
    image.load()  # a file of TIFF is turned then, and would be turned once more by the tag that it has until then
    return _upright(image, lambda: None)


def _upright(image: Image.Image, low_bytes: Callable[[], Image.Image | None]) -> Picture:
    """The upright picture; `low_bytes` gives the lower bytes of a picture with more than 8 bits."""
    deep = _deep(image)
    if deep is None and (low := low_bytes()) is not None:
        deep = _parts(image, low)
    turn = _turn(image)
    if deep is not None:
        return deep if turn is None else _turned(deep, turn)
    whole = _eight_bits(image)
    return whole if turn is None else whole.transpose(turn)


def from_array(values: Array) -> Picture:
    """The picture of an array `(h, w)`, `(h, w, 1)` or `(h, w, 3)` of unsigned integers, booleans or floats."""
    values = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(values))
    if values.dtype.kind == "u":
        return (values / np.iinfo(values.dtype).max).astype(np.float32)
    return _fractions(values)


def _opened(file: Path | bytes) -> Image.Image:
    """Open a picture without decoding it; raise ValueError for a layout that Pillow misreads."""
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    if image.format == "TIFF" and isinstance(image, ImageFile.ImageFile):
        if (bits := _tag(image, BITS) or 1) > 8 and _tag(image, PLANAR) == 2 and len(image.tile) > 1:
            raise ValueError(f"its channels lie apart, with {bits} bits a value: save them pixel by pixel")
        image.tile = [tile._replace(args=_native(tile.args)) if tile[0] == "libtiff" else tile for tile in image.tile]
    return image


def _native(arguments: Any) -> Any:
    """The arguments for libtiff in native byte order, since Pillow already swaps the bytes of signed integers and
    floats.
    """
    return (NATIVE.get(arguments[0], arguments[0]), *arguments[1:])


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The rotation that brings the picture upright. Other metadata may be damaged, as long as the orientation can be
    read.
    """
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return None


def _turned(values: Array, turn: Image.Transpose) -> Array:
    """An array `(h, w)` or `(h, w, 3)`, turned."""
    channels = np.atleast_3d(values)
    turned = [np.asarray(Image.fromarray(np.ascontiguousarray(c)).transpose(turn)) for c in np.moveaxis(channels, 2, 0)]
    return turned[0] if values.ndim == 2 else np.stack(turned, axis=2)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture as L or RGB; palettes and premultiplied alpha are resolved to the colours that they stand for."""
    if image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _deep(image: Image.Image) -> Array | None:
    """The values of a picture of one channel with more than 8 bits or with signed values; None for other pictures."""
    signed, bits = (
        _tiff_numbers(image) if image.format == "TIFF" else (False, {"PPM": 16, "PNG": 16}.get(image.format or ""))
    )
    values = np.asarray(image) if image.mode in ("F", "I", "L") or image.mode.startswith("I;16") else None
    if values is None or (image.mode == "L" and not signed):
        if signed:
            raise ValueError(f"its integers are signed, in mode {image.mode}: save them unsigned")
        return None
    if image.mode == "F":
        fractions = _fractions(values)
    elif image.mode == "L":
        fractions = _counts(values.view(np.int8), 127)
    elif image.mode == "I" and not signed and bits == 32:
        fractions = _counts(values.view(np.uint32), 2**32 - 1)
    elif image.mode == "I":
        fractions = _counts(values, {8: 127, 16: 32767}.get(bits or 0, 2**31 - 1) if signed or bits != 16 else 65535)
    else:
        fractions = _counts(values, 4095 if bits == 12 else 65535)
    return (
        1 - fractions if image.format == "TIFF" and image.mode != "L" and _tag(image, PHOTOMETRIC) == 0 else fractions
    )


def _tiff_numbers(image: Image.Image) -> tuple[bool, int]:
    """Whether the values of a TIFF are signed, and their number of bits."""
    return _tag(image, SAMPLE_FORMAT) == SIGNED, _tag(image, BITS) or 1


def _tag(image: Image.Image, number: int) -> Any:
    """The first value of a TIFF tag; None if there is none."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _fractions(values: Array) -> Array:
    """Floats that lie in [0, 1], up to rounding; raise ValueError with the range of others."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # nan fails as well
        raise ValueError(f"its floats lie in {low:.6g} to {high:.6g}, expected 0 to 1")
    return np.clip(values, 0, 1).astype(np.float32)


def _counts(values: Array, full: int) -> Array:
    """Integers divided by the full range of their dtype; raise ValueError if one is negative or all would be black."""
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise ValueError(f"its signed integers lie in {low} to {high}, expected none below 0")
    if full > 65535 and 0 < high < full / 510:  # below half a level of 8 bits
        raise ValueError(f"its integers reach {high} of {full}, all black: save them with 8 or 16 bits")
    return (values / full).astype(np.float32)


def _low_bytes(file: Path | bytes) -> Image.Image | None:
    """The lower bytes of a 16-bit colour picture, of which Pillow gives the upper bytes; None for other pictures."""
    with _opened(file) as opened:
        image: Any = opened  # Pillow does not type its tiles
        tiles = [tile._replace(args=_other_byte(tile.args)) for tile in image.tile]
        if image.mode not in ("RGB", "RGBA") or not tiles or any(tile.args is None for tile in tiles):
            return None
        image.tile = tiles
        image.load()
        return image.copy()


def _other_byte(arguments: Any) -> Any:
    """The arguments of Pillow's decoder for the other byte of 16 bits; None if values do not have two bytes."""
    first, rest = (arguments[0], arguments[1:]) if isinstance(arguments, tuple) else (arguments, None)
    found = re.fullmatch(r"(RGB[AX]?;16)([LBN])", first) if isinstance(first, str) else None
    if found is None:
        return None
    other = found[1] + OTHER_BYTE[found[2]]
    return other if rest is None else (other, *rest)


def _parts(high: Image.Image, low: Image.Image) -> Array:
    """Combine the upper and the lower bytes to floats in [0, 1]."""
    upper, lower = (np.asarray(part, dtype=np.float64)[:, :, :3] for part in (high, low))
    return ((256 * upper + lower) / 65535).astype(np.float32)


def _tensor(found: Picture, shape: tuple[int, int, int], prepare: Prepare | None) -> "Tensor":
    """The picture in grey or colour, resized and cropped by `prepare` or else to fit."""
    import torch

    channels, height, width = shape
    if isinstance(found, np.ndarray) and prepare is None:
        return torch.from_numpy(np.ascontiguousarray(_fitted(_channels(found, channels), height, width)))
    if isinstance(found, np.ndarray):
        found = Image.fromarray(np.round(found * 255).astype(np.uint8))
    image = found.convert("L" if channels == 1 else "RGB")
    if prepare is not None:
        return prepare(image).float()
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _channels(values: Array, channels: int) -> Array:
    """Floats `(h, w)` or `(h, w, 3)` as `(channels, h, w)`, in grey or colour."""
    if channels == 1:
        return (values if values.ndim == 2 else np.clip(values @ GREY, 0, 1))[None]
    return np.stack([values] * 3) if values.ndim == 2 else np.moveaxis(values, 2, 0)


def _fitted(values: Array, height: int, width: int) -> Array:
    """Channels resized and cropped to fit."""
    if values.shape[1:] == (height, width):
        return values
    pictures = [Image.fromarray(np.ascontiguousarray(channel)) for channel in values]
    resized = [ImageOps.fit(picture, (width, height), method=Image.Resampling.BICUBIC) for picture in pictures]
    return np.clip(np.stack([np.asarray(picture) for picture in resized]), 0, 1)  # bicubic resizing overshoots
