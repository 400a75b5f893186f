"""Single linkage, with and without groups, compared with scipy's of all pairs."""

import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from support.maps import draws
from support.runs import spawn

from fmprobe.dynamics.cover import Points
from fmprobe.dynamics.distances import Dissimilarity
from fmprobe.dynamics.merging import SWEEPS, merge_ends, single_linkage


def theirs(points, measure, threshold):
    whole = Dissimilarity(points, measure, 1.0)
    matrix = torch.stack([whole.from_row(i) for i in range(len(points))]).double()
    matrix = ((matrix + matrix.T) / 2).fill_diagonal_(0)
    # scipy cuts at distances up to the threshold, single linkage here below it.
    return torch.from_numpy(fcluster(linkage(squareform(matrix.numpy()), "single"), threshold * (1 - 1e-9), "distance"))


def assert_same(points, measure, threshold, sweep):
    every = Points(points, torch.arange(len(points)), measure, 1.0)
    labels, counts = merge_ends(every, threshold, sweep, pairs=0)
    wanted = theirs(points, measure, threshold)
    assert torch.equal(labels[:, None] == labels, wanted[:, None] == wanted)
    for value in sweep:
        if str(value) in counts:
            assert counts[str(value)] == int(theirs(points, measure, value).max())
    sizes = torch.bincount(labels)
    assert (sizes.diff() <= 0).all()
    return counts


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.floats(0.02, 1.0), st.sampled_from(["relative", "cosine"]))
def test_any_points(n, seed, threshold, measure):
    assert_same(draws(n, 3, seed), measure, threshold, (threshold, 2 * threshold, 5 * threshold))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.5), st.sampled_from(["relative", "cosine"]))
def test_ends_scattered_about_attractors_at_the_scale_of_the_threshold(seed, scatter, measure):
    centres = draws(6, 5, seed)
    points = centres[torch.arange(300) % 6] + 0.02 * scatter * draws(300, 5, seed + 1)
    assert_same(points, measure, 0.02, SWEEPS[measure])


def test_chains_of_groups_are_one_component():
    line = torch.linspace(1, 2, 500)[:, None] * torch.ones(1, 4)  # steps of 0.002 to 0.001 of the norm
    points = Points(line, torch.arange(500), "relative", 0.0)
    labels, _ = merge_ends(points, 0.0025, (), pairs=0)
    assert labels.max() == 0
    labels, _ = merge_ends(points, 0.001, (), pairs=0)
    assert labels.max() > 400


@pytest.mark.parametrize("pairs", [0, 2.0**35])
def test_members_alone_are_merged(pairs):
    ends = torch.cat([draws(5, 8), draws(5, 8) + 1e-5, 100 * draws(7, 8)])
    labels, counts = merge_ends(Points(ends, torch.arange(10), "relative", 1.0), 0.01, (0.01, 0.3), pairs=pairs)
    assert labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert counts["0.01"] == 5


def test_thresholds_too_small_for_the_groups_are_left_out_and_the_one_asked_for_is_not():
    points = 1 + 1e-3 * draws(2000, 4)
    counts = merge_ends(Points(points, torch.arange(2000), "relative", 1.0), 0.01, (1e-4, 1e-2), pairs=1e6)[1]
    assert counts == {"0.01": 1}


def tree_of_many(folder):
    """Write how many kB this process grew by on the way to the tree of 6000 points."""
    points = Dissimilarity(draws(6000, 2), "relative", 1.0)
    points.from_row(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(single_linkage(points).heights) == 5999
    (folder / "grown").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
    return 0


def test_memory_does_not_grow_with_the_pairs(tmp_path):
    process = spawn(tree_of_many, tmp_path)  # The peak of this process may be high already.
    process.join()
    assert process.exitcode == 0
    assert int((tmp_path / "grown").read_text()) < 50_000  # all distances take 288 MB
