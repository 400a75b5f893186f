"""Training: resumed exactly, shared by processes exactly, averaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.runs import launch, spawn, wait_for
from support.surrogates import narrow, quick, tiny_encoder

from fmprobe.errors import InputError
from fmprobe.sharing import is_main
from fmprobe.surrogates import training
from fmprobe.surrogates.training import Batch, Schedule, _rows, train

small = pytest.fixture(narrow, scope="module", autouse=True)


def fit(path: Path, settings: dict[str, Any]) -> int:
    """Fits in this process, and keeps the weights and how many processes shared the fit."""
    AcceleratorState._reset_state(True)  # of the process that this one was forked from
    decoder = quick(tiny_encoder(), seed=3, **settings)
    if is_main():
        save_file(decoder.state_dict(), path, metadata={"processes": str(PartialState().num_processes)})
    return 0


def test_a_fit_that_was_killed_ends_as_an_undisturbed_one(encoder, tmp_path, monkeypatch):
    settings: dict[str, Any] = {"steps": 200, "n_images": 64}
    undisturbed = quick(encoder, seed=3, **settings).state_dict()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    fits = tmp_path / "two" / "fmprobe" / "fits"
    process = spawn(fit, tmp_path / "b", settings)
    wait_for(lambda: bool(list(fits.glob("*/log.jsonl"))))
    process.kill()
    process.join()
    assert not (tmp_path / "b").exists(), "it was killed before its end"
    state = next(fits.glob("*/state.pt"))
    assert 0 < torch.load(state, weights_only=True)["step"] < 200
    again = quick(encoder, seed=3, **settings).state_dict()
    for name, value in undisturbed.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=0)
    assert not list(fits.glob("*"))


@pytest.mark.parametrize(
    "stages", [{"steps": 8, "contraction": 0.1}, {"steps": 2, "contraction": 0.0, "consistency_steps": 5}]
)
def test_two_processes_do_what_one_does_with_the_whole_batch(encoder, tmp_path, stages, monkeypatch):
    settings: dict[str, Any] = {**stages, "n_images": 64, "batch_size": 16}
    one = quick(encoder, seed=3, **settings).state_dict()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    team = launch(2, fit, tmp_path / "two", settings, log=tmp_path / "log")
    for process in team:
        process.join()
    assert [process.exitcode for process in team] == [0, 0], (tmp_path / "log").read_text()
    with safe_open(tmp_path / "two", "pt") as file:
        assert file.metadata()["processes"] == "2"
    two = load_file(tmp_path / "two")
    for name, value in one.items():
        off = (two[name] - value).abs()
        # Adam makes whole steps of the rounding in a gradient that is nearly zero, which one weight in thousands has.
        assert (off > 1e-4).double().mean() <= 1e-4, name
        assert off.max() <= 1e-3, name


@pytest.fixture(scope="module")
def whole():
    """A fit in steps of one part, in float32."""
    return quick(tiny_encoder())


def test_accumulation_changes_nothing(encoder, whole):
    for accumulate in (4, 3):  # 3 does not divide the batch
        parts = quick(encoder, accumulate=accumulate)
        for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="cannot be shared by 300 parts"):
        quick(encoder, accumulate=300)


def linear(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 1)


def squared(module, batch: Batch):
    return (module(torch.stack([batch.rows.float() / 10] * 3, 1)) - 1).square().mean()


def test_every_epoch_sees_every_row_once():
    steps = [_rows(10, 4, step, seed=1) for step in range(5)]
    assert sorted(torch.cat(steps).tolist()) == sorted([*range(10)] * 2)
    assert not torch.equal(torch.cat(steps)[:10], torch.cat(steps)[10:])


def test_the_log_has_one_line_a_tenth_and_the_average_is_returned(tmp_path):
    schedule = Schedule(steps=50, batch_size=5, learning_rate=1e-2, ema=0.9)
    module = linear()
    kept, log = train(
        module, squared, 10, schedule, device=torch.device("cpu"), folder=tmp_path, validate=lambda m: 7.0
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 51, 5))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["validation"] == 7.0
    assert log == lines
    assert kept is not module
    assert not torch.equal(kept.weight, module.weight)
    last, _ = train(linear(), squared, 10, Schedule(50, 5, 1e-2, ema=0), device=torch.device("cpu"))
    assert torch.equal(last.weight, module.weight), "the average does not touch the training"


def test_a_damaged_state_starts_anew(tmp_path):
    schedule = Schedule(steps=20, batch_size=5, learning_rate=1e-2)
    expected, _ = train(linear(), squared, 10, schedule, device=torch.device("cpu"))
    (tmp_path / training.STATE).write_bytes(b"PK nonsense")
    again, _ = train(linear(), squared, 10, schedule, device=torch.device("cpu"), folder=tmp_path)
    assert torch.equal(again.weight, expected.weight)


def test_random_numbers_of_a_row_do_not_depend_on_the_share():
    whole = Batch(3, torch.arange(8), slice(0, 8), 1, 8, torch.device("cpu"))
    half = Batch(3, torch.arange(4, 8), slice(4, 8), 1, 8, torch.device("cpu"))
    assert torch.equal(whole.normal((2,), "a")[4:], half.normal((2,), "a"))
    assert torch.equal(whole.uniform((2,), "a")[4:], half.uniform((2,), "a"))
    assert not torch.equal(whole.normal((2,), "a"), whole.normal((2,), "b"))


def test_mixed_precision_trains_float32_weights(encoder, whole):
    mixed = quick(encoder, precision="bf16")
    assert mixed.body.embed.weight.dtype == torch.float32
    assert mixed.info["log"][-1]["loss"] == pytest.approx(whole.info["log"][-1]["loss"], rel=0.1)
    assert not torch.equal(mixed.body.embed.weight, whole.body.embed.weight)
