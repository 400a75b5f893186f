"""Residual curves, held to maps whose steps are known."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from support.maps import draws
from support.probes import DEMO, ran
from support.runs import command

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.curves import ResidualCurves, norms_along
from fmprobe.dynamics.iterate import iterate

RATE, SHAPE = 0.8, (1, 2, 3)


@pytest.fixture
def model():
    """f(z) = 0.8 z, and D(z) = 3 z."""
    return fmprobe.from_functions(
        lambda x: RATE / 3 * x.flatten(1), lambda z: 3 * z.reshape(-1, *SHAPE), image_shape=SHAPE, latent_shape=(6,)
    )


def test_every_norm_of_a_linear_map_is_exact(model):
    found = fmprobe.probe_residuals(model, n=9, steps=12, batch_size=4)
    start = model.sample_latents(9).norm(dim=1)
    powers = RATE ** torch.arange(1, 13)
    torch.testing.assert_close(found.norm, start[:, None] * powers)
    torch.testing.assert_close(found.latent, start[:, None] * powers * (1 / RATE - 1))
    torch.testing.assert_close(found.output, 3 * found.latent)
    torch.testing.assert_close(found.start_norm, start)
    row = found.to_dict()
    assert row["steps"] == list(range(1, 13))
    np.testing.assert_allclose(row["latent"]["q90"], np.quantile(found.latent.numpy(), 0.9, axis=0), rtol=1e-5)


def test_latent_residuals_are_those_that_the_engine_sees(model):
    curves = ResidualCurves(5, 20)
    iterate(model.latent_map, model.sample_latents(5), tol=1e-12, max_steps=20, observer=curves, progress=False)
    found = fmprobe.probe_residuals(model, n=5, steps=20)
    torch.testing.assert_close(found.latent[:, curves.steps - 1], curves.norms)


def test_images_are_encoded_to_starts_and_batches_do_not_matter(model):
    images = draws(7, 6).reshape(7, *SHAPE)
    one, other = (fmprobe.probe_residuals(model, images, steps=5, batch_size=size) for size in (3, 32))
    torch.testing.assert_close(one.start_norm, RATE / 3 * images.flatten(1).norm(dim=1))
    torch.testing.assert_close(one.latent, other.latent)
    assert one.starts == "images, encoded"


def test_an_orbit_that_leaves_is_left_out_and_counted():
    growing = fmprobe.from_functions(
        lambda x: x.flatten(1) * torch.tensor([1e15]),
        lambda z: z.reshape(-1, *SHAPE),
        image_shape=SHAPE,
        latent_shape=(6,),
    )
    found = fmprobe.probe_residuals(growing, n=2, steps=3).to_dict()
    assert found["finite"] == [2, 2, 0]  # 1e45 is no number of float32
    assert found["latent"]["q50"][-1] is None
    json.dumps(found, allow_nan=False)


def test_a_language_model_has_no_output_residual(tiny):
    found = fmprobe.probe_residuals(fmprobe.load(str(tiny("qwen3")), device="cpu"), n=2, steps=3)
    assert found.output is None
    assert found.latent.shape == (2, 3)
    assert len(found.plot().axes) == 2


def test_a_map_of_its_own_is_followed_and_shown_by_its_decoder():
    own = Autoencoder(
        lambda x: x.flatten(1),
        lambda z: 2 * z.reshape(-1, *SHAPE),
        image_shape=SHAPE,
        latent_shape=(6,),
        provenance={"model": "own map"},
        latent_map=lambda z: 0.5 * z,
    )
    found = fmprobe.probe_residuals(own, n=3, steps=2)
    torch.testing.assert_close(found.latent, own.sample_latents(3).norm(dim=1)[:, None] * torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(found.output, 2 * found.latent)
    assert len(found.plot().axes) == 3


def test_numbers_that_make_no_sense_are_refused(model):
    bad: list[Any] = [{"n": 0}, {"steps": 0}, {"batch_size": 0}]
    for settings in bad:
        with pytest.raises(fmprobe.InputError, match="residual curves need"):
            fmprobe.probe_residuals(model, **settings)


@pytest.mark.usefixtures("draws")
def test_the_command_leaves_what_the_function_finds(tmp_path, capsys):
    results = ran(capsys, tmp_path / "run", "residuals", "residual_curves", "--starts", 5, "--steps", 12)
    found = fmprobe.probe_residuals(fmprobe.load(str(DEMO), device="cpu"), n=5, steps=12).to_dict()
    assert results["residual_curves"] == json.loads(json.dumps(found))
    assert results["protocol"]["starts"] == "N(0, I)"
    assert (tmp_path / "run" / "residual_curves.png").stat().st_size > 1000


def test_the_command_starts_from_the_images_of_a_source_as_they_are_now(tmp_path, capsys):
    path, options = tmp_path / "images.npz", ["--images", 3, "--steps", 4]
    sets = [np.random.default_rng(seed).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8) for seed in (0, 1)]
    model, found = fmprobe.load(str(DEMO), device="cpu"), []
    for pixels in sets:
        np.savez(path, images=pixels)
        results = ran(capsys, tmp_path / "run", "residuals", "residual_curves", "--data", path, *options)
        images = model.load_images(str(path), 3)
        found.append(fmprobe.probe_residuals(model, images, steps=4).to_dict())
        assert results["residual_curves"] == json.loads(json.dumps(found[-1]))
    assert found[0] != found[1]


def test_options_that_contradict_each_other_are_refused(tmp_path, capsys):
    for options in (["--images", 3], ["--data", "procedural", "--starts", 3]):
        assert command("residuals", "nowhere", *options, "-o", tmp_path / "run") == 2
        assert options[-2] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("factor", [1e20, 1e-25])
def test_norms_whose_squares_leave_float32_are_known(factor):
    shape = (2, 1, 1)
    model = fmprobe.from_functions(lambda x: factor * x, lambda z: z, image_shape=shape, latent_shape=shape)
    rows = norms_along(model.latent_map, torch.ones(1, *shape), 1)
    assert float(rows["norm"][0, -1]) == pytest.approx(factor * 2**0.5, rel=1e-5)
