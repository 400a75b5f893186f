"""Memorization: on maps whose attractors are given, held to scikit-learn."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from support.maps import draws

import fmprobe
from fmprobe.dynamics.distances import chamfer, nearest
from fmprobe.probes.memorization.coefficient import bound_terms, rank_at, save_pairs
from fmprobe.probes.memorization.page import memorization_levels, memorization_sweep, sentence

SHAPE, D = (1, 4, 6), 24


def images(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def drawn_to(points: torch.Tensor, rate: float = 0.5) -> fmprobe.Autoencoder:
    """Latents are pixels; every latent is drawn to the nearest of the points."""
    flat = points.flatten(1)

    def decode(z):
        goal = flat[torch.cdist(z, flat).argmin(1)]
        return (goal + rate * (z - goal)).reshape(-1, *SHAPE)

    return fmprobe.from_functions(lambda x: x.flatten(1), decode, image_shape=SHAPE, latent_shape=(D,))


TRAIN, TEST = images(40, 0), images(25, 1)


@pytest.fixture(scope="module")
def remembered():
    return fmprobe.probe_memorization(drawn_to(TRAIN[:10]), TRAIN, TEST, n=64, tol=1e-12)


def test_a_map_whose_attractors_are_training_images_memorizes(remembered):
    assert remembered.coefficient == pytest.approx(1, abs=1e-5)
    assert set(remembered.nearest) <= set(range(10))
    assert remembered.count == len(remembered.nearest) > 1
    assert remembered.levels["centred cosine"]["attractors"]["mean"] == pytest.approx(1, abs=1e-5)
    assert remembered.levels["euclidean"]["attractors"]["mean"] == pytest.approx(0, abs=1e-4)
    assert remembered.levels["cosine"]["attractors"]["mean"] > remembered.levels["cosine"]["test images"]["mean"]
    assert remembered.warning is None


def test_attractors_elsewhere_are_no_nearer_than_test_images(remembered):
    """Attractors at images that are drawn as the test images are: the null level is what they must come to."""
    found = fmprobe.probe_memorization(drawn_to(images(30, 2)), TRAIN, TEST, n=64, tol=1e-12)
    null = found.levels["cosine"]["test images"]
    assert found.coefficient == pytest.approx(null["mean"], abs=3 * null["std"] / math.sqrt(found.count))
    assert found.levels["cosine"]["attractors"]["mean"] < 0.95


def test_every_level_is_that_of_scikit_learn(remembered):
    flat, mean = TRAIN.flatten(1).numpy(), TRAIN.flatten(1).mean(0).numpy()
    for name, rows in (("test images", TEST), ("mean image", TRAIN.mean(0, keepdim=True))):
        rows = rows.flatten(1).numpy()
        expected = {
            "cosine": cosine_similarity(rows, flat).max(1),
            "centred cosine": cosine_similarity(rows - mean, flat - mean).max(1) if name == "test images" else None,
            "euclidean": NearestNeighbors(n_neighbors=1).fit(flat).kneighbors(rows)[0][:, 0],
        }
        for measure, values in expected.items():
            if values is not None:
                level = remembered.levels[measure][name]
                assert (level["mean"], level["std"]) == pytest.approx((values.mean(), values.std()), abs=1e-5)
                assert level["count"] == len(rows)


def test_the_result_does_not_depend_on_the_batch():
    model = drawn_to(TRAIN[:10])
    found = fmprobe.find_attractors(model, 16, tol=1e-12)
    small, large = (
        fmprobe.probe_memorization(model, TRAIN, TEST, attractors=found, batch_size=size).to_dict() for size in (3, 99)
    )
    assert small == large


def test_nearest_images_and_errors_are_those_of_the_model(remembered):
    decoded = remembered.decoded.flatten(1).numpy()
    assert remembered.nearest == cosine_similarity(decoded, TRAIN.flatten(1).numpy()).argmax(1).tolist()
    model = drawn_to(TRAIN[:10])
    error = (model.decode(model.encode(TEST)) - TEST).square().mean()
    assert remembered.errors["test"] == pytest.approx(float(error), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**31), st.booleans())
def test_nearest_is_exact(n, m, d, seed, close):
    points, others = draws(n, d, seed), draws(m, d, seed + 1)
    if close:  # far from the origin, near each other: where products lose their digits
        points, others = 1e3 + 1e-3 * points, 1e3 + 1e-3 * others
    distance, index = nearest(points.double(), others.double())
    expected, where = NearestNeighbors(n_neighbors=1).fit(others.double().numpy()).kneighbors(points.double().numpy())
    np.testing.assert_allclose(distance.numpy(), expected[:, 0], rtol=1e-9, atol=1e-12)
    assert (index.numpy() == where[:, 0]).all()
    both = chamfer(points, others, "euclidean")
    assert both == pytest.approx(chamfer(others, points, "euclidean"))
    assert chamfer(points, points, "euclidean") == 0


def test_cosine_of_a_zero_vector_is_zero():
    zero, other = torch.zeros(1, 3), torch.tensor([[0.0, 0, 0], [-1, 0.5, 0]])
    assert nearest(zero, other, "cosine")[0].tolist() == [1]
    near, index = nearest(torch.tensor([[1.0, 1, 0]]), other, "cosine")
    assert (float(near), int(index)) == (1, 0)  # any cosine above that of opposite directions
    with pytest.raises(ValueError, match="no points"):
        nearest(zero, other[:0])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(2, 40), st.integers(1, 5), st.integers(0, 2**31))
def test_rank_is_that_of_principal_components(n, d, inner, seed):
    rows = draws(n, inner, seed) @ draws(inner, d, seed + 1) + 3
    assert rank_at(rows) == PCA(n_components=0.9, svd_solver="full").fit(rows.double().numpy()).n_components_
    assert rank_at(rows[:1].expand(4, d)) == 0
    assert rank_at(rows[:1].expand(4, d), centred=False) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_holds_with_the_factor_and_can_fail_without(seed):
    """Attractors at chance, images at chance, a decoder that is no isometry."""
    matrix = draws(D, D, seed)
    x, codes, attractors = draws(20, D, seed + 1), draws(20, D, seed + 2), draws(4, D, seed + 3)
    terms = bound_terms(x, codes @ matrix, codes, attractors, attractors @ matrix)
    right = terms["prototype_error"] + terms["lipschitz"] ** 2 * terms["coverage_error"]
    assert terms["error"] <= terms["factor"] * right * (1 + 1e-6)
    assert terms["lipschitz"] <= float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-5)
    # D(P(E(x))) midway between x and D(E(x)), on one line: the left side is twice the printed right side.
    line = torch.tensor([[1.0, 0, 0]])
    tight = bound_terms(2 * line, 0 * line, 0 * line, line, line)
    assert tight["error"] == pytest.approx(tight["factor"] * (tight["prototype_error"] + tight["coverage_error"]))
    assert tight["holds_as_printed"] == 0


def test_nothing_converged_is_told_and_writes_as_json():
    model = fmprobe.from_functions(
        lambda x: 2 * x.flatten(1) + 1, lambda z: z.reshape(-1, *SHAPE), image_shape=SHAPE, latent_shape=(D,)
    )
    found = fmprobe.probe_memorization(model, TRAIN, n=8, max_steps=50)
    assert (found.coefficient, found.count, found.bound) == (None, 0, None)
    assert "none of 8 orbits" in str(found.warning)
    assert found.levels["cosine"]["test images"] is None
    assert found.levels["cosine"]["noise images"] is not None
    json.dumps(found.to_dict(), allow_nan=False)
    memorization_levels(found.to_dict())
    wandering = drawn_to(TRAIN[:3], rate=-0.99)  # falls too slowly for ten steps
    ends = fmprobe.probe_memorization(wandering, TRAIN, n=8, max_steps=10, ends=True)
    assert ends.subject == "ends after 10 steps"
    assert ends.count > 0


def test_a_map_that_is_near_constant_is_warned_about():
    found = fmprobe.probe_memorization(drawn_to(TRAIN.mean(0, keepdim=True), rate=0.0), TRAIN, TEST, n=8)
    for sign in ("one attractor", "within", "spectral radius"):
        assert sign in str(found.warning)
    assert found.coefficient == pytest.approx(found.levels["cosine"]["mean image"]["mean"], abs=1e-6)


def test_bad_input_is_named():
    with pytest.raises(fmprobe.InputError, match="got none"):
        fmprobe.probe_memorization(drawn_to(TRAIN), TRAIN[:0])
    broken = fmprobe.from_functions(
        lambda x: x.flatten(1) * torch.nan, lambda z: z.reshape(-1, *SHAPE), image_shape=SHAPE, latent_shape=(D,)
    )
    with pytest.raises(fmprobe.InputError, match="not finite"):
        fmprobe.probe_memorization(broken, TRAIN, n=2)


def test_a_sweep_draws_the_means_of_networks_beside_what_nothing_memorized():
    def entry(coefficient, test):
        own = None if coefficient is None else {"mean": coefficient, "std": 0.3, "count": 2}
        levels = {"ends": own, "test images": {"mean": test}, "mean image": {"mean": 0.95}}
        return {"subject": "ends", "levels": {"cosine": levels}, "errors": {"test": test / 10}}

    values = {8: [(0.5, 0.2)], 2: [(0.9, 0.4), (0.7, 0.6), (None, 0.8)], 32: [(None, 0.3)]}
    rows = [{"k": k, "train": entry(*own), "noise": entry(None, 0)} for k, found in values.items() for own in found]
    main, errors = memorization_sweep(rows, "k").axes
    drawn: dict[Any, Any] = {line.get_label(): line for line in main.get_lines()}
    assert drawn["test images"].get_xydata() == pytest.approx(np.array([(2, 0.6), (8, 0.2), (32, 0.3)]))
    assert drawn["mean image"].get_xydata()[:, 1] == pytest.approx(0.95)
    assert errors.get_lines()[0].get_xydata() == pytest.approx(np.array([(2, 0.06), (8, 0.02), (32, 0.03)]))
    bars: Any = main.containers
    train, noise = bars
    assert train.lines[0].get_xydata() == pytest.approx(np.array([(2, 0.8), (8, 0.5)]))
    ends = [segment[:, 1] for segment in train.lines[2][0].get_segments()]
    assert np.array(ends) == pytest.approx(np.array([(0.7, 0.9), (0.2, 0.8)]))  # of networks, and of attractors
    assert len(noise.lines[0].get_xydata()) == 0


def test_pictures_are_drawn_from_the_plain_dict(remembered, tmp_path):
    from PIL import Image

    entry = json.loads(json.dumps(remembered.to_dict()))
    axes = memorization_levels(entry).axes[0]
    assert axes.get_xlabel() == "cosine to the nearest training image"
    assert len(axes.get_yticklabels()) == 6
    rows = [{"k": 2, "train": entry, "noise": entry}, {"k": 8, "train": entry, "noise": entry}]
    assert memorization_sweep(rows, "k").axes[0].get_xlabel() == "bottleneck k"
    save_pairs(remembered.decoded, TRAIN, remembered.nearest, tmp_path)
    pairs = sorted(tmp_path.glob("*.png"))
    assert len(pairs) == remembered.count
    pixels = np.asarray(Image.open(pairs[0]))
    assert pixels.shape == (4, 14)
    assert np.abs(pixels[:, :6].astype(int) - pixels[:, 8:]).max() <= 1  # remembered: both halves are one image


@pytest.mark.parametrize(
    ("nearest", "cosines", "said"),
    [
        ([3, 1], [0.999, 0.995], "Each of the 2 decoded attractors is a different one of the 9 training images"),
        (
            [3, 3],
            [0.999, 0.995],
            "Each of the 2 decoded attractors is one of the 9 training images (cosine above 0.99), 1 d",
        ),
        ([3, 1], [0.999, 0.98], "1 of 2 decoded attractors is one of the 9 training images"),
        ([3, -1], [0.98, None], "None of 2 decoded attractors is one of the 9 training images"),
        ([2, 3, 4], [1.0, 1.0, 0.2], "2 of 3 decoded attractors are one of the 9 training images"),
        ([3], [0.999], "The one decoded attractor is one of the 9 training images"),
    ],
)
def test_the_sentence_says_how_many_attractors_are_training_images(nearest, cosines, said):
    row = {"mean": 0.5, "std": 0.1, "count": 4}
    entry = {
        "count": len(nearest),
        "subject": "attractors",
        "nearest": nearest,
        "nearest_cosine": cosines,
        "images": {"train": 9},
        "coefficient": 0.9,
        "levels": {"cosine": {"attractors": row, "noise images": row}},
    }
    text = sentence(entry, {})
    assert text.startswith(said)
    assert text.endswith("Without memory it comes to as much as 0.500, that of the noise images.")
    # The strongest level without memory stands beside it; what the network itself has made is none.
    levels = {
        "mean image": {**row, "mean": 0.7},
        "test images": {**row, "mean": 0.6},
        "decoded starts": row | {"mean": 1},
    }
    entry["levels"]["cosine"] |= levels
    assert sentence(entry, {}).endswith("it comes to as much as 0.700, that of the mean image.")
