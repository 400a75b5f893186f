"""The README's table of images that are read and refused: each row is tried, and each is there."""

import re
import struct
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.surrogates import quick

import fmprobe
from fmprobe.errors import InputError

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
GREY = np.full((8, 8), 51, dtype=np.uint8)  # a fifth of 255


def table() -> dict[str, str]:
    part = README[README.index("| a source holds | it is |") :]
    lines = part[: part.index("\n\n")].splitlines()[2:]
    return {row: reading for line in lines for row, reading in re.findall(r"^\| (.+) \| (.+) \|$", line)}


ROWS = table()


def picture(path, mode="L", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(GREY).convert(mode).save(path, **more)
    return path.parent


def tiff(folder, values, compression="raw"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / "a.tif", compression=compression)
    return folder


def signed_tiff(folder, value):
    """16 bits, signed: tag 339 is 2."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.full((8, 8), value, dtype="<i2").view("<u2")
    Image.fromarray(values).save(folder / "a.tif", tiffinfo={339: 2})
    return folder


def npz(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "a.npz", images=values)
    return folder / "a.npz"


def apart(folder):
    """A TIFF of 16 bits with PlanarConfiguration 2."""
    planes = [np.full((8, 8), 13107, dtype="<u2").tobytes()] * 3
    at, entries = 8 + 2 + 12 * 10 + 4, []
    counts, offsets, bits = at, at + 12, at + 24
    first = bits + 6
    for tag, kind, count, value in (
        (256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 3, offsets), (277, 3, 1, 3), (278, 3, 1, 8), (279, 4, 3, counts), (284, 3, 1, 2),
    ):  # fmt: skip
        entries.append(struct.pack("<HHII", tag, kind, count, value))
    body = struct.pack("<3I", 128, 128, 128) + struct.pack("<3I", *(first + 128 * i for i in range(3)))
    body += struct.pack("<3H", 16, 16, 16) + b"".join(planes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, 10) + b"".join(entries) + bytes(4) + body)
    return folder


def parquet(folder, cell):
    folder.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([cell], kind)}), folder / "a.parquet")
    return folder / "a.parquet#image"


def oriented(folder):
    tags = Image.Exif()
    tags[0x0112] = 6
    return picture(folder / "a.png", exif=tags)


def frames(folder):
    picture(folder / "a.gif", save_all=True, append_images=[Image.new("L", (8, 8), 200)])
    return folder


def beside(folder, name, content=b"no picture"):
    (picture(folder / "a.png") / name).write_bytes(content)
    return folder


def linked(folder):
    picture(folder / "real" / "a.png")
    (folder / "real" / "loop").symlink_to(folder)
    return folder


def mixed(folder):
    picture(folder / "a.png")
    parquet(folder, {"bytes": b"", "path": None})
    return folder


def splits(folder):
    for part in ("train", "test"):
        picture(folder / part / "a.png")
    return folder


FRACTIONS = np.full((8, 8), 0.2, dtype=np.float32)
CASES = {  # by row: sources, each made in a folder
    "integers without a sign": [
        lambda f: picture(f / "a.png"),
        lambda f: tiff(f, (GREY.astype(np.uint16) * 257)),
        lambda f: npz(f, GREY[None].astype(np.uint16) * 257),
    ],
    "signed integers in a TIFF, none negative": [lambda f: signed_tiff(f, 6553)],
    "a negative integer, or signed integers in `.npz`": [
        lambda f: signed_tiff(f, -5),
        lambda f: npz(f, GREY[None].astype(np.int16)),
    ],
    "floats in 0 to 1": [lambda f: tiff(f, FRACTIONS), lambda f: npz(f, FRACTIONS[None])],
    "floats in 0 to 255, -1 to 1, or NaN": [
        lambda f: tiff(f, FRACTIONS * 255),
        lambda f: npz(f, FRACTIONS[None] * -1),
        lambda f: npz(f, FRACTIONS[None] * np.nan),
    ],
    "palette, CMYK, Lab, grey, transparency": [
        lambda f: picture(f / "a.png", "P"),
        lambda f: picture(f / "a.tif", "CMYK"),
        lambda f: picture(f / "a.png", "RGBA"),
        lambda f: picture(f / "a.png", "LA"),
    ],
    "an EXIF orientation": [oriented],
    "several frames or pages": [frames],
    "16-bit TIFF whose channels lie apart": [apart],
    "a damaged picture, a null or empty cell of parquet": [
        lambda f: beside(f, "b.png"),
        lambda f: parquet(f, None),
        lambda f: parquet(f, {"bytes": None, "path": None}),
        lambda f: parquet(f, {"bytes": b"", "path": None}),
    ],
    "any ending that Pillow opens as a picture": [
        lambda f, name=name: picture(f / f"a{name}", "RGB") for name in (".jfif", ".jpe", ".avif", ".jp2", ".JPG")
    ],
    "files of other endings": [lambda f: beside(f, "b.txt")],
    "hidden files, `._a.png`, `Thumbs.db`": [
        lambda f, name=name: beside(f, name) for name in (".b.png", "._a.png", "Thumbs.db")
    ],
    "folders that are links": [linked],
    "`FOLDER:train`, also in `data/`; `val` or `validation`": [
        lambda f: f"{picture(f / 'train' / 'a.png').parent}:train",
        lambda f: f"{picture(f / 'data' / 'train' / 'a.png').parents[1]}:train",
        lambda f: f"{picture(f / 'val' / 'a.png').parent}:validation",
    ],
    "a split that is not there": [lambda f: f"{splits(f)}:nonsense"],
    "`#column` of a folder of images or of `.npz`": [
        lambda f: f"{picture(f / 'a.png')}#image",
        lambda f: f"{npz(f, GREY[None])}#image",
    ],
    "`train` and `test` in a folder, and no split named": [splits],
    "pictures and parquet files in one folder": [mixed],
    "`.npz` of shape (n,h,w), (n,h,w,3), (n,3,h,w)": [
        lambda f: npz(f, GREY[None]),
        lambda f: npz(f, np.stack([GREY] * 3, 2)[None]),
        lambda f: npz(f, np.stack([GREY] * 3)[None]),
        lambda f: npz(f, GREY[None, None]),
        lambda f: npz(f, GREY[None, :, :, None]),
    ],
    "`.npz` of another shape, or one with channels first or last alike": [
        lambda f: npz(f, GREY),
        lambda f: npz(f, np.zeros((1, 3, 8, 3), np.uint8)),
        lambda f: npz(f, np.zeros((0, 8, 8, 3), np.uint8)),
        lambda f: npz(f, np.zeros((5, 1, 1), np.uint8)[..., None, None]),
    ],
}
WARNED = {"files of other endings", "folders that are links"}


def test_every_row_is_tried():
    assert list(ROWS) == list(CASES)


@pytest.mark.parametrize(("row", "make"), [(row, make) for row, cases in CASES.items() for make in cases])
def test_the_table_of_images_is_true(row, make, tmp_path):
    source = str(make(tmp_path / "f"))
    if ROWS[row].startswith("refused"):
        with pytest.raises(InputError) as refused:
            fmprobe.load_images(source, image_shape=(3, 8, 8))
        assert len(str(refused.value).splitlines()) == 1
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = fmprobe.load_images(source, image_shape=(3, 8, 8))
    assert bool(said) == (row in WARNED)
    assert len(images) == 1
    assert (images - 0.2).abs().max() < 0.02  # JPEG, and the rounding of CMYK


def test_a_damaged_picture_is_left_out_and_counted_where_that_is_asked_for(tmp_path):
    source = str(beside(tmp_path / "f", "b.png"))
    with pytest.warns(UserWarning, match="1 damaged images"):
        assert len(fmprobe.load_images(source, image_shape=(3, 8, 8), skip_damaged=True)) == 1


def test_bytes_are_scaled_by_everything_but_what_trains_a_network(tiny_mae, tiny_dinov2):
    model = fmprobe.load(tiny_mae)
    bytes_ = torch.randint(0, 256, (20, *model.image_shape), dtype=torch.uint8)
    detector = fmprobe.TrajectoryDetector(model, max_steps=3).fit(bytes_, progress=False)
    assert torch.equal(detector.score(bytes_), detector.score(bytes_.float() / 255))
    encoder = fmprobe.load(tiny_dinov2, image_size=28)
    assert torch.equal(model.encode(bytes_), model.encode(bytes_.float() / 255))
    shaped = torch.randint(0, 256, (20, *encoder.image_shape), dtype=torch.uint8)
    assert quick(encoder, shaped).fingerprint == quick(encoder, shaped.float() / 255).fingerprint
    network = fmprobe.DenseAutoencoder(2, 4, (1, 4, 4))
    with pytest.raises(InputError, match=r"bytes by 255|torch\.uint8"):
        fmprobe.train_autoencoder(network, bytes_[:, :1, :4, :4], epochs=1)
