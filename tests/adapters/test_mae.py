"""ViT-MAE: equal to the model library's own forward, masking off, tokens in place."""

import json
import shutil

import pytest
import torch
from support.checkpoints import MEAN, STD, save_mae
from transformers import ViTMAEForPreTraining

import fmprobe


@pytest.fixture
def model(tiny_mae):
    return fmprobe.load(tiny_mae)


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16)


def normalised(images):
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_shapes_and_provenance(model, tiny_mae):
    assert model.image_shape == (3, 16, 16)
    assert model.latent_shape == (17, 32)
    assert model.has_decoder
    assert model.provenance["family"] == "mae"
    assert model.provenance["model"] == str(tiny_mae)
    assert model.provenance["preprocessing"]["mean"] == pytest.approx(MEAN)
    json.dumps(model.provenance)


@pytest.mark.parametrize("size", [16, 24])
def test_the_reconstruction_is_the_librarys_own(tiny_mae, size):
    model, images = fmprobe.load(tiny_mae, image_size=size), torch.rand(2, 3, size, size)
    library = ViTMAEForPreTraining.from_pretrained(tiny_mae, mask_ratio=0.0).eval()
    n = (size // 4) ** 2
    with torch.no_grad():
        # The library's whole forward, given noise that leaves the tokens where they are.
        out = library(
            normalised(images), noise=torch.arange(n).expand(2, n).float(), interpolate_pos_encoding=size != 16
        )
        pixels = library.unpatchify(out.logits, (size, size))
        expected = pixels * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        assert torch.allclose(model.decode(model.encode(images)), expected, atol=1e-5)


def test_nothing_is_masked_and_tokens_keep_their_places(model, images):
    with torch.no_grad():
        latents = model.encode(images)
        changed = images.clone()
        changed[:, :, :4, :4] = 1 - changed[:, :, :4, :4]  # the first patch
        moved = (model.encode(changed) - latents).norm(dim=2)
    assert latents.shape == (3, 17, 32)
    # Every token sees the change; the token of the changed patch, right after CLS, most of all.
    assert (moved[:, 1:].argmax(1) == 0).all()


def test_f_is_deterministic_and_maps_rows_apart(model):
    z = model.sample_latents(5)
    with torch.no_grad():
        once, again = model.latent_map(z), model.latent_map(z)
        alone = torch.cat([model.latent_map(row[None]) for row in z])
    assert torch.equal(once, again)
    assert torch.allclose(once, alone, atol=1e-5)


def test_a_model_in_memory_is_left_as_it_was(tiny_mae, images):
    from transformers import AutoImageProcessor

    module = ViTMAEForPreTraining.from_pretrained(tiny_mae)
    model = fmprobe.load(module, processor=AutoImageProcessor.from_pretrained(tiny_mae))
    with torch.no_grad():
        assert torch.equal(model.encode(images), fmprobe.load(tiny_mae).encode(images))
    assert module.config.mask_ratio == 0.75
    with pytest.raises(fmprobe.InputError, match="processor"):
        fmprobe.load(module)


def test_a_checkpoint_of_normalised_pixels_is_refused(tmp_path):
    with pytest.raises(fmprobe.InputError, match="norm_pix_loss"):
        fmprobe.load(save_mae(tmp_path, norm_pix_loss=True))


def test_half_precision_weights_give_float32_latents_near_the_full_ones(tiny_mae, images):
    with torch.no_grad():
        full, half = fmprobe.load(tiny_mae).encode(images), fmprobe.load(tiny_mae, dtype="bfloat16").encode(images)
    assert half.dtype == torch.float32
    assert (half - full).norm() / full.norm() < 0.02


def test_weights_that_are_missing_are_not_made_up(tiny_mae, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_mae, tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "decoder_pred" in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(fmprobe.InputError, match=r"lacks .* weights"):
        fmprobe.load(folder)
