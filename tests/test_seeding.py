"""Streams: what two things draw never shares numbers, and item i depends on seed, stream and i alone."""

import numpy as np
import torch

from fmprobe.seeding import STARTS, generator, normal_rows, torch_generator


def test_rows_depend_on_seed_stream_and_index_alone():
    whole = normal_rows(5, 7, 3, STARTS)
    assert np.array_equal(normal_rows(2, 7, 3, STARTS, first=3), whole[3:])
    assert not np.array_equal(normal_rows(5, 7, 4, STARTS), whole)


def test_two_streams_span_different_spaces_under_any_two_seeds():
    starts = normal_rows(16, 256, 0, STARTS)
    for seed in range(4):
        other = normal_rows(16, 256, seed, "a baseline")
        left = other - other @ np.linalg.pinv(starts) @ starts
        assert np.linalg.norm(left) > 0.9 * np.linalg.norm(other)


def test_index_and_seed_never_run_into_each_other():
    drawn = {generator(seed, i, s).integers(2**63) for seed in range(5) for i in range(5) for s in (STARTS, "a", "b")}
    assert len(drawn) == 75


def test_torchs_own_generator_is_seeded_by_the_stream():
    draws = [torch.randn(4, generator=torch_generator(0, stream)) for stream in ("a", "b", "a")]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
