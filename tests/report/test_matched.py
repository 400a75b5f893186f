"""Attractors of several runs on one page: which are the same picture, and which have no counterpart."""

import re
import shutil

import numpy as np
import pytest

from fmprobe.probes.prototypes.matched import SAME, match
from fmprobe.report.page import write_report


@pytest.mark.parametrize("seed", range(20))
def test_pictures_are_found_again_in_any_order_under_noise_and_beside_others(seed):
    random = np.random.default_rng(seed)
    common, only, others = (int(n) for n in random.integers(0, 9, 3))
    pictures = random.random((common, 8, 8, 3))
    order = random.permutation(common)
    noise = random.uniform(-SAME, SAME, (common, 8, 8, 3))
    first = [*pictures, *random.random((only, 8, 8, 3))]
    second = [*(pictures + noise)[order], *random.random((others, 8, 8, 3))]
    pairs = match(first, second)
    assert {(i, j) for i, j, _ in pairs} == {(int(i), j) for j, i in enumerate(order)}
    for i, j, difference in pairs:
        assert difference == pytest.approx(np.sqrt(np.mean((first[i] - second[j]) ** 2)))


def test_a_picture_takes_no_partner_from_a_pair_that_is_alike():
    """The sum of all differences would be least the other way round."""
    flat = [np.full((4, 4, 3), value) for value in (0.0, 0.04)]
    others = [np.full((4, 4, 3), value) for value in (0.04, 0.9)]
    assert [(i, j) for i, j, _ in match(flat, others)] == [(1, 0)]


def test_a_page_of_several_runs_pairs_their_attractors(written, tmp_path):
    same = shutil.copytree(written("prototypes"), tmp_path / "again")
    page = write_report([written("prototypes"), same, written("surrogate")], tmp_path / "page.html").read_text()
    count = len((same / "prototypes" / "index.csv").read_text().splitlines()) - 1
    assert "Attractors of these runs, matched" in page
    assert len(re.findall(r"difference 0\.000", page)) == count
    assert "of different sizes, so that none can be paired" in page
    assert "Attractors of these runs, matched" not in written.page("prototypes")


def test_attractors_without_a_counterpart_are_named(written, tmp_path):
    fewer = shutil.copytree(written("prototypes"), tmp_path / "fewer")
    from PIL import Image

    with Image.open(fewer / "prototypes" / "0001.png") as picture:
        Image.new(picture.mode, picture.size).save(fewer / "prototypes" / "0001.png")
    page = write_report([written("prototypes"), fewer], tmp_path / "page.html").read_text()
    assert re.search(r"Without a counterpart in [^:]*\(fewer\)[^:]*: attractor 2 of", page)
