"""`fmprobe atlas` probes many models by name, each in a process of its own, and compares them on one page."""

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from unittest import mock

import pytest
from support.atlas import children_here
from support.checkpoints import save_mae
from support.commands import COMMANDS, OUTPUT, options_of, types_of
from support.runs import wait_for
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.cli.atlas import OOD, child
from fmprobe.cli.atlas.asked import Asked, asked_for
from fmprobe.cli.atlas.child import run_child
from fmprobe.files import read_json
from fmprobe.stopping import Stopped

FEW = ["-n", "4", "--max-steps", "60"]
BAD = "no/such-model"
DEMO = Asked("demo", {}).place


def atlas(*arguments):
    """The command with children in this process: what it printed, and the words of the children."""
    with children_here() as ran:
        done = CliRunner().invoke(app, ["atlas", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit | fmprobe.InputError):
        raise done.exception
    return done, ran.words


def models_in(folder):
    return read_json(folder / "results.json")["models"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A list of a tiny model with options of its own."""
    folder = tmp_path_factory.mktemp("list")
    save_mae(folder / "tiny mae")
    text = f"# what is here\n\n'{folder}/tiny mae' --seed 3 -n 2  # in its own way\n{BAD}\n"
    (folder / "list.txt").write_text(text, encoding="utf-8-sig")  # as some editors save it
    return folder / "list.txt"


@pytest.fixture(scope="module")
def made(tmp_path_factory, listed):
    """The demo model, one that fails, and one from a list: what was printed, the words of the children, the folder."""
    out = tmp_path_factory.mktemp("atlas") / "out"
    done, words = atlas("demo", BAD, "demo", "--list", listed, *FEW, "-o", out)
    return done, words, out


def test_each_model_is_a_run_of_probe_in_a_folder_of_its_own(made, listed):
    done, words, out = made
    assert done.exit_code == 0, done.output
    assert [word[0] for word in words] == ["probe"] * 3
    assert "demo is named twice" in done.output
    assert f"{BAD} is named twice" in done.output
    for name, found in models_in(out).items():
        assert (out / name / "report.html").is_file() == (found["steps"]["probe"]["error"] is None)
    own = next(word for word in words if "tiny mae" in word[1])
    assert own == ["probe", f"{listed.parent}/tiny mae", "--starts", "2", "--max-steps", "60", "--seed", "3", *own[-2:]]
    assert own[-1].startswith(f"{out}/tiny-mae-")


def test_a_model_that_fails_is_a_row_with_its_reason_and_the_others_go_on(made):
    done, _, out = made
    models = {found["name"]: found for found in models_in(out).values()}
    assert list(models) == ["demo", BAD, "tiny mae"]
    assert "not in the local cache" in models[BAD]["steps"]["probe"]["error"]
    assert {name: found.get("starts") for name, found in models.items()} == {"demo": 4, BAD: None, "tiny mae": 2}
    assert "failed" in done.output


def test_rows_say_what_the_runs_found(made):
    _, _, out = made
    for name, found in models_in(out).items():
        if found["steps"]["probe"]["error"] is None:
            run = read_json(out / name / "results.json")
            assert found["settled"] == run["orbits"]["noise"]["status"]["converged"]
            assert found["exponent"] == run["orbits"]["noise"]["exponent"]["median"]
            assert found["attractors"] == run["attractors"]["count"]
            assert found["family"] == "mae"
            assert found["seconds"] == run["total_seconds"]


def test_what_is_done_is_not_computed_again_and_what_failed_is_tried_again(made, listed, tmp_path):
    out = shutil.copytree(made[2], tmp_path / "elsewhere")
    done, words = atlas("demo", BAD, "--list", listed, *FEW, "-o", out)
    assert [word[1] for word in words] == [BAD]
    assert done.output.count("is done already") == 2
    assert models_in(out) == models_in(made[2])
    # A run that is no more there is made again; more models may be named, and fewer.
    shutil.rmtree(out / "demo")
    assert [word[1] for word in atlas("--list", listed, *FEW, "-o", out)[1]] == [BAD]
    assert len(atlas("demo", *FEW, "-o", out)[1]) == 1
    assert list(models_in(out)) == ["demo"]


def test_a_stop_keeps_what_is_done_and_the_same_command_goes_on(made, listed, tmp_path):
    out = shutil.copytree(made[2], tmp_path / "out")
    shutil.rmtree(out / "demo")
    arguments = ["atlas", BAD, "demo", "--list", str(listed), *FEW, "-o", str(out)]
    with mock.patch("fmprobe.cli.atlas.run_child", side_effect=["no", Stopped(signal.SIGINT)]), pytest.raises(Stopped):
        CliRunner().invoke(app, arguments)
    assert {found["name"]: found.get("starts") for found in models_in(out).values()}["tiny mae"] == 2
    assert "Not probed yet" in (out / "atlas.html").read_text()
    assert [word[1] for word in atlas(*arguments[1:])[1] if word[1] != BAD] == [DEMO]
    assert "Not probed yet" not in (out / "atlas.html").read_text()


def test_other_options_are_refused_and_no_resume_starts_anew(made, tmp_path):
    out = shutil.copytree(made[2], tmp_path / "out")
    done, words = atlas("demo", "-n", 5, "-o", out)
    assert "holds another run" in str(done.exception)
    assert words == []
    done, words = atlas("demo", "-n", 2, "--max-steps", 60, "-o", out, "--no-resume")
    assert done.exit_code == 0
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["demo"]
    assert len(words) == 1


def test_if_no_model_can_be_probed_the_page_is_there_and_the_exit_code_is_2(tmp_path):
    done, _ = atlas(BAD, "-o", tmp_path / "out")
    assert isinstance(done.exception, fmprobe.InputError)
    assert "none of the 1 models could be probed" in str(done.exception)
    assert BAD in (tmp_path / "out" / "atlas.html").read_text()


def test_a_run_that_was_damaged_is_a_row_with_its_reason(made, tmp_path):
    out = shutil.copytree(made[2], tmp_path / "out")
    results = read_json(out / "demo" / "results.json")
    for change in ({"attractors": 3}, {"schema": 99}):
        (out / "demo" / "results.json").write_text(json.dumps(results | change))
        done, _ = atlas("demo", BAD, *FEW, "-o", out)
        assert isinstance(done.exception, fmprobe.InputError)
        assert "results.json" in models_in(out)["demo"]["steps"]["probe"]["error"]
        (out / "demo" / "results.json").write_text(json.dumps(results))
        assert atlas("demo", BAD, *FEW, "-o", out)[0].exit_code == 0


def test_the_folder_of_a_model_is_its_own(tmp_path):
    for place in ("a/model", "b/model"):
        (tmp_path / place).mkdir(parents=True)
    lines = [f"{tmp_path}/a/model", f"{tmp_path}/b/model", "org/model", "org/model -n 3", "demo", "demo --seed 1"]
    (tmp_path / "list").write_text("\n".join(lines))
    common = {"seed": 1}
    folders = [one.folder(common) for one in asked_for([], tmp_path / "list", common)]
    assert len(set(folders)) == len(folders) == 5  # the last line says what all share
    assert folders[2] == "org--model"
    assert folders[4] == "demo"
    assert all(folder.startswith("model-") for folder in folders[:2])
    again = asked_for([f"{tmp_path}/c/../a/model/", "hf-hub:org/model"], None, common)
    assert {one.folder(common) for one in again} < {*folders, again[0].folder(common)}


@pytest.mark.parametrize(
    ("arguments", "list_", "message"),
    [
        ([], None, "no model: name at least one"),
        ([""], None, "expected the name of a model"),
        (["--list", "LIST"], "# nothing\n\n", "names no model"),
        (["--list", "LIST"], "a\nb 'c", "line 2: No closing quotation"),
        (["--list", "LIST"], "--seed 1", "line 1: --seed': expected the name of a model"),
        (["--list", "LIST"], "a --paint", "line 1: No such option: --paint"),
        (["--list", "LIST"], "a b", "line 1: .*unexpected extra argument"),
        (["--list", "LIST"], "a -n 0", "line 1: Invalid value"),
        (["--list", "LIST"], "a -o there", "line 1: --out belongs to the atlas"),
        (["--list", "LIST"], "a --measure metres", "squared, relative, rms"),
        (["--list", "LIST"], "a --help", "line 1: No such option"),
        (["--list", "LIST"], "\udcff", "no text in UTF-8"),
        (["--list", "nowhere"], None, "--list nowhere cannot be read"),
        (["demo", "--measure", "metres"], None, "squared, relative, rms"),
        (["demo", "--surrogate", "best"], None, "trained, closed-form"),
        (["demo", "--data", "D"], None, "both --data and --ood"),
        (["demo", "--ood", "D"], None, "both --data and --ood"),
        (["demo", "--images", "64"], None, "both --data and --ood"),
        (["demo", "--data", "D", "--ood", "D", "--ood", "D"], None, "'D' is taken"),
    ],
)
def test_nonsense_ends_in_one_line_before_anything_is_computed(arguments, list_, message, tmp_path):
    if list_ is not None:
        (tmp_path / "list").write_bytes(list_.encode("utf-8", "surrogateescape"))
    given = [str(tmp_path / "list") if word == "LIST" else word for word in arguments]
    done, words = atlas(*given, "-o", tmp_path / "out")
    assert isinstance(done.exception, fmprobe.InputError), done.output
    with pytest.raises(fmprobe.InputError, match=message):
        raise done.exception
    assert "\n" not in str(done.exception)
    assert words == []
    assert not (tmp_path / "out").exists()


def test_a_launcher_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done, words = atlas("demo", "-o", tmp_path / "out")
    assert "without torchrun" in str(done.exception)
    assert words == []


def value_of(name):
    """A value that an option of `probe` takes."""
    types = types_of("probe", name)
    known = {"measure": "rms", "merge": "cosine", "polish": "anderson", "surrogate": "trained"}
    return known.get(name) or ("65" if int in types else "0.125" if float in types else "other")


PASSED = sorted(set(options_of("atlas")) - OUTPUT - {"names", "data", "ood", "images"})


@pytest.mark.parametrize("name", PASSED)
def test_every_option_reaches_every_model_as_it_was_given(name, tmp_path):
    option = options_of("probe")[name]
    given = [max(option.opts, key=len)] + ([] if bool in types_of("probe", name) else [value_of(name)])
    with mock.patch("fmprobe.cli.atlas.run_child", return_value="no") as ran:
        CliRunner().invoke(app, ["atlas", "org/a", "org/b", *given, "-o", str(tmp_path / "out")])
    words = [call.args[0] for call in ran.call_args_list]
    assert words == [["probe", f"org/{x}", *given, "--out", str(tmp_path / "out" / f"org--{x}")] for x in "ab"]
    read = COMMANDS["probe"].make_context("probe", words[0][1:])
    assert str(read.params[name]) == (value_of(name) if len(given) == 2 else "True")


def test_options_of_probe_that_an_atlas_lacks_are_its_own_or_those_of_one_model():
    assert set(options_of("probe")) - set(options_of("atlas")) == {
        *("verbose", "formats", "dpi"),
        *("revision", "decoder"),
    }


def test_detection_runs_beside_the_probe_and_takes_what_it_knows(tmp_path):
    with mock.patch("fmprobe.cli.atlas.run_child", return_value=None) as ran:
        images = ["--data", "D", "--ood", "x=E", "--ood", "F", "--images", "64"]
        arguments = ["org/a", *images, "-n", "3", "--tol", "0.1", "--device", "cpu", "-o", str(tmp_path / "out")]
        CliRunner().invoke(app, ["atlas", *arguments])
    place = tmp_path / "out" / "org--a"
    options = ["--tol", "0.1", "--device", "cpu"]
    assert ran.call_args_list[1].args[0] == ["ood", "org/a", *images, *options, "--out", str(place / "ood")]
    assert set(OOD) <= {*options_of("ood"), "seed"}


SCRIPT = "import os, sys, signal, time\n"


@pytest.fixture
def program(monkeypatch):
    """Makes the children run some lines of Python in place of fmprobe."""

    def run(lines):
        monkeypatch.setattr(child, "PROGRAM", (sys.executable, "-c", SCRIPT + lines))

    return run


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("print('found')", None),
        ("print('fmprobe: a bad  name', file=sys.stderr); sys.exit(2)", "a bad name"),
        ("raise RuntimeError('a fault')", "RuntimeError: a fault"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its process was ended by SIGKILL, as it does where memory runs out"),
        ("sys.exit(3)", "its process ended with exit code 3"),
        ("print('10%\\r20%', end=''); sys.exit(1)", "20%"),
    ],
)
def test_why_a_child_failed_is_said_in_one_line(lines, reason, program, tmp_path):
    program(lines)
    assert run_child(["probe"], tmp_path / "log") == reason


def test_a_child_that_takes_long_is_heard(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(child, "EVERY", 0.02)
    program("print('half of it', flush=True); time.sleep(1)")
    assert run_child([], tmp_path / "log") is None
    assert "s: half of it" in capsys.readouterr().out


def test_a_stop_reaches_the_child_once_and_waits_for_it(program, tmp_path, monkeypatch):
    log = tmp_path / "log"
    program(
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), print('kept', flush=True), sys.exit(143)))\n"
        "print(os.getsid(0), flush=True); time.sleep(60)"
    )

    def stopped(_):
        wait_for(lambda: bool(log.read_text()))
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(child, "_ended", stopped)
    with pytest.raises(Stopped):
        run_child([], log)
    session, said = log.read_text().split()
    assert said == "kept"
    assert int(session) != os.getsid(0)  # a Ctrl-C at the terminal would be a second signal


def test_no_two_models_are_in_memory_at_once(program, tmp_path):
    """Each child ends before the next begins."""
    program(f"open({str(tmp_path / 'times')!r}, 'a').write(f'{{time.time()}} '); time.sleep(0.1); sys.exit(2)")
    CliRunner().invoke(app, ["atlas", *"abcd", "-o", str(tmp_path / "out")])
    begun = [float(word) for word in (tmp_path / "times").read_text().split()]
    assert len(begun) == 4
    assert min(later - before for before, later in pairwise(begun)) >= 0.1


def test_the_atlas_itself_holds_no_model(tmp_path):
    """Its own process does not even import torch; the model is loaded by a child."""
    arguments = ["fmprobe", "atlas", "demo", "-n", "2", "--max-steps", "5", "-o", str(tmp_path / "out")]
    lines = f"""
import sys
sys.argv = {arguments!r}
from fmprobe.cli import main
try:
    main()
except SystemExit as end:
    print("code", end.code or 0, "torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "code 0 False False", done.stdout + done.stderr
    assert (tmp_path / "out" / "demo" / "report.html").is_file()
