"""The main job on real weights."""

import json
from typing import Any

import _taef2 as taef2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def autoencoder(assets):
    return taef2.load(assets / "models" / "taef2")


def test_taef2_reconstructs_a_photo(autoencoder, assets):
    photos = fmprobe.load_images(f"{assets / 'data' / 'photos'}:test", 4, image_shape=(3, 64, 64))
    with torch.no_grad():
        error = (autoencoder.decode(autoencoder.encode(photos)) - photos).abs().mean()
    assert error < 0.05


def test_orbits_of_taef2_are_bounded_but_none_is_called_an_attractor(autoencoder):
    found = fmprobe.find_attractors(autoencoder, 2, tol=1e-5, max_steps=40)
    counts = found.orbits.counts()
    assert counts["wandering"] + counts["slow"] == 2
    assert found.count == len(found) == 0
    assert (found.labels == -1).all()
    assert found.orbits.ends.isfinite().all()


def test_probe_of_a_real_dinov2_with_a_surrogate(assets, tmp_path):
    """A surrogate of a fifth of the default's steps on half its side, to keep the test short: it learns, and is counted
    honestly.
    """
    name, out = str(assets / "models" / "dinov2-small"), tmp_path / "run"
    assert fmprobe.load(name, image_size="fit").image_shape == (3, 112, 112)
    model = fmprobe.load(name, image_size=56)
    decoder = fmprobe.fit_decoder(model, n_images=224, steps=160, progress=False)
    leaves = decoder.info["validation"]["leaves"]
    assert leaves["l1"] < 0.95 * leaves["l1_median"]
    decoder.save(tmp_path / "decoder")
    arguments = ["probe", name, "--out", str(out), "--decoder", str(tmp_path / "decoder"), "-n", "2"]
    arguments += ["--max-steps", "12"]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    results = json.loads((out / "results.json").read_text())
    assert results["model"]["image_shape"] == [3, 56, 56]
    assert results["decoder"]["kind"] == "surrogate"
    status = results["orbits"]["noise"]["status"]
    assert sum(status.values()) == 2
    assert sum(results["attractors"]["sizes"]) + results["attractors"]["unresolved"] <= status["converged"]


def test_a_photo_reaches_a_real_dinov2_as_its_own_processor_hands_it_over(assets):
    from transformers import AutoImageProcessor, Dinov2Model

    folder, source = assets / "models" / "dinov2-small", f"{assets / 'data' / 'photos'}:test"
    model = fmprobe.load(folder)
    import datasets

    photo = datasets.load_dataset(str(assets / "data" / "photos"))["test"][0]["image"].convert("RGB")
    assert photo.width != photo.height
    processor = AutoImageProcessor.from_pretrained(folder)
    raw = processor(photo, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(model.transform(photo), raw)  # f normalises after this
    pixels = processor(photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        library = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
        expected = library(pixels).last_hidden_state[:, 1:]
        found = model.encode(model.load_images(source, 1))
    # The processor rescales and normalises in one operation: the last bit of a pixel differs, and twelve layers pass
    # it on. Tokens reach 11 here.
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["dinov2-small", "efficientnet-lite1"])
def test_a_real_photo_is_the_same_by_every_way_in(name, assets):
    import datasets

    model = fmprobe.load(assets / "models" / name)
    photos = datasets.load_dataset(str(assets / "data" / "photos"))["test"].select([0, 7])
    rows: Any = photos
    pictures = [row["image"] for row in rows]
    expected = torch.stack([model.transform(picture) for picture in pictures])
    arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
    for images in (pictures, arrays, photos, iter(pictures)):
        assert torch.equal(model.take_images(images), expected)
    batch = model.load_images(f"{assets / 'data' / 'photos'}:test", 200)
    assert torch.equal(batch[[0, 7]], expected)
