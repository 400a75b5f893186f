"""Rules decide as they say, and no figure of the texts differs from the result file that it comes from."""

import json
import math
import re
import subprocess
import sys
from importlib import import_module
from typing import Any

import _claims
import _rules
import capacity
import evidence
import numpy as np
import pytest
from _claims import CLAIMS, RUNS
from _rules import Finding, Mean, RankCorrelation, Share, SignTest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from fmprobe.errors import InputError
from fmprobe.files import read_json
from fmprobe.runs.sweeps import results_in, sweep


def rows(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def correlated(n, rho):
    """Two samples whose Pearson correlation is rho itself."""
    x, noise = np.random.default_rng(0).standard_normal((2, n))
    x = (x - x.mean()) / x.std()
    noise -= noise.mean() + (noise * x).mean() * x
    return x.tolist(), (rho * x + math.sqrt(1 - rho**2) * noise / noise.std()).tolist()


def rho_of(x, y) -> float:
    found: Any = spearmanr(x, y)
    return found.statistic


@given(arrays(float, (3, 2, 9), elements=st.integers(0, 4).map(float)))
@settings(max_examples=40, deadline=None)
def test_the_correlation_is_scipys_for_each_resample_and_0_without_spread(samples):
    found = _rules.spearman(samples[:, 0], samples[:, 1])
    for (x, y), value in zip(samples, found, strict=True):
        flat = np.ptp(x) == 0 or np.ptp(y) == 0
        assert value == pytest.approx(0 if flat else rho_of(x, y), abs=1e-12)


def test_the_interval_of_a_correlation_is_near_that_of_fishers_transform():
    x, y = correlated(400, 0.6)
    found = re.search(
        r"correlation (\S+) \((\S+) to (\S+)\), n = 400", RankCorrelation("x", "y", 1)(rows(x=x, y=y)).text
    )
    assert found
    rho = rho_of(x, y)
    spread = 1.96 * math.sqrt((1 + rho**2 / 2) / (400 - 3))  # Bonett and Wright (2000)
    expected = (rho, math.tanh(math.atanh(rho) - spread), math.tanh(math.atanh(rho) + spread))
    assert tuple(map(float, found.groups())) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("n", "rho", "verdict"),
    [
        (8, 1, "agrees"),
        (7, 1, "cannot tell"),
        (8, -1, "does not"),
        (120, 0.3, "in part"),
        (120, 0, "does not"),
        (120, -0.3, "does not"),
        (12, 0.2, "cannot tell"),
    ],
)
def test_a_rank_correlation_decides_by_its_interval(n, rho, verdict):
    x, y = correlated(n, rho)
    assert RankCorrelation("x", "y", 1)(rows(x=x, y=y)).verdict == verdict
    falling = RankCorrelation("x", "y", -1)(rows(x=x, y=[-value for value in y]))
    assert falling.verdict == verdict


def test_a_rank_correlation_leaves_out_what_is_not_known_and_needs_spread():
    known = rows(x=list(range(8)), y=list(range(8)))
    rule = RankCorrelation("x", "y", 1)
    more = [*known, {"x": 9, "y": None}, {"x": math.nan, "y": 1}, {"x": 3, "y": math.inf}, {"x": 3}]
    assert rule(more) == rule(known)
    assert rule(known[:7]).verdict == "cannot tell"
    assert rule(rows(x=[1] * 9, y=list(range(9)))).verdict == "cannot tell"
    assert rule([{"x": 1, "y": None}]).verdict == "cannot tell"


def tail(count, total, share):
    """Probability of at least `count` of `total`."""
    return sum(math.comb(total, i) * share**i * (1 - share) ** (total - i) for i in range(count, total + 1))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 3))
@settings(deadline=None)
def test_a_sign_test_decides_by_the_binomial_tails(up, down, ties):
    values = [0.5] * up + [-2.0] * down + [0] * ties + [None, math.nan]
    found = SignTest("d")([{"d": value} for value in values])
    total = up + down
    high, low = total and tail(up, total, 0.5) < 0.05, total and tail(down, total, 0.5) < 0.05
    assert found.verdict == ("agrees" if high else "does not" if low else "cannot tell")
    assert f"{up} of {total} positive" in found.text or total == 0


def test_five_seeds_that_agree_are_enough_and_three_are_not():
    for n, verdict in ((3, "cannot tell"), (4, "cannot tell"), (5, "agrees")):
        assert SignTest("d")([{"d": 1}] * n).verdict == verdict
        assert Share("d")([{"d": True}] * n).verdict == verdict


@given(st.integers(0, 40), st.integers(0, 40))
@settings(deadline=None)
def test_a_share_decides_by_the_binomial_tails_of_its_own_share(holds, fails):
    found = Share("ok", more_than=0.9)([{"ok": True}] * holds + [{"ok": False}] * fails + [{"ok": None}, {}])
    total = holds + fails
    high, low = total and tail(holds, total, 0.9) < 0.05, total and tail(fails, total, 0.1) < 0.05
    assert found.verdict == ("agrees" if high else "does not" if low else "cannot tell")


def test_a_unit_holds_where_all_of_its_rows_do():
    ten = [{"net": net, "ok": True} for net in range(10) for _ in range(3)]
    assert Share("ok", unit="net")(ten) == Share("ok")([{"ok": True}] * 10)
    one_fails = [*ten, {"net": 0, "ok": False}]
    assert "9 of 10" in Share("ok", unit="net")(one_fails).text


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.7, 0.8] * 4, "agrees"),
        ([0.7, 0.8] * 3, "cannot tell"),
        ([0.1, 0.2] * 4, "does not"),
        ([1.1, 1.2] * 4, "does not"),
        ([0.1, 0.9] * 4, "cannot tell"),
        ([0.8, 1.2] * 4, "cannot tell"),
        ([None, math.nan], "cannot tell"),
    ],
)
def test_a_mean_decides_by_whether_its_interval_lies_inside(values, verdict):
    assert Mean("rho", 0.5, 1)([{"rho": value} for value in values]).verdict == verdict


def test_the_interval_of_a_mean_is_near_that_of_students_t():
    values = np.random.default_rng(1).normal(3, 2, 200)
    found = re.search(r"mean (\S+) \((\S+) to (\S+)\), n = 200", Mean("v", 0, 9)([{"v": v} for v in values]).text)
    assert found
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    expected = (values.mean(), values.mean() - half, values.mean() + half)
    assert tuple(map(float, found.groups())) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["agrees", "agrees"], "agrees"),
        (["agrees", "does not"], "in part"),
        (["agrees", "cannot tell"], "in part"),
        (["in part", "does not"], "in part"),
        (["does not", "cannot tell"], "does not"),
        (["cannot tell", "cannot tell"], "cannot tell"),
    ],
)
def test_groups_are_judged_alone_and_combined(verdicts, whole):
    assert _rules.combined(verdicts) == _rules.combined(reversed(verdicts)) == whole


def test_a_group_does_not_borrow_rows_from_another():
    both = [{"set": "a", "d": 1}] * 5 + [{"set": "b", "d": -1}] * 5
    found = SignTest("d", by="set")(both)
    assert found.verdict == "in part"
    assert found.text.count("5 of 5 positive") == found.text.count("0 of 5 positive") == 1
    assert SignTest("d", by="set")([]) == Finding("not run", "–")


def test_each_rule_stands_in_the_docstring_of_its_recipe():
    for claim in CLAIMS.values():
        if claim.rule is not None and RUNS[claim.run].command.startswith("python"):
            path = evidence.ROOT / "recipes" / f"{RUNS[claim.run].recipe}.py"
            docstring = path.read_text(encoding="utf-8").split('"""')[1]
            assert claim.rule.words in " ".join(docstring.split())


RESULTS = sorted(evidence.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_file_says_what_made_it_and_serves_its_claims(path):
    result, run = read_json(path), RUNS[path.stem]
    assert result["command"] == (run.reduced if result["reduced"] else run.command)
    assert {"commit", "machine", "seeds", "processor_seconds", "rows"} <= result.keys()
    assert re.fullmatch(r"[0-9a-f]{40}(, [0-9a-f]{40})*", result["commit"])  # none with changes
    assert {row["seed"] for row in result["rows"]} == set(result["seeds"])
    assert not re.search(r"(?<![\w.])/\w", json.dumps(result))  # no path of a machine
    assert {*run.by, *run.shown, *([run.split] if run.split else [])} <= result["rows"][0].keys()
    for claim in CLAIMS.values():
        if claim.run == path.stem and claim.rule:
            columns = [getattr(claim.rule, name, None) for name in ("x", "y", "column", "by", "unit")]
            assert {column for column in columns if column} <= result["rows"][0].keys()


def test_every_text_has_the_figures_of_the_result_files():
    for path, text in evidence.texts():
        assert path.read_text(encoding="utf-8") == text, f"run python recipes/evidence.py: {path.name} differs"


def test_another_figure_in_a_result_file_would_be_noticed(tmp_path, monkeypatch):
    for path in RESULTS:
        result = read_json(path)
        for row in result["rows"]:
            row |= {key: value + 0.1 for key, value in row.items() if type(value) is float}
        evidence.keep(result, tmp_path / path.name)
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    changed = {str(path.relative_to(evidence.ROOT)) for path, text in evidence.texts() if path.read_text() != text}
    assert "recipes/README.md" in changed


def test_a_typed_figure_in_a_block_is_written_over_and_the_rest_stays():
    text = "before 1\n<!-- evidence: means demo -->\n| typed 0.5 |\n<!-- end of evidence -->\nafter 2\n"
    found = evidence.filled(text)
    assert found.startswith("before 1\n")
    assert found.endswith("\nafter 2\n")
    assert "typed" not in found
    assert evidence.filled(found) == found
    with pytest.raises(InputError, match="unknown run 'nothing'"):
        evidence.filled("<!-- evidence: claims nothing -->\n<!-- end of evidence -->")


def test_a_claim_without_a_result_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    assert {evidence.finding_of(claim) for claim in CLAIMS.values()} == {Finding("not run", "–")}
    text = evidence.document()
    assert all(f"`{run.command}` | {run.cost}" in text for run in RUNS.values())


def test_a_result_file_holds_a_row_a_line_and_no_number_that_is_not_finite(tmp_path):
    rows = [{"seed": 0, "value": evidence._rounded(value)} for value in (1 / 3, math.nan, math.inf)]
    evidence.keep({"command": "c", "rows": rows}, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert read_json(tmp_path / "a.json") == {"command": "c", "rows": rows}
    assert [row["value"] for row in rows] == [0.333333, None, None]
    assert sum('"seed"' in line for line in text.splitlines()) == 3


@pytest.mark.parametrize(
    ("regime", "apart", "holds"),
    [
        ("chaotic", 4.0, True),
        ("chaotic", -4.0, True),
        ("chaotic", 2.0, False),
        ("settled", 4.0, False),
        (None, 4.0, False),
    ],
)
def test_a_diagram_over_capacity_counts_as_chaotic_where_it_says_so_and_the_null_is_far_away(
    tmp_path, regime, apart, holds
):
    point = {"k": 4, "form": "ridge", "set": "A", "starts": 8, "settled": 0, "attractors": 0, "exponent": 0.3}
    point |= {"l1": 0.1, "l1_median": 0.2}
    found = {"capacity": [point, {**point, "set": "null"}], "agreement": []}
    found["what_survives"] = {"full": regime, "apart": apart}
    content = {"settings": {"encoder": "e", "seed": 0}, "result": found}
    (tmp_path / "e.json").write_text(json.dumps(content))
    (row,) = capacity.evidence(tmp_path)
    assert row[capacity.ALL_FEATURES] is holds
    assert row["below the median colour"] == pytest.approx(0.5)


SLOW = """
import sys, time
from pathlib import Path
from json import dumps
folder = Path(sys.argv[sys.argv.index("--out") + 1])
folder.mkdir(parents=True, exist_ok=True)
for i in range(3):
    path = folder / f"{i}.json"
    if not path.exists():
        time.sleep(60 if i == 1 and "2" not in sys.argv else 0)
        path.write_text(dumps({"settings": {"seed": i}, "result": i, "processor_seconds": 1.5}))
"""


def test_a_stopped_run_keeps_what_it_found_and_its_commits(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "slow.py").write_text(SLOW)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    commits = []
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    commits.append(evidence._git("rev-parse", "HEAD"))
    folder = tmp_path / "work"
    assert not evidence.compute(_claims.Run("python recipes/slow.py", ""), folder, False, 2 / 60, 1)
    assert len(evidence._kept(folder)) == 1
    subprocess.run([*git, "commit", "-qm", "two", "--allow-empty"], cwd=tmp_path, check=True)
    commits.append(evidence._git("rev-parse", "HEAD"))
    for _ in range(2):  # the second time there is nothing left to do
        assert evidence.compute(_claims.Run("python recipes/slow.py 2", ""), folder, False, 1, 1)
    assert (folder / evidence.COMMITS).read_text().split() == commits
    monkeypatch.setitem(sys.modules, "slow", import_module("types").SimpleNamespace(evidence=lambda _: [{"seed": 7}]))
    found = evidence.gather(_claims.Run("python recipes/slow.py 2", ""), folder, False)
    assert (found["seeds"], found["processor_seconds"], found["commit"]) == ([7], 4.5, ", ".join(commits))


def test_a_sweep_keeps_its_cost(tmp_path):
    dict(sweep(lambda _, settings: sum(i * i for i in range(2_000_000)), {"a": {}}, tmp_path))
    (tmp_path / "other.json").write_text('{"result": 1}')
    (content,) = results_in(tmp_path)
    assert content == read_json(tmp_path / "a.json")
    assert 0 < content["processor_seconds"] < 60
