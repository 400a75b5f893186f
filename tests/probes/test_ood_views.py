"""A detector in the hands of scikit-learn and of pytorch-ood.

Of scikit-learn's `check_estimator` those checks run that pass no data. The others fit tables of numbers, of changing
width, while a detector takes the images of its model; what they ask for is tested here on images.
"""

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_ood.api import Detector
from pytorch_ood.metrics import AUROC, FPRAtTPR
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted
from support.ood import contraction, draw_images
from torch.utils.data import DataLoader, TensorDataset

import fmprobe
from fmprobe.errors import InputError

CHECKS = (
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_valid_tag_types",
)


def loader(n, seed=0):
    return DataLoader(TensorDataset(draw_images(n, seed), torch.zeros(n)), batch_size=7)


@pytest.fixture(scope="module")
def model():
    return contraction()


@pytest.fixture
def detector(model):
    return fmprobe.TrajectoryDetector(model, steps=3, tol=1e-9, rule="mean")


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_of_scikit_learn_that_need_no_data(check, detector):
    getattr(estimator_checks, check)("TrajectoryDetector", detector)


def test_parameters_are_read_changed_and_cloned(detector, model):
    detector.fit(draw_images(30), draw_images(20, 1))
    again: Any = clone(detector)
    assert again.get_params() == detector.get_params()
    assert again.model is model
    check_is_fitted(detector)
    with pytest.raises(NotFittedError):
        check_is_fitted(again)
    assert detector.set_params(rule="last", acceptance=0.8).rule == "last"
    assert detector.threshold() == detector.threshold(0.8, "last")  # still fitted
    with pytest.raises(NotFittedError):
        check_is_fitted(detector.set_params(steps=5))
    assert detector.get_params()["steps"] == 5
    for params, said in (({"stepz": 3}, "unknown parameter 'stepz'"), ({"rule": "no"}, "unknown score")):
        with pytest.raises(fmprobe.InputError, match=said):
            detector.set_params(**params)
    assert detector.get_params()["rule"] == "last"


def test_scores_depend_on_no_other_image_and_on_no_order(detector):
    detector.fit(draw_images(30))
    new, order = draw_images(23, 1), np.random.default_rng(0).permutation(23)
    whole = detector.score_samples(new)
    np.testing.assert_allclose(detector.score_samples(new[order]), whole[order], rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([detector.score_samples(x[None]) for x in new]), whole, rtol=1e-6)


def test_the_view_has_the_methods_of_pytorch_ood(detector, model):
    view = detector.as_pytorch_ood().fit(loader(30))
    assert {"fit", "predict"} <= {name for name in vars(Detector) if hasattr(view, name)}
    assert view.requires_fit
    scores = view(draw_images(9, 1))
    assert scores.dtype == torch.float32
    assert torch.equal(scores, detector.score(draw_images(9, 1)))
    features = detector.as_pytorch_ood().fit_features(model.encode(draw_images(30)), torch.zeros(30))
    assert torch.allclose(features.predict(draw_images(9, 1)), scores)
    assert torch.allclose(features.predict_features(model.encode(draw_images(9, 1))), scores)
    with pytest.raises(fmprobe.InputError, match=r"call fit_features\(z\) first"):
        view.predict_features(model.encode(draw_images(9, 1)))
    with pytest.raises(fmprobe.InputError, match="unknown score 'no'"):
        detector.as_pytorch_ood("no")


def test_the_metrics_of_pytorch_ood_are_those_of_fmprobe_by_their_names(detector):
    view = detector.as_pytorch_ood("last").fit(loader(30))
    inside, outside = view(draw_images(40, 1)), view(draw_images(25, 2).square())
    found = fmprobe.ood_metrics(inside, outside)
    scores, labels = torch.cat([inside, outside]), torch.cat([torch.ones(40), -torch.ones(25)]).long()

    def theirs(metric):
        (value,) = metric.update(scores, labels).compute().values()
        return value

    assert theirs(AUROC()) == pytest.approx(found["auroc"], abs=1e-6)
    assert theirs(FPRAtTPR()) == pytest.approx(found["fpr95_ood_positive"], abs=1e-6)


def test_a_view_holds_out_what_its_score_is_learned_from(model):
    detector = fmprobe.TrajectoryDetector(model, steps=2).fit(draw_images(90), 0.4)
    rule, new = detector.rule, draw_images(4, seed=2)
    view = detector.as_pytorch_ood().fit(loader(90))
    np.testing.assert_allclose(view.predict(new), -detector.score_samples(new, rule=rule), rtol=1e-6)
    assert detector.predict(new).shape == (4,)  # it has a threshold still
    assert detector.describe()["decision"]["held_out"] == 22  # a quarter
    with pytest.raises(InputError, match=f"{rule!r} is learned from held-out images and not from latents"):
        detector.as_pytorch_ood().fit_features(model.encode(draw_images(30)))
