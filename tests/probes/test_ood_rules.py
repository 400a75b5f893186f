"""What it takes to decide by one score, and the conventions of scikit-learn."""

from collections import Counter

import numpy as np
import pytest
import torch
from support.ood import SIDE, contraction, draw_images

import fmprobe
from fmprobe.probes.ood.score import Needs, Statistic
from fmprobe.probes.ood.table import OFFERED, SCORES, TWO_SIDED

WITH_PICTURES = {"features", "features svm", "joined", "joined svm"}


@pytest.fixture(scope="module")
def calls():
    return Counter()


@pytest.fixture(scope="module")
def detector(calls):
    """A detector of a model that counts the images it encodes and the latents it decodes."""

    def count(what, n):
        calls[what] += n

    model = contraction(count)
    return fmprobe.TrajectoryDetector(model, steps=4, tol=1e-9, batch_size=5).fit(draw_images(24), draw_images(20, 1))


def rules(detector):
    known = detector.scores(draw_images(1))
    return [name for name in OFFERED if name in known]


def test_a_rule_decides_as_when_all_scores_are_computed(detector):
    new = draw_images(13, 2)
    scores = detector.examine(new)[0]
    assert set(scores) == set(rules(detector))
    for name, values in scores.items():
        np.testing.assert_array_equal(-detector.score_samples(new, rule=name), values, err_msg=name)
        accepted = torch.from_numpy(values <= detector.threshold(rule=name))
        assert torch.equal(detector.predict(new, rule=name), accepted), name


def test_a_rule_computes_only_what_it_is_made_of(detector, calls):
    """4 steps: the orbit costs 4 encodings and 4 decodings an image beyond the first encoding."""
    new, free, orbits, pictured = draw_images(13, 2), set(), set(), set()
    for name in rules(detector):
        calls.clear()
        detector.predict(new, rule=name)
        encoded, decoded = calls["encoded"] / 13, calls["decoded"] / 13
        assert (encoded, decoded) in {(1, 0), (1, 1), (5, 4), (5, 5)}, name
        free |= {name} if (encoded, decoded) == (1, 0) else set()
        orbits |= {name} if encoded == 5 else set()
        pictured |= {name} if decoded in (1, 5) else set()
    plain = {of: name for name, of in TWO_SIDED.items()}
    needing = {need: {score.name for score in SCORES if score.needs is need} for need in Needs}
    assert pictured == {*_with_two_sided({"reconstruction error"}), *WITH_PICTURES}
    assert orbits == {name for name in rules(detector) if name not in free | pictured} | {"joined", "joined svm"}
    assert {name for name in rules(detector) if name.startswith(("knn", "maha", "pca", "latent"))} <= free
    assert {"first", plain["first"]} <= free
    assert not orbits & (needing[Needs.LATENT] | needing[Needs.FIRST_POINT])


def _with_two_sided(names):
    return names | {name for name, of in TWO_SIDED.items() if of in names}


def test_nothing_is_fitted_for_a_rule_that_does_not_use_it(detector, tmp_path, monkeypatch):
    detector.save(tmp_path / "kept")
    again = fmprobe.TrajectoryDetector.load(tmp_path / "kept", detector.model)
    for kind in {type(score) for score in SCORES} - {Statistic}:
        monkeypatch.setattr(kind, "fit", lambda *_: pytest.fail("was fitted"))
    new = draw_images(6, 3)
    assert torch.equal(again.predict(new, rule="latent norm"), detector.predict(new, rule="latent norm"))


def test_the_signs_are_those_of_scikit_learn(detector):
    inside, outside = draw_images(20, 1), 50 * torch.ones(3, 1, SIDE, SIDE)
    new = torch.cat([inside, outside.clamp(0, 1)])
    accepted = detector.predict(new)
    labels = detector.predict(new, sklearn_labels=True)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1 if inside else -1 for inside in accepted]
    margin = detector.decision_function(new)
    assert np.array_equal(margin >= 0, accepted.numpy())
    np.testing.assert_allclose(margin, detector.score_samples(new) + detector.threshold())
    strict = detector.decision_function(new, acceptance=0.5)
    assert np.array_equal(strict >= 0, detector.predict(new, acceptance=0.5).numpy())


@pytest.mark.parametrize(
    ("rule", "said"), [("joined", "'joined' is learned from held-out images"), ("no", "'no' is no score")]
)
def test_without_held_out_images_a_plain_score_can_be_had(detector, rule, said):
    bare = fmprobe.TrajectoryDetector(detector.model, steps=4, tol=1e-9).fit(draw_images(24))
    new = draw_images(5, 4)
    np.testing.assert_array_equal(-bare.score_samples(new, rule="trajectory"), bare.examine(new)[0]["trajectory"])
    with pytest.raises(fmprobe.InputError, match=said):
        bare.score_samples(new, rule=rule)
