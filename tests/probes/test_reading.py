"""What `fmprobe probe` writes of the readings of a search, and of the set that orbits move on."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from support.quick import whole_readings
from support.written import chaotic_model

import fmprobe
from fmprobe.dynamics.readings import read_orbits
from fmprobe.files import read_json
from fmprobe.probes.prototypes.limit_set import FILM, PICTURES, limit_set
from fmprobe.probes.prototypes.reading import JVP_COST, SECONDS, effort, read_search
from fmprobe.runs.plan import Plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def usual_readings():
    with whole_readings():
        yield


def found_by(model, n=8, **settings):
    attractors = fmprobe.find_attractors(model, n, max_steps=60, progress=False)
    return limit_set(model, attractors.orbits, read_orbits(model, attractors), **settings)


def noise(written, name):
    return read_json(written(name) / "results.json")["orbits"]["noise"]


def test_a_chaotic_search_is_read_and_described(written):
    """The logistic map at 4 has the exponent log 2, and its points the mean 1/2 and the variance 1/8 (arcsine law)."""
    found = noise(written, "chaotic")
    exponent, moving = found["exponent"], found["set"]
    assert (found["status"]["wandering"], exponent["regime"], exponent["regimes"]["chaotic"]) == (8, "chaotic", 8)
    assert exponent["median"] == pytest.approx(math.log(2), abs=0.02)
    assert exponent["interval"][0] <= exponent["median"] <= exponent["interval"][1]
    assert exponent["words"] == "8 of the 8 starts are chaotic: neighbouring orbits part by a factor of 2 a step."
    assert set(exponent) == {
        *("median", "interval", "standard_error", "regime", "words", "regimes"),
        *("read", "measured", "steps", "burn_in", "method"),
    }
    assert (exponent["steps"], exponent["burn_in"], exponent["measured"], exponent["method"]) == (100, 50, 8, "jvp")
    assert moving["starts"] == list(range(8))
    assert 3 < moving["dimension"]["within"] <= moving["dimension"]["pooled"] <= 4
    assert moving["pictures"]["variation"] == pytest.approx(8**-0.5, abs=0.02)
    with Image.open(written("chaotic") / moving["pictures"]["file"]) as sheet:
        pixels = np.asarray(sheet.convert("L"), dtype=float) / 255
    assert pixels.shape == (3 * 8, 2 * 8)
    assert pixels[:8, :8].mean() == pytest.approx(0.5, abs=0.04)
    assert pixels[:8, 8:].mean() == pytest.approx(2 * 8**-0.5, abs=0.04)


def test_the_terminal_and_the_page_say_what_the_orbits_do(written):
    assert re.search(r"^exponent +0\.69", written.printed("chaotic"), re.MULTILINE)
    assert re.search(r"^dimension +3\.", written.printed("chaotic"), re.MULTILINE)
    page = written.page("chaotic")
    for text in ("8 of the 8 starts are chaotic", "effective dimension of all orbits together", "all orbits, mean"):
        assert text in page
    settled = written.page("prototypes")
    assert "12 of the 12 starts settled" in settled
    assert "Where orbits do not settle" not in settled
    assert "set" not in noise(written, "prototypes")


def test_a_model_without_pictures_has_a_dimension_alone(tmp_path):
    model = chaotic_model()
    blind = model.derived(decode=None, latent_map=model.latent_map)
    attractors = fmprobe.find_attractors(blind, 8, max_steps=60, progress=False)
    plan = Plan(8, max_steps=60)
    found, whole = (read_search(m, attractors, plan, tmp_path / m.name)["set"] for m in (blind, model))
    assert set(found) == {"starts", "steps", "dimension"}
    assert found["dimension"] == whole["dimension"]
    assert sorted(path.name for path in (tmp_path / model.name).iterdir()) == sorted([PICTURES, FILM])


def test_frames_and_means_are_those_of_the_orbits():
    model = chaotic_model()
    attractors = fmprobe.find_attractors(model, 4, max_steps=60, progress=False)
    found = limit_set(model, attractors.orbits, read_orbits(model, attractors), steps=9, batch_size=3)
    assert found is not None
    points = [attractors.orbits.ends]
    for _ in range(9):
        points.append(model.latent_map(points[-1]))
    pictures = torch.stack([model.decode(z) for z in points], 1).double()
    assert found.stops == (0, 1, 2, 3, 4, 6, 8, 9)
    torch.testing.assert_close(found.frames, pictures[:2, list(found.stops)].float())
    flat = pictures.flatten(0, 1)
    means = torch.stack([flat.mean(0), *pictures[:2].mean(1)])
    deviations = torch.stack([flat.std(0, correction=0), *pictures[:2].std(1, correction=0)])
    torch.testing.assert_close(found.mean, means.float())
    torch.testing.assert_close(found.deviation, deviations.float())
    assert found.variation == pytest.approx(float(pictures.var(1, correction=0).mean().sqrt()))


def test_orbits_that_end_while_they_are_followed_are_left_out():
    model = chaotic_model()
    whole = model.latent_map

    def dying(z):
        return torch.where(z[:, :1] > 0.999, torch.nan, whole(z))

    attractors = fmprobe.find_attractors(model, 8, max_steps=60, progress=False)
    readings = read_orbits(model, attractors)
    found = limit_set(model.derived(decode=model.decode, latent_map=dying), attractors.orbits, readings, steps=20)
    assert found is not None
    z = attractors.orbits.ends
    for _ in range(20):
        z = dying(z)
    kept = z.isfinite().all(1).nonzero()[:, 0].tolist()
    assert 0 < len(kept) < 8
    assert found.starts == kept
    assert found.filmed == tuple(start for start in kept if start < 2)
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_the_latents_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr("fmprobe.probes.prototypes.limit_set.LARGEST", 3 * 4 * 11)
    found = found_by(chaotic_model(), steps=10)
    assert found is not None
    assert found.starts == [0, 1, 2]


def test_there_is_no_set_where_orbits_settle():
    model = fmprobe.from_functions(
        lambda x: x.flatten(1) / 2, lambda z: z.reshape(-1, 1, 1, 2), image_shape=(1, 1, 2), latent_shape=(2,)
    )
    assert found_by(model) is None


@pytest.mark.parametrize("cost", [1e-6, 1e-3, 5e-3, 0.01, 0.03, 0.1])
def test_readings_keep_to_their_time_on_a_cpu(cost):
    much = effort(cost, CPU)
    assert much.cap * much.steps * 1.5 * JVP_COST * cost <= 1.01 * SECONDS
    assert 20 <= much.steps <= 100
    assert much.cap in (2, 4, 8, 16)
    assert 16 <= much.set_steps <= 64
    assert much.cap * much.steps >= 0.6 * min(1600, SECONDS / (1.5 * JVP_COST * cost)) or much.steps == 20


def test_an_accelerator_takes_more_steps_and_a_slow_f_the_fewest_starts():
    assert effort(1e-4, torch.device("cuda")).steps == 200
    assert effort(1e-4, torch.device("cuda")).cap == 64
    assert effort(1.0, torch.device("cuda")).cap == 4
    assert (effort(10.0, CPU).cap, effort(10.0, CPU).steps) == (2, 20)
