"""`fmprobe cache` lists what is kept for later runs, and removes what is named or was used longest ago."""

import json
import os
import subprocess
import sys

import pytest
from support.checkpoints import save_dinov2
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.surrogates.cache import cached_decoder
from fmprobe.surrogates.linear import LinearSettings


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["cache", *arguments], catch_exceptions=True)
    if code:
        assert isinstance(done.exception, fmprobe.InputError)
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.stdout


def listed():
    return json.loads(run("--json"))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache with three entries of 100, 200 and 300 bytes, the largest used last."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for i, kind in enumerate(("features", "features", "decoders"), 1):
        folder = tmp_path / "fmprobe" / kind / f"{i}abcdef"
        folder.mkdir(parents=True)
        (folder / "rows").write_bytes(bytes(100 * i))
        os.utime(folder, (i * 1e6, i * 1e6))
    return tmp_path / "fmprobe"


def test_entries_are_listed_with_kind_size_and_time_the_latest_first(kept):
    rows = listed()
    assert [(row["key"], row["kind"], row["bytes"]) for row in rows] == [
        ("3abcdef", "decoder", 300),
        ("2abcdef", "feature", 200),
        ("1abcdef", "feature", 100),
    ]
    assert run().splitlines()[-1] == f"3 kept, 600 B, in {kept}"


@pytest.mark.parametrize(
    ("size", "left"), [("600", 3), ("599", 2), ("0.5KB", 2), ("300B", 1), ("299", 0), ("0", 0), ("1 GB", 3)]
)
def test_what_was_used_longest_ago_goes_first(kept, size, left):
    run("--max-size", size)
    assert [row["key"] for row in listed()] == ["3abcdef", "2abcdef", "1abcdef"][:left]
    assert sorted(path.name for path in kept.glob("*/*")) == sorted(row["key"] for row in listed())


def test_an_entry_is_removed_by_the_beginning_of_its_key_and_all_by_all(kept):
    assert "removed 2abcdef, 200 B" in run("--remove", "2a")
    assert [row["key"] for row in listed()] == ["3abcdef", "1abcdef"]
    run("--remove", "all")
    assert listed() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--remove", "9"), "--remove 9: expected all, or the key of one entry"),
        (("--remove", "../decoders"), "expected all, or the key of one entry"),
        (("--max-size", "much"), "--max-size much: expected a number of bytes, or a size such as 500MB"),
        (("--max-size", "-1"), "expected a number of bytes"),
        (("--max-size", "1PB"), "expected a number of bytes"),
    ],
)
def test_bad_input_is_one_line_and_removes_nothing(kept, arguments, said):
    message = run(*arguments, code=2)
    assert said in message
    assert "\n" not in message
    assert len(listed()) == 3


def test_there_need_not_be_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert listed() == []
    assert not (tmp_path / "none").exists()


def test_a_decoder_names_its_model_and_counts_as_used_when_it_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = fmprobe.load(save_dinov2(tmp_path / "dino"))
    settings = LinearSettings(n_images=20)
    assert not cached_decoder(model, settings, progress=False)[1]
    (decoder,) = (tmp_path / "fmprobe" / "decoders").iterdir()
    assert {row["kind"]: row["model"] for row in listed()} == {"decoder": model.name, "feature": model.name}
    head, *rows, _ = run().splitlines()
    assert head.split() == ["key", "kind", "size", "last", "used", "of"]
    assert {row[head.index("of") :] for row in rows} == {model.name, f"{model.name}, 20 images"}
    os.utime(decoder, (1, 1))
    assert cached_decoder(model, settings, progress=False)[1]
    assert decoder.stat().st_mtime > 1e9


def test_the_version_is_printed_alone():
    done = subprocess.run([sys.executable, "-m", "fmprobe", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{fmprobe.__version__}\n"
