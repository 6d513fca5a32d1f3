"""A typo in anything that has a name: one message, the nearest names, exit code 1."""

from pathlib import Path

import pytest

from tests.cli.conftest import Command, check_refusal
from tests.support.commands import qdc as command

HELP_FIELD, HELP_DEVICE = "did you mean text?", "known: cpu, cuda, auto"
EVAL = ("eval", "ARTIFACT", "--text", "TEXT")
COMPILE = ("compile", "MODEL", "-o", "OUT")
TYPOS = {
    "command": (("complie", "m"), "no such command 'complie'", "did you mean 'compile'"),
    "option name": ((*COMPILE, "--sampels", "4"), "--sampels", "--samples"),
    "option of the program": (("--versoin",), "--versoin", "--version"),
    "pass": ((*COMPILE, "--passes", "rtn-lwoer,pack"), "'rtn-lwoer'", "did you mean rtn-lower"),
    "preset": ((*COMPILE, "--passes", "defualt"), "'defualt'", "did you mean default?"),
    "pass inside stages": (
        (*COMPILE, "--passes", "stages(calibrate-mcs,rtn-loewr),pack"),
        "'rtn-loewr'",
        "did you mean rtn-lower",
    ),
    "pass option": (
        (*COMPILE, "--passes", "rtn-lower{bitz=2},pack"), "no option 'bitz'", "did you mean bits?",
    ),
    "pass option value": (
        (*COMPILE, "--passes", "calibrate-mcs,sensitivity,abmp-allocate{scope=stgae}"),
        "scope",
        "'stage'",
    ),
    "backend": ((*COMPILE, "--backend", "refrence"), "'refrence'", "did you mean reference?"),
    "backend option": ((*COMPILE, "--backend", "reference{x=1}"), "no option 'x'", "no options"),
    "device": ((*COMPILE, "--device", "cdua"), "'cdua'", HELP_DEVICE),
    "plugin": ((*COMPILE, "--plugin", "my_pas.py"), "my_pas.py", "--plugin my_pass.py"),
    "dump-after": ((*COMPILE, "--dump-after", "pakc"), "'pakc'", "did you mean pack?"),
    "one of dump-after": ((*COMPILE, "--dump-after", "pack,daq-lwer"), "'daq-lwer'", "daq-lower"),
    "stop-after": ((*COMPILE, "--stop-after", "sensitivty"), "'sensitivty'", "sensitivity"),
    "text-field": (
        (*COMPILE, "--calibration", "TEXT", "--text-field", "txet"), "'txet'", HELP_FIELD,
    ),
    "calibration": ((*COMPILE, "--calibration", "dcos.jsonl"), "no such file", "jsonl"),
    "model": (("compile", "moodel", "-o", "OUT"), "moodel", "config.json"),
    "show path": (("show", "ouut"), "ouut", "artifact"),
    "show only": (("show", "MODEL", "--only", "blocks.0.q_prjo"), "q_prjo", "blocks.0.q_proj"),
    "show only as json": (
        ("show", "MODEL", "--only", "blocks.0.q_prjo", "--json"), "q_prjo", "blocks.0.q_proj",
    ),
    "show tags": (("show", "ARTIFACT", "--tags", "ordres"), "'ordres'", "did you mean orders?"),
    "passes name": (("passes", "daq-lowr"), "'daq-lowr'", "daq-lower"),
    "passes provides": (("passes", "--provides", "salienc"), "'salienc'", "did you mean salience"),
    "run model": (("run", "ouut", "a <mask>"), "ouut", ""),
    "run device": (("run", "ARTIFACT", "a <mask>", "--device", "cup"), "'cup'", HELP_DEVICE),
    "eval text": (("eval", "ARTIFACT", "--text", "hedlout.jsonl"), "hedlout.jsonl", "jsonl"),
    "eval against": (
        (*EVAL, "--against", "moodel"), "moodel", "",
    ),
    "eval field": (
        (*EVAL, "--text-field", "txet"), "'txet'", HELP_FIELD,
    ),
    "eval device": (
        (*EVAL, "--device", "cdua"), "'cdua'", HELP_DEVICE,
    ),
    "eval ratios": ((*EVAL, "--ratios", "0.5;1"), "'0.5;1'", "0.15"),
}  # fmt: skip


@pytest.fixture
def places(model: Path, artifact: Path, text: Path, tmp_path: Path) -> dict[str, Path]:
    return {"MODEL": model, "ARTIFACT": artifact, "TEXT": text, "OUT": tmp_path / "out"}


@pytest.mark.parametrize("typo", TYPOS)
def test_typo_is_refused(
    typo: str, places: dict[str, Path], tmp_path: Path, refused: Command
) -> None:
    arguments, named, helped = TYPOS[typo]
    message = refused(*(places.get(argument, argument) for argument in arguments))
    assert named in message
    assert helped.lower() in message.lower()
    assert not list(tmp_path.iterdir())


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "typo",
    ["preset", *(pytest.param(o, marks=SLOW) for o in ("command", "option name", "show path"))],
)
def test_typo_is_refused_by_the_real_command(
    typo: str, places: dict[str, Path], tmp_path: Path
) -> None:
    arguments, named, helped = TYPOS[typo]
    found = command(*(places.get(argument, argument) for argument in arguments))
    check_refusal(found.returncode, found.stdout, found.stderr)
    assert named in found.stderr
    assert helped.lower() in found.stderr.lower()
    assert not list(tmp_path.iterdir())
