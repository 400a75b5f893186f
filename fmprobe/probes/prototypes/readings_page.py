"""The sections on readings: what the orbits do in the long run, and the set that they move on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.report.rendering import render
from fmprobe.report.sections import Section, tables
from fmprobe.tables import Table, number

if TYPE_CHECKING:
    from markupsafe import Markup

    from fmprobe.report.finished import FinishedRun


def exponent_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The exponent with its interval and the regime that most starts share; the dimension of the set."""
    rows, noise = [], found["noise"]
    if exponent := noise.get("exponent"):
        rows.append(("exponent", f"{_value(exponent)}, {exponent['regime'] or 'no start has a reading'}"))
    if limit := noise.get("set"):
        rows.append(("dimension", _dimension(limit)))
    return rows


def _value(exponent: Mapping[str, Any]) -> str:
    """The median with its interval; a dash stands for what is not known or minus infinity."""
    if exponent["median"] is None:
        return number(None, "")
    low, high = (number(bound, ".3f") for bound in exponent["interval"])
    return f"{exponent['median']:.3f} nats a step ({low} to {high})"


def _dimension(limit: Mapping[str, Any]) -> str:
    within, pooled = limit["dimension"]["within"], limit["dimension"]["pooled"]
    return f"{number(within, '.1f')} along an orbit, {number(pooled, '.1f')} of {len(limit['starts'])} orbits together"


def readings(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """The exponent, and how many starts have which reading and what each says. It is empty for a run without them."""
    from markupsafe import Markup

    from fmprobe.dynamics.readings import Regime

    exponent = found["noise"].get("exponent")
    if not exponent:
        return Markup("")
    rows = [{"name": r.label, "count": exponent["regimes"][r.label], "meaning": r.meaning} for r in Regime]
    among = "all" if exponent["read"] == found["noise"]["starts"] else f"the first {exponent['read']}"
    facts: list[tuple[str, Any]] = [(f"median exponent of {among} starts", _value(exponent))]
    if exponent["measured"]:
        steps, burn_in = exponent["steps"], exponent["burn_in"]
        said = f"{steps} steps each, after {burn_in} that do not count, by {exponent['method']}"
        facts += [
            ("orbits followed on", f"{exponent['measured']}: {said}"),
            ("standard error of one orbit, median", number(exponent["standard_error"], ".3f")),
        ]
    table = tables([Table("How neighbouring orbits part or meet", facts)])
    return render("readings.html", words=exponent["words"], readings=rows, facts=table)


def limit_set(found: Mapping[str, Any], run: "FinishedRun") -> "Markup":
    """The dimension of the set that orbits move on, its mean picture and a film. It is empty where orbits settle."""
    from markupsafe import Markup

    limit = found["noise"].get("set")
    if not limit:
        return Markup("")
    facts = [("orbits and steps", f"{len(limit['starts'])} of {limit['steps']} steps"), *_facts(limit["dimension"])]
    rows, sheet, film, stops = [], None, None, []
    if pictures := limit.get("pictures"):
        facts.append(("deviation of a pixel along an orbit, root mean square", number(pictures["variation"], ".3f")))
        sheet = run.sprite(pictures["file"], rows=pictures["rows"], columns=2)
        filmed = limit.get("film", {}).get("starts", [])
        rows = ["all orbits", *(f"start {start}" for start in filmed)][: pictures["rows"]]
    labels: list[str] = []
    if frames := limit.get("film"):
        labels, stops = [f"start {start}" for start in frames["starts"]], [*map(str, frames["steps"])]
        film = run.sprite(frames["file"], rows=len(labels), columns=len(stops))
    film = film and render("film.html", film=film, labels=labels, stops=stops, id=f"r{run.index}-set")
    table = tables([Table("The set", facts)])
    return render("limit_set.html", facts=table, sheet=sheet, rows=rows, film=film)


def _facts(dimension: Mapping[str, float | None]) -> list[tuple[str, str]]:
    return [
        ("effective dimension along an orbit, median", number(dimension["within"], ".1f")),
        ("effective dimension of all orbits together", number(dimension["pooled"], ".1f")),
    ]


READINGS = (
    Section(
        "orbits",
        "What the orbits do in the long run",
        "Each start has a reading, whether its orbit settled or not. The largest Lyapunov exponent says how fast "
        "neighbouring orbits part. Below 0 they meet. Above 0 they part and the orbit is chaotic. Between them, within "
        "the error, the orbit is quasi-periodic.",
        lines=exponent_lines,
        body=readings,
    ),
    Section(
        "orbits",
        "Where orbits do not settle",
        "A few orbits that do not come to rest are followed on from their ends. The effective dimension says over how "
        "many directions their latents are spread. It is at most the number of steps.",
        body=limit_set,
    ),
)
