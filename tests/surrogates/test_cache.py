"""Fitted decoders and features in the cache: found again, mended, never trusted."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from support.surrogates import QUICK, narrow, quick

from fmprobe.surrogates import cache, fit
from fmprobe.surrogates.cache import FORMAT, cached_decoder
from fmprobe.surrogates.features import features_key

small = pytest.fixture(narrow, scope="module", autouse=True)


def key_of(model, settings):
    return features_key(model, "procedural", [FORMAT, asdict(settings)])


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fmprobe" / "decoders"


def test_second_call_reads_the_cache(encoder, cache_home, monkeypatch):
    first, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert not was_cached
    assert [p.name for p in cache_home.iterdir()] == [key_of(encoder, QUICK)]
    monkeypatch.setattr(cache, "fit_with", lambda *_, **__: pytest.fail("fitted again"))
    second, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert was_cached
    z = encoder.sample_latents(2)
    assert torch.equal(first(z), second(z))
    assert second.info == first.info


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_broken_entry_is_fitted_again(encoder, cache_home, name):
    first: Any
    second: Any
    first, _ = cached_decoder(encoder, QUICK, progress=False)
    path = cache_home / key_of(encoder, QUICK) / name
    path.write_bytes(path.read_bytes()[:-20])
    second, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert not was_cached
    assert torch.equal(first.body.embed.weight, second.body.embed.weight)
    assert cached_decoder(encoder, QUICK, progress=False)[1], "the entry was mended"


def test_key_tells_models_shapes_and_settings_apart(make_encoder):
    models = [
        make_encoder(),
        make_encoder(seed=1),
        make_encoder(side=32),
        make_encoder(width=12),
        make_encoder(dtype="bfloat16"),
    ]
    keys = {key_of(model, QUICK) for model in models}
    keys |= {key_of(models[0], replace(QUICK, **c)) for c in ({"seed": 1}, {"noise": 0.7}, {"mixture": "noise"})}
    assert len(keys) == 8
    assert key_of(models[0], QUICK) == key_of(make_encoder(model="elsewhere"), QUICK), "the name is no matter"


def test_losing_a_race_for_the_entry_does_no_harm(encoder, cache_home, monkeypatch):
    winner = quick(encoder, seed=0)

    def fit_while_another_saves(model, settings, *, progress):
        winner.save(cache_home / key_of(model, settings))
        return fit.fit_with(model, settings, progress=progress)

    monkeypatch.setattr(cache, "fit_with", fit_while_another_saves)
    _, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert not was_cached
    assert cached_decoder(encoder, QUICK, progress=False)[1]
    assert len(list(cache_home.iterdir())) == 1


def test_unwritable_cache_costs_nothing_but_time(encoder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    decoder, was_cached = cached_decoder(encoder, QUICK, progress=False)
    assert not was_cached
    assert decoder.info["steps"] == QUICK.steps


def test_models_without_a_fingerprint_are_not_cached(make_encoder, cache_home):
    _, was_cached = cached_decoder(make_encoder(fingerprint=""), QUICK, progress=False)
    assert not was_cached
    assert not cache_home.exists()
