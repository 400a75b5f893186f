"""What a search in which no orbit settled means, and which commands are worth trying next, by what was seen."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fmprobe.report.sections import Section
from fmprobe.tables import Table

if TYPE_CHECKING:
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.runs.plan import Plan

COMMANDS = 3  # that are named
MORE = 4  # times as many steps


def nothing_settled(
    model: "Autoencoder", noise: Mapping[str, Any], plan: "Plan", survives: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The entry `nothing_settled` of `results.json`: what it means, and three commands with the reason for each.

    Args:
        model: the model that was searched.
        noise: the entry `orbits.noise`, with its readings.
        plan: the plan of the search.
        survives: the entry `what_survives`, where an encoder without a decoder was probed.
    """
    from fmprobe.dynamics.readings import Regime

    regime = noise["exponent"]["regime"]
    meaning = next((one.meaning for one in Regime if one.label == regime), "no start has a reading")
    chosen = list(_worth_trying(model.name, regime, noise, plan, survives))[:COMMANDS]
    return {
        "nothing_settled": {
            "meaning": f"{meaning[0].upper()}{meaning[1:]}.",
            "next": [{"command": f"fmprobe {command}", "reason": reason} for command, reason in chosen],
        }
    }


def _worth_trying(
    name: str, regime: str | None, noise: Mapping[str, Any], plan: "Plan", survives: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    """Commands and reasons, those that fit what was seen best first."""
    status, of, seed = noise["status"], noise["starts"], plan.seed
    if regime == "diverged":
        yield f"contraction {name} --seed {seed}", "orbits leave every bound: this measures by how much f expands"
    if regime == "still settling" or 2 * status["slow"] > of:
        more = f"probe {name} --max-steps {MORE * plan.max_steps} -o runs/longer"
        yield more, "orbits still approach where they would rest: give them more steps"
    if status["converged"]:
        finer = f"probe {name} --tol {plan.tol / 100:g} -o runs/finer"
        yield finer, f"{status['converged']} starts met the tolerance too far from a fixed point: make it stricter"
    if survives is not None and survives["settles_to"] is None:
        yield f"capacity {name} --k 1 --k 2 --k 4 --k 8", "a latent that keeps fewer numbers contracts more"
    if survives is not None and survives["settles_to"] is not None:
        closed = f"probe {name} --surrogate closed-form -o runs/closed-form"
        yield closed, f"with {survives['settles_to']} principal components orbits settle"
    if regime != "diverged":
        ends = f"weights {name} --data IMAGES --use-ends"
        yield ends, "the ends of orbits can reconstruct images where there are no attractors"
        yield f"contraction {name} --seed {seed}", "this measures by how much f contracts or expands"
    yield f"residuals {name} --seed {seed}", "this follows every step, and no orbit ends early"
    yield f"ood {name} --data IMAGES --ood OTHERS", "trajectories can tell images apart without coming to rest"


def lines(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it means, and the commands."""
    rows = [("nothing settled", entry["meaning"])]
    return rows + [("worth trying", f"{one['command']}: {one['reason']}") for one in entry["next"]]


def tables(entry: Mapping[str, Any]) -> list[Table]:
    """The meaning, and one row per command."""
    rows = [(one["command"], one["reason"]) for one in entry["next"]]
    return [Table("Commands worth trying next", rows, ("command", "why"), entry["meaning"])]


NOTHING_SETTLED = Section(
    "nothing_settled",
    "Nothing settled",
    "No orbit came to rest, so that there is no attractor to show. How fast neighbouring orbits part, over how many "
    "directions they spread and the mean picture along them do not hang on a single orbit: the sections on what orbits "
    "do in the long run have them.",
    lines=lines,
    tables=tables,
)
