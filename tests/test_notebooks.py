"""The notebooks run from top to bottom, offline, and what they keep is what a reader gets."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from nbformat import v4

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


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """A kernel for all of them, which has paid for the imports once the first has run."""
    manager, client = start_new_kernel()  # its environment is that of the tests, where no hub is asked
    client.stop_channels()
    yield manager
    manager.shutdown_kernel(now=True)


def run(notebook, kernel, folder):
    """Execute a notebook in a folder, without anything that one before it left in the kernel."""
    clean = v4.new_code_cell(f"%reset -f\n%cd -q {folder}")
    begun = v4.new_notebook(metadata=notebook.metadata, cells=[clean, *notebook.cells])
    NotebookClient(begun, km=kernel, timeout=300).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_offline_and_shows_what_it_keeps(path, kernel, tmp_path):
    notebook = nbformat.read(path, 4)
    kept = kinds(notebook)
    text = str([output.get("text") or output.get("data") for output in outputs(notebook)])
    assert kept
    assert not any(folder in text for folder in ("/home/", "/tmp/", "/root/", "site-packages", str(FOLDER.parents[1])))
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs(notebook))
    run(notebook, kernel, tmp_path)
    assert kinds(notebook) == kept
