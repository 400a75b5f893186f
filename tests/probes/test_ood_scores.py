"""The table of out-of-distribution scores, and what derives from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_ood.detector import Mahalanobis as TheirMahalanobis
from pytorch_ood.detector import ViM
from safetensors.torch import load_file, save_file

import fmprobe
from fmprobe.digests import file_digest
from fmprobe.probes.ood import scores, table
from fmprobe.probes.ood.score import LARGEST, Bank, Encoded
from fmprobe.probes.ood.table import (
    AGGREGATES,
    FILES,
    GROUPS,
    OFFERED,
    SCORES,
    TWO_SIDED,
    joined_of,
    profile_of,
)


def bank(n, *kinds):
    rows = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return Bank(dict.fromkeys(kinds, rows))


def fitted(bank):
    return {score.name for score in SCORES if score.exists(bank)}


def test_every_file_is_listed_and_every_score_has_a_name_and_a_group_of_its_own():
    files = {path.stem for path in Path(str(scores.__file__)).parent.glob("*.py")} - {"__init__"}
    assert sorted(FILES) == sorted(files)
    names = [score.name for score in SCORES]
    assert len(names) == len(set(names))
    assert {score.group for score in SCORES} <= {*GROUPS, "inner"}
    assert set(OFFERED.values()) == set(GROUPS)
    assert {score.name for score in SCORES if score.group == "inner"}.isdisjoint(OFFERED)


def test_what_detectors_on_disk_depend_on_stays():
    """The columns of the one-class models, the names that settings and rules refer to, and the order of the tables."""
    names = {score.name for score in SCORES}
    profile = ("first", "last", "mean", "max", "length", "moved", "steps", "rate", "settled")
    assert profile_of(names) == profile
    sided = ("mean", "first", "last", "max", "length", "steps", "residual", "latent norm", "reconstruction error")
    assert tuple(TWO_SIDED.values())[: len(sided)] == sided
    assert AGGREGATES[:6] == ("mean", "first", "last", "max", "length", "steps")
    parts = [name for name, group in OFFERED.items() if group == "part"]
    assert parts[:6] == ["first", "mean", "last", "max", "length", "steps"]
    baselines = [name for name, group in OFFERED.items() if group == "baseline"]
    assert baselines[:3] == ["residual", "latent norm", "reconstruction error"]
    assert list(OFFERED)[-4:] == ["profile", "profile svm", "joined", "joined svm"]


@pytest.mark.parametrize(
    ("n", "kinds", "knn"),
    [
        (11, ("z",), "knn-10 z normalised"),
        (10, ("z",), "knn-1 z normalised"),
        (60, ("z", "pooled"), "knn-10 pooled normalised"),
        (10, ("pooled",), "knn-1 pooled normalised"),
    ],
)
def test_baselines_join_by_the_smallest_features_and_few_images_by_one_neighbour(n, kinds, knn):
    known = bank(n, *kinds)
    assert joined_of(fitted(known), known) == ("mean", "residual", knn, "reconstruction error")
    assert table.features_of(joined_of(fitted(known), known)) == (knn, "reconstruction error")


def test_the_spread_and_the_pixels_join_where_there_are_any():
    known = Bank({**bank(60, "pooled", "spread").features}, pictures=True)
    neighbours = ("knn-10 pooled normalised", "knn-10 spread normalised")
    pixels = ("complexity", "detail", "saturation")
    assert table.features_of(joined_of(fitted(known), known)) == (*neighbours, *pixels, "reconstruction error")


def test_a_score_exists_where_the_fit_images_allow_it():
    few, pooled = fitted(bank(10, "z")), fitted(bank(51, "z", "pooled"))
    neighbours = {name for name in few if name.startswith("knn")}
    assert neighbours == {"knn-1 z", "knn-all mean z", "knn-1 z normalised", "knn-all mean z normalised"}
    assert {"knn-50 z", "knn-50 pooled", "mahalanobis pooled", "pca residual pooled"} <= pooled
    assert not {"mahalanobis z", "pca residual z"} & pooled


RATIO = "contraction ratio"


def model(f):
    """z_0 = E(x) is f of the pixels, and the latent map is f."""
    return fmprobe.from_functions(
        lambda x: f(x.flatten(1)), lambda z: z.reshape(-1, 1, 4, 4), image_shape=(1, 4, 4), latent_shape=(16,)
    )


def images(n, seed=0):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_contraction_ratio_of_a_linear_map_is_a_power_of_its_factor(steps):
    detector = fmprobe.TrajectoryDetector(model(lambda z: 0.7 * z), tol=0, steps=steps).fit(images(6))
    ratios = detector.scores(images(5, seed=1))[RATIO]
    assert ratios.numpy() == pytest.approx(0.7 ** (steps - 1), rel=1e-5)


def test_the_contraction_ratio_of_a_fixed_point_is_0_and_of_a_diverged_orbit_the_largest_float():
    detector = fmprobe.TrajectoryDetector(model(lambda z: z * z)).fit(0.8 * images(20))
    ratios = detector.scores(torch.cat([torch.zeros(1, 1, 4, 4), 1 + images(1)]))[RATIO]
    assert ratios.tolist() == [0, LARGEST]


def test_the_contraction_ratio_is_a_row_at_the_end_of_its_group_and_enters_no_model():
    score = next(score for score in SCORES if score.name == RATIO)
    assert (score.in_profile, score.in_joined, score.two_sided) == (None, None, False)
    assert [name for name, group in OFFERED.items() if group == "part"][-1] == RATIO


def test_a_detector_saved_before_a_score_existed_scores_the_same_without_it(tmp_path):
    whole, fresh = model(lambda z: 0.7 * z), images(7, seed=2)
    detector = fmprobe.TrajectoryDetector(whole, steps=4).fit(images(20), images(20, seed=1))
    detector.save(tmp_path)
    tensors = load_file(tmp_path / "detector.safetensors")
    del tensors[f"held_out.{RATIO}"]
    save_file(tensors, tmp_path / "detector.safetensors")
    facts = json.loads((tmp_path / "detector.json").read_text())
    facts["sha256"] = file_digest(tmp_path / "detector.safetensors")
    (tmp_path / "detector.json").write_text(json.dumps(facts))

    old = fmprobe.TrajectoryDetector.load(tmp_path, whole)
    before, after = detector.scores(fresh), old.scores(fresh)
    assert before.keys() - after.keys() == {RATIO}
    assert all(torch.equal(before[name], values) for name, values in after.items())
    assert detector.threshold() == old.threshold()
    detector.predict(fresh, rule=RATIO)
    with pytest.raises(fmprobe.InputError, match="unknown score"):
        old.predict(fresh, rule=RATIO)
    assert RATIO in old.calibrate(images(20, seed=1)).scores(fresh)


def features_of(n, seed, width=12, least=0.1):
    """Rows with a spectrum, away from the origin."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, width)) * np.linspace(3, least, width) + 1).astype(np.float32)


def by_name(name, rows, new):
    (score,) = [score for score in SCORES if score.name == name]
    known = Bank({"z": rows})
    seen = Encoded(torch.empty(0), torch.from_numpy(new), lambda z: z, {"z": new})
    return score(seen, score.fit(known))


def test_the_vim_residual_is_that_of_pytorch_ood():
    """With a classifier that says nothing, its score is the residual times a factor, plus a constant."""
    rows, new = features_of(200, 0), features_of(50, 1)
    theirs = ViM(None, d=6, w=torch.zeros(3, 12), b=torch.ones(3))
    theirs.fit_features(torch.from_numpy(rows), torch.zeros(200, dtype=torch.long))
    expected = theirs.predict_features(torch.from_numpy(new)).numpy()
    found = by_name("vim residual z", rows, new)
    slope, offset = np.polyfit(found, expected, 1)
    assert slope > 0
    assert found * slope + offset == pytest.approx(expected, rel=1e-3)


def test_ssd_is_the_mahalanobis_distance_of_pytorch_ood_on_features_of_norm_1():
    """Up to the shrinkage of the covariance, which vanishes with many images.

    Its covariance is not divided by the number of images, and its score is half of the squared distance.
    """
    rows, new = features_of(4000, 0, least=1), features_of(50, 1, least=1)
    unit = [torch.nn.functional.normalize(torch.from_numpy(part), dim=1) for part in (rows, new)]
    theirs = TheirMahalanobis(None).fit_features(unit[0], torch.zeros(4000, dtype=torch.long))
    expected = (2 * 4000 * theirs.predict_features(unit[1])).sqrt().numpy()
    assert by_name("ssd z", rows, new) == pytest.approx(expected, rel=0.01)
