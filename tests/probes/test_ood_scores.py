"""The table of out-of-distribution scores, and what derives from it."""

from pathlib import Path

import numpy as np
import pytest

import fmprobe.probes.ood.scores as scores
from fmprobe.probes.ood.score import Bank
from fmprobe.probes.ood.table import AGGREGATES, FILES, GROUPS, OFFERED, SCORES, TWO_SIDED, joined_of, profile_of


def bank(n, *kinds):
    rows = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return Bank(dict.fromkeys(kinds, rows))


def fitted(bank):
    return {score.name for score in SCORES if score.fit(bank) is not None}


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
    assert tuple(TWO_SIDED.values()) == sided
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
    small = "pooled" if "pooled" in kinds else "z"
    others = (f"mahalanobis {small}", f"pca residual {small}", "latent norm", "residual", "reconstruction error")
    known = bank(n, *kinds)
    assert joined_of(fitted(known), known) == (knn, *others)


def test_a_score_exists_where_the_fit_images_allow_it():
    few, pooled = fitted(bank(10, "z")), fitted(bank(51, "z", "pooled"))
    neighbours = {name for name in few if name.startswith("knn")}
    assert neighbours == {"knn-1 z", "knn-all mean z", "knn-1 z normalised", "knn-all mean z normalised"}
    assert {"knn-50 z", "knn-50 pooled", "mahalanobis pooled", "pca residual pooled"} <= pooled
    assert not {"mahalanobis z", "pca residual z"} & pooled
