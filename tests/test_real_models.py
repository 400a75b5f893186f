"""The main job on real weights."""

import json

import pytest
import torch
from support import taef2
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
    found = fmprobe.find_attractors(autoencoder, 16, tol=1e-5, max_steps=100)
    counts = found.orbits.counts()
    assert counts["wandering"] + counts["slow"] == 16
    assert found.count == len(found) == 0
    assert (found.labels == -1).all()
    assert found.orbits.ends.isfinite().all()


def test_probe_of_a_real_dinov2_finds_converged_attractors(assets, tmp_path):
    model, out = str(assets / "models" / "dinov2-small"), str(tmp_path / "run")
    # Half of the starts converge within 300 steps; ten show it, and keep the test short.
    arguments = ["probe", model, "--out", out, "-n", "10", "--max-steps", "250"]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["model"]["image_shape"] == [3, 112, 112]
    assert "112 px instead of 224" in outcome.output
    assert results["decoder"]["kind"] == "surrogate"
    assert results["orbits"]["noise"]["status"]["converged"] >= 1
    assert results["attractors"]["count"] >= 1
    leaves = results["decoder"]["validation"]["leaves"]
    assert leaves["l1"] < 0.85 * leaves["l1_median"]
