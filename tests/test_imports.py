"""The import rules of CONTRIBUTING.md: no circle, and no import of a line above."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import fmprobe

PACKAGE = Path(fmprobe.__file__).parent
GUIDE = PACKAGE.parent / "CONTRIBUTING.md"
FILES = {
    ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import of a file, in functions too; not those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from statements(child)


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    found = set()
    for statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif statement.module:
            named = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= {name if name in FILES else statement.module for name in named}
    return {name for name in found if name in FILES}


GRAPH = {name: imports(path) - {name} for name, path in FILES.items() if name not in ("fmprobe", "fmprobe.__main__")}


def lines() -> dict[str, int]:
    """The number of the line that each room stands on, the highest first."""
    block = GUIDE.read_text(encoding="utf-8").split("## Import rules")[1].split("```")[1]
    rows = [row.split() for row in block.strip().splitlines()]
    return {room: i for i, row in enumerate(rows) for room in row}


def room(name: str) -> str:
    return name.split(".")[1]


def test_no_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"modules import one another in a circle: {' <- '.join(error.args[1])}")


def test_every_room_stands_on_one_line():
    assert sorted(lines()) == sorted({room(name) for name in GRAPH})


def test_no_import_goes_up():
    place = lines()
    upward = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others - {"fmprobe"}
        if room(other) != room(name) and place[room(other)] <= place[room(name)]
    ]
    assert upward == []


def test_the_mathematics_imports_nothing_but_seeding_and_progress():
    used = {other for name, others in GRAPH.items() if room(name) == "dynamics" for other in others}
    assert {room(other) for other in used} <= {"dynamics", "seeding", "progress"}


def test_the_package_itself_gives_its_version_alone():
    """Whoever imports more from the root hides where it comes from."""
    for name, path in FILES.items():
        for statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.ImportFrom) and statement.module == "fmprobe":
                taken = {alias.name for alias in statement.names}
                assert taken == {"__version__"} or {f"fmprobe.{alias}" for alias in taken} <= FILES.keys(), name
            elif isinstance(statement, ast.Import):
                assert "fmprobe" not in {alias.name for alias in statement.names}, name


def third_party() -> set[str]:
    """Other people's packages that the library and the adapters import, in functions too."""
    found = set()
    for root in (PACKAGE, PACKAGE.parent / "adapters"):
        for path in root.rglob("*.py"):
            for one in statements(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in one.names] if isinstance(one, ast.Import) else [one.module or ""]
                found |= {name.split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"fmprobe", "fmprobe_adapters", ""}


def test_a_package_is_required_if_and_only_if_it_is_imported():
    """Those of an extra are named there, and what needs them says so."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {re.split(r"[>=\[]", line)[0] for line in project["dependencies"]}
    of = packages_distributions()
    imported = {of[name][0].lower().replace("-", "_") for name in third_party()}
    assert imported - {"diffusers"} == {name.lower().replace("-", "_") for name in required}
    assert project["optional-dependencies"]["diffusers"]
