"""Folders of images: splits, links, damaged metadata, and files that a folder holds beside its images."""

import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

import fmprobe
from fmprobe.errors import InputError
from fmprobe.images import SUFFIXES

SHAPE = (3, 8, 8)


def paint(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def levels(source, **more):
    """The grey level of each image of a source, 0 to 255."""
    images = fmprobe.load_images(str(source), image_shape=SHAPE, **more)
    return (images.flatten(1).mean(1) * 255).round().int().tolist()


@pytest.mark.parametrize("level", ["", "data"])
@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("test", "test"),
        ("val", "val"),
        ("val", "validation"),
        ("validation", "val"),
        ("other", "other"),
    ],
)
def test_a_split_is_the_subfolder_of_its_name(tmp_path, level, folder, split):
    paint(tmp_path / level / folder / "class" / "a.png", 10)
    paint(tmp_path / level / "rest" / "a.png", 200)
    assert levels(f"{tmp_path}:{split}") == [10]


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    paint(tmp_path / "train" / "a.png", 10)
    paint(tmp_path / "test" / "a.png", 20)
    with pytest.raises(InputError, match="no split 'nonsense': expected one of test, train"):
        levels(f"{tmp_path}:nonsense")


def test_a_column_of_a_folder_is_refused(tmp_path):
    paint(tmp_path / "a.png", 10)
    with pytest.raises(InputError, match="no column 'label'"):
        levels(f"{tmp_path}#label")


def test_linked_class_folders_are_read_and_a_loop_of_links_ends(tmp_path):
    paint(tmp_path / "elsewhere" / "b.png", 20)
    paint(tmp_path / "set" / "real" / "a.png", 10)
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "real" / "loop").symlink_to(tmp_path / "set")
    assert sorted(levels(tmp_path / "set")) == [10, 20]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read(tmp_path, suffix):
    Image.new("RGB", (8, 8), (50, 50, 50)).save(tmp_path / f"x{suffix}", format=None if suffix != ".jpe" else "JPEG")
    assert abs(levels(tmp_path)[0] - 50) <= 2


def test_what_macos_leaves_beside_a_picture_is_no_picture(tmp_path):
    paint(tmp_path / "a.png", 10)
    (tmp_path / "._a.png").write_bytes(b"\0\5\26\7")
    assert levels(tmp_path) == [10]


def test_floats_are_scaled_by_one_and_refused_outside(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    found = fmprobe.load_images(str(tmp_path), image_shape=(1, 8, 8))
    assert torch.allclose(found[0, 0], torch.from_numpy(ramp), atol=0.5 / 255 + 1e-6)
    for wrong in (ramp * 255, ramp * 2 - 1, np.full((8, 8), np.nan, dtype=np.float32)):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "x.tif")
        with pytest.raises(InputError, match="expected 0 to 1"):
            levels(tmp_path)


def test_damaged_metadata_leave_the_pixels(tmp_path):
    rational = struct.pack("<ii", -1, 0)
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x011A, 5, 1, 38)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0) + rational
    Image.new("RGB", (8, 8), (50, 50, 50)).save(tmp_path / "x.jpg", exif=exif)
    assert abs(levels(tmp_path)[0] - 50) <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".tif", ".bmp", ".webp"])
def test_damaged_files_are_read_or_named_whatever_the_damage(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path = tmp_path / f"x{suffix}"
    noise = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for _ in range(60):
        spoiled = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(spoiled), 4):
            spoiled[place] = rng.integers(256)
        path.write_bytes(bytes(spoiled))
        try:
            said = str(levels(tmp_path)) and ""
        except InputError as error:
            said = str(error)
        assert said == "" or os.fspath(path) in said
