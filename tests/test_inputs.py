"""Images are checked once at every public door; the functions of a caller reach no memory but their own."""

import inspect
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fmprobe

SHAPE = (1, 16, 16)
GOOD = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
NAMES = ("images", "images_b", "reference_images", "train", "test", "held_out")  # of parameters that are images


def doors():
    """Every parameter of the public functions, classes and methods that takes images: (function, parameter)."""
    found = set()
    for name in fmprobe.__all__:
        thing = getattr(fmprobe, name)
        public = {name: thing}
        if inspect.isclass(thing):
            if issubclass(thing, nn.Module):
                continue  # a network to be trained, not an instrument
            public |= {f"{name}.{key}": member for key, member in vars(thing).items() if not key.startswith("_")}
        for label, function in public.items():
            if callable(function) and not (inspect.isclass(function) and issubclass(function, BaseException)):
                parameters = inspect.signature(function).parameters.values()
                found |= {(label, p.name) for p in parameters if p.name in NAMES and "Tensor" in str(p.annotation)}
    return found


@pytest.fixture(scope="module")
def known():
    torch.manual_seed(0)
    network = fmprobe.DenseAutoencoder(2, 4, SHAPE).eval()
    model = network.autoencoder()
    bare = fmprobe.Autoencoder(
        lambda x: x.flatten(1)[:, :2], None, image_shape=SHAPE, latent_shape=(2,), provenance={"model": "bare"}
    )
    return SimpleNamespace(
        network=network,
        model=model,
        bare=bare,
        detector=fmprobe.TrajectoryDetector(model, max_steps=3).fit(GOOD[:20], GOOD[20:]),
        attractors=fmprobe.find_attractors(lambda z: z / 2, starts=torch.ones(3, 2), progress=False),
    )


CALLS = {
    ("Autoencoder.encode", "images"): lambda k, x: k.model.encode(x),
    ("Autoencoder.check_images", "images"): lambda k, x: k.model.check_images(x),
    ("TrajectoryDetector.fit", "images"): lambda k, x: fmprobe.TrajectoryDetector(k.model, max_steps=3).fit(x),
    ("TrajectoryDetector.fit", "held_out"): lambda k, x: fmprobe.TrajectoryDetector(k.model, max_steps=3).fit(GOOD, x),
    ("TrajectoryDetector.calibrate", "held_out"): lambda k, x: k.detector.calibrate(x),
    ("TrajectoryDetector.score", "images"): lambda k, x: k.detector.score(x),
    ("TrajectoryDetector.scores", "images"): lambda k, x: k.detector.scores(x),
    ("TrajectoryDetector.predict", "images"): lambda k, x: k.detector.predict(x),
    ("TrajectoryDetector.examine", "images"): lambda k, x: k.detector.examine(x),
    ("AttractorTracker", "train"): lambda k, x: fmprobe.AttractorTracker(x, GOOD),
    ("AttractorTracker", "test"): lambda k, x: fmprobe.AttractorTracker(GOOD, x),
    ("compare", "images"): lambda k, x: fmprobe.compare(k.model, k.model, x, max_steps=2),
    ("compare", "images_b"): lambda k, x: fmprobe.compare(k.model, k.model, GOOD, images_b=x, max_steps=2),
    ("fit_decoder", "images"): lambda k, x: fmprobe.fit_decoder(k.bare, x, steps=1),
    ("probe_memorization", "train"): lambda k, x: fmprobe.probe_memorization(k.model, x, n=2, max_steps=2),
    ("probe_memorization", "test"): lambda k, x: fmprobe.probe_memorization(k.model, GOOD, x, n=2, max_steps=2),
    ("probe_residuals", "images"): lambda k, x: fmprobe.probe_residuals(k.model, x, steps=1),
    ("probe_weights", "images"): lambda k, x: fmprobe.probe_weights(k.model, k.attractors, x, [1]),
    ("probe_weights", "reference_images"): lambda k, x: fmprobe.probe_weights(
        k.model, k.attractors, GOOD, [1], reference_images=x
    ),
    # A set without images, checked last, so that nothing is fitted.
    ("surrogate_report", "images"): lambda k, x: fmprobe.surrogate_report(
        k.bare, images={"mine": x, "none": x[:0]}, null=k.bare
    ),
    ("train_autoencoder", "images"): lambda k, x: fmprobe.train_autoencoder(k.network, x, epochs=1),
}
RANGES = {  # what is done to good images, and what the error says to do
    "bytes as floats": (lambda x: 255 * x, "divide them by 255"),
    "16 bits as floats": (lambda x: 65535 * x, "divide them by the largest value"),
    "to -1..1": (lambda x: 2 * x - 1, "undo the normalisation"),
    "as ImageNet's": (lambda x: (x - 0.456) / 0.224, "undo the normalisation"),
    "an overshoot": (lambda x: 1.1 * x - 0.05, "clamp them"),
}
KINDS = {
    "nan": (lambda x: torch.where(x > 0.5, x, torch.nan), "not finite"),
    "inf": (lambda x: torch.where(x > 0.5, x, torch.inf), "not finite"),
    "whole numbers": (lambda x: (255 * x).long(), "floats in|tensors of floats"),
    "truth": (lambda x: x > 0.5, "tensors of floats"),
    "complex": (lambda x: x + 1j, "tensors of floats"),
    "one image": (lambda x: x[0], r"\[None\]"),
    "channels last": (lambda x: x.movedim(1, -1), "1, 16, 16"),
    "another size": (lambda x: x[..., :8], "1, 16, 16"),
    "another rank": (lambda x: x[:, None], "1, 16, 16"),
    "a list": (list, "tensors of floats"),
    "an array": (lambda x: x.numpy(), "tensors of floats"),
    "pictures": (lambda x: [Image.fromarray(np.uint8(255 * row[0].numpy())) for row in x], "tensors of floats"),
}
SHAPES = ("one image", "channels last", "another size", "another rank")


def test_every_door_is_tried():
    exempt = {("Autoencoder.encode_unchecked", "images")}  # what f is made of
    assert doors() - exempt == set(CALLS)


@pytest.mark.parametrize("kind", RANGES | KINDS)
@pytest.mark.parametrize("door", CALLS, ids=" ".join)
def test_bad_images_are_refused_in_one_line(door, kind, known):
    change, message = (RANGES | KINDS)[kind]
    if door == ("AttractorTracker", "train") and kind in SHAPES:
        message = "shape"  # no model says which, but the test images have another
    state = {name: value.clone() for name, value in known.network.state_dict().items()}
    with pytest.raises(fmprobe.InputError, match=message) as caught:
        CALLS[door](known, change(GOOD))
    assert "\n" not in str(caught.value)
    if kind in RANGES:
        low, high = (float(v) for v in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", str(caught.value).split("[")[1])[:2])
        assert (low, high) == pytest.approx([float(v) for v in change(GOOD).aminmax()], rel=1e-3, abs=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in known.network.state_dict().items())


@pytest.mark.parametrize("door", CALLS, ids=" ".join)
def test_rounding_at_the_ends_of_the_range_is_let_through(door, known):
    """What arithmetic leaves of 0 and 1, and halves, which the door may still refuse for the lack of something else."""
    for images in (GOOD + 1e-6, GOOD - 1e-6, GOOD.clone().requires_grad_(), GOOD.bfloat16().float()):
        said = ""
        try:
            CALLS[door](known, images)
        except fmprobe.InputError as error:
            said = str(error)
        assert "lie in" not in said


def test_a_detector_takes_bytes_as_the_floats_that_they_are(known):
    bytes_ = (255 * GOOD).round().byte()
    assert torch.equal(known.detector.score(bytes_), known.detector.score(bytes_.float() / 255))


def test_from_functions_takes_any_range():
    model = fmprobe.from_functions(torch.flatten, torch.flatten, image_shape=(1,), latent_shape=(1,))
    assert model.any_range
    shifted = fmprobe.from_functions(
        lambda x: x.flatten(1)[:, :3], lambda z: z.repeat(1, 4)[..., None], image_shape=(12, 1), latent_shape=(3,)
    )
    images = 255 * torch.rand(5, 12, 1) - 100
    assert shifted.encode(images).shape == (5, 3)
    assert shifted.derived(encode=shifted.encode_unchecked).encode(images).shape == (5, 3)
    assert fmprobe.TrajectoryDetector(shifted, max_steps=2).fit(images).score(images).shape == (5,)


def test_f_looks_at_no_values():
    """An accelerator would have to be waited for at each step: what D paints may leave [0, 1]."""
    model = fmprobe.Autoencoder(
        lambda x: x.flatten(1), lambda z: 300 * z[:, None], image_shape=(1, 4), latent_shape=(4,), provenance={}
    )
    z = torch.ones(2, 4)
    assert torch.equal(model.latent_map(z), 300 * z)
    assert torch.equal(model.encode_unchecked(model.decode(z)), 300 * z)
    assert fmprobe.probe_residuals(model, n=2, steps=2).latent.isfinite().all()
    assert fmprobe.probe_contraction(model, n=4, starts=2, steps=(0,)).std_ratio["E"]["across"] == pytest.approx(1)
    with pytest.raises(fmprobe.InputError, match="divide them by 255"):
        model.encode(model.decode(z[:1] / 2))
