"""The metrics against scikit-learn, at any scale and with ties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import fmprobe

numbers = st.one_of(
    st.integers(-4, 4).map(float),  # many ties
    st.floats(-1e300, 1e300),
    st.floats(-1e-300, 1e-300),
    st.floats(1e6, 1e6 + 1e-6),
)
sets = st.lists(numbers, min_size=2, max_size=60)


def reference(inside, outside):
    """scikit-learn on ranks, since the differences of extreme scores overflow in its own code."""
    ranks = np.unique(np.concatenate([inside, outside]), return_inverse=True)[1].astype(float)
    is_ood = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    fpr, tpr, _ = roc_curve(1 - is_ood, -ranks, drop_intermediate=False)
    fpr_out, tpr_out, _ = roc_curve(is_ood, ranks, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(is_ood, ranks),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
        "fpr95_ood_positive": fpr_out[np.argmax(tpr_out >= 0.95)],
        "aupr_in": average_precision_score(1 - is_ood, -ranks),
        "aupr_out": average_precision_score(is_ood, ranks),
    }


@given(sets, sets)
def test_equal_to_scikit_learn_with_ties_and_at_any_scale(inside, outside):
    assert fmprobe.ood_metrics(inside, outside) == pytest.approx(
        reference(np.array(inside), np.array(outside)), abs=1e-12
    )


@given(sets, sets)
def test_order_alone_counts_and_the_classes_mirror_each_other(inside, outside):
    found = fmprobe.ood_metrics(inside, outside)
    levels = sorted({*inside, *outside})
    ranks = {value: 1e-9 * i for i, value in enumerate(levels)}
    assert fmprobe.ood_metrics([ranks[v] for v in inside], [ranks[v] for v in outside]) == pytest.approx(found)
    mirrored = fmprobe.ood_metrics([-v for v in outside], [-v for v in inside])
    assert mirrored["auroc"] == pytest.approx(found["auroc"])
    assert mirrored["fpr95"] == pytest.approx(found["fpr95_ood_positive"])
    assert mirrored["aupr_in"] == pytest.approx(found["aupr_out"])


def test_the_convention_is_the_stated_one():
    inside, outside = np.arange(100.0), np.array([93.5, 94.5, 200.0, 300.0])
    found = fmprobe.ood_metrics(inside, outside)
    assert found["fpr95"] == 0.25  # the threshold is the 95th lowest score, 94: of the others 93.5 alone lies under it
    assert found["fpr95_ood_positive"] == 0.06  # all four must be rejected: 94 ... 99 go with them
    separated = fmprobe.ood_metrics(torch.zeros(5), torch.ones(5))
    assert separated == {"auroc": 1.0, "fpr95": 0.0, "fpr95_ood_positive": 0.0, "aupr_in": 1.0, "aupr_out": 1.0}
    assert all(isinstance(value, float) for value in found.values())


def test_scores_that_a_squashing_would_merge_stay_apart():
    inside, outside = [1e300, 2e300], [3e300, 1.7e308]
    assert fmprobe.ood_metrics(inside, outside)["auroc"] == 1.0
    assert fmprobe.ood_metrics([1e-320, 2e-320], [3e-320, 4e-320])["auroc"] == 1.0


def test_bootstrap_intervals_cover_the_known_value():
    """Two normals one deviation apart: AUROC = Phi(1/sqrt 2) = 0.7602, covered by about 95 of 100 intervals."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = fmprobe.ood_metrics(rng.normal(size=120), rng.normal(1, size=120), bootstrap=200, seed=seed)
        low, high = found["intervals"]["auroc"]
        assert low <= found["auroc"] <= high
        covered += low <= 0.76025 <= high
    assert 87 <= covered <= 100


def test_bootstrap_depends_on_its_seed_alone():
    inside, outside = np.arange(30.0), np.arange(10.0, 50.0)
    one = fmprobe.ood_metrics(inside, outside, bootstrap=50, seed=3)
    assert fmprobe.ood_metrics(inside[::-1], outside, bootstrap=50, seed=3) == one
    assert fmprobe.ood_metrics(inside, outside, bootstrap=50, seed=4) != one


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([1.0], [1.0, 2.0], "id_scores holds 1 scores"),
        ([1.0, 2.0], [], "ood_scores holds 0 scores"),
        ([1.0, float("nan")], [1.0, 2.0], "not finite"),
        ([1.0, 2.0], [1.0, float("inf")], "not finite"),
        ([[1.0, 2.0]], [1.0, 2.0], "shape"),
    ],
)
def test_bad_scores_are_refused(inside, outside, message):
    with pytest.raises(fmprobe.InputError, match=message):
        fmprobe.ood_metrics(inside, outside)
