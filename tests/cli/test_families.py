"""fmprobe probe on a tiny checkpoint of every kind: a complete run folder each time."""

import json

import pytest
from support.checkpoints import ENCODERS, LANGUAGE, OWN_DECODERS, SIDE, TIMM, TINY
from support.surrogates import QUICK
from typer.testing import CliRunner

from fmprobe.cli import app
from fmprobe.probes.prototypes import closed_form
from fmprobe.surrogates.fit import FitSettings


@pytest.fixture(autouse=True)
def least_diagram(monkeypatch):
    """The diagram that comes before the attractors has its own tests."""
    for name, value in {"KS": (2,), "STARTS": 2, "MAX_STEPS": 3}.items():
        monkeypatch.setattr(closed_form, name, value)


@pytest.mark.parametrize("name", TINY)
def test_probe_ends_with_a_complete_run_folder(tiny, name, tmp_path, monkeypatch):
    monkeypatch.setattr(FitSettings, "for_device", classmethod(lambda cls, device, kind="pixel": QUICK))
    size = [] if name in LANGUAGE or name.startswith("rae") or name == "mae" else ["--image-size", str(SIDE)]
    arguments = ["probe", str(tiny(name)), "--out", str(tmp_path), "-n", "4", "--max-steps", "8", *size]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert sum(results["orbits"]["noise"]["status"].values()) == 4
    assert len(results["residuals"]["norms"]) == 4
    assert results["model"]["tokens"]
    page = (tmp_path / "report.html").read_text()
    assert f"<h1>{tiny(name).name}</h1>" in page
    assert (tmp_path / "attractors" / "attractors.safetensors").is_file()
    if name in LANGUAGE:
        assert results["model"]["image_shape"] == []
        assert "random embeddings" in results["model"]["space"]
        assert "random embeddings" in outcome.output
        assert "no decoder to images" in page
    else:
        assert (tmp_path / "prototypes" / "index.csv").is_file()
        assert results["decoder"]["kind"] == ("own" if name in OWN_DECODERS else "surrogate")


@pytest.mark.parametrize("tokens", ["cls", "pooled", "all"])
def test_other_tokens_are_probed_and_the_decoder_brings_its_own(tiny, tmp_path, tokens):
    fit = ["fit-decoder", str(tiny("dinov2")), "--out", str(tmp_path / "d"), "--tokens", tokens, "--steps", "3"]
    outcome = CliRunner().invoke(app, [*fit, "--images", "16", "--size", "tiny"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    probe = ["probe", str(tiny("dinov2")), "--decoder", str(tmp_path / "d"), "--out", str(tmp_path / "run")]
    outcome = CliRunner().invoke(app, [*probe, "-n", "4", "--max-steps", "10"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    model = json.loads((tmp_path / "run" / "results.json").read_text())["model"]
    assert model["tokens"] == tokens
    assert model["latent_shape"] == ([17, 24] if tokens == "all" else [24])


def test_every_kind_of_checkpoint_is_covered():
    assert TINY.keys() == {*ENCODERS, *TIMM, *OWN_DECODERS, *LANGUAGE}
