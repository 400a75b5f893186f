"""Run folders: whole files or none, and never the wrong run."""

import json

import pytest
import torch
from support.maps import double_well, draws

from fmprobe import AttractorSet, InputError, find_attractors
from fmprobe.runs import RunFolder, differences, read_events, write_atomically, write_json


@pytest.fixture
def attractors():
    return find_attractors(double_well, starts=draws(30, 2))


def test_attractors_come_back_as_they_were(attractors, tmp_path):
    attractors.save(tmp_path / "a")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"attractors.json", "attractors.safetensors"}
    back = AttractorSet.load(tmp_path / "a")
    for name in ("latents", "labels", "sizes", "errors", "spectral_radius", "spectral_norm"):
        assert torch.equal(getattr(back, name), getattr(attractors, name))
    assert torch.equal(back.orbits.ends, attractors.orbits.ends)
    assert back.to_dict() == attractors.to_dict()
    assert back.orbits.to_dict() == attractors.orbits.to_dict()


@pytest.mark.parametrize("damage", ["cut", "swapped", "missing", "no json"])
def test_damaged_attractors_are_refused(attractors, tmp_path, damage):
    attractors.save(tmp_path)
    path = tmp_path / "attractors.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "swapped":
        find_attractors(double_well, starts=draws(5, 2)).save(tmp_path / "other")
        (tmp_path / "other" / "attractors.safetensors").replace(path)
    elif damage == "missing":
        path.unlink()
    else:
        (tmp_path / "attractors.json").unlink()
    with pytest.raises(InputError, match="attractors"):
        AttractorSet.load(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def broken(temporary):
        temporary.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, broken)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_finite_becomes_null_and_a_run_counts_it(tmp_path):
    nan, inf = float("nan"), float("inf")
    write_json(tmp_path / "x.json", {"a": nan, "b": [1.0, (-inf, 2)]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.0, [None, 2]]}
    folder = RunFolder.open(tmp_path / "run", {"model": "a"})
    folder.finish({"memorization": {"mean": nan, "values": [inf, 0.5]}, "model": {"id": "a"}})
    assert (folder.results or {})["not_finite"] == {"memorization": 2}
    assert read_events(folder.path)[-1]["not_finite"] == {"memorization": 2}


VALUES = [None, 0, 1, 0.5, False, True, "", "0", [], [0], [None], {}, {"a": 0}, {"a": False}]


@pytest.mark.parametrize("there", VALUES)
@pytest.mark.parametrize("now", VALUES)
def test_two_values_of_a_manifest_are_alike_only_if_json_says_so(there, now):
    same = json.dumps(there) == json.dumps(now)
    assert (differences({"x": there}, {"x": now}) == "") == same


def test_none_and_absent_are_alike():
    assert differences({"x": None}, {}) == ""
    assert "x: None there, 0 now" in differences({}, {"x": 0})
    assert differences({"x": 1}, {"x": 1.0}) == ""


def test_a_run_of_the_same_manifest_goes_on_and_another_is_refused_with_the_difference(tmp_path):
    out = tmp_path / "run"
    RunFolder.open(out, {"model": "a", "seed": 0}).finish({"x": 1})
    assert (RunFolder.open(out, {"model": "a", "seed": 0}).results or {})["x"] == 1
    with pytest.raises(InputError, match=r"seed: 0 there, 1 now.*--no-resume"):
        RunFolder.open(out, {"model": "a", "seed": 1})
    assert (out / "results.json").exists()
    assert RunFolder.open(out, {"model": "a", "seed": 1}, resume=False).results is None


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in (True, False):
        with pytest.raises(InputError, match="no run folder"):
            RunFolder.open(tmp_path, {}, resume=resume)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunFolder.open(tmp_path / "f", {})
