"""DINOv2: patch tokens of the library's own forward, and no decoder until one is given."""

import pytest
import torch
from support.checkpoints import MEAN, STD, save_dinov2
from transformers import Dinov2Model

import fmprobe


@pytest.mark.parametrize("size", [28, 42])
def test_latents_are_the_librarys_patch_tokens(tiny_dinov2, size):
    model, images = fmprobe.load(tiny_dinov2, image_size=size), torch.rand(2, 3, size, size)
    pixels = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(tiny_dinov2).eval()(pixels).last_hidden_state
        latents = model.encode(images)
    assert model.latent_shape == ((size // 7) ** 2, 24)
    assert torch.allclose(latents, tokens[:, 1:], atol=1e-5)


def test_without_a_decoder_it_encodes_and_says_what_is_missing(tiny_dinov2):
    model = fmprobe.load(tiny_dinov2)
    assert not model.has_decoder
    for call in (model.decode, model.latent_map):
        with pytest.raises(fmprobe.InputError, match="fit-decoder"):
            call(model.sample_latents(1))


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused(tiny_dinov2):
    with pytest.raises(fmprobe.InputError, match="multiple of 7"):
        fmprobe.load(tiny_dinov2, image_size=30)


def test_half_precision_checkpoints_are_run_in_the_dtype_asked_for(tmp_path):
    model = fmprobe.load(save_dinov2(tmp_path, dtype=torch.float16))
    assert model.provenance["dtype"] == "float32"
    assert model.encode(torch.rand(1, 3, 28, 28)).dtype == torch.float32


def test_fit_takes_small_images_on_a_cpu_alone_when_the_processor_asks_for_more(tmp_path, tiny_dinov2):
    large = save_dinov2(tmp_path, side=154)
    assert fmprobe.load(large, image_size="fit").image_shape == (3, 112, 112)
    assert fmprobe.load(large).image_shape == (3, 154, 154)
    assert fmprobe.load(tiny_dinov2, image_size="fit").image_shape == (3, 28, 28)
