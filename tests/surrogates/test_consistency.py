"""The second stage of a pixel decoder, and the plan of a fit."""

import json
import re
from typing import Any

import pytest
import torch
from support.surrogates import narrow, quick, tiny_encoder
from torch.nn import functional as F
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.surrogates.consistency import _ConsistencyLoss
from fmprobe.surrogates.fit import FitSettings, chosen_settings
from fmprobe.surrogates.pace import Pace, estimate, pace_of
from fmprobe.surrogates.training import Batch

small = pytest.fixture(narrow, scope="module", autouse=True)
CPU = torch.device("cpu")


def test_the_second_stage_lowers_its_loss_and_the_feature_error_on_held_out_images(tiny_dinov2):
    encoder = fmprobe.load(tiny_dinov2, device="cpu")
    settings: dict[str, Any] = {"n_images": 64, "steps": 100, "contraction": 0.015}
    one = quick(encoder, **settings)
    two = quick(encoder, **settings, consistency_steps=50, consistency=1.0)
    first, second = ([row for row in two.info["log"] if ("stage" in row) is late] for late in (False, True))
    assert [{**row, "seconds_per_step": 0} for row in first] == [
        {**row, "seconds_per_step": 0} for row in one.info["log"]
    ]
    assert [row["step"] for row in second] == list(range(105, 151, 5))
    losses = [row["loss"] for row in second]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    before, after = (made.info["validation"]["held_out"] for made in (one, two))
    assert after["feature_error"] < 0.8 * before["feature_error"]
    assert after["l1"] < 1.05 * before["l1"]
    assert second[-1]["validation"] == pytest.approx(after["feature_error"], rel=1e-3)


def test_the_loss_is_that_of_its_formula():
    encoder, decoder = tiny_encoder(), quick(tiny_encoder())
    pictures = fmprobe.procedural_images(4, 16)

    class Few:
        """Images and latents as a cache of features has them."""

        def of_step(self, rows, step, batch_size):
            return decoder.standardise(encoder.encode(as_pixels(pictures)))[rows]

        def images(self, rows):
            return pictures[rows]

    settings = FitSettings(consistency_steps=5, consistency=0.25)
    few: Any = Few()
    loss = _ConsistencyLoss(decoder, encoder, settings, few)
    whole = encoder.with_decoder(decoder)
    for step, moves in ((0, 1), (1, 2), (2, 3), (3, 1)):
        batch = Batch(step, torch.arange(4), slice(0, 4), 0, 4, CPU)
        with torch.no_grad():
            z = whole.encode(pictures)
            for _ in range(moves):
                z[::2] = whole.latent_map(z[::2])
            painted = whole.decode(z)
            expected = 0.25 * F.mse_loss(whole.encode_unchecked(painted), z)
            expected += (painted - pictures)[1::2].abs().mean() / 2
            torch.testing.assert_close(loss(decoder, batch), expected)
            shares = [Batch(step, torch.arange(a, b), slice(a, b), 0, 4, CPU) for a, b in ((0, 1), (1, 4))]
            parts = loss(decoder, shares[0]) / 4 + loss(decoder, shares[1]) * 3 / 4
            torch.testing.assert_close(parts, expected)


def test_a_fit_that_stopped_in_its_second_stage_ends_as_an_undisturbed_one(encoder, monkeypatch, tmp_path):
    settings: dict[str, Any] = {"n_images": 32, "steps": 10, "consistency_steps": 20, "seed": 6}
    undisturbed = quick(encoder, **settings).state_dict()
    taken, compute = [], _ConsistencyLoss.__call__

    def stopping(loss, module, batch):
        taken.append(batch.step)
        if len(taken) == 12:
            raise KeyboardInterrupt
        return compute(loss, module, batch)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_ConsistencyLoss, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        quick(encoder, **settings)
    again = quick(encoder, **settings)
    assert taken == [*range(12), *range(10, 20)]
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, undisturbed[name], atol=1e-6, rtol=0)
    assert not list((tmp_path / "fmprobe" / "fits").glob("*"))


def test_a_gpu_gets_a_second_stage_by_default_and_a_cpu_none():
    assert FitSettings.for_device(torch.device("cuda")).consistency_steps > 0
    assert FitSettings.for_device(CPU).consistency_steps == 0


def test_before_a_fit_it_says_how_many_images_are_encoded_and_what_comes_after(encoder):
    trained = chosen_settings(encoder, n_images=20, draws=2, steps=7)
    assert re.fullmatch(r"168 images to encode take about .+, then come 7 training steps", estimate(encoder, trained))
    closed = chosen_settings(encoder, kind="linear", n_images=1000)
    assert re.fullmatch(r"1,128 images to encode take about [^,]+", estimate(encoder, closed))


def test_a_plan_has_a_pace_for_each_stage(encoder):
    settings = chosen_settings(encoder, size="tiny", batch_size=8, steps=1000, consistency_steps=500)
    first, second = pace_of(encoder, settings)
    assert (first.steps, second.steps) == (1000, 500)
    assert min(first.seconds, second.seconds) > 0
    assert len(pace_of(encoder, chosen_settings(encoder, kind="latent"))) == 1
    assert str(Pace("first stage", 0.5, 900)) == (
        "first stage: 0.5 s a step, about 7,200 steps an hour here; 900 steps take about 7.5 min"
    )
    with pytest.raises(InputError, match="not trained by steps"):
        pace_of(encoder, chosen_settings(encoder, kind="linear"))


def test_the_command_prints_the_plan_and_writes_nothing(tiny_dinov2, tmp_path):
    words = ["fit-decoder", str(tiny_dinov2), "--plan", "--consistency-steps", "9", "--batch-size", "8"]
    out = tmp_path / "decoder"
    done = CliRunner().invoke(app, [*words, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)["plan"]
    assert [stage["steps"] for stage in plan] == [900, 9]
    assert not out.exists()
    said = CliRunner().invoke(app, words).stdout
    assert "steps an hour here" in said
