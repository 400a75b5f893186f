"""A model moves to another device, and its inputs follow it."""

import pytest
import torch
from support.checkpoints import save_dinov2

import fmprobe
from fmprobe import loading

THERE = torch.device("cpu:0")  # a device of another name than the CPU's, that every machine has


def moved(model: fmprobe.Autoencoder) -> tuple[list[torch.device], fmprobe.Autoencoder]:
    """The model, moved, and the devices that its parts were put on."""
    asked = []
    read = loading.load

    def watched(*args, **kwargs):
        asked.append(kwargs["device"])
        return read(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", watched)
        assert model.to(THERE) is model
    return asked, model


def test_a_model_moves_in_place_and_computes_the_same_there():
    model = fmprobe.demo_model()
    images, latents = torch.rand(2, *model.image_shape), model.sample_latents(2)
    before = model.encode(images), model.decode(latents), model.latent_map(latents)
    asked, model = moved(model)
    assert asked == [THERE]
    assert model.device == THERE
    for was, now in zip(before, (model.encode(images), model.decode(latents), model.latent_map(latents)), strict=True):
        assert torch.equal(was, now)


def test_a_model_that_is_there_already_is_not_read_again(monkeypatch):
    model = fmprobe.demo_model()
    monkeypatch.setattr(model, "_reload", None)
    assert model.to("cpu") is model


def test_a_model_of_functions_says_who_moves_it():
    model = fmprobe.from_functions(lambda x: x, lambda z: z, image_shape=(4,), latent_shape=(4,), name="mine")
    with pytest.raises(fmprobe.InputError, match="mine was made of what is in memory on cpu: move that to cpu:0"):
        model.to(THERE)


def test_an_unknown_device_is_one_line_and_moves_nothing():
    model = fmprobe.demo_model()
    with pytest.raises(fmprobe.InputError, match="unknown device 'gpu'"):
        model.to("gpu")
    assert model.device == torch.device("cpu")


def test_a_surrogate_moves_with_its_encoder(tmp_path):
    bare = fmprobe.load(save_dinov2(tmp_path / "dino"))
    whole = bare.with_decoder(fmprobe.fit_decoder(bare, kind="linear", n_images=20, progress=False))
    latents = whole.sample_latents(2)
    before = whole.latent_map(latents)
    _, whole = moved(whole)
    assert (whole.device, bare.device) == (THERE, torch.device("cpu"))
    assert torch.equal(whole.latent_map(latents), before)
    assert whole.surrogate is not None
