"""`probe` of an encoder without a decoder: the diagram first, then a surrogate, whose attractors are found."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
from support.surrogates import QUICK
from typer.testing import CliRunner

from fmprobe.cli import app
from fmprobe.errors import InputError
from fmprobe.probes.prototypes import closed_form
from fmprobe.runs.models import load_model, settings_of, with_decoder
from fmprobe.surrogates.cache import cached_decoder


@pytest.fixture(scope="module")
def run(tiny_dinov2, tmp_path_factory):
    """Runs a command on an encoder without a decoder, with a trained surrogate of one step."""

    folder = tmp_path_factory.mktemp("runs")

    def quick(model, settings=None, **how):
        chosen = settings if settings is not None and settings.kind != "pixel" else replace(QUICK, steps=1)
        return cached_decoder(model, chosen, **how)

    def call(words, out):
        with mock.patch("fmprobe.surrogates.cache.cached_decoder", quick):
            name, *options = words.split()
            place = ("-n", "4", "--max-steps", "10", "--image-size", "28", "-o", str(folder / out))
            done = CliRunner().invoke(app, [name, str(tiny_dinov2), *options, *place])
        if done.exception is not None and not isinstance(done.exception, InputError | SystemExit):
            raise done.exception
        path = folder / out / "results.json"
        return f"{done.output}{done.exception or ''}", json.loads(path.read_text()) if path.exists() else {}

    return SimpleNamespace(call=call, folder=folder)


@pytest.fixture(scope="module")
def probed(run):
    """What `probe` printed, and its results."""
    return run.call("probe", "probed")


@pytest.fixture
def least(monkeypatch):
    """The diagram has the fewest points and steps."""
    for name, value in {"KS": (2,), "STARTS": 2, "MAX_STEPS": 4}.items():
        monkeypatch.setattr(closed_form, name, value)


def test_it_begins_with_what_survives_and_takes_the_largest_k_at_which_orbits_settle(run, probed):
    output, results = probed
    found = results["what_survives"]
    summary = output[output.rindex("what survives ") :]
    assert summary.index("\nmodel ") < summary.index("\ndecoder ") < summary.index("\norbits ")
    k = found["settles_to"] or 2
    assert found["sentence"] in output
    assert results["model"]["latent_shape"] == ([k] if k < 384 else [16, 24])
    assert results["decoder"]["kind"] == "surrogate"
    assert results["attractors"]["count"] is not None
    assert {point["set"] for point in results["capacity"]} == {"A", "B", "null"}
    page = (run.folder / "probed" / "report.html").read_text()
    assert 0 < page.index("What survives") < page.index("Decoded attractors")
    again, same = run.call("probe", "probed")
    assert "holds this run already" in again
    assert same == results


def test_every_reading_is_told_as_soon_as_it_is_known_and_the_surrogate_before_the_count(probed):
    output, results = probed
    told = [output.index(f"images {name}, k = {k}: ") for name in "AB" for k in closed_form.KS]
    told += [output.index("random weights, all features: "), output.index(results["what_survives"]["sentence"])]
    told += [output.index("median colour"), output.index("relative feature error"), output.index("starts from N(0, I)")]
    assert told == sorted(told)


def test_commands_that_go_on_take_the_decoder_of_the_run(run, probed):
    _, results = probed
    shutil.copytree(run.folder / "probed", run.folder / "field")
    drawn, field = run.call("field --resolution 3 --no-basins", "field")
    assert "field" in field, drawn
    assert field["decoder"] == results["decoder"]


@pytest.mark.usefixtures("least")
def test_a_trained_surrogate_that_paints_badly_is_not_used(run):
    output, results = run.call("probe --surrogate trained", "bad")
    assert "is not used for a finding; one in closed form takes its place" in output
    assert results["decoder"]["architecture"].startswith("linear map")
    with mock.patch("fmprobe.autoencoder.Autoencoder.surrogate_warning", None):
        output, results = run.call("probe --surrogate trained", "good")
    assert "is not used" not in output
    assert "transformer" in results["decoder"]["architecture"]
    assert results["what_survives"]["sentence"] in output


def test_a_command_that_offers_no_choice_takes_the_closed_form_of_all_features_on_a_cpu(tiny_dinov2, capsys):
    encoder = load_model(str(tiny_dinov2), image_size=28, device="cpu")
    whole = with_decoder(encoder, 3)
    assert whole.surrogate is not None
    assert (whole.surrogate.kind, whole.surrogate.info["settings"]["seed"]) == ("linear", 3)
    assert whole.latent_shape == encoder.latent_shape
    said = capsys.readouterr().out
    assert re.search(r"fitting one .*; 1,628 images to encode take about .+\n", said)
    with_decoder(encoder, 3)
    assert "found in the cache" in (again := capsys.readouterr().out)
    assert "fitting" not in again
    trained = settings_of("pixel", encoder, 3)
    assert (trained.kind, trained.seed) == ("pixel", 3)


def test_a_surrogate_of_no_kind_is_refused_in_one_line(run):
    output, results = run.call("probe --surrogate odd", "odd")
    assert "--surrogate 'odd' is unknown: expected one of trained, closed-form" in output
    assert results == {}


def test_a_model_with_a_decoder_takes_none(tmp_path):
    from importlib.resources import as_file, files

    with as_file(files("fmprobe.demo") / "vit-mae-digits") as model:
        done = CliRunner().invoke(app, ["probe", str(model), "--surrogate", "trained", "-o", str(tmp_path / "r")])
    assert "leave --surrogate out" in f"{done.output}{done.exception}"


@pytest.mark.usefixtures("least")
def test_without_a_null_the_diagram_says_so(run):
    def none(model, null):
        if null is not False:
            raise InputError("it cannot be loaded with random weights (no name): pass null=")

    with mock.patch("fmprobe.probes.capacity._null", none):
        output, results = run.call("probe --surrogate closed-form", "alone")
    assert "there is no null: it cannot be loaded with random weights" in output
    assert results["what_survives"]["of_the_encoder"] is None
