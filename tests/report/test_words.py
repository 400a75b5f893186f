"""What a stranger reads on a page: sentences, names in words, and no folder of the machine that made it."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmprobe.files import read_json
from fmprobe.places import shown as shown_results
from fmprobe.report.facts import facts, told
from fmprobe.report.finished import FinishedRun
from fmprobe.report.summary import sentences

NAMES = st.text(string.ascii_letters + string.digits + "-_<> .", min_size=1).filter(
    lambda name: name.strip(". ") == name
)
FOLDERS = st.lists(NAMES, min_size=2, max_size=5).map(lambda parts: "/" + "/".join(parts))


@given(FOLDERS, FOLDERS)
def test_a_path_is_shown_by_as_little_of_its_end_as_tells_it_from_others(one, other):
    shown = shown_results({"model": {"id": one}, "data": {other: 1}})
    first, second = shown["model"]["id"], next(iter(shown["data"]))
    assert one.endswith(first)
    assert other.endswith(second)
    assert not first.startswith("/")
    assert (first == second) == (one == other)
    if one.rsplit("/", 1)[1] != other.rsplit("/", 1)[1]:
        assert first == one.rsplit("/", 1)[1]


@given(FOLDERS)
def test_the_words_of_a_command_lose_their_folders_alone(path):
    import shlex

    command = shlex.join(["fmprobe", "ood", path, "--ood", f"far={path}:test", "--tol", "1e-3", "-o", "runs/x"])
    name = path.rsplit("/", 1)[1]
    shown = shlex.split(shown_results({"command": command})["command"])
    assert shown == ["fmprobe", "ood", name, "--ood", f"far={name}:test", "--tol", "1e-3", "-o", "runs/x"]


@pytest.mark.parametrize(
    "text",
    [
        "facebook/dinov2-small",
        "hf-hub:org/name",
        "https://huggingface.co/org/name",
        "runs/x",
        "../models/y",
        "log(eps/||e0||)/log(rho)",
        "41.0 / 93.8",
        "and/or",
    ],
)
def test_what_is_no_absolute_path_stays(text):
    for kept in (text, f"of {text}, and more"):
        assert shown_results({"text": kept, kept: [kept]}) == {"text": kept, kept: [kept]}


def test_no_page_names_a_folder_of_the_machine(written):
    for name in written.pages():
        folder = written(name)
        page = written.page(name)
        assert str(folder.parent.parent) not in page
        assert not re.search(r"(?<![\w<])/(?:home|tmp|root|usr|var|private|Users)/", page)
        kept = read_json(folder / "results.json")
        if str(folder.parent.parent) in str(kept):
            assert FinishedRun(folder).results != kept  # the file has it whole


def test_every_fact_has_a_name_in_words_and_a_sentence(written):
    for name in written.pages():
        for rows in facts([FinishedRun(written(name))]).values():
            for fact in rows:
                assert "_" not in fact.name
                assert fact.meaning.endswith("."), f"{name}: {fact.name}"
    assert told("protocol", "something new") == ("something new", "")


def test_every_page_begins_with_what_was_found(written):
    for name in written.pages():
        said = sentences(FinishedRun(written(name)).results)
        assert said, name
        assert all(text[0].isupper() or text[0].isdigit() for text in said)
        assert all(text.endswith(".") and "  " not in text for text in said)
        assert '<p class="found">' in written.page(name)


def test_the_first_sentence_counts_what_the_results_count(written):
    results = read_json(written("wide") / "results.json")
    count, status = results["attractors"]["count"], results["orbits"]["noise"]["status"]
    assert sentences(results) == [f"From 120 noise starts, {status['converged']} settled, into {count} attractors."]
    results["attractors"]["sizes"] = results["attractors"]["sizes"][:-1]  # the starts of the last are near no attractor
    placed = sum(results["attractors"]["sizes"])
    assert f"settled, {placed} of them into {count} attractors." in sentences(results)[0]
    first, *rest = sentences(read_json(written("chaotic") / "results.json"))
    assert first.startswith("None of 8 noise starts settled, so there is no attractor. 8 of the 8 starts are chaotic")
    assert not rest
    assert "encoder and its surrogate decoder together" in " ".join(
        sentences(read_json(written("surrogate") / "results.json"))
    )


def test_the_last_step_in_the_gallery_is_that_of_the_curves(written):
    """Of a basin of one start whose curve is drawn."""
    page, results = written.page("prototypes"), read_json(written("prototypes") / "results.json")
    curves, found = results["residuals"]["norms"], results["attractors"]
    singles = [i for i, size in enumerate(found["sizes"]) if size == 1]
    shown = re.findall(r"norm of the last step, median&#34;, &#34;([\d.e+-]+)&#34;", page)
    assert len(shown) == len(found["sizes"])
    assert len(curves) == 12
    for i in singles:  # the table of attractors has three digits
        assert min(abs(curve[-1] / float(shown[i]) - 1) for curve in curves) < 0.01
