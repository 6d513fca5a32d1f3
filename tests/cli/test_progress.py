"""Plain lines of progress, by a clock that the test turns."""

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from qdc.cli.progress import EVERY, SWITCH, Bar, Lines, Status, progress
from qdc.units import DetailedProgress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_each_half_minute() -> None:
    clock, lines = Clock(), list[str]()
    told = Lines(lines.append, clock)
    told("run the passes", 0, 168)
    told.working("daq-lower blocks.3 ff_out", 600)
    clock.now += EVERY - 1
    told.tick()
    assert lines == []
    clock.now += 1
    told.tick()
    told.tick()
    assert lines == [
        "qdc: run the passes: 0 of 168, daq-lower blocks.3 ff_out, 30 s gone, about 9.5 min left"
    ]
    told("run the passes", 41, 168)
    clock.now += 10 * EVERY
    told.tick()
    assert lines[1].startswith("qdc: run the passes: 41 of 168, daq-lower blocks.3 ff_out, ")
    assert lines[1].endswith("5.5 min gone, about 4.5 min left")


def test_what_is_over_or_unknown_is_not_said() -> None:
    clock, lines = Clock(), list[str]()
    told = Lines(lines.append, clock)
    clock.now += EVERY
    told.tick()
    assert lines == []  # nothing has begun
    told("run the passes", 1, 2)
    told.working("polish blocks.0", 5)
    told("load out", 0, 0)
    told.tick()
    assert lines == ["qdc: load out, 30 s gone"]
    assert Status(left=5, at=10).remaining(15) == ""


def test_a_bar_shows_what_works_and_what_is_left() -> None:
    file = io.StringIO()
    drawn = Progress(console=Console(file=file, width=80, force_terminal=True), auto_refresh=False)
    bar = Bar(drawn)
    bar.working("nothing has begun", None)
    bar("run the passes", 0, 4)
    bar.working("daq-lower blocks.3 ff_out", 90)
    bar("load out", 0, 0)
    [first, second] = drawn.tasks
    assert (first.description, first.total) == ("daq-lower blocks.3 ff_out", 4)
    assert first.fields["status"].remaining(first.fields["status"].at) == "about 1.5 min left"
    assert second.total is None


def test_off_is_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(SWITCH, "on")
    with progress() as told:
        assert isinstance(told, Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress() as told:
        assert isinstance(told, Bar)
    monkeypatch.setenv(SWITCH, "off")
    with progress() as told:
        assert not isinstance(told, DetailedProgress)
        told("anything", 1, 2)
    capsys.readouterr()
