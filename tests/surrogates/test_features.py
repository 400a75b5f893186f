"""The features of a frozen encoder: exact, on disk, computed once."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support.surrogates import QUICK

from fmprobe.autoencoder import Autoencoder
from fmprobe.procedural import procedural_images
from fmprobe.surrogates import features as room
from fmprobe.surrogates.data import coloured_noise
from fmprobe.surrogates.features import features_of


def clean(pixels, first, draw):
    return pixels


def features(model, images, disturb=clean, key="none", draws=1, block=7):
    return features_of(model, lambda: images.split(block), "test", disturb, key, draws)


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fmprobe" / "features"


def test_features_are_standardised_by_their_statistics(encoder, cache_home):
    images = (procedural_images(40, 16) * 255).round() / 255
    native = encoder.encode(images)
    with features(encoder, images) as found:
        tokens = found.latents(torch.arange(40))
        assert len(found) == 40
        assert torch.allclose(tokens.mean(dim=(0, 1)), torch.zeros(24), atol=1e-3)
        assert torch.allclose(tokens.std(dim=(0, 1), correction=0), torch.ones(24), atol=1e-3)
        assert torch.allclose(found.mean, native.double().mean(dim=(0, 1)).float(), rtol=1e-5)
        # The scales span six orders of magnitude: half precision must cost none of them their accuracy. The smallest
        # ones are limited by the encoder's own float32 tokens, whose offset is far larger than they are.
        exact = ((native.double() - found.mean.double()) / found.std.double()).float()
        assert (tokens - exact).abs().max() < 0.01
        assert torch.equal(found.latents(torch.tensor([5, 3])), tokens[[5, 3]])
        assert torch.allclose(found.images(torch.tensor([5, 3])), images[[5, 3]], atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 2, 2), (24,)])
def test_statistics_are_those_of_a_channel(shape, cache_home):
    def encode(images):
        return 3 + images.mean(dim=(1, 2, 3)).view(-1, *(1,) * len(shape)) * torch.arange(1, 25).reshape(shape)

    model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=shape, provenance={"model": "m"})
    images = procedural_images(20, 16)
    with features(model, images) as found:
        latents = found.latents(torch.arange(20))
    dims = (0, 2, 3) if len(shape) == 3 else (0,)
    assert torch.allclose(latents.mean(dim=dims), torch.zeros(shape[0]), atol=1e-2)
    assert torch.allclose(latents.std(dim=dims, correction=0), torch.ones(shape[0]), atol=1e-2)


def test_pixel_noise_depends_on_index_and_draw_alone(encoder):
    pixels = torch.full((6, 3, 16, 16), 0.5)
    from dataclasses import replace

    settings = replace(QUICK, pixel_noise=0.4)
    noise = coloured_noise(settings, pixels, 10, 0) - pixels
    deviations = noise.flatten(1).std(dim=1)
    assert (deviations < 0.41).all()
    assert deviations.unique().numel() == 6
    assert torch.equal(noise[2:4], coloured_noise(settings, pixels[:2], 12, 0) - pixels[:2])
    assert not torch.equal(noise, coloured_noise(settings, pixels, 10, 1) - pixels)
    assert torch.equal(coloured_noise(replace(settings, pixel_noise=0.0), pixels, 0, 0), pixels)


def test_each_draw_is_seen_with_its_own_noise(encoder, cache_home):
    images = procedural_images(20, 16)
    rows = torch.arange(20)

    def shifted(pixels, first, draw):
        return pixels + 0.1 * draw

    with features(encoder, images, shifted, "shifted", draws=2) as found:
        assert not torch.allclose(found.latents(rows, 0), found.latents(rows, 1), atol=0.05)
        assert torch.equal(found.latents(rows, 0), found.latents(rows, 2))
        native = encoder.encode_unchecked(found.images(rows) + 0.1)
        # The largest channels are exact enough to tell the draws apart.
        expected = ((native - found.mean) / found.std)[..., -4:]
        assert (found.latents(rows, 1)[..., -4:] - expected).abs().max() < 0.02


def test_constant_channels_are_not_blown_up(make_encoder, cache_home):
    base = make_encoder()

    def encode(images):
        tokens = base.encode_unchecked(images)
        tokens[..., 3] = 7.0
        return tokens

    model = Autoencoder(encode, None, image_shape=(3, 16, 16), latent_shape=(16, 24), provenance={})
    with features(model, procedural_images(20, 16)) as found:
        tokens = found.latents(torch.arange(20))
        assert tokens.isfinite().all()
        assert tokens[..., 3].abs().max() < 1e-3
        assert found.std[3] > 0


def test_the_encoder_runs_once_an_image(make_encoder, cache_home):
    seen = []

    def counted(pixels, first, draw):
        seen.append(len(pixels))
        return pixels

    images = procedural_images(20, 16)
    with features(make_encoder(), images, counted) as first:
        tokens = first.latents(torch.arange(20))
    with features(make_encoder(), images, counted) as second:
        assert torch.equal(second.latents(torch.arange(20)), tokens)
    assert sum(seen) == 20
    assert len(list(cache_home.iterdir())) == 1
    for other in ({"seed": 1}, {"tokens": "all"}, {"dtype": "bfloat16"}, {"preprocessing": {"size": 2}}):
        with features(make_encoder(**other), images, counted):
            pass
    assert sum(seen) == 100


@pytest.mark.parametrize("name", [room.PIXELS, room.LATENTS, room.META])
def test_a_broken_entry_is_built_again(encoder, cache_home, name):
    images = procedural_images(20, 16)
    with features(encoder, images) as found:
        tokens = found.latents(torch.arange(20))
    file = next(cache_home.iterdir()) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with features(encoder, images) as found:
        assert torch.equal(found.latents(torch.arange(20)), tokens)
    assert len(list(cache_home.iterdir())) == 1


def test_without_a_fingerprint_or_a_disk_nothing_is_kept(make_encoder, cache_home, tmp_path, monkeypatch):
    with features(make_encoder(fingerprint=""), procedural_images(20, 16)) as found:
        assert len(found) == 20
    assert not cache_home.exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with features(make_encoder(), procedural_images(20, 16)) as found:
        assert len(found) == 20


def test_noise_of_the_settings_reaches_the_encoder_and_not_the_target(encoder, cache_home):
    from dataclasses import replace

    images = torch.full((6, 3, 16, 16), 0.5) + torch.rand(6, 3, 16, 16) / 9
    noise = partial(coloured_noise, replace(QUICK, pixel_noise=0.4))
    with features(encoder, images) as plain, features(encoder, images, noise, "noisy") as noisy:
        assert not torch.allclose(plain.std, noisy.std)
        assert torch.equal(plain.images(torch.arange(6)), noisy.images(torch.arange(6)))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system does not say how memory is used")
def test_what_was_read_does_not_stay_in_memory(cache_home):
    """14 MB of pixels and 14 MB of latents."""

    def of_files():
        return int(Path("/proc/self/status").read_text().split("RssFile:")[1].split()[0]) / 1000

    def encode(images):
        return images.flatten(1)[:, :100_000].unflatten(1, (-1, 100))

    n, shape = 70, (3, 256, 256)
    model = Autoencoder(encode, None, image_shape=shape, latent_shape=(1000, 100), provenance={"model": "m"})
    images = torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with features(model, images) as found:
        rows = torch.arange(n)
        found.latents(rows[:1])
        before = of_files()
        assert torch.equal(torch.cat([found.images(some) for some in rows.split(8)]), images / 255)
        assert all(found.latents(some).isfinite().all() for some in rows.split(8))
        assert of_files() - before < 6
