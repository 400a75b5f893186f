"""What happens to the output of a command never decides what happens to its results."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from unittest import mock

import pytest
import typer
from support.runs import command, spawn

from fmprobe.cli import app

DEMO = files("fmprobe.demo") / "vit-mae-digits"
PROBE = ["probe", DEMO, "-n", 4, "--max-steps", 5, "--device", "cpu"]
COMMANDS = sorted(getattr(typer.main.get_command(app), "commands"))  # noqa: B009
ASCII = [{"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


def run(*arguments, more=None, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "check": False} | options
    environment = os.environ | (more or {})
    return subprocess.run([sys.executable, "-m", "fmprobe", *map(str, arguments)], env=environment, **options)


def left_pipe():
    """The end for writing of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def quiet(done):
    assert b"Traceback" not in (done.stderr or b"")
    assert b"Exception ignored" not in (done.stderr or b"")
    return done


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["--help"], ["probe", "--help"]], ids=str)
def test_a_reader_that_leaves_ends_nothing(arguments):
    writer = left_pipe()
    done = quiet(run(*arguments, stdout=writer))
    os.close(writer)
    assert done.returncode == 0
    assert b"fmprobe: " not in done.stderr


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["--help"]], ids=str)
def test_an_output_that_takes_nothing_is_said_in_one_line(arguments):
    with open("/dev/full", "wb") as full:
        done = quiet(run(*arguments, stdout=full))
    assert done.returncode == 2
    said = [line for line in done.stderr.decode().splitlines() if line.startswith("fmprobe: ")]
    assert len(said) == 1
    assert said[0].startswith("fmprobe: cannot write to standard output (No space left on device)")


@pytest.mark.parametrize("arguments", [["models"], ["report", "no/such/folder"]], ids=str)
@pytest.mark.parametrize("closed", ["stdout", "stderr", "both"])
def test_closed_streams_change_no_exit_code(arguments, closed):
    shell = {"stdout": ">&-", "stderr": "2>&-", "both": ">&- 2>&-"}[closed]
    command = f'"{sys.executable}" -m fmprobe {" ".join(arguments)} {shell}'
    done = quiet(subprocess.run(command, shell=True, capture_output=True, check=False))
    assert done.returncode == (0 if arguments == ["models"] else 2)


def test_an_error_that_nobody_can_read_keeps_its_exit_code():
    with open("/dev/full", "wb") as full:
        assert run("report", "no/such/folder", stderr=full).returncode == 2


def forked(stream, *arguments, encoding="utf-8"):
    """The exit code of a command whose standard streams both go to a file of the system."""

    def into():
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(stream, number)
            setattr(sys, name, open(number, "w", encoding=encoding, closefd=False))  # noqa: SIM115
        return command(*arguments)

    process = spawn(into)
    process.join()
    return process.exitcode


def test_a_run_whose_readers_leave_is_finished(tmp_path):
    writer = left_pipe()
    done = run(*PROBE, "-o", tmp_path / "run", stdout=writer, stderr=writer)  # the end of an interpreter writes too
    os.close(writer)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["attractors"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_run_under_a_name_that_the_terminal_lacks_is_finished(tmp_path):
    with open(tmp_path / "log", "w+b") as log:
        assert forked(log.fileno(), *PROBE, "-o", tmp_path / "ünï", encoding="ascii") == 0
    assert b"Traceback" not in (tmp_path / "log").read_bytes()
    quiet(again := run("report", tmp_path / "ünï", more=ASCII[1]))
    assert again.returncode == 0
    assert (tmp_path / "ünï" / "report.html").read_text(encoding="utf-8").count("Decoded attractors") > 0
    with open("/dev/full", "wb") as full:  # and told again, from disk, to a disk that is full
        assert forked(full.fileno(), *PROBE, "-o", tmp_path / "ünï", "--json", encoding="ascii") == 2


@pytest.mark.parametrize("environment", ASCII, ids=["ascii output", "ascii names"])
def test_an_error_about_a_name_that_the_terminal_lacks_is_one_line(environment, tmp_path):
    done = quiet(run("report", tmp_path / "ünï", more=environment))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


GONE = "fmprobe: the working folder has been deleted: change to another and run the command again"


def test_a_working_folder_deleted_before_a_new_interpreter_is_said_in_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = (
        f'cd "{gone}" && rmdir "{gone}" && exec "{sys.executable}" -c \'from fmprobe.cli import main; main()\' probe'
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = quiet(subprocess.run(shell, shell=True, capture_output=True, check=False, env=environment))
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [GONE]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder that a test may delete."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_deleted_working_folder_is_said_in_one_line(name, here, capfd):
    here.rmdir()
    assert command(name) == 2
    assert capfd.readouterr().err.splitlines() == [GONE]


def test_a_working_folder_deleted_on_the_way_is_said_in_one_line(here, capfd):
    def load(*_, **__):
        here.rmdir()
        return open("here").read()

    with mock.patch("fmprobe.runs.models.load_model", load):
        assert command("probe", "m") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == GONE
