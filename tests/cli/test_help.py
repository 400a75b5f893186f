"""What --help says: a list of commands that fits, and an example for each."""

import shlex

import pytest
from support.commands import COMMANDS
from typer.testing import CliRunner

from fmprobe.cli import app


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
