"""The probes: one line each. A probe's module holds its command, its result, its tables and figures, and its sections.

The modules are imported by name when they are needed. So nothing here, nor the page that shows what probes found,
depends on a probe, and `fmprobe --help` stays fast as long as a probe imports torch inside its functions.
"""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmprobe.report.sections import Section

# In the order of the page. The name is that of the module in `fmprobe.probes`.
PROBES = (
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
    """The modules of all probes. Each has `COMMANDS`, functions by name, and `SECTIONS`, of the page."""
    for name in PROBES:
        yield import_module(f"fmprobe.probes.{name}")


def sections() -> "Iterator[Section]":
    """The sections of all probes, in the order of the page."""
    for probe in probes():
        yield from probe.SECTIONS
