"""Scores of pictures: statistics of pixels, the spread of features, and distances to classes; what they decide."""

import colorsys
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_ood.detector import RMD
from scipy.ndimage import uniform_filter
from sklearn.covariance import ledoit_wolf

import fmprobe
from fmprobe.probes.ood.features import feature_vectors
from fmprobe.probes.ood.probe import NEAR
from fmprobe.probes.ood.score import Bank, Encoded
from fmprobe.probes.ood.table import BY_NAME

PIXELS = ("complexity", "detail", "saturation")
SIDE = 32


def generator(seed):
    return torch.Generator().manual_seed(seed)


def pictures(n, seed=0, channels=3, noise=0.1):
    """Coloured gradients with noise, in steps of a byte."""
    rng = generator(seed)
    corner = torch.rand(n, channels, 1, 1, generator=rng)
    ramp = torch.linspace(0, 0.4, SIDE).reshape(1, 1, 1, SIDE)
    images = corner * 0.5 + ramp + noise * torch.rand(n, channels, SIDE, SIDE, generator=rng)
    return (images.clamp(0, 1) * 255).round() / 255


def pixel_scores(images):
    seen = Encoded(images, images, lambda z: z, {})
    return {name: BY_NAME[name](seen, ()) for name in PIXELS}


def model(grid=4):
    """Latents are the tokens (8 x 8, 3) of an image, smoothed; the decoder enlarges them. Both take pictures."""

    def encode(x):
        return torch.nn.functional.avg_pool2d(x, grid).flatten(2).mT

    def decode(z):
        return z.mT.reshape(-1, 3, SIDE // grid, SIDE // grid).repeat_interleave(grid, 2).repeat_interleave(grid, 3)

    return fmprobe.Autoencoder(
        encode,
        decode,
        image_shape=(3, SIDE, SIDE),
        latent_shape=((SIDE // grid) ** 2, 3),
        provenance={"model": "blocks"},
    )


@pytest.fixture(scope="module")
def detector():
    return fmprobe.TrajectoryDetector(model(), steps=3).fit(pictures(60), pictures(60, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_statistics_are_those_of_pillow_scipy_and_the_standard_library(channels):
    images = pictures(5, channels=channels)
    found = pixel_scores(images)
    for i, image in enumerate(images.numpy()):
        pixels = np.round(image * 255).astype(np.uint8).transpose(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, "PNG")
        assert found["complexity"][i] == 8 * len(file.getvalue()) / pixels.size
        inner = (slice(None), slice(1, -1), slice(1, -1))  # libraries differ in what lies beyond the border
        rest = np.stack([plane - uniform_filter(plane.astype(np.float64), 3) for plane in image])[inner]
        assert found["detail"][i] == pytest.approx(np.square(rest).mean(), rel=0.1)
        hsv = [colorsys.rgb_to_hsv(*rgb) for rgb in image.reshape(channels, -1).T] if channels == 3 else [(0, 0, 0)]
        chroma = np.mean([s * v for _, s, v in hsv])
        assert found["saturation"][i] == pytest.approx(chroma + 1 / 255, abs=1e-6)


def test_a_flat_image_has_no_detail_at_its_border_either():
    found = pixel_scores(torch.full((1, 3, SIDE, SIDE), 0.7))
    assert found["detail"][0] == pytest.approx((1 / 255) ** 2 / 12)


def test_rounding_to_bytes_changes_the_statistics_of_a_flat_image_little():
    """A ramp of less than one level is flat once it is stored in bytes."""
    ramp = 0.5 + torch.linspace(0, 0.5 / 255, SIDE).expand(1, 3, SIDE, SIDE)
    stored = (ramp * 255).round() / 255
    for name in ("detail", "saturation"):
        assert abs(np.log(pixel_scores(ramp)[name] / pixel_scores(stored)[name])) < 0.7


@pytest.mark.parametrize("shape", [(7, 50, 24), (7, 24, 5, 10)])
def test_the_spread_of_tokens_and_of_maps_is_their_standard_deviation_over_places(shape):
    latents = torch.randn(shape, generator=generator(0))
    places = latents.numpy() if len(shape) == 3 else latents.numpy().reshape(7, 24, 50).transpose(0, 2, 1)
    found = feature_vectors(latents, 10)
    np.testing.assert_allclose(found["spread"], places.std(1), rtol=1e-4)
    np.testing.assert_allclose(found["pooled"], places.mean(1), rtol=1e-4, atol=1e-6)


def relative(rows, labels, new):
    """The score, of features in memory."""
    score, seen = BY_NAME["rmd z"], Encoded(new, new, lambda z: z, {"z": new.numpy()})
    return score(seen, score.fit(Bank({"z": rows.numpy()}, labels=labels)))


def test_the_relative_mahalanobis_distance_is_that_of_pytorch_ood_where_little_is_shrunk():
    """Its matrices are sums and not means, so that its values are smaller by the number of images."""
    n, scales = 40000, torch.tensor([1.0, 1.5, 0.7, 2.0])
    rows = scales * (torch.randn(n, 4, generator=generator(1)) + 2 * torch.eye(4)[torch.arange(n) % 3])
    new = 2 * scales * torch.randn(50, 4, generator=generator(2))
    theirs = RMD(None).fit_features(rows, torch.arange(n) % 3).predict_features(new).numpy() * n
    found = relative(rows, 10 * (np.arange(n) % 3), new)  # any whole numbers
    np.testing.assert_allclose(found, theirs, rtol=0.02, atol=0.05)


def test_the_relative_mahalanobis_distance_of_few_images_is_its_definition_with_shrunk_matrices():
    rows, labels = torch.randn(30, 6, generator=generator(3)), np.arange(30) % 2
    new = torch.randn(5, 6, generator=generator(4))
    known = rows.double().numpy()
    means = np.stack([known[labels == k].mean(0) for k in (0, 1)])
    within, _ = ledoit_wolf(known - means[labels], assume_centered=True)
    whole, _ = ledoit_wolf(known)

    def squared(x, mean, covariance):
        return np.einsum("bi,ij,bj->b", x - mean, np.linalg.inv(covariance), x - mean)

    x = new.double().numpy()
    expected = np.min([squared(x, mean, within) for mean in means], 0) - squared(x, known.mean(0), whole)
    np.testing.assert_allclose(relative(rows, labels, new), expected, rtol=1e-6)


@pytest.mark.parametrize("labels", [None, np.zeros(40, dtype=int)])
def test_there_is_no_relative_distance_without_two_classes(labels):
    assert not BY_NAME["rmd z"].exists(Bank({"z": np.ones((40, 3), np.float32)}, labels=labels))


def test_labels_follow_their_images_through_a_split_and_a_folder(tmp_path):
    images = pictures(120)
    labels = (images.mean((1, 2, 3)) > images.mean()).long().tolist()
    order = torch.randperm(120, generator=generator(3)).tolist()
    one = fmprobe.TrajectoryDetector(model(), steps=2).fit(images, 0.4, labels=labels)
    shuffled = [labels[i] for i in order]
    two = fmprobe.TrajectoryDetector(model(), steps=2).fit(images[order], 0.4, labels=shuffled)
    new = pictures(9, 5)
    assert "rmd z" in one.offered
    np.testing.assert_allclose(one.score_samples(new, rule="rmd z"), two.score_samples(new, rule="rmd z"))
    one.save(tmp_path)
    again = fmprobe.TrajectoryDetector.load(tmp_path, one.model)
    np.testing.assert_array_equal(again.score_samples(new, rule="rmd z"), one.score_samples(new, rule="rmd z"))


@pytest.mark.parametrize("labels", [[1, 2, 3], [0.5] * 60, ["cat"] * 60, [[1] * 60]])
def test_labels_that_do_not_fit_are_one_line(labels):
    with pytest.raises(fmprobe.InputError, match=r"labels are an array .* expected one whole number for each of 60"):
        fmprobe.TrajectoryDetector(model(), steps=2).fit(pictures(60), labels=labels)


# The rule that decides.


def test_auto_decides_by_what_follows_no_orbit_and_says_what_it_takes(detector, tmp_path):
    assert detector.rule == "features"
    assert detector.get_params()["rule"] == "auto"
    assert not detector.follows_orbits()
    assert detector.cost() == "one encoding and one decoding"
    assert detector.cost("joined") == "one encoding and one decoding and at most 3 steps of f"
    assert detector.cost("knn-10 z") == "one encoding"
    assert "  an image takes one encoding and one decoding" in repr(detector).splitlines()
    assert detector.describe()["decision"]["cost"] == detector.cost()
    detector.save(tmp_path)
    again = fmprobe.TrajectoryDetector.load(tmp_path, detector.model)
    new = pictures(7, 4)
    assert torch.equal(detector.predict(new, rule="auto"), detector.predict(new, rule="features"))
    np.testing.assert_array_equal(again.decision_function(new), detector.decision_function(new))
    assert (again.rule, again.threshold()) == (detector.rule, detector.threshold())


def test_auto_follows_orbits_where_images_are_no_pictures():
    """Functions take what they like, so that statistics of pixels mean nothing."""
    whole = fmprobe.from_functions(lambda x: x, lambda z: z, image_shape=(3, 4, 4), latent_shape=(3, 4, 4))
    detector = fmprobe.TrajectoryDetector(whole, steps=2)
    assert detector.rule == "joined"
    detector.fit(torch.randn(30, 3, 4, 4), torch.randn(20, 3, 4, 4))
    assert not set(PIXELS) & set(detector.offered)


def test_pictures_of_another_kind_are_told_apart(detector):
    usual = pictures(60, 7)
    others = {
        "flat": pictures(60, 8, noise=0.0),
        "rough": pictures(60, 8, noise=0.3),
        "grey": pictures(60, 8).mean(1, keepdim=True).expand(-1, 3, -1, -1),
    }
    inside = -detector.score_samples(usual)
    assert detector.predict(usual).float().mean() > 0.85
    for name, images in others.items():
        assert fmprobe.ood_metrics(inside, -detector.score_samples(images))["auroc"] > 0.9, name


# What a rare value does to a threshold.


def rare(detector_images, n_rare):
    """Held-out images of which a few are flat, which nothing among the others is."""
    images = detector_images.clone()
    images[:n_rare] = images[:n_rare].mean((2, 3), keepdim=True)
    return images


def test_one_rare_held_out_image_does_not_lift_the_threshold_beyond_use():
    """A column that is the same in all but one image counted in hundreds of deviations, and all was accepted."""
    other = pictures(60, 8, noise=0.35)
    fitted = fmprobe.TrajectoryDetector(model(), steps=2).fit(pictures(60))
    clean = fitted.calibrate(pictures(40, 1)).predict(other).float().mean()
    spoiled = fitted.calibrate(rare(pictures(40, 1), 1)).predict(other).float().mean()
    assert clean < 0.1
    assert spoiled < 0.5


def test_a_small_distance_to_the_fit_images_makes_no_image_unusual(detector):
    """Every fit image is its own nearest neighbour, and is as usual as an image at the median distance."""
    calibration = detector.calibration
    columns = calibration.made_of("features")
    plain = {name: np.full(2, np.median(calibration.held_out[name])) for name in columns}
    knn = next(name for name in columns if name.startswith("knn"))
    plain[knn] = np.array([1e-9, np.median(calibration.held_out[knn])])
    near, usual = calibration.score("features", plain)
    assert near == pytest.approx(usual, rel=1e-3)


# Near and far.


def test_the_shift_of_other_images_of_the_same_source_is_small_and_that_of_a_moved_set_is_its_distance():
    rows = torch.rand(400, 3, 4, 4, generator=generator(0))
    whole = fmprobe.from_functions(lambda x: x, lambda z: z, image_shape=(3, 4, 4), latent_shape=(3, 4, 4))
    detector = fmprobe.TrajectoryDetector(whole, steps=1, max_steps=2).fit(rows[:200])
    assert detector.shift(rows[200:]) < 0.1
    for moved in (0.2, 1.0):
        expected = moved * np.sqrt(48) / np.sqrt(48 / 12)  # the variance of a uniform number is 1/12
        assert detector.shift(rows[200:] + moved) == pytest.approx(expected, rel=0.06)
    with pytest.raises(fmprobe.InputError, match="the shift of 1 images is not known"):
        detector.shift(rows[:1])


def test_a_comparison_says_near_or_far_by_the_shift(written):
    found = json.loads((written("ood") / "results.json").read_text())["ood"]
    assert found["near"] == NEAR
    for name, about in found["sets"].items():
        if name == "in-distribution" or about["control"]:
            assert about.get("range") is None
        else:
            assert about["range"] == ("near" if about["shift"] < NEAR else "far")
