"""The page of an atlas: a row a model, made of what is on disk."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from support.rows import REASON, row

from fmprobe.files import read_json
from fmprobe.probes.ood.page import figures
from fmprobe.report.atlas import THUMBNAILS, UNKNOWN, facts_of, table_of
from fmprobe.report.rendering import digest_of
from fmprobe.report.sparkline import HEIGHT, WIDTH, sparkline

COLUMNS = ["model", "attractors", "settled", "exponent", "radius", "capacity", "ood", "seconds"]


class Cells(HTMLParser):
    """The rows of the table: what each cell is sorted by, and what is linked and shown."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.sources, self.families = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "tr" and "data-family" in given:
            self.rows.append({})
            self.families.append(given["data-family"])
        if "data-sort" in given:
            self.rows[-1][given["data-key"]] = given["data-sort"]
        self.links += [given["href"]] if "href" in given else []
        self.sources += [given["src"]] if "src" in given else []


def test_a_cell_is_sorted_by_the_number_that_the_run_found(atlas_page, atlas_rows):
    read = Cells(atlas_page.read_text())
    assert len(read.rows) == len(atlas_rows)
    for made, cells in zip(atlas_rows, read.rows, strict=True):
        if not made.facts:
            assert list(cells) == ["model"]
            continue
        assert list(cells) == COLUMNS
        results = read_json(made.folder / "results.json")
        noise = results["orbits"]["noise"]
        expected = {
            "settled": noise["status"]["converged"] / noise["starts"],
            "exponent": noise["exponent"]["median"],
            "attractors": results["attractors"]["count"],
            "seconds": results["total_seconds"],
        }
        for key, value in expected.items():
            assert cells[key] == ("" if value is None else str(value))
    assert read.families[-2:] == [UNKNOWN, UNKNOWN]


def test_rows_link_to_the_pages_of_their_runs_and_nothing_is_loaded(atlas_page, atlas_rows):
    text = atlas_page.read_text()
    read = Cells(text)
    assert read.links == [made.link for made in atlas_rows if made.facts]
    assert all(link.endswith("/report.html") and not link.startswith(("/", "http")) for link in read.links)
    assert read.sources
    assert all(source.startswith("data:image/") for source in read.sources)
    assert "http" not in re.sub(r"http-equiv", "", text)
    script = text.partition("<script>")[2].partition("</script>")[0]
    assert f"sha256-{digest_of(script)}" in text


def test_names_and_reasons_are_text_not_markup(atlas_page):
    text = atlas_page.read_text()
    assert "org/&lt;b&gt;whole" in text
    assert "&lt;u&gt;no memory" in text
    assert "<b>whole" not in text
    assert REASON not in text
    assert "Not probed yet." in text


def test_models_of_one_name_are_told_apart(atlas_page, atlas_rows):
    for made in atlas_rows:
        alike = [other for other in atlas_rows if other.name == made.name]
        assert (f"{made.name} ({made.folder.name})" in atlas_page.read_text()) == (len(alike) > 1)


def test_the_largest_basins_are_shown_and_each_says_which_it_is(atlas_rows, atlas_page):
    for made in atlas_rows:
        if not made.facts:
            continue
        results = read_json(made.folder / "results.json")
        sizes, starts = results["attractors"]["sizes"], results["orbits"]["noise"]["starts"]
        decodes = results["decodes_to_images"]
        said = [f"attractor {i}, basin {size} of {starts} starts" for i, size in enumerate(sizes[:THUMBNAILS], 1)]
        assert [one["said"] for one in made.pictures] == (said if decodes else [])
        assert sum(len(one["src"]) for one in made.pictures) < 80_000
    assert atlas_page.stat().st_size < 500_000


def test_the_mean_auroc_is_that_of_the_rule_that_decides_without_controls(atlas_rows):
    whole = atlas_rows[0]
    found = read_json(whole.folder / "results.json")["ood"]
    assert figures(found)  # the run has what the page of `ood` shows
    rule = next(made for made in found["scores"] if made["name"] == found["detector"]["decision"]["rule"])
    assert any(about["control"] for name, about in found["sets"].items() if name != "in-distribution")
    own = [rule["sets"][name]["auroc"] for name in rule["sets"] if name == "<u>far"]
    assert whole.facts["ood"] == pytest.approx(sum(own) / len(own))
    assert all(made.facts["ood"] is None for made in atlas_rows[1:5])
    assert atlas_rows[4].facts["ood_error"] == "no images"


def test_detection_that_ran_beside_the_probe_is_found(written, tmp_path):
    folder = shutil.copytree(written("prototypes"), tmp_path / "model")
    assert row(folder, "model").facts["ood"] is None
    shutil.copytree(written("ood"), folder / "ood")
    found = row(folder, "model").facts
    assert found["ood"] is not None
    assert (tmp_path / found["ood_page"]).is_file()


def test_the_diagram_has_a_point_for_every_known_exponent():
    exponents = {"A": (-2.0, -1.0, 0.5), "B": (-2.5, None, 0.25), "null": (-3.0, -2.0, float("nan"))}
    points = [
        {"k": k, "set": name, "exponent": value, "settled": settled, "starts": 10}
        for name, values in exponents.items()
        for k, value, settled in zip((2, 8, 32), values, (10, 9, 8), strict=True)
    ]
    drawn = sparkline(points)
    assert drawn.count("<circle") == 7
    assert drawn.count('class="moving"') == 2
    places = [tuple(map(float, pair)) for pair in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    (a, b, c), (lowest, _) = places[:3], places[5:]
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)  # even in the logarithm of k
    assert lowest[1] == max(y for _, y in places)  # the least exponent lies lowest
    zero = float(re.findall(r'y1="([\d.]+)"', drawn)[0])
    assert c[1] < zero < b[1]
    assert "images A: -2.00 at k = 2, -1.00 at k = 8, 0.50 at k = 32" in drawn
    assert sparkline([]) == sparkline([{**points[0], "exponent": None}]) == ""
    assert sparkline(points[:1]).count("<circle") == 1


def test_the_terminal_shows_those_that_failed_last(atlas_rows):
    lines = table_of(atlas_rows).to_text().splitlines()
    assert lines[-1].split()[:2] == ["failed", "failed"]
    assert sum("settled" in line.split()[0] for line in lines) == 0
    assert len([line for line in lines if "later" in line]) == 0


def test_a_surrogate_that_paints_badly_is_said(written):
    results = read_json(written("surrogate") / "results.json")
    assert facts_of(results)["warning"]
    assert facts_of(results)["decoder"] == "surrogate"
    assert facts_of(read_json(written("prototypes") / "results.json"))["warning"] is None
