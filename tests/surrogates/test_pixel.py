import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmprobe.errors import InputError
from fmprobe.surrogates.bodies import SIZES
from fmprobe.surrogates.pixel import PixelDecoder

ROW = {"images": 4, "l1": 0.1, "l1_median": 0.2, "feature_error": 0.5}


def make(encoder, seed=0, **info):
    torch.manual_seed(seed)
    about = {"model": "tiny", "fingerprint": encoder.provenance["fingerprint"], "data": "none", "data_free": True}
    decoder = PixelDecoder(
        list(encoder.latent_shape), list(encoder.image_shape), "tiny", {**about, "validation": {"leaves": ROW}, **info}
    )
    decoder.latent_mean.normal_()
    decoder.latent_std.uniform_(0.5, 2)
    return decoder.requires_grad_(False).eval()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_sizes_give_layers_and_width(size):
    decoder: Any = PixelDecoder([9, 5], [3, 21, 21], size)
    layers, width = SIZES[size]
    assert len(decoder.body.blocks) == layers
    assert decoder.body.embed.out_features == width
    assert decoder(torch.randn(2, 9, 5)).shape == (2, 3, 21, 21)


def test_each_token_paints_its_own_patch():
    decoder = PixelDecoder([4, 6], [2, 6, 6], "tiny").eval()
    decoder.body.blocks = torch.nn.ModuleList()  # no mixing of tokens
    tokens = torch.randn(1, 4, 6)
    changed = tokens.clone()
    changed[0, 1] += 1  # row by row: token 1 is the upper right one
    difference = (decoder(tokens) - decoder(changed)).abs()[0].amax(dim=0) > 0
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:3, 3:] = True
    assert torch.equal(difference, expected)


def test_position_matters():
    decoder = PixelDecoder([4, 6], [3, 4, 4], "tiny").eval()
    image = decoder(torch.zeros(1, 4, 6))
    assert not torch.allclose(image[..., :2, :2], image[..., :2, 2:], atol=1e-3)


@pytest.mark.parametrize(
    ("latents", "image", "size", "message"),
    [
        ([0, 4], [3, 8, 8], "tiny", "square grid"),
        ([4, 2, 2, 2], [3, 8, 8], "tiny", "takes tokens"),
        ([9, 4], [3, 8, 8], "tiny", "does not divide"),
        ([4, 4], [3, 8, 16], "tiny", "square images"),
        ([4, 4], [3, 8, 8], "huge", "expected one of tiny, small, base, large"),
    ],
)
def test_unusable_shapes_are_named(latents, image, size, message):
    with pytest.raises(InputError, match=message):
        PixelDecoder(latents, image, size)


def test_save_and_load_give_the_same_decoder(encoder, tmp_path):
    decoder = make(encoder, steps=7)
    decoder.info["seconds"] = 1.5  # set after construction, as fitting does
    decoder.save(tmp_path / "a" / "decoder")
    again = PixelDecoder.load(tmp_path / "a" / "decoder", encoder)
    z = encoder.sample_latents(3)
    assert torch.equal(decoder(z), again(z))
    assert torch.equal(decoder.latent_mean, again.latent_mean)
    assert torch.equal(decoder.latent_std, again.latent_std)
    assert again.info == decoder.info
    assert again.describe() == decoder.describe()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["decoder"], "no scratch folder is left"
    assert sorted(p.name for p in (tmp_path / "a" / "decoder").iterdir()) == [
        "README.md",
        "config.json",
        "log.jsonl",
        "model.safetensors",
    ]
    assert {"latent_mean", "latent_std"} <= set(load_file(tmp_path / "a" / "decoder" / "model.safetensors"))


def test_hub_mixin_reads_what_was_saved(encoder, tmp_path):
    decoder = make(encoder)
    decoder.save(tmp_path / "d")
    again = PixelDecoder.from_pretrained(str(tmp_path / "d"))
    z = encoder.sample_latents(2)
    assert torch.equal(decoder(z), again(z))
    assert again.info["model"] == "tiny"
    again.save_pretrained(tmp_path / "e")
    assert PixelDecoder.load(tmp_path / "e", encoder).info == decoder.info


def test_saving_replaces_a_decoder_but_nothing_else(encoder, tmp_path):
    make(encoder, seed=0).save(tmp_path / "d")
    second = make(encoder, seed=1)
    second.save(tmp_path / "d")
    z = encoder.sample_latents(1)
    assert torch.equal(PixelDecoder.load(tmp_path / "d", encoder)(z), second(z))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not a decoder's folder"):
        second.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_failed_save_leaves_the_earlier_decoder(encoder, tmp_path, monkeypatch):
    first = make(encoder, seed=0)
    first.save(tmp_path / "d")

    def fail(self, folder):
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PixelDecoder, "_save_pretrained", fail)
    with pytest.raises(InputError, match="No space left"):
        make(encoder, seed=1).save(tmp_path / "d")
    monkeypatch.undo()
    z = encoder.sample_latents(1)
    assert torch.equal(PixelDecoder.load(tmp_path / "d", encoder)(z), first(z))
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_another_encoder_is_refused(encoder, make_encoder, tmp_path):
    make(encoder).save(tmp_path / "d")
    with pytest.raises(InputError, match="another encoder"):
        PixelDecoder.load(tmp_path / "d", make_encoder(seed=1))


def test_another_image_size_is_refused_and_the_right_one_named(encoder, make_encoder, tmp_path):
    make(encoder).save(tmp_path / "d")
    with pytest.raises(InputError, match=r"\(3, 16, 16\).*\(3, 32, 32\).*image_size=16"):
        PixelDecoder.load(tmp_path / "d", make_encoder(side=32))


def test_missing_and_damaged_folders_are_one_clear_line(encoder, tmp_path):
    for path in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(InputError, match="no decoder at"):
            PixelDecoder.load(path, encoder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        PixelDecoder.load(tmp_path / "empty", encoder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "config.json").write_text("{"),
        lambda d: (d / "config.json").write_text('{"hidden_size": 3}'),
        lambda d: (d / "model.safetensors").write_bytes(b"PK\x03\x04 not safetensors"),
        lambda d: (d / "model.safetensors").unlink(),
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]),
        lambda d: (d / "config.json").write_text(
            (d / "config.json").read_text().replace('"size": "tiny"', '"size": "small"')
        ),
        lambda d: flip_a_bit(d / "model.safetensors"),
    ],
)
def test_damage_is_one_clear_line(encoder, tmp_path, damage):
    make(encoder, model="other").save(tmp_path / "d")
    damage(tmp_path / "d")
    with pytest.raises(InputError) as caught:
        PixelDecoder.load(tmp_path / "d", encoder)
    assert "\n" not in str(caught.value)


def test_config_is_json_with_shapes(encoder, tmp_path):
    make(encoder).save(tmp_path / "d")
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    assert config["latent_shape"] == [16, 24]
    assert config["image_shape"] == [3, 16, 16]
    assert config["size"] == "tiny"


def test_loading_leaves_the_global_random_state(encoder, tmp_path):
    make(encoder).save(tmp_path / "d")
    before = torch.get_rng_state()
    PixelDecoder.load(tmp_path / "d", encoder)
    assert torch.equal(before, torch.get_rng_state())


def test_description_reaches_the_provenance(encoder):
    model = encoder.with_decoder(make(encoder))
    assert model.has_decoder
    assert model.provenance["data_free"] is True
    assert model.provenance["decoder"]["kind"] == "surrogate"
    assert model.provenance["decoder"]["validation"]["leaves"] == ROW
    assert "standardised" in model.provenance["space"]
    json.dumps(model.provenance)


def test_the_blur_is_that_of_a_gaussian_and_keeps_the_mean():
    torch.manual_seed(0)
    decoder = PixelDecoder([4, 6], [3, 32, 32], "tiny", blur=0.05)
    plain = PixelDecoder([4, 6], [3, 32, 32], "tiny")
    plain.load_state_dict(decoder.state_dict())
    z = torch.randn(2, 4, 6)
    with torch.no_grad():
        sharp, soft = plain(z), decoder(z)
    expected = np.stack([[gaussian_filter(c, 1.6, mode="nearest", radius=5) for c in image] for image in sharp.numpy()])
    assert np.abs(soft.numpy() - expected).max() < 1e-5
    assert torch.equal(PixelDecoder([4, 6], [3, 32, 32], "tiny", blur=0.001).kernel, torch.ones(1))


@pytest.mark.parametrize("blur", [0.0, 0.1])
def test_forward_and_reverse_derivatives_agree(encoder, blur):
    decoder = make(encoder)
    decoder.kernel = PixelDecoder(encoder.latent_shape, encoder.image_shape, "tiny", blur=blur).kernel
    f = encoder.with_decoder(decoder).latent_map
    z = encoder.sample_latents(1)
    v, w = encoder.sample_latents(2, seed=1).split(1)
    with sdpa_kernel(SDPBackend.MATH):
        forward = jvp(f, (z,), (v,))[1]
        backward = vjp(f, z)[1](w)[0]
        h = 1e-3
        numeric = (f(z + h * v) - f(z - h * v)) / (2 * h)
    assert torch.allclose((forward * w).sum(), (v * backward).sum(), rtol=1e-3)
    assert (forward - numeric).norm() < 0.02 * forward.norm()
    assert forward.norm() > 0


def test_decoder_is_twice_differentiable(encoder):
    decoder = make(encoder)
    z = encoder.sample_latents(1).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(decoder(z).square().sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), z)
    assert second.isfinite().all()
    assert second.abs().sum() > 0
