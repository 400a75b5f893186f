"""fmprobe score and its alias, fmprobe ood --detector: every option acts or is refused."""

from typing import Any
from unittest import mock

import pytest
import typer
from support.runs import command

from fmprobe.cli import app

COMMANDS: Any = typer.main.get_command(app)
OOD, SCORE = (COMMANDS.commands[name] for name in ("ood", "score"))
OPTIONS = {parameter.opts[0]: parameter for parameter in OOD.params if parameter.param_type_name == "option"}
SHARED = {parameter.name for parameter in SCORE.params} | {"detector"}
ELSEWHERE = {"--json", "--quiet", "--help", "--config", "--format", "--dpi"}  # act around every command


def given(option) -> tuple[list[str], Any]:
    """The option with a value that is not its default, as written and as a command receives it."""
    parameter = OPTIONS[option]
    if parameter.is_flag:
        written = parameter.secondary_opts[0] if parameter.default else option
        return [written], not parameter.default
    value = "0.137" if option == "--acceptance" else "137"  # a number and a text
    return [option, value], value


def holds(where, value) -> bool:
    """Whether a value is somewhere among arguments."""
    if isinstance(where, dict):
        return any(holds(inner, value) for inner in where.values())
    if isinstance(where, list | tuple):
        return any(holds(inner, value) for inner in where)
    return where is value if isinstance(value, bool) else str(where) in (value, f"{value}.0")


def told(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fmprobe:")]


def called(target, *arguments):
    """The arguments that the command's work got, None where it was refused; with the exit code."""
    with mock.patch(target, side_effect=SystemExit(0)) as work:
        code = command(*arguments)
    return ([*work.call_args.args, work.call_args.kwargs] if work.called else None), code


@pytest.mark.parametrize("option", sorted(OPTIONS.keys() - ELSEWHERE - {"--detector"}))
def test_beside_a_detector_an_option_acts_or_is_refused_by_its_name(option, capsys):
    written, value = given(option)
    arguments = ["--data", "images", *written] if option != "--data" else written
    got, code = called("fmprobe.probes.score.score_source", "ood", "--detector", "folder", *arguments)
    if OPTIONS[option].name in SHARED:
        assert got is not None
        assert holds(got, value)
        assert called("fmprobe.probes.score.score_source", "score", "folder", *arguments)[0] == got
        return
    assert (got, code) == (None, 2)
    (line,) = told(capsys)
    assert option in line


@pytest.mark.parametrize("option", sorted({p.opts[0] for p in SCORE.params if p.param_type_name == "option"}))
def test_score_offers_nothing_that_its_alias_lacks(option):
    assert option in OPTIONS


@pytest.mark.parametrize("option", sorted(OPTIONS.keys() - ELSEWHERE - {"--detector"}))
def test_beside_a_model_an_option_acts_or_is_refused_by_its_name(option, capsys):
    written, value = given(option)
    before = [] if option == "--data" else ["--data", "images"]
    plain, _ = called("fmprobe.probes.ood.run_ood", "ood", "model", "--data", "images")
    got, code = called("fmprobe.probes.ood.run_ood", "ood", "model", *before, *written)
    if got is None:
        assert code == 2
        (line,) = told(capsys)
        assert option in line
    else:
        assert got != plain
        assert holds(got, value)


def test_what_is_refused_beside_a_model_is_what_scoring_alone_takes(capsys):
    refused = []
    for option in OPTIONS.keys() - ELSEWHERE - {"--detector", "--data"}:
        written, _ = given(option)
        got, _ = called("fmprobe.probes.ood.run_ood", "ood", "m", "--data", "d", "--ood", "a=b", *written)
        refused += [option] if got is None else []
    assert sorted(refused) == ["--parquet", "--rule"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ood", "model", "--detector", "d", "--data", "i"], "leave model out"),
        (["ood", "--detector", "d", "--data", "i", "--seed", "0"], "--seed"),  # said is said, even the default
        (["ood", "--detector", "d", "--data", "i", "--tol", "1e-5", "--controls"], "--controls, --tol"),
        (["ood", "--detector", "d"], "--data"),
        (["score", "nowhere", "--data", "i"], "detector.json does not exist"),
        (["score", "nowhere", "--data", "i", "--acceptance", "1"], "--acceptance 1.0"),
    ],
)
def test_what_does_not_act_is_named_in_one_line(arguments, message, capsys):
    assert command(*arguments) == 2
    (line,) = told(capsys)
    assert message in line
