"""surrogate_report: what it says of fidelity, agreement and the null."""

import json

import pytest
import torch
from support.surrogates import QUICK, narrow, quick, tiny_encoder

import fmprobe
from fmprobe.attractors import find_attractors
from fmprobe.probes.surrogate_report import _agreement, _chamfer, psnr, ssim

small = pytest.fixture(narrow, scope="module", autouse=True)


def test_psnr_and_ssim_have_their_known_values():
    a = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(psnr(a, a + 0.1), torch.full((2,), 20.0), atol=1e-4)
    assert torch.allclose(ssim(a, a), torch.ones(2), atol=1e-5)
    # Of two constant images only the luminance term is left (Wang et al. 2004, eq. 6).
    x, y = torch.full((1, 1, 16, 16), 0.4), torch.full((1, 1, 16, 16), 0.6)
    assert ssim(x, y).item() == pytest.approx((2 * 0.24 + 1e-4) / (0.16 + 0.36 + 1e-4), abs=1e-4)
    assert ssim(a, 1 - a).max() < 0  # structure turned over
    assert ssim(a[..., :8, :8], a[..., :8, :8]).min() == pytest.approx(1, abs=1e-5)


def test_agreement_of_a_map_with_itself_and_with_another():
    starts = torch.linspace(-2, 2, 20)[:, None].repeat(1, 2)

    def halves(z):  # two attractors, at -1 and 1
        return 0.5 * z + 0.5 * torch.sign(z)

    first = find_attractors(halves, starts=starts, max_steps=200)
    one = find_attractors(lambda z: 0.5 * z + 0.5, starts=starts, max_steps=200)
    assert _agreement(first, first) == {"both_converged": 20.0, "rand": 1.0, "basins": 1.0}
    other = _agreement(first, one)
    assert other["rand"] == 0.0
    assert other["basins"] == 0.0  # each basin is a half of the whole: a Jaccard index of exactly 0.5
    assert _chamfer(torch.zeros(2, 4), torch.full((3, 4), 0.5)) == pytest.approx(0.5)
    assert _chamfer(torch.zeros(0, 4), torch.zeros(3, 4)) is None


def test_a_whole_report(tiny, tmp_path):
    model = fmprobe.load(tiny("dinov2"))
    images = {"grey": torch.full((16, 3, 32, 32), 0.5)}
    report = fmprobe.surrogate_report(model, images=images, settings=QUICK, n=4, max_steps=20, progress=False)
    names = {"first", "other seed", "other size", "other data", "null"}
    assert report.fidelity.keys() == report.dynamics.keys() == names
    assert report.agreement.keys() == names - {"first"}
    assert report.fidelity["first"].keys() == {"held out", "leaves", "grey"}
    assert report.fidelity["first"]["leaves"]["l1"] != report.fidelity["null"]["leaves"]["l1"]
    assert report.fidelity["first"]["grey"]["l1_median"] == pytest.approx(0, abs=1e-6)
    json.dumps(report.to_dict())
    for name in names:
        assert name in str(report)


def test_models_that_it_is_not_for():
    with pytest.raises(fmprobe.InputError, match="pass null="):
        fmprobe.surrogate_report(tiny_encoder(), settings=QUICK)
    with pytest.raises(fmprobe.InputError, match="has a latent map already"):
        fmprobe.surrogate_report(tiny_encoder().with_decoder(quick(tiny_encoder())))


def test_a_report_on_latent_surrogates_is_refused():
    from fmprobe.surrogates.fit import FitSettings

    with pytest.raises(fmprobe.InputError, match="kind 'latent'"):
        fmprobe.surrogate_report(tiny_encoder(), settings=FitSettings(kind="latent"))
