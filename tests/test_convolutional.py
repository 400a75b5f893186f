"""The small autoencoders and their training loop."""

from typing import Any

import pytest
import torch

import fmprobe
from fmprobe.convolutional import VARIANTS
from fmprobe.images import load_small_set

SHAPE = (1, 16, 16)
IMAGES = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
KINDS = [fmprobe.ConvAutoencoder, fmprobe.DenseAutoencoder]


def made(kind: type[Any] = fmprobe.ConvAutoencoder, **settings: Any) -> Any:
    torch.manual_seed(0)
    return kind(3, 4, SHAPE, **settings)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_and_leaves_the_random_state(kind, variant):
    network = made(kind, variant=variant)
    before = (network(IMAGES) - IMAGES).square().mean()
    state, batch = torch.get_rng_state(), IMAGES.clone()
    losses = fmprobe.train_autoencoder(network, IMAGES, epochs=12, batch_size=8, learning_rate=3e-3, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(IMAGES, batch)
    assert not IMAGES.requires_grad
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert (network(IMAGES) - IMAGES).square().mean() < before
    assert not network.training
    model = network.autoencoder()
    assert (model.image_shape, model.latent_shape) == (SHAPE, (3,))
    assert model.latent_map(torch.zeros(2, 3)).shape == (2, 3)
    assert model.provenance["variant"] == variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_seed_decides_everything(variant):
    runs = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        network = made(variant=variant)
        torch.manual_seed(global_seed)
        fmprobe.train_autoencoder(network, IMAGES, epochs=2, batch_size=8, seed=seed, progress=False)
        runs.append(network)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def loss_of(variant, strength):
    network = made(fmprobe.DenseAutoencoder, variant=variant, strength=strength)
    return float(network.loss(IMAGES, torch.Generator().manual_seed(0)).detach())


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ("plain", "variational")])
def test_at_strength_zero_a_variant_is_the_plain_autoencoder(variant):
    assert loss_of(variant, 0.0) == pytest.approx(loss_of("plain", None))
    assert loss_of(variant, 0.5) != pytest.approx(loss_of("plain", None))


def test_the_contractive_penalty_is_the_squared_norm_of_the_jacobian():
    """A linear encoder, whose Jacobian is its matrix: the estimate over many draws comes to it."""
    network = made(variant="contractive", strength=1.0)
    matrix = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    network.down = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3, bias=False))
    network.down[1].weight.data = matrix
    plain = float((network(IMAGES) - IMAGES).square().mean().detach())
    draws = torch.Generator().manual_seed(0)
    penalties = [float(network.loss(IMAGES, draws).detach()) - plain for _ in range(50)]
    expected = float(matrix.square().sum()) / 3
    spread = torch.tensor(penalties).std() / 50**0.5
    assert sum(penalties) / 50 == pytest.approx(expected, abs=4 * float(spread))
    assert spread < 0.1 * expected


def test_masking_takes_whole_patches_at_the_share_asked_for():
    network = made(variant="masked", strength=0.75)
    kept = network._kept(torch.ones(500, *SHAPE), torch.Generator().manual_seed(0))
    assert kept.mean() == pytest.approx(0.25, abs=0.02)
    patches = kept.reshape(500, 4, 4, 4, 4)
    assert torch.equal(patches.amax((2, 4)), patches.amin((2, 4)))


def test_the_callback_sees_the_model_before_and_after_each_epoch():
    seen = []
    network = made()
    fmprobe.train_autoencoder(
        network, IMAGES, epochs=3, callback=lambda epoch, model: seen.append((epoch, model.training)), progress=False
    )
    assert seen == [(0, True), (1, True), (2, True), (3, True)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "sharp"}, "plain, denoising"),
        ({"variant": "masked", "strength": 1.5}, "0 to 1"),
        ({"strength": 0.1}, "plain"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_settings_are_named(kind, settings, message):
    with pytest.raises(fmprobe.InputError, match=message):
        made(kind, **settings)


@pytest.mark.parametrize(
    ("kind", "shape"), [(fmprobe.ConvAutoencoder, (1, 8, 8)), (fmprobe.DenseAutoencoder, (0, 8, 8))]
)
def test_bad_sizes_are_named(kind, shape):
    with pytest.raises(fmprobe.InputError, match="image_shape"):
        kind(2, 4, shape)


def test_no_images_are_refused():
    with pytest.raises(fmprobe.InputError, match="no images"):
        fmprobe.train_autoencoder(made(), IMAGES[:0])


def test_digits_are_split_and_the_parts_share_no_image():
    train, test = load_small_set("digits", n_train=20)
    assert train.shape == (20, 1, 28, 28)
    assert test.shape == (360, 1, 28, 28)
    assert float(torch.cdist(train.flatten(1), test.flatten(1)).min()) > 0
    for name, n in (("digits", 5000), ("letters", 5)):
        with pytest.raises(fmprobe.InputError, match="digits"):
            load_small_set(name, n_train=n)


@pytest.mark.assets
@pytest.mark.parametrize(("name", "shape"), [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_small_sets_are_read_from_a_folder(assets, name, shape):
    train, test = load_small_set(name, assets / "data", 3, 2)
    assert (train.shape, test.shape) == ((3, *shape), (2, *shape))
