"""The table of the probes, one line each. The module of a probe holds its command, result, tables, figures and
sections.

The modules are imported by name when they are needed. So neither this module nor the page that shows what probes found
depends on a probe. And `fmprobe --help` stays fast as long as each probe imports torch inside its functions.
"""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmprobe.report.sections import Section

# The names of modules in `fmprobe.probes`, in the order of the page.
PROBES = (
    "capacity",
    "prototypes",
    "weights",
    "memorization",
    "field",
    "convergence",
    "contraction",
    "residuals",
    "alignment",
    "ood",
    "score",
)


def probes() -> Iterator[ModuleType]:
    """The modules of all probes. Each has `COMMANDS`, its functions by name, and `SECTIONS` of the page."""
    for name in PROBES:
        yield import_module(f"fmprobe.probes.{name}")


def sections() -> "Iterator[Section]":
    """The sections of all probes, in the order of the page."""
    for probe in probes():
        yield from probe.SECTIONS
