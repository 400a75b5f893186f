import numpy as np
import pytest
import torch
from support.quick import painted_anew

from fmprobe import procedural
from fmprobe.errors import InputError
from fmprobe.procedural import MIXTURES, procedural_images


@pytest.fixture(autouse=True)
def anew():
    """No image is one that was kept from before."""
    with painted_anew():
        yield


@pytest.mark.parametrize("mixture", MIXTURES)
def test_images_are_float32_in_the_unit_range(mixture):
    images = procedural_images(12, 40, seed=3, mixture=mixture)
    assert images.shape == (12, 3, 40, 40)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.flatten(1).std(dim=1) > 0.005).all(), "every image shows something"


@pytest.mark.parametrize("mixture", MIXTURES)
def test_image_depends_on_seed_and_index_alone(mixture):
    whole = procedural_images(9, 24, seed=5, mixture=mixture)
    pieces = torch.cat(
        [procedural_images(n, 24, seed=5, mixture=mixture, first=i) for i, n in [(0, 2), (2, 6), (8, 1)]]
    )
    assert torch.equal(whole, pieces)
    other = procedural_images(9, 24, seed=6, mixture=mixture)
    assert not any(torch.equal(a, b) for a, b in zip(whole, other, strict=True))


def test_global_random_states_are_neither_read_nor_moved():
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = procedural_images(4, 16)
    assert np.random.rand() == pytest.approx(0.5488135039)  # noqa: NPY002
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, procedural_images(4, 16))


def test_mixture_draws_every_kind_about_as_often_as_its_weight(monkeypatch):
    drawn = []

    def recorder(kind, draw):
        return lambda rng, size: drawn.append(kind) or draw(rng, size)

    for kind, draw in procedural._KINDS.items():
        monkeypatch.setitem(procedural._KINDS, kind, recorder(kind, draw))
    procedural_images(400, 8)
    for kind, weight in procedural._WEIGHTS.items():
        assert abs(drawn.count(kind) / 400 - weight) < 0.1
    procedural_images(5, 8, mixture="noise")
    assert drawn[400:] == ["noise"] * 5


def test_spectrum_of_noise_falls_with_frequency():
    size = 64
    images = procedural_images(40, size, mixture="noise").double()
    power = torch.fft.fft2(images - images.mean(dim=(2, 3), keepdim=True)).abs().square().mean(dim=(0, 1))
    frequency = torch.fft.fftfreq(size).double()
    radius = (torch.hypot(frequency[:, None], frequency[None]) * size).round().long()
    rings = torch.stack([power[radius == r].mean() for r in (1, 2, 4, 8, 16, 31)])
    assert (rings.diff() < 0).all()
    slope = (rings[4] / rings[1]).log() / torch.tensor(8.0).log()
    assert -4 < slope < -1, "power falls as f^-2a with a between 0.5 and 2"


def test_leaves_have_edges_and_flat_areas():
    step = procedural_images(30, 64, mixture="leaves").diff(dim=-1).abs()
    assert (step < 1e-3).float().mean() > 0.4
    assert (step > 0.1).float().mean() > 0.02


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_smallest_sizes_are_finite(mixture, size):
    images = procedural_images(20, size, mixture=mixture)
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1


def test_no_images():
    assert procedural_images(0, 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1, "size": 8}, "n=-1"),
        ({"n": 1, "size": 0}, "at least 1"),
        ({"n": 1, "size": 8, "first": -2}, "first=-2"),
        ({"n": 1, "size": 8, "mixture": "leafs"}, "expected one of all, leaves, noise, fractals, gradients"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        procedural_images(**arguments)
