"""Linear decoders: the solution of a ridge regression, and a kind like the others."""

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F
from typer.testing import CliRunner

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.cli import app
from fmprobe.errors import InputError
from fmprobe.procedural import procedural_images
from fmprobe.surrogates.artefact import load_surrogate
from fmprobe.surrogates.data import HELD_OUT, HELD_OUT_FIRST, procedural
from fmprobe.surrogates.features import encode_native
from fmprobe.surrogates.fit import FitSettings, fit_decoder, fit_with
from fmprobe.surrogates.linear import FINEST, MOST_INPUTS, RIDGES, LinearDecoder, LinearSettings


def fit(model, images=None, **settings) -> Any:
    return fit_decoder(model, images, "linear", progress=False, **{"n_images": 64, **settings})


def surroundings(maps):
    """Of each place of maps `(n, D, h, w)`: itself, its neighbours with the border repeated, and the mean."""
    n, d, h, w = maps.shape
    rows = np.empty((n, h, w, 6 * d))
    for i in range(h):
        for j in range(w):
            up, down, left, right = max(i - 1, 0), min(i + 1, h - 1), max(j - 1, 0), min(j + 1, w - 1)
            places = [(i, j), (up, j), (down, j), (i, left), (i, right)]
            rows[:, i, j] = np.concatenate([*(maps[:, :, a, b] for a, b in places), maps.mean((2, 3))], 1)
    return rows.reshape(n * h * w, -1)


def test_the_weights_are_those_of_ridge_regression_on_the_surroundings_of_each_place(encoder):
    images = procedural_images(50, 16, seed=9)
    decoder = fit(encoder, images, ridge=0.3)
    trained = torch.cat([images[i : i + 9] for i in range(0, 50, 10)])  # every tenth is held out
    trained = (trained * 255).round() / 255
    latents = ((encoder.encode(trained) - decoder.latent_mean) / decoder.latent_std).double()
    inputs = surroundings(latents.transpose(1, 2).unflatten(2, (4, 4)).numpy())
    patches = F.unfold(trained, 4, stride=4).transpose(1, 2).flatten(0, 1).double().numpy()
    expected = Ridge(alpha=0.3 * len(inputs)).fit(inputs, patches)
    # Latents are stored in half precision.
    np.testing.assert_allclose(decoder.weight.T.numpy(), expected.coef_, atol=5e-4)
    np.testing.assert_allclose(decoder.bias.numpy(), expected.intercept_, atol=5e-4)


def test_the_ridge_is_the_one_that_paints_held_out_images_best(encoder):
    chosen = fit(encoder, n_images=40)
    errors = {ridge: fit(encoder, n_images=40, ridge=ridge) for ridge in RIDGES}
    held_out = procedural(encoder, HELD_OUT, HELD_OUT_FIRST, "all", 0)
    painted = {ridge: one.paint(encode_native(encoder, held_out)) for ridge, one in errors.items()}
    squared = {ridge: float((images - held_out / 255).square().mean()) for ridge, images in painted.items()}
    assert chosen.info["log"] == [{"ridge": min(squared, key=lambda ridge: squared[ridge])}]
    assert len({round(error, 6) for error in squared.values()}) > 1


@pytest.mark.parametrize("latent_shape", [(48,), (3, 4, 4), (17, 3)])
def test_vectors_maps_and_tokens_with_a_prefix_are_inverted_where_the_encoder_is_linear(latent_shape):
    """The encoder gives the mean colours of 4 x 4 patches, which a linear decoder paints again."""

    def encode(images):
        small = F.avg_pool2d(images, 4)
        if len(latent_shape) == 2:
            return F.pad(small.flatten(2).transpose(1, 2), (0, 0, 1, 0), value=1.0)
        return small.reshape(len(images), *latent_shape)

    model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=latent_shape, provenance={"model": "means"})
    decoder = fit(model, n_images=200, ridge=1e-4)
    whole = model.with_decoder(decoder)
    images = procedural_images(20, 16, seed=3)
    painted = whole.decode(whole.encode(images))
    assert (F.avg_pool2d(painted, 4) - F.avg_pool2d(images, 4)).abs().mean() < 0.02
    error = decoder.info["validation"]["held_out"]
    assert error["l1"] < 0.9 * error["l1_median"]
    assert error["feature_error"] < 0.1


def test_a_large_part_of_an_image_is_interpolated():
    decoder = LinearDecoder((5,), (3, 40, 40))
    assert decoder.weight.shape == (5, 3 * FINEST**2)
    many = MOST_INPUTS // 6 + 1  # channels, with which neighbours are left out
    assert LinearDecoder((many - 1, 2, 2), (3, 8, 8)).weight.shape[0] == 6 * (many - 1)
    assert LinearDecoder((many, 2, 2), (3, 8, 8)).weight.shape[0] == 2 * many
    assert LinearDecoder((5, many), (3, 8, 8)).weight.shape[0] == 3 * many
    assert LinearDecoder((2, 4), (3, 8, 8))(torch.randn(2, 2, 4)).shape == (2, 3, 8, 8)
    assert decoder(torch.randn(2, 5)).shape == (2, 3, 40, 40)
    assert LinearDecoder((5, 3, 2), (3, 8, 8))(torch.randn(2, 5, 3, 2)).shape == (2, 3, 8, 8)


def test_it_is_decided_by_its_seed_and_leaves_the_random_state(encoder, tmp_path):
    before = torch.get_rng_state()
    first, again, other = fit(encoder, seed=1), fit(encoder, seed=1), fit(encoder, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    first.save(tmp_path / "d")
    loaded = load_surrogate(tmp_path / "d", encoder)
    z = encoder.sample_latents(2)
    assert torch.equal(first(z), loaded(z))
    assert (loaded.info, loaded.fingerprint) == (first.info, first.fingerprint)
    assert fit(encoder, draws=2, pixel_noise=0.2).fingerprint != fit(encoder, pixel_noise=0.2).fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridge": 0.0}, "ridge must be above 0"),
        ({"ridge": "strong"}, "ridge must be above 0"),
        ({"steps": 10}, "unknown setting 'steps' of a linear surrogate"),
        ({"trackers": "tensorboard"}, "leave trackers out"),
    ],
)
def test_settings_are_checked_and_those_of_other_kinds_are_refused(encoder, settings, message):
    with pytest.raises(InputError, match=message):
        fit(encoder, **settings)


OTHER = {"n_images": 40, "pixel_noise": 0.3, "draws": 3, "mixture": "leaves", "seed": 5, "ridge": 1.0}


@pytest.mark.parametrize("name", [field.name for field in fields(LinearSettings) if field.name != "kind"])
def test_another_value_of_every_setting_changes_the_result(encoder, name):
    base = {"pixel_noise": 0.1, "draws": 2}
    assert not torch.equal(fit(encoder, **base).weight, fit(encoder, **{**base, name: OTHER[name]}).weight)


def test_its_settings_are_a_class_of_their_own(encoder):
    made = FitSettings.for_device(torch.device("cpu"), "linear")
    assert made.pixel_noise == 0
    assert fit_with(encoder, made, procedural_images(30, 16), progress=False).info["settings"]["ridge"] is None
    with pytest.raises(InputError, match=r"FitSettings\.for_device\(device, 'linear'\)"):
        FitSettings(kind="linear")


@pytest.mark.parametrize(
    ("latents", "image", "message"),
    [
        ((16, 4), (3, 8, 16), "square images"),
        ((9, 4), (3, 8, 8), "does not divide"),
        ((2, 2, 2, 2), (3, 8, 8), "takes"),
    ],
)
def test_shapes_that_do_not_go_together_are_named(latents, image, message):
    with pytest.raises(InputError, match=message):
        LinearDecoder(latents, image)


def test_it_goes_from_the_command_line_into_load_and_onto_the_page(tiny_dinov2, tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments)])
        return done.exit_code, f"{done.output}{done.exception}"

    fitted = "fit-decoder", tiny_dinov2, "--kind", "linear", "--images", 32, "--image-size", 42
    code, output = run(*fitted, "-o", tmp_path / "d")
    assert code == 0, output
    assert "median colour" in output
    model = fmprobe.load(tiny_dinov2, decoder=tmp_path / "d")
    assert model.image_shape == (3, 42, 42)
    assert model.latent_map(model.sample_latents(2)).isfinite().all()
    code, output = run(
        "probe", tiny_dinov2, "--decoder", tmp_path / "d", "-n", 2, "--max-steps", 3, "-o", tmp_path / "r"
    )
    assert code == 0, output
    named = model.provenance["decoder"]["architecture"]
    assert named.startswith("linear map at 6 x 6 places")
    assert json.loads((tmp_path / "r" / "results.json").read_text())["decoder"]["architecture"] == named
    assert named in (tmp_path / "r" / "report.html").read_text()
    for option in ("--steps", "--bottleneck", "--trackers"):
        code, output = run(*fitted, option, 2, "-o", tmp_path / "other")
        assert code != 0
        assert f"{option} is not an option of a linear surrogate" in output
