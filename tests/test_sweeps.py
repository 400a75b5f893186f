"""Sweeps keep what they found, go on with it, and find under a launcher what one process finds."""

import json
import os
import runpy
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import launch

from fmprobe.errors import InputError
from fmprobe.files import read_json
from fmprobe.runs.folder import RunFolder
from fmprobe.runs.sweeps import file_of, sweep
from fmprobe.sharing import alone, team, together

RECIPE = Path(__file__).parents[1] / "recipes" / "noise_meets_training.py"
SMALLEST = "--changes width --starts 4 --images 16 --steps 1 --max-steps 5"
POWERS = {"b": {"base": 2, "to": 5}, "a": {"base": 3, "to": 2}, "c": {"base": 5, "to": 1}}


class Work:
    """Counts what it computes."""

    def __init__(self):
        self.done = []

    def __call__(self, name, settings):
        self.done.append(name)
        return {"power": settings["base"] ** settings["to"], "pair": (1, 2)}


def test_results_come_in_order_one_by_one_and_once(tmp_path):
    work = Work()
    steps = sweep(work, POWERS, tmp_path / "new" / "folder")
    assert next(steps) == ("b", {"power": 32, "pair": [1, 2]})
    assert work.done == ["b"]
    assert [name for name, _ in steps] == ["a", "c"]
    again = Work()
    assert [found["power"] for _, found in sweep(again, POWERS, tmp_path / "new" / "folder")] == [32, 9, 5]
    assert again.done == []


def test_a_stopped_sweep_goes_on(tmp_path):
    first = Work()
    next(sweep(first, POWERS, tmp_path))
    second = Work()
    assert dict(sweep(second, POWERS, tmp_path))["a"]["power"] == 9
    assert (first.done, second.done) == (["b"], ["a", "c"])


def test_other_settings_are_computed_anew_and_equal_ones_in_another_order_are_not(tmp_path):
    dict(sweep(Work(), POWERS, tmp_path))
    other = {"b": {"to": 5, "base": 2}, "a": {"base": 3, "to": 3}, "d": {"base": 7, "to": 0}}
    work = Work()
    assert {name: found["power"] for name, found in sweep(work, other, tmp_path)} == {"b": 32, "a": 27, "d": 1}
    assert work.done == ["a", "d"]
    assert read_json(file_of(tmp_path, "a"))["settings"] == {"base": 3, "to": 3}


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"settings": {"base": 2, "to": 5}}', "\0" * 40])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    dict(sweep(Work(), POWERS, tmp_path))
    file_of(tmp_path, "b").write_text(damage)
    work = Work()
    assert dict(sweep(work, POWERS, tmp_path))["b"]["power"] == 32
    assert work.done == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "c.json"]


def test_settings_without_a_json_form_of_their_own_are_found_again(tmp_path):
    settings = {"one": {"path": Path("x"), "pair": (1, 2.5), "by": {10: "ten", 2: "two"}, "none": None, "yes": True}}
    seen = []
    for _ in range(2):
        dict(sweep(lambda _, given: seen.append(given), settings, tmp_path))
    assert seen == [{"path": "x", "pair": [1, 2.5], "by": {"10": "ten", "2": "two"}, "none": None, "yes": True}]


@settings(max_examples=30)
@given(st.lists(st.text() | st.text(min_size=200, max_size=400), min_size=1, max_size=4, unique=True))
def test_any_names_are_files_of_their_own_in_the_folder(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    wanted = {name: {"n": i} for i, name in enumerate(names)}
    found = dict(sweep(lambda name, settings: [name, settings["n"]], wanted, folder))
    assert found == {name: [name, i] for i, name in enumerate(names)}
    assert len([path for path in folder.iterdir() if path.is_file()]) == len(names)


def test_a_failure_keeps_what_is_done_and_writes_nothing_for_what_is_not(tmp_path):
    def fail_at_a(name, settings):
        if name == "a":
            raise RuntimeError(name)
        return settings["to"]

    with pytest.raises(RuntimeError, match="a"):
        dict(sweep(fail_at_a, POWERS, tmp_path))
    with pytest.raises(TypeError, match="JSON"):
        dict(sweep(lambda *_: object(), POWERS, tmp_path / "no-json"))
    assert [path.name for path in tmp_path.rglob("*.json")] == ["b.json"]


def test_numbers_that_are_not_finite_come_back_as_they_were(tmp_path):
    found = dict(sweep(lambda *_: [float("nan"), float("inf"), -float("inf")], POWERS, tmp_path))
    for values in found.values():
        assert [str(value) for value in values] == ["nan", "inf", "-inf"]


def spoil(name, settings):
    """Work that edits what it is given, at every depth."""
    settings["base"] = 0
    settings["parts"].append("more")
    settings["inner"].clear()
    settings.pop("to", None)
    return name


def test_work_that_edits_its_settings_ends_and_is_found_again(tmp_path):
    conditions = {name: {**given, "parts": [1], "inner": {"x": [2]}} for name, given in POWERS.items()}
    assert dict(sweep(spoil, conditions, tmp_path)) == {name: name for name in POWERS}
    assert {name: read_json(file_of(tmp_path, name))["settings"] for name in conditions} == conditions
    work = Work()
    assert list(dict(sweep(work, conditions, tmp_path))) == list(POWERS)
    assert work.done == []


def spoiled(folder):
    @together()
    def program():
        dict(sweep(spoil, {str(i): {"base": 1, "parts": [], "inner": {"i": i}} for i in range(6)}, folder))

    program()
    return 0


def test_processes_whose_work_edits_its_settings_do_not_wait_for_each_other(tmp_path):
    assert ended(launch(2, spoiled, tmp_path / "out", log=tmp_path / "log")) == [0, 0]


def test_a_folder_in_use_or_that_cannot_be_one_is_refused(tmp_path):
    with RunFolder(tmp_path).locked(), pytest.raises(InputError, match="another run is at work"):
        dict(sweep(Work(), POWERS, tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        dict(sweep(Work(), POWERS, tmp_path / "file"))


def ended(processes):
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def recipe(out):
    """A recipe's smallest command in this process."""
    with mock.patch.object(sys, "argv", [str(RECIPE), *SMALLEST.split(), "--out", str(out)]):
        runpy.run_path(str(RECIPE), run_name="__main__")
    return 0


def records(out):
    """Without seconds."""

    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if key != "seconds"}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    return timeless(json.loads((out / "records.json").read_text()))


@pytest.mark.usefixtures("draws")
def test_a_recipe_under_two_processes_finds_and_prints_what_it_does_under_one(tmp_path, capsys):
    log = tmp_path / "log"
    assert ended(launch(2, recipe, tmp_path / "two", log=log)) == [0, 0]
    recipe(tmp_path / "one")
    assert records(tmp_path / "two") == records(tmp_path / "one")
    assert set(records(tmp_path / "one")) == {"middle", "width 4", "width 16"}
    assert log.read_text() == capsys.readouterr().out
    for name in ("met-train.png", "met-noise.png"):
        assert (tmp_path / "two" / name).stat().st_size > 1000


def shared(folder, spoil):
    """A sweep whose conditions tell which process computed them; the processes wait for one another."""

    @together()
    def program():
        def work(name, settings):
            rank = os.environ["RANK"]
            (folder / f"begun-{rank}").touch()
            while not all((folder / f"begun-{other}").exists() for other in "01"):
                time.sleep(0.01)
            if spoil and rank == "1":
                raise InputError("bad luck: expected none")
            return int(rank)

        for name, _ in sweep(work, {str(i): {} for i in range(6)}, folder):
            print(name)

    program()
    return 0


def test_processes_share_the_conditions(tmp_path):
    assert ended(launch(2, shared, tmp_path, False, log=tmp_path / "log")) == [0, 0]
    assert (tmp_path / "log").read_text().split() == list("012345")
    assert {read_json(file_of(tmp_path, str(i)))["result"] for i in range(6)} == {0, 1}


def test_an_error_of_one_process_ends_the_others_with_one_line(tmp_path):
    assert ended(launch(2, shared, tmp_path, True, log=tmp_path / "log")) == [2, 2]
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if not line.isdigit()] == ["fmprobe: bad luck: expected none"]


def waiting(folder, in_turn):
    """A sweep of three conditions whose work is itself shared: each process comes, and then all meet."""

    @together()
    def program():
        def work(name, settings):
            (folder / f"{name}-{os.environ['RANK']}").touch()
            team().barrier()
            return [(folder / f"{name}-{rank}").exists() for rank in "01"]

        for name, both in sweep(work, {str(i): {} for i in range(3)}, folder / "kept", in_turn=in_turn):
            print(name, *both)

    program()
    return 0


def test_work_that_is_itself_shared_is_done_in_turn_by_all_processes(tmp_path):
    assert ended(launch(2, waiting, tmp_path, True, log=tmp_path / "log")) == [0, 0]
    assert (tmp_path / "log").read_text().splitlines() == [f"{i} True True" for i in range(3)]


def test_work_that_waits_where_each_process_is_by_itself_is_an_error_and_no_endless_wait(tmp_path):
    assert 0 not in ended(launch(2, waiting, tmp_path, False, log=tmp_path / "log"))
    assert "a process waits for the others where each is by itself" in (tmp_path / "log").read_text()


def unlike(folder):
    @together()
    def program():
        dict(sweep(Work(), {"a": {"base": int(os.environ["RANK"]), "to": 1}}, folder))

    program()
    return 0


def test_processes_that_come_with_different_conditions_do_not_wait_for_each_other(tmp_path):
    assert ended(launch(2, unlike, tmp_path / "out", log=tmp_path / "log")) == [2, 2]
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "different conditions" in line
    assert list((tmp_path / "out").iterdir()) == []


def lonely():
    @alone()
    def program():
        print("size", os.environ.get("WORLD_SIZE", "1"))

    program()
    return 0


def test_work_that_is_not_shared_is_done_once(tmp_path):
    assert ended(launch(3, lonely, log=tmp_path / "log")) == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "size 1\n"
