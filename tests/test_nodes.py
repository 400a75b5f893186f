"""Processes on nodes without a common file system find what one process finds; those with one deliver nothing."""

import os
import threading
from importlib.resources import files
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.runs import STARTS, command, launch, probe, results_of, shards_of, slow_model, wait_for

from fmprobe import AttractorSet, nodes
from fmprobe.errors import WriteError
from fmprobe.files import read_json, write_atomically
from fmprobe.runs.folder import read_events
from fmprobe.runs.search import Search
from fmprobe.runs.sweeps import file_of, sweep
from fmprobe.sharing import PIECE, is_main, team, together

DEMO = files("fmprobe.demo") / "vit-mae-digits"
QUICK = 0.002  # seconds a call of f


def of_nodes(base, target, *arguments, processes=2, **named):
    """Start processes as on two nodes, each with a working folder of its own; the first node has one process."""

    def there():
        node = base / f"node{min(int(os.environ['RANK']), 1)}"
        node.mkdir(exist_ok=True)
        os.chdir(node)
        return target(*arguments, **named)

    with mock.patch.object(nodes, "LATE", 0.2):
        return launch(processes, there, log=base / "log")


def ended(processes):
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def timeless(content):
    """Without what depends on the time that something took."""
    if isinstance(content, dict):
        times = {"seconds", "total_seconds", "seconds_per_row", "date", "command", "exponent", "processor_seconds"}
        return {key: timeless(value) for key, value in content.items() if key not in times}
    return [timeless(value) for value in content] if isinstance(content, list) else content


def test_a_command_on_two_nodes_finds_what_one_process_finds(tmp_path):
    """It searches, reads the attractors of the main process everywhere, and shares a sweep that leaves pictures."""
    images = (load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16 * 255).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", a=images[:12], b=images[12:24])
    arguments = ["weights", DEMO, "-n", 6, "--max-steps", 60, "--deterministic", "--device", "cpu"]
    arguments += ["--atoms", 2, "--images", 2, "--no-null"]
    arguments += [part for name in "ab" for part in ("--data", f"{tmp_path}/digits.npz:{name}")]
    one, two = tmp_path / "one", tmp_path / "node0" / "run"
    assert command(*arguments, "-o", one) == 0
    starts = Search._starts

    def waits(search, index):
        """The main process goes on once another has delivered something, so that both have a part in the run."""
        if is_main():
            wait_for(lambda: bool(shards_of(two)))
        return starts(search, index)

    with mock.patch.object(Search, "_starts", waits):
        processes = of_nodes(tmp_path, command, *arguments, "-o", "run")
        assert ended(processes) == [0, 0], (tmp_path / "log").read_text()
    assert timeless(read_json(two / "results.json")) == timeless(read_json(one / "results.json"))
    assert names_in(two) == names_in(one)
    assert names_in(tmp_path / "node1") == set()
    assert {event["process"] for event in read_events(two) if event["event"] == "shard"} == {0, 1}
    assert (tmp_path / "log").read_text().count("report  ") == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What one process leaves."""
    out = tmp_path_factory.mktemp("one") / "run"
    assert probe(out) == 0
    return out


def test_a_run_on_two_nodes_that_was_killed_goes_on_with_what_the_main_process_has(tmp_path, undisturbed):
    out = tmp_path / "node0" / "run"
    processes = of_nodes(tmp_path, probe, Path("run"), seconds=QUICK)
    wait_for(lambda: len(shards_of(out)) >= 6)
    for process in processes:
        process.kill()
        process.join()
    kept = len(shards_of(out))
    assert ended(of_nodes(tmp_path, probe, Path("run"), seconds=QUICK)) == [0, 0], (tmp_path / "log").read_text()
    ours, theirs = AttractorSet.load(out / "attractors"), AttractorSet.load(undisturbed / "attractors")
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert ours.orbits.steps.tolist() == theirs.orbits.steps.tolist()
    events = read_events(out)
    began = [i for i, event in enumerate(events) if event["event"] == "iterate"]
    again = [event for event in events[began[1] :] if event["event"] == "shard"]
    assert events[began[1]]["kept"] >= kept
    assert sum(event["orbits"] for event in again) == STARTS - events[began[1]]["kept"]


def shares(folder):
    """A sweep whose conditions leave a large file beside their results, which every process then reads."""

    @together()
    def program():
        def work(name, settings):
            content = bytes([settings["i"]]) * (2 * PIECE + settings["i"])
            write_atomically(folder / f"{name}.bin", lambda path: path.write_bytes(content))
            if is_main():  # so that others have a part in it
                wait_for(lambda: bool(list((folder / "parts").glob("*.json"))))
            return {"rank": int(os.environ["RANK"])}

        conditions = {str(i): {"i": i} for i in range(5)}
        for name, found in sweep(work, conditions, folder / "parts", folder):
            content = (folder / f"{name}.bin").read_bytes()
            assert content == bytes([int(name)]) * (2 * PIECE + int(name))
            print(name, found["rank"])
        dict(sweep(lambda name, _: name, {"a": {}, "b": {}}, folder / "more"))
        left = [key for key in ("asked", "answered") for i in range(999) if team().store.check([f"{key}/{i}"])]
        assert left == []

    program()
    return 0


def test_a_sweep_on_two_nodes_shares_what_its_work_leaves_and_goes_on(tmp_path):
    stale = file_of(tmp_path / "node1" / "out" / "parts", "4")
    stale.parent.mkdir(parents=True)
    stale.write_text('{"settings": {"i": 4}, "result": "of another launch"}')
    assert ended(of_nodes(tmp_path, shares, Path("out"), processes=3)) == [0, 0, 0], (tmp_path / "log").read_text()
    first = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [name for name, _ in first] == list("01234")
    assert "0" in {rank for _, rank in first}
    assert len({rank for _, rank in first}) > 1
    assert names_in(tmp_path / "node0") == names_in(tmp_path / "node1")
    assert len(names_in(tmp_path / "node0" / "out")) == 14
    (tmp_path / "log").unlink()
    file_of(tmp_path / "node0" / "out" / "parts", "2").unlink()
    assert ended(of_nodes(tmp_path, shares, Path("out"))) == [0, 0]
    again = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [row for row in again if row[0] != "2"] == [row for row in first if row[0] != "2"]


def test_processes_that_see_one_folder_deliver_nothing(tmp_path, undisturbed):
    def checked():
        with (
            mock.patch.object(nodes._Mirror, "__init__", side_effect=AssertionError),
            mock.patch.object(nodes, "_thread") as served,
        ):
            code = probe(tmp_path / "run")
            assert not served.called
        assert threading.active_count() == 1
        return code

    assert ended(launch(2, checked, log=tmp_path / "log")) == [0, 0], (tmp_path / "log").read_text()
    assert names_in(tmp_path / "run") == names_in(undisturbed)
    assert results_of(tmp_path / "run")["attractors"]["sizes"] == results_of(undisturbed)["attractors"]["sizes"]


def test_a_file_that_a_network_shows_late_is_seen(tmp_path):
    late = threading.Timer(0.2, lambda: ((tmp_path / "run").mkdir(), (tmp_path / "run" / "mark").touch()))
    late.start()
    assert nodes._soon(lambda: nodes._shows(tmp_path / "run", "mark"))
    with mock.patch.object(nodes, "LATE", 0.1):
        assert not nodes._soon(lambda: nodes._shows(tmp_path / "run", "another"))


def test_nodes_with_different_models_are_refused_in_one_line(tmp_path):
    def unlike():
        model = slow_model(0)
        model.provenance["fingerprint"] = f"node {os.environ['RANK']}"
        with mock.patch("fmprobe.runs.models.load_model", return_value=model):
            return command("probe", "slow", "-o", "run", "-n", 4, "--max-steps", 20)

    assert ended(of_nodes(tmp_path, unlike)) == [2, 2]
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "fingerprint: 'node 0' there, 'node 1' now" in line


def test_what_a_cache_holds_is_made_the_same_on_every_node(tmp_path):
    def levelled():
        mine = Path("cache").absolute() / "entry"
        mine.mkdir(parents=True, exist_ok=True)
        (mine / "state.pt").write_bytes(os.environ["RANK"].encode() * 9)
        (mine / "more").mkdir(exist_ok=True)
        (mine / "more" / f"of-{is_main()}").touch()

        @together()
        def program():
            team().barrier()
            nodes.level(mine)
            assert (mine / "state.pt").read_bytes() == b"0" * 9
            nodes.level(mine.parent / "none")

        program()
        return 0

    assert ended(of_nodes(tmp_path, levelled, processes=3)) == [0, 0, 0], (tmp_path / "log").read_text()
    assert names_in(tmp_path / "node1") == names_in(tmp_path / "node0")
    assert "cache/entry/more/of-True" in names_in(tmp_path / "node1")


def test_a_common_folder_that_one_process_sees_late_is_left_alone(tmp_path):
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "state.pt").write_bytes(b"state")
    contents = nodes._contents

    def late():
        with mock.patch.object(nodes, "_contents", mock.Mock(side_effect=[{}, {}, contents(tmp_path / "entry")])):
            together()(lambda: nodes.level(tmp_path / "entry"))()
        return 0

    def levelled():
        return together()(lambda: nodes.level(tmp_path / "entry"))() or 0 if is_main() else late()

    assert ended(launch(2, levelled, log=tmp_path / "log")) == [0, 0], (tmp_path / "log").read_text()
    assert (tmp_path / "entry" / "state.pt").read_bytes() == b"state"
    assert names_in(tmp_path) == {"entry", "entry/state.pt", "log"}


def test_a_main_node_without_room_for_what_another_delivers_ends_all_with_one_line(tmp_path):
    answer = nodes._answer

    def full(asked, content):
        if asked["do"] == "write":
            raise WriteError(asked["path"], OSError(28, "no space left"))
        return answer(asked, content)

    def failing():
        with mock.patch.object(nodes, "_answer", full):
            return probe(Path("run"), seconds=QUICK)

    assert ended(of_nodes(tmp_path, failing)) == [2, 2]
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("fmprobe: ")]
    assert "cannot write shards/" in line
    assert "no space left" in line
    assert "Traceback" not in (tmp_path / "log").read_text()
