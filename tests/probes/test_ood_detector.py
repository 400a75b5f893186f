"""The trajectory detector on maps whose orbits are known exactly."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.maps import double_well, linear, rotation
from support.surrogates import narrow, quick
from torch import Tensor

import fmprobe
from fmprobe.probes.ood.score import LARGEST
from fmprobe.probes.ood.scores.path import RATE
from fmprobe.probes.ood.trajectory import TrajectorySettings, follow

SIDE = 4
small = pytest.fixture(narrow, scope="module", autouse=True)


def model_of(f, channels=1):
    """D only reshapes, so that the latent map is f and images start one step ahead: z_0 = E(x) = f(x)."""
    size = channels * SIDE * SIDE

    def encode(images: Tensor) -> Tensor:
        return f(images.flatten(1))

    def decode(latents: Tensor) -> Tensor:
        return latents.reshape(-1, channels, SIDE, SIDE)

    return fmprobe.from_functions(encode, decode, image_shape=(channels, SIDE, SIDE), latent_shape=(size,))


def images(n, seed=0, channels=1):
    return torch.rand(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def wells(x):
    """Each coordinate goes to -1/2 or 1/2 by its sign."""
    return double_well(2 * x) / 2


def spread(n, seed=0):
    """Images whose coordinates have both signs, so that there are many attractors; f never asks for [0, 1]."""
    return 2 * images(n, seed) - 1


def naive(model, fit_images, test_images, steps, distance="euclidean"):
    """The published score from stored trajectories, in double precision."""
    reference = fmprobe.find_attractors(
        model, starts=model.encode(fit_images), tol=1e-5, max_steps=500
    ).latents.double()
    scores = []
    for image in test_images:
        points, resting = [model.encode(image[None]).double()], False
        for _ in range(steps or 500):
            points.append(points[-1] if resting else model.latent_map(points[-1].float()).double())
            resting = resting or float((points[-1] - points[-2]).square().sum()) < 1e-5
            if resting and steps is None:
                break
        trajectory = torch.cat(points)
        if distance == "cosine":
            norm = torch.nn.functional.normalize
            d = 1 - norm(trajectory) @ norm(reference).T
        else:
            d = torch.stack([(trajectory[:, None] - a).norm(dim=-1).squeeze(1) for a in reference], 1)
        scores.append(d.min(1).values.mean())
    return torch.stack(scores)


@pytest.mark.parametrize("steps", [None, 3, 200])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_streamed_scores_equal_stored_trajectories(steps, distance):
    model = model_of(wells)
    fit_images, test_images = spread(12), spread(9, seed=1)
    settings = {"distance": distance, "steps": steps, "tol": 1e-5, "max_steps": 500}
    scores = fmprobe.TrajectoryDetector(model, **settings).fit(fit_images).score(test_images)
    assert scores.dtype == torch.float32
    assert scores.device.type == "cpu"
    expected = naive(model, fit_images, test_images, steps, distance)
    assert torch.allclose(scores.double(), expected, rtol=1e-4, atol=1e-6)


@given(st.floats(0.1, 0.9), st.integers(1, 40))
@settings(max_examples=12, deadline=None)
def test_linear_contraction_in_closed_form(ratio, steps):
    """z_t = ratio^(t+1) x, the attractor is 0: the mean of T+1 distances is a geometric sum."""
    model = model_of(linear(*[ratio] * 16))
    fit_images, test_images = images(6), images(4, seed=1)
    detector = fmprobe.TrajectoryDetector(model, tol=1e-10, steps=steps).fit(fit_images)
    assert detector.describe()["reference"]["distinct_ends"] == 1
    norm = test_images.flatten(1).double().norm(dim=1)
    geometric = ratio * (1 - ratio ** (steps + 1)) / (1 - ratio)
    # Converged orbits stay where they are, within sqrt(tol) / (1 - ratio) of 0, and so does the attractor found.
    slack = 2e-5 / (1 - ratio)
    assert torch.allclose(detector.score(test_images).double(), geometric * norm / (steps + 1), atol=slack)
    parts = detector.scores(test_images)
    assert torch.allclose(parts["first"].double(), ratio * norm, atol=slack)
    assert torch.allclose(parts["residual"].double(), ratio * (1 - ratio) * norm, rtol=1e-5)
    assert torch.all(parts["max"] >= parts["mean"])
    assert torch.all(parts["mean"] >= parts["last"] - 1e-6)


def test_near_an_attractor_distances_keep_their_digits():
    """An attractor far from 0: |a|^2 - 2ab + |b|^2 would give 0 or noise for points 1e-3 away."""
    centre = 100.0
    model = model_of(lambda z: centre + 0.5 * (z - centre))
    fit_images = torch.full((3, 1, 4, 4), centre) + torch.tensor([0.0, 0.5, -0.5]).reshape(3, 1, 1, 1)
    detector = fmprobe.TrajectoryDetector(model, tol=1e-12, steps=60).fit(fit_images)
    moved = torch.full((1, 1, 4, 4), centre)
    moved[0, 0, 0, 0] += 2**-7
    first = detector.scores(moved)["first"]
    assert float(first) == pytest.approx(2**-8, rel=1e-3)
    assert float(detector.score(torch.full((1, 1, 4, 4), centre))) == 0.0


@pytest.mark.parametrize("aggregate", ["mean", "first", "last", "max", "length", "steps"])
def test_the_aggregate_is_the_part_of_that_name(aggregate):
    model = model_of(wells)
    detector = fmprobe.TrajectoryDetector(model, aggregate=aggregate).fit(images(10))
    test_images = images(7, seed=1)
    scores = detector.scores(test_images)
    assert torch.equal(detector.score(test_images), scores["trajectory"])
    assert torch.equal(scores["trajectory"], scores[aggregate])


@pytest.mark.parametrize("steps", [None, 25])
def test_scores_do_not_depend_on_the_batch(steps):
    model = model_of(wells)
    fit_images, held_out, test_images = images(12), images(16, seed=1), images(7, seed=2)
    found = [
        fmprobe.TrajectoryDetector(model, batch_size=size, steps=steps).fit(fit_images, held_out).scores(test_images)
        for size in (1, 3, 64)
    ]
    alone = fmprobe.TrajectoryDetector(model, steps=steps).fit(fit_images, held_out)
    one_by_one = torch.cat([alone.score(image[None]) for image in test_images])
    for name, values in found[0].items():
        assert torch.allclose(values, found[1][name], rtol=1e-4, atol=1e-5), name
        assert torch.allclose(values, found[2][name], rtol=1e-4, atol=1e-5), name
    assert torch.allclose(one_by_one, found[0]["trajectory"], rtol=1e-4, atol=1e-6)


def test_a_fixed_number_of_steps_is_counted_for_cycles_too():
    """On a rotation by a third of a turn every orbit is a cycle at constant distance |z| from 0 and none converges."""
    f = rotation(1 / 3)
    model = fmprobe.from_functions(
        lambda x: f(x.flatten(1)), lambda z: z.reshape(-1, 1, 1, 2), image_shape=(1, 1, 2), latent_shape=(2,)
    )
    detector = fmprobe.TrajectoryDetector(model, steps=400, max_steps=400).fit(torch.rand(8, 1, 1, 2))
    assert detector.describe()["reference"]["kind"] == "ends after 400 steps"
    x = torch.tensor([[[[0.25, 0.5]]]])
    step = 3**0.5 * x.norm()
    parts = detector.scores(x)
    assert float(parts["length"]) == pytest.approx(400 * float(step), rel=1e-4)


def test_where_few_orbits_converge_the_ends_are_the_reference_and_named_so():
    model = model_of(linear(*[0.999] * 16))
    fit_images = images(10)
    detector = fmprobe.TrajectoryDetector(model, tol=1e-12, steps=5, max_steps=5).fit(fit_images)
    facts = detector.describe()["reference"]
    assert facts["kind"] == "ends after 5 steps"
    assert facts["converged_share"] == 0
    assert facts["points"] == facts["distinct_ends"] == 10
    ends = 0.999**6 * fit_images.flatten(1)
    test_images = images(3, seed=1)
    points = torch.stack([0.999 ** (t + 1) * test_images.flatten(1) for t in range(6)])
    expected = torch.cdist(points, ends.expand(6, -1, -1)).amin(2).mean(0)
    assert torch.allclose(detector.score(test_images), expected, rtol=1e-4)


def test_a_diverged_orbit_scores_the_largest_float_and_is_counted():
    """z -> z^2 goes to 0 inside the unit cube and to infinity outside."""
    model = model_of(lambda z: z * z)
    detector = fmprobe.TrajectoryDetector(model).fit(0.8 * images(20), 0.8 * images(20, seed=1))
    mixed = torch.cat([0.5 * images(3, seed=2), 1 + images(2, seed=3)])
    scores, status = detector.examine(mixed)
    assert status.tolist() == [fmprobe.Status.CONVERGED] * 3 + [fmprobe.Status.DIVERGED] * 2
    assert (detector.score(mixed)[3:] == LARGEST).all()
    assert (detector.score(mixed)[:3] < 10).all()
    for name, values in scores.items():
        assert np.isfinite(values).all(), name
    assert detector.predict(mixed).tolist()[3:] == [False, False]
    assert fmprobe.ood_metrics(detector.score(mixed)[:3], detector.score(mixed)[3:])["auroc"] == 1.0


def test_latents_that_are_not_finite_count_as_diverged():
    """1/x of a black pixel is infinite."""
    model = model_of(lambda z: 0.5 * z)
    broken = fmprobe.from_functions(
        lambda x: 0.5 * x.flatten(1) / (x.flatten(1) != 0.125),
        model.decode,
        image_shape=model.image_shape,
        latent_shape=model.latent_shape,
    )
    detector = fmprobe.TrajectoryDetector(broken, steps=3).fit(images(20))
    mixed = images(2, seed=1)
    mixed[1, 0, 0, 0] = 0.125
    for name, (usual, lost) in detector.scores(mixed).items():
        assert usual < 100, name
        assert lost == LARGEST or name == "steps", name


def test_bytes_are_taken_as_images():
    model = model_of(lambda z: 0.5 * z)
    pixels = (images(20) * 255).byte()
    one = fmprobe.TrajectoryDetector(model).fit(pixels).score(pixels)
    assert torch.allclose(one, fmprobe.TrajectoryDetector(model).fit(pixels / 255).score(pixels / 255))


def test_all_diverged_is_an_error_that_says_so():
    with pytest.raises(fmprobe.InputError, match="diverge"):
        fmprobe.TrajectoryDetector(model_of(lambda z: 10 * z + 1)).fit(images(5))


def test_standardised_distances_are_those_of_rescaled_latents():
    scale = torch.logspace(-2, 2, 16)
    plain = model_of(wells)
    stretched = fmprobe.from_functions(
        lambda x: plain.encode(x) * scale,
        lambda z: plain.decode(z / scale),
        image_shape=plain.image_shape,
        latent_shape=plain.latent_shape,
    )
    settings = {"distance": "standardised", "tol": 1e-8, "measure": "squared", "steps": 100}
    one = fmprobe.TrajectoryDetector(plain, **settings).fit(images(12))
    other = fmprobe.TrajectoryDetector(stretched, **settings).fit(images(12))
    test_images = images(5, seed=1)
    assert torch.allclose(one.score(test_images), other.score(test_images), rtol=1e-2)


def test_baselines_equal_direct_computations():
    from sklearn.covariance import LedoitWolf

    model = model_of(lambda z: 0.5 * z)
    fit_images, test_images = images(60), images(8, seed=1)
    scores = fmprobe.TrajectoryDetector(model, steps=3).fit(fit_images).scores(test_images)
    bank, rows = 0.5 * fit_images.flatten(1).double(), 0.5 * test_images.flatten(1).double()
    distances = torch.cdist(rows, bank).sort(1).values
    for k in (1, 10, 50):
        assert torch.allclose(scores[f"knn-{k} z"].double(), distances[:, k - 1], atol=1e-5)
    assert torch.allclose(scores["knn-10 mean z"].double(), distances[:, :10].mean(1), atol=1e-5)
    assert torch.allclose(scores["knn-all mean z"].double(), distances.mean(1), atol=1e-5)
    unit = torch.nn.functional.normalize
    assert torch.allclose(scores["knn-1 z normalised"].double(), torch.cdist(unit(rows), unit(bank)).amin(1), atol=1e-5)
    gaussian = LedoitWolf().fit(bank.numpy())
    assert scores["mahalanobis z"].numpy() == pytest.approx(np.sqrt(gaussian.mahalanobis(rows.numpy())), rel=1e-4)
    assert torch.allclose(scores["latent norm"].double(), rows.norm(dim=1))
    error = (0.5 * test_images - test_images).flatten(1).double().square().mean(1)
    assert torch.allclose(scores["reconstruction error"].double(), error, rtol=1e-5)


def test_large_token_latents_are_pooled_by_the_mean_over_tokens():
    model = fmprobe.from_functions(
        lambda x: x.flatten(2).transpose(1, 2).repeat(1, 40, 1) * 0.5,
        lambda z: z[:, :16].transpose(1, 2).reshape(-1, 3, 4, 4),
        image_shape=(3, 4, 4),
        latent_shape=(640, 3),
    )
    fit_images, test_images = images(20, channels=3), images(4, seed=1, channels=3)
    scores = fmprobe.TrajectoryDetector(model, steps=2).fit(fit_images).scores(test_images)
    rows, bank = (0.5 * x.flatten(2).mean(2) for x in (test_images, fit_images))
    assert torch.allclose(scores["knn-1 pooled"], torch.cdist(rows, bank).amin(1), atol=1e-5)
    assert "knn-1 z" in scores
    assert "mahalanobis z" not in scores


def test_a_detector_that_was_kept_scores_alike_to_the_last_digit(tmp_path):
    model = model_of(wells)
    detector = fmprobe.TrajectoryDetector(model).fit(images(30), images(30, seed=1))
    detector.save(tmp_path / "d")
    assert {path.name for path in (tmp_path / "d").iterdir()} == {"detector.json", "detector.safetensors"}
    again = fmprobe.TrajectoryDetector.load(tmp_path / "d", model=model)
    test_images = images(9, seed=2)
    before, after = detector.scores(test_images), again.scores(test_images)
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    assert torch.equal(detector.predict(test_images), again.predict(test_images))
    with pytest.raises(fmprobe.InputError, match="pass model"):
        fmprobe.TrajectoryDetector.load(tmp_path / "d")


def test_a_detector_is_refused_to_another_model_and_when_damaged(tmp_path):
    detector = fmprobe.TrajectoryDetector(model_of(lambda z: 0.5 * z)).fit(images(30), images(30, seed=1))
    detector.save(tmp_path)
    with pytest.raises(fmprobe.InputError, match="another model"):
        fmprobe.TrajectoryDetector.load(tmp_path, model=model_of(lambda z: 0.6 * z))
    with pytest.raises(fmprobe.InputError, match="image_shape"):
        fmprobe.TrajectoryDetector.load(tmp_path, model=model_of(lambda z: 0.5 * z, channels=3))
    with (tmp_path / "detector.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(fmprobe.InputError, match="not the file"):
        fmprobe.TrajectoryDetector.load(tmp_path, model=detector.model)
    content = json.loads((tmp_path / "detector.json").read_text())
    assert "pickle" not in json.dumps(content)


def test_a_checkpoint_with_a_surrogate_comes_back_from_the_folder_alone(tiny_dinov2, tmp_path):
    encoder = fmprobe.load(tiny_dinov2, device="cpu")
    model = encoder.with_decoder(quick(encoder))
    pictures = torch.rand(60, *model.image_shape, generator=torch.Generator().manual_seed(0))
    detector = fmprobe.TrajectoryDetector(model, steps=4).fit(pictures[:20], pictures[20:40])
    detector.save(tmp_path)
    again = fmprobe.TrajectoryDetector.load(tmp_path, device="cpu")
    assert torch.allclose(detector.score(pictures[40:]), again.score(pictures[40:]), rtol=1e-6)
    other = encoder.with_decoder(quick(encoder, steps=4))
    with pytest.raises(fmprobe.InputError, match="another model"):
        fmprobe.TrajectoryDetector.load(tmp_path, model=other)


def test_a_checkpoint_with_its_own_decoder_comes_back_by_its_name(tiny_mae, tmp_path):
    model = fmprobe.load(tiny_mae, device="cpu")
    pictures = torch.rand(60, *model.image_shape, generator=torch.Generator().manual_seed(0))
    detector = fmprobe.TrajectoryDetector(model, max_steps=6).fit(pictures[:20], pictures[20:40])
    detector.save(tmp_path / "d")
    again = fmprobe.TrajectoryDetector.load(tmp_path / "d", device="cpu")
    assert again.model.provenance["fingerprint"] == model.provenance["fingerprint"]
    assert torch.allclose(detector.score(pictures[40:]), again.score(pictures[40:]), rtol=1e-6)
    scores = again.scores(pictures[40:])
    assert torch.equal(scores["trajectory"], again.score(pictures[40:]))
    # 17 tokens of 32 numbers: both the whole latent and its mean over tokens are features.
    assert {"knn-10 z", "knn-10 pooled", "mahalanobis pooled", "joined"} <= set(scores)


def test_a_detector_comes_back_with_the_precision_it_was_fitted_in(tiny_mae, tmp_path):
    model = fmprobe.load(tiny_mae, device="cpu", autocast="bfloat16")
    pictures = torch.rand(48, *model.image_shape, generator=torch.Generator().manual_seed(0))
    detector = fmprobe.TrajectoryDetector(model, steps=3).fit(pictures[:20], pictures[20:40])
    detector.save(tmp_path / "d")
    again = fmprobe.TrajectoryDetector.load(tmp_path / "d", device="cpu")
    assert again.model.provenance["autocast"] == model.provenance["autocast"]
    assert torch.equal(detector.score(pictures[40:]), again.score(pictures[40:]))
    plain = fmprobe.TrajectoryDetector.load(tmp_path / "d", model=fmprobe.load(tiny_mae, device="cpu"))
    assert not torch.equal(detector.score(pictures[40:]), plain.score(pictures[40:]))


def test_thresholds_accept_the_share_asked_for():
    """Over many draws, new in-distribution images are accepted with at least the stated probability."""
    model = model_of(wells)
    detector = fmprobe.TrajectoryDetector(model, steps=10).fit(images(40), images(199, seed=1))
    fresh = images(1000, seed=2)
    scores, _ = detector.examine(fresh)
    for rule in ("trajectory", "two-sided mean", "profile", "joined"):
        for acceptance in (0.8, 0.95):
            # The share accepted scatters by about 0.03 with 199 held-out images (a beta distribution).
            accepted = scores[rule] <= detector.threshold(rule=rule, acceptance=acceptance)
            assert accepted.mean() == pytest.approx(acceptance, abs=0.07)
            assert detector.predict(fresh[:20], rule=rule, acceptance=acceptance).tolist() == accepted[:20].tolist()


def test_a_threshold_that_lets_diverged_orbits_in_says_so():
    model = model_of(lambda z: torch.where(z.mean(-1, keepdim=True) > 0.5, 100 * z, 0.5 * z))
    detector = fmprobe.TrajectoryDetector(model, max_steps=40).fit(0.4 * images(30), images(60, seed=1))
    with pytest.warns(UserWarning, match="accepts everything"):
        assert bool(detector.predict(images(20, seed=2), rule="trajectory").all())


def test_two_sided_typicality_flags_both_ends():
    """Images darker and brighter than any seen lie nearer and farther than usual."""
    model = model_of(lambda z: 0.5 * z)
    middling = 0.4 + 0.2 * images(60)
    detector = fmprobe.TrajectoryDetector(model).fit(middling[:20], middling[20:])
    dark, bright, usual = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5)
    scores = detector.scores(torch.cat([dark, bright, usual]))
    assert scores["first"][0] < scores["first"][2] < scores["first"][1]
    assert scores["two-sided first"][2] < min(scores["two-sided first"][:2])
    assert (scores["two-sided first"][:2] > 1).all()


def test_held_out_images_that_were_fitted_on_are_left_out_with_a_warning():
    model = model_of(lambda z: 0.5 * z)
    fit_images = images(20)
    with pytest.warns(UserWarning, match="5 held-out images are also fit images"):
        detector = fmprobe.TrajectoryDetector(model).fit(fit_images, torch.cat([fit_images[:5], images(30, seed=1)]))
    assert detector.describe()["decision"]["held_out"] == 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: fmprobe.TrajectoryDetector(m).score(images(2)), "fit"),
        (lambda m: fmprobe.TrajectoryDetector(m).fit(images(1)), "1 images"),
        (lambda m: fmprobe.TrajectoryDetector(m).fit(images(5)).predict(images(2)), "held_out"),
        (lambda m: fmprobe.TrajectoryDetector(m).fit(images(5), images(3, seed=1)), "at least 16"),
        (lambda m: fmprobe.TrajectoryDetector(m, distance="manhattan"), "euclidean, cosine, standardised"),
        (lambda m: fmprobe.TrajectoryDetector(m, aggregate="median"), "mean, first"),
        (lambda m: fmprobe.TrajectoryDetector(m, steps=0), "at least 1"),
        (lambda m: fmprobe.TrajectoryDetector(m, colour=3), "colour"),
        (lambda m: fmprobe.TrajectoryDetector(m).fit(images(5, channels=3)), "takes images"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(fmprobe.InputError, match=message):
        call(model_of(lambda z: 0.5 * z))


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [None, 20, 200])
def test_the_rate_is_that_of_the_steps_however_long_the_trajectory_is_counted(factor, steps):
    settings_ = TrajectorySettings(steps=steps, max_steps=300)
    norm: Any = lambda z: z.flatten(1).norm(dim=1)  # noqa: E731 - the distance to an attractor at 0
    trajectories = follow(lambda z: factor * z, images(4).flatten(1), norm, settings_)
    assert RATE(trajectories) == pytest.approx(np.log(factor), abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_every_score_that_is_offered_decides_and_what_is_refused_is_not_offered():
    detector = fmprobe.TrajectoryDetector(model_of(wells), steps=10).fit(images(24), held_out=images(20, seed=1))
    offered = set(detector.scores(images(3, seed=2)))
    for name in sorted(offered):
        assert detector.predict(images(3, seed=2), rule=name).dtype == torch.bool
    for name in ("rate", "settled", "moved", "nonsense"):
        with pytest.raises(ValueError, match="unknown score") as refused:
            detector.predict(images(3, seed=2), rule=name)
        listed = str(refused.value).split("expected one of ")[1].split(", ")
        assert set(listed) <= offered
