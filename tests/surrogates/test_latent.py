"""Latent surrogates: six kinds, on tokens, maps and vectors."""

import json

import pytest
import torch
from support.surrogates import quick

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.procedural import procedural_images
from fmprobe.surrogates.artefact import load_surrogate
from fmprobe.surrogates.latent import VARIANTS, LatentSurrogate


def fit(model, **changes):
    settings = {"n_images": 64, "steps": 60, "learning_rate": 3e-3, "bottleneck": 16, **changes}
    return quick(model, kind="latent", **settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_learns_and_gives_a_latent_map(encoder, variant):
    surrogate = fit(encoder, variant=variant)
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


def test_codes_are_standardised_and_f_is_the_bottlenecks_own_map(encoder):
    surrogate = fit(encoder)
    model = encoder.with_decoder(surrogate)
    images = procedural_images(64, 16, seed=0)
    with torch.no_grad():
        z = model.encode(images)
        features = surrogate.to_features(z * surrogate.code_std + surrogate.code_mean)
        expected = (surrogate.to_code(features) - surrogate.code_mean) / surrogate.code_std
        assert torch.allclose(model.latent_map(z), expected, atol=1e-5)
    assert z.mean().abs() < 0.2
    assert z.std() == pytest.approx(1, abs=0.2)


def test_topk_leaves_on_an_eighth_of_the_codes(encoder):
    surrogate = fit(encoder, variant="topk", bottleneck=32)
    code = surrogate.code(torch.randn(5, 16, 24))
    assert ((code != 0).sum(-1) == 4).all()


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
    surrogate = fit(encoder, variant="denoising").put_behind(pixel)
    surrogate.save(tmp_path / "s")
    again = load_surrogate(tmp_path / "s", encoder)
    assert isinstance(again, LatentSurrogate)
    model, loaded = encoder.with_decoder(surrogate), encoder.with_decoder(again)
    z = model.sample_latents(2)
    with torch.no_grad():
        assert torch.equal(model.latent_map(z), loaded.latent_map(z))
        assert torch.equal(model.decode(z), loaded.decode(z))
        native = surrogate.to_features(z * surrogate.code_std + surrogate.code_mean) * surrogate.feature_std
        assert torch.allclose(model.decode(z), pixel(pixel.standardise(native + surrogate.feature_mean)), atol=1e-6)
    json.dumps(model.provenance)
    assert model.provenance["decoder"]["pictures"]["kind"] == "surrogate"
    with pytest.raises(InputError, match="another encoder"):
        load_surrogate(tmp_path / "s", make_encoder(seed=1))
    with pytest.raises(InputError, match="fit both on one encoder"):
        fit(encoder).put_behind(quick(make_encoder(seed=1)))
