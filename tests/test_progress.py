"""Progress where there is no terminal: few lines, with what is running, how far it is and how long it will take."""

import random
import re
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import torch

import fmprobe
from fmprobe import progress
from fmprobe.progress import EVERY, LONG, SOON, Lines, duration, progress_of


class Clock:
    """A clock that stands still unless it is moved, and moves by `step` with each look."""

    def __init__(self, step=0.0):
        self.at, self.step = 0.0, step

    def __call__(self):
        self.at += self.step
        return self.at


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "")
    made = Clock()
    monkeypatch.setattr(progress, "now", made)
    monkeypatch.setattr(Lines, "told", -float("inf"))
    return made


def lines(capsys):
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("seed", range(5))
def test_there_is_at_most_a_line_every_30_seconds_whatever_runs_inside_of_what(seed, clock, capsys):
    drawn, told = random.Random(seed), []
    with progress_of("outer", 60) as outer:
        for _ in range(60):
            with progress_of("inner", 20) as inner:
                for _ in range(20):
                    clock.at += drawn.expovariate(1 / drawn.choice([0.01, 1, 10]))
                    inner.update(1)
                    told += [clock.at] * len(lines(capsys))
            outer.update(1)
            told += [clock.at] * len(lines(capsys))
    assert len(told) > 10
    assert min(b - a for a, b in pairwise(told)) >= EVERY


@pytest.mark.parametrize(("pace", "total", "initial"), [(1.0, 400, 0), (7.0, 100, 40), (0.02, 40_000, 0)])
def test_a_line_says_how_far_it_is_and_at_an_even_pace_how_long_it_takes(pace, total, initial, clock, capsys):
    end, found = pace * (total - initial), []
    with progress_of("training", total, initial=initial) as bar:
        for done in range(initial + 1, total + 1):
            clock.at += pace
            bar.update(1)
            for line in lines(capsys):
                found.append(clock.at)
                left = duration(end - clock.at)
                assert line == f"training: {done} of {total} after {duration(clock.at)}, about {left} left"
    assert SOON <= found[0] < SOON + max(pace, SOON), "the estimate comes soon where it is long"
    assert len(found) >= (end - SOON) // (EVERY + pace)


def test_what_is_done_within_a_minute_gets_no_line_before_half_of_it(clock, capsys):
    with progress_of("short", 50) as bar:
        for _ in range(50):
            clock.at += LONG / 51
            bar.update(1)
            if clock.at < EVERY:
                assert lines(capsys) == []


def test_an_unknown_number_has_no_estimate(clock, capsys):
    with progress_of("encode", None) as bar:
        clock.at += EVERY
        bar.update(3)
    assert lines(capsys) == ["encode: 3 after 30 s"]


def test_a_terminal_gets_a_bar_and_nobody_else_does(clock, capsys):
    with mock.patch("sys.stderr.isatty", return_value=True), progress_of("orbits", 10) as bar:
        assert not isinstance(bar, Lines)
    assert isinstance(progress_of("orbits", 10), Lines)


def test_quiet_tells_nothing(clock, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for shown in (None, True, False):
        with progress_of("orbits", 10, shown=shown) as bar:
            clock.at += 2 * EVERY
            bar.update(1)
    assert lines(capsys) == []


def test_a_search_tells_its_orbits(clock, capsys):
    clock.step = 7.0
    fmprobe.iterate(lambda z: z * 0.9, torch.ones(40, 2), tol=1e-2, batch_size=8)
    told = lines(capsys)
    assert told
    assert all(re.fullmatch(r"orbits: \d+ of 40 after \d+ (s|min)(, about \d+ (s|min) left)?", line) for line in told)
    fmprobe.iterate(lambda z: z * 0.9, torch.ones(40, 2), tol=1e-2, batch_size=8, progress=False)
    assert lines(capsys) == []


def test_there_is_one_mechanism():
    package = Path(fmprobe.__file__).parent
    users = [path.name for path in package.rglob("*.py") if re.search(r"(import|from) tqdm", path.read_text())]
    assert users == ["progress.py"]
