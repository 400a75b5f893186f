"""Convergence: on maps whose rate is known, steps are those of prop. A.9."""

import json
import math

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from support.maps import double_well, draws, linear, rotation
from support.probes import DEMO, ran
from support.runs import command

import fmprobe
from fmprobe.probes.convergence import convergence_scatter


def test_a_linear_map_takes_the_steps_that_its_rate_foretells():
    starts = draws(40, 1) * torch.logspace(-1, 3, 40)[:, None]
    found = fmprobe.probe_convergence(linear(0.8), starts=starts, eps=1e-2)
    left = starts[starts.abs()[:, 0] > 1e-2, 0].double().abs()
    for points in found.estimates.values():  # one dimension: norm and radius are both |0.8|
        exact = (1e-2 / left).log() / math.log(0.8)
        assert points["measured"] == exact.ceil().long().tolist()
        assert points["estimated"] == pytest.approx(exact.tolist(), rel=1e-3)
        assert points["pearson"] == pytest.approx(pearsonr(points["measured"], points["estimated"])[0])
        assert points["spearman"] == pytest.approx(spearmanr(points["measured"], points["estimated"])[0])
        assert points["pearson"] > 0.99
        assert points["median_ratio"] == pytest.approx(1, abs=0.1)
    assert found.attractors == 1
    assert found.left_out["spectral_norm"]["started within eps"] == 40 - len(left)
    assert sum(found.left_out["spectral_norm"].values()) + len(left) == 40


def test_a_map_that_is_not_normal_is_slower_to_its_norm_than_to_its_radius():
    """Norm 1.2 and radius 0.5: the paper's rho gives no estimate, and that is said."""
    matrix = torch.tensor([[0.5, 1.0], [0.0, 0.5]])
    found = fmprobe.probe_convergence(lambda z: z @ matrix.T.to(z), starts=10 * draws(20, 2))
    assert found.left_out["spectral_norm"]["rho 1 or more"] == 20
    assert found.estimates["spectral_norm"]["measured"] == []
    assert found.estimates["spectral_norm"]["pearson"] is None
    assert len(found.estimates["spectral_radius"]["measured"]) == 20
    json.dumps(found.to_dict(), allow_nan=False)


def test_each_start_is_compared_with_its_own_attractor():
    """Two wells in each of two coordinates, all at rate 0.8; far starts fall quicker at first."""
    found = fmprobe.probe_convergence(double_well, starts=draws(60, 2), eps=1e-3)
    assert found.attractors == 4
    points = found.estimates["spectral_radius"]
    assert points["pearson"] > 0.5
    assert len(points["measured"]) > 50


def test_orbits_that_do_not_settle_are_left_out_and_counted():
    found = fmprobe.probe_convergence(rotation(0.1234), starts=draws(5, 2).double(), max_steps=50)
    assert found.left_out["spectral_norm"]["no attractor"] == 5
    assert found.estimates["spectral_norm"]["median_ratio"] is None
    json.dumps(found.to_dict(), allow_nan=False)
    convergence_scatter(found.to_dict())


def test_the_result_does_not_depend_on_the_batch_and_takes_a_model():
    model = fmprobe.from_functions(
        lambda x: 0.7 * x.flatten(1) + 0.1, lambda z: z.reshape(-1, 1, 2, 2), image_shape=(1, 2, 2), latent_shape=(4,)
    )
    a, b = (fmprobe.probe_convergence(model, 20, batch_size=size) for size in (3, 64))
    assert a.estimates == b.estimates
    assert a.estimates["spectral_norm"]["median_ratio"] == pytest.approx(1, abs=0.1)
    axes = convergence_scatter(json.loads(json.dumps(a.to_dict()))).axes[0]
    assert "20 starts" in axes.get_legend_handles_labels()[1][0]
    with pytest.raises(fmprobe.InputError, match="eps"):
        fmprobe.probe_convergence(model, 2, eps=0)


@pytest.mark.usefixtures("draws")
def test_the_command_leaves_what_the_function_finds(tmp_path, capsys):
    options = ["--starts", 8, "--max-steps", 300, "--batch-size", 8]
    results = ran(capsys, tmp_path / "run", "convergence", "convergence", *options)
    model = fmprobe.load(str(DEMO), device="cpu")
    found = fmprobe.probe_convergence(model, 8, max_steps=300, batch_size=8).to_dict()
    assert results["convergence"] == json.loads(json.dumps(found))
    assert len(found["estimates"]["spectral_radius"]["measured"]) > 2
    assert results["protocol"]["n"] == 8
    assert (tmp_path / "run" / "convergence.png").stat().st_size > 1000


def test_a_distance_that_is_none_is_refused_before_anything_is_loaded(tmp_path, capsys):
    assert command("convergence", "nowhere", "--eps", 0, "-o", tmp_path / "run") == 2
    assert "eps must be positive" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
