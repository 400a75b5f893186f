"""Latent surrogates: six kinds, on tokens, maps and vectors."""

import json
from functools import cache

import pytest
import torch
from support.surrogates import narrow, quick, tiny_encoder

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.procedural import procedural_images
from fmprobe.surrogates.artefact import load_surrogate
from fmprobe.surrogates.latent import VARIANTS, LatentSettings, LatentSurrogate

small = pytest.fixture(narrow, scope="module", autouse=True)


def fit(model, **changes):
    settings = {"n_images": 64, "steps": 60, "learning_rate": 3e-3, "bottleneck": 16, **changes}
    return quick(model, kind="latent", **settings)


@pytest.fixture(scope="module")
def fitted():
    """A surrogate of the usual encoder by its variant."""
    return cache(lambda variant: fit(tiny_encoder(), variant=variant))


def on_sphere(code):
    return code / code.norm(dim=-1, keepdim=True) * code.shape[-1] ** 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_learns_and_gives_a_latent_map(encoder, fitted, variant):
    surrogate = fitted(variant)
    assert surrogate.info["validation"]["held_out"]["feature_error"] < 0.95  # 1 is that of the mean feature
    model = encoder.with_decoder(surrogate)
    assert model.latent_shape == (16, 16)
    assert model.has_latent_map
    assert not model.has_decoder
    z = model.sample_latents(3)
    with torch.no_grad():
        alone = torch.cat([model.latent_map(row[None]) for row in z])
        assert torch.allclose(model.latent_map(z), alone, atol=1e-4)
    with pytest.raises(InputError, match="no decoder to images"):
        model.decode(z)
    found = fmprobe.find_attractors(model, 8, max_steps=50)
    assert sum(found.orbits.counts().values()) == 8


# Shares of N(0, I) starts that settle within 400 steps here: plain 0.7, denoising 1, contractive 0.9, variational 0,
# sparse 0.6, topk 1. They differ from fit to fit, so the test records them and holds the bound alone.
@pytest.mark.parametrize("variant", VARIANTS)
def test_orbits_from_noise_stay_in_the_range_of_the_codes(encoder, fitted, variant, record_property):
    surrogate = fitted(variant)
    model = encoder.with_decoder(surrogate)
    starts = model.sample_latents(16)
    orbits = fmprobe.iterate(model.latent_map, starts, max_steps=400, tol=1e-5)
    counts = orbits.counts()
    record_property("settled", counts["converged"] / len(starts))
    assert counts["diverged"] == 0
    assert orbits.ends.norm(dim=-1).max() <= surrogate.bound * 16**0.5 * (1 + 1e-5)
    assert surrogate.bound < 6
    assert orbits.ends.flatten(1).norm(dim=1).max() < 2 * starts.flatten(1).norm(dim=1).mean()
    far = model.latent_map(starts * 1e4)
    assert far.norm(dim=-1).max() <= surrogate.bound * 16**0.5 * (1 + 1e-5)


def test_a_surrogate_of_an_earlier_version_keeps_its_map_and_its_fingerprint(encoder):
    """Its codes lie on no sphere, and its config does not say so."""
    torch.manual_seed(0)
    old = LatentSurrogate((16, 24), (3, 16, 16), 8)
    assert "sphere" not in old.config()
    assert old.bound == float("inf")
    new = LatentSurrogate((16, 24), (3, 16, 16), 8, sphere=True)
    new.load_state_dict(old.state_dict())
    assert new.fingerprint != old.fingerprint
    z = torch.randn(2, 16, 8)
    with torch.no_grad():
        assert torch.equal(encoder.with_decoder(old).latent_map(z), old.to_code(old.to_features(z)))


def test_a_code_of_one_number_is_refused(encoder):
    with pytest.raises(InputError, match="at least 2"):
        fit(encoder, bottleneck=1)


def test_codes_are_standardised_and_f_is_the_bottlenecks_own_map(encoder, fitted):
    surrogate = fitted(LatentSettings.variant)
    model = encoder.with_decoder(surrogate)
    images = procedural_images(64, 16, seed=0)
    with torch.no_grad():
        z = model.encode(images)
        start = model.sample_latents(2)
        for latents in (z, start):
            features = surrogate.to_features(on_sphere(latents * surrogate.code_std + surrogate.code_mean))
            expected = (on_sphere(surrogate.to_code(features)) - surrogate.code_mean) / surrogate.code_std
            assert torch.allclose(model.latent_map(latents), expected, atol=1e-5)
        code = z * surrogate.code_std + surrogate.code_mean
        assert torch.allclose(on_sphere(code), code, atol=1e-5)
    assert z.mean().abs() < 0.2
    assert z.std() == pytest.approx(1, abs=0.2)


def test_topk_leaves_on_an_eighth_of_the_codes(encoder):
    surrogate = fit(encoder, variant="topk", bottleneck=32)
    code = surrogate.code(torch.randn(5, 16, 24))
    assert ((code != 0).sum(-1) == 4).all()
    assert torch.allclose(surrogate.in_range(code), code, atol=1e-6)


@pytest.mark.parametrize(("latent_shape", "code_shape"), [((24,), (8,)), ((6, 2, 2), (8, 2, 2))])
def test_vectors_and_maps(latent_shape, code_shape):
    matrix = torch.randn(3 * 256, 24, generator=torch.Generator().manual_seed(0)) / 16
    model = Autoencoder(
        lambda x: (x.flatten(1) @ matrix).reshape(len(x), *latent_shape),
        None,
        image_shape=(3, 16, 16),
        latent_shape=latent_shape,
        provenance={"model": "m", "fingerprint": "f"},
    )
    attached = model.with_decoder(fit(model, bottleneck=8))
    assert attached.latent_shape == code_shape
    with torch.no_grad():
        z = attached.encode(procedural_images(3, 16))
        assert attached.latent_map(z).shape == z.shape == (3, *code_shape)


def test_saved_with_a_pixel_decoder_behind_it(encoder, make_encoder, tmp_path):
    pixel = quick(encoder)
    surrogate = fit(encoder, variant="denoising", steps=5).put_behind(pixel)
    surrogate.save(tmp_path / "s")
    again = load_surrogate(tmp_path / "s", encoder)
    assert isinstance(again, LatentSurrogate)
    model, loaded = encoder.with_decoder(surrogate), encoder.with_decoder(again)
    z = model.sample_latents(2)
    with torch.no_grad():
        assert torch.equal(model.latent_map(z), loaded.latent_map(z))
        assert torch.equal(model.decode(z), loaded.decode(z))
        native = surrogate.to_features(on_sphere(z * surrogate.code_std + surrogate.code_mean)) * surrogate.feature_std
        assert torch.allclose(model.decode(z), pixel(pixel.standardise(native + surrogate.feature_mean)), atol=1e-6)
    json.dumps(model.provenance)
    assert model.provenance["decoder"]["pictures"]["kind"] == "surrogate"
    with pytest.raises(InputError, match="another encoder"):
        load_surrogate(tmp_path / "s", make_encoder(seed=1))
    with pytest.raises(InputError, match="fit both on one encoder"):
        surrogate.put_behind(quick(make_encoder(seed=1)))
