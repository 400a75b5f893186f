"""Figures as files: in the formats that are asked for, with what they are of, and no label cut or covered."""

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from support.written import RUNS
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.report.figures import figures_of, said_of, write_figures
from fmprobe.report.finished import FinishedRun

BEGINNINGS = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
WITH_FIGURES = [name for name in RUNS if not name.endswith("decoder")]


def boxes(figure):
    """The rectangle of each text that is seen, in pixels, and the figure's own."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    beyond = {id(label) for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for label in _not_drawn(axis)}
    hidden = {
        id(text) for ax in figure.axes if not ax.axison for axis in (ax.xaxis, ax.yaxis) for text in axis.findobj(Text)
    }
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if id(text) not in beyond | hidden]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts], figure.bbox


def _not_drawn(axis):
    """The labels of ticks outside of the axis, which matplotlib keeps and does not draw."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (abs(low) + abs(high))
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    outside = [tick for tick in ticks if not low - slack <= tick.get_loc() <= high + slack]
    return [label for tick in outside for label in (tick.label1, tick.label2)]


def share(a, b):
    """The part of the smaller of two rectangles that the other covers."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0) * max(height, 0) / min(a.width * a.height, b.width * b.height)


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_every_label_lies_in_the_figure_and_covers_no_other(name, written):
    for title, figure in figures_of(FinishedRun(written(name))):
        texts, whole = boxes(figure)
        assert texts
        for words, box in texts:
            inside = min(box.x0 + 1, box.y0 + 1, whole.x1 + 1 - box.x1, whole.y1 + 1 - box.y1)
            assert inside >= 0, f"{title}: {words!r} is cut"
        for (one, first), (other, second) in combinations(texts, 2):
            assert share(first, second) < 0.05, f"{title}: {one!r} and {other!r} cover each other"


def test_every_run_has_figures_with_what_they_are_of(written):
    for name in WITH_FIGURES:
        run = FinishedRun(written(name))
        assert dict(figures_of(run)), name
        assert run.name in said_of(run)
        assert "/" not in "".join(said_of(run))


def test_files_are_of_the_formats_asked_for(written, tmp_path):
    import shutil

    folder = shutil.copytree(written("prototypes"), tmp_path / "run")
    files = write_figures(folder, ("pdf", "svg", "png"), 60)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(path.name for path in files)
    assert all(path.read_bytes().startswith(BEGINNINGS[path.suffix[1:]]) for path in files)
    assert len(files) == 3 * len(dict(figures_of(FinishedRun(folder))))
    small = next(path for path in files if path.suffix == ".png").stat().st_size
    again = write_figures(folder, ("png",), 240)
    assert again[0].stat().st_size > small


def test_a_finished_run_gives_its_figures_when_they_are_asked_for_later(written, tmp_path):
    out = tmp_path / "run"
    command = ["residuals", "MODEL", "-n", "4", "--steps", "5", "-o", str(out)]
    command[1] = str(next((written("prototypes").parent.parent / "models").iterdir()))
    for more, files in (([], 0), (["--format", "pdf,svg", "--dpi", "60"], 2)):
        done = CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert len(list(out.glob("figures/*"))) == files
    assert "2 files" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--format", "gif"], "'gif' is no format of figures: expected some of pdf,svg,png"),
        (["--format", "pdf,"], "'' is no format of figures"),
        (["--dpi", "100"], "--dpi is of figures that --format asks for"),
    ],
)
def test_a_format_that_is_not_known_is_refused_before_anything_is_computed(given, said, tmp_path):
    done = CliRunner().invoke(app, ["field", "no/model", "-o", str(tmp_path / "run"), *given])
    assert isinstance(done.exception, fmprobe.InputError)
    assert said in str(done.exception)
    assert not (tmp_path / "run").exists()
