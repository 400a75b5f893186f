"""Every setting of a fit is used or refused, of every kind."""

import math
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.surrogates import QUICK, narrow, quick, tiny_encoder

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.procedural import procedural_images
from fmprobe.surrogates.fit import FitSettings, fit_decoder, fit_with
from fmprobe.surrogates.pixel import PixelDecoder

small = pytest.fixture(narrow, scope="module", autouse=True)
LATENT = FitSettings(kind="latent", n_images=32, steps=6, batch_size=8, noise=0.0, pixel_noise=0.1, contraction=0.0)
BASE = {"pixel": replace(QUICK, steps=6, contraction=0.01, pixel_noise=0.1, consistency_steps=2), "latent": LATENT}
OTHER: dict[str, Any] = {  # than both bases have
    "size": "small",
    "n_images": 40,
    "steps": 7,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "noise": 1.0,
    "pixel_noise": 0.3,
    "draws": 2,
    "blur": 0.1,
    "perceptual": 0.5,
    "contraction": 0.5,
    "consistency_steps": 3,
    "consistency": 0.5,
    "weight_decay": 0.5,
    "ema": 0.0,
    "accumulate": 3,
    "precision": "bf16",
    "mixture": "leaves",
    "variant": "sparse",
    "bottleneck": 8,
    "seed": 5,
}
REFUSED = {
    "pixel": {"variant", "bottleneck"},
    "latent": {"size", "noise", "blur", "perceptual", "contraction", "consistency_steps", "consistency"},
}
NAMES = [field.name for field in fields(FitSettings) if field.name != "kind"]
NUMBERS = [field.name for field in fields(FitSettings) if isinstance(field.default, int | float)]


def outcome(settings):
    surrogate = fit_with(tiny_encoder(fingerprint=""), settings, progress=False)
    with torch.no_grad():
        return surrogate(torch.linspace(-1, 1, 2 * 16 * 24).reshape(2, 16, 24))


@pytest.fixture(scope="module")
def plain():
    return {kind: outcome(settings) for kind, settings in BASE.items()}


def test_another_value_of_every_setting_is_tried():
    assert sorted(OTHER) == sorted(NAMES)


@pytest.mark.parametrize("kind", BASE)
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_changes_the_result_or_is_refused(encoder, plain, kind, name):
    if name in REFUSED[kind]:
        with pytest.raises(InputError, match=f"^{name}=.*{kind} surrogate"):
            replace(BASE[kind], **{name: OTHER[name]})
        with pytest.raises(InputError, match=f"^{name}=.*{kind} surrogate"):
            fit_decoder(encoder, kind=kind, progress=False, **{name: OTHER[name]})
        return
    assert not torch.equal(outcome(replace(BASE[kind], **{name: OTHER[name]})), plain[kind])


@pytest.mark.parametrize("kind", BASE)
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "5", True, None])
def test_what_is_no_number_of_its_range_is_refused_with_its_name(encoder, kind, name, value):
    with pytest.raises(InputError, match=name) as refused:
        fit_with(encoder, replace(BASE[kind], **{name: value}), progress=False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["kind", "size", "precision", "mixture", "variant"])
@pytest.mark.parametrize("value", ["odd", "", None, 3, ["tiny"]])
def test_words_that_mean_nothing_are_refused_with_what_there_is(name, value):
    with pytest.raises(InputError, match=r"^unknown .*expected "):
        replace(QUICK, **{name: value})


def test_numbers_of_numpy_are_numbers_and_go_into_a_file(tmp_path):
    asked = {"steps": np.int64(2), "seed": np.int32(1), "noise": np.float32(0.5), "n_images": np.int64(20)}
    quick(tiny_encoder(), **asked).save(tmp_path / "decoder")


@pytest.mark.parametrize("name", ["n_images", "steps", "batch_size", "draws", "accumulate", "bottleneck"])
@pytest.mark.parametrize("value", [0, 2.5])
def test_counts_are_whole_and_above_0(encoder, name, value):
    with pytest.raises(InputError, match=f"{name} must be"):
        fit_with(encoder, replace(LATENT, **{name: value}), progress=False)


def test_unknown_names_and_what_means_nothing_together_are_refused(encoder):
    for name in ("settings", "image", "lr"):
        with pytest.raises(InputError, match=f"unknown setting '{name}'"):
            fit_decoder(encoder, **cast(Any, {name: QUICK}))
    with pytest.raises(InputError, match=r"mixture.*images are given"):
        quick(encoder, procedural_images(20, 16), mixture="leaves")
    with pytest.raises(InputError, match=r"consistency=0\.5 is a weight in a second stage"):
        quick(encoder, consistency=0.5)
    with pytest.raises(InputError, match="draws=2"):
        quick(encoder, draws=2, pixel_noise=0.0)


def test_settings_in_one_object_are_used_as_keywords_are(encoder):
    pictures = procedural_images(40, 16)
    few = fit_with(encoder, replace(QUICK, n_images=20), pictures, progress=False)
    assert few.info["data"].startswith("18 images")
    assert few.info["settings"]["n_images"] == 18
    every = fit_with(encoder, replace(QUICK, n_images=None), pictures, progress=False)
    assert every.info["data"].startswith("36 images")
    with pytest.raises(InputError, match="n_images"):
        fit_with(encoder, replace(QUICK, n_images=None), progress=False)


def test_a_report_takes_the_seed_of_its_settings_or_one_that_is_given(encoder):
    asked = {"n": 2, "max_steps": 2, "null": tiny_encoder(seed=1), "progress": False}
    settings = replace(QUICK, steps=1)
    for given, seed in (({}, 0), ({"seed": 4}, 4), ({"settings": replace(settings, seed=3)}, 3)):
        found = fmprobe.surrogate_report(encoder, **{"settings": settings, **asked, **given})
        assert found.settings["seed"] == seed
    with pytest.raises(InputError, match=r"seed=4 .* seed 3"):
        fmprobe.surrogate_report(encoder, settings=replace(settings, seed=3), **{**asked, "seed": 4})
    with pytest.raises(InputError, match="n_images"):
        fmprobe.surrogate_report(encoder, settings=replace(settings, n_images=None), **asked)


@pytest.mark.parametrize(
    ("null", "message"),
    [
        (tiny_encoder().with_decoder(PixelDecoder((16, 24), (3, 16, 16), "tiny")), "has a latent map already"),
        (tiny_encoder(width=8), r"\(16, 8\).*\(16, 24\)"),
        (tiny_encoder(side=8), r"\(3, 8, 8\).*\(3, 16, 16\)"),
    ],
)
def test_a_null_that_is_no_twin_is_refused_before_anything_is_fitted(encoder, null, message, monkeypatch):
    from fmprobe.probes import surrogate_report as report

    monkeypatch.setattr(report, "cached_decoder", lambda *_, **__: pytest.fail("fitted"))
    with pytest.raises(InputError, match=f"the null, .*{message}"):
        fmprobe.surrogate_report(encoder, null=null)


# What n_images takes.


@pytest.mark.parametrize("source", ["tensor", "file"])
def test_n_images_are_spread_evenly_over_what_there_is(tmp_path, source):
    """Sorted by brightness: the first 20 of 60 would all be dark."""
    grey = torch.arange(60, dtype=torch.uint8)[:, None, None, None] * 4
    images = grey.expand(-1, 3, 16, 16).clone()
    np.savez(tmp_path / "p.npz", x=images.permute(0, 2, 3, 1).numpy())
    given = images.float() / 255 if source == "tensor" else f"{tmp_path}/p.npz:x"
    seen, base = [], tiny_encoder()

    def encode(x):
        seen.extend((x.mean((1, 2, 3)) * 255 / 4).round().int().tolist())
        return base.encode(x)

    model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=(16, 24), provenance={"model": "m"})
    found = quick(model, given, n_images=20, pixel_noise=0.0)
    assert found.info["data"].startswith("18 images")
    even = [3 * i for i in range(20)]
    assert seen[:18] == [place for i, place in enumerate(even) if i % 10 != 9]
    with pytest.raises(InputError, match="n_images"):
        quick(model, given, n_images=-5)


# Encoders and images from which nothing can be learned.


@pytest.mark.parametrize("kind", BASE)
@pytest.mark.parametrize(
    ("encode", "images", "message"),
    [
        (lambda x: torch.full((len(x), 16, 24), torch.nan), None, "not finite"),
        (lambda x: (1 / (x.amax((1, 2, 3)) < 1).float())[:, None, None].expand(-1, 16, 24), None, "not finite"),
        (lambda x: torch.zeros(len(x), 16, 24), None, "same latents"),
        (lambda x: torch.arange(24.0).expand(len(x), 16, 24), None, "same latents"),
        (tiny_encoder().encode_unchecked, torch.full((20, 3, 16, 16), 0.5), "images are all the same"),
        (tiny_encoder().encode_unchecked, torch.rand(1, 3, 16, 16).expand(20, -1, -1, -1), "images are all the same"),
        (lambda x: x, torch.rand(1, 3, 16, 16), "16 images or more, got 1"),
        (lambda x: x, torch.rand(0, 3, 16, 16), "16 images or more, got 0"),
    ],
)
def test_what_nothing_can_be_learned_from_is_one_line(kind, encode, images, message):
    model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=(16, 24), provenance={"model": "m"})
    with pytest.raises(InputError, match=message) as refused:
        fit_with(model, replace(BASE[kind], pixel_noise=0.0), images, progress=False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", BASE)
def test_channels_that_do_not_vary_are_no_fault(kind):
    def encode(x):
        latents = tiny_encoder().encode_unchecked(x)
        latents[..., :3] = torch.tensor([0.0, 5.0, -1e6])
        return latents

    model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=(16, 24), provenance={"model": "m"})
    whole = fit_with(model, BASE[kind], progress=False).attach(model)
    assert whole.latent_map(whole.sample_latents(4)).isfinite().all()
    assert whole.encode(procedural_images(4, 16)).abs().max() < 1e3
