"""Runs that are killed or stopped go on and end as undisturbed ones; several processes end as one."""

import os
import shutil
import signal
import subprocess

import pytest
from support.runs import STARTS, launch, probe, results_of, shards_of, spawn, wait_for

from fmprobe import AttractorSet, InputError
from fmprobe.files import read_json
from fmprobe.report.page import write_report
from fmprobe.runs.folder import read_events

QUICK = 0.002  # seconds a call of f


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert probe(out) == 0
    return out


def same(out, undisturbed):
    """Equal but for the rounding of f in batches of other sizes."""
    ours, theirs = AttractorSet.load(out / "attractors"), AttractorSet.load(undisturbed / "attractors")
    for name in ("labels", "sizes"):
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()
    for name in ("steps", "status", "periods"):
        assert getattr(ours.orbits, name).tolist() == getattr(theirs.orbits, name).tolist()
    assert (ours.orbits.ends - theirs.orbits.ends).abs().max() <= 1e-6
    assert (ours.latents - theirs.latents).abs().max() <= 1e-6
    one, other = results_of(out), results_of(undisturbed)
    exponents = [found["orbits"]["noise"].pop("exponent") for found in (one, other)]
    assert one["orbits"] == other["orbits"]
    numbers = [[found.pop("median"), *found.pop("interval")] for found in exponents]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
    factors = [found.pop("words").rpartition(" by ")[0] for found in exponents]  # the factor is rounded
    assert factors[0] == factors[1]
    assert exponents[0] == exponents[1]
    assert one["residuals"].keys() == other["residuals"].keys()
    assert not (out / "shards").exists()
    return True


def killed(out, after):
    """A run that was killed once it had left `after` shards or more."""
    process = spawn(probe, out, seconds=QUICK)
    wait_for(lambda: len(shards_of(out)) >= after)
    process.kill()
    process.join()
    return process


def test_a_run_killed_at_ten_moments_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    out = tmp_path / "run"
    for moment in range(10):
        before = {path: path.stat().st_mtime_ns for path in shards_of(out)}
        assert killed(out, after=2 * moment + 1).exitcode == -signal.SIGKILL
        after = {path: path.stat().st_mtime_ns for path in shards_of(out)}
        assert before.items() <= after.items()  # nothing that was written is done again
        with pytest.raises(InputError, match="has not finished"):
            write_report(out)
    assert len(shards_of(out)) < 24
    assert probe(out) == 0
    assert same(out, undisturbed)
    kept = [event["kept"] for event in read_events(out) if event["event"] == "iterate"]
    assert kept == sorted(kept)
    assert kept[-1] >= 38
    assert not list(out.rglob(".*"))


def test_a_run_killed_while_it_writes_its_results_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    out = tmp_path / "run"
    for name in ("attractors/attractors.safetensors", "attractors/attractors.json", "prototypes", "results.json"):
        process = spawn(probe, out)
        wait_for(lambda name=name: (out / name).exists() or bool(list((out / name).parent.glob(f".{name}*"))))
        process.kill()
        process.join()
    assert probe(out) == 0
    assert same(out, undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_keeps_what_has_ended_and_says_how_to_go_on(undisturbed, tmp_path, number, code):
    out, log = tmp_path / "run", tmp_path / "log"
    process = spawn(probe, out, seconds=QUICK, log=log)
    wait_for(lambda: len(shards_of(out)) >= 3)
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == code
    line = log.read_text().splitlines()[-1]
    kept = read_events(out)[-1]["kept"]
    assert f"stopped by {number.name}: {kept} of {STARTS} starts are kept in {out}" in line
    assert 3 * 2 <= kept < STARTS
    assert probe(out) == 0
    assert next(e["kept"] for e in reversed(read_events(out)) if e["event"] == "iterate") == kept
    assert same(out, undisturbed)


def test_several_processes_end_as_one(undisturbed, tmp_path):
    out, log, processes = tmp_path / "run", tmp_path / "log", 3
    team = launch(processes, probe, out, seconds=QUICK, log=log)
    for process in team:
        process.join()
    assert [process.exitcode for process in team] == [0] * processes
    assert same(out, undisturbed)
    events = read_events(out)
    assert next(e["processes"] for e in events if e["event"] == "iterate") == processes
    shards = [e for e in events if e["event"] == "shard"]
    assert {e["process"] for e in shards} == set(range(processes))
    assert sum(e["orbits"] for e in shards) == STARTS  # none is done twice
    assert log.read_text().count("report  ") == 1


def test_a_killed_run_goes_on_with_another_number_of_processes(undisturbed, tmp_path):
    out = tmp_path / "run"
    team = launch(2, probe, out, seconds=QUICK)
    wait_for(lambda: len(shards_of(out)) >= 6)
    for process in team:
        process.kill()
        process.join()
    assert probe(out) == 0
    assert same(out, undisturbed)


def test_an_error_of_one_process_ends_all_with_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    log = tmp_path / "log"
    team = launch(2, probe, tmp_path / "file", log=log)
    for process in team:
        process.join()
    assert [process.exitcode for process in team] == [2, 2]
    lines = [line for line in log.read_text().splitlines() if line.startswith("fmprobe:")]
    assert len(lines) == 1
    assert "is a file" in lines[0]
    assert "Traceback" not in log.read_text()


def test_verbose_tells_the_events(tmp_path, capfd):
    assert probe(tmp_path / "run", "--verbose", n=4) == 0
    said = capfd.readouterr().err
    events = read_events(tmp_path / "run")
    assert [event["event"] for event in events] == ["begin", "iterate", *["shard"] * 4, "finished"]
    assert all(event["time"] > 1.6e9 for event in events)
    assert "shard: search shards, orbits 1, process 0" in said


def test_another_protocol_is_refused_and_no_resume_starts_anew(tmp_path, capfd):
    out = tmp_path / "run"
    killed(out, after=3)
    kept = shards_of(out)
    assert probe(out, "--tol", 1e-6) == 2
    assert "tol: None there, 1e-06 now" in capfd.readouterr().err
    assert shards_of(out) == kept
    (out / "inner").mkdir()
    (out / "inner" / "manifest.json").write_text("{}")  # another run, which somebody keeps there
    assert probe(out, "--tol", 1e-6, "--no-resume") == 0
    assert (out / "inner" / "manifest.json").is_file()
    assert read_json(out / "results.json")["protocol"]["tol"] == 1e-6


def test_two_commands_do_not_work_in_one_folder(tmp_path, capfd):
    out = tmp_path / "run"
    process = spawn(probe, out, seconds=QUICK)
    wait_for(lambda: len(shards_of(out)) >= 1)
    assert probe(out) == 2
    assert "another run is at work" in capfd.readouterr().err
    process.kill()
    process.join()


def test_damaged_shards_are_found_again(undisturbed, tmp_path):
    out = tmp_path / "run"
    killed(out, after=6)
    cut, garbled, *_ = sorted(shards_of(out))
    cut.write_bytes(cut.read_bytes()[:-20])
    garbled.write_bytes(b"\xff" * 200)
    assert probe(out) == 0
    assert same(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk of its own cannot be mounted here: no right to")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_a_run_with_one_line_and_the_next_goes_on(undisturbed, small_disk, capfd):
    out = small_disk / "run"
    kept, codes = 0, []
    for size in (32, 80, 140, 180, 240, 4096):  # kB; the page alone takes about 100
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
        codes.append(probe(out))
        said = capfd.readouterr().err
        assert "Traceback" not in said
        if codes[-1] == 0:
            break
        assert codes[-1] == 2
        (line,) = [line for line in said.splitlines() if line.startswith("fmprobe:")]
        assert "cannot write" in line
        assert "No space left" in line
        assert not list(out.rglob(".*"))  # nothing half-written
        assert len(shards_of(out)) >= kept or (out / "results.json").exists()
        kept = len(shards_of(out))
    assert codes[-1] == 0
    assert codes.count(2) >= 3
    assert same(out, undisturbed)


def test_events_survive_a_torn_line(tmp_path):
    from fmprobe.runs.folder import RunFolder

    folder = RunFolder.open(tmp_path / "run", {})
    folder.tell("one", count=1)
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"time": 17, "eve')
    folder.tell("two")
    assert [event["event"] for event in read_events(folder.path)] == ["one", "two"]
