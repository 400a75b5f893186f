"""--config: a YAML file says what flags say, through the same checks, and flags win."""

from pathlib import Path

import pytest
import yaml
from support.commands import COMMANDS, options_of, spelled, types_of
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app

CONFIGURED = [name for name in COMMANDS if "config" in options_of(name)]


def value_of(command, name, whole="65", part="0.125", text="other"):
    """A text that the option takes."""
    types = types_of(command, name)
    return whole if types & {int, list[int]} else part if float in types else text


def parsed(command, *words):
    """What the command would be given, and the names of the parameters that somebody gave."""
    context = COMMANDS[command].make_context(command, list(map(str, words)))
    sources = {name: context.get_parameter_source(name).name for name in context.params}
    given = {name for name, source in sources.items() if source in ("COMMANDLINE", "DEFAULT_MAP")}
    return {k: v for k, v in context.params.items() if k != "config"}, given - {"config"}


def long_name(parameter):
    return spelled(parameter).lstrip("-").replace("_", "-")


def values_of(command, **texts):
    """A value of every parameter as a file holds it, and the words that say the same on the command line."""
    values, words = {}, []
    for parameter in (p for p in COMMANDS[command].params if p.name not in ("config", "help")):
        if bool in types_of(command, parameter.name):
            no = parameter.default is True
            values[parameter] = not no
            words.append(parameter.secondary_opts[0] if no else spelled(parameter))
            continue
        value = value_of(command, parameter.name, **texts)
        values[parameter] = [value, f"{value}0"] if parameter.nargs == -1 or is_repeatable(parameter) else value
        for text in values[parameter] if isinstance(values[parameter], list) else [value]:
            words += [text] if parameter.param_type_name == "argument" else [spelled(parameter), text]
    return values, words


def is_repeatable(parameter):
    return getattr(parameter, "multiple", False)


@pytest.fixture
def saved(tmp_path):
    def save(content):
        path = tmp_path / "options.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return save


def test_every_command_with_options_of_its_own_has_it():
    assert {name for name in COMMANDS if set(options_of(name)) - {"as_json", "quiet"}} == set(CONFIGURED)


@pytest.mark.parametrize("command", CONFIGURED)
@pytest.mark.parametrize("key", [long_name, lambda p: long_name(p).replace("-", "_"), lambda p: p.name])
def test_a_file_says_what_flags_say(command, key, saved):
    values, words = values_of(command)
    file = saved({"command": command, **{key(parameter): value for parameter, value in values.items()}})
    found, given = parsed(command, "--config", file)
    assert (found, given) == parsed(command, *words)
    assert given == {parameter.name for parameter in values}


@pytest.mark.parametrize("command", CONFIGURED)
def test_flags_win_over_the_file(command, saved):
    words = values_of(command)[1]
    others = {p.name: v for p, v in values_of(command, whole="66", part="0.25", text="another")[0].items()}
    turned = {name: not value if isinstance(value, bool) else value for name, value in others.items()}
    assert parsed(command, "--config", saved(turned), *words) == parsed(command, *words)


@pytest.mark.parametrize("command", CONFIGURED)
def test_a_default_in_the_file_says_as_little_as_no_flag(command, saved):
    needed = {parameter.name for parameter in COMMANDS[command].params if parameter.required}
    values = {p.name: v if p.name in needed else p.default for p, v in values_of(command)[0].items()}
    assert parsed(command, "--config", saved(values))[1] == needed


def test_values_are_the_text_of_the_file(saved):
    """YAML would make other things of these: an octal number, sixty-fold numbers, dates, text."""
    text = "model: m\nrevision: 0123\ndtype: 1:30\ndevice: 2024-01-01\ntol: 1e-5\ndecoder: no\n"
    found = parsed("probe", "--config", saved(text))[0]
    said = {"revision": "0123", "dtype": "1:30", "device": "2024-01-01", "tol": 1e-5, "decoder": "no"}
    assert {name: found[name] for name in said} == said


def test_null_is_an_option_of_that_name(saved):
    assert not parsed("weights", "--config", saved("model: m\ndata: D\nnull: false\n"))[0]["null"]


REFUSED = {
    "an unknown key": ("colour: red", "colour", "expected one of model, "),
    "a key of another command": ("data: D", "data", "expected one of model, "),
    "a text for a number": ("starts: many", "starts", "integer"),
    "a number out of range": ("starts: 0", "starts", "greater than or equal to 1"),
    "no finite number": ("tol: .inf", "tol", "number"),
    "a list for one value": ("starts: [1, 2]", "starts", "expected one value"),
    "a mapping for a value": ("device: {cpu: 1}", "device", "expected one value"),
    "no truth value": ("deterministic: perhaps", "deterministic", "boolean"),
    "an option by two names": ("n: 4\nstarts: 5", "starts", "twice"),
    "an empty text": ("model: m\ndevice: ''", "device", "empty"),
    "another command": ("command: field", "field", "expected probe"),
    "a list": ("- starts", "options.yaml", "mapping"),
    "nothing": ("", "options.yaml", "mapping"),
    "no YAML": ("starts: [1", "options.yaml", "no YAML"),
    "a tag": ("starts: !!python/object:os.system x", "starts", "integer"),
    "no text": ("\0", "options.yaml", "no YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_in_one_line(name, saved):
    text, key, expected = REFUSED[name]
    done = CliRunner().invoke(app, ["probe", "--config", str(saved(text))])
    assert isinstance(done.exception, fmprobe.InputError), done.output
    line = str(done.exception)
    assert "\n" not in line
    assert key in line
    assert expected in line


@pytest.mark.parametrize("path", ["missing.yaml", ".", ""])
def test_a_file_that_cannot_be_read_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["probe", "--config", path])
    assert isinstance(done.exception, fmprobe.InputError)
    assert str(Path(path)) in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "value"), [("rule", "first"), ("ood-images", 4)])
def test_an_option_that_would_not_act_is_refused_in_a_file_too(key, value, saved, tmp_path):
    file = saved({"model": "m", "data": "D", key: value})
    done = CliRunner().invoke(app, ["ood", "--config", str(file), "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, fmprobe.InputError)
    assert f"--{key}" in str(done.exception)
