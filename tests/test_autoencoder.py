"""Autoencoder: shapes checked, starts that depend on seed and index alone."""

import pytest
import torch

import fmprobe


@pytest.fixture
def model():
    return fmprobe.from_functions(
        lambda x: x.flatten(1)[:, :6].reshape(-1, 2, 3),
        lambda z: z.flatten(1).repeat(1, 2).reshape(-1, 3, 2, 2),
        image_shape=(3, 2, 2),
        latent_shape=(2, 3),
    )


def test_the_latent_map_is_encode_after_decode(model):
    z = model.sample_latents(4)
    assert torch.equal(model.latent_map(z), model.encode(model.decode(z)))


def test_start_i_depends_on_seed_and_index_alone(model):
    many = model.sample_latents(50, seed=3)
    assert many.dtype == torch.float32
    assert torch.equal(model.sample_latents(7, seed=3), many[:7])
    assert torch.equal(model.sample_latents(5, seed=3, first=20), many[20:25])
    assert not torch.equal(model.sample_latents(7, seed=4), many[:7])


def test_starts_are_standard_normal(model):
    draws = model.sample_latents(4000).flatten(1)
    assert draws.mean().abs() < 0.03
    assert (draws.std(0) - 1).abs().max() < 0.05
    assert (torch.corrcoef(draws.T) - torch.eye(6)).abs().max() < 0.06


@pytest.mark.parametrize(
    ("call", "shape", "message"),
    [
        ("encode", (1, 3, 2, 3), "takes images of shape"),
        ("decode", (1, 6), "takes latents of shape"),
        ("latent_map", (2, 3), "takes latents of shape"),
    ],
)
def test_wrong_shapes_are_named(model, call, shape, message):
    with pytest.raises(fmprobe.InputError, match=message):
        getattr(model, call)(torch.zeros(shape))


def test_functions_that_give_another_shape_are_named():
    model = fmprobe.from_functions(lambda x: x[:, :1], lambda z: z, image_shape=(3, 2, 2), latent_shape=(3, 2, 2))
    with pytest.raises(fmprobe.InputError, match=r"gave shape \(1, 1, 2, 2\)"):
        model.encode(torch.zeros(1, 3, 2, 2))
