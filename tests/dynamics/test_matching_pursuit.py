"""Orthogonal Matching Pursuit, compared with scikit-learn and with the laws of projections, also where atoms depend."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram
from support.maps import draws
from torch.nn.functional import normalize

import fmprobe
from fmprobe.dynamics import matching_pursuit, sparse_codes

omp = fmprobe.orthogonal_matching_pursuit


def by_sklearn(dictionary, targets, k):
    """Chosen sets and reconstructions by scikit-learn, in float64, with unit atoms as it demands."""
    units = normalize(dictionary.double(), dim=1)
    gram, products = (units @ units.T).numpy(), (units @ targets.double().T).numpy()
    found = torch.from_numpy(orthogonal_mp_gram(gram, products, n_nonzero_coefs=k)).reshape(len(units), -1).T
    return [set(row.nonzero()[:, 0].tolist()) for row in found], found @ units


def residual_norms(codes, targets):
    levels = range(1, codes.indices.shape[1] + 1)
    return torch.stack([torch.linalg.vector_norm(targets - codes.reconstruct(k), dim=1) for k in levels])


def dictionary_of(n, d, seed, coherence=0.0):
    """Random atoms of different norms that share a direction."""
    atoms = draws(n, d, seed).double() + coherence * draws(1, d, seed + 1).double()
    return atoms * (0.1 + draws(n, 1, seed + 2).abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "d", "k", "coherence"),
    [(60, 40, 20, 0), (300, 200, 120, 0), (200, 400, 64, 0), (150, 100, 40, 1.0), (30, 12, 12, 0)],
)
def test_chooses_and_reconstructs_as_scikit_learn(dtype, n, d, k, coherence):
    dictionary, targets = dictionary_of(n, d, 0, coherence).to(dtype), (5 * draws(37, d, 9)).to(dtype)
    codes = omp(dictionary, targets, k)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    assert codes.n_selected.eq(k).all()
    for level in {1, k // 2, k}:
        sets, reconstructions = by_sklearn(dictionary, targets, level)
        assert [set(row[:level].tolist()) for row in codes.indices] == sets
        torch.testing.assert_close(
            codes.reconstruct(level).double(),
            reconstructions,
            rtol=0,
            atol=tolerance * float(targets.norm(dim=1).max()),
        )


def test_coefficients_are_for_atoms_as_given():
    dictionary, targets = dictionary_of(50, 30, 3) * 1000, draws(8, 30, 4).double()
    codes = omp(dictionary, targets, 10)
    again = (codes.coefficients[:, :, None] * dictionary[codes.indices]).sum(1)
    torch.testing.assert_close(again, codes.reconstruct(10), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        codes.coefficients_at(4), torch.linalg.lstsq(dictionary[codes.indices[:, :4]].mT, targets).solution
    )


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 90),
    d=st.integers(1, 40),
    b=st.integers(1, 7),
    k=st.integers(1, 50),
    coherence=st.sampled_from([0.0, 1.0, 10.0]),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(n=26, d=26, b=5, k=26, coherence=0.0, seed=854, dtype=torch.float32)  # small pivots, whose errors add up
def test_laws_of_the_path(n, d, b, k, coherence, seed, dtype):
    dictionary, targets = dictionary_of(n, d, seed, coherence).to(dtype), draws(b, d, seed + 7).to(dtype)
    codes = omp(dictionary, targets, k)
    rounding = 1000 * torch.finfo(dtype).eps
    assert codes.indices.shape == (b, k)
    norms = targets.norm(dim=1)
    residuals = residual_norms(codes, targets)
    assert (residuals[1:] <= residuals[:-1] + rounding * norms).all()
    for row, selected in zip(codes.indices, codes.n_selected.tolist(), strict=True):
        assert (row[selected:] == -1).all()
        assert len(set(row[:selected].tolist())) == selected <= min(n, d, k)
    # What is left is orthogonal to every chosen atom, and nothing else ends a path than lack of atoms or of target.
    units = normalize(dictionary, dim=1)
    left = (targets - codes.reconstruct(k)) @ units.T
    chosen = torch.zeros(b, n, dtype=torch.bool).scatter(1, codes.indices.clamp(min=0), codes.indices >= 0)
    assert (left.abs() * chosen).max() <= 10 * rounding * norms.max()
    early = codes.n_selected < min(n, d, k)
    assert (left[early].abs().amax(1) <= 0.01 * norms[early] if early.any() else torch.tensor(True)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 40), coherence=st.sampled_from([0.0, 3.0]))
def test_the_order_of_atoms_and_the_company_of_targets_do_not_matter(seed, k, coherence):
    dictionary, targets = dictionary_of(80, 50, seed, coherence), draws(9, 50, seed + 7).double()
    codes = omp(dictionary, targets, k)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    shuffled = omp(dictionary[order], targets.flip(0), k)
    assert torch.equal(order[shuffled.indices.flip(0)], codes.indices)
    alone = torch.cat([omp(dictionary, target[None], k).indices for target in targets])
    assert torch.equal(alone, codes.indices)
    scaled = omp(dictionary * -7, targets * 1e-3, k)
    assert torch.equal(scaled.indices, codes.indices)
    torch.testing.assert_close(scaled.coefficients, codes.coefficients * -1e-3 / 7, rtol=1e-6, atol=1e-12)


def test_a_longer_path_begins_with_the_shorter():
    dictionary, targets = dictionary_of(120, 90, 0, 2.0), draws(6, 90, 1).double()
    long = omp(dictionary, targets, 70)
    for k in (1, 15, 16, 17, 40):
        short = omp(dictionary, targets, k)
        assert torch.equal(short.indices, long.indices[:, :k])
        torch.testing.assert_close(short.reconstruct(k), long.reconstruct(k))


@pytest.mark.parametrize("together", [1, 4, 11])
def test_how_many_targets_advance_together_is_a_matter_of_speed_alone(together, monkeypatch):
    dictionary, targets = dictionary_of(200, 90, 5, 5.0), draws(11, 90, 6).double()
    expected = omp(dictionary, targets, 60)
    monkeypatch.setattr(matching_pursuit, "MOST", together)
    codes = omp(dictionary, targets, 60)
    assert torch.equal(codes.indices, expected.indices)
    torch.testing.assert_close(codes.reconstruct(60), expected.reconstruct(60))


def test_the_budget_bounds_memory_and_changes_nothing_else(monkeypatch):
    dictionary, targets = dictionary_of(400, 100, 0), draws(50, 100, 1).double()
    expected = omp(dictionary, targets, 60)
    kept = []
    original = matching_pursuit._plan
    monkeypatch.setattr(matching_pursuit, "_plan", lambda *a: kept.append(original(*a)) or kept[-1])
    for budget in (1 << 30, 8 << 20, 2 << 20, 300_000):
        codes = omp(dictionary, targets, 60, memory_budget=budget)
        assert torch.equal(codes.indices, expected.indices)
        torch.testing.assert_close(codes.reconstruct(60), expected.reconstruct(60))
    assert [with_gram for with_gram, _ in kept] == [True, True, False, False]
    assert kept[0][1] > kept[-1][1] == 1
    with pytest.raises(MemoryError, match="bytes for one target"):
        omp(dictionary, targets, 60, memory_budget=1000)
    monkeypatch.setattr(sparse_codes, "AT_ONCE", 1)
    torch.testing.assert_close(expected.reconstruct(60), codes.reconstruct(60))


def test_threads_change_nothing():
    dictionary, targets = dictionary_of(200, 100, 0), draws(40, 100, 1).double()
    threads = torch.get_num_threads()
    try:
        codes = []
        for count in (1, 3):
            torch.set_num_threads(count)
            codes.append(omp(dictionary, targets, 50))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(codes[0].indices, codes[1].indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_zeros_and_near_parallel_atoms(dtype):
    base = normalize(draws(20, 48, 0).double(), dim=1)
    across = normalize(draws(20, 48, 1).double(), dim=1)
    across = normalize(across - (across * base).sum(1, keepdim=True) * base, dim=1)
    near = (1 - 1e-7) * base + (1 - (1 - 1e-7) ** 2) ** 0.5 * across
    dictionary = torch.cat([base, base, -3 * base, near, torch.zeros(5, 48, dtype=torch.float64)]).to(dtype)
    targets = torch.cat([draws(30, 48, 2).double(), base[:3], torch.zeros(1, 48, dtype=torch.float64)]).to(dtype)
    codes = omp(dictionary, targets, 60)
    for k in (1, 20, 60):
        assert codes.reconstruct(k).isfinite().all()
        assert codes.coefficients_at(k).isfinite().all()
    for row, count in zip(codes.indices.tolist(), codes.n_selected.tolist(), strict=True):
        assert len(set(row[:count])) == count
        assert max(row[:count], default=0) < 80
        assert len({index % 20 for index in row[:count] if index < 60}) == sum(index < 60 for index in row[:count])
    assert codes.n_selected[-1] == 0
    # Float32 cannot tell cosines of 1 and 1 - 1e-7 apart: it may take the other, which lies that far from the target.
    away = 1e-12 if dtype == torch.float64 else (2e-7) ** 0.5
    assert (codes.reconstruct(60)[30:33] - targets[30:33]).norm(dim=1).max() <= 1.01 * away
    if dtype == torch.float64:  # in which near-parallel atoms are two directions
        assert codes.n_selected[30:33].tolist() == [1, 1, 1]
        span = torch.cat([base, near])
        exact = torch.linalg.lstsq(span.T, targets.T).solution.T @ span
        full = codes.n_selected == 40
        assert full[:30].all()
        torch.testing.assert_close(codes.reconstruct(60)[full], exact[full], rtol=0, atol=1e-7)


def test_fewer_atoms_than_asked_for():
    codes = omp(draws(3, 10, 0), draws(4, 10, 1), 8)
    assert codes.n_selected.tolist() == [3] * 4
    assert codes.indices.shape == codes.coefficients.shape == (4, 8)
    assert (codes.coefficients[:, 3:] == 0).all()
    torch.testing.assert_close(codes.reconstruct(8), codes.reconstruct(3))
    assert omp(draws(3, 10, 0), draws(0, 10, 1), 2).reconstruct(2).shape == (0, 10)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales(scale):
    dictionary, targets = draws(40, 20, 0), draws(5, 20, 1)
    plain, extreme = omp(dictionary, targets, 10), omp(dictionary * scale, targets / scale, 10)
    assert torch.equal(plain.indices, extreme.indices)
    torch.testing.assert_close(extreme.reconstruct(10) * scale, plain.reconstruct(10), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dictionary", "targets", "n", "message"),
    [
        (draws(3, 4), draws(2, 5), 1, "4 dimensions and targets 5"),
        (draws(3, 4)[0], draws(2, 4), 1, "two dimensions"),
        (draws(3, 4) / 0, draws(2, 4), 1, "no finite"),
        (draws(3, 4), draws(2, 4), 0, "at least 1"),
        (draws(0, 4), draws(2, 4), 1, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_named(dictionary, targets, n, message):
    with pytest.raises(ValueError, match=message):
        omp(dictionary, targets, n)


@pytest.mark.parametrize("n", [True, "3", None, 2.5, float("nan"), [3]])
def test_a_number_of_atoms_that_is_none_is_named(n):
    with pytest.raises(ValueError, match="n_atoms must be a whole number"):
        omp(draws(3, 4), draws(2, 4), n)


@pytest.mark.parametrize("name", ["dictionary", "targets"])
@pytest.mark.parametrize("spoil", [torch.nan, torch.inf, "meta", "whole numbers", "a list"])
def test_rows_that_hold_no_numbers_are_named(name, spoil):
    given = {"dictionary": draws(5, 4), "targets": draws(3, 4, 1)}
    if isinstance(spoil, float):
        given[name][1, 2] = spoil
    else:
        given[name] = {"meta": given[name].to("meta"), "whole numbers": given[name].long(), "a list": [[1.0]]}[spoil]
    with pytest.raises(ValueError, match=name):
        omp(given["dictionary"], given["targets"], 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_caller_changes_later_changes_no_code(dtype):
    dictionary, targets = draws(12, 6).to(dtype), draws(4, 6, 1).to(dtype)
    kept = dictionary.clone(), targets.clone()
    codes = omp(dictionary, targets, 4)
    assert torch.equal(dictionary, kept[0])
    assert torch.equal(targets, kept[1])
    wanted = codes.coefficients, codes.reconstruct(3)
    dictionary.zero_()
    targets.fill_(3)
    assert torch.equal(codes.coefficients, wanted[0])
    assert torch.equal(codes.reconstruct(3), wanted[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_coded_as_its_values_in_float32(dtype):
    dictionary, targets = draws(30, 12).to(dtype), draws(6, 12, 1).to(dtype)
    half, single = omp(dictionary, targets, 8), omp(dictionary.float(), targets.float(), 8)
    assert torch.equal(half.indices, single.indices)
    assert torch.equal(half.reconstruct(8), single.reconstruct(8))
    assert half.reconstruct(8).dtype == torch.float32


@pytest.mark.parametrize("atoms", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_coefficients_at_any_scale_are_right_or_refused(atoms, scale):
    dictionary, targets = draws(30, 12), draws(6, 12, 1)
    plain, codes = omp(dictionary, targets, 8), omp(dictionary * atoms, targets * scale, 8)
    assert torch.equal(plain.indices, codes.indices)
    ratio = scale / atoms
    if 1e-37 < ratio < 1e37:
        torch.testing.assert_close(
            codes.coefficients.double() / ratio, plain.coefficients.double(), rtol=1e-4, atol=1e-5
        )
    else:
        with pytest.raises(ValueError, match="coefficients do not fit into"):
            codes.coefficients  # noqa: B018


def test_levels_that_were_not_computed_are_refused():
    codes = omp(draws(9, 5), draws(2, 5, 1), 3)
    wrong: tuple[Any, ...] = (0, 4, 2.5, True, None)
    for k in wrong:
        with pytest.raises(ValueError, match="1 to 3"):
            codes.reconstruct(k)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(-8, 0),
    k=st.integers(1, 80),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_bundles_of_nearly_parallel_atoms(seed, spread, k, dtype):
    """Products of such atoms are too rounded to solve with; their fit must be the best all the same."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(16, 48, generator=g, dtype=torch.float64)
    noise = torch.randn(80, 48, generator=g, dtype=torch.float64)
    dictionary = (centres.repeat(5, 1) + 10**spread * noise).to(dtype)
    targets = torch.randn(4, 48, generator=g, dtype=torch.float64).to(dtype)
    codes = omp(dictionary, targets, k)
    residuals = residual_norms(codes, targets)
    assert (residuals[1:] <= residuals[:-1] + 1e-5 * targets.norm(dim=1)).all()
    for row, n, target, left in zip(codes.indices, codes.n_selected.tolist(), targets, residuals[-1], strict=True):
        assert len(set(row[:n].tolist())) == n >= 1
        q, _ = torch.linalg.qr(dictionary[row[:n]].double().T)
        best = (target.double() - q @ (q.T @ target.double())).norm()
        assert abs(float(left) - float(best)) <= 1e-4 * float(target.norm())
