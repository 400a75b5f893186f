"""Nearest points and distances, held to differences in the longest floats there are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from support.maps import draws
from torch.utils._python_dispatch import TorchDispatchMode

from fmprobe.dynamics import distances
from fmprobe.dynamics.distances import Dissimilarity, chamfer, euclidean, nearest
from fmprobe.dynamics.merging import single_linkage
from fmprobe.dynamics.norms import norms, quick_norms

MEASURES = ("euclidean", "cosine")
DTYPES = (torch.float32, torch.float64)


def all_distances(points, others, measure):
    a, b = points.numpy().astype(np.longdouble), others.numpy().astype(np.longdouble)
    if measure == "euclidean":
        return np.sqrt(((a[:, None] - b) ** 2).sum(2))
    a, b = (x / np.where((norm := np.sqrt((x**2).sum(1, keepdims=True))) > 0, norm, 1) for x in (a, b))
    found = ((a[:, None] - b) ** 2).sum(2) / 2
    found[(a == 0).all(1)] = 1
    found[:, (b == 0).all(1)] = 1
    return found


def assert_exact(points, others, measure):
    distance, index = nearest(points, others, measure)
    assert distance.dtype == points.dtype
    wanted = all_distances(points, others, measure)
    least = wanted.min(1)
    # Directions are rounded to float64, so of 1 - cos it is the root that is known to so many digits.
    off = 1e-12 * least + (4e-16 * np.sqrt(least) + 1e-30 if measure == "cosine" else 0)
    assert (wanted[np.arange(len(points)), index] <= least + off).all()
    rounding = np.longdouble(torch.finfo(points.dtype).eps)
    tiny = torch.finfo(points.dtype).smallest_normal
    assert (np.abs(distance.numpy().astype(np.longdouble) - least) <= off + rounding * least + tiny).all()
    same = (others[index][:, None] == others).all(2)
    assert torch.equal(index, same.long().argmax(1))  # the first of those that are equal


@st.composite
def sets(draw):
    n, m, d = draw(st.integers(1, 30)), draw(st.integers(1, 60)), draw(st.integers(1, 20))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 10**6))
    centres = draws(draw(st.integers(1, 5)), d, seed).double() + draw(st.sampled_from([0.0, 10.0, 1e6]))
    spread = 10.0 ** draw(st.integers(-12, 0))
    kinds = torch.from_numpy(np.random.default_rng(seed).integers(len(centres), size=n + m))
    rows = centres[kinds] + spread * draws(n + m, d, seed + 1).double()
    share = draw(st.sampled_from([0.0, 0.3]))  # of rows that are zero, and of those that are copied
    which = torch.from_numpy(np.random.default_rng(seed + 1).random((2, n + m)))
    rows[which[0] < share] = 0
    copied = which[1] < share
    rows[copied] = rows[kinds[copied] % (n + m)]
    rows = (rows * 10.0 ** draw(st.integers(-30, 30))).to(dtype)
    return rows[:n], rows[n:]


@settings(max_examples=300, deadline=None)
@given(sets(), st.sampled_from(MEASURES))
def test_the_nearest_of_any_points_is_that_of_all_differences(pair, measure):
    points, others = pair
    assert_exact(points, others, measure)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_forty_points_within_rounding_of_each_other(scale, dtype, measure):
    centre = draws(1, 16)
    points, others = (((centre + 1e-5 * draws(40, 16, seed)) * scale).to(dtype) for seed in (1, 2))
    assert_exact(points, others, measure)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_float64_is_compared_at_any_scale(scale):
    points, others = draws(9, 5, 1).double(), draws(30, 5, 2).double()
    distance, index = nearest(points * scale, others * scale)
    assert torch.equal(index, nearest(points, others)[1])
    assert torch.allclose(distance / scale, nearest(points, others)[0])
    assert torch.allclose(euclidean(points * scale, others * scale) / scale, torch.cdist(points, others))


@pytest.mark.parametrize("measure", MEASURES)
def test_rows_that_are_not_finite_are_near_to_nothing(measure):
    points, others = draws(6, 4), draws(7, 4, 1)
    wanted = nearest(points, others[[1, 2, 4, 5, 6]], measure)
    others[0, 1], others[3] = torch.nan, torch.inf
    points[2, 0], points[4] = torch.inf, torch.nan
    distance, index = nearest(points, others, measure)
    known = torch.tensor([0, 1, 3, 5])
    assert torch.equal(distance[known], wanted[0][known])
    assert torch.equal(index[known], torch.tensor([1, 2, 4, 5, 6])[wanted[1][known]])
    assert distance[[2, 4]].isnan().all()
    assert index[[2, 4]].tolist() == [-1, -1]
    distance, index = nearest(points, torch.full((3, 4), torch.nan), measure)
    assert distance.isnan().all()
    assert (index == -1).all()


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that is made, views of what was there left out."""

    def __init__(self, *there):
        super().__init__()
        self.numbers, self.there = 0, {rows.untyped_storage().data_ptr() for rows in there}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in self.there:
            self.numbers = max(self.numbers, value.numel())
        return value


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("copies", [1, 100])
def test_blocks_bound_memory_and_change_nothing(copies, measure, monkeypatch):
    points, others = (draws(300 // copies, 8, seed).repeat(copies, 1) for seed in (1, 2))
    wanted = nearest(points, others, measure)
    monkeypatch.setattr(distances, "BLOCK", 400)
    monkeypatch.setattr(distances, "DISTANCES", 500)
    monkeypatch.setattr(distances, "NEAR", 200)
    with Largest(points, others) as largest:
        found = nearest(points, others, measure)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert largest.numbers <= 2 * len(points)  # a few numbers a point, and blocks, but neither a copy nor all pairs


@pytest.mark.parametrize(
    ("points", "others", "measure"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), "euclidean"),
        (torch.ones(3), torch.ones(2, 3), "euclidean"),
        (torch.ones(2, 3), torch.ones(0, 3), "euclidean"),
        (torch.ones(2, 0), torch.ones(2, 0), "cosine"),
        (torch.ones(2, 3), torch.ones(2, 3), "manhattan"),
    ],
)
def test_what_cannot_be_compared_is_refused(points, others, measure):
    with pytest.raises(ValueError, match=r"nearest|measure"):
        nearest(points, others, measure)


@settings(max_examples=100, deadline=None)
@given(sets())
def test_distances_are_those_of_scipy(pair):
    a, b = (rows.double().numpy() for rows in pair)
    wanted = torch.from_numpy(cdist(a, b))
    assert torch.allclose(euclidean(*pair), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_chamfer_distance_is_half_of_both_mean_nearest_distances(measure):
    a = draws(1, 8) + 1e-5 * draws(20, 8, 1)
    b = draws(1, 8) + 1e-5 * draws(30, 8, 2)
    wanted = all_distances(a, b, measure)
    half = float(wanted.min(1).mean() + wanted.min(0).mean()) / 2
    assert chamfer(a, b, measure) == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize("measure", ["relative", "cosine"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_merging_is_free_of_scale(scale, measure):
    points = draws(12, 4)
    wanted = torch.stack([Dissimilarity(points, measure, 1.0).from_row(i) for i in range(12)])
    scaled = Dissimilarity(points * scale, measure, scale)
    assert torch.allclose(torch.stack([scaled.from_row(i) for i in range(12)]), wanted, rtol=1e-5)


@pytest.mark.parametrize("measure", ["relative", "cosine"])
def test_points_at_the_origin_are_one(measure):
    points = Dissimilarity(torch.cat([torch.zeros(3, 4), torch.eye(4)]), measure, 0.0)
    assert single_linkage(points).count(1e-2) == 5
    assert torch.allclose(points.from_row(0), torch.tensor([0.0] * 3 + [1.0] * 4).double())


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(-44, 37), st.sampled_from(DTYPES), st.integers(0, 10**6))
def test_quick_norms_are_the_norms_to_rounding_at_any_scale_and_row_by_row(n, d, exponent, dtype, seed):
    generator = np.random.default_rng(seed)
    spread = 10.0 ** generator.uniform(exponent, exponent + 1, (n, 1))
    rows = torch.from_numpy(generator.standard_normal((n, d)) * spread).to(dtype)
    rows[generator.random(n) < 0.2] = float(generator.choice([0.0, np.inf, np.nan]))
    found = quick_norms(rows)
    assert found.dtype == torch.float64
    assert torch.allclose(found, norms(rows), rtol=1e-6, atol=0, equal_nan=True)
    alone = torch.cat([quick_norms(row[None]) for row in rows])
    assert torch.allclose(found, alone, rtol=1e-6, atol=0, equal_nan=True)
