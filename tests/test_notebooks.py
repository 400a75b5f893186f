"""The notebooks run from top to bottom, offline, and what they keep is what a reader gets."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "recipes" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def outputs(notebook):
    """All but bars of progress, which a fast machine never shows."""
    every = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in every if "application/vnd.jupyter.widget-view+json" not in output.get("data", {})]


def kinds(notebook):
    """What was shown in which way, each way once: a stream may come in parts."""
    return dict.fromkeys((output.output_type, *sorted(output.get("data", ()))) for output in outputs(notebook))


def test_there_is_one_for_each_way_to_begin():
    assert len(NOTEBOOKS) >= 5
    for path in NOTEBOOKS:
        first = nbformat.read(path, 4).cells[0]
        assert first.cell_type == "markdown"
        assert first.source.startswith("# ")
        assert "colab.research.google.com" in first.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_offline_and_shows_what_it_keeps(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, 4)
    kept = kinds(notebook)
    text = str([output.get("text") or output.get("data") for output in outputs(notebook)])
    assert kept
    assert not any(folder in text for folder in ("/home/", "/tmp/", "/root/", "site-packages", str(FOLDER.parents[1])))
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs(notebook))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert kinds(notebook) == kept
