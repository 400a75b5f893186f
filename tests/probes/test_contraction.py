"""Contraction, held to linear maps whose norms are known."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from support.maps import draws
from support.probes import DEMO, ran

import fmprobe
from fmprobe.dynamics.lipschitz import local_lipschitz
from fmprobe.probes.contraction import std_ratio

D = 5
MATRIX = 0.4 * draws(D, D, 4)
probe: Any = fmprobe.probe_contraction


def model_of(f):
    return fmprobe.from_functions(
        lambda x: f(x.flatten(1)), lambda z: z.reshape(-1, 1, 1, D), image_shape=(1, 1, D), latent_shape=(D,)
    )


@pytest.fixture(scope="module")
def found():
    return probe(model_of(lambda z: z @ MATRIX.T + 7), n=50, starts=4, steps=(0, 1, 2), batch_size=3)


def test_norm_and_radius_along_trajectories_are_the_matrix_s(found):
    norm = float(np.linalg.norm(MATRIX.numpy(), 2))
    radius = float(np.abs(np.linalg.eigvals(MATRIX.numpy())).max())
    torch.testing.assert_close(found.norms, torch.full((4, 3), norm), rtol=2e-3, atol=0)
    torch.testing.assert_close(found.radii, torch.full((4, 3), radius), rtol=2e-3, atol=0)
    rows = found.to_dict()
    assert [row["share_below_1"] for row in rows["radii"]] == [float(radius < 1)] * 3
    assert [row["share_below_1"] for row in rows["norms"]] == [float(norm < 1)] * 3
    json.dumps(rows, allow_nan=False)


def test_finite_differences_stay_under_the_norm_and_reach_it_where_all_directions_are_alike(found):
    assert (found.local <= found.norms * (1 + 1e-3)).all()
    assert (found.distant <= found.norms[:2, 0] * (1 + 1e-3)).all()
    turned = torch.linalg.qr(draws(D, D, 1))[0]
    estimate = local_lipschitz(lambda z: 0.3 * z @ turned, draws(6, D))
    torch.testing.assert_close(estimate, torch.full((6,), 0.3), rtol=1e-3, atol=0)
    pairs = probe(model_of(lambda z: 0.3 * z @ turned), n=4, starts=5, steps=(0,)).distant
    torch.testing.assert_close(pairs, torch.full((2,), 0.3), rtol=1e-3, atol=0)


def test_ratios_are_numpys_and_see_an_offset_or_not(found):
    latents = model_of(lambda z: z).sample_latents(50)
    offsets = torch.arange(5.0)
    rows = [latents[:20], latents[20:]]
    ratio: Any = std_ratio(lambda z: 0.2 * z + offsets, rows)
    before, after = latents.double().numpy(), (0.2 * latents + offsets).double().numpy()
    assert ratio["pooled"] == pytest.approx(after.std() / before.std(), rel=1e-5)
    assert ratio["across"] == pytest.approx(0.2, rel=1e-5)
    assert ratio["pooled"] > 1
    exact = (latents @ MATRIX.T).var(0, correction=0).mean() / latents.var(0, correction=0).mean()
    assert found.std_ratio["f"]["across"] == pytest.approx(float(exact.sqrt()), rel=1e-4)
    assert found.std_ratio["D"]["pooled"] == pytest.approx(1)
    assert set(found.std_ratio) == {"f", "E", "D"}


def test_batches_do_not_matter(found):
    again = probe(model_of(lambda z: z @ MATRIX.T + 7), n=50, starts=4, steps=(0, 1, 2), batch_size=64)
    torch.testing.assert_close(again.norms, found.norms, rtol=1e-3, atol=0)
    torch.testing.assert_close(again.local, found.local)
    assert again.std_ratio["f"]["pooled"] == pytest.approx(found.std_ratio["f"]["pooled"])


def test_an_orbit_that_leaves_and_a_map_without_a_derivative():
    leaving = probe(model_of(lambda z: z * torch.tensor(1e30)), n=4, starts=2, steps=(0, 3))
    assert leaving.norms[:, 1].isnan().all()
    assert leaving.to_dict()["norms"][1]["share_below_1"] is None
    cut = probe(model_of(lambda z: 0.5 * z.detach()), n=4, starts=2, steps=(0,))
    assert cut.norms is None
    assert "gradient" in cut.absent["norms"]
    torch.testing.assert_close(cut.local, torch.full((2, 1), 0.5), rtol=1e-3, atol=0)
    json.dumps([leaving.to_dict(), cut.to_dict()], allow_nan=False)


def test_an_encoder_alone_and_a_language_model(tiny, tiny_dinov2):
    encoder = probe(fmprobe.load(str(tiny_dinov2), device="cpu"), n=4, starts=2)
    assert set(encoder.std_ratio) == {"E"}
    assert "no latent map" in encoder.absent["f"]
    assert encoder.plot().axes[0].get_legend() is None
    language = probe(fmprobe.load(str(tiny("qwen3")), device="cpu"), n=4, starts=2, steps=(0, 2))
    assert set(language.std_ratio) == {"f"}
    assert language.norms.shape == (2, 2)
    assert len(language.plot().axes[0].lines) == 4


def test_bad_numbers_are_refused():
    for bad in ({"n": 1}, {"starts": 1}, {"steps": ()}, {"steps": (-1,)}):
        with pytest.raises(fmprobe.InputError, match="contraction needs"):
            probe(model_of(lambda z: z), **bad)
    with pytest.raises(fmprobe.InputError, match="two inputs"):
        std_ratio(lambda z: z, [torch.zeros(1, 3)])


def test_constant_outputs_have_no_spread_across():
    rows = draws(9, 2)
    ratio: Any = std_ratio(lambda z: torch.tensor([[1.0, 5.0]]).expand(len(z), 2), [rows[:4], rows[4:]])
    assert ratio["across"] == 0
    assert ratio["pooled"] == pytest.approx(2 / rows.double().numpy().std())


def test_outputs_or_inputs_that_are_not_finite_have_no_ratio():
    for value in (torch.nan, torch.inf):
        spoiled = std_ratio(lambda z, value=value: torch.where(z > 0, z, value), [draws(9, 2)])
        assert spoiled == {"pooled": None, "across": None}
    with pytest.raises(fmprobe.InputError, match="do not vary"):
        std_ratio(lambda z: z, [torch.ones(3, 2), torch.ones(2, 2)])


@pytest.mark.usefixtures("draws")
def test_the_command_leaves_what_the_function_finds(tmp_path, capsys):
    options = ["--inputs", 40, "--starts", 3, "--step", 1, "--step", 0, "--batch-size", 16]
    results = ran(capsys, tmp_path / "run", "contraction", "contraction", *options)
    model = fmprobe.load(str(DEMO), device="cpu")
    found = probe(model, n=40, starts=3, steps=(0, 1), batch_size=16).to_dict()
    assert results["contraction"] == json.loads(json.dumps(found))
    assert set(found["std_ratio"]) == {"f", "E", "D"}
    assert results["protocol"]["steps"] == [0, 1]
    assert (tmp_path / "run" / "contraction.png").stat().st_size > 1000
