"""What a threshold promises, and how images are held out for it."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from support.ood import SIDE, contraction, draw_images

import fmprobe
from fmprobe.errors import InputError
from fmprobe.probes.ood.calibration import Calibration
from fmprobe.probes.ood.table import SCORES


@pytest.fixture(scope="module")
def model():
    return contraction()


def held_out_of(detector):
    return detector.describe()["decision"]["held_out"]


def calibration(values):
    return Calibration({score.name: values for score in SCORES}, ())


@pytest.mark.parametrize(("h", "acceptance"), [(32, 0.95), (32, 0.5), (99, 0.99), (19, 0.95)])
def test_the_share_that_is_accepted_is_distributed_as_is_said(h, acceptance):
    """Uniform scores: the share of new images below a threshold is the threshold itself."""
    rng = np.random.default_rng(0)
    promised = calibration(rng.random(h)).acceptance(acceptance)
    rank = math.ceil((h + 1) * acceptance - 1e-9)
    accepted = np.sort(rng.random((20_000, h)), axis=1)[:, rank - 1]
    assert accepted.mean() == pytest.approx(promised.expected, abs=0.003)
    assert np.quantile(accepted, [0.025, 0.975]) == pytest.approx(promised.interval, abs=0.01)
    assert promised.expected >= acceptance


@pytest.mark.parametrize(("h", "acceptance", "needed"), [(32, 0.99, 99), (18, 0.95, 19), (32, 0.999, 999)])
def test_too_few_held_out_images_are_said_to_be_too_few(h, acceptance, needed):
    found = calibration(np.random.default_rng(0).random(h))
    with pytest.warns(UserWarning, match=f"{h} held-out images promise .* hold out at least {needed}"):
        threshold = found.threshold("mean", acceptance)
    assert threshold == found.held_out["mean"].max()
    assert found.acceptance(acceptance).expected == h / (h + 1) < acceptance
    assert found.acceptance(acceptance).needed == needed
    enough = calibration(np.random.default_rng(0).random(needed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough.threshold("mean", acceptance)
        with pytest.raises(UserWarning, match="promise"):
            calibration(np.random.default_rng(0).random(needed - 1)).threshold("mean", acceptance)


def test_p_values_are_uniform_for_images_like_those_held_out():
    rng = np.random.default_rng(0)
    found = calibration(np.arange(19.0))
    assert found.p_values("mean", np.array([-1, 0, 18, 18.5])).tolist() == pytest.approx([1, 1, 0.1, 0.05])
    p = np.concatenate([calibration(rng.random(19)).p_values("mean", rng.random(50)) for _ in range(200)])
    for level in (0.05, 0.1, 0.5, 0.95):
        assert (p <= level + 1e-9).mean() == pytest.approx(level, abs=0.02)


def test_p_values_and_thresholds_say_the_same(model):
    detector = fmprobe.TrajectoryDetector(model, steps=3, tol=1e-9).fit(draw_images(30), draw_images(39, 1))
    new = torch.cat([draw_images(10, 2), torch.ones(2, 1, SIDE, SIDE)])
    for rule in ("trajectory", "joined", "two-sided mean"):
        accepted = detector.predict(new, rule=rule, acceptance=0.9).numpy()
        assert np.array_equal(detector.p_values(new, rule=rule) > 0.1 + 1e-9, accepted), rule
    decision = detector.describe()["decision"]
    assert decision["expected"] == pytest.approx(0.95)
    assert decision["interval"][0] < 0.95 < decision["interval"][1]


def test_a_share_is_held_out_by_content(model):
    whole = torch.cat([draw_images(40), draw_images(40)])  # every image twice
    detector = fmprobe.TrajectoryDetector(model, steps=3, tol=1e-9)
    with pytest.warns(UserWarning, match="40 of 80 in-distribution images are duplicates"):
        detector.fit(whole, held_out=0.5, seed=1)
    assert (detector.describe()["reference"]["images"], held_out_of(detector)) == (20, 20)
    other = fmprobe.TrajectoryDetector(model, steps=3, tol=1e-9).fit(draw_images(40).flip(0), held_out=0.5, seed=1)
    assert other.threshold() == detector.threshold()  # the split does not depend on the order


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2, math.nan])
def test_a_share_that_is_none_is_refused(model, share):
    with pytest.raises(InputError, match="held_out must lie between 0 and 1"):
        fmprobe.TrajectoryDetector(model).fit(draw_images(40), held_out=share)


def test_held_out_images_are_kept_apart_from_fit_images_also_after_loading(model, tmp_path):
    fit, fresh = draw_images(30), draw_images(20, 1)
    detector = fmprobe.TrajectoryDetector(model, steps=3, tol=1e-9).fit(fit)
    detector.save(tmp_path)
    for one in (detector, fmprobe.TrajectoryDetector.load(tmp_path, model)):
        with pytest.warns(UserWarning, match="held-out images") as said:
            one.calibrate(torch.cat([fresh, fit[:3], fresh[:2]]))
        assert [str(warning.message) for warning in said] == [
            "3 held-out images are also fit images and were left out",
            "2 held-out images are duplicates and were left out",
        ]
        assert held_out_of(one) == 20
        with (
            pytest.warns(UserWarning, match="30 held-out images are also"),
            pytest.raises(InputError, match="all 30 held-out images are also fit images"),
        ):
            one.calibrate(fit)


@pytest.mark.parametrize("few", [draw_images(1), draw_images(1).expand(50, -1, -1, -1)])
def test_one_image_is_no_set_however_often_it_is_there(model, few):
    with pytest.raises(InputError, match=f"{len(few)} images, 1 of them different: expected at least 2"):
        fmprobe.TrajectoryDetector(model).fit(few)


def test_the_reason_of_a_score_is_the_part_that_lies_farthest_out(model):
    """An image a hundred times as large has a residual beyond all others, and the published score is one part."""
    detector = fmprobe.TrajectoryDetector(model, steps=3, tol=1e-9).fit(draw_images(30), draw_images(40, 1))
    usual, large = draw_images(5, 2), 100 * draw_images(1, 3)
    *others, last = detector.explain(torch.cat([usual, large]), "joined")
    assert set(last) == {*others[0]} >= {"mean", "residual", "reconstruction error"}
    assert list(last.values()) == sorted(last.values(), key=lambda value: -abs(value))
    assert abs(last["residual"]) > 10
    assert max(abs(value) for row in others for value in row.values()) < 10
    (reason,) = detector.explain(usual[:1], "trajectory")
    assert set(reason) == {"mean"}
    held_out = np.log(detector.scores(draw_images(40, 1))["mean"].double().numpy())
    value = np.log(float(detector.score(usual[:1])))
    low, middle, high = np.quantile(held_out, [0.25, 0.5, 0.75])
    assert reason["mean"] == pytest.approx((value - middle) / ((high - low) / (2 * norm.ppf(0.75))), abs=0.1)
    assert len(detector.held_out_scores("trajectory")) == 40


@pytest.mark.filterwarnings("ignore:.* held-out images are also fit images")
def test_a_fit_that_fails_leaves_the_detector_as_it_was(model):
    images, new = draw_images(90), draw_images(5, seed=1)
    detector = fmprobe.TrajectoryDetector(model, steps=2).fit(images, 0.4)
    before = detector.score_samples(new), detector.threshold()
    cases: list[dict[str, Any]] = [{"held_out": 0.005}, {"held_out": images[:7]}]
    for wrong in [*cases, {"held_out": images[:3], "labels": [0, 1] * 45}]:
        with pytest.raises(InputError, match="held-out images"):
            detector.fit(images, **wrong)
        np.testing.assert_array_equal(detector.score_samples(new), before[0])
        assert detector.threshold() == before[1]
    fresh = fmprobe.TrajectoryDetector(model, steps=2)
    with pytest.raises(InputError, match="0 held-out images calibrate nothing: expected at least 16"):
        fresh.fit(images, held_out=0.005)
    with pytest.raises(InputError, match="call fit"):
        fresh.score(new)


def test_a_share_is_any_number(model):
    shares: Any = (0.4, np.float32(0.4), np.float64(0.4))
    found = [held_out_of(fmprobe.TrajectoryDetector(model, steps=2).fit(draw_images(60), share)) for share in shares]
    assert found == [24] * 3


@pytest.mark.parametrize(("labels", "said"), [(range(60), "36 classes"), ([3] * 60, "1 class:")])
def test_classes_that_nothing_can_be_learned_from_are_refused(model, labels, said):
    with pytest.raises(InputError, match=said):
        fmprobe.TrajectoryDetector(model, steps=2).fit(draw_images(60), 0.4, labels=[*labels])


def test_a_score_that_the_fit_images_do_not_have_says_what_it_lacks(model):
    detector = fmprobe.TrajectoryDetector(model, steps=2).fit(draw_images(30))
    missing = next(score.name for score in SCORES if score.name.startswith("rmd"))
    with pytest.raises(InputError, match=f"{missing!r} needs features or classes"):
        detector.score_samples(draw_images(2), rule=missing)
    with pytest.raises(InputError, match="'features' is learned from held-out images"):
        detector.score_samples(draw_images(2), rule="features")
