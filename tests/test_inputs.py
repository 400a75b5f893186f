"""Images are checked once at every public door; the functions of a caller reach no memory but their own."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
                found |= {(label, p.name) for p in parameters if p.name in NAMES and _holds_images(p)}
    return found


def _holds_images(parameter):
    return any(word in str(parameter.annotation) for word in ("Tensor", "ImagesLike"))


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
    ("Autoencoder.take_images", "images"): lambda k, x: k.model.take_images(x),
    ("Autoencoder.image_batches", "images"): lambda k, x: list(k.model.image_batches(x)),
    ("TrajectoryDetector.fit", "images"): lambda k, x: fmprobe.TrajectoryDetector(k.model, max_steps=3).fit(x),
    ("TrajectoryDetector.fit", "held_out"): lambda k, x: fmprobe.TrajectoryDetector(k.model, max_steps=3).fit(GOOD, x),
    ("TrajectoryDetector.calibrate", "held_out"): lambda k, x: k.detector.calibrate(x),
    ("TrajectoryDetector.score", "images"): lambda k, x: k.detector.score(x),
    ("TrajectoryDetector.scores", "images"): lambda k, x: k.detector.scores(x),
    ("TrajectoryDetector.predict", "images"): lambda k, x: k.detector.predict(x),
    ("TrajectoryDetector.examine", "images"): lambda k, x: k.detector.examine(x),
    ("TrajectoryDetector.score_samples", "images"): lambda k, x: k.detector.score_samples(x),
    ("TrajectoryDetector.decision_function", "images"): lambda k, x: k.detector.decision_function(x),
    ("TrajectoryDetector.p_values", "images"): lambda k, x: k.detector.p_values(x),
    ("TrajectoryDetector.explain", "images"): lambda k, x: k.detector.explain(x),
    ("TrajectoryDetector.shift", "images"): lambda k, x: k.detector.shift(x),
    ("AttractorTracker", "train"): lambda k, x: fmprobe.AttractorTracker(x, GOOD),
    ("AttractorTracker", "test"): lambda k, x: fmprobe.AttractorTracker(GOOD, x),
    ("compare", "images"): lambda k, x: fmprobe.compare(k.model, k.model, x, max_steps=2),
    ("compare", "images_b"): lambda k, x: fmprobe.compare(k.model, k.model, GOOD, images_b=x, max_steps=2),
    ("find_attractors", "images"): lambda k, x: fmprobe.find_attractors(k.model, images=x, max_steps=2, progress=False),
    ("fit_decoder", "images"): lambda k, x: fmprobe.fit_decoder(k.bare, x, kind="linear", progress=False),
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
    ("train_autoencoders", "images"): lambda k, x: fmprobe.train_autoencoders([k.network], x, epochs=1),
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
    "channels last": (lambda x: x.movedim(1, -1), "1, 16, 16"),
    "another size": (lambda x: x[..., :8], "1, 16, 16"),
    "another rank": (lambda x: x[:, None], "1, 16, 16"),
}
SHAPES = ("channels last", "another size", "another rank")
BYTES = (255 * GOOD).round().byte()  # what pictures of 8 bits hold of them
TAKEN = {  # other kinds of the same images
    "a tensor": lambda: BYTES / 255,
    "bytes": lambda: BYTES,
    "an array": lambda: (BYTES / 255).numpy(),
    "an array of bytes, channels last": lambda: BYTES.movedim(1, -1).numpy(),
    "an array without channels": lambda: BYTES[:, 0].numpy(),
    "doubles": lambda: (BYTES / 255).numpy().astype(np.float64),
    "a list": lambda: list(BYTES / 255),
    "pictures": lambda: pictures(),
    "labelled pictures": lambda: [(picture, i % 3) for i, picture in enumerate(pictures())],
    "an iterator": lambda: iter(pictures()),
    "a DataLoader": lambda: DataLoader(TensorDataset(BYTES / 255, torch.arange(len(BYTES))), batch_size=7),
    "a data set of torch": lambda: TensorDataset(BYTES / 255),
    "dicts": lambda: [{"pixel_values": part, "label": 3} for part in (BYTES / 255).split(11)],
    "a data set": lambda: datasets.Dataset.from_dict({"label": [*range(len(BYTES))], "photo": pictures()}).cast_column(
        "photo", datasets.Image()
    ),
}
STRICT = {("Autoencoder.check_images", "images")} | {
    *((name, "images") for name in ("train_autoencoder", "train_autoencoders")),
    *(("AttractorTracker", name) for name in ("train", "test")),
}


def pictures():
    return [Image.fromarray(row[0].numpy()) for row in BYTES]


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


@pytest.mark.parametrize("kind", TAKEN)
def test_every_kind_of_images_is_the_same_images(kind, known):
    expected = BYTES / 255
    assert torch.equal(known.model.take_images(TAKEN[kind]()), expected)
    latents = known.model.encode(TAKEN[kind](), batch_size=16)
    assert torch.allclose(latents, known.model.encode(expected), atol=1e-6)
    blocks = list(known.model.image_batches(TAKEN[kind](), block=16))
    assert max(map(len, blocks)) <= 16
    assert torch.equal(torch.cat(blocks), expected)


@pytest.mark.parametrize("door", sorted(set(CALLS) - STRICT), ids=" ".join)
def test_every_door_takes_pictures(door, known):
    """Held-out images of the detector must not be fit images, and the report ends at the set without images."""
    images = [Image.fromarray(255 - row[0].numpy()) for row in BYTES]
    if door == ("surrogate_report", "images"):
        with pytest.raises(fmprobe.InputError, match="there are no images in 'none'"):
            fmprobe.surrogate_report(known.bare, images={"mine": images, "none": GOOD[:0]}, null=known.bare)
        return
    CALLS[door](known, images)


@pytest.mark.parametrize("door", sorted(STRICT), ids=" ".join)
def test_what_trains_a_network_takes_tensors_alone(door, known):
    with pytest.raises(fmprobe.InputError, match="tensors of floats"):
        CALLS[door](known, pictures())


MIXED = {  # what people hand in, and how many images it holds
    "kinds in one list": (lambda p: [p[0], np.asarray(p[1]), BYTES[2]], 3),
    "an array and a picture": (lambda p: [np.asarray(p[0]), p[1]], 2),
    "a tensor and a picture": (lambda p: [BYTES[0] / 255, p[1], p[2]], 3),
    "an image and its map of classes": (
        lambda p: [(BYTES[i] / 255, np.zeros((16, 16), dtype=np.uint8)) for i in range(3)],
        3,
    ),
    "a batch and one-hot labels": (lambda p: [BYTES[:4] / 255, torch.eye(4)], 4),
    "a batch and names": (lambda p: [BYTES[:4] / 255, ("a", "b", "c", "d")], 4),
    "lists of pictures and of labels": (lambda p: iter([[p[:3], [0, 1, 2]], [p[3:5], [0, 1]]]), 5),
    "pictures and names": (lambda p: [(picture, "seven") for picture in p[:3]], 3),
    "two views of each": (lambda p: [(BYTES[i] / 255, BYTES[i + 3] / 255) for i in range(3)], 6),
}


@pytest.mark.parametrize("kind", MIXED)
def test_labels_are_left_out_and_images_are_not(kind, known):
    make, n = MIXED[kind]
    assert len(known.model.take_images(make(pictures()))) == n


@pytest.mark.parametrize("missing", [[0, None], [0, None, 1], [0, 3]], ids=str)
def test_what_is_missing_from_a_list_of_images_is_named(missing, known):
    images = [pictures()[i] if i in (0, 1) else i for i in missing]
    with pytest.raises(fmprobe.InputError, match=r"images \[1\]: an object of type (NoneType|int) is no image"):
        known.model.take_images(images)


def test_one_image_is_a_batch_of_one(known, tmp_path):
    expected = known.model.encode(BYTES[:1] / 255)
    pictures()[0].save(tmp_path / "one.png")
    pictures()[1].save(tmp_path / "two.png")
    one = str(tmp_path / "one.png")
    for image in (
        BYTES[0] / 255,
        BYTES[0, 0].numpy(),
        pictures()[0],
        one,
        tmp_path / "one.png",
        [one],
        f"{one[:-7]}o*",
    ):
        assert torch.equal(known.model.encode(image), expected)
    assert torch.equal(known.model.transform(pictures()[0]), BYTES[0] / 255)
    assert len(fmprobe.load_images(tmp_path / "*.png", image_shape=SHAPE)) == 2
    both = fmprobe.load_images([tmp_path / "two.png", one], image_shape=SHAPE)
    assert torch.equal(both, BYTES[[1, 0]] / 255)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "an object of type int is no image"),
        (None, "an object of type NoneType is no image"),
        ([3, 4], r"images \[0\]: an object of type int is no image"),
        (np.zeros((2, 2, 2, 2, 2)), r"has shape \(2, 2, 2, 2, 2\)"),
        (np.zeros((3, 9, 3)), "channels may be first or last"),
        (np.zeros((3, 9, 9)), "one image in colour or three in grey"),
        (np.zeros((4, 4), dtype=int), "is an array of int64"),
        (np.full((4, 4), 3.0), "floats lie in 3 to 3, expected 0 to 1"),
        (np.full((4, 4), np.nan), "floats lie in nan to nan"),
        ({"pictures": 3}, "is a dict of pictures: expected its images under one of pixel_values"),
        ("missing.png", "missing.png does not exist"),
        (Path("missing"), "missing does not exist"),
        (["missing.png"], "missing.png cannot be read"),
        ([], "there are no images"),
        (iter(()), "there are no images"),
        (datasets.Dataset.from_dict({"text": ["a"]}), "has no column of images, but text"),
        ([[BYTES[:2], BYTES[:2]]], "expected one image in each place"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image_is_refused_in_one_line(given, said, known):
    with pytest.raises(fmprobe.InputError, match=said) as caught:
        known.model.encode(given)
    assert "\n" not in str(caught.value)


def test_a_broken_image_in_the_middle_is_named(known, tmp_path):
    for i, picture in enumerate(pictures()[:3]):
        picture.save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    for images in (tmp_path, str(tmp_path / "*.png"), sorted(tmp_path.iterdir())):
        with pytest.raises(fmprobe.InputError, match=r"1\.png cannot be read as an image"):
            known.model.encode(images)
    assert len(known.model.load_images(tmp_path, skip_damaged=True)) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_precision_are_the_float32_that_they_are(dtype, known):
    given = GOOD[:3].to(dtype)
    expected = known.model.take_images(given.float())
    for images in (given, [*given], DataLoader(given, batch_size=2)):  # type: ignore[arg-type]
        assert torch.equal(known.model.take_images(images), expected)


def test_a_batch_alone_in_a_list_is_the_batch(known):
    loader = DataLoader(TensorDataset(GOOD[:5]), batch_size=2)
    assert torch.equal(known.model.take_images(loader), known.model.take_images(GOOD[:5]))
    assert torch.equal(known.model.take_images([GOOD[:2]]), known.model.take_images(GOOD[:2]))


def test_a_data_set_gives_what_its_transform_makes(known):
    held = datasets.Dataset.from_dict({"image": pictures(), "label": [0] * len(pictures())})
    held = held.cast_column("image", datasets.Image())
    made = held.with_transform(lambda rows: {"pixel_values": [known.model.transform(p) for p in rows["image"]]})
    expected = known.model.encode(pictures())
    assert torch.equal(known.model.encode(made), expected)
    assert torch.equal(known.model.encode(held.to_iterable_dataset().map(lambda row: row)), expected)
    with pytest.raises(fmprobe.InputError, match="is a dict of label"):
        known.model.encode(held.with_format("torch", columns=["label"]))


def test_a_transform_takes_one_picture(known):
    for several in (BYTES[:2], np.concatenate([BYTES.numpy()] * 70)[:70, 0]):
        with pytest.raises(fmprobe.InputError, match=rf"expected one, got {len(several)}"):
            known.model.transform(several)


def test_pixels_may_leave_the_range_by_rounding_at_any_size():
    over = np.ones((9, 9), dtype=np.float32) * np.float32(1 + 2e-7)
    model = fmprobe.demo_model()
    assert torch.equal(model.encode(over), model.encode(np.ones((9, 9), dtype=np.float32)))


def test_a_picture_is_upright_in_whatever_way_it_is_handed_in(known, tmp_path):
    """Pillow turns a TIFF when it is loaded, and other formats never."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("tiff", "png"):
        path = tmp_path / f"turned.{suffix}"
        pictures()[0].convert("RGB").save(path, exif=exif)
        expected = known.model.take_images(path)
        opened = Image.open(path)
        assert torch.equal(known.model.take_images(opened), expected)
        assert torch.equal(known.model.take_images(opened), expected)


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
