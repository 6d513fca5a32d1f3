"""A compile that has sampled states and weighed tokens, interrupted and taken up again."""

from pathlib import Path
from typing import Any

import pytest
import torch

import qdc
from tests.support.checkpoints import write_checkpoint
from tests.support.threads import one_thread

__all__ = ["one_thread"]

STATES = "geometry=tmas steps=3 token-weights=certainty"
PASSES = (
    f"stages(calibrate-cross{{{STATES}}},sensitivity,gptq-lower{{group=16}}),"
    f"polish{{{STATES} iterations=1}},pack"
)


class Stopped(Exception):
    """Somebody pulled the plug."""


def stop(what: str, done: int, total: int) -> None:
    """In the midst of the second region, where the streams hold its states."""
    if what == "run the passes" and done == total // 2 + 2:
        raise Stopped


def test_the_same_bytes_after_an_interruption(tmp_path: Path) -> None:
    model = write_checkpoint(
        tmp_path / "model", d_model=32, mlp_hidden_size=48, dtype=torch.float32
    )
    given: dict[str, Any] = {"samples": 4, "length": 16, "write_report": False}
    whole = qdc.compile(model, PASSES, out=tmp_path / "whole", **given)
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        qdc.compile(model, PASSES, out=out, progress=stop, **given)
    assert not out.exists()
    report = qdc.compile(model, PASSES, out=out, resume=True, **given)
    assert report.resumed == 1
    assert report.calibration_states == whole.calibration_states != ()
    assert report.calibration_certainty == whole.calibration_certainty != ()
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
