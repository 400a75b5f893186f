"""What an object says of itself: in a few lines, what a person asks first."""

import pytest
import torch
from support.maps import double_well

import fmprobe


@pytest.fixture(scope="module")
def model():
    return fmprobe.demo_model()


def test_a_model_says_its_shapes_its_device_and_its_decoder(model, tiny_dinov2):
    first, shapes, decoder = repr(model).splitlines()
    assert first.startswith("Autoencoder ")
    assert (
        shapes
        == f"  images 3 x {model.image_shape[1]} x {model.image_shape[2]}, latents "
        + " x ".join(map(str, model.latent_shape))
        + ", cpu"
    )
    assert decoder == "  decoder: own"
    bare = fmprobe.load(tiny_dinov2, image_size=28)
    assert "no latent map: fmprobe.fit_decoder(model)" in repr(bare)
    surrogate = fmprobe.fit_decoder(bare, kind="linear", n_images=20, progress=False)
    assert "  decoder: a surrogate; held out: L1 0." in repr(bare.with_decoder(surrogate))


def test_attractors_say_how_many_starts_settled():
    starts = torch.tensor([[0.3], [0.4], [-0.2], [0.7]])
    found = fmprobe.find_attractors(double_well, starts=starts, progress=False)
    head, merged, basins = repr(found).splitlines()
    assert head == "AttractorSet: 2 attractors, from 4 of 4 starts that settled"
    assert merged == "  merged by relative distance 0.01"
    assert basins.startswith("  basins 3, 1; spectral radius 0.")
    none = fmprobe.find_attractors(lambda z: -2 * z, starts=starts, max_steps=3, progress=False)
    assert repr(none).splitlines()[0] == "AttractorSet: 0 attractors, from 0 of 4 starts that settled"
    assert len(repr(none).splitlines()) == 2


def test_a_detector_says_what_it_accepts():
    model = fmprobe.from_functions(
        lambda x: double_well(x.flatten(1)),
        lambda z: z.reshape(-1, 1, 2, 2),
        image_shape=(1, 2, 2),
        latent_shape=(4,),
        name="wells",
    )
    draws = torch.rand(60, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    detector = fmprobe.TrajectoryDetector(model, steps=3)
    assert repr(detector) == "TrajectoryDetector of wells: decides by 'joined', accepts 95%; not fitted"
    assert "30 fit images, distances to" in repr(detector.fit(draws[:30]))
    assert "accepts or rejects nothing" in repr(detector)
    detector.calibrate(draws[30:])
    assert repr(detector).splitlines()[-1] == "  30 held-out images: 96.8% are accepted (88.4% to 99.9%)"


def test_a_tracker_says_how_far_it_is():
    network = fmprobe.DenseAutoencoder(2, 4, (1, 4, 4))
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    tracker = fmprobe.AttractorTracker(images, images, starts=4, max_steps=3)
    assert repr(tracker) == ("AttractorTracker: 8 training and 8 test images, 4 starts of a kind; no records yet")
    tracker(3, network)
    assert "1 records; at epoch 3 attractors: " in repr(tracker)
