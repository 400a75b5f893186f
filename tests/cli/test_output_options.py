"""Options that decide nothing that is computed, on every command that has them: each has its own effect."""

import json
import shutil
from importlib.resources import files
from unittest import mock

import pytest
import torch
import yaml
from support.atlas import children_here
from support.commands import COMMANDS, OUTPUT, SHAPE, options_of, save_sources, spelled, stub
from support.hub import Hub, asked_here
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.runs.folder import read_events

DEMO = str(files("fmprobe.demo") / "vit-mae-digits")
SMALL = "-n 4 --max-steps 60"
RUNS = {  # every command once, small; D, E: images; ENCODER: a model that needs a decoder; RUN, DETECTOR: folders
    "demo": "",
    "probe": f"m {SMALL}",
    "prototypes": f"m {SMALL}",
    "weights": f"m --data D --images 8 --no-null --use-ends {SMALL}",
    "memorization": f"m --data D --images 8 {SMALL}",
    "field": f"m {SMALL} --resolution 3 --no-basins",
    "convergence": "m -n 4",
    "capacity": "ENCODER --k 2 --images 16 -n 2 --max-steps 3 --image-size 28 --no-null",
    "contraction": "m -n 2 --inputs 4 --step 0",
    "residuals": "m -n 4 --steps 5",
    "compare": "m k --data D --images 12 --max-steps 5 --no-null --no-ceiling",
    "ood": "m --data D --images 64 --max-steps 5 --no-controls --ood E --ood-images 8",
    "score": "DETECTOR --data D",
    "fit-decoder": "ENCODER --images 16 --steps 2 --size tiny --image-size 28",
    "atlas": f"m {SMALL}",
    "models": "",
    "cache": "",
    "report": "RUN",
    "push": "RUN acme/run",
}
WITH = {name: [command for command in RUNS if name in options_of(command)] for name in sorted(OUTPUT)}
KEEPS_A_RUN = sorted(set(WITH["resume"]))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub")) as hub, asked_here(hub, tmp_path_factory.mktemp("cache")):
        yield hub


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_dinov2, written, hub):
    folder = tmp_path_factory.mktemp("places")
    detector = fmprobe.TrajectoryDetector(stub(), max_steps=20)
    images = torch.rand(48, *SHAPE, generator=torch.Generator().manual_seed(0))
    detector.fit(images[:32], held_out=images[32:], progress=False).save(folder / "detector")
    own = {"ENCODER": tiny_dinov2, "RUN": written("prototypes"), "DETECTOR": folder / "detector"}
    return save_sources(folder) | {name: str(path) for name, path in own.items()}


def run(command, out, places, *more, said=None):
    """The command, where ENCODER and the demo have their own models and others the stub; `said` in place of `RUNS`."""
    load = fmprobe.load

    def loaded(name, **arguments):
        return load(name, **arguments) if name in (places["ENCODER"], DEMO) else stub()

    arguments = [places.get(part, part) for part in (RUNS[command] if said is None else said).split()]
    where = ["--out", str(out)] if command in WITH["out"] else []
    with mock.patch("fmprobe.loading.load", loaded), children_here():
        done = CliRunner().invoke(app, [command, *arguments, *where, *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory, places):
    """Every command once: its output, and its folder."""
    found = {}
    for command in RUNS:
        out = tmp_path_factory.mktemp(command) / ("page.html" if command == "report" else "out")
        found[command] = run(command, out, places), out
    return found


@pytest.fixture(scope="module")
def repeated(tmp_path_factory, finished, places):
    """Each run once more in another folder, by nothing but its configuration, with every event told."""
    found = {}
    for command in KEEPS_A_RUN:
        out = tmp_path_factory.mktemp(f"{command}-repeated") / "out"
        verbose = ["--verbose"] if command in WITH["verbose"] else []
        config = str(finished[command][1] / "config.yaml")
        found[command] = run(command, out, places, "--config", config, *verbose, said=""), out
    return found


def again(command, finished, places, tmp_path, *more, said=None):
    """The command once more on a copy of what it left; fit-decoder takes no folder that is there already."""
    out = tmp_path / finished[command][1].name
    if command in KEEPS_A_RUN:
        shutil.copytree(finished[command][1], out)
        (out / "marker").touch()
    return run(command, out, places, *more, said=said), out


def test_every_command_is_run():
    assert set(RUNS) == set(COMMANDS)


@pytest.mark.parametrize("command", WITH["out"])
def test_out_is_where_results_go_and_nowhere_else(command, places, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(command, tmp_path / "there", places)
    assert list((tmp_path / "here").iterdir()) == []
    there = tmp_path / "there"
    written = {there.name} if there.is_file() else {path.name for path in there.iterdir()}
    assert written & {"there", "results.json", "config.json"}


@pytest.mark.parametrize("command", WITH["as_json"])
def test_json_is_all_that_is_printed(command, finished, places, tmp_path):
    done, _ = again(command, finished, places, tmp_path, "--json")
    assert json.loads(done.stdout)
    with pytest.raises(json.JSONDecodeError):
        json.loads(finished[command][0].stdout)


@pytest.mark.parametrize("command", WITH["quiet"])
def test_quiet_prints_nothing(command, finished, places, tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "")
    done, _ = again(command, finished, places, tmp_path, "--quiet")
    assert done.output == ""
    assert finished[command][0].output != ""


@pytest.mark.parametrize("command", WITH["verbose"])
def test_verbose_tells_every_event(command, finished, repeated):
    done, out = repeated[command]
    events = [event["event"] for event in read_events(out)]
    assert events
    told = [line.split(":")[0] for line in done.stderr.splitlines() if line.split(":")[0] in events]
    assert told == events
    assert not any(line.startswith(f"{events[0]}:") for line in finished[command][0].output.splitlines())


@pytest.mark.parametrize("command", WITH["resume"])
def test_no_resume_starts_anew_and_resume_goes_on(command, finished, places, tmp_path):
    config = ["--config", str(finished[command][1] / "config.yaml")]
    _, out = again(command, finished, places, tmp_path, *config, said="")
    assert (out / "marker").exists()
    run(command, out, places, "--no-resume")
    assert not (out / "marker").exists()


def decided(folder):
    """What results.json holds, without the times and the command that it was found in."""

    def timeless(value):
        if isinstance(value, dict):
            left_out = {"seconds", "total_seconds", "seconds_per_row", "date", "command"}
            return {key: timeless(item) for key, item in value.items() if key not in left_out}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / "results.json").read_text()))


@pytest.mark.parametrize("command", [*KEEPS_A_RUN, "fit-decoder"])
def test_the_configuration_of_a_run_holds_every_option_that_decides_something(command, finished):
    kept = yaml.safe_load((finished[command][1] / "config.yaml").read_text())
    arguments = {p.name for p in COMMANDS[command].params if p.param_type_name == "argument"}
    deciding = {spelled(p).lstrip("-") for name, p in options_of(command).items() if name not in OUTPUT}
    assert kept.pop("command") == command
    assert set(kept) == deciding | {name.replace("_", "-") for name in arguments}


@pytest.mark.parametrize("command", KEEPS_A_RUN)
def test_the_configuration_of_a_run_gives_the_run_again(command, finished, repeated):
    first, second = finished[command][1], repeated[command][1]
    assert decided(second) == decided(first)
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()


def test_the_configuration_of_a_decoder_gives_the_decoder_again(finished, places, tmp_path):
    first, second = finished["fit-decoder"][1], tmp_path / "again"
    run("fit-decoder", second, places, "--config", str(first / "config.yaml"), said="")
    fingerprints = [json.loads((folder / "config.json").read_text())["weights_sha256"] for folder in (first, second)]
    assert fingerprints[0] == fingerprints[1]
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()


def test_the_configuration_is_that_of_the_command_that_last_wrote_results(written, tmp_path):
    """The folder holds three commands; one that is refused, or that finds all done, changes nothing."""
    folder = tmp_path / "run"
    shutil.copytree(written("run"), folder)
    kept = (folder / "config.yaml").read_text()
    assert yaml.safe_load(kept)["command"] == "field"
    assert yaml.safe_load((written("prototypes") / "config.yaml").read_text())["command"] == "prototypes"
    first = written("prototypes") / "config.yaml"
    done = CliRunner().invoke(app, ["prototypes", "--config", str(first), "-o", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0
    assert (folder / "config.yaml").read_text() == kept
    (folder / "results.json").write_text("{")
    assert CliRunner().invoke(app, ["prototypes", "--config", str(first), "-o", str(folder)]).exit_code != 0
    assert (folder / "config.yaml").read_text() == kept
