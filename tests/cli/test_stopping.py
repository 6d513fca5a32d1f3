"""Signals: exit codes, no traceback, none lost, and what was done is kept."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qdc import stopping
from qdc.cli import run
from tests.support.commands import environment

VANISHES = """
import os, signal
from qdc import stopping

class Loud:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass

stopping.install()
thing = Loud()
del thing
print("went on", flush=True)
stopping.check()
print("not here")
"""
SLOW = '''
import time
from typing import ClassVar

from qdc import Pass, Unit


class Slow(Pass):
    """Wait, in Python."""

    name: ClassVar[str] = "slow"

    def run(self, unit: Unit) -> None:
        """Say that it is running."""
        if unit.name == "blocks.1":
            print("running", flush=True)
            time.sleep(60)
'''


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers of the command line in this process, for one test."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stopping._asked.installed, stopping._asked.number = False, 0


def python(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=100,
        env=environment(),
    )  # fmt: skip


def test_a_signal_that_vanished_is_raised_at_the_next_step() -> None:
    """What a handler raises in ``__del__`` is printed and forgotten; the note of it is not."""
    found = python(VANISHES.format(name="SIGTERM"))
    assert found.stdout == "went on\n"
    assert found.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_second_signal_does_not_disturb_the_end(number: int, handlers: None) -> None:
    seen: list[str] = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            seen.append("cleaned up")

    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        work()
    assert seen == ["cleaned up"]
    assert stopping.is_stop(caught.value)
    assert stopping.exit_code() == 128 + number


def test_a_signal_after_the_first_was_lost_is_raised(handlers: None) -> None:
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        stopping.check()


def test_a_signal_long_after_the_first_ends_the_process() -> None:
    text = (
        "import signal\nfrom qdc import stopping\nstopping.GRACE = -1.0\nstopping.install()\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nfinally:\n"
        "    signal.raise_signal(signal.SIGTERM)\n    print('not here', flush=True)\n"
    )
    found = python(text)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "")


def test_signals_that_were_ignored_stay_ignored() -> None:
    text = (
        "import signal\nfrom qdc import stopping\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "stopping.install()\nsignal.raise_signal(signal.SIGINT)\nstopping.check()\nprint('on')\n"
    )
    assert python(text).stdout == "on\n"


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")]
)
def test_many_signals_give_one_word_and_the_exit_code(
    number: int, word: str, model: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "qdc", "compile", model, "-o", tmp_path / "out", "--plugin", plugin,
         "--passes", "rtn-lower,slow,pack"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() < begun + stopping.GRACE - 1:
        os.kill(process.pid, number)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert errors.endswith(f"{word}\n")
    assert errors.count(word) == 1
    assert "1 of 2 steps are done, the last is blocks.0; go on with --resume" in errors
    assert not (tmp_path / "out-repro").exists()
    assert (tmp_path / ".out.partial" / "journal.json").is_file()


def test_a_signal_after_the_last_word_raises_nothing(
    model: Path, tmp_path: Path, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text("import signal\n" + SLOW.replace("time.sleep(60)", "signal.raise_signal(15)"))
    code = run(
        ["compile", str(model), "-o", str(tmp_path / "out"), "--plugin", str(plugin),
         "--passes", "rtn-lower,slow,pack"]
    )  # fmt: skip
    for number in stopping.SIGNALS:
        signal.raise_signal(number)
    assert code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.count("terminated") == 1


def test_a_plugin_that_only_says_interrupted_is_a_bug_of_it(
    model: Path, tmp_path: Path, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW.replace("time.sleep(60)", "raise KeyboardInterrupt"))
    code = run(
        ["compile", str(model), "-o", str(tmp_path / "out"), "--plugin", str(plugin),
         "--passes", "rtn-lower,slow,pack"]
    )  # fmt: skip
    assert code == 2
    assert "this is a bug of the plugin slow.py, line 17" in capsys.readouterr().err
