"""Closed-form surrogates: principal components and ridge regression, and a kind like the others."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.procedural import procedural_images
from fmprobe.surrogates import closed
from fmprobe.surrogates.artefact import load_surrogate
from fmprobe.surrogates.closed import ClosedFormSettings
from fmprobe.surrogates.fit import fit_decoder


def fit(model, images=None, **settings) -> Any:
    return fit_decoder(model, images, "closed-form", progress=False, **{"n_images": 64, "k": 6, **settings})


def reference(encoder, decoder, images):
    """Images as a fit reads them, and the exact standardised features of them."""
    trained = torch.cat([images[i : i + 9] for i in range(0, len(images), 10)])  # every tenth is held out
    trained = (trained * 255).round() / 255
    features = ((encoder.encode(trained) - decoder.latent_mean) / decoder.latent_std).flatten(1).double().numpy()
    return trained.flatten(1).double().numpy(), features


def test_codes_are_whitened_principal_components_and_the_map_is_ridge_regression_on_them(encoder):
    images = procedural_images(50, 16, seed=9)
    decoder = fit(encoder, images, ridge=0.5)
    pixels, features = reference(encoder, decoder, images)
    exact: Any = PCA(6, whiten=True, svd_solver="full").fit(features)
    ours = np.asarray(decoder.read(encoder.encode(torch.tensor(pixels).float().reshape(-1, 3, 16, 16))).double())
    theirs = exact.transform(features) * (len(features) / (len(features) - 1)) ** 0.5
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours, signs * theirs, atol=0.02)  # latents are stored in half precision
    np.testing.assert_allclose(np.cov(ours.T, bias=True), np.eye(6), atol=0.01)
    components = (features - features.mean(0)) @ exact.components_.T
    alpha = 0.5 * features.var(0).sum()  # the ridge, in units of the total variance over n, times n
    regression = Ridge(alpha=alpha).fit(components, pixels)
    painted = decoder(torch.tensor(signs * theirs).float()).flatten(1).numpy()
    np.testing.assert_allclose(painted, regression.predict(components), atol=5e-3)


def test_one_pass_serves_every_k(encoder):
    """The first components, and what they paint, do not depend on how many follow."""
    few, many = fit(encoder, k=3, ridge=0.1), fit(encoder, k=20, ridge=0.1)
    signs = torch.sign((few.project * many.project[:, :3]).sum(0))
    assert torch.allclose(few.project * signs, many.project[:, :3], atol=1e-5)
    assert torch.allclose(few.weight * signs[:, None], many.weight[:3], atol=1e-5)


def test_more_images_than_a_block_holds_give_nearly_the_same(encoder, monkeypatch):
    exact = fit(encoder, n_images=300, k=8)
    monkeypatch.setattr(closed, "BLOCK", 60)
    blocks = fit(encoder, n_images=300, k=8)
    images = procedural_images(40, 16, seed=5)
    one, other = (encoder.with_decoder(d) for d in (exact, blocks))
    a, b = one.decode(one.encode(images)), other.decode(other.encode(images))
    assert (a - b).abs().mean() < 0.1 * (a - images).abs().mean()


def test_more_components_paint_better_and_f_maps_codes_to_codes(encoder):
    errors = [fit(encoder, n_images=200, k=k).info["validation"]["held_out"]["l1"] for k in (1, 8, 64)]
    assert errors[0] > errors[1] > errors[2]
    model = encoder.with_decoder(fit(encoder, k=5))
    assert model.latent_shape == (5,)
    z = model.sample_latents(3)
    assert torch.allclose(model.latent_map(z), model.encode_unchecked(model.decode(z)))
    assert model.provenance["data_free"] is True
    assert model.provenance["decoder"]["k"] == 5


def test_without_k_every_place_is_painted_by_ridge_regression(encoder, tmp_path):
    whole: Any = fit(encoder, k=None)
    linear: Any = fit_decoder(encoder, None, "linear", progress=False, n_images=64)
    assert torch.equal(whole.weight, linear.weight)
    whole.save(tmp_path / "d")
    again: Any = load_surrogate(tmp_path / "d", encoder)
    assert torch.equal(again.weight, whole.weight)


def test_it_is_decided_by_its_seed_and_leaves_the_random_state(encoder, tmp_path):
    before = torch.get_rng_state()
    first, again, other = fit(encoder, seed=1), fit(encoder, seed=1), fit(encoder, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    first.save(tmp_path / "d")
    loaded = load_surrogate(tmp_path / "d", encoder)
    z = torch.randn(2, 6)
    assert torch.equal(first(z), loaded(z))
    assert loaded.info == first.info


OTHER = {"n_images": 40, "pixel_noise": 0.3, "draws": 3, "mixture": "leaves", "seed": 5, "ridge": 0.37, "k": 4}


@pytest.mark.parametrize("name", [field.name for field in fields(ClosedFormSettings) if field.name != "kind"])
def test_another_value_of_every_setting_changes_the_result(encoder, name):
    base = {"pixel_noise": 0.1, "draws": 2}
    one, other = fit(encoder, **base), fit(encoder, **{**base, name: OTHER[name]})
    assert one.fingerprint != other.fingerprint


def constant(value, images):
    return torch.full((len(images), 4, 3), value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 64}, "64 images have fewer than 64 principal components: k must be below 64, got 64"),
        ({"k": 500, "n_images": 900}, "tiny has latents of 384 numbers: k must be at most 384, got 500"),
        ({"k": 0}, "k must be above 0"),
        ({"k": 2.5}, "whole"),
        ({"ridge": -1.0}, "ridge must be above 0"),
        ({"n_images": 1}, "16 images or more"),
        ({"steps": 10}, "unknown setting 'steps' of a closed-form surrogate"),
        ({"trackers": "tensorboard"}, "leave trackers out"),
    ],
)
def test_numbers_that_make_no_sense_end_in_one_line(encoder, settings, message):
    with pytest.raises(InputError, match=message):
        fit(encoder, **settings)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: torch.zeros(len(x), 4, 3), "the same latents for every image"),
        (lambda x: torch.full((len(x), 4, 3), torch.nan), "not finite"),
        (lambda x: x.mean((1, 2, 3))[:, None, None].expand(-1, 4, 3), "1 components that vary over 64 images"),
    ],
)
def test_features_that_do_not_vary_or_are_not_finite_end_in_one_line(encode, message):
    model = Autoencoder(encode, None, image_shape=(3, 8, 8), latent_shape=(4, 3), provenance={"model": "odd"})
    with pytest.raises(InputError, match=message):
        fit(model)


@pytest.mark.parametrize("images", [torch.rand(1, 3, 16, 16), torch.full((30, 3, 16, 16), 0.5)])
def test_one_image_and_constant_images_end_in_one_line(encoder, images):
    with pytest.raises(InputError, match=r"16 images or more|all the same"):
        fit(encoder, images)


def test_as_many_components_as_given_images_are_refused(encoder):
    """Every tenth of the images is held out, so that 27 of 30 are left."""
    with pytest.raises(InputError, match="27 images have fewer than 27 principal components"):
        fit(encoder, procedural_images(30, 16), k=27, n_images=None)
