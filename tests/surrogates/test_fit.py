import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.surrogates import cache, fit
from fmprobe.surrogates.cache import cached_decoder, decoder_key
from fmprobe.surrogates.features import compute_features
from fmprobe.surrogates.fit import FitSettings, fit_decoder
from fmprobe.surrogates.pixel import PatchDecoder
from fmprobe.surrogates.procedural import procedural_images

QUICK = FitSettings(size="tiny", n_images=32, steps=5, batch_size=8)


def quick(model, images=None, **changes) -> PatchDecoder:
    settings = {"size": "tiny", "n_images": 32, "steps": 5, "batch_size": 8, "progress": False, **changes}
    return fit_decoder(model, images, **settings)


def test_features_are_standardised_by_their_statistics(encoder):
    images = procedural_images(40, 16)
    features = compute_features(encoder, images, batch_size=7)
    tokens = features[torch.arange(40)]
    native = encoder.encode(images)
    assert len(features) == 40
    assert torch.allclose(tokens.mean(dim=(0, 1)), torch.zeros(24), atol=1e-3)
    assert torch.allclose(tokens.std(dim=(0, 1), correction=0), torch.ones(24), atol=1e-3)
    assert torch.allclose(features.mean, native.double().mean(dim=(0, 1)).float(), rtol=1e-5)
    # The scales span six orders of magnitude: half precision must cost none of them their accuracy. The smallest ones
    # are limited by the encoder's own float32 tokens, whose offset is far larger than they are.
    exact = ((native.double() - features.mean.double()) / features.std.double()).float()
    assert (tokens - exact).abs().max() < 0.01
    assert torch.equal(features[torch.tensor([5, 3])], tokens[[5, 3]])


def test_pixel_noise_reaches_the_encoder_and_not_the_target(encoder):
    pixels = torch.full((6, 3, 16, 16), 0.5)
    settings = replace(QUICK, pixel_noise=0.4)
    noise = fit._coloured_noise(settings, pixels, 10) - pixels
    deviations = noise.flatten(1).std(dim=1)
    assert (deviations < 0.41).all()
    assert deviations.unique().numel() == 6
    again = fit._coloured_noise(settings, pixels[:2], 12) - pixels[:2]
    assert torch.equal(noise[2:4], again), "it depends on the image's index alone"
    assert torch.equal(fit._coloured_noise(replace(QUICK, pixel_noise=0.0), pixels, 0), pixels)
    clean = compute_features(encoder, pixels + torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) / 9)
    noisy = compute_features(encoder, pixels, disturb=lambda x, first: fit._coloured_noise(settings, x, first))
    assert not torch.allclose(clean.std, noisy.std)


def test_noise_makes_the_latent_map_contract(encoder):
    def gain(**noise):
        settings = {"n_images": 100, "steps": 60, "learning_rate": 3e-3, "seed": 3, **noise}
        model = encoder.with_decoder(quick(encoder, **settings))
        z = model.encode(procedural_images(32, 16, seed=8))
        step = 0.05 * model.sample_latents(32)
        return (model.latent_map(z + step) - model.latent_map(z)).norm() / step.norm()

    assert gain(noise=1.5, pixel_noise=0.0) < 0.9 * gain(noise=0.0, pixel_noise=0.0)


def test_constant_channels_are_not_blown_up(make_encoder):
    base = make_encoder()

    def encode(images):
        tokens = base.encode(images)
        tokens[..., 3] = 7.0
        return tokens

    model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=(16, 24), provenance={})
    features = compute_features(model, procedural_images(20, 16))
    tokens = features[torch.arange(20)]
    assert tokens.isfinite().all()
    assert tokens[..., 3].abs().max() < 1e-3
    assert features.std[3] > 0


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: torch.full((len(x), 4, 2), torch.nan), "not finite"),
        (lambda x: torch.ones(len(x), 4, 2), "same latents"),
    ],
)
def test_useless_latents_are_named(encode, message):
    model = Autoencoder(encode, None, image_shape=(3, 8, 8), latent_shape=(4, 2), provenance={"model": "broken"})
    with pytest.raises(InputError, match=f"broken.*{message}"):
        quick(model)


def test_training_lowers_the_held_out_error(encoder):
    longer = quick(encoder, n_images=100, steps=60, learning_rate=3e-3, noise=0.0, pixel_noise=0.0)
    shorter = quick(encoder, n_images=100, steps=1, noise=0.0, pixel_noise=0.0)
    for name in ("held_out", "leaves"):
        error = longer.info["validation"][name]
        assert error["l1"] < 0.9 * shorter.info["validation"][name]["l1"]
        assert error["l1"] < 0.7 * error["l1_median"]
        assert error["feature_error"] < 0.8
        assert error["images"] == fit.HELD_OUT


def test_reported_error_is_that_of_the_decoder(encoder):
    decoder = quick(encoder, seed=4)
    images = procedural_images(fit.HELD_OUT, 16, 4, "leaves", fit.HELD_OUT_FIRST)
    model = encoder.with_decoder(decoder)
    latents = model.encode(images)
    decoded = model.decode(latents)
    reported = decoder.info["validation"]["leaves"]
    median = np.median(images.flatten(2).numpy(), axis=2)[..., None, None]
    assert reported["l1"] == pytest.approx((decoded - images).abs().mean().item(), rel=0.01)
    assert reported["l1_median"] == pytest.approx(np.abs(images.numpy() - median).mean(), rel=0.01)
    error = (model.encode(decoded) - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
    assert reported["feature_error"] == pytest.approx(error.mean().item(), rel=0.02)


def test_same_seed_gives_identical_weights_and_another_does_not(encoder):
    first, again, other = quick(encoder, seed=1), quick(encoder, seed=1), quick(encoder, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_global_random_state_is_neither_read_nor_moved(encoder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = quick(encoder)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first.embed.weight, quick(encoder).embed.weight)


def test_fit_works_under_no_grad_and_leaves_no_gradients(encoder):
    with torch.no_grad():
        decoder = quick(encoder)
    assert not decoder.training
    assert not any(p.requires_grad for p in decoder.parameters())
    assert not torch.equal(decoder.embed.weight, quick(encoder, learning_rate=1e-9).embed.weight), "it was trained"


def test_own_images_are_split_and_named_in_the_result(encoder):
    images = procedural_images(50, 16, seed=9)
    poisoned = images.clone()
    poisoned[45:] = 1 - poisoned[45:]  # the last tenth is held out: it must not reach the weights
    first, second = quick(encoder, images), quick(encoder, poisoned)
    assert torch.equal(first.embed.weight, second.embed.weight)
    assert first.info["data_free"] is False
    assert first.info["data"] == "45 images given by the caller; the last 5 of 50 were held out"
    assert first.info["validation"]["held_out"]["images"] == 5
    assert first.info["validation"]["held_out"] != second.info["validation"]["held_out"]


def test_info_is_json_and_says_what_was_done(encoder):
    info = quick(encoder).info
    json.dumps(info)
    assert info["model"] == "tiny"
    assert info["fingerprint"] == "tiny-0"
    assert info["data_free"] is True
    assert info["settings"]["n_images"] == 32
    assert info["steps"] == 5
    assert info["image_size"] == 16
    assert info["seconds"] >= 0
    assert "32 procedural images" in info["data"]


def test_grey_encoders_are_trained_on_grey_images():
    model = Autoencoder(
        lambda x: torch.nn.functional.unfold(x, 4, stride=4).transpose(1, 2),
        None,
        image_shape=(1, 16, 16),
        latent_shape=(16, 16),
        provenance={"model": "grey"},
    )
    error = quick(model, n_images=64, steps=40, learning_rate=3e-3, noise=0.0, pixel_noise=0.0).info["validation"][
        "leaves"
    ]
    assert error["l1"] < 0.8 * error["l1_median"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "latent"}, "expected one of pixel"),
        ({"size": "giant"}, "expected one of tiny, small, base, large"),
        ({"n_images": 15}, "16 images or more"),
        ({"steps": 0}, "steps must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"noise": -0.1}, "noise must not"),
        ({"pixel_noise": float("nan")}, "pixel_noise must not"),
        ({"images": torch.rand(15, 3, 16, 16)}, "16 images or more, got 15"),
        ({"images": torch.rand(20, 3, 8, 16)}, r"\(3, 16, 16\)"),
        ({"images": torch.rand(20, 3, 16, 16) * 2}, r"in \[0, 1\]"),
        ({"images": torch.full((20, 3, 16, 16), torch.nan)}, r"in \[0, 1\]"),
        ({"images": torch.zeros(20, 3, 16, 16, dtype=torch.uint8)}, "divide bytes by 255"),
    ],
)
def test_unusable_input_is_named(encoder, changes, message):
    with pytest.raises(InputError, match=message):
        quick(encoder, **changes)


def test_models_that_cannot_have_a_pixel_decoder(encoder):
    with pytest.raises(InputError, match="has a decoder already"):
        quick(encoder.with_decoder(quick(encoder, steps=1)))
    for latents, message in (((5, 8), "square grid"), ((8, 2, 2), "takes tokens")):
        model = Autoencoder(lambda x: x, None, image_shape=(3, 16, 16), latent_shape=latents, provenance={})
        with pytest.raises(InputError, match=message):
            quick(model)
    model = Autoencoder(lambda x: x, None, image_shape=(4, 16, 16), latent_shape=(16, 8), provenance={})
    with pytest.raises(InputError, match="pass images="):
        quick(model)


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fmprobe" / "decoders"


def test_second_call_reads_the_cache(encoder, cache_home, monkeypatch):
    first, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert not was_cached
    assert [p.name for p in cache_home.iterdir()] == [decoder_key(encoder, QUICK)]
    monkeypatch.setattr(cache, "fit_with", lambda *_, **__: pytest.fail("fitted again"))
    second, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert was_cached
    z = encoder.sample_latents(2)
    assert torch.equal(first(z), second(z))
    assert second.info == first.info


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_broken_entry_is_fitted_again(encoder, cache_home, name):
    first, _ = cached_decoder(encoder, QUICK, progress=False)
    path = cache_home / decoder_key(encoder, QUICK) / name
    path.write_bytes(path.read_bytes()[:-20])
    second, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert not was_cached
    assert torch.equal(first.embed.weight, second.embed.weight)
    assert cached_decoder(encoder, QUICK, progress=False)[1], "the entry was mended"


def test_key_tells_models_shapes_and_settings_apart(make_encoder):
    models = [
        make_encoder(),
        make_encoder(seed=1),
        make_encoder(side=32),
        make_encoder(width=12),
        make_encoder(dtype="bfloat16"),
    ]
    keys = {decoder_key(model, QUICK) for model in models}
    keys |= {decoder_key(models[0], replace(QUICK, **c)) for c in ({"seed": 1}, {"noise": 0.7}, {"mixture": "noise"})}
    assert len(keys) == 8
    assert decoder_key(models[0], QUICK) == decoder_key(make_encoder(model="elsewhere"), QUICK), "the name is no matter"


def test_losing_a_race_for_the_entry_does_no_harm(encoder, cache_home, monkeypatch):
    winner = quick(encoder, seed=0)

    def fit_while_another_saves(model, settings, *, progress):
        winner.save(cache_home / decoder_key(model, settings))
        return fit.fit_with(model, settings, progress=progress)

    monkeypatch.setattr(cache, "fit_with", fit_while_another_saves)
    _, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert not was_cached
    assert cached_decoder(encoder, QUICK, progress=False)[1]
    assert len(list(cache_home.iterdir())) == 1


def test_unwritable_cache_costs_nothing_but_time(encoder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    decoder, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert not was_cached
    assert decoder.info["steps"] == QUICK.steps


def test_models_without_a_fingerprint_are_not_cached(make_encoder, cache_home):
    _, was_cached = cached_decoder(make_encoder(fingerprint=""), QUICK, progress=False)
    assert not was_cached
    assert not cache_home.exists()
