"""Training: resumed exactly, shared by processes exactly, averaged."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.runs import launch, spawn, wait_for
from support.surrogates import quick, tiny_encoder

from fmprobe.errors import InputError
from fmprobe.surrogates import training
from fmprobe.surrogates.training import Batch, Schedule, _rows, train


def fit(out: Path, cache: Path, settings: dict[str, Any]) -> int:
    """Fit a decoder and save its weights in the file `out`; runs in a process of its own."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one was forked from
    decoder = quick(tiny_encoder(), seed=3, **settings)
    if PartialState().is_main_process:
        save_file(decoder.state_dict(), out, metadata={"processes": str(PartialState().num_processes)})
    return 0


def finish(*processes):
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_a_fit_that_was_killed_ends_as_an_undisturbed_one(tmp_path):
    settings = {"steps": 200, "n_images": 64}
    finish(spawn(fit, tmp_path / "a", tmp_path / "one", settings))
    process = spawn(fit, tmp_path / "b", tmp_path / "two", settings)
    fits = tmp_path / "two" / "fmprobe" / "fits"
    wait_for(lambda: bool(list(fits.glob("*/log.jsonl"))), 120)
    process.kill()
    process.join()
    assert not (tmp_path / "b").exists(), "it was killed before its end"
    state = next(fits.glob("*/state.pt"))
    assert 0 < torch.load(state, weights_only=True)["step"] < 200
    finish(spawn(fit, tmp_path / "b", tmp_path / "two", settings))
    for name, value in load_file(tmp_path / "a").items():
        torch.testing.assert_close(load_file(tmp_path / "b")[name], value, atol=1e-6, rtol=0)
    assert not list(fits.glob("*"))


def test_two_processes_do_what_one_does_with_the_whole_batch(tmp_path):
    settings = {"steps": 20, "n_images": 64, "batch_size": 16, "contraction": 0.1}
    finish(spawn(fit, tmp_path / "one", tmp_path / "cache", settings))
    finish(*launch(2, fit, tmp_path / "two", tmp_path / "cache", settings))
    with safe_open(tmp_path / "two", "pt") as file:
        assert file.metadata()["processes"] == "2"
    for name, value in load_file(tmp_path / "one").items():
        torch.testing.assert_close(load_file(tmp_path / "two")[name], value, atol=1e-4, rtol=0)


def test_accumulation_changes_nothing(encoder):
    whole = quick(encoder, steps=10)
    for accumulate in (4, 3):  # 3 does not divide the batch
        parts = quick(encoder, steps=10, accumulate=accumulate)
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


def test_mixed_precision_trains_float32_weights(encoder):
    full, mixed = quick(encoder, steps=20), quick(encoder, steps=20, precision="bf16")
    assert mixed.body.embed.weight.dtype == torch.float32
    assert mixed.info["log"][-1]["loss"] == pytest.approx(full.info["log"][-1]["loss"], rel=0.1)
    assert not torch.equal(mixed.body.embed.weight, full.body.embed.weight)
