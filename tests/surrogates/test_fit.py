import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.surrogates import narrow, quick, tiny_encoder

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.procedural import procedural_images
from fmprobe.surrogates import data
from fmprobe.surrogates.fit import fit_decoder, validate
from fmprobe.surrogates.pixel import PixelSettings

small = pytest.fixture(narrow, scope="module", autouse=True)


LONGER: dict[str, Any] = {"n_images": 64, "steps": 80, "learning_rate": 3e-3, "noise": 0.0, "pixel_noise": 0.0}


@pytest.fixture(scope="module")
def longer():
    """A decoder that has learned something, without any noise or optional term."""
    return quick(tiny_encoder(), **LONGER)


def test_noise_makes_the_latent_map_contract(encoder, longer):
    def gain(decoder):
        model = encoder.with_decoder(decoder)
        z = model.encode(procedural_images(32, 16, seed=8))
        step = 0.05 * model.sample_latents(32)
        return (model.latent_map(z + step) - model.latent_map(z)).norm() / step.norm()

    assert gain(quick(encoder, **{**LONGER, "noise": 1.5})) < 0.9 * gain(longer)


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


def test_training_lowers_the_held_out_error(encoder, longer):
    shorter = quick(encoder, **{**LONGER, "steps": 1})
    for name in ("held_out", "leaves"):
        error = longer.info["validation"][name]
        assert error["l1"] < 0.9 * shorter.info["validation"][name]["l1"]
        assert error["l1"] < 0.7 * error["l1_median"]
        assert error["feature_error"] < 0.8
        assert error["images"] == data.HELD_OUT


def test_reported_error_is_that_of_the_decoder(encoder):
    decoder = quick(encoder, seed=1)
    images = procedural_images(data.HELD_OUT, 16, 1, "leaves", data.HELD_OUT_FIRST)
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
    first, again, other = quick(encoder, seed=1), quick(encoder, seed=1), quick(encoder, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.body.embed.weight, other.body.embed.weight)


def test_global_random_state_is_neither_read_nor_moved(encoder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = quick(encoder)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first.body.embed.weight, quick(encoder).body.embed.weight)


def test_fit_works_under_no_grad_and_leaves_no_gradients(encoder):
    with torch.no_grad():
        decoder = quick(encoder)
    assert not decoder.training
    assert not any(p.requires_grad for p in decoder.parameters())
    assert not torch.equal(decoder.body.embed.weight, quick(encoder, learning_rate=1e-9).body.embed.weight), (
        "it was trained"
    )


def test_own_images_are_split_and_named_in_the_result(encoder):
    images = procedural_images(50, 16, seed=9)
    poisoned = images.clone()
    poisoned[9::10] = 1 - poisoned[9::10]  # every tenth is held out: it must not reach the weights
    first, second = quick(encoder, images), quick(encoder, poisoned)
    assert torch.equal(first.body.embed.weight, second.body.embed.weight)
    assert first.info["data_free"] is False
    assert first.info["data"] == "45 images given by the caller; every tenth of 50 was held out"
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
    error = quick(model, **{**LONGER, "steps": 40}).info["validation"]["leaves"]
    assert error["l1"] < 0.8 * error["l1_median"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "waves"}, "expected one of pixel, latent"),
        ({"kind": "latent", "variant": "odd"}, "expected one of plain, denoising"),
        ({"kind": "latent", "bottleneck": 0}, "bottleneck must be"),
        ({"colour": "red"}, "unknown setting 'colour'"),
        ({"ema": 1.0}, "ema must be"),
        ({"precision": "int8"}, "expected no or bf16"),
        ({"contraction": -1.0}, "contraction must not"),
        ({"size": "giant"}, "expected one of tiny, small, base, large"),
        ({"n_images": 15}, "16 images or more"),
        ({"steps": 0}, "steps must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"noise": -0.1}, "noise must not"),
        ({"pixel_noise": float("nan")}, "pixel_noise must not"),
        ({"images": torch.rand(15, 3, 16, 16)}, "16 images or more, got 15"),
        ({"images": torch.rand(20, 3, 8, 16)}, r"\(B, 3, 16, 16\)"),
        ({"images": torch.rand(20, 3, 16, 16) * 2}, r"in \[0, 1\]"),
        ({"images": torch.full((20, 3, 16, 16), torch.nan)}, r"in \[0, 1\]"),
        ({"images": "/no/such/folder"}, "check the name"),
        ({"images": torch.zeros(20, 3, 16, 16, dtype=torch.uint8)}, "the 20 training images are all the same"),
        ({"images": torch.zeros(20, 3, 16, 16, dtype=torch.int64)}, "tensors of floats"),
    ],
)
def test_unusable_input_is_named(encoder, changes, message):
    with pytest.raises(InputError, match=message):
        quick(encoder, **changes)


def test_models_that_cannot_have_a_pixel_decoder(encoder):
    with pytest.raises(InputError, match="has a latent map already"):
        quick(encoder.with_decoder(quick(encoder, steps=1)))
    for latents, message in (((35, 8), "does not divide"), ((8, 2, 2, 2), "takes tokens")):
        model = Autoencoder(lambda x: x, None, image_shape=(3, 16, 16), latent_shape=latents, provenance={})
        with pytest.raises(InputError, match=message):
            quick(model)
    model = Autoencoder(lambda x: x, None, image_shape=(4, 16, 16), latent_shape=(16, 8), provenance={})
    with pytest.raises(InputError, match="pass images="):
        quick(model)


def test_a_source_gives_what_its_images_give_and_is_streamed(encoder, tmp_path):
    images = (procedural_images(40, 16, seed=9) * 255).round().to(torch.uint8)
    np.savez(tmp_path / "images.npz", x=images.permute(0, 2, 3, 1).numpy())
    streamed = quick(encoder, f"{tmp_path}/images.npz:x")
    assert torch.equal(streamed.body.embed.weight, quick(encoder, images.float() / 255).body.embed.weight)
    assert streamed.info["data"] == f"36 images of {tmp_path}/images.npz:x; every tenth of 40 was held out"
    assert "18 images" in quick(encoder, f"{tmp_path}/images.npz:x", n_images=20).info["data"]


@pytest.mark.parametrize(
    ("latent_shape", "steps"), [((48,), 120), ((3, 4, 4), 60), ((17, 3), 60), ((21, 3), 60)], ids=str
)
def test_vectors_maps_and_tokens_with_a_prefix_can_be_decoded(latent_shape, steps):
    """The mean colours of 4 x 4 patches: a decoder that reads them must beat each image's own median."""

    def encode(images):
        small = torch.nn.functional.avg_pool2d(images, 4)
        if len(latent_shape) == 2:
            tokens = small.flatten(2).transpose(1, 2)
            before = tokens.mean(dim=1, keepdim=True).expand(-1, latent_shape[0] - 16, -1)
            return torch.cat([before, tokens], dim=1)
        return small.reshape(len(images), *latent_shape)

    model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=latent_shape, provenance={"model": "means"})
    decoder = quick(model, **{**LONGER, "steps": steps})
    error = decoder.info["validation"]["held_out"]
    assert error["l1"] < 0.95 * error["l1_median"]
    attached = model.with_decoder(decoder)
    z = attached.sample_latents(2)
    assert attached.latent_map(z).shape == z.shape
    latents = attached.encode(procedural_images(64, 16, seed=3))
    assert latents.std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("term", ["perceptual", "contraction"])
def test_optional_terms_do_what_they_say(encoder, longer, term):
    """With its weight the quantity that a term penalises is lower than without."""
    images = procedural_images(16, 16, seed=5)

    def penalised(decoder):
        model = encoder.with_decoder(decoder)
        z = model.encode(images)
        if term == "perceptual":
            return float((model.latent_map(z) - z).abs().mean())
        step = 0.05 * model.sample_latents(16)
        return float((model.latent_map(z + step) - model.latent_map(z)).norm())

    assert penalised(quick(encoder, **{**LONGER, term: 1.0})) < 0.95 * penalised(longer)


@pytest.mark.parametrize(("contraction", "extra"), [(0.0, False), (0.1, True)])
def test_the_encoder_runs_in_training_only_where_f_is_contracted(make_encoder, contraction, extra):
    base, seen = make_encoder(), []

    def encode(images):
        seen.append(len(images))
        return base.encode_unchecked(images)

    def calls(steps):
        seen.clear()
        model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=(16, 24), provenance={"model": "m"})
        quick(model, steps=steps, contraction=contraction)
        return len(seen)

    assert (calls(24) > calls(6)) is extra


def test_n_images_of_a_tensor_are_no_more_than_that(encoder):
    pictures = torch.rand(64, *encoder.image_shape, generator=torch.Generator().manual_seed(0))
    asked = {"images": pictures, "n_images": 20}
    few, same = (
        quick(encoder, **{**asked, "images": x}) for x in (pictures, pictures[[i * 64 // 20 for i in range(20)]])
    )
    assert few.info["data"].startswith("18 images")
    assert torch.equal(few.latent_mean, same.latent_mean)


def test_an_unknown_kind_of_artefact_is_refused(encoder, tmp_path):
    import json

    from support.surrogates import quick

    from fmprobe.surrogates.artefact import load_surrogate

    quick(encoder).save(tmp_path / "d")
    config = tmp_path / "d" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"kind": "future"}))
    with pytest.raises(InputError, match="kind 'future': expected one of pixel, latent"):
        load_surrogate(tmp_path / "d", encoder)


@pytest.mark.parametrize("limit", [None, 20])
def test_images_are_the_same_in_any_form(encoder, limit):
    pixels = (procedural_images(40, 16, seed=9) * 255).round().to(torch.uint8)
    floats = pixels.float() / 255
    forms = [
        floats,
        pixels,
        pixels.numpy(),
        list(floats),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(floats, torch.arange(40)), batch_size=7),
        iter(floats.split(11)),
    ]
    found = [data.training_data(encoder, PixelSettings(n_images=limit), images) for images in forms]
    first = torch.cat(list(found[0].blocks()))
    assert (first.dtype, len(first)) == (torch.uint8, 36 if limit is None else 18)
    for other in found[1:]:
        assert torch.equal(torch.cat(list(other.blocks())), first)
        assert torch.equal(other.held_out, found[0].held_out)
        assert (other.key, other.n, other.words) == (found[0].key, found[0].n, found[0].words)


def test_images_beyond_bytes_are_refused_where_the_model_would_take_them():
    """A fit keeps images as bytes, so that those of another range would be cut to white and black."""
    model = fmprobe.from_functions(
        lambda x: x.flatten(1)[:, :4], None, image_shape=(3, 16, 16), latent_shape=(4,), name="any"
    )
    images = procedural_images(40, 16, seed=0)
    for other in (2 * images - 1, 255 * images):
        with pytest.raises(InputError, match=r"lie in \["):
            fit_decoder(model, other, "closed-form", progress=False)


@pytest.mark.parametrize("shape", [(192,), (8, 24), (3, 8, 8), (3, 2, 4, 8)])
def test_the_median_of_an_image_is_its_own(shape):
    model = fmprobe.from_functions(
        lambda x: x.flatten(1)[:, :4], None, image_shape=shape, latent_shape=(4,), name="any"
    )
    images = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    surrogate = SimpleNamespace(errors=lambda model, pixels: {})
    found = validate(model, cast(Any, surrogate), images)["l1_median"]
    rows = images.flatten(2) if shape == (3, 8, 8) else images.flatten(1)
    assert found == pytest.approx(float((rows - rows.median(dim=-1, keepdim=True).values).abs().mean()), rel=1e-5)
