"""The page of an atlas, for the tests of what it says and of what a browser shows of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.quick import drawn
from support.rows import rows_of_every_kind
from support.written import Written

from fmprobe.report.atlas import Row, write_atlas


@pytest.fixture(scope="session")
def atlas_rows(written: Written, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return rows_of_every_kind(written, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def atlas_page(atlas_rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "atlas.html"
    write_atlas(path, atlas_rows, ["--starts", "12"])
    return path


@pytest.fixture(scope="module", autouse=True)
def drawn_pages() -> Iterator[None]:
    """Tests of pages and figures have them drawn."""
    with drawn():
        yield
