"""Where nothing settles: what that means, and three commands that are worth trying, chosen by what was seen."""

import json
import shlex
from importlib.resources import as_file, files

import pytest
from support.commands import COMMANDS
from typer.testing import CliRunner

from fmprobe.autoencoder import Autoencoder
from fmprobe.cli import app
from fmprobe.probes.prototypes.nothing_settled import lines, nothing_settled
from fmprobe.runs.plan import Plan

STATUS = {"converged": 0, "slow": 0, "cycle": 0, "wandering": 0, "diverged": 0}
MODEL = Autoencoder(lambda x: x, None, image_shape=(3, 8, 8), latent_shape=(4,), provenance={"model": "m"})


def entry(regime, survives=None, **status):
    noise = {"exponent": {"regime": regime}, "status": {**STATUS, **status}, "starts": 16}
    return nothing_settled(MODEL, noise, Plan(16, max_steps=50), survives)["nothing_settled"]


@pytest.mark.parametrize(
    ("regime", "survives", "status", "first"),
    [
        ("still settling", None, {"slow": 16}, "probe m --max-steps 200"),
        ("chaotic", {"settles_to": None}, {"wandering": 16}, "capacity m --k 1"),
        ("chaotic", {"settles_to": 64}, {"wandering": 16}, "probe m --surrogate closed-form"),
        ("chaotic", None, {"wandering": 16}, "weights m --data IMAGES --use-ends"),
        ("quasi-periodic", None, {"converged": 4, "wandering": 12}, "probe m --tol"),
        ("cycle", None, {"cycle": 16}, "weights m"),
        ("diverged", None, {"diverged": 16}, "contraction m"),
        (None, None, {"wandering": 16}, "weights m"),
    ],
)
def test_three_commands_that_exist_fit_what_was_seen(regime, survives, status, first):
    found = entry(regime, survives, **status)
    commands = [one["command"] for one in found["next"]]
    assert len(set(commands)) == 3
    assert commands[0].startswith(f"fmprobe {first}")
    for command in commands:
        _, name, *options = shlex.split(command)
        known = {flag for parameter in COMMANDS[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert {option for option in options if option.startswith("-")} <= known
    assert found["meaning"].endswith(".")
    assert len(lines(found)) == 4


def test_a_run_in_which_nothing_settles_says_so_on_the_terminal_and_on_the_page(tmp_path):
    with as_file(files("fmprobe.demo") / "vit-mae-digits") as model:
        words = ["probe", str(model), "-n", "4", "--max-steps", "3", "-o", str(tmp_path / "r")]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        settles = CliRunner().invoke(app, ["probe", str(model), "-n", "8", "-o", str(tmp_path / "s")])
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert results["attractors"]["sizes"] == []
    for one in results["nothing_settled"]["next"]:
        assert one["command"] in done.output
    page = (tmp_path / "r" / "report.html").read_text()
    assert "Commands worth trying next" in page
    assert settles.exit_code == 0
    sweep = "Attractors against the merge threshold"  # of nothing it would be an empty plot
    assert sweep in (tmp_path / "s" / "report.html").read_text()
    assert sweep not in page
    assert "nothing_settled" not in json.loads((tmp_path / "s" / "results.json").read_text())
