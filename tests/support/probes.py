"""A probe's command on the demo model, run as a person runs it: what it prints, keeps, and shows on its page."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from markupsafe import escape

from fmprobe.files import read_json
from fmprobe.registry import sections
from fmprobe.report.page import write_report
from fmprobe.tables import as_text
from support.runs import command

DEMO = files("fmprobe.demo") / "vit-mae-digits"


def ran(capsys: pytest.CaptureFixture[str], out: Path, name: str, key: str, *options: Any) -> dict[str, Any]:
    """The results of a command that computes by `probe_NAME`, and that computes nothing when it comes again."""
    arguments = [name, DEMO, "-o", out, "--device", "cpu", *options]
    with mock.patch("fmprobe.runs.plan._seconds_per_row", return_value=1e-4):
        assert command(*arguments) == 0
    printed = capsys.readouterr().out
    results = read_json(out / "results.json")
    (section,) = (section for section in sections() if section.key == key)
    shown = section.tables(results[key])
    assert as_text(shown) in printed
    for row in section.lines(results[key]):
        assert re.search("^" + " +".join(map(re.escape, row)), printed, re.MULTILINE)
    made = [(out / "report.html").read_text(), write_report(out, out / "again.html").read_text()]
    for page in made:
        assert f">{section.title}</h2>" in page
        part = page[page.index(f'<section id="{section.anchor}"') :]
        part = part[: part.index("</section>")]
        assert "<svg" in part
        cells = [cell.text for table in shown for row in table.cells for cell in row]
        assert [text for text in cells if escape(text) not in part] == []
    with mock.patch(f"fmprobe.probes.{name}.probe_{name}", side_effect=AssertionError("computed again")):
        assert command(*arguments) == 0
    assert f"{out} holds this run already" in capsys.readouterr().out
    assert read_json(out / "results.json") == results
    return results
