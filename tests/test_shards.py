"""Shards of ended orbits, and ends that lie on disk."""

import resource

import pytest
import torch
from support.maps import draws
from support.runs import spawn

from fmprobe.attractors import AttractorSet
from fmprobe.dynamics.attractors import attractors_of
from fmprobe.dynamics.engine import Ended
from fmprobe.dynamics.paging import forget
from fmprobe.errors import InputError
from fmprobe.runs.shards import Shards, rows_of_a_shard, scratch


def ended(index):
    index = torch.as_tensor(index)
    counts = index + 1
    values = index.float()
    return Ended(index, values[:, None] * torch.ones(3), counts, values, 0 * counts, values, 0 * counts, counts + 2, 5)


def test_orbits_come_back_in_the_order_of_their_starts(tmp_path):
    shards = Shards(tmp_path / "shards", 7, (3,), 2)
    assert shards.missing().tolist() == [*range(7)]
    assert [shards.keep(ended(rows), more=torch.tensor(rows)) for rows in ([5], [1, 6], [0, 2, 3])] == [0, 3, 3]
    assert shards.missing().tolist() == [4]
    shards.keep(ended([4]), more=torch.tensor([4]))
    assert shards.flush() == 1
    assert shards.flush() == 0
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [f"{i:09d}.safetensors" for i in (0, 1, 4)]
    (tmp_path / "shards" / "000000001.safetensors").rename(tmp_path / "aside")
    with pytest.raises(InputError, match="3 of 7 starts are missing from"):
        shards.gather({"tol": 1})
    (tmp_path / "aside").rename(tmp_path / "shards" / "000000001.safetensors")
    orbits, more = shards.gather({"tol": 1})
    assert orbits.ends[:, 0].tolist() == orbits.residuals.tolist() == more["more"].tolist() == [*range(7)]
    assert (orbits.evaluations, orbits.surplus, orbits.check_evaluations) == (28 + 14, 14, 20)


@pytest.mark.parametrize(("n", "size", "rows"), [(1, 10, 1), (64, 10, 2), (3200, 10, 100), (10**6, 2**20, 8)])
def test_a_run_has_about_32_shards_of_bounded_size(n, size, rows):
    assert rows_of_a_shard(n, size) == rows


def test_what_lies_on_disk_and_was_forgotten_is_read_again(tmp_path):
    numbers = scratch((1000, 5), tmp_path)
    numbers.copy_(draws(1000, 5))
    forget(numbers[10:])
    assert torch.equal(numbers, draws(1000, 5))
    assert not list(tmp_path.iterdir())  # the file has no name
    forget(draws(3, 3))  # any other tensor is left alone


def merge_many(folder):
    """Two attractors from 128 MB of ends; how many kB this process grew by."""
    n, d = 16384, 2048
    shards = Shards(folder / "shards", n, (d,), 1024)
    for first in range(0, n, 1024):
        index = torch.arange(first, first + 1024)
        ends = (2.0 * (index % 2)[:, None] - 1) + 1e-4 * draws(1024, d, seed=first)
        zeros, counts = torch.zeros(1024), torch.ones(1024, dtype=torch.long)
        shards.keep(Ended(index, ends, counts, zeros, 0 * counts, zeros, 0 * counts, counts, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    protocol = {"tol": 1e-6, "measure": "squared", "max_steps": 10, "batch_size": 32}
    found = attractors_of(lambda z: z.sign() + 0 * z, shards.gather(protocol)[0], 1.0, stability_cap=0)
    AttractorSet.of(found).save(folder / "attractors")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    (folder / "grown").write_text(str(grown))
    return 0


def test_memory_does_not_grow_with_the_ends(tmp_path):
    process = spawn(merge_many, tmp_path)  # a process of its own, since the peak of this one is history
    process.join()
    assert process.exitcode == 0
    found = AttractorSet.load(tmp_path / "attractors")
    assert found.sizes.tolist() == [8192, 8192]
    assert found.labels.tolist() == [found.labels[0], found.labels[1]] * 8192
    assert int((tmp_path / "grown").read_text()) < 64 * 1024
