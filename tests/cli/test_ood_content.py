"""Kept results of fmprobe ood and fmprobe score go by everything that decides them: what changed is computed again."""

import csv
import json
import shutil
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from support.maps import double_well
from support.runs import command

import fmprobe
from fmprobe.surrogates.pixel import PixelDecoder

SHAPE = (1, 4, 4)


class Model:
    """The double well behind pictures of 4 x 4 pixels."""

    def __init__(self, scale=1.0, fingerprint="one"):
        self.scale = scale
        made = fmprobe.from_functions(self.encode, self.decode, image_shape=SHAPE, latent_shape=(16,), name="wells")
        made.provenance |= {"fingerprint": fingerprint, "revision": None}
        self.made = made

    def encode(self, images):
        return self.scale * double_well(2 * images.flatten(1) - 1)

    def decode(self, latents):
        return (latents.reshape(-1, *SHAPE) / self.scale + 1) / 2


@contextmanager
def loaded(model):
    """The command line finds this model, for detectors as well; gives how many images were examined, call by call."""
    load, examine, counts = fmprobe.TrajectoryDetector.load, fmprobe.TrajectoryDetector.examine, []

    def counted(detector, images, *names):
        counts.append(len(images))
        return examine(detector, images, *names)

    with ExitStack() as stack:
        stack.enter_context(mock.patch("fmprobe.runs.models.load_model", side_effect=lambda *_, **__: model.made))
        stack.enter_context(
            mock.patch("fmprobe.probes.score.load_detector", side_effect=lambda folder, *_: load(folder, model.made))
        )
        stack.enter_context(mock.patch.object(fmprobe.TrajectoryDetector, "examine", counted))
        yield counts


def paint(path, seed, low=0, high=256):
    pixels = np.random.default_rng(seed).integers(low, high, SHAPE[1:], dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, detector):
    """70 dark pictures in `in`, 12 of all brightness in `out`, 9 in `new`, and runs on them, finished and cut.

    The place of the pictures, and a copy of all that is there.
    """
    place, kept = (tmp_path_factory.mktemp(name) / "p" for name in ("pictures", "kept"))
    for name, count, high in (("in", 70, 100), ("out", 12, 256), ("new", 9, 256)):
        (place / name).mkdir(parents=True)
        for i in range(count):
            paint(place / name / f"{i:02}.png", seed=[len(name), i], high=high)
    _, rows, count = score(detector, place, place / "scores")
    assert count == len(rows) == 9
    shutil.copytree(place / "scores", place / "cut scores")
    (place / "cut scores" / "results.json").unlink()  # as a kill leaves it
    assert compare(place, place / "run")[0] == 0
    with mock.patch("fmprobe.probes.ood.probe.compare_scores", side_effect=fmprobe.InputError("cut")):
        assert compare(place, place / "cut run")[0] == 2
    assert list((place / "cut run" / "scored").iterdir())  # everything is scored, and the table is not made
    shutil.copytree(place, kept)
    return place, kept


@pytest.fixture
def pictures(prepared):
    """The place of the pictures and of the runs, in which a test may change everything."""
    place, kept = prepared
    shutil.rmtree(place)
    shutil.copytree(kept, place)
    return place


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector") / "d"
    images = 0.4 * torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(0))
    fmprobe.TrajectoryDetector(Model().made, steps=5).fit(images[:20], images[20:]).save(folder)
    return folder


def score(detector, pictures, out, *options):
    """The exit code, the rows by file, and how many images were examined to get them."""
    with loaded(Model()) as counts:
        code = command("score", detector, "--data", pictures / "new", "-o", out, *options)
    rows = list(csv.DictReader((out / "scores.csv").open(encoding="utf-8")))
    return code, {row["file"]: row for row in rows}, sum(counts)


def same_rows(one, other):
    assert one.keys() == other.keys()
    for name, row in one.items():
        for key, value in row.items():
            if key in ("score", "trajectory", "first") and value:
                assert float(value) == pytest.approx(float(other[name][key]), rel=1e-4)
            else:
                assert value == other[name][key]
    return True


def replaced(folder):
    paint(folder / "03.png", seed=99)


def one_pixel(folder):
    pixels = np.array(Image.open(folder / "03.png"))
    pixels[1, 2] ^= 1
    Image.fromarray(pixels).save(folder / "03.png")


def swapped(folder):
    (folder / "03.png").rename(folder / "x")
    (folder / "04.png").rename(folder / "03.png")
    (folder / "x").rename(folder / "04.png")


def saved_otherwise(folder):
    Image.open(folder / "03.png").save(folder / "03.tif")
    (folder / "03.png").unlink()


CHANGES = {  # and how many pictures have pixels that were not scored before
    "nothing": (lambda folder: None, 0),
    "replaced under its name": (replaced, 1),
    "one value by one": (one_pixel, 1),
    "two swapped": (swapped, 0),
    "one deleted": (lambda folder: (folder / "03.png").unlink(), 0),
    "one added": (lambda folder: paint(folder / "00a.png", seed=98), 1),
    "one renamed": (lambda folder: (folder / "03.png").rename(folder / "zz.png"), 0),
    "the same pixels in another format": (saved_otherwise, 0),
    "one damaged": (lambda folder: (folder / "03.png").write_bytes(b"no image"), 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_of_the_files_the_rows_are_those_of_a_fresh_run(detector, pictures, change):
    edit, count = CHANGES[change]
    edit(pictures / "new")
    _, expected, _ = score(detector, pictures, pictures / "fresh")
    for name in ("scores", "cut scores"):
        code, rows, examined = score(detector, pictures, pictures / name)
        assert (code, examined) == (0, count), name
        assert same_rows(rows, expected)
        found, fresh = (json.loads((pictures / one / "results.json").read_text()) for one in (name, "fresh"))
        assert found["ood_scores"] == fresh["ood_scores"]


def test_what_decides_a_table_beside_the_pixels_names_another_run(detector, pictures, tmp_path, capsys):
    out = pictures / "scores"
    before = (out / "scores.csv").read_bytes()
    for options in (["--rule", "first"], ["--acceptance", "0.5"]):
        assert score(detector, pictures, out, *options)[0] == 2
        assert "holds another run" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(detector, other)
    facts = json.loads((other / "detector.json").read_text())
    (other / "detector.json").write_text(json.dumps(facts | {"settings": facts["settings"] | {"steps": 6}}))
    assert score(other, pictures, out)[0] == 2
    assert "detector" in capsys.readouterr().err
    assert (out / "scores.csv").read_bytes() == before
    with loaded(Model()):  # one folder, written in two ways
        assert command("score", detector, "--data", f"{pictures}/./new/", "-o", out) == 0


def test_a_table_of_another_layout_is_refused_in_one_line(detector, pictures, capsys):
    out = pictures / "scores"
    text = (out / "scores.csv").read_text().splitlines()
    (out / "scores.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in text) + "\n")
    assert score(detector, pictures, out)[0] == 2
    assert "has other columns" in capsys.readouterr().err


def compare(pictures, out, *options, model=None):
    arguments = ["--data", pictures / "in", "--ood", f"out={pictures / 'out'}", "--max-steps", 30, "--steps", 4]
    with loaded(model or Model()) as counts:
        code = command("ood", "m", *arguments, "-o", out, *options)
    return code, sum(counts)


def found(out) -> dict[str, Any]:
    results = json.loads((out / "results.json").read_text())["ood"]
    return {key: results[key] for key in ("scores", "sets", "split", "detector", "pixels")}


INGREDIENTS = {
    "an in-distribution picture": (lambda folder: paint(folder / "in" / "03.png", seed=99, high=100), []),
    "a picture from elsewhere": (lambda folder: paint(folder / "out" / "03.png", seed=99), []),
    "a picture fewer": (lambda folder: (folder / "in" / "03.png").unlink(), []),
    "a picture more": (lambda folder: paint(folder / "out" / "03a.png", seed=99), []),
    "the seed": (lambda folder: None, ["--seed", "1"]),
    "the steps": (lambda folder: None, ["--steps", "5"]),
    "the step limit": (lambda folder: None, ["--max-steps", "31"]),
    "the tolerance": (lambda folder: None, ["--tol", "0"]),
    "the distance": (lambda folder: None, ["--distance", "cosine"]),
    "the merge": (lambda folder: None, ["--merge-threshold", "0"]),
    "the controls": (lambda folder: None, ["--no-controls"]),
    "the acceptance": (lambda folder: None, ["--acceptance", "0.5"]),
}


@pytest.mark.parametrize("ingredient", INGREDIENTS)
@pytest.mark.filterwarnings("ignore")
def test_a_change_of_any_ingredient_of_a_comparison_is_computed_or_refused(pictures, ingredient, capsys):
    edit, options = INGREDIENTS[ingredient]
    edit(pictures)
    if not options:
        assert compare(pictures, pictures / "fresh")[0] == 0
    capsys.readouterr()
    for name in ("run", "cut run"):
        code, _ = compare(pictures, pictures / name, *options)
        if options:
            assert code == 2
            assert "holds another run" in capsys.readouterr().err
            assert (pictures / name / "results.json").exists() == (name == "run")
        else:
            assert code == 0
            assert found(pictures / name) == found(pictures / "fresh")


def test_an_unchanged_comparison_computes_nothing_again(pictures):
    out = pictures / "cut run"
    with mock.patch.object(fmprobe.TrajectoryDetector, "fit", side_effect=AssertionError("fitted again")):
        assert compare(pictures, out) == (0, 0)  # goes on from what is kept
        results = (out / "results.json").read_bytes()
        assert compare(pictures, out) == (0, 0)
    assert (out / "results.json").read_bytes() == results


def test_another_model_under_the_name_is_another_run(pictures, capsys):
    assert compare(pictures, pictures / "run", model=Model(2.0, "two"))[0] == 2
    assert "fingerprint" in capsys.readouterr().err


def test_another_decoder_under_the_name_is_another_run(pictures, tmp_path, capsys):
    """Two decoders of one training log: a folder whose weights were replaced."""
    models = [Model(), Model()]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        model.made.surrogate = PixelDecoder((16,), SHAPE, size="tiny", info={"seconds": 1})
    out = tmp_path / "run"
    assert compare(pictures, out, model=models[0])[0] == 0
    assert compare(pictures, out, model=models[1])[0] == 2
    assert "decoder_fingerprint" in capsys.readouterr().err


def test_the_search_goes_on_beyond_the_steps_that_are_scored(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    with loaded(Model()):
        arguments = ["--data", pictures / "in", "--ood", f"out={pictures / 'out'}", "--steps", 2, "-o", out]
        assert command("ood", "m", *arguments) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["ood"]["detector"]["reference"]["kind"] == "attractors"
    assert results["protocol"]["steps"] == 2
    assert results["protocol"]["max_steps"] > 20
    assert f"at most {results['protocol']['max_steps']} steps" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "largest number of steps" in page
