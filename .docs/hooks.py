"""Pages that are made of what stands elsewhere: the texts of the repository, the public names, the commands' help."""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

import fmprobe

ROOT = Path(__file__).parents[1]
# Links of the repository's texts, as they are among the pages.
LINKS = {
    ".docs/pages/": "",
    "recipes/README.md": "recipes.md",
    "recipes/evidence.md": "evidence.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page by its front matter: `source`, a file of the repository, or `made`, a function below."""
    if source := page.meta.get("source"):
        text = (ROOT / source).read_text(encoding="utf-8")
        for here, there in LINKS.items():
            text = text.replace(f"]({here}", f"]({there}")
        return re.sub(r"\[(CITATION\.cff)\]\(\1\)", r"\1", text)
    made = {"reference": reference, "commands": commands, "glossary": glossary}.get(page.meta.get("made"))
    return markdown + made() if made else markdown


def reference() -> str:
    """Every public name, by module."""
    homes = sorted((fmprobe._HOMES[name], name) for name in fmprobe.__all__)
    text = ""
    for room, names in groupby(homes, key=lambda pair: pair[0].split(".")[1]):
        text += f"\n## {room}\n" + "".join(f"\n::: {home}.{name}\n" for home, name in names)
    return text


def commands() -> str:
    """The --help of every command."""
    import typer
    from typer.testing import CliRunner

    from fmprobe.cli import app

    group: Any = typer.main.get_command(app)
    text = ""
    for name in group.commands:
        shown = CliRunner().invoke(app, [name, "--help"], prog_name="fmprobe", terminal_width=100)
        text += f"\n## {name}\n\n```text\n{shown.output.strip()}\n```\n"
    return text


def glossary() -> str:
    """Every term that results use."""
    from fmprobe.glossary import TERMS

    return "".join(f"\n## {term}\n\n{meaning}\n" for term, meaning in TERMS.items())
