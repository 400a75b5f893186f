"""What commands print: a table for people, JSON alone for machines, or nothing."""

import json
import shutil

import pytest
from support.written import IMAGES
from typer.testing import CliRunner

from fmprobe.cli import app, main
from fmprobe.files import read_json
from fmprobe.report.summary import as_table, summary


@pytest.fixture(scope="module")
def folder(written, tmp_path_factory):
    return shutil.copytree(written("run"), tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_json_is_all_of_stdout_and_messages_go_to_stderr(folder, run):
    done = run("report", folder, "--json")
    assert json.loads(done.stdout) == {"report": str(folder / "report.html")}
    assert done.stderr.startswith("report ")
    assert {row["family"] for row in json.loads(run("models", "--json").stdout)} >= {"mae", "vit"}


def test_quiet_prints_nothing_and_does_the_work(folder, run, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "")
    (folder / "report.html").unlink(missing_ok=True)
    done = run("report", folder, "--quiet")
    assert done.output == ""
    assert (folder / "report.html").is_file()
    done = run("models", "--quiet", "--json")
    assert json.loads(done.stdout)
    assert done.stderr == ""


def test_every_command_has_both_options(run):
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        shown = run(name, "--help").output
        assert "--json" in shown, name
        assert "--quiet" in shown, name


def test_the_table_holds_what_was_found_and_no_more(written):
    results = {name: read_json(written(name) / "results.json") for name in ("run", "language", "surrogate", "ood")}
    for name in ("run", "language"):
        noise = results[name]["orbits"]["noise"]
        ended = ", ".join(f"{count} {status}" for status, count in noise["status"].items() if count)
        assert dict(summary(results[name]))["orbits"] == f"{ended} of {noise['starts']}"
    rows, found = dict(summary(results["run"])), results["run"]["attractors"]
    assert rows["attractors"].startswith(f"{found['count']} by relative distance 0.01")
    low, high = min(found["spectral_radius"]), max(found["spectral_radius"])
    assert rows["spectral radius"] == f"{low:.3f} to {high:.3f}"
    (curves,) = results["run"]["weights"]["data"].values()
    errors = {name: row["image_mse"][-1]["mean"] for name, row in curves["dictionaries"].items()}
    best = min(errors.keys() - {"attractors"}, key=lambda name: errors[name])
    text = f"attractors {errors['attractors']:.4f}; best of the others, {best} {errors[best]:.4f}"
    assert text in rows[f"weights, {IMAGES}.npz:known"]
    scores = results["ood"]["ood"]["scores"]
    auroc = {score["name"]: 100 * score["sets"]["<u>far"]["auroc"] for score in scores}
    assert dict(summary(results["ood"]))["ood, <u>far"].startswith(
        f"AUROC {auroc['features']:.1f} by 'features', {auroc['joined']:.1f} by 'joined', "
        f"{auroc['trajectory']:.1f} by 'trajectory', "
    )
    assert "surrogate" in dict(summary(results["surrogate"]))["decoder"]
    lines = as_table(summary(results["run"])).splitlines()
    assert len({len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines}) == 1  # one left edge of values
    assert as_table([]) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["empty"], "empty holds no results.json"),
        (["other"], "is of schema 2, and this version reads 1"),
        (["RUN", "empty"], "empty holds no results.json"),
        (["RUN", "--out", "empty"], "empty is a folder"),
        (["RUN", "--out", "file/page.html"], "cannot write file/page.html"),
    ],
)
def test_what_no_page_can_be_made_of_ends_with_2_and_one_line(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text('{"schema": 2}')
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fmprobe", "report", *(str(folder) if a == "RUN" else a for a in arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "other", "file"}
