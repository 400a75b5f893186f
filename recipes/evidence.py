"""Say which claims of the paper hold here, from the result files of finished runs (Fumero et al., ICLR 2026).

    python recipes/evidence.py                                    # write evidence.md and the tables of both READMEs
    python recipes/evidence.py --list                             # every run with its claims, command and cost
    python recipes/evidence.py --run memorization --minutes 90    # run it, or go on with it, for 90 minutes
    python recipes/evidence.py --run memorization --reduced       # the smaller run, a first answer

1. A run is the command of one recipe, which several claims share. It is stopped after `--minutes`, and the same command
   goes on where it stopped. Everything that it keeps lies in `--work`.
2. When it is complete, its figures go to `recipes/results/RUN.json`, with the command, commit, machine, seeds and cost.
3. Each claim has a rule of agreement, written before the run: in `_claims.py`, and as a sentence in its recipe. The
   rule decides from the figures alone. A claim without a result file is "not run".
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from _claims import CLAIMS, RUNS, Claim, Run
from _rules import AGREES, CANNOT_TELL, DOES_NOT, IN_PART, NOT_RUN, Finding

from fmprobe.errors import InputError
from fmprobe.files import read_json, write_atomically
from fmprobe.progress import duration
from fmprobe.runs.sweeps import results_in
from fmprobe.sharing import alone

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "recipes" / "results"
EVIDENCE = ROOT / "recipes" / "evidence.md"
READMES = (ROOT / "README.md", ROOT / "recipes" / "README.md")
COMMITS = "commits.txt"  # of a run's folder: those that its pieces were computed by
REDUCED = " (reduced)"  # follows the verdict of a smaller run than the one that was planned
WORDS = {  # of each verdict, as the predicate of one claim and of several
    AGREES: ("agrees", "agree"),
    IN_PART: ("agrees in part", "agree in part"),
    DOES_NOT: ("does not agree", "do not agree"),
    CANNOT_TELL: ("cannot be told", "cannot be told"),
    NOT_RUN: ("was not run", "were not run"),
}
BLOCK = re.compile(r"(<!-- evidence: ([\w -]+) -->\n).*?(<!-- end of evidence -->)", re.DOTALL)
HEAD = """# Evidence

`python recipes/evidence.py` writes this file from `recipes/results/`. No figure in it is typed by hand. A verdict is
that of a rule which was written before the run; the rules stand below. "Reduced" is a smaller run than the one that was
planned for the claim, and its command is the one of the smaller run. A dash under "published" marks a question beside
the paper. Costs are those of one processor core; "about" marks an estimate for a run that has not been made.

- **Rank correlation** is Spearman's, with a 95% bootstrap interval over rows. It agrees where the interval excludes 0
  and reaches 0.5 in the direction of the claim, in part where it only excludes 0, and does not where it does neither.
- **Sign test and binomial test** are one-sided, at 5%. A claim does not agree where they say the opposite.
- **A mean** agrees where its 95% bootstrap interval lies inside the bounds, and does not where it lies outside.
- **Cannot tell** is all else: too few rows, or an interval that allows both.
- **Groups**, such as data sets, are judged one by one. A claim agrees in part where some of them agree.
"""


def result_of(run: str) -> dict[str, Any] | None:
    """The result file of a run; None where there is none."""
    path = RESULTS / f"{run}.json"
    return read_json(path) if path.is_file() else None


def finding_of(claim: Claim) -> Finding:
    """What the rule of a claim says of its run."""
    result = result_of(claim.run)
    if result is None or claim.rule is None:
        return Finding(NOT_RUN, "–")
    found, seeds = claim.rule(result["rows"]), len(result["seeds"])
    text = f"{found.text}; {seeds} seed{'s' if seeds > 1 else ''}"
    return Finding(f"{found.verdict}{REDUCED}" if result["reduced"] else found.verdict, text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def cost_of(run: str) -> str:
    result = result_of(run)
    return RUNS[run].cost if result is None else duration(result["processor_seconds"])


def command_of(run: str) -> str:
    """What to type for the run whose figures are shown, or to get them."""
    result = result_of(run)
    reduced = " --reduced" if result and result["reduced"] else ""
    return f"`python recipes/evidence.py --run {run}{reduced}`" if RUNS[run].measurable else f"`{RUNS[run].command}`"


def claims_table(runs: Sequence[str] = tuple(RUNS), *, whole: bool = False) -> str:
    """The claims of some runs; `whole` adds where the paper makes them, the cost and the command."""
    header = ["claim", "published", "obtained", "agrees"]
    rows = []
    for claim in CLAIMS.values():
        if claim.run in runs:
            found = finding_of(claim)
            cells = [f"{claim.text} ({claim.figure})", claim.published, found.text, found.verdict]
            rows.append([*cells, *([cost_of(claim.run), command_of(claim.run)] if whole else [])])
    return table([*header, *(["cost", "command"] if whole else [])], rows)


def means_table(name: str) -> str:
    """The figures of a run: means over the rows of a group, with the least and the largest where there are several."""
    run, result = RUNS[name], result_of(name)
    if result is None:
        return "Not run.\n"
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(result["rows"], key=lambda row: [(isinstance(row[key], str), row[key]) for key in run.by]):
        groups.setdefault(tuple(str(row[key]) for key in run.by), []).append(row)
    part_of = {id(row): f", {row[run.split]}" if run.split else "" for row in result["rows"]}
    columns = [(name, part) for name in run.shown for part in dict.fromkeys(part_of.values())]
    rows = []
    for key, members in groups.items():
        values = [[row[name] for row in members if part_of[id(row)] == part] for name, part in columns]
        rows.append([*key, *map(_mean, values)])
    return table([*run.by, *(name + part for name, part in columns)], rows)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    mean, low, high = (f"{value:.3g}" for value in (sum(known) / len(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low} to {high})"


def count_line() -> str:
    """How many claims of the paper came out how."""
    verdicts = [finding_of(claim).verdict for claim in CLAIMS.values() if claim.published != "–"]

    def counted(suffix: str) -> str:
        """The verdicts of the runs at one size, as the predicates of a sentence."""
        counts = [(verdicts.count(f"{verdict}{suffix}"), WORDS[verdict]) for verdict in WORDS]
        said = [f"{n} {one if n == 1 else more}" for n, (one, more) in counts if n]
        return " and ".join(filter(None, [", ".join(said[:-1]), *said[-1:]])) or "none was decided"

    return (
        f"Of {len(verdicts)} claims of the paper, {counted('')}. At reduced size, {counted(REDUCED)}. "
        "[recipes/evidence.md](recipes/evidence.md) has each.\n"
    )


def block(what: str) -> str:
    """The text of a block of a README, by what its first line asks for: `count`, `claims RUN …` or `means RUN`."""
    kind, *names = what.split()
    if unknown := set(names) - set(RUNS):
        raise InputError(f"unknown run {unknown.pop()!r} in a README: expected one of {', '.join(RUNS)}")
    if kind == "count":
        return count_line()
    return claims_table(names) if kind == "claims" else "".join(map(means_table, names))


def filled(text: str) -> str:
    """A text with its blocks written anew."""
    return BLOCK.sub(lambda found: found[1] + block(found[2]) + found[3], text)


def document() -> str:
    """The content of `evidence.md`."""
    runs = []
    for name, run in RUNS.items():
        if result := result_of(name):
            machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
            seeds = ", ".join(map(str, result["seeds"]))
            runs.append([name, f"`{result['command']}`", cost_of(name), result["commit"], machine, seeds])
        if result is None or result["reduced"]:
            runs.append([name, f"`{run.command}`", run.cost, "not run", "–", "–"])
    rules = [
        f"- **{claim.text}** {claim.rule.words if claim.rule else 'No number decides.'}\n" for claim in CLAIMS.values()
    ]
    header = ["run", "command", "cost", "commit", "machine", "seeds"]
    parts = [HEAD, count_line().split(" [")[0] + "\n", claims_table(whole=True)]
    parts += ["## Runs\n", table(header, runs), "## Rules\n", "".join(rules)]
    return "\n".join(parts)


def write() -> None:
    for path, text in texts():
        write_atomically(path, lambda file, text=text: file.write_text(text, encoding="utf-8"))
        print(path.relative_to(ROOT))


def texts() -> Iterator[tuple[Path, str]]:
    """Every file that takes figures from the results, with what it should hold."""
    yield EVIDENCE, document()
    for path in READMES:
        yield path, filled(path.read_text(encoding="utf-8"))


def asked(run: Run, reduced: bool) -> str:
    """The command of a run of either size."""
    if reduced and run.reduced is None:
        raise InputError(f"there is no smaller run than {run.command!r}: leave out --reduced")
    return run.reduced if reduced and run.reduced else run.command


def compute(run: Run, folder: Path, reduced: bool, minutes: float | None, processes: int) -> bool:
    """Run a command or go on with it; whether it is complete."""
    recipe, *options = shlex.split(asked(run, reduced))[1:]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    before, commit = len(_kept(folder)), _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "fmprobe", "adapters", "recipes/*.py")
    process = subprocess.Popen([sys.executable, *launcher, recipe, *options, "--out", str(folder)], cwd=ROOT)
    try:
        complete = process.wait(None if minutes is None else 60 * minutes) == 0
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        complete = False
    if len(_kept(folder)) > before:
        with (folder / COMMITS).open("a", encoding="utf-8") as file:
            file.write(f"{commit}{' with changes' if changed else ''}\n")
    return complete


def gather(run: Run, folder: Path, reduced: bool) -> dict[str, Any]:
    """The content of a result file, from the folder of a finished run."""
    import torch

    rows = import_module(run.recipe).evidence(folder)
    commits = dict.fromkeys((folder / COMMITS).read_text(encoding="utf-8").splitlines())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "command": asked(run, reduced),
        "reduced": reduced,
        "commit": ", ".join(commits),
        "machine": {"device": device, "cores": os.cpu_count(), "torch": torch.__version__},
        "seeds": sorted({row["seed"] for row in rows}),
        "processor_seconds": round(sum(content.get("processor_seconds", 0) for content in _kept(folder)), 1),
        "rows": [{key: _rounded(value) for key, value in row.items()} for row in rows],
    }


def keep(result: Mapping[str, Any], path: Path) -> None:
    """Write a result file, a line a row, so that changes can be read."""
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=2, allow_nan=False)
    rows = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in result["rows"])
    text = f'{head[:-2]},\n  "rows": [\n{rows}\n  ]\n}}\n'
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _rounded(value: Any) -> Any:
    """Six significant digits; None for a number that is not finite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if abs(value) < float("inf") else None


def _kept(folder: Path) -> list[dict[str, Any]]:
    return (
        [content for path in (folder, *folder.rglob("*/")) for content in results_in(path)] if folder.is_dir() else []
    )


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def listed() -> str:
    """Every run with its commands, its cost, and the claims that it decides."""
    text = ""
    for name, run in RUNS.items():
        claims = [
            f"    {finding_of(claim).verdict:22} {claim.text}\n" for claim in CLAIMS.values() if claim.run == name
        ]
        smaller = "" if run.reduced is None else f"    reduced: {run.reduced}\n"
        text += f"{name}, {cost_of(name)}\n    {run.command}\n{smaller}{''.join(claims)}\n"
    return text


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="Print every run with its claims, command and cost.")
    what.add_argument("--run", choices=[name for name, run in RUNS.items() if run.measurable], help="Run to compute.")
    parser.add_argument("--reduced", action="store_true", help="Compute the smaller run.")
    parser.add_argument("--minutes", type=float, help="Minutes after which the run is stopped. [default: no limit]")
    parser.add_argument("--processes", type=int, default=1, help="Number of processes that share the run.")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="Folder for what runs keep.")
    arguments = parser.parse_args()
    if arguments.list:
        print(listed(), end="")
    elif name := arguments.run:
        digest = sha256(asked(RUNS[name], arguments.reduced).encode()).hexdigest()[:8]
        folder = arguments.work.resolve() / f"{name}-{digest}"  # results of other options stay out of it
        if not compute(RUNS[name], folder, arguments.reduced, arguments.minutes, arguments.processes):
            raise InputError(f"the run {name} is not complete, with {len(_kept(folder))} results: run the same again")
        keep(gather(RUNS[name], folder, arguments.reduced), RESULTS / f"{name}.json")
        print(RESULTS / f"{name}.json")
    else:
        write()


if __name__ == "__main__":
    main()
