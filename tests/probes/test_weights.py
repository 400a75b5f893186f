"""Weight probing: on a linear autoencoder whose answers are known, and its dictionaries one by one."""

import json
import math

import pytest
import torch
from support.maps import draws
from torch.nn.functional import normalize

import fmprobe
from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.probes.weights.dictionaries import atoms_of, bootstrap, effective_rank, principal_directions, random_basis

SHAPE, D = (1, 4, 8), 32


@pytest.fixture
def model():
    """Latents are pixels minus one half, times two: D(E(x)) = x."""
    return fmprobe.from_functions(
        lambda x: 2 * x.flatten(1) - 1,
        lambda z: ((z + 1) / 2).reshape(-1, *SHAPE),
        image_shape=SHAPE,
        latent_shape=(D,),
    )


def attractors_at(points: torch.Tensor, per_point: int = 2, lost: int = 1) -> AttractorSet:
    """A search that ended at the points, from a few starts each; the last starts wander."""

    def f(z):
        nearest = points[torch.cdist(z, points).argmin(1)]
        far = torch.cdist(z, points).amin(1, keepdim=True) > 5
        return torch.where(far, -z, nearest + 0.2 * (z - nearest))

    starts = points.repeat(per_point, 1) + 0.01 * draws(per_point * len(points), points.shape[1], 3)
    outside = 100 * normalize(draws(lost, points.shape[1], 4), dim=1)
    return find_attractors(f, starts=torch.cat([starts, outside]), tol=1e-12, max_steps=200, stability_cap=0)


def images_from(atoms: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """Images whose latents are sparse in the atoms."""
    weights = torch.rand(n, len(atoms), generator=torch.Generator().manual_seed(seed)) - 0.5
    latents = weights @ normalize(atoms, dim=1)
    return ((latents / latents.abs().max() + 1) / 2).reshape(n, *SHAPE)


def test_images_in_the_span_of_the_attractors_are_reconstructed_and_by_nothing_else(model):
    points = draws(6, D, 0)
    images = images_from(points, 20)
    curves = fmprobe.probe_weights(model, attractors_at(points), images, [2, 4, 6], reference_images=images[:3])
    assert curves.subject == "attractors"
    assert curves.levels == [2, 4, 6]
    rows = curves.dictionaries
    assert set(rows) == {"attractors", "random basis", "Gaussian", "noise starts", "PCA of images"}
    assert rows["attractors"]["image_mse"][-1]["mean"] < 1e-9
    assert rows["attractors"]["psnr"][-1]["mean"] > 90
    for name in ("random basis", "Gaussian", "noise starts"):
        assert rows[name]["count"] == 6
        assert rows[name]["image_mse"][-1]["mean"] > 1e-3
        assert all(level["low"] > 0 for level in rows[name]["excess"])
    assert rows["PCA of images"]["count"] == 3  # as many as images it was given
    errors = [level["mean"] for level in rows["attractors"]["latent_mse"]]
    assert errors == sorted(errors, reverse=True)
    assert curves.own["image_mse"]["mean"] == pytest.approx(0, abs=1e-12)
    grey = (images - 0.5).square().mean()  # D(0)
    assert curves.zero["image_mse"]["mean"] == pytest.approx(float(grey), rel=1e-5)
    # One latent unit is half a unit of an image here, and nothing is clamped.
    assert rows["attractors"]["image_mse"][0]["mean"] == pytest.approx(errors[0] / 4, rel=0.05)
    json.dumps(curves.to_dict(), allow_nan=False)


def test_a_subject_that_loses_is_shown_losing(model):
    """Images of one direction; attractors orthogonal to it."""
    direction = normalize(draws(1, D, 5), dim=1)
    across = draws(4, D, 6)
    across -= (across @ direction.T) * direction
    images = ((torch.linspace(-1, 1, 12)[:, None] * direction + 1) / 2).reshape(-1, *SHAPE)
    rows = fmprobe.probe_weights(model, attractors_at(across), images, [1, 4]).dictionaries
    assert all(level["high"] < 0 for level in rows["random basis"]["excess"])


def test_every_dictionary_is_cut_to_the_dimension_and_levels_to_the_atoms():
    small = fmprobe.from_functions(
        lambda x: x.flatten(1), lambda z: z.reshape(-1, 1, 1, 3), image_shape=(1, 1, 3), latent_shape=(3,)
    )
    points = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [-1, -1, 1]])
    curves = fmprobe.probe_weights(small, attractors_at(points), torch.rand(5, 1, 1, 3), [2, 32, 64])
    assert curves.levels == [2, 3]
    assert {row["count"] for row in curves.dictionaries.values()} == {3}
    assert curves.protocol["asked"] == [2, 32, 64]


def test_orbits_that_did_not_settle_are_atoms_only_if_asked_and_named_so(model):
    points = draws(5, D, 0)
    found = attractors_at(points, lost=2)
    images = images_from(points, 8)
    assert fmprobe.probe_weights(model, found, images).dictionaries["attractors"]["count"] == 5
    curves = fmprobe.probe_weights(model, found, images, ends=True)
    assert curves.subject == "ends after 200 steps"
    assert curves.dictionaries[curves.subject]["count"] == 7
    assert "attractors" not in curves.dictionaries
    nothing = find_attractors(lambda z: -z, starts=draws(4, D, 0), max_steps=20)
    with pytest.raises(fmprobe.InputError, match="--use-ends"):
        fmprobe.probe_weights(model, nothing, images)


def test_missing_baselines_are_said_and_given_ones_are_used(model):
    points = draws(5, D, 0)
    found, images = attractors_at(points), images_from(points, 8)
    absent = fmprobe.probe_weights(model, found, images).absent
    assert set(absent) == {"random weights", "PCA of images"}
    null = attractors_at(draws(2, D, 9))
    curves = fmprobe.probe_weights(model, found, images, null_attractors=null)
    assert set(curves.absent) == {"PCA of images"}
    assert curves.dictionaries["random weights"]["count"] == 2
    none = find_attractors(lambda z: -z, starts=draws(4, D, 0), max_steps=20)
    assert "none of 4" in fmprobe.probe_weights(model, found, images, null_attractors=none).absent["random weights"]


def test_results_do_not_depend_on_the_batch_and_repeat(model):
    points = draws(6, D, 0)
    found, images = attractors_at(points), images_from(points, 11)
    one, other = (fmprobe.probe_weights(model, found, images, batch_size=size).to_dict() for size in (3, 32))
    assert one == other
    assert fmprobe.probe_weights(model, found, images, seed=1).to_dict() != one


def test_the_starts_that_are_atoms_are_those_of_the_search(model):
    starts = model.sample_latents(12, seed=4)
    found = find_attractors(lambda z: 0.5 * z + z.sign(), starts=starts, stability_cap=0)
    _, origins = atoms_of(found, ends=False)
    assert len(origins) == len(found) > 1
    for i, origin in enumerate(origins):
        assert found.labels[origin] == i
        assert torch.equal(2 * starts[origin].sign(), found.latents[i].round())


def test_tokens_and_maps_are_flattened():
    tokens = fmprobe.from_functions(
        lambda x: x.reshape(-1, 2, 3), lambda z: z.reshape(-1, 1, 2, 3), image_shape=(1, 2, 3), latent_shape=(2, 3)
    )
    found = find_attractors(lambda z: 0.5 * z + z.sign(), starts=draws(9, 6).reshape(9, 2, 3), stability_cap=0)
    curves = fmprobe.probe_weights(tokens, found, torch.rand(4, 1, 2, 3), [1, 3])
    assert curves.dictionaries["attractors"]["image_mse"][0]["mean"] > 0
    assert curves.pictures["attractors"].shape == (2, 4, 1, 2, 3)


def test_bad_arguments_are_named(model):
    found = attractors_at(draws(3, D, 0))
    for images, atoms in ((torch.zeros(0, *SHAPE), [1]), (torch.zeros(2, *SHAPE), [0]), (torch.zeros(2, *SHAPE), [])):
        with pytest.raises(fmprobe.InputError, match="needs images"):
            fmprobe.probe_weights(model, found, images, atoms)
    with pytest.raises(fmprobe.InputError, match="shape"):
        fmprobe.probe_weights(model, found, torch.zeros(2, 1, 9, 9))


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.cat([torch.eye(4), 100 * torch.eye(4)])) == pytest.approx(4, rel=1e-4)
    # Two unit vectors at angle t have singular values sqrt(1 ± cos t).
    t = 0.7
    values = torch.tensor([1 + math.cos(t), 1 - math.cos(t)]).sqrt()
    shares = values / values.sum()
    expected = math.exp(-float((shares * shares.log()).sum()))
    assert effective_rank(torch.tensor([[1.0, 0.0], [math.cos(t), math.sin(t)]])) == pytest.approx(expected, rel=1e-5)


def test_the_random_basis_is_orthonormal_and_seeded():
    basis = random_basis(5, 20, 0)
    torch.testing.assert_close(basis @ basis.T, torch.eye(5), atol=1e-6, rtol=0)
    assert torch.equal(basis, random_basis(5, 20, 0))
    assert not torch.allclose(basis, random_basis(5, 20, 1))


def test_principal_directions_span_what_scikit_learn_finds():
    from sklearn.decomposition import PCA

    latents = draws(40, 12, 0) * torch.arange(1, 13) + 3
    ours = principal_directions(latents, 5)
    torch.testing.assert_close(ours @ ours.T, torch.eye(5), atol=1e-5, rtol=0)
    mean = normalize(latents.mean(0), dim=0)
    torch.testing.assert_close(ours[0], mean)
    rest = latents - (latents @ mean)[:, None] * mean  # whose mean is zero, so PCA does not move it
    theirs = torch.from_numpy(PCA(4).fit(rest.numpy()).components_)
    torch.testing.assert_close((ours[1:] @ theirs.T).abs(), torch.eye(4), atol=1e-4, rtol=0)
    assert len(principal_directions(draws(3, 12, 1), 9)) == 3


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        summary = bootstrap({"x": rng.exponential(size=60)}, 400, trial)["x"]
        inside += summary["low"] <= 1 <= summary["high"]
    assert 0.88 <= inside / 300 <= 0.98
