"""Run folders: whole files or none, and never the wrong run."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.maps import double_well, draws

from fmprobe import AttractorSet, InputError, find_attractors
from fmprobe.files import finite, read_json, write_atomically, write_json
from fmprobe.hub import canonical
from fmprobe.runs.folder import RunFolder, differences, read_events
from fmprobe.runs.run import default_out


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


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CLOSE = st.sampled_from([*VALUES, 0.0, 1.0, [False], [1, 2], [2, 1], {"a": None}])
NOT_FINITE = st.sampled_from([float("nan"), float("inf"), -float("inf")])


def meaning(value):
    """What two JSON values share exactly where they mean the same: None in an object is nothing, 1.0 is 1."""
    if isinstance(value, dict):
        return "object", frozenset((key, meaning(item)) for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return "list", tuple(map(meaning, value))
    return ("truth", value) if isinstance(value, bool) else value


@given(JSON | CLOSE, JSON | CLOSE)
def test_two_values_in_a_manifest_are_alike_exactly_where_they_mean_the_same(there, now):
    assert (differences({"tol": there}, {"tol": now}) == "") == (meaning(there) == meaning(now))


@given(JSON)
def test_a_value_is_told_from_absence_unless_it_is_none(value):
    assert (differences({}, {"tol": value}) == "") == (value is None)
    assert (differences({"tol": value}, {}) == "") == (value is None)
    assert differences({"tol": value}, json.loads(json.dumps({"tol": value}))) == ""


@given(st.recursive(JSON | NOT_FINITE, lambda inner: st.dictionaries(st.text(), inner, max_size=3), max_leaves=6))
def test_every_number_that_is_not_finite_becomes_null_and_is_counted(content):
    cleaned, count = finite(content)
    assert json.loads(json.dumps(cleaned, allow_nan=False)) == cleaned
    constants = []
    json.loads(json.dumps(content), parse_constant=constants.append)  # NaN, Infinity and -Infinity
    assert count == len(constants)
    assert count or cleaned == content


def test_nulls_that_a_command_hands_on_stay_counted(tmp_path):
    folder = RunFolder.open(tmp_path / "run", {"model": "a"})
    first = folder.finish({"curves": {"mean": [1.0, float("nan")], "x": float("inf")}, "fine": 1.5})
    assert first == folder.results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert (first["curves"], first["not_finite"]) == ({"mean": [1.0, None], "x": None}, {"curves": 2})
    second = folder.finish({**first, "more": float("nan")})  # another command adds a part
    assert second["not_finite"] == {"curves": 2, "more": 1}
    assert "not_finite" not in folder.finish({**second, "curves": {"mean": [1.0, 2.0]}, "more": 0.0})


def test_not_finite_numbers_come_back_from_files_that_fmprobe_alone_reads(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("-inf")]}, exact=True)
    assert str(read_json(tmp_path / "x.json")) == "{'a': nan, 'b': [-inf]}"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder `runs/model` with a file in it, a link to it, and the working folder beside it."""
    (tmp_path / "runs" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "model" / "images.npz").write_bytes(b"")
    (tmp_path / "link").symlink_to("runs/model")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs" / "model"


SPELLINGS = ["model", "model/", "./model", "model/.", "../runs/model", "model//", "../link", "local-dir:model", "{}"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("more", ["", ":train", "#image", ":train#image"])
def test_one_place_has_one_name(place, spelling, more):
    assert canonical(spelling.format(place) + more) == f"{place}{more}"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_place_has_one_default_folder_for_its_results(place, spelling):
    assert default_out(spelling.format(place)) == Path("runs/model")


def test_what_is_not_here_keeps_its_name(place):
    for name in ("facebook/dinov2-small", "ylecun/mnist:train#image", "procedural", "nowhere/", "", ":", "#"):
        assert canonical(name) == name
    assert canonical("./model/images.npz:key") == f"{place}/images.npz:key"
    assert canonical("hf-hub:timm/resnet18.a1_in1k") == "timm/resnet18.a1_in1k"


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "f/inside", "/proc/nothing"])
def test_a_name_that_cannot_be_a_folder_gets_one_line(tmp_path, name):
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*--out"):
        RunFolder.open(tmp_path / name, {})


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
