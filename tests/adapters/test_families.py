"""Every family against its model library's own forward, on tiny checkpoints with random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.checkpoints import ENCODERS, LANGUAGE, MEAN, OWN_DECODERS, SIDE, STD, TIMM, TINY

import fmprobe
from fmprobe.dynamics.jacobian import Linearisation
from fmprobe.surrogates.pixel import PixelDecoder

CLASSES = {  # of transformers, and how many tokens come before the patches
    "vit": ("ViTModel", 1),
    "deit": ("DeiTModel", 2),
    "beit": ("BeitModel", 1),
    "data2vec": ("Data2VecVisionModel", 1),
    "ijepa": ("IJepaModel", 0),
    "dinov2": ("Dinov2Model", 1),
    "dinov2-registers": ("Dinov2WithRegistersModel", 5),
    "dinov3": ("DINOv3ViTModel", 5),
    "clip": ("CLIPVisionModel", 1),
    "clip-vision": ("CLIPVisionModel", 1),
    "siglip": ("SiglipVisionModel", 0),
}
IMAGES = sorted(TINY.keys() - LANGUAGE.keys())


def load(tiny, name, **arguments):
    size = None if name in LANGUAGE or name.startswith("rae") or name == "mae" else SIDE
    return fmprobe.load(tiny(name), **{"image_size": size, **arguments})


def some_images(model, n=2):
    return torch.rand(n, *model.image_shape, generator=torch.Generator().manual_seed(1))


def normalised(images):
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def library_encoder(folder: Path, name: str) -> Any:
    import transformers

    return getattr(transformers, CLASSES[name][0]).from_pretrained(folder).eval()


def library_timm(folder: Path, **arguments: Any) -> Any:
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()


@pytest.fixture
def photo(tmp_path):
    """A folder with one picture that is not square, and larger than any model here takes."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((90, 61), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path


@pytest.mark.parametrize("size", [SIDE, 48])
@pytest.mark.parametrize("name", ENCODERS)
def test_latents_are_the_librarys_patch_tokens(tiny, name, size):
    model = load(tiny, name, image_size=size)
    images, prefix = some_images(model), CLASSES[name][1]
    keyword = {"interpolate_pos_encoding": True} if size != SIDE and not name.startswith("dino") else {}
    with torch.no_grad():
        expected = library_encoder(tiny(name), name)(normalised(images), **keyword).last_hidden_state[:, prefix:]
        latents = model.encode(images)
    assert model.latent_shape == ((size // 8) ** 2, 24)
    assert model.provenance["prefix_tokens"] == prefix
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_photo_goes_through_the_checkpoints_own_processor(tiny, name, photo):
    from transformers import AutoImageProcessor

    model = load(tiny, name, image_size=None)
    processor = AutoImageProcessor.from_pretrained(tiny(name))
    pixels = processor(Image.open(photo / "photo.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = library_encoder(tiny(name), name)(pixels).last_hidden_state[:, CLASSES[name][1] :]
        latents = model.encode(model.load_images(str(photo)))
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TIMM)
def test_timms_features_and_its_own_transform(tiny, name, photo):
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    model, library = load(tiny, name), library_timm(tiny(name))
    transform: Any = create_transform(**resolve_model_data_config(library))
    with torch.no_grad():
        features = library.forward_features(transform(Image.open(photo / "photo.png"))[None])
        pooled = library.forward_head(features, pre_logits=True)
        if name == "timm-swin":
            features = features.permute(0, 3, 1, 2)
        expected = features[:, library.num_prefix_tokens :] if features.ndim == 3 else features
        images = model.load_images(str(photo))
        torch.testing.assert_close(model.encode(images), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(load(tiny, name, tokens="pooled").encode(images), pooled, atol=1e-5, rtol=0)


def test_timms_transformers_take_other_sizes(tiny):
    model = load(tiny, "timm-vit", image_size=48)
    images = some_images(model)
    library = library_timm(tiny("timm-vit"), dynamic_img_size=True)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode(images), library.forward_features(normalised(images))[:, 1:], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", sorted(OWN_DECODERS.keys() - {"mae"}))
def test_the_reconstruction_is_diffusers_own(tiny, name):
    from diffusers.models.auto_model import AutoModel

    model = load(tiny, name)
    images = some_images(model)
    library: Any = AutoModel.from_pretrained(str(tiny(name))).eval()
    with torch.no_grad():
        if name.startswith("rae"):
            expected_latents = library.encode(images).latent
            expected = library(images).sample
        else:
            out = library.encode(2 * images - 1)
            raw = out.latent_dist.mode() if hasattr(out, "latent_dist") else out[0]
            scale, shift = library.config.scaling_factor, library.config.get("shift_factor") or 0
            expected_latents = (raw - shift) * scale
            expected = (library.decode(raw).sample + 1) / 2
        latents = model.encode(images)
        torch.testing.assert_close(latents, expected_latents, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.decode(latents), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["rae-mae", "rae-dinov2"])
def test_an_encoder_under_the_names_of_transformers_files(tiny, name, tmp_path):
    """diffusers alone leaves such weights empty, with a warning."""
    from diffusers.models.auto_model import AutoModel
    from safetensors.torch import load_file, save_file

    library: Any = AutoModel.from_pretrained(str(tiny(name)))
    library.encoder.save_pretrained(tmp_path / "encoder")
    encoder = load_file(tmp_path / "encoder" / "model.safetensors")
    folder = Path(shutil.copytree(tiny(name), tmp_path / "rae"))
    kept = {k: v for k, v in load_file(folder / "diffusion_pytorch_model.safetensors").items() if k[:8] != "encoder."}
    renamed = {f"encoder.{key}": value for key, value in encoder.items()}
    assert not renamed.keys() <= {f"encoder.{key}" for key in library.encoder.state_dict()}
    save_file(kept | renamed, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    model = fmprobe.load(folder)
    with torch.no_grad():
        assert torch.equal(model.encode(some_images(model)), load(tiny, name).encode(some_images(model)))
    del renamed[next(iter(renamed))]
    save_file(kept | renamed, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(fmprobe.InputError, match=r"lacks \d+ weights"):
        fmprobe.load(folder)


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_residual_stream_is_the_language_models_own(tiny, name):
    from transformers import AutoModelForCausalLM

    model = load(tiny, name)
    library: Any = AutoModelForCausalLM.from_pretrained(tiny(name)).eval()
    words = torch.arange(16)[None]
    with torch.no_grad():
        weights = library.get_input_embeddings().weight
        mean, std = weights.mean(0), weights.std(0)
        logits = library(words).logits
        after = model.latent_map((library.get_input_embeddings()(words) - mean) / std) * std + mean
        torch.testing.assert_close(library.lm_head(after), logits, atol=1e-5, rtol=0)
    assert model.image_shape == ()
    assert "random embeddings" in model.provenance["space"]
    with pytest.raises(fmprobe.InputError, match="takes no images"):
        model.load_images("procedural", 1)


@pytest.mark.parametrize("tokens", ["cls", "pooled", "all"])
@pytest.mark.parametrize("name", ENCODERS)
def test_other_tokens_on_request(tiny, name, tokens):
    prefix = CLASSES[name][1]
    if tokens == "cls" and prefix == 0:
        with pytest.raises(fmprobe.InputError, match="expected one of patch, pooled, all"):
            load(tiny, name, tokens=tokens)
        return
    model = load(tiny, name, tokens=tokens)
    images = some_images(model)
    with torch.no_grad():
        out = library_encoder(tiny(name), name)(normalised(images))
        hidden, pooled = out.last_hidden_state, out.get("pooler_output")
        if CLASSES[name][0] in ("ViTModel", "DeiTModel", "BeitModel", "Data2VecVisionModel", "IJepaModel"):
            pooled = None  # a layer that most checkpoints have no weights for
        pooled = hidden[:, prefix:].mean(1) if pooled is None else pooled
        expected = {"cls": hidden[:, 0], "pooled": pooled, "all": hidden}[tokens]
        torch.testing.assert_close(model.encode(images), expected, atol=1e-5, rtol=0)
    assert model.provenance["tokens"] == tokens


@pytest.mark.parametrize("name", TINY)
def test_provenance_says_what_was_loaded(tiny, name):
    model = load(tiny, name)
    record = json.loads(json.dumps(model.provenance))
    assert record["model"] == str(tiny(name))
    assert record["family"] in fmprobe.loading.adapters()
    assert record["fingerprint"]
    assert record["tokens"]
    assert record["space"]
    if name not in LANGUAGE:
        assert record["preprocessing"]["size"] > 0


@pytest.mark.parametrize("name", [*OWN_DECODERS, *LANGUAGE])
def test_f_is_deterministic_and_maps_rows_apart(tiny, name):
    model = load(tiny, name)
    z = model.sample_latents(3)
    with torch.no_grad():
        once = model.latent_map(z)
        assert torch.equal(once, model.latent_map(z))
        alone = torch.cat([model.latent_map(row[None]) for row in z])
    torch.testing.assert_close(once, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_jacobian_vector_products_agree_both_ways(tiny, name):
    model = load(tiny, name)
    if not model.has_latent_map:
        model = model.with_decoder(PixelDecoder(model.latent_shape, model.image_shape, "tiny").eval())
    z, u, v = model.sample_latents(3, seed=2).double().split(1)
    at = Linearisation(lambda x: model.latent_map(x.float()).double(), z)
    left, right = (u * at.jvp(v)).sum(), (at.vjp(u) * v).sum()
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)
    assert left.abs() > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", TINY)
def test_half_precision_weights_give_float32_latents_near_the_full_ones(tiny, name, dtype):
    """Within 1 % (float16) and 5 % (bfloat16) in norm: what their 11 and 8 bits leave after a few layers."""
    full, half = load(tiny, name), load(tiny, name, dtype=dtype)
    with torch.no_grad():
        if name in LANGUAGE:
            z = full.sample_latents(2)
            a, b = full.latent_map(z), half.latent_map(z)
        else:
            images = some_images(full)
            a, b = full.encode(images), half.encode(images)
    assert b.dtype == torch.float32
    assert half.provenance["dtype"] == dtype
    assert (a - b).norm() < {"float16": 0.01, "bfloat16": 0.05}[dtype] * a.norm()


@pytest.mark.parametrize("name", TINY)
def test_random_weights_are_another_model_of_the_same_shape(tiny, name):
    state = torch.get_rng_state()
    real, null, again, other = (load(tiny, name, random_weights=seed) for seed in (None, 0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    z = real.sample_latents(1)
    with torch.no_grad():
        codes = [m.latent_map(z) if name in LANGUAGE else m.encode(some_images(m)) for m in (real, null, again, other)]
    assert torch.equal(codes[1], codes[2])
    assert not torch.allclose(codes[0], codes[1], atol=1e-4)
    assert not torch.allclose(codes[1], codes[3], atol=1e-4)
    assert len({model.provenance["fingerprint"] for model in (real, null, other)}) == 3
    assert null.provenance["random_weights"] == 0


@pytest.mark.parametrize("name", ["vit", "clip", "kl", "timm-resnet", "qwen3"])
def test_a_model_in_memory(tiny, name):
    from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

    processor = None
    if name in ("vit", "clip"):
        processor = AutoImageProcessor.from_pretrained(tiny(name))
        module = (AutoModelForImageClassification if name == "vit" else AutoModel).from_pretrained(tiny(name))
    elif name == "kl":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        module = AutoencoderKL.from_pretrained(tiny(name))
    else:
        module = library_timm(tiny(name)) if name.startswith("timm") else AutoModel.from_pretrained(tiny(name))
    model, from_disk = fmprobe.load(module, processor=processor), load(tiny, name)
    assert model.latent_shape == from_disk.latent_shape
    with torch.no_grad():
        if name == "qwen3":
            z = model.sample_latents(1)
            assert torch.equal(model.latent_map(z), from_disk.latent_map(z))
        else:
            images = some_images(model)
            assert torch.equal(model.encode(images), from_disk.encode(images))


def test_sizes_that_an_encoder_cannot_take(tiny):
    with pytest.raises(fmprobe.InputError, match="multiple of 8"):
        load(tiny, "vit", image_size=30)
    with pytest.raises(fmprobe.InputError, match="does not take images of 50 px"):
        load(tiny, "timm-swin", image_size=50)
    with pytest.raises(fmprobe.InputError, match="decodes to 64 px alone"):
        load(tiny, "rae-mae", image_size=32)


def test_naflex_is_refused_with_the_reason(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(fmprobe.InputError, match="NaFlex"):
        fmprobe.load(tmp_path)
