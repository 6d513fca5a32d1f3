"""Experts in waves: the bytes are those of one stage at a time, however memory cuts the waves."""

from pathlib import Path

import pytest

import qdc
from qdc.compiling.compiler import run_job
from qdc.compiling.instruments import Instrument
from qdc.streaming.unit import Unit
from tests.support.compiles import make_job
from tests.support.experts import write_mixture

SAMPLES = "samples=5 length=12 batch=2 least-tokens=9"
PIPELINES = {
    "natural": f"stages(calibrate-cross{{{SAMPLES}}},sensitivity{{damp=0.1}},abmp-allocate,"
    "daq-lower{asymmetry=1}),pack",
    "outputs first": f"stages{{order=outputs-first}}(calibrate-mcs{{{SAMPLES} masked-weight=2}},"
    "rtn-lower),pack",
    "regions": f"calibrate-mcs{{{SAMPLES}}},sensitivity,rtn-lower,pack",
}
EXPERTS = 5


class Applications(Instrument):
    """Stages of each application of a pass."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def after(self, place: int, unit: Unit) -> None:
        if not place:
            self.found.append(len(unit.stages))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("waves") / "model", experts=EXPERTS)


@pytest.mark.parametrize("name", PIPELINES)
def test_waves_give_the_bytes_of_one_stage_at_a_time(
    name: str, model: Path, tmp_path: Path
) -> None:
    """With states in bf16, which are rounded where samples stop: they stop before whole waves."""
    seen: dict[str, list[int]] = {}
    for memory, out in ((1, "stages"), (3 * 16 * 32**2, "parts"), (1 << 30, "waves")):
        watch = Applications()
        job = make_job(
            model, tmp_path / out, passes=PIPELINES[name], device_memory=memory,
            instruments=(watch,),
        )  # fmt: skip
        run_job(job)
        seen[out] = watch.found
    if name == "natural":
        assert seen["waves"] == [1, 1, EXPERTS, EXPERTS] * 2
        assert seen["stages"] == [1] * (2 + 2 * EXPERTS) * 2
        assert seen["parts"] == [1, 1, 3, 2, 5] * 2
    expected = files(tmp_path / "stages")
    assert files(tmp_path / "parts") == files(tmp_path / "waves") == expected


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_size_that_is_none_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(qdc.QdcError, match="--device-memory"):
        qdc.compile(model, "rtn", out=tmp_path / "out", device_memory="much")
