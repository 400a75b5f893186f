"""Every baseline is what its name says: what it is drawn from, which images it has seen, and what it shares."""

from typing import Any

import pytest
import torch
from support.maps import draws
from torch import nn

import fmprobe
from fmprobe.images import held_out
from fmprobe.probes.alignment.perturbation import perturb, perturbed
from fmprobe.probes.contraction import noise_images, std_ratio
from fmprobe.probes.memorization.coefficient import NULLS, _noise_images, _ranks
from fmprobe.probes.prototypes.film import film
from fmprobe.probes.weights.dictionaries import GAUSSIAN, PCA, STARTS, make_dictionaries

SHAPE, D = (1, 4, 4), 16


def model(f=lambda z: 0.5 * z + 0.5 * z.sign()):
    """Latents are pixels minus one half; f leads to the corners of a cube."""
    return fmprobe.from_functions(
        lambda x: f(x.flatten(1) - 0.5),
        lambda z: (z + 0.5).reshape(-1, *SHAPE),
        image_shape=SHAPE,
        latent_shape=(D,),
    )


def by_class(n):
    """Images sorted by class: every tenth of them is of another grey."""
    return (torch.arange(n) * 10 // n / 10)[:, None, None, None].expand(-1, *SHAPE).clone()


# Weight probing.


def test_the_starts_are_those_that_led_to_the_atoms():
    whole = model()
    found = fmprobe.find_attractors(whole, 12, seed=3)
    made = make_dictionaries(whole, found, ends=False, seed=3, null_attractors=None, reference=None)
    starts = whole.sample_latents(12, seed=3)
    for atom, start in zip(made.atoms["attractors"], made.atoms[STARTS], strict=True):
        assert (starts == start).all(1).any()
        assert torch.equal(start.sign(), atom.sign())


@pytest.mark.parametrize("take", [fmprobe.probe_weights, film])
def test_starts_of_another_seed_are_refused(take):
    whole = model()
    found = fmprobe.find_attractors(whole, 4, seed=3)
    more = (torch.rand(2, *SHAPE),) if take is fmprobe.probe_weights else ()
    take(whole, found, *more, seed=3)
    with pytest.raises(fmprobe.InputError, match=r"seed 3.*pass seed=3"):
        take(whole, found, *more)
    given = fmprobe.find_attractors(whole, starts=whole.sample_latents(4, seed=3))
    take(whole, given, *more)  # of starts that are given nothing is known


def test_gaussian_atoms_have_the_norms_of_the_atoms_one_by_one():
    whole = model()
    found = fmprobe.find_attractors(whole, starts=torch.diag(torch.linspace(0.2, 4, D)) + 0.1, max_steps=3)
    made = make_dictionaries(whole, found, ends=True, seed=0, null_attractors=None, reference=None)
    atoms = made.atoms[made.subject]
    assert torch.allclose(made.atoms[GAUSSIAN].norm(dim=1), atoms.norm(dim=1))


def test_null_attractors_of_another_space_are_refused():
    whole = model()
    found = fmprobe.find_attractors(whole, 4)
    other = fmprobe.find_attractors(lambda z: 0.5 * z, starts=draws(4, D + 1))
    with pytest.raises(fmprobe.InputError, match=r"the null's attractors are latents of shape \(17,\)"):
        fmprobe.probe_weights(whole, found, torch.rand(2, *SHAPE), null_attractors=other)


@pytest.mark.parametrize(("n", "n_atoms"), [(3, 5), (10, 4), (15, 15), (20, 10), (30, 64)])
def test_the_principal_components_are_of_images_that_are_not_shown(tmp_path, n, n_atoms):
    import numpy as np

    grey = np.arange(30, dtype=np.uint8)[:, None, None] * 8
    np.savez(tmp_path / "sorted.npz", x=np.broadcast_to(grey, (30, 4, 4)))
    shown, reference = held_out(model(), f"{tmp_path}/sorted.npz:x", n, n_atoms, 0)
    level = {name: (block[:, 0, 0, 0] * 255 / 8).round().int() for name, block in (("shown", shown),)}
    others = [] if reference is None else (reference[:, 0, 0, 0] * 255 / 8).round().int().tolist()
    assert len(shown) == n
    assert not {*level["shown"].tolist()} & {*others}
    assert (reference is None) == (n == 30)
    assert int(level["shown"].max() - level["shown"].min()) >= 30 - 30 // n - 5  # of all classes


def test_images_that_the_components_have_seen_are_counted():
    whole, images = model(), torch.rand(6, *SHAPE)
    found = fmprobe.find_attractors(whole, 4)
    for reference, seen in ((images[:3], 3), (torch.rand(3, *SHAPE), 0), (images[:0], 0), (None, 0)):
        curves = fmprobe.probe_weights(whole, found, images, reference_images=reference)
        assert curves.protocol["reference_images_shown"] == seen
        assert (PCA in curves.dictionaries) == (reference is not None and len(reference) > 0)


def test_the_pictures_are_of_images_of_every_class():
    whole = model(lambda z: 0.5 * z)
    found = fmprobe.find_attractors(model(), 6)
    images = by_class(40)
    for batch_size in (3, 32, 40):
        pictures = fmprobe.probe_weights(whole, found, images, batch_size=batch_size).pictures
        levels = {round(float(image.mean()), 1) for image in pictures["image"][0]}
        assert len(levels) == len(pictures["image"][0]) == 4
        rebuilt = whole.decode(whole.encode(pictures["image"][0]))
        assert torch.allclose(pictures["D(E(x))"][0], rebuilt.clamp(0, 1), atol=1e-6)


# Memorization.


def test_noise_images_are_uniform_and_no_two_seeds_share_them():
    noise = _noise_images(model(), 0).double()
    assert noise.shape == (NULLS, *SHAPE)
    bound = 5 / noise.numel() ** 0.5
    assert abs(float(noise.mean()) - 1 / 2) < bound * (1 / 12) ** 0.5
    assert abs(float(noise.var()) - 1 / 12) < bound * (1 / 180) ** 0.5
    assert not torch.equal(noise.float(), _noise_images(model(), 1))


def test_the_mean_image_is_that_of_all_training_images():
    train = torch.rand(9, *SHAPE)
    found = fmprobe.probe_memorization(model(), train, n=4)
    mean = train.mean(0).flatten()
    nearest = float((train.flatten(1) - mean).norm(dim=1).min())
    row = found.levels["euclidean"]["mean image"]
    assert row["count"] == 1
    assert row["mean"] == pytest.approx(nearest, abs=1e-6)


def test_the_rank_to_compare_with_is_of_images_of_every_class():
    """The first ten of a hundred sorted images are all alike, and have rank 0."""
    train = torch.eye(D).repeat_interleave(10, 0).reshape(-1, *SHAPE)
    decoded = torch.rand(10, *SHAPE)
    for images in (decoded, torch.rand(500, *SHAPE)):
        rank = _ranks(images, train)["train_images"]
        assert rank is not None
        assert rank > 5


def test_attractors_and_a_search_for_them_do_not_go_together():
    whole, train = model(), torch.rand(4, *SHAPE)
    found = fmprobe.find_attractors(whole, 4)
    several: list[dict[str, Any]] = [{"n": 9}, {"tol": 0.1}, {"max_steps": 3}]
    for more in several:
        with pytest.raises(fmprobe.InputError, match=f"leave out {next(iter(more))}"):
            fmprobe.probe_memorization(whole, train, attractors=found, **more)


# Training.


@pytest.mark.parametrize("n", [100, 7, 10])
def test_the_tracker_starts_from_images_of_every_class(n):
    seen = []
    network = fmprobe.DenseAutoencoder(2, 4, SHAPE)

    def adapt(module):
        own = module.autoencoder()
        return fmprobe.from_functions(
            lambda x: (seen.append(x.clone()), own.encode_unchecked(x))[1],
            own.decode,
            image_shape=SHAPE,
            latent_shape=(2,),
        )

    images = by_class(n)
    fmprobe.AttractorTracker(images, images, starts=10, max_steps=2, adapt=adapt)(0, network)
    classes = {round(float(value), 1) for value in seen[0][:, 0, 0, 0]}
    assert len(seen[0]) == min(n, 10)
    assert len(classes) == min(n, 10)


# Contraction.


def test_inputs_are_standard_normal_and_the_same_whatever_the_batch():
    inputs = torch.cat(list(noise_images(300, SHAPE, 0, 64)))
    assert torch.equal(inputs, torch.cat(list(noise_images(300, SHAPE, 0, 7))))
    n = inputs.numel() ** 0.5
    assert abs(float(inputs.mean())) < 5 / n
    assert abs(float(inputs.var()) - 1) < 5 * 2**0.5 / n
    with pytest.raises(fmprobe.InputError, match="do not vary"):
        std_ratio(lambda z: z, [torch.ones(3, 2)])


# Alignment.


def test_the_null_sees_what_b_sees_and_the_ceiling_what_a_sees():
    seen = {}

    def network(name):
        def encode(x):
            seen.setdefault(name, x.clone())
            return 0.5 * (x.flatten(1) - 0.5)

        return fmprobe.from_functions(
            encode, lambda z: (z + 0.5).reshape(-1, *SHAPE), image_shape=SHAPE, latent_shape=(D,), name=name
        )

    a, b, null, ceiling = map(network, ("a", "b", "null", "ceiling"))
    dark, bright = 0.4 * torch.rand(60, *SHAPE), 1 - 0.4 * torch.rand(60, *SHAPE)
    found = fmprobe.compare(a, b, dark, images_b=bright, null=null, ceiling=ceiling, max_steps=2, drift_steps=[0])
    assert torch.equal(seen["a"], seen["ceiling"])
    assert torch.equal(seen["b"], seen["null"])
    assert seen["a"].max() < 0.5 < seen["b"].min()
    assert found.null is not None
    assert found.ceiling is not None
    assert found.ceiling["maps"]["linear"]["fit_error"] < 1e-6  # the same network on the same images


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm: Any = nn.BatchNorm1d(50)
        self.linear = nn.Linear(6, 50)
        self.norm.running_var.copy_(torch.logspace(-6, 2, 50))


@pytest.mark.parametrize("seed", range(3))
def test_weight_noise_leaves_the_statistics_of_a_batch_norm(seed):
    before = Normed()
    after = perturbed(before, 0.01, seed)
    assert torch.equal(before.norm.running_var, after.norm.running_var)
    for name, weight in before.named_parameters():
        if weight.norm() > 0:
            assert not torch.equal(weight, after.get_parameter(name))


def test_no_noise_is_the_same_network_in_every_precision():
    tensors = {
        str(kind): torch.rand(5).to(kind) for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    assert all(torch.equal(tensors[name], value) for name, value in perturb(tensors, 0.0).items())
    for noise in (-0.1, float("nan"), float("inf")):
        with pytest.raises(fmprobe.InputError, match="weight noise"):
            perturb(tensors, noise)


# What is given twice.


def test_a_number_beside_starts_that_are_given_is_theirs_or_refused():
    whole, images = model(), torch.rand(3, *SHAPE)
    assert len(fmprobe.probe_residuals(whole, images, n=3, steps=2).latent) == 3
    with pytest.raises(fmprobe.InputError, match="3 images are given, and n=5"):
        fmprobe.probe_residuals(whole, images, n=5, steps=2)
    with pytest.raises(fmprobe.InputError, match="3 starts are given, and n=5"):
        fmprobe.probe_convergence(whole, 5, starts=draws(3, D))
