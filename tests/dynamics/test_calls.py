"""A caller's f reaches no memory that is read afterwards, however it treats its argument and its value."""

import pytest
import torch

import fmprobe
from fmprobe.dynamics.fields import field_at
from fmprobe.dynamics.floor import rounding_floor
from fmprobe.dynamics.jacobian import spectral_norm, spectral_radius
from fmprobe.dynamics.polish import anderson


def plain(z):
    return 0.5 * torch.tanh(z) + 0.25 * z.flip(-1)


def in_place(z):
    value = plain(z)
    z.zero_()
    return value


def into_its_argument(z):
    value = plain(z.clone())  # of what z was, also where gradients are on
    return z.copy_(value) if not torch.is_grad_enabled() else z.mul_(0).add_(value)


class Buffered:
    """Gives the same memory at every call where no gradient is asked for."""

    def __init__(self):
        self.kept = {}

    def __call__(self, z):
        value = plain(z)
        if value.requires_grad or torch.is_grad_enabled():
            return value
        kept = self.kept.setdefault(z.shape, torch.empty_like(value))
        return kept.copy_(value)


CALLS = {
    "trajectories": lambda f, z: torch.cat(
        fmprobe.iterate(f, z, batch_size=4, store_trajectories=True).trajectories or []
    ),
    "ends": lambda f, z: fmprobe.iterate(f, z, batch_size=4).ends,
    "attractors": lambda f, z: fmprobe.find_attractors(f, starts=z, polish="anderson", progress=False).errors,
    "field": lambda f, z: field_at(f, z, 3),
    "floor": lambda f, z: rounding_floor(f, z, 5)[0],
    "polish": lambda f, z: anderson(f, z)[0],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("f", [in_place, into_its_argument, Buffered()], ids=["in place", "its argument", "buffered"])
def test_what_f_does_to_its_memory_changes_nothing(f, call):
    starts = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    kept = starts.clone()
    assert torch.equal(CALLS[call](f, starts), CALLS[call](plain, kept))
    assert torch.equal(starts, kept)


def test_halving_in_place_ends_at_zero():
    orbits = fmprobe.iterate(lambda z: z.mul_(0.5), torch.full((2, 3), 8.0))
    assert (orbits.ends.abs() < 1e-2).all()


@pytest.mark.parametrize("read", [spectral_radius, spectral_norm])
def test_a_decoder_that_begins_in_place_is_differentiated(read):
    elu = torch.nn.ELU(inplace=True)
    latents = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    expected = read(lambda z: torch.nn.functional.elu(z) * 0.5, latents.clone())
    assert torch.allclose(read(lambda z: elu(z) * 0.5, latents), expected)


def test_an_encoder_that_works_in_place_leaves_the_callers_images():
    model = fmprobe.from_functions(
        lambda im: im.sub_(0.5).flatten(1),
        lambda z: z.add_(0.5).reshape(-1, 1, 2, 2),
        image_shape=(1, 2, 2),
        latent_shape=(4,),
    )
    images, latents = torch.rand(3, 1, 2, 2), torch.rand(3, 4)
    before = images.clone(), latents.clone()
    for read, values in ((model.encode, images), (model.decode, latents), (model.latent_map, latents)):
        read(values)
    assert torch.equal(images, before[0])
    assert torch.equal(latents, before[1])
