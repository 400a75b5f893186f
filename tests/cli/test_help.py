"""What --help says: a list of commands that fits, an example for each, and options in groups."""

import re
import shlex

import pytest
from support.commands import COMMANDS, options_of, spelled
from typer.testing import CliRunner

from fmprobe.cli import app
from fmprobe.runs.options import Panel


def shown(*words, width):
    """The help at a number of columns."""
    return CliRunner().invoke(app, [*words, "--help"], prog_name="fmprobe", terminal_width=width).stdout


def test_the_list_of_commands_fits_into_80_columns():
    text = shown(width=80)
    assert max(map(len, text.splitlines())) <= 80
    said = dict(line.split(None, 1) for line in text.split("Commands:\n")[1].splitlines())
    assert list(said) == list(COMMANDS)
    for name, sentence in said.items():
        assert sentence.endswith("."), f"the line of {name} is cut: {sentence}"
        assert not sentence.endswith("..."), f"the line of {name} is cut: {sentence}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_its_own_options_take(command):
    paragraphs = COMMANDS[command].help.strip().split("\n\n")
    name, _, line = paragraphs[-1].partition(": ")
    assert name == "Example"
    assert paragraphs[-1] in [row.strip() for row in shown(command, width=80).splitlines()], "it cannot be copied"
    program, called, *words = shlex.split(line)
    assert (program, called) == ("fmprobe", command)
    COMMANDS[command].make_context(command, words)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_stands_once_in_a_group_with_a_readable_value(command, width):
    text = shown(command, width=width)
    assert max(map(len, text.splitlines())) <= width
    groups = dict(re.findall(r"^(\w[^\n]*):\n((?:  .*\n|\n(?=  ))+)", text, re.MULTILINE))
    assert "Options" not in groups, "options without a group"
    shared = [name for name in groups if name in Panel.LAST]
    assert list(groups)[-len(shared) :] == sorted(shared, key=Panel.LAST.index), "the groups that many share come last"
    rows = [row for lines in groups.values() for row in lines.splitlines()]
    for parameter in options_of(command).values():
        value = "" if parameter.is_flag else " [A-Z][A-Z,]*"
        row = re.compile(rf"  (-\w, )?{spelled(parameter)}{value}( / --no-\S+)?(  |$)")
        assert sum(map(bool, map(row.match, rows))) == 1, f"{row.pattern} stands in one group"
    assert not re.search(r"<\w|FUNC|TEXT|range>", text)
