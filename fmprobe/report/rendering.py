"""Values as markup: templates, numbers as text, figures as inline SVG."""

import base64
import hashlib
import io
import math
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from fmprobe.glossary import TERMS, anchor
from fmprobe.tables import number, rounded

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.finished import FinishedRun

# Colours of a plot that are replaced by those of the page, light or dark, if it is on one.
INKS = {
    "#000000": "currentColor",
    "#808080": "var(--soft, #808080)",
    "#cccccc": "var(--line, #cccccc)",
    "#ffffff": "var(--page, transparent)",
    "#0072b2": "var(--blue, #0072b2)",
}


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fmprobe.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "rounded": rounded,
        "percent": percent,
        "number": number,
        "linked": linked,
        "anchor": anchor,
    }
    return environment


def render(template: str, **values: Any) -> "Markup":
    """Fill a template of the folder `templates` with values, as markup."""
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(**values))


def text_of(name: str) -> "Markup":
    """A file of the folder `templates`, unchanged."""
    from importlib.resources import files

    from markupsafe import Markup

    return Markup((files("fmprobe.report") / "templates" / name).read_text(encoding="utf-8"))


def digest_of(script: str) -> str:
    """The SHA-256 by which the policy of a page permits its script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def known(values: Iterable[float | None]) -> list[float]:
    """Numbers for a plot, with nan for those that are unknown or not finite."""
    return [math.nan if value is None else value for value in values]


def percent(share: float, digits: int = 1) -> str:
    """A share in percent, without the sign."""
    return f"{100 * share:.{digits}f}"


def plot(figure: "Figure", title: str, run: "FinishedRun | None" = None) -> "Markup":
    """A figure for the page of a run. The title says in words what it shows."""
    from markupsafe import Markup, escape

    svg = to_svg(figure, str(escape(title)), f"r{run.index if run else 0}-{title}")
    width = round(72 * figure.get_figwidth())  # in points, so that the page knows how small its labels may become
    about = f'role="group" aria-label="{escape(title)}" tabindex="0"'  # it can be scrolled where the window is narrow
    return Markup(f'<div class="plot" style="--width: {width}px" {about}>{svg}</div>')


def to_svg(figure: "Figure", title: str, prefix: str | None = None) -> str:
    """An SVG element that scales and takes the page's colours. Its title describes it to those who cannot see it.

    Identifiers carry the `prefix`, so that they differ from those of other plots on the page.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fmprobe"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", prefix or title)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", svg)
    svg = re.sub("|".join(INKS), lambda found: INKS[found[0]], svg)
    svg = svg.replace("<text ", '<text fill="currentColor" ').replace("<text>", '<text fill="currentColor">')
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)  # so that the page's font is used
    viewbox = re.search(r'viewBox="[\d. ]*"', svg)
    head = f'<svg {viewbox[0] if viewbox else ""} role="img" aria-labelledby="{prefix}-title">'
    return f'{head}<title id="{prefix}-title">{title}</title>{svg[svg.index(">") + 1 :]}'


def linked(text: str) -> "Markup":
    """Text in which the first mention of each term links to the page's glossary and shows its meaning as a title."""
    from markupsafe import Markup, escape

    left = {term.lower(): term for term in TERMS}
    longest = sorted(left, key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, longest))})(?=s?\b)", re.IGNORECASE)

    def link(found: re.Match[str]) -> str:
        if (term := left.pop(found[0].lower(), None)) is None:
            return found[0]
        return f'<a class="term" href="#{anchor(term)}" title="{escape(TERMS[term])}">{found[0]}</a>'

    return Markup(pattern.sub(link, str(escape(text))))
