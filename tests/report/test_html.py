"""The page of a run: made of what is on disk, and of nothing outside the folder."""

import csv
import json
import os
import random
import shutil
from copy import deepcopy
from typing import Any

import pytest
from support.written import IMAGES, MODEL

import fmprobe
from fmprobe.files import read_json
from fmprobe.pictures import save_frames, to_picture
from fmprobe.registry import sections
from fmprobe.report import page as html
from fmprobe.report.page import write_report
from fmprobe.report.summary import summary
from fmprobe.report.surrogate import QUALITY


@pytest.fixture
def folder(written, tmp_path):
    """A finished run of the command `prototypes`, without its page."""
    return shutil.copytree(written("prototypes"), tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))


def write(folder, results):
    (folder / "results.json").write_text(json.dumps(results))


def change(folder, *place, value):
    """Another value at a place of results.json that holds one."""
    results = read_json(folder / "results.json")
    parent: Any = results
    for key in place[:-1]:
        parent = parent[key]
    assert place[-1] in parent
    parent[place[-1]] = value
    write(folder, results)
    return results


def test_every_section_is_on_the_page_of_some_command(written):
    pages = [written.page(name) for name in written.pages()]
    assert all(page.count("<h2 id=") == len(set(page.split("<h2 id=")[1:])) for page in pages)
    for section in (*sections(), QUALITY):
        if section.across is not None:  # of several runs, which no command writes but `report`
            continue
        shown = [page for page in pages if f'<section id="{section.anchor}"' in page]
        assert shown, f"no command writes what the section {section.title!r} shows"
        assert all(f">{section.title}</h2>" in page for page in shown)


def test_names_are_text_not_markup(written):
    """Models, images, sets and the words of a command, whichever section shows them."""
    for name in written.pages():
        page = written.page(name)
        assert page.count("<script") == 1  # the page's own, whose hash the policy names
        assert not any(text in page for text in (MODEL, IMAGES, "<u>far"))
    page = written.page("ood")
    for text in ("&lt;script&gt;alert(1)", "&lt;b&gt;digits", "&lt;u&gt;far"):
        assert text in page


def test_unresolved_starts_are_said(folder):
    assert "are unresolved" not in write_report(folder).read_text()
    change(folder, "attractors", "unresolved", value=1)
    assert "1 starts are unresolved" in write_report(folder).read_text()


def test_a_stability_that_is_not_known_is_said(folder):
    assert "tability unknown" not in write_report(folder).read_text().partition('<dt id="term-')[0]  # the glossary
    results = change(folder, "attractors", "stability_unknown", value=1)
    count = results["attractors"]["count"]
    assert f"Stability unknown: 1 of {count} attractors examined" in write_report(folder).read_text()
    assert dict(summary(results))["stability unknown"].startswith(f"1 of {count} ")


def test_an_index_cannot_lead_out_of_the_folder(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    secret.write_bytes((folder / "prototypes" / "0000.png").read_bytes())
    index = folder / "prototypes" / "index.csv"
    index.write_text(index.read_text().replace("0000.png", str(secret)))
    with pytest.raises(fmprobe.InputError, match=r"secret\.png"):
        write_report(folder)


@pytest.mark.parametrize("name", ["results.json", "prototypes/index.csv", "prototypes/0000.png", "trajectories.png"])
def test_a_link_cannot_lead_out_of_the_folder(folder, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    os.symlink(outside, folder / name)
    with pytest.raises(fmprobe.InputError, match="nothing else is read"):
        write_report(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", b"{", "not JSON"),
        ("results.json", b"[]", "not a JSON object"),
        ("results.json", b'{"schema": 99}', "schema 99"),
        ("results.json", b'{"schema": 1, "attractors": 3}', "results.json"),
        ("prototypes/index.csv", b"\xff\xfe", "no table"),
        ("prototypes/index.csv", b"file,basin_size\n0000.png,77\n", "does not list the attractors"),
        ("prototypes/0000.png", b"<svg/>", "no PNG"),
        ("trajectories.png", None, "cannot be read"),
        ("results.json", None, "has not finished"),
    ],
)
def test_a_folder_that_was_tampered_with_ends_in_one_line(folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(fmprobe.InputError, match=message) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_no_change_of_any_value_ends_in_a_traceback(written, tmp_path, monkeypatch):
    """Seeded changes of single values, all over results.json: a page, or one line that says what is wrong."""
    folder = shutil.copytree(written("run"), tmp_path / "run")
    whole = {**read_json(written("comparison") / "results.json"), **read_json(folder / "results.json")}
    whole["ood"] = read_json(written("ood") / "results.json")["ood"]
    places = list({tuple(key for key in place if isinstance(key, str)): place for place in _places(whole)}.values())
    rng = random.Random(0)
    refused = []
    for place in rng.sample(places, 28):
        monkeypatch.setattr(html, "registered", lambda key=place[0]: [s for s in sections() if s.key == key])
        changed = deepcopy(whole)
        parent: Any = changed  # descends to what holds the value
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = rng.choice([None, "text", -1, [], {}, [[]], 1e400])
        write(folder, changed)
        try:
            write_report(folder)
        except fmprobe.InputError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert not any("\n" in line for line in refused)


def _places(content, above=()):
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = []
    for key, value in items:
        found += [(*above, key), *_places(value, (*above, key))]
    return found


def test_runs_stand_side_by_side_and_differences_are_marked(folder, written, tmp_path):
    page = write_report([folder, written("surrogate")], tmp_path / "both.html").read_text()
    assert not (folder / "report.html").exists()
    assert page.count('class="gallery') == 2
    assert page.count("<h2 id=") == len(set(page.split("<h2 id=")[1:]))
    assert '<td class="differs">rms</td>' in page
    assert "<td>32</td><td>32</td>" in page


def test_the_page_of_a_comparison_of_scores_gives_them_in_percent(written):
    found = read_json(written("ood") / "results.json")["ood"]
    page = written.page("ood")
    best = max(row["sets"]["<u>far"]["auroc"] for row in found["scores"])
    low, high = found["scores"][0]["sets"]["<u>far"]["intervals"]["auroc"]
    assert f"<b>{100 * best:.1f} / " in page
    assert f"{100 * low:.0f} to {100 * high:.0f}" in page


def test_the_page_of_a_table_of_scores_says_how_many_were_accepted(written):
    accepted = [row["accepted"] for row in csv.DictReader((written("scores") / "scores.csv").open())].count("yes")
    rule = read_json(written("scores") / "results.json")["ood_scores"]["rule"]
    assert f"{accepted} of 40 by &#39;{rule}&#39;" in written.page("scores")


def test_pictures_clamp_and_keep_their_size():
    import torch

    picture = to_picture(torch.full((3, 5, 7), 2.0))
    assert picture.size == (7, 5)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert to_picture(torch.full((1, 5, 7), torch.nan)).getpixel((0, 0)) == 0


def test_frames_lie_edge_to_edge_a_row_an_orbit(tmp_path):
    import torch
    from PIL import Image

    values = torch.arange(6.0).reshape(2, 3, 1, 1, 1) / 5
    save_frames(values.expand(2, 3, 1, 4, 6), tmp_path / "frames.png")
    with Image.open(tmp_path / "frames.png") as sprite:
        assert sprite.size == (18, 8)
        grey = sprite.convert("L")
        assert [grey.getpixel((x, y)) for y in (1, 5) for x in (2, 8, 14)] == [0, 51, 102, 153, 204, 255]
    save_frames(torch.zeros(1, 2, 3, 300, 150), tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as sprite:
        assert sprite.size == (2 * 48, 96)


def test_a_file_that_is_no_page_is_not_written_over(folder):
    for path in (folder / "results.json", folder / "prototypes.png"):
        before = path.read_bytes()
        with pytest.raises(fmprobe.InputError, match="exists and is no page"):
            write_report(folder, path)
        assert path.read_bytes() == before
    assert write_report(folder) == write_report(folder)


def test_runs_of_one_name_are_told_apart_by_their_folders(folder, tmp_path):
    places = [shutil.copytree(folder, tmp_path / name / "run") for name in ("one", "two")]
    page = write_report(places, tmp_path / "both.html").read_text()
    assert "(one/run)" in page
    assert "(two/run)" in page
