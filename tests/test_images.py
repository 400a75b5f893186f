"""Any image source: every mode and orientation, and files that are no images."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import fmprobe
from fmprobe.images import open_images, stream_images
from fmprobe.sources import find_pictures

SHAPE = (3, 8, 8)
GRADIENT = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def colours() -> np.ndarray:
    return np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=2)


def only(folder, **arguments):
    return fmprobe.load_images(str(folder), image_shape=SHAPE, **arguments)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"])
def test_modes(tmp_path, mode):
    rgb = Image.fromarray(colours())
    if mode == "I;16":
        image, expected = Image.fromarray(GRADIENT.astype(np.uint16) * 257), np.stack([GRADIENT] * 3, axis=2)
    elif mode == "P":  # a palette of which the indices alone would be a wrong picture
        image = rgb.quantize(64)
        expected = np.asarray(image.convert("RGB"))
    else:
        image = rgb.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
    found = only(tmp_path)
    assert found.shape == (1, *SHAPE)
    assert found.dtype == torch.float32
    assert np.abs(found[0].permute(1, 2, 0).numpy() * 255 - expected).max() <= 1


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_applied(tmp_path, orientation):
    turned = {3: 2, 6: 3, 8: 1}[orientation]  # quarter turns counterclockwise that the camera did
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = colours()
    Image.fromarray(np.rot90(upright, -turned)).save(tmp_path / "x.png", exif=exif)
    assert np.abs(only(tmp_path)[0].permute(1, 2, 0).numpy() * 255 - upright).max() <= 1


def test_the_short_side_is_fitted_and_the_centre_taken(tmp_path):
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = colours()
    Image.fromarray(wide).save(tmp_path / "x.png")
    assert np.abs(only(tmp_path)[0].permute(1, 2, 0).numpy() * 255 - colours()).max() <= 1


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n truncated"])
def test_a_damaged_file_is_named_or_skipped_and_counted(tmp_path, content):
    for i in (0, 2):
        Image.fromarray(colours()).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(fmprobe.InputError, match=r"1\.png cannot be read as an image"):
        only(tmp_path)
    with pytest.warns(UserWarning, match=r"1 damaged images of .* left out, such as .*1\.png"):
        assert len(only(tmp_path, skip_damaged=True)) == 2


def test_a_picture_cut_short_is_damaged(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(fmprobe.InputError, match=r"x\.jpg cannot be read"):
        only(tmp_path)


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    Image.fromarray(colours()).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(fmprobe.InputError, match=r"x\.png cannot be read"):
        only(tmp_path)


def test_a_damaged_cell_of_a_parquet_file_is_named_or_skipped(tmp_path):
    import io

    import datasets

    buffer = io.BytesIO()
    Image.fromarray(colours()).save(buffer, format="PNG")
    cells = [{"bytes": content, "path": None} for content in (buffer.getvalue(), b"broken", buffer.getvalue())]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    datasets.Dataset.from_dict({"image": cells}, features=features).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(fmprobe.InputError, match=r"x\.parquet:train\[1\] cannot be read"):
        only(tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match="1 damaged images"):
        assert len(only(tmp_path / "x.parquet", skip_damaged=True)) == 2


def test_streaming_gives_the_same_in_blocks(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8))
    blocks = list(stream_images(f"{tmp_path}/x.npz:a", image_shape=SHAPE, block=3))
    assert [len(block) for block in blocks] == [3, 3, 1]
    assert torch.equal(torch.cat(blocks), only(f"{tmp_path}/x.npz:a"))
    procedural = list(stream_images("procedural", 5, image_shape=SHAPE, block=2, seed=4))
    assert torch.equal(torch.cat(procedural), fmprobe.procedural_images(5, 8, seed=4))


@pytest.mark.parametrize(
    ("source", "n", "message"),
    [
        ("/no/such/place", None, "check the name"),
        ("{folder}", None, "holds no images"),
        ("{folder}/x.npz:b", None, "expected a key after a colon, of a"),
        ("{folder}/x.npz:a", 3, "holds 2 images, 3 were asked for"),
        ("{folder}/x.npz:a", 0, "cannot take 0 images"),
        ("{folder}/note.txt", None, "is no image source"),
        ("procedural", None, "say how many"),
        (":x", None, "is no image source"),
    ],
)
def test_sources_that_give_nothing(tmp_path, source, n, message):
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 8, 8, 3), dtype=np.uint8))
    (tmp_path / "note.txt").write_text("a note")
    with pytest.raises(fmprobe.InputError, match=message):
        fmprobe.load_images(source.format(folder=tmp_path), n, image_shape=SHAPE)


def test_of_an_npz_file_only_what_is_meant_is_read(tmp_path, monkeypatch):
    """Other arrays may be large."""
    path = tmp_path / "a.npz"
    np.savez(path, labels=np.arange(2), images=np.zeros((2, 4, 4), np.uint8), others=np.full((3, 4, 4), 255, np.uint8))
    asked, read = [], np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda file, key: asked.append(key) or read(file, key))
    assert fmprobe.load_images(str(path), image_shape=(1, 4, 4)).tolist() == np.zeros((2, 1, 4, 4)).tolist()
    assert fmprobe.load_images(f"{path}:others", image_shape=(1, 4, 4)).tolist() == np.ones((3, 1, 4, 4)).tolist()
    assert asked == ["labels", "images", "others"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="this system does not say how memory is used")
def test_a_parquet_file_is_never_in_memory_as_a_whole(tmp_path):
    def used(line):
        return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) / 1000

    rows, rng = 1000, np.random.default_rng(0)
    with pq.ParquetWriter(tmp_path / "x.parquet", pa.schema([("image", pa.binary())])) as writer:
        for _ in range(30):
            cells = [rng.bytes(5000) for _ in range(rows)]
            writer.write_table(pa.table({"image": pa.array(cells, pa.binary())}))
    Path("/proc/self/clear_refs").write_text("5")  # the largest use begins anew
    before = used("VmHWM")
    assert find_pictures(f"{tmp_path}/x.parquet#image").count == 30 * rows
    assert used("VmHWM") - before < 100  # the file has 150 MB


def test_the_images_of_a_source_are_listed_and_read_one_by_one(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8))
    found, whole = open_images(f"{tmp_path}/x.npz", image_shape=SHAPE), only(tmp_path / "x.npz")
    assert [name.rpartition(":")[2] for name, _ in found] == [f"a[{i}]" for i in range(len(found))]
    assert torch.equal(torch.stack([image() for _, image in found]), whole)
    assert torch.equal(torch.stack([image() for _, image in found[2:6:3]]), whole[2:6:3])
    assert torch.equal(found[-1][1](), whole[-1])
    with pytest.raises(IndexError):
        found[7]


def test_a_pattern_reads_a_picture_once_and_warns_of_what_is_none(tmp_path):
    """As folders are read: links are followed, and a circle of them ends."""
    for name in ("a.png", "b.png"):
        Image.fromarray(colours()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match="1 file is no image and was left out, such as .*notes.txt"):
        assert len(only(tmp_path / "*")) == 2
    assert len(only(tmp_path / "**" / "*.png")) == 2
