"""Alignment of two fields: a rotated copy, a network that has nothing to do with it, and what stands in between."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import LinearRegression
from support.maps import double_well, draws
from torch import nn

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.probes.alignment.comparison import basin_agreement, pair_jaccard
from fmprobe.probes.alignment.latent_maps import fit_linear, fit_orthogonal, fit_relative
from fmprobe.probes.alignment.page import comparison
from fmprobe.probes.alignment.perturbation import perturb, perturbed, perturbed_checkpoint

D = 4
TURN = torch.linalg.qr(draws(D, D, 3))[0]
IMAGES = draws(120, 2 * D, 7).clamp(-2.5, 2.5).reshape(120, 1, 2, D)
compare: Any = fmprobe.compare


def wells(turn: torch.Tensor, part: int = 0, f=double_well, shift: float = 0.0) -> Autoencoder:
    """Latents are one row of the image, sent through f, turned and shifted; the other row is not looked at."""

    def encode(x):
        return f(x[:, 0, part]) @ turn.T + shift

    def decode(z):
        image = torch.zeros(len(z), 1, 2, D)
        image[:, 0, part] = (z - shift) @ turn
        return image

    return fmprobe.from_functions(encode, decode, image_shape=(1, 2, D), latent_shape=(D,))


@pytest.fixture(scope="module")
def found():
    """A rotated and shifted copy; as the null a network that looks at the other row of every image."""
    a, b = wells(torch.eye(D)), wells(TURN, shift=2.0)
    return compare(a, b, IMAGES, null=wells(TURN, part=1), ceiling=wells(torch.eye(D)))


@pytest.mark.parametrize("name", ["orthogonal", "linear", "relative"])
def test_a_rotated_copy_aligns_perfectly(found, name):
    row = found.subject["maps"][name]
    assert row["fit_error"] < 1e-6
    assert row["cosine"]["q10"] > 0.9999
    assert row["basins"]["adjusted_rand"] == pytest.approx(1)
    assert row["basins"]["jaccard"] == pytest.approx(1)
    assert row["basins"]["basins"][0] > 5
    assert row["basins"]["settled_in_both"] == 40
    assert row["chamfer"] < 0.02
    assert found.ceiling["maps"][name]["cosine"]["q10"] > 0.9999


def test_the_rotation_is_found(found):
    a, b = IMAGES[:, 0, 0], IMAGES[:, 0, 0] @ TURN.T + 2
    fitted = fit_orthogonal(a, b)
    torch.testing.assert_close(fitted.basis @ fitted.weights, TURN.T, atol=1e-5, rtol=0)
    assert found.subject["maps"]["orthogonal"]["scale"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["orthogonal", "linear", "relative"])
def test_an_independent_network_does_not_align(found, name):
    row = found.null["maps"][name]
    assert row["fit_error"] > 0.8
    assert abs(row["cosine"]["mean"]) < 0.4
    if name == "relative":  # B is followed from its own latents, which have nothing to do with A's
        assert abs(row["basins"]["adjusted_rand"]) < 0.15
        assert row["basins"]["jaccard"] == pytest.approx(row["basins"]["jaccard_chance"], abs=0.15)
    elif row["basins"]["reason"] is None:  # B is followed from where A's latents are mapped to: wells of the same signs
        assert row["basins"]["adjusted_rand"] < 0.5


def test_relative_representations_agree_all_along_the_iteration_of_a_copy(found):
    drift = found.subject["drift"]
    assert drift["steps"][0] == 0
    assert min(drift["agreement"]) > 0.9999
    assert drift["a"] == pytest.approx(drift["b"], abs=1e-5)
    assert drift["a"][0] == 0 < drift["a"][-1]
    assert abs(found.null["drift"]["agreement"][0]) < 0.3
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.plot().axes) == 2


@pytest.mark.parametrize("scale", [1e-30, 1e-14, 1e-3, 1e30])
def test_relative_representations_do_not_depend_on_the_scale_of_latents(scale):
    a, b = (draw.reshape(40, D) for draw in torch.randn(2, 40 * D, generator=torch.Generator().manual_seed(0)))
    one = fit_relative(a, b)
    other = fit_relative(a * scale, b * scale)
    torch.testing.assert_close(other.from_a(a * scale), one.from_a(a), atol=1e-5, rtol=1e-5)
    assert other.from_a(a * scale).norm(dim=1).min() > 0


def test_opposed_fields_under_a_perfect_map_are_told_apart():
    a, b = wells(torch.eye(D), f=lambda z: 1.05 * z), wells(torch.eye(D), f=lambda z: 0.95 * z)
    row = compare(a, b, IMAGES, maps=["orthogonal"], max_steps=20).subject["maps"]["orthogonal"]
    assert row["fit_error"] < 1e-6
    assert row["cosine"]["q90"] < -0.999


def test_no_orbit_that_settles_is_said_and_nothing_made_up():
    def turning(z):
        return torch.stack([-z[:, 1], z[:, 0], -z[:, 3], z[:, 2]], 1)

    found = compare(wells(torch.eye(D), f=turning), wells(TURN, f=turning), IMAGES[:30], max_steps=40)
    for row in found.subject["maps"].values():
        assert row["chamfer"] is None
        assert row["basins"]["adjusted_rand"] is None
        assert "0 of 10 starts settled" in row["basins"]["reason"]
        assert row["cosine"]["q10"] > 0.999
    assert set(found.absent) == {"null", "ceiling"}
    assert found.null is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_different_dimensions_are_joined_by_the_maps_that_can():
    wide = fmprobe.from_functions(
        lambda x: torch.cat([double_well(x[:, 0, 0]), double_well(x[:, 0, 0])], 1),
        lambda z: torch.stack([(z[:, :D] + z[:, D:]) / 2, 0 * z[:, :D]], 1)[:, None],
        image_shape=(1, 2, D),
        latent_shape=(2 * D,),
    )
    found = compare(wells(torch.eye(D)), wide, IMAGES)
    assert set(found.subject["maps"]) == {"linear", "relative"}
    assert "4 and of 8" in found.absent["orthogonal"]
    assert found.subject["maps"]["linear"]["cosine"]["q10"] > 0.99
    assert found.subject["maps"]["linear"]["basins"]["adjusted_rand"] > 0.95
    with pytest.raises(fmprobe.InputError, match="no orthogonal map joins them"):
        compare(wells(torch.eye(D)), wide, IMAGES, maps=["orthogonal"])


def test_the_result_does_not_depend_on_the_batch_and_the_seed_draws_the_images(found):
    a, b = wells(torch.eye(D)), wells(TURN, part=1)
    one, other = (compare(a, b, IMAGES[:60], batch_size=size).to_dict() for size in (7, 64))
    for name, row in one["subject"]["maps"].items():
        same = other["subject"]["maps"][name]
        assert row["basins"] == same["basins"]
        assert row["cosine"]["mean"] == pytest.approx(same["cosine"]["mean"], abs=1e-4)
    again = compare(a, b, IMAGES[:60], maps=["linear"], seed=1).subject["maps"]["linear"]["cosine"]
    assert again != one["subject"]["maps"]["linear"]["cosine"]


def test_maps_are_those_of_scipy_and_scikit_learn():
    a = draws(60, 5, 0) + 1
    b = a @ draws(5, 5, 1) + 0.1 * draws(60, 5, 2)
    x, y = (rows.double().numpy() - rows.double().numpy().mean(0) for rows in (a, b))
    turned = orthogonal_procrustes(x, y)[0]
    scale = np.trace(turned.T @ x.T @ y) / (x**2).sum()
    np.testing.assert_allclose(
        fit_orthogonal(a, b).from_a(a), scale * x @ turned + b.double().numpy().mean(0), atol=1e-4
    )
    exact = LinearRegression().fit(a.numpy(), b.numpy()).predict(a.numpy())
    np.testing.assert_allclose(fit_linear(a, b).from_a(a), exact, atol=0.02)


def test_fewer_images_than_dimensions():
    a = draws(20, 50, 0)
    turn = torch.linalg.qr(draws(50, 50, 1))[0]
    for fit in (fit_orthogonal, fit_linear):
        fitted = fit(a, a @ turn)
        assert fitted.facts["rank"] == 20
        torch.testing.assert_close(fitted.from_a(a), a @ turn, atol=1e-3, rtol=0)


CONSTANT = torch.full((20, 3), 1.7)
STILL = {"constant": CONSTANT, "zero": torch.zeros(20, 3), "rounding": CONSTANT * (1 + 1e-7 * draws(20, 3, 2))}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", STILL)
def test_latents_that_do_not_vary_are_mapped_to_the_mean(name):
    b = draws(20, 3, 1)
    for fit in (fit_orthogonal, fit_linear):
        fitted = fit(STILL[name], b)
        assert fitted.facts["rank"] == 0
        assert "do not vary" in fitted.facts["reason"]
        torch.testing.assert_close(fitted.from_a(STILL[name] + 1), b.mean(0).expand(20, 3))
    relative = fit_relative(STILL[name], b)
    assert bool((relative.from_a(STILL[name]) == 0).all()), "directions of rounding are none"
    assert fit_linear(b, STILL[name]).from_a(b) == pytest.approx(STILL[name], abs=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "spread",
    [lambda a: a[:, :1].expand(-1, 40), lambda a: a * (torch.arange(40) < 2), lambda a: a[torch.arange(8) % 2]],
)
@pytest.mark.parametrize("rows", [8, 60])
def test_rows_of_low_rank_are_fitted_with_finite_numbers(spread, rows):
    a = spread(draws(rows, 40, 0)[:, :40] if rows == 60 else draws(8, 40, 0))
    turn = torch.linalg.qr(draws(40, 40, 1))[0]
    for fit in (fit_orthogonal, fit_linear):
        torch.testing.assert_close(fit(a, a @ turn).from_a(a), a @ turn, atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("error")
def test_a_network_of_constant_latents_is_compared_and_said_to_be_one():
    still = wells(torch.eye(D), f=lambda z: 0 * z + 0.5)
    for pair in ((still, wells(TURN)), (wells(TURN), still), (still, still)):
        found = compare(*pair, IMAGES[:30], max_steps=20)
        json.dumps(found.to_dict(), allow_nan=False)
        assert ("do not vary" in comparison(found.to_dict())[0].lead) == (pair[0] is still)
        rows = found.subject["maps"]
        assert all(row["cosine"]["known"] == 0 for row in rows.values())
        assert [rows[name].get("rank") == 0 for name in ("orthogonal", "linear")] == [pair[0] is still] * 2


def test_relative_representations_do_not_see_rotation_shift_or_scale():
    a = draws(30, 6, 0)
    b = 3 * a @ torch.linalg.qr(draws(6, 6, 1))[0] + 5
    relative = fit_relative(a, b, anchors=7)
    assert relative.facts == {"anchors": 7}
    torch.testing.assert_close(relative.from_a(a), relative.from_b(b), atol=1e-5, rtol=0)
    assert relative.counterpart(a, b) is b


def test_agreement_of_known_basins():
    x = torch.tensor([0, 0, 0, 1, 1, 1, -1])
    same = basin_agreement(x, torch.tensor([5, 5, 5, 2, 2, 2, 2]))
    assert (same["adjusted_rand"], same["jaccard"]) == (1, 1)
    # Of 6 settled starts, 3 split as 3 + 3 and as 2 + 4: pairs together in both 1 + 3, in at least one 6 + 7 - 4.
    other = basin_agreement(x, torch.tensor([0, 0, 1, 1, 1, 1, 1]))
    assert other["jaccard"] == pytest.approx(4 / 9)
    assert same["jaccard_chance"] < other["jaccard"] < 1
    one = basin_agreement(torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long))
    assert one["adjusted_rand"] is None
    assert "one basin" in one["reason"]


def test_the_chance_level_is_the_mean_over_all_permutations():
    from itertools import permutations

    x, y = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 1])
    exact = np.mean([pair_jaccard(x, np.array(p)) for p in permutations(y)])
    row = basin_agreement(torch.tensor(x), torch.tensor(y), shuffles=2000)
    assert row["jaccard_chance"] == pytest.approx(exact, abs=0.01)


def test_weight_noise_is_as_large_as_it_says_and_seeded(tmp_path, tiny_mae):
    module = nn.Linear(300, 200)
    twin = perturbed(module, noise=0.01, seed=3)
    with torch.no_grad():
        change = (twin.weight - module.weight).square().mean().sqrt() / module.weight.square().mean().sqrt()
    assert float(change) == pytest.approx(0.01, rel=0.02)
    assert torch.equal(perturbed(module, seed=3).weight, twin.weight)
    counts = perturb({"steps": torch.tensor(3), "half": torch.ones(4, dtype=torch.float16)})
    assert counts["steps"] == 3
    assert counts["half"].dtype == torch.float16
    a = fmprobe.load(str(tiny_mae), device="cpu")
    b = fmprobe.load(str(perturbed_checkpoint(str(tiny_mae), tmp_path / "twin")), device="cpu")
    z = a.sample_latents(3)
    apart = (a.latent_map(z) - b.latent_map(z)).norm() / a.latent_map(z).norm()
    assert 1e-4 < apart < 0.3
    with pytest.raises(fmprobe.InputError):
        perturbed_checkpoint(str(tmp_path / "nothing"), tmp_path / "x")


def test_bad_arguments_are_named(tiny, tiny_dinov2):
    a = wells(TURN)
    encoder = fmprobe.load(str(tiny_dinov2), device="cpu")
    language = fmprobe.load(str(tiny("qwen3")), device="cpu")
    for arguments, message in (
        ((a, encoder, IMAGES), "no latent map"),
        ((a, language, IMAGES), "takes no images"),
        ((a, a, IMAGES[:11]), "12 images"),
    ):
        with pytest.raises(fmprobe.InputError, match=message):
            compare(*arguments)
    with pytest.raises(fmprobe.InputError, match="the same for both"):
        compare(a, a, IMAGES, images_b=IMAGES[:50])
    with pytest.raises(fmprobe.InputError, match="unknown map"):
        compare(a, a, IMAGES, maps=["affine"])
