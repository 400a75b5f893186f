"""Many small autoencoders trained at once: each as if it were trained alone."""

from typing import Any

import pytest
import torch

import fmprobe
from fmprobe.convolutional import VARIANTS

SHAPE = (1, 17, 18)  # an odd and an even side
IMAGES = torch.rand(22, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SEEDS = (3, 1, 4)
SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "progress": False}  # the last batch has 6 images
WITHIN = {torch.float64: 1e-13, torch.float32: 2e-6}  # largest difference of a weight, of weights below 1


def made(n=3, kind: Any = fmprobe.ConvAutoencoder, dtype=torch.float64, k=3, **settings: Any) -> list[Any]:
    """Networks of one shape with different weights."""
    networks = []
    for seed in range(n):
        torch.manual_seed(seed)
        networks.append(kind(k, 4, SHAPE, **settings).to(dtype))
    return networks


def alone(networks, seeds=SEEDS, **settings):
    images = IMAGES.to(next(networks[0].parameters()).dtype)
    return [
        fmprobe.train_autoencoder(network, images, seed=seed, **SETTINGS | settings)
        for network, seed in zip(networks, seeds, strict=True)
    ]


def at_once(networks, seeds=SEEDS, **settings):
    images = IMAGES.to(next(networks[0].parameters()).dtype)
    return fmprobe.train_autoencoders(networks, images, seeds=seeds, **SETTINGS | settings)


def gap(a, b):
    """Largest difference of a weight of two networks."""
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("kind", [fmprobe.ConvAutoencoder, fmprobe.DenseAutoencoder])
@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_that_train_at_once_equal_those_that_train_alone(variant, kind, dtype):
    begun, ours, theirs = (made(3, kind, dtype, variant=variant) for _ in range(3))
    state = torch.get_rng_state()
    losses, wanted = at_once(ours), alone(theirs)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(wanted), rtol=WITHIN[dtype], atol=0)
    for a, b, before in zip(ours, theirs, begun, strict=True):
        assert gap(a, b) <= WITHIN[dtype]
        assert gap(a, before) > 1e-3
        assert not a.training


def test_each_network_has_the_order_and_the_noise_of_its_seed():
    twins = [made(1, variant="denoising")[0] for _ in range(3)]
    at_once(twins, seeds=(5, 5, 6))
    assert gap(twins[0], twins[1]) <= WITHIN[torch.float64]
    assert gap(twins[0], twins[2]) > 1e-4


def test_one_network_and_the_seeds_by_default():
    (one,), (other,) = made(1), made(1)
    assert at_once([one], seeds=None) == alone([other], seeds=[0])
    assert gap(one, other) <= WITHIN[torch.float64]


def test_a_network_that_diverges_leaves_the_others_alone():
    ours, theirs = made(), made()
    with torch.no_grad():
        ours[1].down[0].weight.fill_(torch.nan)
    losses = at_once(ours)
    assert torch.tensor(losses[1]).isnan().all()
    alone(theirs)
    assert max(gap(ours[i], theirs[i]) for i in (0, 2)) <= WITHIN[torch.float64]


def test_frozen_weights_stay():
    ours, theirs = made(), made()
    for network in (*ours, *theirs):
        network.down.requires_grad_(False)
    before = [network.down[0].weight.clone() for network in ours]
    at_once(ours)
    alone(theirs)
    for a, b, weight in zip(ours, theirs, before, strict=True):
        assert torch.equal(a.down[0].weight, weight)
        assert gap(a, b) <= WITHIN[torch.float64]


def test_each_callback_sees_its_network_as_it_is_then():
    def seen(train):
        records: list[list[Any]] = [[], [], []]
        networks = made()

        def recorder(i):
            def record(epoch, model):
                assert model is networks[i]
                assert model.training
                records[i].append((epoch, torch.cat([p.detach().flatten() for p in model.parameters()])))

            return record

        train(networks, [recorder(i) for i in range(3)])
        return records

    def one_by_one(networks, callbacks):
        for i in range(3):
            alone(networks[i : i + 1], SEEDS[i : i + 1], callback=callbacks[i])

    ours, theirs = seen(lambda networks, callbacks: at_once(networks, callbacks=callbacks)), seen(one_by_one)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert [epoch for epoch, _ in mine] == [epoch for epoch, _ in wanted] == [0, 1, 2, 3, 4]
        torch.testing.assert_close([w for _, w in mine], [w for _, w in wanted], rtol=0, atol=WITHIN[torch.float64])


def test_networks_share_no_memory_afterwards_even_if_a_callback_fails():
    def fails(epoch, model):
        raise KeyError(epoch)

    networks = made()
    with pytest.raises(KeyError):
        at_once(networks, callbacks=[fails] * 3)
    assert gap(networks[0], made()[0]) == 0
    at_once(networks)
    for network in networks:
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in network.parameters())


class OwnLoss(fmprobe.ConvAutoencoder):
    def loss(self, images, generator):
        return 2 * super().loss(images, generator)


def with_dropout():
    (network,) = made(1)
    network.down.append(torch.nn.Dropout())
    return network


def with_batch_norm():
    (network,) = made(1)
    network.down.append(torch.nn.BatchNorm1d(3))
    return network


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (lambda: made(1) * 2, "each once"),
        (lambda: made(1) + made(1, k=2), r"models\[1\] has down.9.weight \(2, 128\) .* has down.9.weight \(3, 128\)"),
        (lambda: made(1) + made(1, variant="masked"), "variant masked of strength 0.5 where .* variant plain"),
        (lambda: made(2) + made(1, dtype=torch.float32), r"models\[2\] has .* torch.float32 on cpu where"),
        (lambda: made(1) + made(1, fmprobe.DenseAutoencoder), "train it alone, by train_autoencoder"),
        (lambda: [*made(1), made(1)[0].requires_grad_(False)], "frozen where"),
        (lambda: [with_dropout(), with_dropout()], "dropout"),
        (lambda: [with_batch_norm(), with_batch_norm()], "buffers"),
        (lambda: made(2, OwnLoss), "loss of its own"),
    ],
)
def test_networks_that_cannot_train_at_once_are_refused_in_one_line(networks, message):
    given = networks()
    with pytest.raises(fmprobe.InputError, match=message) as error:
        at_once(given, seeds=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [{"seeds": (1, 2)}, {"seeds": SEEDS, "callbacks": [print]}])
def test_there_is_a_seed_and_a_callback_for_each_network(given):
    with pytest.raises(fmprobe.InputError, match="for 3 models: pass one a model"):
        at_once(made(), **given)


def test_networks_are_in_eval_mode_afterwards_even_if_a_callback_fails():
    def fails(epoch, network):
        assert network.training
        if epoch == 1:
            raise RuntimeError("stop")

    networks = [fmprobe.DenseAutoencoder(2, 4, (1, 4, 4)) for _ in range(2)]
    images = torch.rand(8, 1, 4, 4)
    with pytest.raises(RuntimeError, match="stop"):
        fmprobe.train_autoencoder(networks[0], images, epochs=2, batch_size=4, callback=fails, progress=False)
    with pytest.raises(RuntimeError, match="stop"):
        fmprobe.train_autoencoders(networks, images, epochs=2, batch_size=4, callbacks=[fails] * 2, progress=False)
    assert not any(module.training for network in networks for module in network.modules())
